"""The one module that opens videos: which frame is frame i, and how to get it.

Frame i of a file is the i-th frame that `ffmpeg -i FILE -fps_mode passthrough` shows: in presentation order,
with edit lists applied, hidden frames not counted, and rotated and mirrored as the file says. ffmpeg's own
libraries decode, through PyAV.

Most files store the presentation time of every packet. Their frames are numbered by these times, without
decoding, and random access seeks to the keyframe at or before a wanted frame. Decoding checks the times.
Where they are not those of the frames, and in containers without them, the file is decoded from its first
frame and its frames are counted.

A frame that cannot be decoded, or only with parts that the decoder made up, is an error with its reason. No
other frame ever takes its place.

Shapes: M chosen frames, H W pixels.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

from dataset.frame_scaler import convert
from dataset.video_file import (
    ClipError,
    DamagedFrameError,
    Source,
    decode,
    explain,
    is_fresh_start,
    lost,
    open_video,
    packets_of,
)
from dataset.video_index import MATROSKA, MOV, scan_packets
from dataset.video_seek import WrongTimesError, seek_frames

__all__ = [
    "READER_VERSION",
    "ChosenFrames",
    "ClipError",
    "DamagedFrameError",
    "IndexRule",
    "VideoHeader",
    "check_for_decord",
    "convert",
    "count_frames",
    "distinct",
    "explain",
    "is_stored_upright",
    "iterate_frames",
    "open_video",
    "packets_of",
    "read_chosen",
    "read_header",
    "to_rgb",
]

READER_VERSION = 2  # of the rule that numbers frames; checkpoints record it

IndexRule = Callable[[int], np.ndarray]

_UNSPECIFIED = 2  # ffmpeg's number of the colour matrix that is not stated
_MAX_RATE = 1000  # frames per second; a header that states more is not believed


class ChosenFrames(NamedTuple):
    """Chosen frames of a video.

    Attributes:
        frames: uint8 `(M, H, W, 3)`, RGB, the distinct wanted frames in order of time.
        positions: the array that the rule returned, with frame numbers replaced by positions in `frames`.
        is_sequential: whether the file had to be decoded from its first frame.
        truncation: how much of the stated duration is missing, in words, or nothing.
    """

    frames: np.ndarray
    positions: np.ndarray
    is_sequential: bool
    truncation: str


class VideoHeader(NamedTuple):
    """Properties of a video that need neither its packets nor more than one frame.

    Attributes:
        rate: frames per second as the file states them, or 25 if it states nothing usable.
        height, width: of the frames as they are shown, in pixels.
    """

    rate: Fraction
    height: int
    width: int


# ------------------------------------------------------------------------------------------ reading


def read_chosen(source: Source, choose: IndexRule) -> ChosenFrames:
    """Decodes chosen frames of a video, each once.

    Args:
        source: a video file's path, or its content.
        choose: gets the number of frames and returns integer indices, in any order, shape and with
            repetitions. It must be a function of that number: it may be called twice.

    Raises:
        ClipError: the file is no video, or a wanted frame cannot be decoded.
    """
    with open_video(source) as (container, stream):
        index, truncation = scan_packets(container, stream)
        if index is not None:
            numbers, positions = distinct(choose, len(index.times))
            with contextlib.suppress(WrongTimesError):
                frames = _stack(seek_frames(container, stream, index, numbers), numbers)
                return ChosenFrames(frames, positions, False, truncation)
    numbers, positions = distinct(choose, _count_by_decoding(source))
    return ChosenFrames(_stack(_take(source, numbers), numbers), positions, True, truncation)


def read_header(source: Source) -> VideoHeader:
    """Reads a video's frame rate and the size of its frames.

    Raises:
        ClipError: the file is no video or cannot be read.
    """
    with open_video(source) as (container, stream):
        rate = stream.average_rate
        decoded = decode(stream, packets_of(container, stream))
        first = next((frame for frame in decoded if not isinstance(frame, Exception)), None)
        if first is None:
            raise ClipError("holds no frames")
        is_usable = rate and 0 < rate <= _MAX_RATE
        return VideoHeader(Fraction(rate) if is_usable else Fraction(25), *to_rgb(first).shape[:2])


def count_frames(source: Source) -> int:
    """Counts the frames of a video, without decoding them where their times are stored.

    Raises:
        ClipError: the file is no video or cannot be read.
    """
    with open_video(source) as (container, stream):
        index, _ = scan_packets(container, stream)
    return _count_by_decoding(source) if index is None else len(index.times)


def iterate_frames(source: Source, threads: int = 1) -> Iterator[av.VideoFrame]:
    """Decodes a video from its first frame to its last, in presentation order.

    Args:
        source: a video file's path, or its content.
        threads: of the decoder; 0: it chooses.

    Raises:
        ClipError: the file is no video, or the next frame cannot be decoded.
    """
    with open_video(source) as (container, stream):
        index, _ = scan_packets(container, stream)
    number = 0
    with open_video(source, threads) as (container, stream):
        for frame in decode(stream, packets_of(container, stream)):
            if isinstance(frame, Exception) or frame.is_corrupt:
                raise lost(number, frame)
            rank = None if index is None else index.rank(frame.pts)
            if rank is None or rank < number:
                index = None  # its times are not those of the frames
            elif rank > number:
                raise lost(number)
            yield frame
            number += 1
    if index is not None and number < len(index.times):
        raise lost(number)


def to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """Convert a frame to RGB, rotated and mirrored as it is to be shown, to the nearest right angle.

    Returns:
        uint8 `(H, W, 3)`.
    """
    try:
        rgb = convert(frame, format="rgb24").to_ndarray()
    except OSError:  # a colour matrix that ffmpeg's scaler does not know
        frame.colorspace = _UNSPECIFIED
        rgb = convert(frame, format="rgb24").to_ndarray()
    a, b, c, d = _display_matrix(frame)
    if abs(b) + abs(c) > abs(a) + abs(d):
        rgb, a, d = rgb.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def is_stored_upright(frame: av.VideoFrame) -> bool:
    """Whether a frame is shown as it is stored, neither rotated nor mirrored."""
    a, b, c, d = _display_matrix(frame)
    return a >= 0 and d >= 0 and abs(a) + abs(d) >= abs(b) + abs(c)


def check_for_decord(source: Source, choose: IndexRule) -> int:
    """Refuse a video of which decord would show other frames than those that are wanted.

    decord numbers packets. It knows neither edit lists nor open groups of pictures, and skips damage.

    Returns:
        The number of frames.

    Raises:
        ClipError: decord would misread the video, or nothing can read it.
    """
    with open_video(source) as (container, stream):
        index, _ = scan_packets(container, stream)
        if container.format.name not in (MOV, MATROSKA):
            problem = f"{container.format.name} files"
        elif len(container.streams.video) > 1:
            problem = "files with several video streams"
        elif index is None or len(index.times) < len(index.decode_order):
            problem = "edit lists and packets that show no frame"
        elif index.has_open_groups:
            problem = "open groups of pictures"
        else:
            numbers, _ = distinct(choose, len(index.times))
            try:
                frames = seek_frames(container, stream, index, numbers, strict=True)
                is_mirrored = any(map(_is_mirrored, frames))
                problem = "mirrored videos" if is_mirrored else ""
            except WrongTimesError:
                problem = "false keyframes and frame times"
    if problem:
        raise ClipError(f"decord misreads {problem}: use --video_backend auto")
    return len(index.times)


def distinct(choose: IndexRule, n_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames that a rule wants, ascending, and its answer as positions in them."""
    if n_frames == 0:
        raise ClipError("holds no frames")
    wanted = choose(n_frames)
    numbers, positions = np.unique(wanted, return_inverse=True)
    if numbers[0] < 0 or numbers[-1] >= n_frames:
        raise IndexError(f"frames {numbers[0]} to {numbers[-1]} of a clip of {n_frames}")
    return numbers, positions.reshape(np.shape(wanted))


