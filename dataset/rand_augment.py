"""RandAugment of a whole clip: timm's operations, the same ones for every frame."""

from __future__ import annotations

import contextlib
import copy
import functools
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

# timm skips sections that it does not understand in silence; a typing error should be heard.
_NUMBER = r"\d+(\.\d+)?"
_GRAMMAR = re.compile(rf"rand(-(m\d+|n\d+|p{_NUMBER}|mstd{_NUMBER}|mmax\d+|inc[01]|tweights|t3aw?))*")
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
FILL = (128, 128, 128)
_LARGEST_SHIFT = 0.45  # of the crop's side, for the operations that shift by pixels


# Of these timm draws the interpolation, where there is a choice.
_INTERPOLATED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY", "TranslateXRel", "TranslateYRel")


class Operation(NamedTuple):
    """A drawn operation: `function(picture, *args, **options)` is timm's own.

    `name` is timm's without `Increasing`: how a magnitude was drawn makes no difference any more.
    """

    name: str
    function: Callable[..., Image.Image]
    args: tuple[float, ...]
    options: dict[str, Any]


class ClipRandAugment:
    """Applies one drawn chain of image operations to all frames of a clip.

    Args:
        config: timm's grammar, such as `rand-m7-n4-mstd0.5-inc1` (magnitude 7 of 10 with standard
            deviation 0.5, four operations, each applied with p 0.5, stronger with magnitude);
            empty or `none` is off.
        crop_size: side of the crops that are taken afterwards, pixels.
        interpolation: of rotations, shears and shifts: bilinear, bicubic, or random for each.

    Raises:
        ValueError: `config` or `interpolation` is not understood.

    Source: Cubuk et al., RandAugment (2020), as implemented in timm; one draw a clip as in
        VideoMAE V2.
    """

    def __init__(self, config: str, crop_size: int, interpolation: str = "bicubic"):
        self._augment = None
        if config.lower() in ("", "none"):
            return
        if not _GRAMMAR.fullmatch(config):
            raise ValueError(f"--aa {config!r}: expected a form like rand-m7-n4-mstd0.5-inc1")
        settings = {"translate_const": int(crop_size * _LARGEST_SHIFT), "img_mean": FILL}
        if interpolation in _RESAMPLING:
            settings["interpolation"] = _RESAMPLING[interpolation]
        elif interpolation != "random":  # timm's own choice when none is given
            raise ValueError(f"--train_interpolation {interpolation!r}: expected bilinear, bicubic or random")
        self._augment = rand_augment_transform(config, settings)
        self._recorder = copy.deepcopy(self._augment)
        for op in self._recorder.ops:
            op.aug_fn = functools.partial(_record, op.name.removesuffix("Increasing"), op.aug_fn)

    def draw(self, seed: int) -> list[Operation]:
        """Draws the operations that a call with the same seed applies, in their order."""
        if self._augment is None:
            return []
        with seeded_globals(seed):
            return self._recorder([])

    def __call__(self, frames: np.ndarray, seed: int) -> np.ndarray:
        """Augments uint8 `(T, H, W, 3)` frames; equal seeds draw equal operations."""
        if self._augment is None:
            return frames
        augmented = np.empty_like(frames)
        for source, target in zip(frames, augmented, strict=True):
            with seeded_globals(seed):
                target[:] = self._augment(Image.fromarray(source))
        return augmented


def _record(
    name: str, function: Callable[..., Image.Image], drawn: list[Operation], *args: float, **options: Any
) -> list[Operation]:
    """Stands in for an operation: notes it, after the draws that it would have made itself."""
    if name in _INTERPOLATED and isinstance(options["resample"], (list, tuple)):
        options["resample"] = random.choice(options["resample"])
    return [*drawn, Operation(name, function, args, options)]


@contextlib.contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seeds the global `random` and `numpy.random` inside the block and restores both after it.

    For libraries that draw from them; `seed` is any non-negative integer.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
