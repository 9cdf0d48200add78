"""Writes videos of every kind with the number of each frame drawn on it, and reads the numbers back.

Frame i shows i as 12 blocks along the top, bit 0 at the left, white for 1. The number is the truth: no
decoder says which frame a frame is.
"""

import fractions
import functools
import struct
from pathlib import Path

import av
import numpy as np

N_FRAMES = 60
SIZE = (72, 128)  # height, width
BITS = 12
RATE = 25
_CLOCK = fractions.Fraction(1, 1000)

_X264 = {"preset": "veryfast", "crf": "24", "g": "12"}
_B_FRAMES = {**_X264, "bf": "3"}
_OPEN = {**_B_FRAMES, "x264-params": "open-gop=1:scenecut=0:b-adapt=0:min-keyint=2"}
_INTRA_REFRESH = {**_X264, "bf": "0", "g": "20", "x264-params": "intra-refresh=1"}
_X265 = {"preset": "ultrafast", "x265-params": "log-level=none:keyint=12:min-keyint=12:bframes=3:open-gop=1"}
_ASP = {"g": "12", "q:v": "3"}
_MPEG2 = {"bf": "2", "g": "15", "b": "1M"}
_VPX = {"cpu-used": "8", "g": "30", "b": "400k", "auto-alt-ref": "1", "lag-in-frames": "16"}
_IRREGULAR = np.cumsum(np.random.default_rng(0).integers(10, 120, N_FRAMES))
_NEGATIVE = np.arange(N_FRAMES) * 40 - 400
HIDDEN = 10  # frames of negative time, which an MP4 file's edit list hides

# {file name: (encoder, keywords of `write_numbered`)}
KINDS = {
    "h264.mp4": ("libx264", {"options": {**_X264, "bf": "0"}}),
    "h264_b.mp4": ("libx264", {"options": _B_FRAMES}),
    "h264_b.mov": ("libx264", {"options": _B_FRAMES}),
    "h264_b.3gp": ("libx264", {"options": _B_FRAMES}),
    "h264_b.mkv": ("libx264", {"options": _B_FRAMES}),
    "h264_b.flv": ("libx264", {"options": _B_FRAMES}),
    "h264_b.ts": ("libx264", {"options": _B_FRAMES}),
    "h264_b.avi": ("libx264", {"options": _B_FRAMES}),
    "h264_b.mpg": ("libx264", {"options": _B_FRAMES, "format": "mpeg"}),
    "h264_b.h264": ("libx264", {"options": _B_FRAMES, "format": "h264"}),
    "h264.avi": ("libx264", {"options": {**_X264, "bf": "0"}}),
    "h264_open.mp4": ("libx264", {"options": _OPEN}),
    "h264_open.mkv": ("libx264", {"options": _OPEN}),
    "h264_open.ts": ("libx264", {"options": _OPEN}),
    "h264_open.avi": ("libx264", {"options": _OPEN}),
    "h264_intra_refresh.mp4": ("libx264", {"options": _INTRA_REFRESH}),
    "h264_intra_refresh.mkv": ("libx264", {"options": _INTRA_REFRESH}),
    "h264_irregular.mp4": ("libx264", {"options": _B_FRAMES, "times": _IRREGULAR}),
    "h264_irregular.mkv": ("libx264", {"options": _B_FRAMES, "times": _IRREGULAR}),
    "h264_edit_list.mp4": ("libx264", {"options": _B_FRAMES, "times": _NEGATIVE}),
    "h264_negative.mkv": ("libx264", {"options": _B_FRAMES, "times": _NEGATIVE}),
    "h264_interlaced.ts": ("libx264", {"options": {**_B_FRAMES, "x264-params": "tff=1"}, "size": (96, 128)}),
    "hevc_open.mp4": ("libx265", {"options": _X265}),
    "hevc_open.mkv": ("libx265", {"options": _X265}),
    "hevc_open.ts": ("libx265", {"options": _X265}),
    "vp8.webm": ("libvpx", {"options": _VPX}),
    "vp8.avi": ("libvpx", {"options": _VPX}),
    "vp9.webm": ("libvpx-vp9", {"options": _VPX}),
    "vp9.mp4": ("libvpx-vp9", {"options": _VPX}),
    "av1.mp4": ("libsvtav1", {"options": {"preset": "12", "g": "20"}}),
    "av1.mkv": ("libsvtav1", {"options": {"preset": "12", "g": "20"}}),
    "asp_b.avi": ("mpeg4", {"options": {**_ASP, "bf": "2"}}),
    "asp_b.mp4": ("mpeg4", {"options": {**_ASP, "bf": "2"}}),
    "asp_b.mkv": ("mpeg4", {"options": {**_ASP, "bf": "2"}}),
    "asp.avi": ("mpeg4", {"options": _ASP}),
    "asp.3gp": ("mpeg4", {"options": _ASP}),
    "mpeg2.mpg": ("mpeg2video", {"options": _MPEG2}),
    "mpeg2.ts": ("mpeg2video", {"options": _MPEG2}),
    "mpeg2.mp4": ("mpeg2video", {"options": _MPEG2}),
    "mpeg2.avi": ("mpeg2video", {"options": _MPEG2}),
    "mjpeg.avi": ("mjpeg", {"pix_fmt": "yuvj420p"}),
    "mjpeg.mov": ("mjpeg", {"pix_fmt": "yuvj420p"}),
    "prores.mov": ("prores", {"pix_fmt": "yuv422p10le"}),
    "wmv.wmv": ("wmv2", {"options": {"g": "12", "b": "1M"}}),
    "ffv1.mkv": ("ffv1", {}),
}


