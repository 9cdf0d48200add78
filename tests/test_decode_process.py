"""Clips that hang or crash the decoder, in the real loader with its worker processes."""

import ctypes
import multiprocessing
import os
import signal
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from conftest import draw_recording, write_list, write_video

from dataset import video_file, video_seek, worker_pool
from dataset.build import build_dataset, build_loader, evaluation_batches
from dataset.datasets import ClipKey
from dataset.decode_process import DecodeProcess
from dataset.loader import ClipError, DecodedClip
from dataset.processes import follow_the_parent
from utils import UserError

SIZES = {"clip_len": 4, "frame_sample_rate": 2, "crop_size": 32, "short_side_size": 36}
N_CLIPS = 10
TROUBLE = 3  # the clip that makes it


@pytest.fixture
def clips(tmp_path):
    """Ten clips in a training and a validation list; the fourth is not there yet."""
    names = [f"c{number}.mp4" for number in range(N_CLIPS)]
    for number, name in enumerate(names):
        if number != TROUBLE:
            write_video(tmp_path / "videos" / name, draw_recording(number, n_frames=20))
    for mode in ("train", "val"):
        write_list(tmp_path / f"{mode}_list_video.txt", [(name, n % 3) for n, name in enumerate(names)])
    return tmp_path


def batches_of(folder, mode, num_workers=2, timeout=1.0):
    dataset = build_dataset(mode, folder, num_sample=2, seed=3, **SIZES)
    keys = evaluation_batches({"lh": N_CLIPS}, 2, 0, 1)
    if mode == "train":
        keys = [[ClipKey("lh", pass_, key.clip) for key in batch] for pass_ in range(2) for batch in keys]
    return list(build_loader({"lh": dataset}, keys, num_workers, torch.cuda.is_available(), timeout))


def assert_equal_batches(first, second):
    """All but the reasons of bad clips."""
    for a, b in zip(first, second, strict=True):
        assert (a.hand, a.names) == (b.hand, b.names)
        assert [bad[:2] for bad in a.bad] == [bad[:2] for bad in b.bad]
        for name in ("labels", "frames", "clip_of_view", "erase_boxes", "rows"):
            assert torch.equal(getattr(a, name), getattr(b, name))


def reasons(batches):
    return {bad.name: bad.reason for batch in batches for bad in batch.bad}


@pytest.fixture(params=["train", "validation", "test"])
def mode_and_truth(request, clips):
    """A mode, and its batches without workers while the troublesome clip is simply missing."""
    return request.param, batches_of(clips, request.param, num_workers=0)


def test_fifo_counts_as_unreadable_and_no_other_sample_changes(clips, mode_and_truth):
    mode, truth = mode_and_truth
    os.mkfifo(clips / "videos" / f"c{TROUBLE}.mp4")
    batches = batches_of(clips, mode)
    assert_equal_batches(batches, truth)
    assert reasons(batches) == {f"c{TROUBLE}.mp4": "took longer than --decode_timeout 1 s"}


@pytest.fixture
def make_trouble(monkeypatch):
    """Makes the opening of one clip call a function, as if inside C while holding Python's lock."""

    def make(trouble):
        open_file = av.open

        def troublesome(path, *args, **kwargs):
            if str(path).endswith(f"c{TROUBLE}.mp4"):
                trouble()
            return open_file(path, *args, **kwargs)

        monkeypatch.setattr(av, "open", troublesome)

    return make


def put_clip(folder):
    write_video(folder / "videos" / f"c{TROUBLE}.mp4", draw_recording(TROUBLE, n_frames=20))


def test_decoder_that_sleeps_inside_c_is_replaced(clips, mode_and_truth, make_trouble):
    mode, truth = mode_and_truth
    put_clip(clips)
    make_trouble(lambda: ctypes.PyDLL(None).sleep(600))
    batches = batches_of(clips, mode)
    assert_equal_batches(batches, truth)
    assert reasons(batches) == {f"c{TROUBLE}.mp4": "took longer than --decode_timeout 1 s"}


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_decoder_that_takes_its_process_with_it_is_survived(clips, mode_and_truth, make_trouble, number):
    mode, truth = mode_and_truth
    put_clip(clips)
    make_trouble(lambda: os.kill(os.getpid(), number))
    batches = batches_of(clips, mode, timeout=30)
    assert_equal_batches(batches, truth)
    expected = f"ended the process that opened it, twice ({signal.Signals(number).name})"
    assert reasons(batches) == {f"c{TROUBLE}.mp4": expected}


def test_process_that_is_killed_once_from_outside_costs_no_clip(clips, make_trouble):
    put_clip(clips)
    truth = batches_of(clips, "train", num_workers=0)
    flag = clips / "killed"

    def once():
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    make_trouble(once)
    batches = batches_of(clips, "train", timeout=30)
    assert flag.exists()
    assert_equal_batches(batches, truth)
    assert reasons(batches) == {}


