"""Each acting flag changes something that can be seen: the model, the data, the rates, the files."""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

import run_alternating_hand_finetuning as run
import utils
from dataset.datasets import ClipKey
from dataset.loader import ClipReader
from optim_factory import create_criterion, create_mixup, create_updater
from run_alternating_hand_finetuning import build_datasets, build_model, get_args
from utils import UserError

CLASSES = {"lh": 4, "rh": 3}


@pytest.fixture(scope="module")
def parsed(tiny_flags):
    """Parses the tiny run's flags and further ones."""
    return lambda *flags: get_args([*tiny_flags, *map(str, flags)])


def changed(observe, parsed, *flags):
    """What is observed without the flags, and with them."""
    return observe(parsed()), observe(parsed(*flags))


# ---------------------------------------------------------------------------------------- model


def model_of(args):
    torch.manual_seed(0)
    return build_model(args, CLASSES)


MODEL = [
    (("--model", "vit_small_patch16_224_alternating"), lambda m: m.embed_dim, 192, 384),
    (("--depth", 3), lambda m: len(m.blocks), 1, 3),
    (("--tubelet_size", 4), lambda m: m.patch_embed.grid_size, (2, 2, 2), (1, 2, 2)),
    (("--input_size", 48, "--short_side_size", 48), lambda m: m.patch_embed.grid_size, (2, 2, 2), (2, 3, 3)),
    (("--num_frames", 8), lambda m: m.patch_embed.grid_size, (2, 2, 2), (4, 2, 2)),
    (("--drop", 0.2), lambda m: (m.pos_drop.p, m.blocks[0].attn.proj_drop.p), (0, 0), (0.2, 0.2)),
    (("--attn_drop_rate", 0.2), lambda m: m.blocks[0].attn.attn_drop, 0, 0.2),
    (("--head_drop_rate", 0.2), lambda m: m.head_dropout.p, 0, 0.2),
    (("--norm_eps", "1e-5"), lambda m: (m.blocks[0].norm1.eps, m.fc_norm.eps), (1e-6, 1e-6), (1e-5, 1e-5)),
    (("--use_cls",), lambda m: m.fc_norm is None, False, True),
    (("--with_checkpoint",), lambda m: m.with_cp, False, True),
]


@pytest.mark.parametrize(("flags", "observe", "before", "after"), MODEL, ids=[f[0][0] for f in MODEL])
def test_flag_changes_the_model(parsed, flags, observe, before, after):
    assert changed(lambda args: observe(model_of(args)), parsed, *flags) == (before, after)


def test_drop_path_grows_to_the_last_block(parsed):
    model = model_of(parsed("--depth", 3, "--drop_path", 0.4))
    assert [getattr(block.drop_path, "drop_prob", 0) for block in model.blocks] == [0, 0.2, 0.4]


def test_init_scale_scales_both_heads(parsed):
    small, full = model_of(parsed()), model_of(parsed("--init_scale", 1))
    for hand in CLASSES:
        ratio = full.get_classifier(hand).weight / small.get_classifier(hand).weight
        torch.testing.assert_close(ratio, torch.full_like(ratio, 1000), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["tube", "random", "run_cell"])
def test_token_masks_drop_their_share(parsed, kind):
    assert run.make_token_masks(parsed(), model_of(parsed())) is None
    args = parsed("--train_mask_ratio", 0.5, "--train_mask_type", kind)
    masks = run.make_token_masks(args, model_of(args))(3, np.random.default_rng(0))
    assert masks.shape == (3, 8)
    assert (masks.sum(1) == 4).all()


# ----------------------------------------------------------------------------------------- data


def training_frames(args):
    """Views and erase boxes of a few training clips."""
    dataset = build_datasets(args, CLASSES)["train"]["lh"]
    samples = [dataset.sample(ClipKey("lh", pass_, clip)) for pass_ in range(3) for clip in range(3)]
    return [sample.frames for sample in samples], [sample.erase_boxes for sample in samples]


