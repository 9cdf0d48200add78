"""A video from first frame to last: each decoded once, and cut to the model's view ahead of time.

Shapes: K frames of a chunk, H W pixels, S side of a view.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import av
import cv2
import decord
import numpy as np

from dataset.loader import ClipError
from dataset.video_transforms import ValidationTransform
from scripts.data.cut_clips import count_frames, explain, frame_rate

CHUNK = 8  # frames that cross from the decoding thread at once
CHUNKS_AHEAD = 8

T = TypeVar("T")


class VideoFacts(NamedTuple):
    """What a file says of its video; only decoding tells how many frames there really are.

    Attributes:
        path: the file.
        rate: frames a second.
        frames: as the header counts them.
    """

    path: Path
    rate: float
    frames: int


def read_facts(path: Path) -> VideoFacts:
    """The facts of a video file.

    Raises:
        ClipError: it is no video file, or cannot be read.
    """
    try:
        return VideoFacts(path, float(frame_rate(path)), count_frames(path))
    except (OSError, ValueError, av.error.FFmpegError) as error:
        raise ClipError(explain(error)) from None


def decode_all(path: Path, backend: str = "auto", threads: int = 1) -> Iterator[np.ndarray]:
    """Decodes a video in order.

    Args:
        path: the file.
        backend: one of `dataset.loader.VIDEO_BACKENDS`. `auto` takes decord, as training does, and PyAV
            from where decord fails.
        threads: of the decoder; 0: it chooses.

    Yields:
        uint8 `(H, W, 3)`, RGB, the same bytes as `dataset.loader` gives.

    Raises:
        ClipError: a frame, or the file, cannot be read.
    """
    done = 0
    if backend != "pyav":
        try:
            for frame in _decode_with_decord(path, threads):
                yield frame
                done += 1
            return
        except Exception as error:  # decord raises its own and ctypes' errors, of several types
            if backend == "decord":
                reason = str(error).strip().split("\n")[0]
                raise ClipError(f"decord cannot read frame {done}: {reason}") from None
    count = 0
    try:
        for count, frame in enumerate(_decode_with_pyav(path, threads), 1):
            if count > done:
                yield frame
    except (OSError, ValueError, av.error.FFmpegError) as error:
        raise ClipError(f"{f'frame {count}: ' if count else ''}{explain(error)}") from None


def _decode_with_decord(path: Path, threads: int) -> Iterator[np.ndarray]:
    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=threads)
    # Frame by frame is faster than in batches, whose memory is new every time.
    for _ in range(len(reader)):
        frame = reader.next().asnumpy()
        if frame.shape[2] != 3:
            raise ValueError(f"misread as a picture of {frame.shape[2]} channels")
        yield frame


def _decode_with_pyav(path: Path, threads: int) -> Iterator[np.ndarray]:
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("holds no video")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = "AUTO"
        yield from map(upright, container.decode(stream))


def upright(frame: av.VideoFrame) -> np.ndarray:
    """RGB `(H, W, 3)` as it is to be shown; phones store a rotation beside the picture."""
    turns = round(frame.rotation / 90)
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


def stream_views(
    path: Path, transform: ValidationTransform, backend: str = "auto", threads: int = 1
) -> Iterator[np.ndarray]:
    """Decodes a video and makes the validation's view of each frame, in a thread of its own.

    At most `CHUNK * CHUNKS_AHEAD` views wait to be taken; then the thread waits.

    Args:
        path: the file.
        transform: makes the view.
        backend, threads: as for `decode_all`.

    Yields:
        uint8 `(K, S, S, 3)`, K at most `CHUNK`.

    Raises:
        ClipError: the video cannot be read, or its frames cannot be made into views.
    """
    return run_ahead(_views(path, transform, backend, threads), CHUNKS_AHEAD)


def _views(path: Path, transform: ValidationTransform, backend: str, threads: int) -> Iterator[np.ndarray]:
    frames = decode_all(path, backend, threads)
    # One at a time: full frames are large, views are not.
    views = (transform(frame[None])[0] for frame in frames)
    try:
        while chunk := list(itertools.islice(views, CHUNK)):
            yield np.stack(chunk)
    except (cv2.error, MemoryError) as error:  # pictures that are too large
        raise ClipError(f"cannot be made into views: {' '.join(str(error).split())}") from None


def run_ahead(items: Iterator[T], count: int) -> Iterator[T]:
    """Makes items in a thread of its own, up to `count` before they are asked for.

    An error comes in the place of the item that could not be made. Who does not take all items closes
    the iterator, which waits for the item that is being made.
    """
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        waiting = collections.deque(pool.submit(next, items, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
