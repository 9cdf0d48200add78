"""A run of 200 steps on real clips: whose turn it is, what rests, and which clips come."""

import copy
import itertools

import pytest
import torch
from conftest import CLASSES, TRAIN_CLIPS, assert_equal_states

import run_alternating_hand_finetuning as run
import utils

STEPS, TURN, MICRO_STEPS = 200, 7, 3


def head_state(training, hand):
    """Weights of a hand's head and all that the optimizer remembers of them."""
    head = dict(training.state.model.get_classifier(hand).named_parameters())
    weights = {name: parameter.detach() for name, parameter in head.items()}
    moments = {name: dict(training.state.optimizer.state.get(p, {})) for name, p in head.items()}
    return copy.deepcopy({"weights": weights, "moments": moments})


@pytest.fixture(scope="module")
def steps(tiny_flags, tmp_path_factory):
    """[(hand of each micro batch, clips, heads before, heads after)] of every step."""
    flags = [*tiny_flags, "--batch_size", "1", "--update_freq", "3", "--alternation_steps", "7"]
    args = run.get_args([*flags, "--epochs", "40", "--no_save_ckpt"])
    place = utils.Distributed()
    runtime = run.Runtime(place.device, torch.float32)
    datasets = run.build_datasets(args, CLASSES)
    evaluator = run.Evaluator(args, place, datasets, runtime, tmp_path_factory.mktemp("hands"))
    training = run.Training(args, place, run.build_model(args, CLASSES), CLASSES, evaluator)
    trainer = training._trainer()
    assert args.epochs * trainer.recipe.steps_per_epoch == STEPS
    meters = run.HandMeters(tuple(CLASSES), place.device)
    served, seen = [], []
    trainer.batches = (served.append(batch) or batch for batch in trainer.batches)
    trainer.model.train()
    for step in range(STEPS):
        served.clear()
        before = {hand: head_state(training, hand) for hand in CLASSES}
        trainer.optimizer_step(step, meters)
        after = {hand: head_state(training, hand) for hand in CLASSES}
        clips = [name for batch in served for name in batch.names]
        seen.append(([batch.hand for batch in served], clips, before, after))
    return seen


def test_active_hand_is_right_at_every_step(steps):
    expected = ["lh"] * TURN + ["rh"] * TURN
    for step, (hands, *_) in enumerate(steps):
        assert hands == [expected[step % (2 * TURN)]] * MICRO_STEPS


def test_resting_head_and_its_optimizer_state_stay_bit_identical(steps):
    for hands, _, before, after in steps:
        resting = "rh" if hands[0] == "lh" else "lh"
        assert_equal_states(before[resting], after[resting])


def test_active_head_and_its_step_count_move(steps):
    for hands, _, before, after in steps:
        first, second = before[hands[0]], after[hands[0]]
        assert not torch.equal(first["weights"]["weight"], second["weights"]["weight"])
        made = first["moments"]["weight"].get("step", torch.tensor(0.0))
        assert second["moments"]["weight"]["step"] == made + 1


@pytest.mark.parametrize("hand", CLASSES)
def test_each_clip_of_a_hand_is_used_once_before_any_is_used_twice(steps, sample, hand):
    walked = list(itertools.chain(*(clips for hands, clips, *_ in steps if hands[0] == hand)))
    assert len(walked) == MICRO_STEPS * sum(hands[0] == hand for hands, *_ in steps)
    names = sorted(name for name, _ in sample.train[hand])
    passes = [walked[i : i + TRAIN_CLIPS[hand]] for i in range(0, len(walked), TRAIN_CLIPS[hand])]
    assert all(sorted(whole) == names for whole in passes[:-1])
    assert len(set(passes[-1])) == len(passes[-1])
    assert len(passes) > 10 and passes[0] != passes[1]