TRAINING = [
    ("--sampling_rate", 1), ("--sparse_sample",), ("--num_frames", 6), ("--seed", 1), ("--num_sample", 1),
    ("--aa", "none"), ("--aa", "rand-m9-n1"), ("--hflip", "on"), ("--input_size", 16),
    ("--crop_scale", 0.9, 1), ("--aug_impl", "reference"),
    ("--train_interpolation", "bilinear", "--aug_impl", "reference"),
    ("--short_clips", "stretch", "--sampling_rate", 15),
]  # fmt: skip


@pytest.mark.parametrize("flags", TRAINING, ids=lambda flags: " ".join(map(str, flags)))
def test_flag_changes_the_training_views(parsed, flags):
    base = ("--sampling_rate", 15) if "stretch" in flags else ()
    base += ("--aug_impl", "reference") if "bilinear" in flags else ()
    before, after = training_frames(parsed(*base))[0], training_frames(parsed(*flags))[0]
    assert not all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_erasing_flags_change_the_boxes(parsed):
    boxes = {
        flags: np.stack(training_frames(parsed(*flags))[1])
        for flags in [("--reprob", 0), ("--reprob", 1), ("--reprob", 1, "--recount", 3)]
    }
    assert [b.shape[2] for b in boxes.values()] == [1, 1, 3]
    counts = [(b[..., 2:].prod(-1) > 0).sum(-1) for b in boxes.values()]
    assert (counts[0].max(), counts[1].min(), counts[1].max()) == (0, 1, 1)
    assert counts[2].max() > 1


EVALUATION = [("--short_side_size", 48), ("--sampling_rate", 1), ("--sparse_sample",)]


@pytest.mark.parametrize("mode", ["validation", "test"])
@pytest.mark.parametrize("flags", EVALUATION, ids=lambda flags: " ".join(map(str, flags)))
def test_flag_changes_the_views_of_evaluations(parsed, mode, flags):
    before, after = (
        build_datasets(args, CLASSES)[mode]["lh"][0].frames for args in (parsed(), parsed(*flags))
    )
    assert not np.array_equal(before, after)


def test_test_views_are_segments_times_crops(parsed):
    args = parsed("--test_num_segment", 4, "--test_num_crop", 2)
    rows = build_datasets(args, CLASSES)["test"]["lh"][0].rows
    assert rows[:, 1:].tolist() == [[chunk, split] for chunk in range(4) for split in range(2)]


def test_modes_that_a_run_builds(parsed):
    modes = {(): ["train", "validation", "test"], ("--disable_eval_during_finetuning",): ["train", "test"]}
    for flags, expected in modes.items():
        assert list(build_datasets(parsed(*flags), CLASSES)) == expected


def test_data_paths_roots_and_counts_act_on_their_hand(parsed, sample):
    args = parsed("--rh_data_root", sample.path("lh"), "--rh_num_classes", 8)
    datasets = build_datasets(args, CLASSES)["train"]
    assert datasets["rh"].clip_folder == str(sample.path("lh") / "videos")
    assert (len(datasets["lh"]), len(datasets["rh"])) == (16, 11)
    assert (args.lh_num_classes, args.rh_num_classes) == (4, 8)
    assert run.active_hands(args) == ("lh", "rh")
    assert run.active_hands(parsed("--one_stream")) == ("lh",)


@pytest.mark.parametrize("mode", ["train", "validation", "test"])
def test_flags_that_say_how_clips_are_opened(parsed, mode, tmp_path):
    flags = ("--video_backend", "pyav", "--fname_tmpl", "{}.png", "--start_idx", 7, "--clip_cache", tmp_path)
    dataset = build_datasets(parsed(*flags), CLASSES)[mode]["lh"]
    assert dataset._reader == ClipReader("pyav", "{}.png", 7, tmp_path)
    assert build_datasets(parsed(), CLASSES)[mode]["lh"]._reader == ClipReader()


