"""Too little memory, and loaders' workers that are killed: real ones, in processes of their own."""

import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import assert_equal_states, load, only_error

import run_alternating_hand_finetuning as run
from utils import explain

FLAGS = ("--num_workers", "--batch_size", "--update_freq", "--num_sample", "--with_checkpoint", "--amp_dtype")


def in_child(output, function, *args, timeout=60):
    """Runs a function in a copy of this process; its result as exit code, and what it said."""

    def start():
        with output.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            code = function(*args)
        os._exit(code)

    process = multiprocessing.get_context("fork").Process(target=start)
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        pytest.fail(f"still running after {timeout} s: {output.read_text()}")
    return process.exitcode, output.read_text()


def limit_memory(more):
    """Lets this process have so many bytes more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def main_with_little_memory(more, flags):
    limit_memory(more)
    return run.main([str(flag) for flag in flags])


@pytest.mark.parametrize("workers", [0, 1])
def test_too_little_memory_is_one_line_that_names_the_flags(tiny_flags, full_run, tmp_path, workers):
    shutil.copyfile(full_run / "checkpoint-0.pth", tmp_path / "checkpoint-last.pth")
    # A view takes some 150 MB in the model: a batch of these cannot fit.
    large = ("--input_size", 224, "--short_side_size", 224, "--num_frames", 32, "--batch_size", 16)
    flags = (*tiny_flags, *large, "--update_freq", 1, "--num_workers", workers, "--no_auto_resume")
    code, output = in_child(
        tmp_path / "out.txt", *(main_with_little_memory, 700 * 2**20, (*flags, "--output_dir", tmp_path))
    )
    assert code == 1, output
    line = only_error(output)
    assert "error: out of memory: " in line
    assert all(flag in line for flag in FLAGS)
    saved = load(tmp_path / "checkpoint-last.pth")
    assert_equal_states(saved["model"], load(full_run / "checkpoint-0.pth")["model"])


def allocate(size):
    limit_memory(2**28)
    try:
        torch.empty(size) if isinstance(size, int) else bytearray(size[0])
    except (RuntimeError, MemoryError) as error:
        return 0 if explain(error).startswith("out of memory: ") else 1
    return 2


@pytest.mark.parametrize("size", [2**36, (2**36,)], ids=["torch", "python"])
def test_every_library_s_lack_of_memory_is_known(tmp_path, size):
    assert in_child(tmp_path / "out.txt", allocate, size)[0] == 0


def test_program_s_own_error_in_a_worker_is_not_taken_for_a_lack_of_memory():
    caught = "a process of the loader failed:\nTraceback (most recent call last):\n  x\n{0}: 5 GiB"
    assert explain(RuntimeError(caught.format("KeyError"))) is None
    assert explain(RuntimeError(caught.format("RuntimeError"))) is None
    error = RuntimeError(caught.format("MemoryError"))
    assert explain(error).startswith("out of memory: MemoryError: 5 GiB; what lowers it: --num_workers, ")


def test_worker_that_is_killed_from_outside_ends_the_run_in_one_line(tiny_flags, full_run, tmp_path):
    shutil.copyfile(full_run / "checkpoint-0.pth", tmp_path / "checkpoint-last.pth")
    before = (tmp_path / "checkpoint-last.pth").read_bytes()

    def kill_a_worker():
        while not (workers := multiprocessing.active_children()):
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(workers[0].pid, signal.SIGKILL)

    def train():
        threading.Thread(target=kill_a_worker, daemon=True).start()
        flags = ("--num_workers", 2, "--epochs", 500, "--no_auto_resume", "--disable_eval_during_finetuning")
        flags = (*tiny_flags, *flags, "--no_save_ckpt", "--log_interval", 1000, "--output_dir", tmp_path)
        return run.main([str(flag) for flag in flags])

    code, output = in_child(tmp_path / "out.txt", train)
    assert code == 1, output
    line = only_error(output)
    assert "error: a process of the loader failed: SIGKILL ended it" in line
    assert "--num_workers" in line and "--batch_size" in line
    assert (tmp_path / "checkpoint-last.pth").read_bytes() == before
