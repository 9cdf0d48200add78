"""What is drawn at random for a view, apart from what is done with it (`functional`).

One draw serves all frames of a view. Every draw takes a numpy Generator, so that no global state
is read or changed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

_TRIES = 10


class CropBox(NamedTuple):
    """A rectangle in a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> CropBox:
    """Draws the box of a random resized crop.

    Args:
        height: of the frame, pixels.
        width: of the frame, pixels.
        rng: source of the draws; how many are taken depends on the outcome.
        scale: share of the frame's area that a box covers, uniform.
        ratio: width / height of the box, uniform in its logarithm.

    Returns:
        A box inside the frame. When ten boxes in turn do not fit: the largest centred one whose
        aspect lies in `ratio`.

    Source: Szegedy et al., Going Deeper with Convolutions (CVPR 2015), as in torchvision's
        `RandomResizedCrop`.
    """
    log_ratio = np.log(ratio)
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top = rng.integers(height - box_height, endpoint=True)
            left = rng.integers(width - box_width, endpoint=True)
            return CropBox(int(top), int(left), box_height, box_width)
    box_height = min(height, round(width / ratio[0]))
    box_width = min(width, round(height * ratio[1]))
    return CropBox((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def draw_flip(rng: np.random.Generator, probability: float = 0.5) -> bool:
    """Draws whether a view is mirrored; one draw, whatever the probability in [0, 1]."""
    return bool(rng.random() < probability)
