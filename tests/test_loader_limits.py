"""The loader where the system gives little: real limits, in processes of their own.

Each of these made a loader that hands batches over in files of /dev/shm wait for ever.
"""

import contextlib
import ctypes
import io
import itertools
import logging
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_recording, only_error, write_list, write_video

from dataset.build import build_dataset, build_loader
from dataset.datasets import ClipKey
from dataset.loader import ClipReader
from dataset.processes import use_one_thread
from scripts.data.check_dataset import main as check_dataset
from scripts.data.killable_pool import work_through
from scripts.data.make_sample_havid import main as make_sample_havid
from utils import UserError

SIZES = {"clip_len": 4, "frame_sample_rate": 2, "crop_size": 32, "short_side_size": 36}
_NEW_NAMESPACE_OF_MOUNTS, _PRIVATE, _READ_ONLY = 0x20000, 1 << 18 | 1 << 14, 1


def mount_shm(flags, data):
    """Gives this process a /dev/shm of its own; returns whether the system lets it."""
    system = ctypes.CDLL(None)
    return not (
        system.unshare(_NEW_NAMESPACE_OF_MOUNTS)
        or system.mount(b"none", b"/", None, _PRIVATE, None)
        or system.mount(b"tmpfs", b"/dev/shm", b"tmpfs", flags, data)
    )


@pytest.fixture(scope="session")
def may_mount():
    process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(mount_shm(0, b"size=4k")))
    process.start()
    process.join()
    if process.exitcode != 1:
        pytest.skip("mounting a small /dev/shm needs the rights of root")


def full_shm(rank):
    assert mount_shm(0, b"size=4k")
    Path("/dev/shm/full").write_bytes(bytes(4096))


def read_only_shm(rank):
    assert mount_shm(_READ_ONLY, b"")


