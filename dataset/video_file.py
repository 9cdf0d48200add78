"""Opens video files, and reads and decodes their packets, with ffmpeg's own libraries through PyAV."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import PictureType
from av.video.stream import VideoStream

from utils import describe_stand_in

Source = str | Path | bytes

# PyAV 19 reads tags in any encoding; before, it must be told not to raise.
_ANY_TAGS = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
_TEXT_CODECS = ("ansi", "bintext", "idf", "xbin")  # they draw text files
_IMAGE_BRANDS = ("avif", "heic", "heim", "heis", "heix", "mif1")
# Without it a damaged JPEG frame shows rows of an earlier frame, and nothing says so.
_DECODER_OPTIONS = {"mjpeg": {"err_detect": "explode"}}


class ClipError(Exception):
    """A clip that cannot be opened or decoded; the message is one line without its path."""


class DamagedFrameError(ClipError):
    """A wanted frame that is damaged or missing. Other frames of the clip may well be readable."""


@contextlib.contextmanager
def open_video(source: Source, threads: int = 1) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a video and picks its stream, as ffmpeg's `av_find_best_stream` does.

    Args:
        source: a video file's path, or its content.
        threads: of the decoder; 0: it chooses.

    Raises:
        ClipError: the file is no video, or an error of the file inside the context.
    """
    try:
        with _opened(source, threads) as opened:
            yield opened
    except (OSError, ValueError, MemoryError, av.error.FFmpegError) as error:
        stand_in = None if isinstance(source, bytes) else describe_stand_in(Path(source))
        raise ClipError(stand_in or explain(error)) from None


@contextlib.contextmanager
def _opened(source: Source, threads: int) -> Iterator[tuple[InputContainer, VideoStream]]:
    # The prefix keeps ffmpeg from taking what is before a colon in a name for a protocol.
    file = io.BytesIO(source) if isinstance(source, bytes) else f"file:{os.fspath(source)}"
    with av.open(file, **_ANY_TAGS) as container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & Disposition.attached_pic:
            raise ClipError("holds no video")
        context, kind = stream.codec_context, container.format.name
        if context is None:
            raise ClipError("its video is in a format that ffmpeg cannot decode")
        if context.name in _TEXT_CODECS:
            raise ClipError("is text, not a video")
        brand = container.metadata.get("major_brand", "").strip()
        if kind.endswith("_pipe") or kind.startswith(("image2", "ico")) or brand in _IMAGE_BRANDS:
            raise ClipError("is an image, not a video")
        context.thread_count = threads
        if threads != 1:
            context.thread_type = "AUTO"
        context.options = _DECODER_OPTIONS.get(context.name, {})
        yield container, stream


def packets_of(container: InputContainer, stream: av.stream.Stream) -> Iterator[av.Packet]:
    """Reads the packets of a stream. Like ffmpeg, takes an error of the file for its end."""
    while True:
        try:
            for packet in container.demux(stream):
                if packet.size:
                    yield packet
            return
        except IndexError:  # PyAV's for a packet of a stream that damage made up
            continue
        except av.error.FFmpegError:
            return


def decode(stream: VideoStream, packets: Iterable[av.Packet]) -> Iterator[av.VideoFrame | Exception]:
    """Decodes packets; the error of one that cannot be decoded comes in the place of its frame."""
    for packet in itertools.chain(packets, [None]):  # at last, what the decoder holds back
        try:
            frames = stream.decode(packet)
        except av.error.FFmpegError as error:
            yield error
            continue
        for frame in frames:
            frame.time_base = stream.time_base  # PyAV does not set that of frames that were held back
            yield frame


def is_fresh_start(frame: av.VideoFrame) -> bool:
    """Whether a frame, and all that are shown after it, need none that was shown before."""
    return frame.key_frame and frame.pict_type == PictureType.I


def lost(number: int, cause: av.VideoFrame | Exception | None = None) -> DamagedFrameError:
    """Return the error of a frame that does not come, or comes damaged."""
    reason = f": {explain(cause)}" if isinstance(cause, Exception) else ""
    return DamagedFrameError(f"frame {number} is damaged or missing{reason}")


def explain(error: Exception) -> str:
    """Say in one line what went wrong."""
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
