"""One update and one epoch: the resting head, accumulation, rates, mixing, masks, non-finite losses."""

import contextlib
import copy
import dataclasses
import itertools
import time
import types

import numpy as np
import pytest
import torch
from conftest import assert_equal_states
from timm.data.mixup import Mixup
from timm.utils import ModelEmaV3
from torch.nn import functional as F

import engine_for_finetuning
from dataset.datasets import BadClip, ClipBatch
from dataset.masking_generator import batch_masks
from dataset.volume_transforms import ClipsToInput
from engine_for_alternating_finetuning import (
    AlternatingTrainer,
    Alternation,
    EpochHooks,
    HandMeters,
    NonFiniteLoss,
    Recipe,
    Runtime,
    final_test_alternating,
    mix_clips,
    train_one_epoch_alternating,
    validation_one_epoch_alternating,
)
from engine_for_finetuning import DataWait
from models import AlternatingDualHeadVisionTransformer
from optim_factory import MOST_OVERFLOWS, OPTIMIZERS, create_criterion, create_mixup, create_updater
from run_alternating_hand_finetuning import get_parser
from utils import UserError

CLASSES = {"lh": 4, "rh": 3}
CPU = torch.device("cpu")
FP32 = Runtime(CPU, torch.float32)
QUIET = ("--mixup", "0", "--cutmix", "0", "--smoothing", "0", "--lr", "1", "--warmup_epochs", "0")


def tiny_model(**kwargs):
    torch.manual_seed(0)
    sizes = dict(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, all_frames=4, qkv_bias=True)
    classes = {f"{hand}_num_classes": count for hand, count in CLASSES.items()}
    return AlternatingDualHeadVisionTransformer(**sizes, **classes, init_scale=1.0, **kwargs)


def batch_of(hand, number, clips=2, views=1):
    """A batch of random clips; what is in it follows from its number."""
    rng = np.random.default_rng([number, hand == "rh"])
    n = clips * views
    return ClipBatch(
        hand=hand,
        names=[f"{hand}{number}-{clip}.mp4" for clip in range(clips)],
        labels=torch.from_numpy(rng.integers(0, CLASSES[hand], clips)),
        frames=torch.from_numpy(rng.integers(0, 256, (n, 4, 16, 16, 3), np.uint8)),
        clip_of_view=torch.arange(clips).repeat_interleave(views),
        erase_boxes=torch.zeros(n, 0, 4, dtype=torch.int16),
        rows=torch.tensor([[view, 0, view % views] for view in range(n)]),
        bad=[],
    )


def batches_of(recipe, update_freq):
    """Endless batches of the hands whose turn it is."""
    for step in itertools.count():
        for micro in range(update_freq):
            yield batch_of(recipe.alternation.hand_at(step), step * update_freq + micro)


def unreadable_batch(hand):
    """A batch whose only clip could not be read."""
    batch = batch_of(hand, 0, clips=1)
    nothing = {name: getattr(batch, name)[:0] for name in ("frames", "clip_of_view", "erase_boxes", "rows")}
    return batch._replace(names=["gone.mp4"], bad=[BadClip(hand, "gone.mp4", "no such file")], **nothing)


@dataclasses.dataclass
class Bench:
    """A small training set-up."""

    trainer: AlternatingTrainer
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    meters: HandMeters

    def step(self, step):
        return self.trainer.optimizer_step(step, self.meters)


def bench(
    *flags, model=None, steps_a_turn=4, steps_per_epoch=30, clips=2, to_clips=None, runtime=FP32, **kwargs
):
    args = get_parser().parse_args([*QUIET, "--epochs", "2", "--drop_path", "0", *map(str, flags)])
    model = model or tiny_model()
    updater = create_updater(args, model, CPU, runtime.amp_dtype, 256, steps_per_epoch)
    alternation = Alternation(tuple(CLASSES), steps_a_turn)
    recipe = Recipe(
        runtime,
        alternation,
        steps_per_epoch,
        2 * args.update_freq,
        args.seed,
        0,
        args.log_interval,
        args.cutmix_region,
    )
    trainer = AlternatingTrainer(
        model.train(),
        kwargs.pop("batches", None) or batches_of(recipe, args.update_freq),
        updater,
        kwargs.pop("criterion", None) or create_criterion(args),
        recipe,
        to_clips or ClipsToInput(args.remode),
        {hand: create_mixup(args, count) for hand, count in CLASSES.items()},
        **kwargs,
    )
    return Bench(trainer, model, updater.optimizer, HandMeters(tuple(CLASSES), CPU))


