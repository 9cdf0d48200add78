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


def decode_all(path: Path, threads: int = 1) -> Iterator[np.ndarray]:
    """Decodes a video in order.

    By PyAV, which is the faster where every frame is wanted, and holds none back: decord, which training
    prefers, decodes ahead without bound. Of 8-bit video of even size both give the same bytes.

    Args:
        path: the file.
        threads: of the decoder; 0: it chooses.

    Yields:
        uint8 `(H, W, 3)`, RGB.

    Raises:
        ClipError: a frame, or the file, cannot be read.
    """
    number = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("holds no video")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = threads
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream), 1):  # noqa: B007
                yield upright(frame)
    except (OSError, ValueError, av.error.FFmpegError) as error:
        raise ClipError(f"{f'frame {number}: ' if number else ''}{explain(error)}") from None


def upright(frame: av.VideoFrame) -> np.ndarray:
    """RGB `(H, W, 3)` as it is to be shown; phones store a rotation beside the picture."""
    turns = round(frame.rotation / 90)
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


def stream_views(path: Path, transform: ValidationTransform, threads: int = 1) -> Iterator[np.ndarray]:
    """Decodes a video and makes the validation's view of each frame, in a thread of its own.

    At most `CHUNK * CHUNKS_AHEAD` views wait to be taken; then the thread waits.

    Args:
        path: the file.
        transform: makes the view.
        threads: of the decoder; 0: it chooses.

    Yields:
        uint8 `(K, S, S, 3)`, K at most `CHUNK`.

    Raises:
        ClipError: the video cannot be read, or its frames cannot be made into views.
    """
    return run_ahead(_views(path, transform, threads), CHUNKS_AHEAD)


def _views(path: Path, transform: ValidationTransform, threads: int) -> Iterator[np.ndarray]:
    # One at a time: full frames are large, views are not.
    views = (transform(frame[None])[0] for frame in decode_all(path, threads))
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