def test_template_of_pictures_needs_a_number(parsed):
    with pytest.raises(UserError, match=r"--fname_tmpl 'img\.jpg': wants one number"):
        build_datasets(parsed("--fname_tmpl", "img.jpg"), CLASSES)


def test_workers_default_to_the_cpus_shared_by_local_ranks(sample):
    cpus = len(os.sched_getaffinity(0))
    assert get_args(sample.flags).num_workers == cpus
    assert get_args(sample.flags, local_world_size=2).num_workers == max(1, cpus // 2)
    assert get_args([*sample.flags, "--num_workers", "0"]).num_workers == 0


# --------------------------------------------------------------------------------- optimisation


def updater_of(args):
    return create_updater(args, model_of(args), torch.device("cpu"), torch.float32, 4, 4)


def group_of(updater):
    return updater.optimizer.param_groups[0]


UPDATER = [
    (("--opt", "lamb"), lambda u: type(u.optimizer).__name__),
    (("--opt_eps", "1e-6"), lambda u: group_of(u)["eps"]),
    (("--opt_betas", 0.8, 0.95), lambda u: tuple(group_of(u)["betas"])),
    (("--clip_grad", 1), lambda u: u.clip_grad),
    (("--weight_decay", 0.3), lambda u: u.weight_decay_schedule.max()),
    (("--weight_decay_end", 0.3), lambda u: u.weight_decay_schedule.max()),
    (("--lr", 0.1), lambda u: u.lr_schedule.max()),
    (("--layer_decay", 0.5), lambda u: min(group["lr_scale"] for group in u.optimizer.param_groups)),
    (("--warmup_lr", 0.01), lambda u: u.lr_schedule[0]),
    (("--min_lr", 0.01), lambda u: u.lr_schedule[-1]),
    (("--warmup_epochs", 0), lambda u: u.lr_schedule.argmax()),
    (("--warmup_steps", 2), lambda u: u.lr_schedule.argmax()),
    (("--epochs", 3), lambda u: len(u.lr_schedule)),
    (("--update_freq", 3), lambda u: u.update_freq),
]


@pytest.mark.parametrize(("flags", "observe"), UPDATER, ids=[f[0][0] for f in UPDATER])
def test_flag_changes_the_optimizer_or_its_rates(parsed, flags, observe):
    before, after = changed(lambda args: observe(updater_of(args)), parsed, *flags)
    assert before != after


def test_momentum_acts_on_optimizers_that_have_it(parsed):
    def momentum(args):
        return group_of(updater_of(args))["momentum"]

    assert (momentum(parsed("--opt", "sgd")), momentum(parsed("--opt", "sgd", "--momentum", 0.5))) == (
        0.9,
        0.5,
    )


def test_no_layer_decay_makes_the_published_two_groups(parsed):
    groups = updater_of(parsed("--layer_decay", 1)).optimizer.param_groups
    assert [group["lr_scale"] for group in groups] == [1.0, 1.0]


MIXUP = [
    (("--mixup", 0.1), "mixup_alpha"), (("--cutmix", 0.1), "cutmix_alpha"),
    (("--cutmix_minmax", 0.2, 0.8), "cutmix_minmax"), (("--mixup_prob", 0.3), "mix_prob"),
    (("--mixup_switch_prob", 0.3), "switch_prob"), (("--mixup_mode", "elem"), "mode"),
    (("--smoothing", 0.3), "label_smoothing"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "name"), MIXUP, ids=[f[0][0] for f in MIXUP])
def test_flag_changes_mixup(parsed, flags, name):
    before, after = changed(lambda args: getattr(create_mixup(args, 4), name), parsed, *flags)
    assert before != after


def test_each_hand_has_a_mixup_of_its_own_classes(parsed, tmp_path):
    mixups = training_of(parsed(), tmp_path).mixups
    for hand, classes in CLASSES.items():
        _, targets = mixups[hand](torch.zeros(2, 3, 8, 8), torch.tensor([0, classes - 1]))
        assert targets.shape == (2, classes)


def test_loss_fits_the_labels(parsed):
    assert isinstance(create_criterion(parsed()), SoftTargetCrossEntropy)
    off = ("--mixup", 0, "--cutmix", 0)
    smooth = create_criterion(parsed(*off, "--smoothing", 0.2))
    assert isinstance(smooth, LabelSmoothingCrossEntropy) and smooth.smoothing == 0.2
    assert isinstance(create_criterion(parsed(*off, "--smoothing", 0)), nn.CrossEntropyLoss)
    assert create_mixup(parsed(*off), 4) is None


# ---------------------------------------------------------------------------------------- files


def training_of(args, folder):
    """A run's training state, ready to start."""
    dist = utils.Distributed()
    datasets = build_datasets(args, CLASSES)
    runtime = run.Runtime(dist.device, utils.pick_amp_dtype(args.amp_dtype, dist.device))
    evaluator = run.Evaluator(args, dist, datasets, runtime, folder)
    training = run.Training(args, dist, model_of(args), CLASSES, evaluator)
    training.close()
    return training


STATE = [
    (("--model_ema",), lambda t: t.state.ema is not None, False, True),
    (("--alternation_steps", 9), lambda t: t.recipe.alternation.steps_a_turn, 3, 9),
    (("--batch_size", 4), lambda t: t.recipe.steps_per_epoch, 4, 2),
    (("--start_epoch", 1), lambda t: t.state.progress.step, 0, 4),
    (("--seed", 3), lambda t: t.recipe.seed, 0, 3),
    (("--log_interval", 7), lambda t: t.recipe.log_interval, 2, 7),
    (("--cutmix_region", "published"), lambda t: t.recipe.cutmix_region, "frame", "published"),
    (("--amp_dtype", "bf16"), lambda t: t.recipe.runtime.amp_dtype, torch.float32, torch.bfloat16),
    (("--amp_dtype", "fp16"), lambda t: t.state.scaler.is_enabled(), False, True),
    (("--remode", "const"), lambda t: t._trainer().to_clips._remode, "pixel", "const"),
    (("--train_mask_ratio", 0.5), lambda t: t._trainer().draw_token_mask is not None, False, True),
]


@pytest.mark.parametrize(("flags", "observe", "before", "after"), STATE, ids=[f[0][0] for f in STATE])
def test_flag_changes_the_training(parsed, tmp_path, flags, observe, before, after):
    seen = changed(lambda args: observe(training_of(args, tmp_path)), parsed, *flags)
    assert seen == (before, after)


def test_moving_average_s_decay_and_place(parsed, tmp_path):
    ema = training_of(
        parsed("--model_ema", "--model_ema_decay", 0.5, "--model_ema_force_cpu"), tmp_path
    ).state.ema
    assert ema.decay == 0.5
    assert ema.device == torch.device("cpu")


def test_file_flags(run_main, tiny_flags, tmp_path):
    quick = ("--disable_eval_during_finetuning", "--epochs", 3, "--output_dir", tmp_path / "run")
    flags = (
        "--save_ckpt_freq",
        2,
        "--save_ckpt_steps",
        1,
        "--keep_ckpts",
        3,
        "--log_dir",
        tmp_path / "events",
    )
    result = run_main(*tiny_flags, *quick, *flags, "--start_epoch", 1, "--deterministic", "--remode", "const")
    assert result.code == 0, result.output
    names = {path.name[11:-4] for path in (tmp_path / "run").glob("checkpoint-*")}
    assert names == {"last", "1", "2", "step-9", "step-10", "step-11"}
    assert list((tmp_path / "events").iterdir())
    assert not (tmp_path / "run" / "tensorboard").exists()
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.txt").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert not [name for row in rows for name in row if name.startswith("val")]
    assert "[2/4]" in result.output and "[1/4]" not in result.output


def test_finetune_starts_from_the_weights_under_its_key(run_main, parsed, tiny_flags, tmp_path):
    source = model_of(parsed())
    weights = {
        f"net.{name}": torch.full_like(w, 0.01)
        for name, w in source.state_dict().items()
        if "head" not in name
    }
    torch.save({"mine": weights}, tmp_path / "w.pth")
    flags = ("--finetune", tmp_path / "w.pth", "--model_key", "other|mine", "--model_prefix", "net.")
    args = parsed(*flags)
    model = model_of(args)
    run.load_pretrained_file(model, args)
    assert (model.blocks[0].mlp.fc1.weight == 0.01).all()
    assert not (model.lh_head.weight == 0.01).any()


def test_missing_tensors_start_from_random_values_if_the_flag_says_so(parsed, tmp_path):
    weights = {name: value for name, value in model_of(parsed()).state_dict().items() if "q_bias" not in name}
    torch.save({"model": weights}, tmp_path / "w.pth")
    flags = ("--finetune", tmp_path / "w.pth")
    with pytest.raises(
        UserError, match=rf"^--finetune {tmp_path}/w\.pth: 1 of 17 .*\.0\.attn\.q_bias; --allow_m"
    ):
        run.load_pretrained_file(model_of(parsed()), parsed(*flags))
    said = run.load_pretrained_file(model_of(parsed()), parsed(*flags, "--allow_missing"))
    assert "left as initialised: blocks.0.attn.q_bias" in said
    with pytest.raises(UserError, match=r"the file has 1 block, the model 3: --depth 1$"):
        run.load_pretrained_file(model_of(parsed("--depth", 3)), parsed(*flags))


def test_pinned_memory_is_for_gpus(parsed):
    on, off = parsed(), parsed("--no_pin_mem")
    gpu, cpu = argparse.Namespace(device=torch.device("cuda")), utils.Distributed()
    cases = ((on, gpu), (off, gpu), (on, cpu))
    pins = [run.Evaluator(args, dist, {}, None, None).pins for args, dist in cases]
    assert pins == [True, False, False]


def test_deterministic_asks_for_repeatable_kernels(run_main, tiny_flags, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(utils, "seed_global_generators", lambda seed: asked.append(state()))
    state = torch.are_deterministic_algorithms_enabled
    quick = ("--epochs", 1, "--warmup_epochs", 0, "--batch_size", 4, "--disable_eval_during_finetuning")
    for flags in ((), ("--deterministic",)):
        assert run_main(*tiny_flags, *quick, *flags, "--no_save_ckpt", "--output_dir", tmp_path).code == 0
    assert asked == [False, True]


def test_flags_of_the_process_group_reach_it(monkeypatch):
    seen = []
    monkeypatch.setattr(utils, "init_distributed_mode", lambda *given: seen.append(given))
    monkeypatch.setattr(run, "run", lambda argv, dist: None)
    flags = ("--device", "cpu", "--dist_url", "tcp://node0:1", "--world_size", "2", "--dist_timeout", "7")
    assert run.main([*flags, "--dist_on_itp"]) == 0
    assert seen == [("cpu", "tcp://node0:1", True, 2, 7.0)]


def test_every_flag_that_acts_is_in_a_test():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    flags = {flag for action in run.get_parser()._actions for flag in action.option_strings}
    hands = {f"--{hand}_{name}" for hand in CLASSES for name in ("data_path", "data_root", "num_classes")}
    silent = {f"--{name}" for name in run.NO_EFFECT} | {"-h", "--help"}
    silent |= {flag.replace("--no_", "--") for flag in flags if flag.startswith("--no_")}  # defaults
    assert not {flag for flag in flags - hands - silent if f'"{flag}"' not in tests}