def head_state(b, hand):
    """Weights of a hand's head and all that the optimizer remembers of them."""
    params = dict(b.model.get_classifier(hand).named_parameters())
    moments = {name: dict(b.optimizer.state.get(param, {})) for name, param in params.items()}
    return copy.deepcopy(({name: param.detach() for name, param in params.items()}, moments))


# ------------------------------------------------------------------------------ the resting head


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_resting_head_and_its_moments_stay_bit_identical(opt):
    b = bench("--update_freq", 3, "--opt", opt, "--lr", "1e-2", "--weight_decay", "0.1")
    turns = {hand: 0 for hand in CLASSES}
    for step in range(30):
        active = "lh" if step // 4 % 2 == 0 else "rh"
        resting = "rh" if active == "lh" else "lh"
        before = {hand: head_state(b, hand) for hand in CLASSES}
        b.step(step)
        turns[active] += 1
        assert_equal_states(head_state(b, resting), before[resting], f"step {step}")
        assert not torch.equal(head_state(b, active)[0]["weight"], before[active][0]["weight"])
        if opt == "adamw":
            for hand in CLASSES:
                counts = {int(s["step"]) for s in head_state(b, hand)[1].values() if s}
                assert counts == ({turns[hand]} if turns[hand] else set())
    assert turns == {"lh": 16, "rh": 14}


def test_resting_head_gets_no_gradient():
    b = bench("--update_freq", 2)
    seen = []
    step = b.optimizer.step
    b.optimizer.step = lambda: (
        seen.append({hand: b.model.get_classifier(hand).weight.grad is not None for hand in CLASSES}),
        step(),
    )
    for i in range(6):
        b.step(i)
    assert seen == [{"lh": i < 4, "rh": i >= 4} for i in range(6)]


def test_loader_that_serves_the_other_hand_is_noticed():
    b = bench(batches=iter([batch_of("rh", 0)]))
    with pytest.raises(RuntimeError, match="step 0 trains lh, but the loader served rh"):
        b.step(0)


# ---------------------------------------------------------------------------------- the update


def test_accumulated_micro_batches_equal_one_large_batch():
    parts = [batch_of("lh", number) for number in range(6)]

    def joined(group):
        columns = {
            "names": [name for batch in group for name in batch.names],
            "labels": torch.cat([batch.labels for batch in group]),
            "frames": torch.cat([batch.frames for batch in group]),
            "erase_boxes": torch.cat([batch.erase_boxes for batch in group]),
            "clip_of_view": torch.arange(sum(len(batch.names) for batch in group)),
        }
        return group[0]._replace(**columns)

    sgd = ("--opt", "sgd", "--lr", "0.1")
    small = bench(*sgd, "--update_freq", 3, batches=iter(parts))
    large = bench(*sgd, batches=iter([joined(parts[:3]), joined(parts[3:])]))
    start = copy.deepcopy(small.model.state_dict())
    for step in range(2):
        torch.testing.assert_close(small.step(step), large.step(step), rtol=1e-5, atol=1e-6)
    for name, weight in small.model.state_dict().items():
        torch.testing.assert_close(weight, large.model.state_dict()[name], rtol=1e-4, atol=2e-6, msg=name)
        assert name.startswith("rh_head") or not torch.equal(weight, start[name])


def test_all_views_of_a_clip_train_with_its_label():
    batch = batch_of("lh", 0, clips=2, views=3)
    b = bench("--opt", "sgd", batches=iter([batch]))
    logits = b.model(ClipsToInput()(batch.frames), "lh")
    expected = F.cross_entropy(logits, batch.labels.repeat_interleave(3))
    b.step(0)
    (loss, hits, views, mixed), _ = b.meters.sums.tolist()
    assert loss / views == pytest.approx(expected.item(), rel=1e-6)
    assert hits == int((logits.argmax(1) == batch.labels.repeat_interleave(3)).sum())
    assert (views, mixed) == (6, 0)


