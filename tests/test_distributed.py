"""Two gloo processes against one: the same clips, the same heads, every clip counted once."""

import hashlib
import json
import os
import random

import pytest
import timm
import torch
from conftest import CLASSES, VAL_CLIPS, assert_equal_states, write_list

import run_alternating_hand_finetuning as run
import utils
from dataset.build import build_loader
from dataset.sampling import ShuffledPasses
from engine_for_alternating_finetuning import Alternation, training_batches
from utils import UserError

# Two processes with two micro steps of one clip each; one process sees the same four clips a step.
SHARED = (
    "--epochs",
    "3",
    "--alternation_steps",
    "5",
    "--num_sample",
    "2",
    "--drop_path",
    "0",
    "--lr",
    "0.02",
)
TWO = ("--batch_size", "1", "--update_freq", "2")

# A rank of a training run that watches itself: which views it was given, and which heads moved.
WATCHER = '''
"""Runs the command line; leaves what this rank saw in a file."""

import copy
import hashlib
import os
import sys

import torch

import engine_for_alternating_finetuning as engine
import run_alternating_hand_finetuning as run

folder, seen, moved, finals = sys.argv[1], [], [], []
next_batch, optimizer_step = engine.AlternatingTrainer._next_batch, engine.AlternatingTrainer.optimizer_step


def watched_batch(self, step, hand):
    batch = next_batch(self, step, hand)
    digest = hashlib.sha256(batch.frames.numpy().tobytes() + batch.erase_boxes.numpy().tobytes())
    seen.append((step, batch.hand, tuple(batch.names), digest.hexdigest()))
    return batch


def heads(self):
    model, optimizer = engine.unwrap(self.model), self.updater.optimizer
    params = {hand: list(model.get_classifier(hand).parameters()) for hand in ("lh", "rh")}
    return copy.deepcopy(
        {hand: [(p.detach(), dict(optimizer.state.get(p, {}))) for p in params[hand]] for hand in params}
    )


def equal(a, b):
    return all(
        torch.equal(p, q) and s.keys() == t.keys() and all(torch.equal(s[k], t[k]) for k in s)
        for (p, s), (q, t) in zip(a, b, strict=True)
    )


def watched_step(self, step, meters):
    before = heads(self)
    norm = optimizer_step(self, step, meters)
    after = heads(self)
    moved.append((step, [hand for hand in before if not equal(before[hand], after[hand])]))
    finals[:] = [engine.unwrap(self.model).state_dict()]
    return norm


engine.AlternatingTrainer._next_batch = watched_batch
engine.AlternatingTrainer.optimizer_step = watched_step
code = run.main(sys.argv[2:])
torch.save((seen, moved, finals), f"{folder}/rank{os.environ['RANK']}.pt")
sys.exit(code)
'''


