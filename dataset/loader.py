"""Decoding: the frames that are wanted of a video file, and nothing else.

`decord` is imported from the maintained `decord2` package: the same API and frames, AV1 too. PyAV
takes over where decord fails: decord 3.4 misreads, for one, pictures that are 48, 96 or 144 pixels wide.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import av
import decord
import numpy as np

IndexRule = Callable[[int], np.ndarray]


class ClipError(Exception):
    """A clip that cannot be opened or decoded; the message is one line without its path."""


def decode_frames(path: str, choose: IndexRule) -> tuple[np.ndarray, np.ndarray]:
    """Decodes chosen frames of a video, each once.

    Args:
        path: a video file.
        choose: gets the number of frames of the video and returns integer indices, in any order,
            shape and with repetitions.

    Returns:
        frames: uint8 `(M, H, W, 3)`, RGB, the distinct wanted frames in order of time.
        indices: the array that `choose` returned, with frame numbers replaced by positions in
            `frames`.

    Raises:
        ClipError: neither decoder can read the file.
    """
    try:
        return _decode_with_decord(path, choose)
    except Exception:  # decord raises its own and ctypes' errors, of several types
        pass  # PyAV says better what is wrong
    try:
        return _decode_with_pyav(path, choose)
    except (OSError, ValueError, IndexError, av.error.FFmpegError) as error:
        raise ClipError(_reason(error)) from None


def _decode_with_decord(path: str, choose: IndexRule) -> tuple[np.ndarray, np.ndarray]:
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    wanted = choose(_some_frames(len(reader)))
    distinct, positions = np.unique(wanted, return_inverse=True)
    frames = reader.get_batch(distinct).asnumpy()
    return frames, positions.reshape(np.shape(wanted))


def _decode_with_pyav(path: str, choose: IndexRule) -> tuple[np.ndarray, np.ndarray]:
    with av.open(path) as container:
        n_frames = sum(packet.size > 0 for packet in container.demux(video=0))
    wanted = choose(_some_frames(n_frames))
    distinct, positions = np.unique(wanted, return_inverse=True)
    chosen = set(distinct.tolist())
    with av.open(path) as container:
        pictures = enumerate(itertools.islice(container.decode(video=0), int(distinct[-1]) + 1))
        frames = [frame.to_ndarray(format="rgb24") for i, frame in pictures if i in chosen]
    if len(frames) != len(distinct):
        raise ClipError(f"gave {len(frames)} of {len(distinct)} frames")
    return np.stack(frames), positions.reshape(np.shape(wanted))


def _some_frames(n_frames: int) -> int:
    if n_frames == 0:
        raise ClipError("holds no frames")
    return n_frames


def _reason(error: Exception) -> str:
    if isinstance(error, IndexError):  # PyAV's for `video=0` where there is none
        return "holds no video"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