def test_rates_of_every_step_are_the_schedule_s_times_the_layer_s():
    flags = ("--layer_decay", "0.5", "--weight_decay", "0.2", "--weight_decay_end", "0.05")
    b = bench(*flags, "--warmup_epochs", 1, "--warmup_lr", "0.1", steps_per_epoch=4)
    names = {id(param): name for name, param in b.model.named_parameters()}
    for step in range(8):
        b.step(step)
        rising = np.linspace(0.1, 1.0, 4)
        lr = rising[step] if step < 4 else 1e-6 + (1 - 1e-6) * (1 + np.cos(np.pi * (step - 4) / 4)) / 2
        decay = 0.05 + 0.15 * (1 + np.cos(np.pi * step / 8)) / 2
        for group in b.optimizer.param_groups:
            for param in group["params"]:
                name = names[id(param)]
                # Two blocks: embedding 0, blocks 1 and 2, all else 3.
                layer = 0 if "patch_embed" in name else int(name[7]) + 1 if "blocks" in name else 3
                assert group["lr"] == pytest.approx(lr * 0.5 ** (3 - layer), rel=1e-9), name
                expected = 0 if param.ndim == 1 else decay
                assert group["weight_decay"] == pytest.approx(expected, rel=1e-9), name


def test_clipping_bounds_the_update_and_reports_the_norm_before_it():
    flags = ("--opt", "momentum", "--momentum", "0", "--layer_decay", "1", "--weight_decay", "0")
    free, clipped = bench(*flags, "--clip_grad", 0), bench(*flags, "--clip_grad", "0.01")
    moved = {}
    for name, b in (("free", free), ("clipped", clipped)):
        before = [param.detach().clone() for param in b.model.parameters()]
        norm = b.step(0)
        changes = [(param - old).flatten() for param, old in zip(b.model.parameters(), before, strict=True)]
        moved[name] = (float(norm), torch.cat(changes).norm().item())
    assert moved["free"][0] == pytest.approx(moved["clipped"][0], rel=1e-5)
    assert moved["free"][1] == pytest.approx(moved["free"][0], rel=1e-3)  # rate 1
    assert moved["clipped"][1] == pytest.approx(0.01, rel=1e-3)


def test_moving_average_follows_every_optimizer_step():
    model = tiny_model()
    ema = ModelEmaV3(model, decay=0.9)
    b = bench("--update_freq", 3, model=model, ema=ema)
    expected = model.lh_head.weight.detach().double()
    for step in range(5):
        b.step(step)
        expected = 0.9 * expected + 0.1 * model.lh_head.weight.detach().double()
    torch.testing.assert_close(ema.module.lh_head.weight.double(), expected, rtol=1e-5, atol=1e-7)


def test_draws_of_a_step_do_not_depend_on_what_ran_before():
    def second_step(skip_first):
        model = tiny_model(drop_rate=0.5, head_drop_rate=0.5, drop_path_rate=0.5)
        b = bench("--mixup", "0.8", "--cutmix", 1, model=model, batches=iter([batch_of("lh", 0, 4)] * 2))
        if not skip_first:
            b.trainer._forward_loss(batch_of("lh", 7, 4), 0, 0, b.meters)
            torch.rand(3), np.random.rand(3)
        return b.trainer._forward_loss(batch_of("lh", 1, 4), 1, 0, b.meters)

    assert second_step(True) == second_step(False)


def test_draws_differ_between_steps_micro_steps_and_ranks():
    b = bench("--mixup", "0.8", model=tiny_model(drop_rate=0.5))
    other_rank = bench("--mixup", "0.8", model=tiny_model(drop_rate=0.5))
    other_rank.trainer.recipe = dataclasses.replace(other_rank.trainer.recipe, rank=1)
    batch = batch_of("lh", 0, 4)
    places = [(b, 0, 0), (b, 0, 1), (b, 1, 0), (other_rank, 0, 0)]
    losses = [x.trainer._forward_loss(batch, *place, x.meters).item() for x, *place in places]
    assert len(set(losses)) == 4


# ---------------------------------------------------------------------------- non-finite losses


