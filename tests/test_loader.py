"""Decoding against PyAV's plain reading of whole files, and files that cannot be read."""

from pathlib import Path

import av
import numpy as np
import pytest
from conftest import draw_recording, write_video

from dataset.loader import ClipError, decode_frames

REAL = Path(__file__).parent / "clips" / "h264_340x256.mp4"


def every_frame(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def real_frames():
    return every_frame(REAL)


@pytest.mark.parametrize(
    "wanted",
    [[0], [279], [0, 4, 8, 12], [7, 7, 7], [200, 3, 279, 3, 150], [[5, 9], [9, 131]], list(range(100, 140))],
)
def test_wanted_frames_of_a_real_file_are_the_right_ones(real_frames, wanted):
    lengths = []
    frames, positions, _ = decode_frames(str(REAL), lambda n: (lengths.append(n), np.array(wanted))[1])
    assert lengths == [len(real_frames)] == [280]
    assert positions.shape == np.shape(wanted)
    assert len(frames) == len(np.unique(wanted))
    assert frames.dtype == np.uint8
    truth = real_frames[np.array(wanted)]
    error = np.abs(frames[positions].astype(int) - truth)
    assert error.mean() < 1.5
    # Neighbours of this file differ by more than two decoders do: no frame is off by one.
    for index, frame in zip(np.ravel(wanted), frames[positions.ravel()], strict=True):
        near = range(max(0, index - 2), min(280, index + 3))
        distances = {i: np.abs(frame.astype(int) - real_frames[i]).mean() for i in near}
        assert min(distances, key=distances.get) == index


def test_frames_are_rgb(tmp_path):
    red = np.zeros((6, 64, 64, 3), np.uint8)
    red[..., 0] = 230
    write_video(tmp_path / "red.mp4", red)
    frames, _, _ = decode_frames(str(tmp_path / "red.mp4"), lambda n: np.arange(n))
    assert frames.shape == red.shape
    assert np.abs(frames.astype(int) - red).max() < 12


@pytest.mark.parametrize("width", [48, 96, 144, 64, 146])
def test_every_picture_width_is_read_right(tmp_path, width):
    source = draw_recording(3, height=80, width=width, n_frames=12)
    path = tmp_path / "narrow clip.mp4"
    write_video(path, source)
    frames, positions, _ = decode_frames(str(path), lambda n: np.array([n - 1, 0, 5]))
    assert positions.tolist() == [2, 0, 1]
    truth = every_frame(path)[[0, 5, 11]]
    assert frames.shape == truth.shape
    assert np.abs(frames.astype(int) - truth).mean() < 1.5


def test_one_frame_is_a_video(tmp_path):
    write_video(tmp_path / "still.mp4", draw_recording(0, n_frames=1))
    frames, positions, _ = decode_frames(str(tmp_path / "still.mp4"), lambda n: np.zeros(n + 3, int))
    assert frames.shape == (1, 48, 64, 3)
    assert positions.tolist() == [0, 0, 0, 0]


def unreadable(kind, folder):
    path = folder / f"{kind}.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not a video\n" * 1000)
    elif kind == "folder":
        path.mkdir()
    elif kind == "headless":
        path.write_bytes(REAL.read_bytes()[:100_000])  # its index is at the end
    elif kind == "scrambled":
        rng = np.random.default_rng(0)
        path.write_bytes(REAL.read_bytes()[:40] + rng.bytes(50_000))
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "folder", "headless", "scrambled"])
def test_unreadable_file_is_a_clip_error_of_one_line(tmp_path, kind):
    path = unreadable(kind, tmp_path)
    with pytest.raises(ClipError) as error:
        decode_frames(str(path), lambda n: np.arange(n))
    assert str(error.value).strip()
    assert "\n" not in str(error.value)


def test_file_that_breaks_off_while_decoding_is_a_clip_error(tmp_path):
    # The index is whole and promises 280 frames; what they are made of is gone.
    data = bytearray(REAL.read_bytes())
    start = data.index(b"mdat") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big")
    data[start + 2000 : start + length - 8] = bytes(length - 2008)
    path = tmp_path / "broken.mp4"
    path.write_bytes(data)
    with pytest.raises(ClipError):
        decode_frames(str(path), lambda n: np.array([150, 270]))