def first_number(name):
    """The number of the first frame that a file of a kind shows."""
    return HIDDEN if name == "h264_edit_list.mp4" else 0


@functools.cache
def draw_number(number, height=SIZE[0], width=SIZE[1]):
    """A textured frame, uint8 `(H, W, 3)`, that moves with its number and carries it."""
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([rows * 2 + number * 3, columns + number * 5, rows + columns * 2 - number * 2], -1)
    frame = (96 + 40 * np.sin(waves / 17)).astype(np.uint8)
    edges = ((np.arange(BITS)[:, None] + (0.25, 0.75)) / BITS * width).round().astype(int)
    frame[: round(0.2 * height)] = 0
    for bit, (left, right) in enumerate(edges):
        frame[round(0.02 * height) : round(0.18 * height), left:right] = 255 * (number >> bit & 1)
    return frame


def read_number(frame):
    """The number that a frame carries."""
    height, width = frame.shape[:2]
    rows = frame[round(0.05 * height) : round(0.15 * height)]
    centres = ((np.arange(BITS) + 0.5) / BITS * width).astype(int)
    means = [rows[:, centre - 1 : centre + 1].mean() for centre in centres]
    return sum(1 << bit for bit, mean in enumerate(means) if mean > 128)


def read_numbers(frames):
    """The numbers that frames carry."""
    return [read_number(frame) for frame in frames]


def write_numbered(
    path,
    codec="libx264",
    *,
    frames=None,
    size=SIZE,
    options=None,
    pix_fmt="yuv420p",
    times=None,
    format=None,
    container_options=None,
):
    """Encodes numbered frames, or others; `times` are milliseconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if frames is None:
        frames = [draw_number(number, *size) for number in range(N_FRAMES)]
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=RATE, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = _CLOCK
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format=pix_fmt, threads=1)
            if times is not None:
                frame.pts, frame.time_base = int(times[number]), _CLOCK
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_kind(folder, name):
    """Writes the file of a kind."""
    codec, settings = KINDS[name]
    return write_numbered(Path(folder) / name, codec, **settings)


def rewrite_packets(source, target, change):
    """Copies a video packet by packet; `change` returns the bytes that replace those of packet i."""
    as_given = {"fflags": "-autobsf"}  # else hidden frames of VP9 are packed with shown ones
    with av.open(str(source)) as reader, av.open(str(target), "w", options=as_given) as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        for number, packet in enumerate(packet for packet in reader.demux(stream) if packet.size):
            changed = av.Packet(change(number, bytes(packet)))
            changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
            changed.is_keyframe, changed.stream = packet.is_keyframe, copy
            writer.mux(changed)
    return target


def set_display_matrix(path, target, linear):
    """Copies an MP4 file with another display matrix: stored (x, y) is shown at (a x + c y, b x + d y)."""
    data = bytearray(Path(path).read_bytes())
    header = data.index(b"tkhd") + 4
    place = header + 4 + (32 if data[header] else 20) + 16
    a, b, c, d = (value << 16 for value in linear)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    Path(target).write_bytes(data)
    return target
