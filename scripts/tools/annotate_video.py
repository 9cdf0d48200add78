"""Writes a copy of a video on which stands what both hands do.

Shapes: H W pixels.
"""

from __future__ import annotations

import functools
import heapq
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dataset.video import (
    ClipError,
    VideoHeader,
    convert,
    explain,
    iterate_frames,
    open_video,
    packets_of,
    read_header,
    to_rgb,
)
from scripts.tools.contact_sheet import elide, printable
from utils import naming

_ENCODER = {"preset": "veryfast", "crf": "20"}
# What can be copied into an mp4 file as it is, by the canonical names of codecs (mp3's decoder is called
# `mp3float`); other sound is left out.
_SOUND = ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac")
_LEAST_LINE = 13  # pixels
_SHADE, _INK, _FADED, _GAUGE = (
    (12, 12, 12, 190),
    (255, 255, 255, 255),
    (190, 190, 190, 255),
    (80, 200, 120, 255),
)


class Caption(NamedTuple):
    """What stands on a frame for one hand.

    Attributes:
        hand: what the hand is called.
        action: what it does.
        probability: of that, in [0, 1].
    """

    hand: str
    action: str
    probability: float


Captions = tuple[Caption, ...]


def annotate_video(source: Path, target: Path, captions_at: Callable[[int], Captions]) -> None:
    """Decodes a video once more and writes it with a bar of captions at the bottom.

    The copy is H.264 in mp4 with the frames' own size and times; odd sizes grow by a pixel, which the
    encoder needs. Sound is copied if mp4 can hold it.

    Args:
        source: a video file.
        target: the mp4 file; it gets its name when it is whole.
        captions_at: the captions of a frame, from left to right, by its number.

    Raises:
        ClipError: the video cannot be read.
        UserError: the copy cannot be written.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with naming(target):
            part.touch()  # an error of the disk, not of the video
        with open_video(source) as (reader, video), av.open(str(part), "w", format="mp4") as writer:
            _copy(source, reader, video, writer, captions_at)
        with naming(target):
            part.replace(target)
    except (ClipError, OSError, ValueError, av.error.FFmpegError) as error:
        raise ClipError(f"cannot be annotated: {explain(error)}") from None
    finally:
        part.unlink(missing_ok=True)


def _copy(
    source: Path,
    reader: av.container.InputContainer,
    video: av.VideoStream,
    writer: av.container.OutputContainer,
    captions_at: Callable[[int], Captions],
) -> None:
    sound = next(
        (one for one in reader.streams.audio if one.codec_context.codec.canonical_name in _SOUND), None
    )
    copied = writer.add_stream_from_template(sound) if sound else None
    packets = packets_of(reader, sound) if sound else ()
    header = read_header(source)
    pictures = _Pictures(writer, video.time_base, header)
    for item in heapq.merge(iterate_frames(source, threads=0), packets, key=_time_of):
        if isinstance(item, av.VideoFrame):
            pictures.add(to_rgb(item), item.pts, captions_at)
        else:
            item.stream = copied
            writer.mux(item)
    pictures.finish()


def _time_of(item: av.VideoFrame | av.Packet) -> float:
    return 0.0 if item.pts is None else float(item.pts * item.time_base)


class _Pictures:
    """The pictures of the copy."""

    def __init__(self, writer: av.container.OutputContainer, time_base: Fraction, header: VideoHeader):
        self._writer, self._time_base = writer, time_base
        self._step = max(1, round(1 / (header.rate * time_base)))
        self._last: int | None = None
        self._count = 0
        height, width = header.height, header.width
        self._padding = ((0, height % 2), (0, width % 2), (0, 0))
        self._stream = writer.add_stream("libx264", rate=header.rate, options=_ENCODER)
        self._stream.height, self._stream.width = height + height % 2, width + width % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = time_base

    def add(self, picture: np.ndarray, time: int | None, captions_at: Callable[[int], Captions]) -> None:
        """Encodes a picture with its captions; `time` is in the video's own unit."""
        _put_bar(picture, captions_at(self._count))
        frame = av.VideoFrame.from_ndarray(np.pad(picture, self._padding, mode="edge"), format="rgb24")
        frame = convert(frame, format="yuv420p")
        first = self._last is None
        if time is None or (not first and time <= self._last):
            time = 0 if first else self._last + self._step
        frame.pts, frame.time_base = time, self._time_base
        self._last, self._count = time, self._count + 1
        self._writer.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Encodes what is left."""
        self._writer.mux(self._stream.encode(None))


def _put_bar(picture: np.ndarray, captions: Captions) -> None:
    """Draws the captions over the lowest part of a picture, in place."""
    height, width = picture.shape[:2]
    bar = _bar(captions, width, max(_LEAST_LINE, height // 20))[-height:]
    under = picture[height - len(bar) :]
    share = bar[..., 3:].astype(np.uint16)
    under[:] = (bar[..., :3] * share + under * (255 - share)) // 255


@functools.lru_cache(maxsize=8)
def _bar(captions: Captions, width: int, line: int) -> np.ndarray:
    """Captions side by side, each in one line, or two where it is narrow: uint8 RGBA `(H, W, 4)`."""
    room, gauge = width / len(captions), max(2, line // 8)
    font, pad = ImageFont.load_default(round(line * 0.72)), line // 3
    is_narrow = room < 18 * line
    height = (2 if is_narrow else 1) * line + gauge
    bar = Image.new("RGBA", (width, height), _SHADE)
    canvas = ImageDraw.Draw(bar)
    for place, caption in enumerate(captions):
        left = round(place * room) + pad
        right = max(left, round((place + 1) * room) - pad)
        share, title = f"{caption.probability:.0%}", f"{caption.hand} "
        share_at = right - font.getlength(share)
        name_at, end = left + font.getlength(title), share_at - pad
        title_line = line * 0.5
        name_line = title_line
        if is_narrow:
            name_at, end, name_line = left, right, line * 1.5
        name = elide(printable(caption.action), end - name_at, font.getlength)
        canvas.text((left, title_line), title, _FADED, font, anchor="lm")
        canvas.text((share_at, title_line), share, _INK, font, anchor="lm")
        canvas.text((name_at, name_line), name, _INK, font, anchor="lm")
        reached = left + (right - left) * caption.probability
        canvas.rectangle((left, height - gauge, reached, height), _GAUGE)
    return np.asarray(bar)
