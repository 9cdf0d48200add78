"""Windows over a stream of frames: which frames they have, what is kept, and what each frame looks like."""

import argparse
import threading
import weakref

import numpy as np
import pytest
from conftest import ROOT

from dataset.loader import ClipError, decode_frames
from dataset.sampling import validation_indices
from dataset.video_transforms import ValidationTransform
from scripts.tools import video_stream
from scripts.tools.sliding_windows import LastFrames, WindowRule, centred_windows, covering_windows
from scripts.tools.video_stream import CHUNK, CHUNKS_AHEAD, decode_all, run_ahead, stream_views
from utils import UserError

CLIPS = ROOT / "tests" / "clips"
SHAPES = [(n, span, stride) for n in (1, 3, 7, 8, 9, 16, 25) for span in (1, 4, 8) for stride in (1, 3, 8)]


def numbers(windows):
    """[(start, stop, frame numbers)] of windows over frames that are their own numbers."""
    return [(start, stop, [int(view) for view in views]) for start, stop, views in windows]


def evenly(span, points):
    """Frames of a window as the published sampling has them: both ends, truncated."""
    step = span / (points - 1) if points > 1 else 0
    return [min(int(k * step + 1e-9), span - 1) for k in range(points)]


# -------------------------------------------------------------------------------- which frames


@pytest.mark.parametrize(("n", "span", "stride"), SHAPES)
def test_windows_cover_the_video_and_lie_in_it(n, span, stride):
    stride = min(stride, span)
    found = numbers(covering_windows(iter(np.arange(n)), WindowRule(span, 4, "stretch"), stride))
    if n < span:
        assert found == [(0, n, evenly(n, 4))]
        return
    starts = list(range(0, n - span + 1, stride))
    starts += [n - span] * (starts[-1] != n - span)
    assert found == [(start, start + span, [start + k for k in evenly(span, 4)]) for start in starts]
    assert set(range(n)) == {frame for start, stop, _ in found for frame in range(start, stop)}


@pytest.mark.parametrize(("n", "span", "stride"), SHAPES)
def test_centred_windows_repeat_the_first_and_last_frame(n, span, stride):
    found = numbers(centred_windows(iter(np.arange(n)), WindowRule(span, 4), stride))
    assert [start + span // 2 for start, _, _ in found] == list(range(0, n, stride))
    for start, stop, frames in found:
        assert stop - start == span
        assert frames == [min(max(start + k, 0), n - 1) for k in evenly(span, 4)]


@pytest.mark.parametrize("short_clips", ["published", "stretch"])
@pytest.mark.parametrize("n", range(1, 9))
def test_video_up_to_a_window_is_seen_as_in_validation(n, short_clips):
    rule = WindowRule(8, 4, short_clips)
    (window,) = numbers(covering_windows(iter(np.arange(n)), rule, 2))
    assert window[2] == validation_indices(n, 4, 2, short_clips).tolist()


def test_window_of_a_longer_video_is_seen_as_in_validation():
    found = numbers(covering_windows(iter(np.arange(21)), WindowRule(8, 4), 1))
    assert found[(21 - 8) // 2][2] == validation_indices(21, 4, 2).tolist()


def test_no_frames_give_no_windows():
    for cut in (covering_windows, centred_windows):
        assert list(cut(iter(()), WindowRule(8, 4), 2)) == []


def of_run(window=None, sampling_rate=None, **settings):
    run = {"num_frames": 16, "sampling_rate": 4, "short_clips": "published", "sparse_sample": False}
    return WindowRule.of_run(argparse.Namespace(**{**run, **settings}), window, sampling_rate)


def test_window_is_the_run_s_unless_another_is_given():
    assert of_run().span == 64 and of_run(sampling_rate=2).span == 32 and of_run(window=50).span == 50
    assert of_run(window=50).of_window()[[0, -1]].tolist() == [0, 49]


def test_model_of_whole_clips_needs_a_window():
    with pytest.raises(UserError, match=r"--window is needed.*--sparse_sample"):
        of_run(sparse_sample=True)
    rule = of_run(window=80, sparse_sample=True)
    assert rule.of_window().tolist() == list(range(2, 80, 5))  # the middle of each of 16 segments
    assert rule.of_short_video(32).tolist() == list(range(1, 32, 2))


# ------------------------------------------------------------------------------- what is kept


class Frame:
    """What can be referred to weakly."""


@pytest.mark.parametrize("cut", [covering_windows, centred_windows])
@pytest.mark.parametrize("n", [60, 600])
def test_only_frames_of_one_window_are_kept(cut, n):
    alive, most = weakref.WeakSet(), 0

    def frames():
        for _ in range(n):
            frame = Frame()
            alive.add(frame)
            yield frame

    for window in cut(frames(), WindowRule(24, 4), 5):
        most = max(most, len(alive))
        del window
    assert 24 <= most <= 26  # a window, the frame that comes, and the one just given


def test_forgotten_frame_is_an_error():
    kept = LastFrames(3)
    for number in range(5):
        kept.add(np.array(number))
    assert [int(frame) for frame in kept.take(np.array([2, 4]))] == [2, 4]
    for wanted in (1, 5):
        with pytest.raises(IndexError):
            kept.take(np.array([wanted]))


# ------------------------------------------------------------------------------------ decoding


@pytest.mark.parametrize("name", ["h264_340x256.mp4", "mpeg4.avi", "video_90.mov", "unordered.mov"])
def test_streamed_views_are_those_of_the_validation(name):
    transform = ValidationTransform(36, 32)
    every_frame = decode_frames(str(CLIPS / name), np.arange).frames
    chunks = list(stream_views(CLIPS / name, transform))
    assert {len(chunk) for chunk in chunks[:-1]} <= {CHUNK}
    assert np.array_equal(np.concatenate(chunks), transform(every_frame))


def test_threads_of_the_decoder_change_no_frame():
    frames = [np.stack(list(decode_all(CLIPS / "mpeg4.avi", threads))) for threads in (1, 2)]
    assert np.array_equal(*frames)


def test_damaged_video_gives_its_frames_and_then_the_error():
    frames = []
    with pytest.raises(ClipError, match=r"^frame \d+ is damaged or missing: Invalid data"):
        for chunk in stream_views(CLIPS / "corrupted.mp4", ValidationTransform(36, 32)):
            frames += list(chunk)
    assert frames


@pytest.mark.parametrize("content", [None, b"", b"no video"])
def test_what_is_no_video_is_an_error(tmp_path, content):
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    for read in (lambda: list(decode_all(path)), lambda: video_stream.read_facts(path)):
        with pytest.raises(ClipError):
            read()


# --------------------------------------------------------------------------------- the thread


def test_items_are_made_ahead_and_no_further():
    made, enough = [], threading.Event()

    def items():
        for number in range(100):
            made.append(number)
            if len(made) > CHUNKS_AHEAD:
                enough.set()
            yield number

    ahead = run_ahead(items(), CHUNKS_AHEAD)
    assert next(ahead) == 0
    assert enough.wait(10)  # the thread goes on while nobody asks
    assert len(made) <= CHUNKS_AHEAD + 1
    assert list(ahead) == list(range(1, 100))


def test_error_comes_in_its_place():
    def items():
        yield from range(3)
        raise ClipError("frame 3")

    got = []
    with pytest.raises(ClipError, match="frame 3"):
        for item in run_ahead(items(), 8):
            got.append(item)
    assert got == [0, 1, 2]


def test_closing_ends_the_thread():
    ahead = run_ahead(iter(range(10**9)), 4)
    next(ahead)
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
