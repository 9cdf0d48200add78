"""decord, where it is asked for, against the product's own reader; folders of images."""

import fractions
import logging
import struct
from pathlib import Path

import av
import decord
import numpy as np
import pytest
from conftest import draw_recording, write_list
from numbered_videos import write_numbered

from dataset import build
from dataset.build import build_dataset, build_loader, evaluation_batches
from dataset.loader import ClipError, ClipReader, decode_frames

CLIPS = Path(__file__).parent / "clips"
BACKENDS = ("decord", "pyav")
N_FRAMES = 40
SIDE = 12  # of a square that stands for one bit of the frame's number


def read(source, choose, backend):
    """Decodes frames; a failure of decord, which depends on the processor, skips the test."""
    try:
        return decode_frames(source, choose, backend)
    except ClipError as error:
        if str(error).startswith(("decord cannot read it", "decord misreads it:")):
            pytest.skip(f"decord fails on this processor: {error}")
        raise


def all_frames(path, backend):
    return read(str(path), np.arange, backend).frames


def numbered(height, width):
    """Real-looking frames that carry their number as black and white squares."""
    frames = draw_recording(7, height, width, N_FRAMES)
    noise = np.random.default_rng(0).integers(0, 25, (1, height // 8 + 1, width // 8 + 1, 3), np.uint8)
    frames = frames // 2 + noise.repeat(8, 1).repeat(8, 2)[:, :height, :width] + 50
    for number, frame in enumerate(frames):
        for bit in range(6):
            frame[:SIDE, bit * SIDE : (bit + 1) * SIDE] = 255 * (number >> bit & 1)
    return frames


def number_of(frame):
    centres = frame[SIDE // 2, SIDE // 2 : 6 * SIDE : SIDE].mean(axis=-1)
    return sum(1 << bit for bit, value in enumerate(centres) if value > 128)


def encode(path, codec, height=120, width=160, pix_fmt="yuv420p", options=None, times=None):
    """Writes numbered frames; `times` are milliseconds, at irregular distances if need be."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        stream.options = options or {}
        stream.codec_context.thread_count = 1
        clock = fractions.Fraction(1, 1000)
        if times is not None:
            stream.codec_context.time_base = clock
        for i, picture in enumerate(numbered(height, width)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = int(times[i]), clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


QUIET = {"x265-params": "log-level=none"}
IRREGULAR = np.cumsum(np.random.default_rng(0).integers(10, 120, N_FRAMES))
EQUAL = {  # 8 bits, even sizes: the same bytes
    "h264.mp4": ("libx264", {}),
    "h264_b_frames.mp4": ("libx264", {"options": {"bf": "3", "g": "12"}}),
    "h264_full_range.mp4": ("libx264", {"pix_fmt": "yuvj420p"}),
    "h264_irregular.mp4": ("libx264", {"times": IRREGULAR}),
    "h264_irregular.mkv": ("libx264", {"times": IRREGULAR}),
    "h264_odd_444.mp4": ("libx264", {"height": 121, "width": 159, "pix_fmt": "yuv444p"}),
    "hevc.mp4": ("libx265", {"options": QUIET}),
    "vp9.webm": ("libvpx-vp9", {"options": {"cpu-used": "8", "deadline": "realtime"}}),
    "av1.mp4": ("libsvtav1", {"options": {"preset": "12"}}),
    "mpeg4.mp4": ("mpeg4", {"options": {"q:v": "3"}}),
    "motion_jpeg.mov": ("mjpeg", {"pix_fmt": "yuvj420p"}),
}
CLOSE = {  # 10 bits are rounded, and the chroma of odd sizes interpolated, differently
    "h264_10_bit.mp4": ("libx264", {"pix_fmt": "yuv420p10le"}),
    "hevc_10_bit.mp4": ("libx265", {"pix_fmt": "yuv420p10le", "options": QUIET}),
    "odd.webm": ("libvpx-vp9", {"height": 121, "width": 159, "options": {"cpu-used": "8"}}),
    "odd.mp4": ("mpeg4", {"height": 121, "width": 159}),
}


@pytest.mark.parametrize("name", [*EQUAL, *CLOSE])
def test_decoders_agree_on_encoded_files(tmp_path, name):
    codec, settings = (EQUAL | CLOSE)[name]
    encode(tmp_path / name, codec, **settings)
    first, second = (all_frames(tmp_path / name, backend) for backend in BACKENDS)
    assert (
        first.shape == second.shape == (N_FRAMES, settings.get("height", 120), settings.get("width", 160), 3)
    )
    for frames in (first, second):
        assert [number_of(frame) for frame in frames] == list(range(N_FRAMES))
    difference = np.abs(first.astype(int) - second)
    assert difference.max() == 0 if name in EQUAL else 0 < difference.mean() < 8


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["h264_b_frames.mp4", "h264_irregular.mp4", "mpeg4.mp4"])
def test_single_frames_are_those_of_the_whole(tmp_path, backend, name):
    codec, settings = EQUAL[name]
    encode(tmp_path / name, codec, **settings)
    wanted = np.array([[31, 2], [17, 31]])
    frames, positions, _ = read(str(tmp_path / name), lambda n: wanted, backend)
    assert [number_of(frame) for frame in frames] == [2, 17, 31]
    assert positions.tolist() == [[2, 0], [1, 2]]


@pytest.mark.parametrize("name", ["h264_340x256.mp4"])
def test_decoders_agree_on_files_from_elsewhere(name):
    first, second = (all_frames(CLIPS / name, backend) for backend in BACKENDS)
    np.testing.assert_array_equal(first, second)


def test_rotation_is_applied_by_both():
    first, second = (all_frames(CLIPS / "video_90.mov", backend) for backend in BACKENDS)
    assert first.shape == second.shape == (3, 568, 320, 3)
    np.testing.assert_array_equal(first, second)


def with_rotation(path, degrees):
    """The MP4 file with the display matrix of a clockwise rotation in its track header."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    matrix = header + 4 + (32 if data[header] else 20) + 16
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    entries = (cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30)
    data[matrix : matrix + 36] = struct.pack(">9i", *entries)
    rotated = path.with_stem(f"rotated_{degrees}")
    rotated.write_bytes(data)
    return rotated


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_every_rotation_shows_the_picture_upright(tmp_path, degrees):
    encode(tmp_path / "plain.mp4", "libx264")
    path = with_rotation(tmp_path / "plain.mp4", degrees)
    upright = np.rot90(all_frames(tmp_path / "plain.mp4", "pyav"), -degrees // 90, axes=(1, 2))
    for backend in BACKENDS:
        np.testing.assert_array_equal(all_frames(path, backend), upright)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_damaged_file_is_a_clip_error_in_one_line(backend):
    with pytest.raises(ClipError) as error:
        all_frames(CLIPS / "corrupted.mp4", backend)
    assert "\n" not in str(error.value) and "/" not in str(error.value)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_bytes_are_decoded_like_the_file(backend):
    path = CLIPS / "h264_340x256.mp4"

    def wanted(n):
        return np.array([n - 1, 3])

    frames, positions, _ = read(path.read_bytes(), wanted, backend)
    np.testing.assert_array_equal(frames, read(str(path), wanted, backend).frames)
    assert positions.tolist() == [1, 0]


SIZES = {"clip_len": 4, "frame_sample_rate": 2, "crop_size": 32, "short_side_size": 36}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_slow_kinds_of_files_are_named_once(tmp_path, num_workers, caplog):
    names = ["a.mp4", "b.avi", "c.avi", "d.mpg"]
    for name in names:
        write_numbered(tmp_path / name, options={"bf": "2"})
    write_list(tmp_path / "val_list_video.txt", [(name, 0) for name in names])
    build._say_once.cache_clear()
    dataset = build_dataset("validation", tmp_path, **SIZES)
    keys = evaluation_batches({"lh": 4}, 1, 0, 1)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            batches = list(build_loader({"lh": dataset}, keys, num_workers))
    assert [len(batch.frames) for batch in batches] == [1, 1, 1, 1]
    notes = [record.message for record in caplog.records if "slow to read" in record.message]
    assert [note.split()[1] for note in notes] == [".avi", ".mpg"]


def test_backends(monkeypatch):
    def wanted(n):
        return np.array([3])

    path = str(CLIPS / "h264_340x256.mp4")
    with monkeypatch.context() as patch:
        patch.setattr(decord, "VideoReader", lambda *args, **kwargs: pytest.fail("decord was asked"))
        for backend in ("auto", "pyav"):
            assert decode_frames(path, wanted, backend).frames.shape == (1, 256, 340, 3)
    asked = []
    reader = decord.VideoReader
    monkeypatch.setattr(
        decord, "VideoReader", lambda *args, **kwargs: (asked.append(1), reader(*args, **kwargs))[1]
    )
    decode_frames(path, wanted, "decord")
    assert asked


# ------------------------------------------------------------------------------ folders of frames


@pytest.fixture
def frame_folders(tmp_path):
    """The same frames as pictures without loss and as their numbers."""
    from PIL import Image

    truth = numbered(60, 80)
    folder = tmp_path / "videos" / "take 1"
    folder.mkdir(parents=True)
    for number, frame in enumerate(truth):
        Image.fromarray(frame).save(folder / f"frame{number + 3:03d}.png")
    (tmp_path / "train_list_video.txt").write_text(f"take 1 {N_FRAMES} 2\n")
    (tmp_path / "val_list_video.txt").write_text(f"take 1,{N_FRAMES},2\n")
    return tmp_path, truth


def test_folder_of_frames_is_a_clip(frame_folders):
    root, truth = frame_folders
    reader = ClipReader(fname_tmpl="frame{:03}.png", start_idx=3)
    place = str(root / "videos" / "take 1")
    frames, positions, note = reader.read(place, N_FRAMES, lambda n: np.array([n - 1, 0, 5, 0]))
    np.testing.assert_array_equal(frames, truth[[0, 5, N_FRAMES - 1]])
    assert positions.tolist() == [2, 0, 1, 0]
    assert not note

    sample = build_dataset("validation", root, reader=reader, num_classes=3, **SIZES)[0]
    assert (sample.name, sample.label, sample.frames.shape) == ("take 1", 2, (1, 4, 32, 32, 3))
    assert build_dataset("train", root, reader=reader, **SIZES)[0].frames.shape == (1, 4, 32, 32, 3)


def test_missing_and_damaged_pictures_are_named(frame_folders):
    root, _ = frame_folders
    folder = root / "videos" / "take 1"
    reader = ClipReader(fname_tmpl="frame{:03}.png", start_idx=3)

    def reason(n_frames, wanted):
        with pytest.raises(ClipError) as error:
            reader.read(str(folder), n_frames, lambda n: np.array([wanted]))
        return str(error.value)

    assert reason(N_FRAMES + 1, N_FRAMES) == "frame043.png: No such file or directory"
    (folder / "frame003.png").write_bytes(b"")
    (folder / "frame004.png").write_text("text")
    assert reason(N_FRAMES, 0) == "frame003.png: is no picture"
    assert reason(N_FRAMES, 1) == "frame004.png: is no picture"


def test_pictures_of_several_sizes_are_no_clip(frame_folders):
    from PIL import Image

    root, _ = frame_folders
    Image.new("RGB", (40, 60)).save(root / "videos" / "take 1" / "frame004.png")
    reader = ClipReader(fname_tmpl="frame{:03}.png", start_idx=3)
    with pytest.raises(ClipError, match=r"frame004\.png: has another size than frame003\.png"):
        reader.read(str(root / "videos" / "take 1"), N_FRAMES, lambda n: np.array([0, 1]))


@pytest.mark.parametrize("template", ["img.jpg", "img_{:05", "img_{}_{}.jpg", "{name}.jpg"])
def test_template_without_a_number_is_refused(template):
    with pytest.raises(ValueError, match="--fname_tmpl"):
        ClipReader(fname_tmpl=template)