def test_clip_that_hung_once_is_not_waited_for_again(clips, make_trouble):
    put_clip(clips)
    tries = clips / "tries"

    def hang():
        with tries.open("a") as file:
            file.write("once\n")
        time.sleep(600)

    make_trouble(hang)
    dataset = build_dataset("train", clips, **SIZES)
    keys = [[ClipKey("lh", pass_, TROUBLE)] for pass_ in range(40)]
    batches = list(build_loader({"lh": dataset}, keys, 1, decode_timeout=0.5))
    assert len(batches) == 40
    assert all(batch.bad and {bad.name for bad in batch.bad} == {f"c{TROUBLE}.mp4"} for batch in batches)
    assert tries.read_text() == "once\n"


def test_known_bad_clips_are_not_even_opened(clips):
    put_clip(clips)
    dataset = build_dataset("train", clips, **SIZES)
    dataset.known_bad[f"c{TROUBLE}.mp4"] = "hung"
    sample = dataset.sample(ClipKey("lh", 0, TROUBLE))
    assert sample.name != f"c{TROUBLE}.mp4"
    assert sample.bad == (("lh", f"c{TROUBLE}.mp4", "hung"),)


@pytest.mark.parametrize("mode", ["train", "val"])
def test_hanging_clip_does_not_hang_a_run(run_main, tiny_flags, sample, tmp_path, mode):
    fifo = tmp_path / "stuck.mp4"
    os.mkfifo(fifo)
    for split, rows in (("train", sample.train["lh"]), ("val", sample.val["lh"])):
        rows = [(sample.path("lh") / "videos" / name, label) for name, label in rows]
        write_list(tmp_path / f"{split}_list_video.txt", rows + [(fifo, 1)] * (split == mode))
    flags = ("--lh_data_path", tmp_path, "--max_bad_clips", 0.1, "--output_dir", tmp_path / "run")
    result = run_main(*tiny_flags, *flags, "--num_workers", 2, "--decode_timeout", 1)
    assert result.code == 0, result.output
    (line,) = (tmp_path / "run" / f"{'bad_clips' if mode == 'train' else 'unreadable'}_lh.txt").open()
    assert line == f"{fifo}\ttook longer than --decode_timeout 1 s\n"


def test_signal_to_a_worker_that_is_just_starting_is_left_to_the_trainer(clips, monkeypatch):
    put_clip(clips)

    def struck():
        os.kill(os.getpid(), signal.SIGTERM)
        follow_the_parent()

    monkeypatch.setattr(worker_pool, "follow_the_parent", struck)
    assert len(batches_of(clips, "validation", timeout=30)) == N_CLIPS / 2


def leave_workers_behind(folder, batches):
    dataset = build_dataset("train", folder, **SIZES)
    batches.append(build_loader({"lh": dataset}, evaluation_batches({"lh": N_CLIPS}, 2, 0, 1), 2))
    next(batches[0])


def test_process_ends_though_nobody_told_its_workers_to(clips):
    process = multiprocessing.get_context("fork").Process(target=leave_workers_behind, args=(clips, []))
    process.start()
    process.join(30)
    try:
        assert process.exitcode == 0
    finally:
        process.kill()


# ------------------------------------------------------------------------------------ the process


def answer(frames):
    return DecodedClip(frames, np.arange(3), "note")


def test_answers_come_back_as_they_were():
    process = DecodeProcess(answer, 10**6, 10.0)
    for shape in ((4, 5, 3), (0, 5, 3), (100, 100, 100)):
        frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        reply = process.ask(frames)
        np.testing.assert_array_equal(reply.frames, frames)
        assert reply.note == "note"
        first = reply
    process.ask(np.zeros((100, 100, 100), np.uint8))
    assert first.frames.any()  # a later answer does not write over an earlier one


@pytest.mark.parametrize("kind", [ClipError, UserError])
def test_errors_that_mean_something_arrive_as_such(kind):
    def fail():
        raise kind("why")

    with pytest.raises(kind, match=r"^why$"):
        DecodeProcess(fail, 10, 10.0).ask()


def test_any_other_error_brings_its_traceback():
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        DecodeProcess(lambda: 1 / 0, 10, 10.0).ask()


def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_nothing_is_left_of_processes_that_hung():
    before = children()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    process = DecodeProcess(lambda: time.sleep(600), 10, 0.1)
    for _ in range(5):
        with pytest.raises(ClipError):
            process.ask()
    assert children() == before  # neither alive nor waiting to be buried
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_child_ends_with_its_parent():
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        process = DecodeProcess(lambda: answer(np.frombuffer(str(os.getpid()).encode(), np.uint8)), 20, 10.0)
        os.write(write, process.ask().frames.tobytes())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    child = int(os.read(read, 20))
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            return
        time.sleep(0.1)
    pytest.fail("the child lives on")


def test_one_thread_serves_decoder_opencv_and_torch(clips, monkeypatch):
    put_clip(clips)
    seen = clips / "threads"
    decode = video_file.decode

    def noted(stream, packets):
        threads = stream.codec_context.thread_count
        seen.write_text(f"{threads} {cv2.getNumThreads()} {torch.get_num_threads()}")
        return decode(stream, packets)

    monkeypatch.setattr(video_seek, "decode", noted)
    cv2.setNumThreads(2)
    torch.set_num_threads(2)
    try:
        batches_of(clips, "validation", num_workers=1, timeout=30)
    finally:
        cv2.setNumThreads(0)
        torch.set_num_threads(1)
    assert seen.read_text() == "1 1 1"