def _count_by_decoding(source: Source) -> int:
    with open_video(source) as (container, stream):
        return sum(1 for _ in decode(stream, packets_of(container, stream)))


def _take(source: Source, numbers: np.ndarray) -> Iterator[av.VideoFrame]:
    """Decodes frames by their numbers, ascending, counting from the first."""
    wanted = iter(numbers.tolist())
    number_wanted = next(wanted)
    error, is_damaged = None, False
    with open_video(source) as (container, stream):
        for number, frame in enumerate(decode(stream, packets_of(container, stream))):
            if isinstance(frame, Exception):
                error = frame  # it may be the error of a later frame, so no number is certain any more
            elif frame.is_corrupt or is_fresh_start(frame):
                is_damaged = frame.is_corrupt
            if number == number_wanted:
                if error or is_damaged:
                    break
                yield frame
                number_wanted = next(wanted, None)
                if number_wanted is None:
                    return
    raise lost(number_wanted, error)


# ------------------------------------------------------------------------------------------ display


def _stack(frames: Iterator[av.VideoFrame], numbers: np.ndarray) -> np.ndarray:
    """Converts frames one by one into one array, uint8 `(M, H, W, 3)`."""
    first = to_rgb(next(frames))
    stacked = np.empty((len(numbers), *first.shape), np.uint8)
    for place, rgb in enumerate(itertools.chain([first], map(to_rgb, frames))):
        if rgb.shape != first.shape:
            raise DamagedFrameError(f"frame {numbers[place]} has another size than frame {numbers[0]}")
        stacked[place] = rgb
    return stacked


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """The linear part (a, b, c, d): stored column p, row q is shown at column a p + c q, row b p + d q."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist()
    return a, b, c, d


def _is_mirrored(frame: av.VideoFrame) -> bool:
    a, b, c, d = _display_matrix(frame)
    return a * d - b * c < 0
