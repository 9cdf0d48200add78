"""Which checkpoint a run goes on from, what it takes over, and which one is evaluated."""

import argparse
import os
from pathlib import Path

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from engine_for_finetuning import (
    STATE_KEY,
    Progress,
    TrainingState,
    checkpoint_to_evaluate,
    resume_candidates,
)
from utils import UserError, read_checkpoint


def write(folder, **steps):
    """Writes files of runs that had made so many steps, in epochs of 10."""
    for name, step in steps.items():
        content = {"epoch": (step - 1) // 10, STATE_KEY: {"step": step}}
        torch.save(content, folder / f"checkpoint-{name.replace('_', '-')}.pth")


def names(paths):
    return [path.name[len("checkpoint-") : -len(".pth")] for path in paths]


def test_most_advanced_checkpoint_comes_first_whatever_the_files_times(tmp_path):
    assert resume_candidates(tmp_path) == []
    write(tmp_path, step_9=9, last=100, step_104=104, best=70, best_lh=80, **{"0": 10, "9": 100})
    (tmp_path / "checkpoint-x1.pth").touch()
    (tmp_path / ".checkpoint-11.pth.half").touch()
    assert names(resume_candidates(tmp_path)) == ["step-104", "last", "9", "0", "step-9"]


def test_files_of_an_earlier_run_are_not_gone_on_from(tmp_path):
    for time, (name, run, step) in enumerate([("9", "old", 100), ("last", "new", 20), ("0", "new", 10)]):
        path = tmp_path / f"checkpoint-{name}.pth"
        torch.save({"epoch": (step - 1) // 10, STATE_KEY: {"step": step, "run": run}}, path)
        os.utime(path, ns=(time, time))
    assert names(resume_candidates(tmp_path)) == ["last", "0"]


def test_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog):
    write(tmp_path, last=20, **{"0": 10})
    last = tmp_path / "checkpoint-last.pth"
    last.write_bytes(last.read_bytes()[:-200])
    assert names(resume_candidates(tmp_path)) == ["0"]
    assert str(last) in caplog.text


def test_damaged_checkpoints_alone_are_no_reason_to_start_anew(tmp_path):
    (tmp_path / "checkpoint-last.pth").write_text("damaged")
    with pytest.raises(UserError, match=r"checkpoint-last\.pth: refused.*no other to go on from"):
        resume_candidates(tmp_path)


def test_files_of_the_published_trainer_are_ordered_by_epoch(tmp_path):
    for epoch in (9, 19):
        torch.save({"epoch": epoch, "model": {}}, tmp_path / f"checkpoint-{epoch}.pth")
    assert names(resume_candidates(tmp_path)) == ["19", "9"]


def test_checkpoint_to_evaluate(tmp_path):
    def find(**flags):
        flags = {"resume": "", "output_dir": str(tmp_path), "test_weights": "last", **flags}
        return checkpoint_to_evaluate(argparse.Namespace(**flags))

    assert find(resume="x.pth") == Path("x.pth")
    with pytest.raises(UserError, match=rf"no checkpoint to evaluate in {tmp_path}"):
        find()
    write(tmp_path, last=20, best=10, **{"0": 10})
    assert find().name == "checkpoint-last.pth"
    assert find(test_weights="best").name == "checkpoint-best.pth"


# ------------------------------------------------------------------------------------- state


def state_of(steps_per_epoch, fused=False, ema=True):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    average = ModelEmaV3(model) if ema else None
    return TrainingState(model, optimizer, scaler, average, Progress(), steps_per_epoch, {})


def saved_after(folder, step, steps_per_epoch, *names):
    state = state_of(steps_per_epoch)
    state.model(torch.ones(1, 3)).sum().backward()
    state.optimizer.step()
    state.progress.step = step
    state.save(folder, *names)
    return read_checkpoint(folder / f"checkpoint-{names[0]}.pth")


def test_every_name_holds_the_same_checkpoint(tmp_path):
    saved_after(tmp_path, 8, 4, "last", "1", "best")
    contents = [(tmp_path / f"checkpoint-{name}.pth").read_bytes() for name in ("last", "1", "best")]
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize(("steps_per_epoch", "expected"), [(4, 8), (2, 4), (7, 14)])
def test_whole_epochs_are_counted_in_epochs_of_this_run(tmp_path, steps_per_epoch, expected, caplog):
    checkpoint = saved_after(tmp_path, 8, 4, "last")
    state = state_of(steps_per_epoch)
    assert state.load(checkpoint, "x.pth").step == expected
    assert ("x.pth" in caplog.text) == (steps_per_epoch != 4)


def test_part_of_an_epoch_of_another_length_is_refused(tmp_path):
    checkpoint = saved_after(tmp_path, 7, 4, "step-7")
    assert state_of(4).load(checkpoint, "x.pth").step == 7
    with pytest.raises(UserError, match=r"--resume x\.pth: saved within an epoch of 4 steps.*has 2 steps"):
        state_of(2).load(checkpoint, "x.pth")


def test_optimizer_s_own_options_are_there_when_its_state_is_placed(tmp_path):
    # A fused update keeps its step counts on the device: torch places them by the option `fused`.
    checkpoint = saved_after(tmp_path, 4, 4, "last")
    assert not checkpoint["optimizer"]["param_groups"][0]["fused"]
    state, seen = state_of(4, fused=True), []
    load = state.optimizer.load_state_dict
    state.optimizer.load_state_dict = lambda content: (seen.append(content), load(content))
    state.load(checkpoint, "x.pth")
    assert seen[0]["param_groups"][0]["fused"] is True
    assert state.optimizer.param_groups[0]["fused"] is True
