"""Whose turn it is, which clips every rank gets, and which module may import which."""

import ast
import collections
import itertools
import sys
from pathlib import Path

import pytest

from dataset.build import evaluation_batches
from dataset.sampling import ShuffledPasses
from engine_for_alternating_finetuning import Alternation, steps_an_epoch, training_batches
from utils import UserError

ROOT = Path(__file__).resolve().parent.parent
HANDS = ("lh", "rh")


def simulated_hands(hands, steps_a_turn):
    """The hand of step 0, 1, 2, ..., by counting the steps of a turn."""
    for hand in itertools.cycle(hands):
        yield from [hand] * steps_a_turn


# ---------------------------------------------------------------------------------- alternation


@pytest.mark.parametrize("hands", [HANDS, ("lh",), ("rh", "lh"), ("a", "b", "c")])
@pytest.mark.parametrize("steps_a_turn", [1, 2, 3, 7, 50])
def test_turns_equal_a_step_by_step_simulation(hands, steps_a_turn):
    alternation = Alternation(hands, steps_a_turn)
    counts = collections.Counter()
    for step, hand in zip(range(400), simulated_hands(hands, steps_a_turn), strict=False):
        assert alternation.hand_at(step) == hand
        assert {h: alternation.steps_before(step, h) for h in hands} == {h: counts[h] for h in hands}
        counts[hand] += 1


def test_both_hands_are_trained_when_an_epoch_is_shorter_than_a_turn():
    # Ten epochs of six steps; a turn that began anew every epoch would never come to the right hand.
    alternation = Alternation(HANDS, 10)
    hands = [[alternation.hand_at(epoch * 6 + step) for step in range(6)] for epoch in range(10)]
    assert sum(epoch.count("rh") for epoch in hands) == 30
    assert hands[1] == ["lh"] * 4 + ["rh"] * 2


# --------------------------------------------------------------------------------------- batches


def passes_of(sizes, seed=0):
    return {hand: ShuffledPasses(size, (seed, hand)) for hand, size in sizes.items()}


def batches(sizes, steps, turn=3, batch_size=2, update_freq=1, rank=0, world_size=1, seed=0):
    arguments = (Alternation(tuple(sizes), turn), passes_of(sizes, seed), steps, batch_size, update_freq)
    return list(training_batches(*arguments, rank, world_size))


