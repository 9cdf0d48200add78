"""A restart starts from its checkpoint alone: the file of `--finetune` may be gone."""

import json
import os
import shutil

import pytest
import torch
from conftest import MODEL_FLAGS, assert_same_run, load, only_error
from safetensors.torch import save_file

import run_alternating_hand_finetuning as run

EPSILON = 1e-4  # of the weights; the flag's default is another
QUICK = ("--disable_eval_during_finetuning", "--save_ckpt_freq", "1")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights that says its epsilon, as this project's export writes it."""
    path = tmp_path_factory.mktemp("weights") / "start.safetensors"
    model = run.build_model(run.get_parser().parse_args(MODEL_FLAGS), {"lh": 1, "rh": 1})
    generator = torch.Generator().manual_seed(3)
    tensors = {name: value for name, value in model.state_dict().items() if "head" not in name}
    tensors = {name: 0.1 * torch.randn(value.shape, generator=generator) for name, value in tensors.items()}
    save_file(tensors, path, {"architecture": json.dumps({"norm_eps": EPSILON})})
    return path


@pytest.fixture(scope="module")
def whole_run(run_main, tiny_flags, weights, tmp_path_factory):
    """The folder of a run from those weights, which are gone afterwards, and its flags."""
    folder = tmp_path_factory.mktemp("whole")
    flags = [*tiny_flags, *QUICK, "--finetune", str(weights)]
    result = run_main(*flags, "--output_dir", folder)
    assert result.code == 0, result.output
    assert "30 tensors" in result.output or "tensors of the model loaded" in result.output
    weights.unlink()
    return folder, flags


@pytest.fixture
def stopped(whole_run, tmp_path):
    """A folder with the run's first epoch, as if it had stopped there."""
    folder = tmp_path / "stopped"
    folder.mkdir()
    for name in ("checkpoint-0.pth", "log.txt"):
        shutil.copyfile(whole_run[0] / name, folder / name)
    return folder


@pytest.mark.parametrize("way", ["auto_resume", "resume"])
def test_restart_without_the_file_ends_like_the_run_that_was_not_stopped(run_main, whole_run, stopped, way):
    reference, flags = whole_run
    given = ("--resume", stopped / "checkpoint-0.pth") if way == "resume" else ()
    result = run_main(*flags, *given, "--output_dir", stopped)
    assert result.code == 0, result.output
    said = f"{stopped / 'checkpoint-0.pth'} replaces --finetune {flags[-1]}, which is not read"
    assert said in result.output
    assert "otherwise than it began" not in result.output
    assert load(stopped / "checkpoint-last.pth")["args"]["norm_eps"] == EPSILON
    assert_same_run(reference, stopped)


def test_start_without_a_checkpoint_reads_the_file(run_main, whole_run, stopped, tmp_path):
    _, flags = whole_run
    for more in (("--output_dir", tmp_path / "new"), ("--output_dir", stopped, "--no_auto_resume")):
        result = run_main(*flags, *more)
        assert result.code == 1
        assert f"--finetune {flags[-1]}: there is no such file" in only_error(result.output)


def test_given_epsilon_wins_over_the_checkpoint_s(whole_run, stopped):
    flags = [*whole_run[1], "--output_dir", str(stopped)]
    assert run.args_of_run(flags, 1).norm_eps == EPSILON
    assert run.args_of_run([*flags, "--norm_eps", "1e-5"], 1).norm_eps == 1e-5


def test_checkpoint_of_the_published_trainers_leaves_the_default(whole_run, stopped, tmp_path):
    saved = load(stopped / "checkpoint-0.pth")
    torch.save({"model": saved["model"], "args": {"norm_eps": 0.5}, "epoch": 0}, tmp_path / "published.pth")
    flags = [*whole_run[1], "--output_dir", str(tmp_path), "--resume", str(tmp_path / "published.pth")]
    assert run.args_of_run(flags, 1).norm_eps == 1e-6


def test_damaged_newest_checkpoint_is_said_once_and_the_one_before_replaces_the_file(
    run_main, whole_run, stopped
):
    reference, flags = whole_run
    shutil.copyfile(reference / "checkpoint-last.pth", stopped / "checkpoint-last.pth")
    os.truncate(stopped / "checkpoint-last.pth", 5000)
    result = run_main(*flags, "--output_dir", stopped)
    assert result.code == 0, result.output
    assert result.output.count("checkpoint-last.pth: damaged") == 1
    assert_same_run(reference, stopped)


def test_damaged_checkpoints_alone_do_not_start_anew_from_the_file(run_main, whole_run, stopped):
    os.truncate(stopped / "checkpoint-0.pth", 5000)
    result = run_main(*whole_run[1], "--output_dir", stopped)
    assert result.code == 1
    assert "checkpoint-0.pth: damaged" in only_error(result.output)
    assert (stopped / "checkpoint-0.pth").exists()
