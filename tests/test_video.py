"""Frame i of every kind of file, by the number that its encoder was given to draw."""

import ast
import itertools
import os
import shutil
import signal
import subprocess

import av
import numpy as np
import pytest
from av.stream import Disposition
from conftest import ROOT
from numbered_videos import (
    KINDS,
    N_FRAMES,
    SIZE,
    draw_number,
    first_number,
    read_numbers,
    rewrite_packets,
    set_display_matrix,
    write_numbered,
)

from dataset import video
from dataset.loader import ClipError, ClipReader
from scripts.data.cut_clips import ClipCutter, Cut, CutJob
from scripts.tools.annotate_video import Caption, annotate_video
from scripts.tools.video_stream import decode_all

READER = ClipReader()


def windows(n_frames, count, seed=0):
    """Index arrays such as training, test and users ask for: windows, single frames, repeated, unsorted."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        start, stride = rng.integers(n_frames), rng.integers(1, 5)
        yield np.minimum(start + stride * np.arange(rng.integers(1, 17)), n_frames - 1)
        yield rng.integers(0, n_frames, rng.integers(1, 6))
    yield np.array([[n_frames - 1, 0], [0, n_frames // 2]])


def read(path, wanted):
    """The numbers of wanted frames in the order asked for, and how many frames the file is said to have."""
    lengths = []
    clip = READER.read(str(path), 0, lambda n: (lengths.append(n), wanted)[1])
    numbers = np.array(read_numbers(clip.frames))
    return numbers[clip.indices].tolist(), lengths[-1]


def check_windows(path, first, n_frames, count, seed=0):
    for wanted in windows(n_frames, count, seed):
        assert read(path, wanted) == ((wanted + first).tolist(), n_frames)


@pytest.mark.parametrize("name", KINDS)
def test_frame_i_is_frame_i_in_every_kind_of_file(numbered_file, name):
    first = first_number(name)
    check_windows(numbered_file(name), first, N_FRAMES - first, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many_more_windows(numbered_file, name):
    first = first_number(name)
    check_windows(numbered_file(name), first, N_FRAMES - first, 100, seed=1)


@pytest.mark.parametrize("name", KINDS)
def test_bytes_are_read_as_the_file_is(numbered_file, name):
    first, wanted = first_number(name), np.array([40, 7, 33])
    clip = video.read_chosen(numbered_file(name).read_bytes(), lambda n: wanted)
    assert read_numbers(clip.frames[clip.positions]) == (wanted + first).tolist()


@pytest.mark.parametrize("name", KINDS)
def test_tools_see_the_same_frames(numbered_file, name, tmp_path):
    path, first = numbered_file(name), first_number(name)
    numbers = list(range(first, N_FRAMES))
    assert video.count_frames(path) == len(numbers)
    assert read_numbers(decode_all(path)) == numbers  # predict, extract_features

    cut = Cut(tmp_path / "cut.mp4", 21, 29)  # prepare
    result = ClipCutter(short_side=SIZE[0], keyframe_interval=1, crf=20)(CutJob(path, (cut,)))
    assert (result.made, result.problems, result.failure) == (1, {}, "")
    assert read(cut.path, np.arange(8)) == (numbers[21:29], 8)

    seen = []
    annotate_video(path, tmp_path / "copy.mp4", lambda number: (seen.append(number), CAPTIONS)[1])
    assert seen == list(range(len(numbers)))
    assert read_numbers(decode_all(tmp_path / "copy.mp4")) == numbers


CAPTIONS = (Caption("left hand", "hold", 0.5),)


def test_only_files_without_stored_times_are_decoded_from_the_start(numbered_file):
    sequential = {name for name in KINDS if video.read_chosen(numbered_file(name), np.arange).is_sequential}
    assert sequential == {
        *("h264_b.avi", "h264.avi", "h264_open.avi", "asp_b.avi", "mpeg2.avi"),
        *("h264_b.mpg", "mpeg2.mpg", "h264_b.h264", "h264_interlaced.ts"),
    }
    notes = {
        name: READER.read(str(numbered_file(name)), 0, lambda n: np.array([0])).note
        for name in ("asp_b.avi", "asp.avi")
    }
    assert notes["asp.avi"] == ""
    assert notes["asp_b.avi"].startswith("some .avi files are slow to read")


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("ffmpeg") is None and "REQUIRE_FFMPEG" not in os.environ, reason="needs the program ffmpeg"
)
@pytest.mark.parametrize("name", KINDS)
def test_ffmpeg_shows_the_same_frames(numbered_file, name):
    path = numbered_file(name)
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-i",
        path,
        "-fps_mode",
        "passthrough",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    shown = np.frombuffer(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout, np.uint8)
    frames = shown.reshape(-1, *KINDS[name][1].get("size", SIZE), 3)
    clip = video.read_chosen(path, np.arange)
    assert read_numbers(clip.frames) == read_numbers(frames)
    assert np.abs(clip.frames.astype(int) - frames).mean() < 3  # scalers of two versions


# ----------------------------------------------------------------------------- hidden frames, display


def test_hidden_vp8_frames_are_not_counted(tmp_path):
    shown = [draw_number(number) for number in range(N_FRAMES)]
    with_hidden = [*shown[:20], draw_number(999), *shown[20:]]
    source = write_numbered(
        tmp_path / "all.webm", "libvpx", frames=with_hidden, options=KINDS["vp8.webm"][1]["options"]
    )

    def hide(number, data):
        return bytes([data[0] & ~16]) + data[1:] if number == 20 else data

    path = rewrite_packets(source, tmp_path / "hidden.webm", hide)
    check_windows(path, 0, N_FRAMES, 4)


def test_hidden_vp9_frames_are_not_counted(tmp_path):
    shown = [draw_number(number) for number in range(N_FRAMES)]
    with_hidden = [*shown[:30], draw_number(999), *shown[30:]]
    options = {
        **KINDS["vp9.webm"][1]["options"],
        "keyint_min": "30",
        "auto-alt-ref": "0",
        "lag-in-frames": "0",
    }
    source = write_numbered(tmp_path / "all.webm", "libvpx-vp9", frames=with_hidden, options=options)

    def hide(number, data):
        assert number != 30 or data[0] == 0b10000010  # a keyframe that is shown
        return bytes([0b10000000]) + data[1:] if number == 30 else data

    path = rewrite_packets(source, tmp_path / "hidden.webm", hide)
    check_windows(path, 0, N_FRAMES, 4)


@pytest.mark.parametrize("ending", ["avi", "mp4"])
def test_mpeg4_packets_that_say_nothing_changed_show_no_frame(tmp_path, ending):
    source = write_numbered(tmp_path / "all.mp4", "mpeg4", options=KINDS["asp.avi"][1]["options"])
    # A P picture's header at 25 per second, up to its bit `coded`, which is 0.
    empty = bytes.fromhex("000001b6") + bytes([0b01010000, 0b01010111])
    path = rewrite_packets(
        source, tmp_path / f"skips.{ending}", lambda i, data: empty if i in (17, 31) else data
    )
    clip = video.read_chosen(path, np.arange)
    numbers = read_numbers(clip.frames)
    assert len(numbers) == N_FRAMES - 2
    assert [b - a for a, b in itertools.pairwise(numbers)].count(2) == 2
    for wanted in ([40], [16, 17, 18], [57, 3]):
        assert read(path, np.array(wanted)) == ([numbers[i] for i in wanted], N_FRAMES - 2)


MATRICES = {  # how (x, y) is shown: (a, b, c, d), and the stored form of a frame that is shown upright
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "upside down and mirrored": ((1, 0, 0, -1), np.flipud),
    "half a turn": ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
    "a quarter clockwise": ((0, 1, -1, 0), lambda frame: np.rot90(frame, 1)),
    "a quarter back": ((0, -1, 1, 0), lambda frame: np.rot90(frame, -1)),
    "transposed": ((0, 1, 1, 0), lambda frame: frame.transpose(1, 0, 2)),
    "transposed over the other diagonal": (
        (0, -1, -1, 0),
        lambda frame: np.rot90(frame, 2).transpose(1, 0, 2),
    ),
}


@pytest.mark.parametrize("name", MATRICES)
def test_display_matrix_is_applied_by_every_reader(tmp_path, name):
    linear, stored = MATRICES[name]
    frames = [stored(draw_number(number)) for number in range(12)]
    plain = write_numbered(tmp_path / "plain.mp4", frames=frames, options=KINDS["h264_b.mp4"][1]["options"])
    path = set_display_matrix(plain, tmp_path / "turned.mp4", linear)
    assert READER.read(str(path), 0, np.arange).frames.shape[1:3] == SIZE
    assert read(path, np.array([7, 0, 11])) == ([7, 0, 11], 12)
    assert read_numbers(decode_all(path)) == list(range(12))
    cut = Cut(tmp_path / "cut.mp4", 3, 9)
    ClipCutter(short_side=SIZE[0], keyframe_interval=1, crf=20)(CutJob(path, (cut,)))
    assert read(cut.path, np.arange(6)) == (list(range(3, 9)), 6)
    annotate_video(path, tmp_path / "copy.mp4", lambda number: CAPTIONS)
    assert read_numbers(decode_all(tmp_path / "copy.mp4")) == list(range(12))


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
@pytest.mark.parametrize("main", [0, 1])
def test_the_main_of_several_streams_is_read(tmp_path, ending, main):
    path = tmp_path / f"two.{ending}"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25, options={"crf": crf}) for crf in ("24", "10")]
        for number, stream in enumerate(streams):
            stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
            stream.disposition = Disposition.default if number == main else Disposition(0)
        for number in range(30):
            for offset, stream in enumerate(streams):
                picture = draw_number(number + 1000 * offset)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert container.streams.best("video").index == main
    check_windows(path, 1000 * main, 30, 3)
    assert read_numbers(decode_all(path)) == list(range(1000 * main, 1000 * main + 30))


def write_with_cover(path, with_video):
    with av.open(str(path), "w", format="mp4") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        stream = (
            container.add_stream("libx264", rate=25) if with_video else container.add_stream("aac", rate=8000)
        )
        if with_video:
            stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        container.mux(
            cover.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24"))
        )
        container.mux(cover.encode(None))
        for number in range(20):
            if with_video:
                frame = av.VideoFrame.from_ndarray(draw_number(number), format="rgb24")
            else:
                frame = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
                )
                frame.sample_rate = 8000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_cover_art_is_not_the_video(tmp_path):
    check_windows(write_with_cover(tmp_path / "film.mp4", True), 0, 20, 3)
    with pytest.raises(ClipError, match="holds no video"):
        read(write_with_cover(tmp_path / "song.mp4", False), np.array([0]))


# --------------------------------------------------------------------------------------------- forks


def conversions():
    """(file, line) of every conversion of a frame in the product, but for the one that all should use."""
    for path in [ROOT / "utils.py", *ROOT.glob("dataset/*.py"), *ROOT.glob("scripts/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node.func, "attr", "") if isinstance(node, ast.Call) else ""
            if name == "reformat" or (name == "to_ndarray" and (node.args or node.keywords)):
                yield path.name, node.lineno


def test_all_frames_are_converted_in_one_place():
    ((file, _),) = conversions()
    assert file == "frame_scaler.py"


def test_forked_processes_decode_and_encode_though_their_parent_did(numbered_file, tmp_path):
    """With PyAV 19, whose scalers keep threads, a child would wait for those of its parent."""
    path = numbered_file("h264_b.mp4")
    with av.open(str(path)) as container:
        next(container.decode(video=0)).to_ndarray(format="rgb24")  # with threads, as users' programs do
    cut = Cut(tmp_path / "cut.mp4", 21, 29)

    def work():
        assert read(path, np.array([7])) == ([7], N_FRAMES)
        annotate_video(path, tmp_path / "copy.mp4", lambda number: CAPTIONS)
        ClipCutter(short_side=48, keyframe_interval=1, crf=20)(CutJob(path, (cut,)))
        cut.path.unlink()

    work()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
