"""The scripts that people run: each starts a real run on small data, or says what it would start."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import timm
import torch
from conftest import MODEL_FLAGS, ROOT

import models  # noqa: F401 - registers the models with timm

FINETUNE = ROOT / "scripts" / "finetune"
SCRIPTS = [*sorted(ROOT.glob("scripts/**/*.sh")), ROOT / ".ci" / "run"]
# Given after a script's own flags, these win: a run of seconds instead of days.
TINY = (
    *MODEL_FLAGS,
    *("--data_set", "CUSTOM", "--device", "cpu", "--num_workers", "0", "--batch_size", "2"),
    *("--epochs", "1", "--warmup_epochs", "0", "--test_num_segment", "1", "--test_num_crop", "1"),
    "--no_report",
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file in the form of the published pretrained weights, for the tiny model."""
    sizes = {"img_size": 32, "all_frames": 4, "depth": 1}
    model = timm.create_model("vit_tiny_patch16_224_alternating", **sizes)
    path = tmp_path_factory.mktemp("weights") / "pretrained.pth"
    torch.save({"module": model.state_dict()}, path)
    return path


@pytest.fixture
def run_script(sample, weights, tmp_path):
    """Runs a script with the small data's places in its variables."""

    def call(name, *arguments, **variables):
        environment = {
            **os.environ,
            "PYTHON": sys.executable,
            "DATA": str(sample.root),
            "WEIGHTS": str(weights),
            "OUTPUT": str(tmp_path / "out"),
            **variables,
        }
        command = ["bash", str(FINETUNE / name), *map(str, arguments)]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
        )
        return done, tmp_path / "out"

    return call


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_valid_executable_and_stops_at_errors(script):
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_two_hand_recipe_trains_and_its_checkpoint_is_evaluated(run_script, tmp_path):
    done, output = run_script("train_havid_alternating.sh", *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    trained = json.loads((output / "metrics.json").read_text())
    assert {"lh", "rh"} <= trained.keys()
    assert "tensors of the model loaded" in done.stdout

    checkpoint = output / "checkpoint-last.pth"
    done, output = run_script("eval_havid_alternating.sh", checkpoint, OUTPUT=str(tmp_path / "again"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "again" / "metrics.json").read_text()) == trained
    assert f"{trained['lh']['top1']:.2f}" in done.stdout


def test_evaluation_without_a_checkpoint_says_how_to_call_it(run_script):
    done, _ = run_script("eval_havid_alternating.sh")
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_published_recipe_sets_every_restoring_flag(run_script):
    done, output = run_script("train_havid_published.sh", *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    args = json.loads((output / "args.json").read_text())
    restored = {"norm_eps": 1e-5, "init_scale": 1, "hflip": "on", "warmup_lr": 0}
    assert {name: args[name] for name in restored} == restored
    assert (args["cutmix_region"], args["aug_impl"]) == ("published", "reference")


def test_one_stream_trains_one_list(run_script, sample):
    done, output = run_script("train_one_stream.sh", *TINY, DATA=str(sample.path("rh")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rh" not in json.loads((output / "metrics.json").read_text())


def test_several_nodes_meet_at_the_master(run_script):
    done, output = run_script(
        "train_multinode.sh", *TINY, NODES="1", GPUS="2", MASTER="localhost:0", JOB="test"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (output / "1_rh.txt").exists()


def test_several_nodes_need_a_master(run_script):
    done, _ = run_script("train_multinode.sh")
    assert done.returncode != 0
    assert "MASTER" in done.stderr


def test_slurm_job_starts_one_task_a_gpu_that_resumes(run_script, tmp_path):
    stub = tmp_path / "bin" / "srun"
    stub.parent.mkdir()
    stub.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    path = f"{stub.parent}{os.pathsep}{os.environ['PATH']}"
    done, _ = run_script("slurm_havid_alternating.sh", "--epochs", "3", PATH=path, SLURM_CPUS_PER_TASK="8")
    assert done.returncode == 0, done.stderr
    started = done.stdout.split("\n")
    assert "run_alternating_hand_finetuning.py" in started
    assert started[started.index("--num_workers") + 1] == "7"
    assert started[started.index("--epochs") + 1] == "3"
    assert "--auto_resume" in started


@pytest.mark.parametrize(("preempted", "code"), [(True, 0), (False, 75)])
def test_slurm_job_is_queued_again_only_where_the_run_says_that_it_was_preempted(
    run_script, tmp_path, preempted, code
):
    output, bin_folder = tmp_path / "out", tmp_path / "bin"
    output.mkdir()
    (output / "PREEMPTED").touch()  # of an earlier stop
    bin_folder.mkdir()
    ends = f"touch {output}/PREEMPTED; exit 75" if preempted else "exit 75"
    for name, body in (("srun", ends), ("scontrol", f'echo "$@" > {tmp_path}/asked')):
        (bin_folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (bin_folder / name).chmod(0o755)
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    done, _ = run_script("slurm_havid_alternating.sh", PATH=path, SLURM_JOB_ID="4711")
    assert done.returncode == code, done.stderr
    asked = tmp_path / "asked"
    assert asked.exists() == preempted
    assert not preempted or asked.read_text() == "requeue 4711\n"


def test_slurm_job_asks_for_a_gpu_a_task_a_warning_and_requeueing():
    header = (FINETUNE / "slurm_havid_alternating.sh").read_text()
    assert "#SBATCH --gpus-per-task=1" in header
    assert "#SBATCH --requeue" in header
    assert "#SBATCH --signal=USR1@" in header


RUNNING = sorted(path for path in FINETUNE.glob("*.sh") if path.name != "environment.sh")


@pytest.mark.parametrize("script", RUNNING, ids=lambda path: path.name)
def test_script_takes_the_environment_that_the_project_built(script, tmp_path):
    # A checkout whose environment is a stub; no `python` is on the path.
    shutil.copytree(FINETUNE, tmp_path / "scripts" / "finetune")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\necho "stub $@"\n')
    python.chmod(0o755)
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text('#!/bin/bash\nshift\n"$@"\n')
    srun.chmod(0o755)
    for name in ("bash", "dirname", "ls", "realpath", "rm"):
        (srun.parent / name).symlink_to(shutil.which(name))
    environment = {"PATH": str(srun.parent), "MASTER": "localhost:0"}
    command = ["bash", str(tmp_path / "scripts" / "finetune" / script.name), "x.pth"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("stub ") and "run_alternating_hand_finetuning.py" in done.stdout


@pytest.mark.skipif(shutil.which("pip") is None, reason="needs pip and its registry")
@pytest.mark.slow
def test_environment_is_built_by_a_python_that_is_closed_to_pip(tmp_path):
    for name in (f"requirements{kind}.txt" for kind in ("", "-tools", "-dev", "-lock")):
        (tmp_path / name).write_text("packaging\n" if name == "requirements.txt" else "")
    (tmp_path / "scripts").mkdir()
    shutil.copyfile(ROOT / "scripts" / "env.sh", tmp_path / "scripts" / "env.sh")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "cat", "sha256sum", "rm", "uname"):
        (tools / name).symlink_to(shutil.which(name))
    (tools / "python3").symlink_to(sys.executable)
    environment = {**os.environ, "PATH": str(tools), "PIP_REQUIRE_VIRTUALENV": "1"}
    environment.pop("PYTHON", None)
    command = ["bash", str(tmp_path / "scripts" / "env.sh")]
    stamp = tmp_path / ".venv" / ".requirements.sha256"
    said, stamps = [], []
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said.append(done.stderr)
        stamps.append(stamp.stat().st_mtime_ns)
    assert "building" in said[0]
    assert not said[1] and stamps[0] == stamps[1]  # the second call does nothing
    (python,) = (tmp_path / ".venv" / "bin").glob("python3")
    subprocess.run([str(python), "-c", "import packaging"], check=True)


def test_own_python_that_lacks_packages_is_refused_by_name(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    environment = {**os.environ, "PYTHON": str(tmp_path / "bare" / "bin" / "python")}
    command = ["bash", str(ROOT / "scripts" / "env.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "lacks" in done.stderr and "decord2" in done.stderr