class Poison:
    """Turns the clips of one call into NaN."""

    def __init__(self, call):
        self.calls, self.at = 0, call

    def __call__(self, frames, boxes=None):
        clips = ClipsToInput()(frames, boxes)
        self.calls += 1
        return clips * (torch.nan if self.calls == self.at + 1 else 1)


@pytest.mark.parametrize("opt", ["adamw", "lamb"])  # with and without a mask on the device
@pytest.mark.parametrize(("step", "micro", "hand"), [(2, 1, "lh"), (5, 0, "rh"), (9, 1, "lh")])
def test_non_finite_loss_stops_before_the_weights_are_touched(opt, step, micro, hand):
    flags = ("--opt", opt, "--lr", "1e-2", "--update_freq", 2, "--log_interval", 4)
    good = bench(*flags)
    for i in range(step):
        good.step(i)
    poison = Poison(2 * step + micro)
    b = bench(*flags, to_clips=poison)
    with pytest.raises(NonFiniteLoss) as error:
        train_one_epoch_alternating(b.trainer, 0, 0, b.meters)
    assert step < poison.calls // 2 <= step + 4  # noticed at the next logging interval
    assert_equal_states(b.model.state_dict(), good.model.state_dict())
    assert_equal_states(b.optimizer.state_dict()["state"], good.optimizer.state_dict()["state"])
    message = str(error.value)
    assert f"at step {step} " in message
    assert f"hand {hand}" in message
    for number, clip in itertools.product((2 * step, 2 * step + 1), range(2)):
        assert f"{hand}{number}-{clip}.mp4" in message
    assert f"{hand}{2 * step + 2}-0.mp4" not in message
    assert isinstance(error.value, UserError)
    assert "\n" not in message


def test_nothing_is_saved_from_a_non_finite_loss_on():
    b = bench("--log_interval", 100, to_clips=Poison(4))
    b.trainer.recipe = dataclasses.replace(b.trainer.recipe, save_interval=3)
    saved = []
    with pytest.raises(NonFiniteLoss):
        hooks = EpochHooks(save=lambda steps, sums, stops: saved.append(steps))
        train_one_epoch_alternating(b.trainer, 0, 0, b.meters, hooks)
    assert saved == [3]


def test_non_finite_gradients_of_a_finite_loss_stop_too():
    def criterion(logits, labels):
        # The root's slope at zero is infinite, and times zero it is NaN.
        return F.cross_entropy(logits, labels) + (logits.sum() * 0).abs().sqrt()

    b = bench("--log_interval", 3, criterion=criterion)
    before = copy.deepcopy(b.model.state_dict())
    with pytest.raises(NonFiniteLoss, match=r"at step 0 .*weights were not touched"):
        train_one_epoch_alternating(b.trainer, 0, 0, b.meters)
    assert_equal_states(b.model.state_dict(), before)


def test_half_precision_skips_overflows_but_stops_at_a_non_finite_loss():
    half = Runtime(CPU, torch.float16)
    b = bench("--log_interval", 2, runtime=half, to_clips=Poison(5))
    scaler = b.trainer.updater.scaler
    scaler.scale(torch.zeros(()))  # sets it up
    scaler.update(1e30)  # every gradient overflows
    before = copy.deepcopy(b.model.state_dict())
    b.step(0)
    b.step(1)
    assert_equal_states(b.model.state_dict(), before)
    assert scaler.get_scale() == pytest.approx(0.25e30)
    scaler.update(8.0)
    with pytest.raises(NonFiniteLoss, match="at step 5 "):
        train_one_epoch_alternating(b.trainer, 0, 2, b.meters)
    assert not torch.equal(b.model.lh_head.weight, before["lh_head.weight"])


def test_half_precision_stops_when_the_gradients_never_become_finite():
    def criterion(logits, labels):
        return F.cross_entropy(logits, labels) + (logits.sum() * 0).abs().sqrt()

    half = Runtime(CPU, torch.float16)
    b = bench("--log_interval", 10, criterion=criterion, runtime=half)
    before = copy.deepcopy(b.model.state_dict())
    with pytest.raises(NonFiniteLoss, match=f"at step {MOST_OVERFLOWS - 1} "):
        train_one_epoch_alternating(b.trainer, 0, 0, b.meters)
    assert_equal_states(b.model.state_dict(), before)


