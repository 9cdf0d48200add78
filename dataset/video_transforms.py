"""From the decoded frames of a clip to the uint8 views that a batch is made of.

Frames are uint8 `(T, H, W, 3)`, RGB, and stay 8-bit: normalising and erasing follow on the device
(`volume_transforms`, `random_erasing`). S is the side of a view, K the erase boxes of a view.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dataset import functional
from dataset.composed_augment import SUPPORTED, composed_view
from dataset.rand_augment import ClipRandAugment
from dataset.random_erasing import draw_erase_boxes
from dataset.transforms import draw_crop_box, draw_flip


class View(NamedTuple):
    """One training view.

    Attributes:
        frames: uint8 `(T, S, S, 3)`.
        erase_boxes: int16 `(K, 4)`, see `random_erasing.draw_erase_boxes`.
    """

    frames: np.ndarray
    erase_boxes: np.ndarray


class TrainTransform:
    """The random view of a training clip: RandAugment, resized crop, flip, boxes to erase.

    Args:
        input_size: side of the view, pixels.
        aa: RandAugment's setting, see `ClipRandAugment`; empty or `none` is off.
        interpolation: of RandAugment's geometry: bilinear, bicubic or random.
        hflip: whether half of the views are mirrored. Wrong where left and right are the labels.
        reprob: probability of random erasing, in [0, 1].
        recount: most boxes to erase.
        crop_scale: least and greatest share of the frame's area that the resized crop covers.
        aug_impl: `reference` makes whole frames, one operation after the other; `fast` draws the same and
            makes the view alone, nearly alike (`composed_augment`).

    Source: VideoMAE V2, augmentation for fine-tuning.
    """

    def __init__(
        self,
        input_size: int,
        aa: str,
        interpolation: str,
        hflip: bool,
        reprob: float,
        recount: int,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        aug_impl: str = "fast",
    ):
        self._composes = aug_impl == "fast"
        self._size = input_size
        self._rand_augment = ClipRandAugment(aa, input_size, interpolation)
        self._flip_probability = 0.5 if hflip else 0.0
        self._reprob = reprob
        self._recount = recount
        self._crop_scale = crop_scale

    def __call__(self, frames: np.ndarray, seed: int) -> View:
        """Makes one view of uint8 `(T, H, W, 3)` frames; `seed` decides all that is drawn.

        Everything is drawn at its place, in use or not, and the boxes to erase come last: switching one
        augmentation off leaves the others as they were.
        """
        rng = np.random.default_rng(seed)
        box = draw_crop_box(*frames.shape[1:3], rng, self._crop_scale)
        operations_seed = int(rng.integers(2**63))
        flip = draw_flip(rng, self._flip_probability)
        operations = self._rand_augment.draw(operations_seed) if self._composes else []
        if self._composes and SUPPORTED.issuperset(op.name for op in operations):
            view = composed_view(frames, operations, box, flip, self._size)
        else:
            frames = self._rand_augment(frames, operations_seed)
            view = functional.resized_crop(frames, box, self._size)
            view = functional.hflip(view) if flip else view
        boxes = draw_erase_boxes(rng, self._size, self._size, self._reprob, self._recount)
        return View(view, boxes)


class ValidationTransform:
    """The one centred view of a validation clip.

    Args:
        short_side_size: length that the shorter side is resized to, pixels.
        input_size: side of the view, pixels, at most `short_side_size`.

    Raises:
        ValueError: the view does not fit the resized frame.

    Source: VideoMAE V2.
    """

    def __init__(self, short_side_size: int, input_size: int):
        _check_sizes(short_side_size, input_size)
        self._short_side = short_side_size
        self._size = input_size

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Makes a contiguous uint8 `(T, S, S, 3)` view of uint8 `(T, H, W, 3)` frames."""
        resized = functional.resize_short_side(frames, self._short_side)
        return np.ascontiguousarray(functional.center_crop(resized, self._size))


class SpatialView(NamedTuple):
    """One spatial view of a test clip.

    Attributes:
        crop_id: equal for equal views, so that what is computed for one holds for the others.
        frames: uint8 `(M, S, S, 3)`, sharing the memory of the resized clip.
    """

    crop_id: int
    frames: np.ndarray


class TestTransform:
    """The spatial views of a test clip, along the longer side.

    Args:
        short_side_size: length that the shorter side is resized to, pixels.
        input_size: side of a view, pixels, at most `short_side_size`.
        num_crop: views from the first to the last edge; a single one is centred.

    Raises:
        ValueError: the view does not fit the resized frame, or none is wanted.

    Source: VideoMAE V2.
    """

    def __init__(self, short_side_size: int, input_size: int, num_crop: int):
        _check_sizes(short_side_size, input_size)
        if num_crop < 1:
            raise ValueError(f"--test_num_crop {num_crop}: at least one spatial view is needed")
        self._short_side = short_side_size
        self._size = input_size
        self._num_crop = num_crop

    def __call__(self, frames: np.ndarray) -> list[SpatialView]:
        """Makes `num_crop` views of uint8 `(M, H, W, 3)` frames of all temporal views together."""
        resized = functional.resize_short_side(frames, self._short_side)
        offsets = functional.crop_offsets(*resized.shape[1:3], self._size, self._num_crop)
        return [
            SpatialView(offsets.index(offset), functional.crop(resized, offset, self._size))
            for offset in offsets
        ]


def _check_sizes(short_side_size: int, input_size: int) -> None:
    if short_side_size < input_size:
        raise ValueError(
            f"--short_side_size {short_side_size} is less than --input_size {input_size}: "
            "the view does not fit the resized frame"
        )
