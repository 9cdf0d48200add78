"""RandAugment of a whole clip: timm's operations, the same ones for every frame."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Iterator

import numpy as np
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

# timm skips sections that it does not understand in silence; a typing error should be heard.
_NUMBER = r"\d+(\.\d+)?"
_GRAMMAR = re.compile(rf"rand(-(m\d+|n\d+|p{_NUMBER}|mstd{_NUMBER}|mmax\d+|inc[01]|tweights|t3aw?))*")
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_FILL = (128, 128, 128)
_LARGEST_SHIFT = 0.45  # of the crop's side, for the operations that shift by pixels


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
        settings = {"translate_const": int(crop_size * _LARGEST_SHIFT), "img_mean": _FILL}
        if interpolation in _RESAMPLING:
            settings["interpolation"] = _RESAMPLING[interpolation]
        elif interpolation != "random":  # timm's own choice when none is given
            raise ValueError(f"--train_interpolation {interpolation!r}: expected bilinear, bicubic or random")
        self._augment = rand_augment_transform(config, settings)

    def __call__(self, frames: np.ndarray, seed: int) -> np.ndarray:
        """Augments uint8 `(T, H, W, 3)` frames; equal seeds draw equal operations."""
        if self._augment is None:
            return frames
        augmented = np.empty_like(frames)
        for source, target in zip(frames, augmented, strict=True):
            with seeded_globals(seed):
                target[:] = self._augment(Image.fromarray(source))
        return augmented


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