def test_overflows_with_good_steps_in_between_are_no_reason_to_stop():
    b = bench("--log_interval", 10, runtime=Runtime(CPU, torch.float16))
    scaler = b.trainer.updater.scaler
    scaler.scale(torch.zeros(()))  # sets it up
    for step in range(2 * MOST_OVERFLOWS + 10):
        scaler.update(8.0 if step % 10 == 9 else 1e30)  # with the large scale every gradient overflows
        b.step(step)
    assert int(b.trainer.updater.first_bad_step) == -1


# -------------------------------------------------------------------------------------- mixing


def constant_clips(n=2):
    """Clip i is filled with i."""
    return torch.arange(n).float().view(n, 1, 1, 1, 1).expand(n, 3, 6, 20, 24).contiguous()


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_cuts_one_box_of_all_frames_and_weighs_labels_by_its_area(seed):
    mixup = Mixup(mixup_alpha=0, cutmix_alpha=1, label_smoothing=0, num_classes=5)
    np.random.seed(seed)
    mixed, targets = mix_clips(mixup, constant_clips(), torch.tensor([3, 1]))
    own = mixed[0] == 0
    assert (own == own[0, 0]).all()  # the same pixels in every channel and frame
    cut = ~own[0, 0]
    rows, columns = cut.any(1), cut.any(0)
    assert torch.equal(cut, rows[:, None] & columns)  # a box
    for run in (rows, columns):
        assert (run.int().diff() != 0).sum() <= 2
    share = own.float().mean()
    assert targets[0, 3] == pytest.approx(float(share), abs=1e-6)
    assert targets[0, 1] == pytest.approx(1 - float(share), abs=1e-6)
    assert targets.sum(1).tolist() == pytest.approx([1, 1])


def test_published_region_is_timm_on_the_batch_as_it_is():
    settings = dict(mixup_alpha=0.8, cutmix_alpha=1, label_smoothing=0.1, num_classes=5)
    labels = torch.tensor([3, 1, 0, 2])
    differs = []
    for seed in range(8):
        results = []
        for region in ("published", "frame"):
            np.random.seed(seed)
            results.append(mix_clips(Mixup(**settings), constant_clips(4), labels, region))
        np.random.seed(seed)
        clips, targets = Mixup(**settings)(constant_clips(4), labels)
        assert torch.equal(results[0][0], clips) and torch.equal(results[0][1], targets)
        differs.append(not torch.equal(results[0][0], results[1][0]))
    assert 0 < sum(differs) < 8  # CutMix differs, mixup does not


@pytest.mark.parametrize(("region", "same_in_all_frames"), [("frame", True), ("published", False)])
def test_training_cuts_the_region_that_the_flag_names(region, same_in_all_frames):
    def still(frames, _):  # clip i is filled with i
        return torch.arange(float(len(frames))).view(-1, 1, 1, 1, 1).expand(-1, 3, 4, 16, 16).contiguous()

    model, inputs = tiny_model(), []
    model.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    b = bench("--cutmix", 1, "--cutmix_region", region, model=model, to_clips=still)
    for step in range(8):
        b.step(step)
    assert not all((clips == still(clips, None)).all() for clips in inputs)
    assert all((clips == clips[:, :, :1]).all() for clips in inputs) == same_in_all_frames


def test_mixup_blends_clips_as_it_weighs_labels():
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=0, label_smoothing=0, num_classes=5)
    np.random.seed(3)
    mixed, targets = mix_clips(mixup, constant_clips(), torch.tensor([3, 1]))
    share = float(targets[0, 1])
    assert 0 < share < 1
    torch.testing.assert_close(mixed[0], torch.full_like(mixed[0], share))


def test_each_hand_mixes_labels_of_its_own_classes():
    seen = {}

    def criterion(logits, targets):
        seen[logits.shape] = targets.shape
        return (logits * targets).sum()

    b = bench("--mixup", "0.8", criterion=criterion, steps_a_turn=1)
    b.step(0)
    b.step(1)
    assert seen == {(2, 4): (2, 4), (2, 3): (2, 3)}


