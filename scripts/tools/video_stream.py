"""A video from first frame to last: each frame is decoded once, and cut to the model's view ahead of time.

Shapes: K frames of a chunk, H W pixels, S side of a view.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import numpy as np

from dataset.video import ClipError, count_frames, iterate_frames, read_header, to_rgb
from dataset.video_transforms import ValidationTransform

CHUNK = 8  # frames that cross from the decoding thread at once
CHUNKS_AHEAD = 8

T = TypeVar("T")


class VideoFacts(NamedTuple):
    """Length of a video.

    Attributes:
        path: the file.
        rate: frames per second.
        frames: number of frames.
    """

    path: Path
    rate: float
    frames: int


def read_facts(path: Path) -> VideoFacts:
    """Reads the facts of a video file.

    Raises:
        ClipError: the file is no video, or cannot be read.
    """
    return VideoFacts(path, float(read_header(path).rate), count_frames(path))


def decode_all(path: Path, threads: int = 1) -> Iterator[np.ndarray]:
    """Decodes a video in order.

    Args:
        path: the file.
        threads: of the decoder; 0: it chooses.

    Yields:
        uint8 `(H, W, 3)`, RGB.

    Raises:
        ClipError: the file, or the next frame, cannot be decoded.
    """
    return map(to_rgb, iterate_frames(path, threads))


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