@pytest.fixture(scope="module")
def two_processes(torchrun, tiny_flags, tmp_path_factory):
    """The folder of a run of two processes, and what each rank saw."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "watcher.py").write_text(WATCHER)
    flags = [*tiny_flags, *SHARED, *TWO, "--model_ema", "--output_dir", folder / "run"]
    result = torchrun(folder / "watcher.py", folder, *flags)
    assert result.code == 0, result.output
    ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    return folder / "run", ranks, result.output


def test_two_processes_get_the_clips_and_augmentations_of_one(two_processes, tiny_flags):
    _, ranks, _ = two_processes
    args = run.get_args([*tiny_flags, *SHARED, "--batch_size", "1", "--update_freq", "4"])
    datasets = run.build_datasets(args, CLASSES)["train"]
    passes = {hand: ShuffledPasses(len(clips), (args.seed, hand)) for hand, clips in datasets.items()}
    alternation = Alternation(tuple(datasets), args.alternation_steps)
    keys = training_batches(alternation, passes, range(12), 1, 4)
    expected = []
    for i, batch in enumerate(build_loader(datasets, keys, 0)):
        digest = hashlib.sha256(batch.frames.numpy().tobytes() + batch.erase_boxes.numpy().tobytes())
        expected.append((i // 4, batch.hand, tuple(batch.names), digest.hexdigest()))
    # Of the four clips of a step, rank 0 has the first and third, rank 1 the second and fourth.
    shared = [seen for pair in zip(ranks[0][0], ranks[1][0], strict=True) for seen in pair]
    assert shared == expected
    assert {hand for _, hand, *_ in expected} == set(CLASSES)


def test_resting_head_and_its_moments_stay_bit_identical_on_both_ranks(two_processes):
    _, ranks, _ = two_processes
    expected = [(step, ["lh" if step // 5 % 2 == 0 else "rh"]) for step in range(12)]
    for _, moved, _ in ranks:
        assert moved == expected


def test_weights_are_equal_on_both_ranks_and_in_the_checkpoint(two_processes):
    folder, ((*_, (first,)), (*_, (second,))), _ = two_processes
    assert_equal_states(first, second)
    saved = torch.load(folder / "checkpoint-last.pth", weights_only=True)
    assert_equal_states(dict(saved["model"]), dict(first))


def test_results_of_both_ranks_name_every_clip_once(two_processes, sample):
    folder, _, _ = two_processes
    for hand in CLASSES:
        rows = [
            [line.split() for line in (folder / f"{rank}_{hand}.txt").read_text().splitlines()[1:]]
            for rank in range(2)
        ]
        clips = [{row[0] for row in of_rank} for of_rank in rows]
        assert not clips[0] & clips[1]
        assert clips[0] | clips[1] == {name for name, _ in sample.val[hand]}
        assert len(rows[0]) + len(rows[1]) == 6 * VAL_CLIPS[hand]
        assert abs(len(clips[0]) - len(clips[1])) == 1


def test_metrics_of_two_processes_are_those_of_one(run_main, two_processes, tmp_path):
    folder, _, _ = two_processes
    flags = ("--eval", "--validation", "--resume", folder / "checkpoint-last.pth")
    assert run_main(*flags, "--output_dir", tmp_path).code == 0
    # The last digits of scores depend on which clips share a batch; what was predicted does not.
    metrics = json.loads((folder / "metrics.json").read_text())
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert {hand: metrics[hand]["clips"] for hand in CLASSES} == VAL_CLIPS
    row = json.loads((folder / "log.txt").read_text().splitlines()[-1])
    validation = json.loads((tmp_path / "validation.json").read_text())
    for hand in CLASSES:
        for name, value in validation["raw"][hand].items():
            assert row[f"val_{hand}_{name}"] == pytest.approx(value, rel=1e-6)


def test_log_and_output_come_from_one_rank_alone(two_processes):
    folder, _, output = two_processes
    rows = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert output.count("Epoch: [0]  [4/4]") == 1
    assert "3 epochs of 4 steps of 4 clips" in output


def without_result_of_its_own(argv):
    """What a rank does that only runs the command line."""
    return lambda rank: run.main([str(flag) for flag in argv])


def test_wrong_flag_ends_both_processes_in_one_line_each(fork_ranks, tiny_flags, tmp_path):
    def train(rank):
        try:
            run.main([str(flag) for flag in (*tiny_flags, "--output_dir", tmp_path, "--no_such_flag")])
        except SystemExit as stop:
            return stop.code

    codes, outputs = fork_ranks(train)
    assert codes == [2, 2]
    assert "Traceback" not in "".join(outputs)


def test_failure_of_the_main_process_alone_ends_the_other(fork_ranks, tiny_flags, tmp_path):
    def train(rank):
        def full_disk(path, data):
            raise OSError(28, "No space left on device")

        utils.write_json = full_disk
        return run.main([str(flag) for flag in (*tiny_flags, *SHARED, *TWO, "--output_dir", tmp_path)])

    codes, outputs = fork_ranks(train)
    assert codes == [1, 1]
    assert all("No space left on device" in output for output in outputs), outputs


def test_error_of_one_process_ends_both(fork_ranks, tiny_flags, tmp_path):
    flags = [*tiny_flags, "--lh_data_path", "", "--output_dir", tmp_path]
    codes, outputs = fork_ranks(without_result_of_its_own(flags))
    assert codes == [1, 1]
    assert all("error: --lh_data_path is needed" in output for output in outputs)
    assert "Traceback" not in "".join(outputs)


def test_non_finite_loss_on_one_rank_stops_both(fork_ranks, tiny_flags, sample, tmp_path):
    class Poison(run.ClipsToInput):
        calls = 0

        def __call__(self, frames, boxes=None):
            Poison.calls += 1
            poisoned = os.environ["RANK"] == "1" and Poison.calls == 4  # step 1, second micro step
            return super().__call__(frames, boxes) * (torch.nan if poisoned else 1)

    def train(rank):
        run.ClipsToInput = Poison
        return run.main([str(f) for f in (*tiny_flags, *SHARED, *TWO, "--output_dir", tmp_path)])

    codes, outputs = fork_ranks(train)
    assert codes == [1, 1]
    lines = [[line for line in output.splitlines() if "error:" in line] for output in outputs]
    for (line,) in lines:
        assert "non-finite at step 1 (hand lh" in line
        named = [name for name in sample.labels["lh"] if name in line]
        assert len(named) == 2  # the step's clips on the rank whose loss it was
    assert not list(tmp_path.glob("checkpoint*"))


def test_rank_without_clips_of_a_hand_takes_part_in_the_test(
    fork_ranks, two_processes, sample, run_main, tmp_path
):
    folder, _, _ = two_processes
    (tmp_path / "rh").mkdir()
    write_list(tmp_path / "rh" / "val_list_video.txt", sample.val["rh"][:1])
    one_clip = ("--rh_data_path", tmp_path / "rh", "--rh_data_root", sample.path("rh"))
    flags = ("--eval", "--resume", folder / "checkpoint-last.pth", *one_clip, "--output_dir")
    codes, _ = fork_ranks(without_result_of_its_own([*flags, tmp_path / "two"]))
    assert codes == [0, 0]
    assert run_main(*flags, tmp_path / "one").code == 0
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert metrics["rh"]["clips"] == 1
    assert metrics == json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert (tmp_path / "two" / "1_rh.txt").read_text() == "0.0, 0.0\n"


def test_slurm_s_variables_bring_two_processes_together(fork_ranks):
    def join(rank):
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            del os.environ[name]
        os.environ["SLURM_PROCID"] = os.environ["SLURM_LOCALID"] = str(rank)
        dist = utils.init_distributed_mode("cpu", timeout_minutes=1)
        total = utils.all_reduce_sum(torch.tensor(10 ** (rank + 1)))
        everything = utils.gather_objects(rank)
        utils.leave_process_group()
        return [dist.rank, dist.world_size, dist.local_rank, dist.local_world_size, int(total), everything]

    job = str(random.SystemRandom().randrange(10**6))
    slurm = {"SLURM_JOB_ID": job, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    ranks, _ = fork_ranks(join, **slurm, SLURM_STEP_NODELIST="localhost")
    assert ranks == [[0, 2, 0, 2, 110, [0, 1]], [1, 2, 1, 2, 110, None]]


def test_error_on_the_main_process_reaches_every_process(fork_ranks):
    def fail(rank):
        utils.init_distributed_mode("cpu")
        calls = []

        def compute():
            calls.append(rank)
            raise UserError("only rank 0 knows")

        try:
            utils.on_main(compute)
        except UserError as error:
            return [str(error), calls]
        finally:
            utils.leave_process_group()

    ranks, _ = fork_ranks(fail)
    assert ranks == [["only rank 0 knows", [0]], ["only rank 0 knows", []]]


@pytest.mark.parametrize("variant", ["plain", "checkpointed", "compiled"])
def test_gradients_of_two_processes_are_those_of_one(fork_ranks, variant):
    sizes = {"img_size": 32, "all_frames": 4, "depth": 2, "lh_num_classes": 4, "rh_num_classes": 3}
    clips = torch.randn(4, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 1])

    def gradients_of(place, mine):
        torch.manual_seed(0)
        name = "vit_tiny_patch16_224_alternating"
        model = timm.create_model(name, init_scale=1, with_cp=variant == "checkpointed", **sizes)
        called = torch.compile(model, backend="aot_eager") if variant == "compiled" else model
        called = utils.wrap_distributed(called, place, model.get_classifier())
        torch.nn.functional.cross_entropy(called(clips[mine], "rh"), labels[mine]).backward()
        if place.active:
            utils.average_gradients(model.get_classifier("rh").parameters())
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    def train(rank):
        place = utils.init_distributed_mode("cpu", timeout_minutes=1)
        try:
            return gradients_of(place, slice(2 * rank, 2 * rank + 2))
        finally:
            utils.leave_process_group()

    expected = gradients_of(utils.Distributed(), slice(4))
    ranks, _ = fork_ranks(train)
    for gradients in ranks:
        assert [name for name, grad in gradients.items() if grad is None] == [
            "lh_head.weight",
            "lh_head.bias",
        ]
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)