# ---------------------------------------------------------------------------------- token masks


def test_token_masks_drop_tokens_in_training_only():
    model = tiny_model()
    masks = []
    model.register_forward_pre_hook(lambda _, args: masks.append(args[2] if len(args) > 2 else None))
    grid = model.patch_embed.grid_size
    b = bench(model=model, draw_token_mask=batch_masks("random", grid, 0.5))
    b.step(0)
    b.step(1)
    assert [mask.shape for mask in masks] == [(2, 8)] * 2
    assert all((mask.sum(1) == 4).all() for mask in masks)
    assert not torch.equal(*masks)
    masks.clear()
    batches = [batch_of(hand, 0) for hand in CLASSES]
    validation_one_epoch_alternating(batches, {"raw": model}, tuple(CLASSES), FP32, ClipsToInput())
    assert masks == [None, None]


# ------------------------------------------------------------------------------- epoch and meters


def test_figures_are_recorded_at_logging_intervals_and_at_the_epoch_s_end():
    b = bench("--log_interval", 3, "--lr", "1e-2", steps_per_epoch=8)
    b.trainer.recipe = dataclasses.replace(b.trainer.recipe, save_interval=4)
    records, saved = {}, {}
    hooks = EpochHooks(
        lambda step, values: records.update({step: values}), lambda step, sums, _: saved.update({step: sums})
    )
    stats = train_one_epoch_alternating(b.trainer, 0, 0, b.meters, hooks)
    assert list(records) == [3, 6, 8]
    assert list(saved) == [4]  # what is saved at the epoch's end, 8, is saved when it has been validated
    assert saved[4][:, 2].tolist() == [8, 0]  # views of each hand: its turn is 4 steps of 2
    since_then = {"data_wait": None, "clips_per_second": None}
    assert stats | since_then == records[8] | since_then
    assert "rh_loss" not in records[3]  # no turn yet
    assert {"lh_loss", "rh_loss", "lh_top1", "rh_top1", "lr", "weight_decay", "grad_norm"} <= stats.keys()


def epochs_by_a_clock(monkeypatch, waits, epochs=1):
    """(stats, records) of epochs of eight steps by a clock that moves 1 s per step and `waits` per batch.

    A quarter of that second is the wait for other ranks, which is no wait for data.
    """
    now = [0.0]
    monkeypatch.setattr(engine_for_finetuning, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))

    def pass_time(seconds, result):
        now[0] += seconds
        return result

    @contextlib.contextmanager
    def together():
        yield
        pass_time(0.25, None)

    b = bench("--log_interval", 2, steps_per_epoch=8, together=together)
    to_clips, batches = b.trainer.to_clips, b.trainer.batches
    b.trainer.to_clips = lambda *given: pass_time(0.75, to_clips(*given))
    b.trainer.batches = (pass_time(wait, batch) for wait, batch in zip(waits, batches, strict=False))
    records = {}
    stats = [
        train_one_epoch_alternating(
            b.trainer,
            epoch,
            8 * epoch,
            b.meters,
            EpochHooks(lambda step, values: records.update({step: values})),
        )
        for epoch in range(epochs)
    ]
    return stats, records


def test_share_of_waiting_is_told_for_each_interval_and_for_the_epoch(monkeypatch, caplog):
    stats, records = epochs_by_a_clock(monkeypatch, [9, 1, 0, 0, 1, 1, 3, 3])
    shares = {step: values["data_wait"] for step, values in records.items()}
    assert shares == {2: 10 / 12, 4: 0, 6: 2 / 4, 8: 6 / 8}
    assert stats[0]["data_wait"] == 18 / 26
    # Steps of two clips.
    speeds = {step: values["clips_per_second"] for step, values in records.items()}
    assert speeds == {2: 4 / 12, 4: 4 / 2, 6: 4 / 4, 8: 4 / 8}
    assert stats[0]["clips_per_second"] == 16 / 26
    assert stats[0]["seconds_a_step"] == 26 / 8


def slow_loader_lines(caplog):
    return [r.getMessage() for r in caplog.records if "the loader is the bottleneck" in r.getMessage()]


