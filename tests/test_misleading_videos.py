"""Files that say something false of their own frames: no reader believes them."""

import struct

import av
import numpy as np
import pytest
from numbered_videos import N_FRAMES, draw_number, read_numbers, write_numbered

from dataset import video
from dataset.loader import ClipError, ClipReader
from scripts.tools.video_stream import decode_all

WINDOWS = ([5], [25, 26, 27, 28], [59, 3], [11], [40], list(range(0, 60, 4)))
ASP = {"g": "12", "q:v": "3"}


def check(source, numbers):
    """Frame i carries numbers[i], by random access and from the first to the last."""
    assert read_numbers(map(video.to_rgb, video.iterate_frames(source))) == numbers
    for wanted in WINDOWS:
        wanted = np.minimum(wanted, len(numbers) - 1)
        clip = video.read_chosen(source, lambda n, wanted=wanted: wanted)
        assert read_numbers(clip.frames[clip.positions]) == [numbers[i] for i in wanted]


def copy_packets(source, target, change=lambda packets: None, name=""):
    """Copies a video's packets, after `change` has set their times."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        packets = [packet for packet in reader.demux(stream) if packet.size]
        change(packets)
        for packet in packets:
            packet.stream = copy
            writer.mux(packet)
    return target


@pytest.mark.parametrize("codec", ["wmv2", "msmpeg4v2", "msmpeg4", "flv"])
def test_avi_without_its_index_calls_every_frame_a_keyframe(tmp_path, codec):
    path = write_numbered(tmp_path / "whole.avi", codec, options={"g": "20", "b": "1M"})
    data = path.read_bytes()
    check(data[: data.index(b"idx1")], list(range(N_FRAMES)))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.3gp"])
def test_mp4_without_a_list_of_keyframes_calls_every_frame_one(tmp_path, name):
    data = write_numbered(tmp_path / name, "mpeg4", options=ASP).read_bytes()
    assert data.count(b"stss") == 1
    check(data.replace(b"stss", b"free"), list(range(N_FRAMES)))


def test_copies_whose_presentation_times_are_those_of_decoding(tmp_path):
    path = write_numbered(tmp_path / "clip.mkv", "mpeg4", options={**ASP, "bf": "2"})

    def forget_order(packets):
        for number, packet in enumerate(packets):
            packet.pts = packet.dts = number * 40

    check(copy_packets(path, tmp_path / "copy.mp4", forget_order), list(range(N_FRAMES)))


@pytest.mark.parametrize("ending", ["mp4", "ts"])
def test_time_of_a_frame_that_belongs_behind_the_next_keyframe(tmp_path, ending):
    path = write_numbered(tmp_path / f"clip.{ending}", options={"g": "12", "bf": "0"})

    def move_one(packets):
        step = packets[1].pts - packets[0].pts
        second = next(number for number, packet in enumerate(packets) if number and packet.is_keyframe)
        packets[second - 1].pts += step + step // 2  # later than that of the keyframe after it

    check(copy_packets(path, tmp_path / f"moved.{ending}", move_one), list(range(N_FRAMES)))


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_time_of_a_frame_that_belongs_behind_the_next_one(tmp_path, ending):
    path = write_numbered(tmp_path / f"clip.{ending}", options={"g": "60", "bf": "0", "sc_threshold": "0"})

    def move_one(packets):
        step = packets[1].pts - packets[0].pts
        packets[23].pts += step + step // 2

    moved = copy_packets(path, tmp_path / f"moved.{ending}", move_one)
    for wanted in (10, 22, 26, 40):
        clip = video.read_chosen(moved, lambda n, wanted=wanted: np.array([wanted]))
        assert read_numbers(clip.frames) == [wanted]
    for wanted in (23, 24, 25):  # the times contradict the order of decoding: right, or refused
        try:
            clip = video.read_chosen(moved, lambda n, wanted=wanted: np.array([wanted]))
        except ClipError:
            continue
        assert read_numbers(clip.frames) == [wanted]


@pytest.mark.parametrize("name", ["h264_open.mkv", "hevc_open.mkv", "mpeg2.mp4"])
def test_frames_before_the_first_keyframe_that_cannot_be_decoded_are_not_counted(
    numbered_file, tmp_path, name
):
    number_of_key = 0

    def cut(packets):
        nonlocal number_of_key
        times = sorted(packet.pts for packet in packets)
        keys = (number for number, packet in enumerate(packets) if number and packet.is_keyframe)
        first = next(key for key in keys if min(p.pts for p in packets[key + 1 : key + 4]) < packets[key].pts)
        number_of_key = times.index(packets[first].pts)
        del packets[:first]

    path = copy_packets(numbered_file(name), tmp_path / name, cut)
    check(path, list(range(number_of_key, N_FRAMES)))


@pytest.mark.parametrize("ending", ["avi", "mov"])
def test_palette_is_not_lost(tmp_path, ending):
    palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, 1)
    palette[:, 0] = 255
    path = tmp_path / f"clip.{ending}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.height, stream.width, stream.pix_fmt = 72, 128, "pal8"
        for number in range(N_FRAMES):
            image = np.ascontiguousarray(draw_number(number)[..., 0])
            container.mux(stream.encode(av.VideoFrame.from_ndarray((image, palette), format="pal8")))
        container.mux(stream.encode(None))
    check(path, list(range(N_FRAMES)))


def test_damaged_index_of_an_avi_file(tmp_path):
    data = bytearray(write_numbered(tmp_path / "clip.avi", "mpeg4", options=ASP).read_bytes())
    entries = data.index(b"idx1") + 8
    rng = np.random.default_rng(0)
    for number in range(1, N_FRAMES):  # name, flags, place, size
        place = entries + 16 * number + 8
        (true,) = struct.unpack_from("<I", data, place)
        struct.pack_into("<I", data, place, max(4, true + int(rng.integers(-400, 400))))
    for wanted in WINDOWS:
        try:
            clip = video.read_chosen(bytes(data), lambda n, wanted=wanted: np.minimum(wanted, n - 1))
        except ClipError:
            continue
        assert read_numbers(clip.frames[clip.positions]) == list(wanted)


def test_container_that_cannot_be_sought_in(tmp_path):
    path = write_numbered(tmp_path / "clip.mkv", "vc2", options={"b": "40M"}, size=(96, 128))
    check(path, list(range(N_FRAMES)))


def test_colour_matrix_that_the_scaler_does_not_know(tmp_path):
    path = write_numbered(tmp_path / "clip.mp4", options={"x264-params": "colormatrix=YCgCo"})
    with av.open(str(path)) as container, pytest.raises(OSError):
        next(container.decode(video=0)).to_ndarray(format="rgb24")
    check(path, list(range(N_FRAMES)))


def test_null_byte_in_a_name_is_a_clip_error():
    for read in (lambda: ClipReader().read("a\0b.mp4", 0, np.arange), lambda: list(decode_all("a\0b.mp4"))):
        with pytest.raises(ClipError):
            read()


@pytest.mark.parametrize("name", ["h264_b.mp4", "h264_b.avi"])
@pytest.mark.parametrize("number", [-1, N_FRAMES])
def test_frames_that_a_rule_invents_are_a_program_s_error(numbered_file, name, number):
    with pytest.raises(IndexError, match=f"of a clip of {N_FRAMES}"):
        video.read_chosen(numbered_file(name), lambda n: np.array([3, number]))
