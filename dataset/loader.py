"""Decoding: the frames that are wanted of a video file, and nothing else.

`decord` is imported from the maintained `decord2` package: the same API and frames, AV1 too.
"""

from __future__ import annotations

from collections.abc import Callable

import decord
import numpy as np


class ClipError(Exception):
    """A clip that cannot be opened or decoded; the message is one line without its path."""


def decode_frames(path: str, choose: Callable[[int], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
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
        ClipError: the file cannot be read.
    """
    try:
        reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
        n_frames = len(reader)
        if n_frames == 0:
            raise ClipError("holds no frames")
        wanted = choose(n_frames)
        distinct, positions = np.unique(wanted, return_inverse=True)
        frames = reader.get_batch(distinct).asnumpy()
    except ClipError:
        raise
    except Exception as error:  # decord raises its own and ctypes' errors, of several types
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ClipError(lines[-1] if lines else type(error).__name__) from None
    if len(frames) != len(distinct):
        raise ClipError(f"gave {len(frames)} of {len(distinct)} frames")
    return frames, positions.reshape(np.shape(wanted))