@pytest.mark.parametrize("sizes", [{"lh": 13, "rh": 7}, {"lh": 5, "rh": 40}, {"lh": 1, "rh": 3}, {"lh": 9}])
@pytest.mark.parametrize(("turn", "update_freq"), [(1, 1), (3, 2), (8, 3)])
def test_each_clip_of_a_hand_comes_once_before_any_comes_twice(sizes, turn, update_freq):
    keys = list(itertools.chain(*batches(sizes, range(120), turn, 2, update_freq)))
    for hand, size in sizes.items():
        mine = [key[1:] for key in keys if key[0] == hand]
        assert len(mine) >= 2 * size
        for number in range(len(mine) // size):
            one_pass = mine[number * size : (number + 1) * size]
            assert {pass_ for pass_, _ in one_pass} == {number}
            assert sorted(clip for _, clip in one_pass) == list(range(size))


def test_passes_are_in_different_orders_for_passes_hands_and_seeds():
    def order(seed, hand, number):
        passes = passes_of({"lh": 30, "rh": 30}, seed)[hand]
        return tuple(passes.at(number * 30 + i).clip for i in range(30))

    orders = {order(*key) for key in itertools.product((0, 1), HANDS, (0, 1))}
    assert len(orders) == 8


@pytest.mark.parametrize(("world_size", "update_freq"), [(1, 4), (2, 1), (2, 2), (2, 3), (3, 2), (4, 1)])
def test_ranks_and_micro_steps_share_the_global_batch_of_one_process(world_size, update_freq):
    sizes, per_rank = {"lh": 17, "rh": 23}, 2
    one = batches(sizes, range(30), batch_size=per_rank * update_freq * world_size)
    ranks = [
        batches(sizes, range(30), 3, per_rank, update_freq, rank, world_size) for rank in range(world_size)
    ]
    for step in range(30):
        micro_steps = range(step * update_freq, (step + 1) * update_freq)
        shared = [key for micro in micro_steps for rank in ranks for key in rank[micro]]
        assert shared == one[step]


def test_hand_never_changes_within_a_step_or_between_ranks():
    ranks = [batches({"lh": 9, "rh": 5}, range(40), 3, 4, 3, rank, 2) for rank in range(2)]
    hands = [[{key[0] for key in batch} for batch in rank] for rank in ranks]
    assert hands[0] == hands[1]
    for step, hand in zip(range(40), simulated_hands(HANDS, 3), strict=False):
        assert hands[0][3 * step : 3 * step + 3] == [{hand}] * 3


@pytest.mark.parametrize("start", [0, 1, 5, 17, 39])
def test_sequence_from_any_step_is_the_tail_of_the_whole_sequence(start):
    arguments = {"turn": 4, "batch_size": 3, "update_freq": 2, "rank": 1, "world_size": 2}
    whole = batches({"lh": 11, "rh": 6}, range(40), **arguments)
    assert batches({"lh": 11, "rh": 6}, range(start, 40), **arguments) == whole[2 * start :]


def test_epoch_walks_the_longer_list():
    assert steps_an_epoch([1600, 800], 8) == 200
    assert steps_an_epoch([3, 17], 8) == 2
    assert steps_an_epoch([8], 8) == 1
    with pytest.raises(UserError, match="7 clips, fewer than the 8 of one step: lower --batch_size"):
        steps_an_epoch([7, 2], 8)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluation_gives_each_clip_to_exactly_one_rank(world_size, batch_size):
    sizes = {"lh": 11, "rh": 5}
    shares = [evaluation_batches(sizes, batch_size, rank, world_size) for rank in range(world_size)]
    keys = [(key.hand, key.clip) for share in shares for batch in share for key in batch]
    assert sorted(keys) == [(hand, clip) for hand in HANDS for clip in range(sizes[hand])]
    for share in shares:
        assert all(0 < len(batch) <= batch_size for batch in share)
        assert all(len({key.hand for key in batch}) == 1 for batch in share)


# --------------------------------------------------------------------------------------- imports

ENGINES = {"engine_for_finetuning", "engine_for_alternating_finetuning"}
# What each part may import of ours.
MAY_IMPORT = {
    "utils": set(),
    "models": {"models", "utils"},
    "dataset": {"dataset", "utils"},
    "optim_factory": {"utils"},
    "engine_for_finetuning": {"utils"},
    "engine_for_alternating_finetuning": {"engine_for_finetuning", "utils"},
    "run_alternating_hand_finetuning": {"dataset", "models", "optim_factory", "utils", *ENGINES},
}


def modules():
    """(part, file) of every module of the core."""
    files = [path.relative_to(ROOT) for pattern in ("*.py", "models/**/*.py", "dataset/**/*.py")
             for path in ROOT.glob(pattern)]  # fmt: skip
    return [(path.parts[0].removesuffix(".py"), path) for path in sorted(files)]


def imported(path):
    """Top-level names of all modules that a file imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            names.add(node.module.split(".")[0])
    return names


def test_every_module_has_a_place_in_the_house():
    assert {part for part, _ in modules()} == set(MAY_IMPORT)
    assert len(modules()) > 15


@pytest.mark.parametrize(("part", "path"), modules(), ids=lambda value: str(value))
def test_imports_point_in_one_direction(part, path):
    ours = imported(path) & {*MAY_IMPORT, "scripts", "tests"}
    assert ours <= MAY_IMPORT[part]


@pytest.mark.parametrize("path", [path for part, path in modules() if part in ("models", "dataset")], ids=str)
def test_models_and_data_know_nothing_of_the_command_line(path):
    assert not imported(path) & {"argparse", "sys"}


def test_the_run_script_is_imported_by_nothing_of_the_core():
    for _, path in modules():
        assert "run_alternating_hand_finetuning" not in imported(path)


def test_third_party_imports_are_in_the_requirements():
    declared = (ROOT / "requirements.txt").read_text().lower()
    # A module's name is not always its package's; Pillow comes with torchvision.
    packages = {"cv2": "opencv-python-headless", "PIL": "torchvision", "decord": "decord2"}
    packages["huggingface_hub"] = "huggingface-hub"
    for _, path in modules():
        for name in imported(path) - {*MAY_IMPORT} - set(sys.stdlib_module_names):
            assert packages.get(name, name).lower() in declared, f"{path} imports {name}"
