"""What is done to the frames of a clip: resize, crop, flip.

Clips are uint8 `(T, H, W, 3)`, RGB; T frames, H W pixels. Every function treats all frames alike,
returns a new or the same array, and changes none in place. Interpolation is OpenCV's bilinear one:
half-pixel centres, no antialiasing, as in the published trainers.
"""

from __future__ import annotations

import cv2
import numpy as np


def resize_short_side(frames: np.ndarray, short_side: int) -> np.ndarray:
    """Resizes a clip so that its shorter side has a given length.

    Args:
        frames: uint8 `(T, H, W, 3)`.
        short_side: pixels; the longer side becomes `int(long * short_side / short)`.

    Returns:
        uint8 `(T, H', W', 3)`; the input itself where nothing changes.

    Source: VideoMAE V2, resize for validation and test.
    """
    height, width = frames.shape[1:3]
    short = min(height, width)
    if short == short_side:
        return frames
    return _resize(frames, height * short_side // short, width * short_side // short)


def center_crop(frames: np.ndarray, size: int) -> np.ndarray:
    """Cuts the centred square of `size` pixels out of uint8 `(T, H, W, 3)` frames (a view).

    Raises:
        ValueError: the square does not fit.

    Source: VideoMAE V2 (offsets by Python's round, which takes halves to even).
    """
    return crop(frames, crop_offsets(*frames.shape[1:3], size, num_crop=1)[0], size)


def crop(frames: np.ndarray, offset: tuple[int, int], size: int) -> np.ndarray:
    """Cuts the square of `size` pixels at (top, left) out of `(T, H, W, 3)` frames (a view)."""
    top, left = offset
    _check_box(frames, top, left, size, size)
    return frames[:, top : top + size, left : left + size]


def crop_offsets(height: int, width: int, size: int, num_crop: int) -> list[tuple[int, int]]:
    """Places square crops evenly along the longer side of a frame, centred across the other.

    Args:
        height: of the frame, pixels.
        width: of the frame, pixels.
        size: side of the crops, pixels.
        num_crop: crops from the first to the last edge; a single one is centred.

    Returns:
        `num_crop` pairs (top, left); equal ones where the longer side leaves no room.

    Raises:
        ValueError: a crop does not fit, or none is wanted.

    Source: VideoMAE V2, spatial views of the test.
    """
    if num_crop < 1:
        raise ValueError(f"at least one spatial crop is needed: {num_crop=}")
    if size > min(height, width):
        raise ValueError(f"a crop of {size=} does not fit a frame of {height=}, {width=}")
    top, left = round((height - size) / 2), round((width - size) / 2)
    if num_crop == 1:
        return [(top, left)]
    step = (max(height, width) - size) / (num_crop - 1)
    along = [int(k * step) for k in range(num_crop)]
    return [(start, left) for start in along] if height >= width else [(top, s) for s in along]


def resized_crop(frames: np.ndarray, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """Cuts a box out of every frame and resizes it to a square.

    Args:
        frames: uint8 `(T, H, W, 3)`.
        box: (top, left, height, width), pixels.
        size: side of the result, pixels.

    Returns:
        uint8 `(T, size, size, 3)`.

    Raises:
        ValueError: the box does not lie in the frame.
    """
    top, left, height, width = box
    _check_box(frames, top, left, height, width)
    return _resize(frames[:, top : top + height, left : left + width], size, size)


def hflip(frames: np.ndarray) -> np.ndarray:
    """Mirrors `(T, H, W, 3)` frames left to right, into contiguous memory."""
    flipped = np.empty_like(frames)
    for source, target in zip(frames, flipped, strict=True):
        cv2.flip(source, 1, dst=target)
    return flipped


def _resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    resized = np.empty((len(frames), height, width, 3), np.uint8)
    for source, target in zip(frames, resized, strict=True):
        cv2.resize(source, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
    return resized


def _check_box(frames: np.ndarray, top: int, left: int, height: int, width: int) -> None:
    fits = 0 <= top <= top + height <= frames.shape[1] and 0 <= left <= left + width <= frames.shape[2]
    if not fits or min(height, width) < 1:
        box = (top, left, height, width)
        raise ValueError(f"{box=} does not lie in frames of shape {frames.shape}")