def test_slow_loader_is_said_once_with_what_to_do(monkeypatch, caplog):
    epochs_by_a_clock(monkeypatch, itertools.repeat(1), epochs=2)
    (line,) = slow_loader_lines(caplog)
    assert "50% of the time" in line and "--num_workers" in line and "\n" not in line


@pytest.mark.parametrize("waits", [[90, 1, *[0.2] * 6], [0.3] * 8])
def test_fast_loader_and_its_start_are_no_reason_for_a_word(monkeypatch, caplog, waits):
    epochs_by_a_clock(monkeypatch, waits)
    assert not slow_loader_lines(caplog)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("busy", [True, False])
def test_wait_of_a_gpu_is_the_time_that_it_stood_idle(busy):
    waiting, work = DataWait(torch.device("cuda")), torch.randn(8192, 8192, device="cuda")
    for _ in range(30 if busy else 0):
        work = work @ work
    with waiting.measure():
        time.sleep(0.02)  # far less than the work takes
    torch.cuda.synchronize()
    assert (waiting.take_seconds() < 0.005) == busy


def test_meters_average_over_views_and_carry_on_from_saved_sums():
    meters = HandMeters(("lh", "rh"), CPU)
    meters.update("lh", torch.tensor(2.0), torch.tensor(1), 4, mixed=False)
    resumed = HandMeters(("lh", "rh"), CPU, meters.sums.tolist())
    resumed.update("lh", torch.tensor(1 / 3), torch.tensor(2), 2, mixed=False)
    resumed.update("rh", torch.tensor(5.0), torch.tensor(0), 2, mixed=True)
    averages = resumed.averages(resumed.sums.numpy())
    third = float(torch.tensor(1 / 3).double())
    assert averages == {"lh_loss": (8 + 2 * third) / 6, "lh_top1": 50.0, "rh_loss": 5.0}


def test_saved_sums_keep_their_precision():
    meters = HandMeters(("lh",), CPU)
    for value in (1.1, 2.7, 3.3):
        meters.update("lh", torch.tensor(value), torch.tensor(1), 3, mixed=False)
    assert torch.equal(HandMeters(("lh",), CPU, meters.sums.tolist()).sums, meters.sums)


# ---------------------------------------------------------------------------------- evaluation


def test_validation_is_the_average_over_clips_for_each_set_of_weights():
    models = {"raw": tiny_model(drop_rate=0.5), "ema": tiny_model()}
    torch.manual_seed(1)
    torch.nn.init.normal_(models["ema"].rh_head.weight)
    batches = [batch_of("lh", 0, 3), batch_of("lh", 1, 2), batch_of("rh", 2, 3)]
    result = validation_one_epoch_alternating(batches, models, ("lh", "rh"), FP32, ClipsToInput())
    for name, model in models.items():
        model.eval()
        for hand in CLASSES:
            mine = [batch for batch in batches if batch.hand == hand]
            with torch.no_grad():
                logits = model(ClipsToInput()(torch.cat([batch.frames for batch in mine])), hand)
            labels = torch.cat([batch.labels for batch in mine])
            metrics = result[name][hand]
            assert metrics["loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
            right = (logits.argmax(1) == labels).float().mean()
            assert metrics["top1"] == pytest.approx(100 * float(right))
            assert metrics["clips"] == len(labels)


def test_batch_of_unreadable_clips_alone_is_only_counted():
    batches = [unreadable_batch("lh"), batch_of("lh", 1, 3), batch_of("rh", 2, 3)]
    models = {"raw": tiny_model()}
    result = validation_one_epoch_alternating(batches, models, ("lh", "rh"), FP32, ClipsToInput())
    assert (result["raw"]["lh"]["clips"], result["raw"]["lh"]["unreadable"]) == (4, 1)


def test_no_readable_clip_at_all_is_an_error_that_names_one(tmp_path):
    batches = [batch_of("lh", 1, 3), unreadable_batch("rh")]
    arguments = (batches, {"raw": tiny_model()}, ("lh", "rh"), FP32, ClipsToInput())
    with pytest.raises(UserError, match=r"rh: not one clip could be evaluated: gone.mp4 no such file"):
        final_test_alternating(*arguments, tmp_path)
    assert not (tmp_path / "metrics.json").exists()