RANKS = [1, pytest.param(2, marks=pytest.mark.slow)]


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("fault", [full_shm, read_only_shm])
def test_run_needs_no_shared_memory_files(may_mount, fork_run, tiny_flags, tmp_path, fault, ranks):
    flags = (*tiny_flags, "--num_workers", 2, "--batch_size", 2 // ranks, "--output_dir", tmp_path)
    results = fork_run(*flags, fault=fault, ranks=ranks)
    assert [result.code for result in results] == [0] * ranks, results


@pytest.mark.parametrize("ranks", RANKS)
def test_run_needs_no_short_tmpdir(fork_run, tiny_flags, tmp_path, ranks):
    folder = tmp_path / ("x" * 120)  # a socket's path has room for 107 characters
    folder.mkdir()

    def fault(rank):
        os.environ["TMPDIR"] = str(folder)
        tempfile.tempdir = None

    flags = (*tiny_flags, "--num_workers", 2, "--batch_size", 2 // ranks, "--output_dir", tmp_path)
    results = fork_run(*flags, fault=fault, ranks=ranks)
    assert [result.code for result in results] == [0] * ranks, results


def test_sample_data_without_shared_memory_say_how_to_make_them(may_mount, tmp_path):
    def make():
        read_only_shm(0)
        logging.getLogger().handlers = []
        output = io.StringIO()
        with contextlib.redirect_stderr(output):
            code = make_sample_havid(["--output", str(tmp_path / "sample"), "--workers", "2"])
        return f"{code} {output.getvalue()}"

    text = in_child(make)
    assert text.startswith("1 make_sample_havid: --workers 2: processes cannot be started"), text
    assert "/dev/shm" in text and "--workers 1" in text and text.count("\n") == 1


def limit_files(free):
    """A fault: a rank may open so many files more."""

    def fault(rank):
        used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
        limit = next(n for n in itertools.count() if len(set(range(n)) - used) == free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    return fault


@pytest.mark.parametrize(
    ("free", "ranks", "code"),
    [
        (8, 1, 1),
        (20, 1, 0),
        *(pytest.param(free, 1, None, marks=pytest.mark.slow) for free in (*range(1, 8), *range(9, 20))),
        *(pytest.param(free, 2, None, marks=pytest.mark.slow) for free in (20, 25, 30)),
    ],
)
def test_run_with_few_files_works_or_ends_in_one_line(fork_run, tiny_flags, tmp_path, free, ranks, code):
    flags = (*tiny_flags, "--num_workers", 2, "--batch_size", 2 // ranks, "--output_dir", tmp_path)
    results = fork_run(*flags, fault=limit_files(free), ranks=ranks)
    assert results[0].code in ((0, 1) if code is None else (code,)), results
    for result in results:
        assert result.code == results[0].code
        if result.code:
            line = only_error(result.output)
            files = "too many open files: the limit is " in line and "`ulimit -n 4096`" in line
            assert files or "another process" in line, line
    assert not [*tmp_path.glob("bad_clips_*"), *tmp_path.glob("unreadable_*")]


# ------------------------------------------------------------------------------ the loader alone


@pytest.fixture
def clips(tmp_path):
    """Six clips in a training list, of which the second does not exist."""
    names = [f"c{number}.mp4" for number in range(6)]
    for number, name in enumerate(names):
        if number != 1:
            write_video(tmp_path / "videos" / name, draw_recording(number, n_frames=20))
    for mode in ("train", "val"):
        write_list(tmp_path / f"{mode}_list_video.txt", [(name, n % 3) for n, name in enumerate(names)])
    return tmp_path


def error_of_loader(folder, mode="train", limit=lambda: None, **sizes):
    """The loader's error for batches of two clips, as text; empty if there is none."""
    dataset = build_dataset(mode, folder, **{**SIZES, **sizes})
    limit()
    try:
        list(build_loader({"lh": dataset}, [[ClipKey("lh", 0, 2), ClipKey("lh", 0, 3)]] * 2, 2))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def in_child(function, *args, timeout=30):
    """The function's text, from a copy of this process, which must end."""
    read, write = os.pipe()

    def start():
        os.write(write, function(*args).encode())

    process = multiprocessing.get_context("fork").Process(target=start)
    process.start()
    process.join(timeout)
    os.close(write)
    with os.fdopen(read) as file:
        if process.is_alive():
            process.kill()
            pytest.fail(f"waited {timeout} s")
        return file.read()


def limit_processes(most):
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
    os.setuid(65534)  # root has no limit


@pytest.mark.parametrize("most", [1, 3])  # no worker; two workers, but not their children
def test_too_few_processes_are_one_line(clips, most):
    if os.getuid():
        pytest.skip("the limit of processes is set for another user, which needs the rights of root")
    text = in_child(error_of_loader, clips, "train", partial(limit_processes, most))
    assert text.startswith("UserError: the limit of processes is reached (ulimit -u"), text
    assert "--num_workers" in text and "\n" not in text


def error_of_pool(limit):
    limit()
    try:
        list(work_through([0], str, str, 1))
    except UserError as error:
        return str(error)
    return ""


def test_too_few_processes_for_a_killable_pool_are_one_line():
    if os.getuid():
        pytest.skip("the limit of processes is set for another user, which needs the rights of root")
    text = in_child(error_of_pool, partial(limit_processes, 1))
    assert text.startswith("the limit of processes is reached (ulimit -u"), text


def test_memory_that_cannot_be_had_is_one_line(clips):
    text = error_of_loader(clips, crop_size=10**6)
    assert text.startswith("UserError: out of memory: "), text
    assert "--num_workers" in text and "--batch_size" in text and "\n" not in text
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("mode", ["train", "validation"])
def test_files_that_run_out_while_a_clip_is_opened_are_no_fault_of_the_clip(clips, monkeypatch, mode):
    read = ClipReader.read

    def read_with_few_files(self, *given):
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        return read(self, *given)

    monkeypatch.setattr(ClipReader, "read", read_with_few_files)
    text = error_of_loader(clips, mode)
    assert text.startswith("UserError: too many open files: the limit is 3 per process"), text


def test_dataset_check_says_that_files_ran_out(clips, monkeypatch, capsys):
    read = ClipReader.read_and_check

    def read_with_few_files(self, *given):
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        return read(self, *given)

    monkeypatch.setattr(ClipReader, "read_and_check", read_with_few_files)
    flags = ["--lh_data_path", clips, "--one_stream", "--data_set", "CUSTOM", "--num_workers", 1]
    assert check_dataset([*map(str, flags), "--output", str(clips / "report.json")]) == 1
    assert capsys.readouterr().err.startswith("check_dataset: too many open files: the limit is 3")
    assert not (clips / "report.json").exists()


def test_consumer_that_raises_while_it_waits_ends_the_workers(clips, monkeypatch):
    monkeypatch.setattr(ClipReader, "read", lambda *given: time.sleep(3600))
    dataset = build_dataset("train", clips, **SIZES)

    def give_up():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        next(build_loader({"lh": dataset}, [[ClipKey("lh", 0, 2)]], 1, on_wait=give_up))
    assert not multiprocessing.active_children()


def test_end_of_a_worker_is_noticed_though_its_child_lives_on(clips, monkeypatch):
    noted = clips / "child"

    def outlive_the_worker(*given):
        ctypes.CDLL(None).prctl(1, 0)  # the system no longer ends this process with its parent
        noted.with_suffix(".part").write_text(str(os.getpid()))
        noted.with_suffix(".part").rename(noted)
        time.sleep(3600)

    def kill_the_worker():
        if noted.exists():
            for worker in multiprocessing.active_children():
                worker.kill()

    monkeypatch.setattr(ClipReader, "read", outlive_the_worker)
    dataset = build_dataset("train", clips, **SIZES)
    batches = build_loader(
        {"lh": dataset}, [[ClipKey("lh", 0, 2)]], 1, decode_timeout=0, on_wait=kill_the_worker
    )
    try:
        with pytest.raises(UserError, match="a process of the loader failed: SIGKILL ended it"):
            next(batches)
    finally:
        os.kill(int(noted.read_text()), signal.SIGKILL)


# ------------------------------------------------------------------------------------ bad clips


def tries_of(folder, monkeypatch):
    """A file that gets a line per clip that any process opens."""
    read, tries = ClipReader.read, folder / "tries"

    def read_and_note(self, place, *given):
        with tries.open("a") as file:
            file.write(f"{Path(place).name}\n")
        return read(self, place, *given)

    monkeypatch.setattr(ClipReader, "read", read_and_note)
    return tries


def test_bad_clip_is_tried_by_one_worker_alone(clips, monkeypatch):
    tries = tries_of(clips, monkeypatch)
    dataset = build_dataset("train", clips, **SIZES)
    bad, good = [ClipKey("lh", 0, 1)], [ClipKey("lh", 0, 2)]
    batches = list(build_loader({"lh": dataset}, [bad, *[good] * 6, bad, bad], 2))
    assert [len(batch.bad) for batch in batches] == [1, *[0] * 6, 1, 1]
    assert tries.read_text().split().count("c1.mp4") == 1


def test_bad_clip_is_tried_by_one_rank_alone(fork_run, tiny_flags, clips, monkeypatch):
    tries = tries_of(clips, monkeypatch)
    flags = ("--lh_data_path", clips, "--batch_size", 1, "--update_freq", 1, "--log_interval", 1)
    flags = (*flags, "--alternation_steps", 1, "--epochs", 5, "--disable_eval_during_finetuning")
    flags = (*flags, "--num_workers", 1, "--max_bad_clips", 0.2, "--output_dir", clips / "run")
    # The validation list, which the test reads, must not name the bad clip.
    write_list(clips / "val_list_video.txt", [("c0.mp4", 0), ("c2.mp4", 1)])
    results = fork_run(*tiny_flags, *flags, ranks=2)
    assert [result.code for result in results] == [0, 0], results
    assert tries.read_text().split().count("c1.mp4") == 1


# -------------------------------------------------------------------------- threads and forks


def multiply():
    matrix = torch.full((800, 800), 1 / 800)
    return float((matrix @ matrix).sum())


@pytest.fixture
def threads():
    """This process has computed with two threads of torch, which do not survive a fork."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    multiply()
    yield
    torch.set_num_threads(before)


def test_forked_process_computes_though_its_parent_had_threads(threads):
    def compute():
        use_one_thread()
        return f"{multiply():.0f}"

    assert in_child(compute) == "800"


def test_killable_processes_compute_though_their_parent_had_threads(threads):
    results = work_through([0, 1], lambda item: f"{multiply():.0f}", str, 2, timeout=20)
    assert {text for finished in results for _, text in finished} == {"800"}


def test_loader_s_processes_compute_though_their_parent_had_threads(threads, clips, monkeypatch):
    read = ClipReader.read
    monkeypatch.setattr(ClipReader, "read", lambda *given: (multiply(), read(*given))[1])
    dataset = build_dataset("validation", clips, **SIZES)
    (batch,) = build_loader({"lh": dataset}, [[ClipKey("lh", 0, 2)]], 1, decode_timeout=20)
    assert not batch.bad and np.ndim(batch.frames) == 5
