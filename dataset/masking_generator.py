"""Which tokens of a clip are dropped in training (`--train_mask_ratio`).

A clip is a grid of (T', H', W') tokens, N of them in this order. Every generator drops the same
number of tokens in every draw, so that the rest of a batch stacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

# (clips, generator) -> bool (clips, N)
TokenMasks = Callable[[int, np.random.Generator], torch.Tensor]

_CELL = 4  # tokens of a running cell, 2 x 2


class TubeMaskingGenerator:
    """Drops the same randomly chosen places in every frame of the grid.

    Args:
        input_size: the grid (T', H', W').
        mask_ratio: share of a frame's tokens to drop, in [0, 1), truncated to whole tokens.

    Raises:
        ValueError: `mask_ratio` is out of range.

    Source: Tong et al., VideoMAE (NeurIPS 2022).
    """

    def __init__(self, input_size: tuple[int, int, int], mask_ratio: float):
        _check_ratio(mask_ratio)
        self._frames, height, width = input_size
        self._places = height * width
        self._dropped = int(mask_ratio * self._places)

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """Draws bool `(N,)`, True where a token is dropped."""
        return np.tile(_draw_mask(rng, self._places, self._dropped), self._frames)


class RandomMaskingGenerator:
    """Drops tokens anywhere in the grid, independently of each other.

    Args:
        input_size: the grid (T', H', W').
        mask_ratio: share of all tokens to drop, in [0, 1), truncated to whole tokens.

    Raises:
        ValueError: `mask_ratio` is out of range.

    Source: Tong et al., VideoMAE (NeurIPS 2022).
    """

    def __init__(self, input_size: tuple[int, int, int], mask_ratio: float):
        _check_ratio(mask_ratio)
        self._tokens = math.prod(input_size)
        self._dropped = int(mask_ratio * self._tokens)

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """Draws bool `(N,)`, True where a token is dropped."""
        return _draw_mask(rng, self._tokens, self._dropped)


class RunningCellMaskingGenerator:
    """Drops a part of each 2 x 2 cell; the part moves on by one place from frame to frame.

    All places are seen equally often over time; only the phase is random.

    Args:
        input_size: the grid (T', H', W'), H' and W' even.
        mask_ratio: 0.25, 0.5 or 0.75.

    Raises:
        ValueError: the grid does not divide into cells, or the ratio is no quarter.

    Source: Wang et al., VideoMAE V2 (CVPR 2023), after Qing et al., MAR (2022).
    """

    def __init__(self, input_size: tuple[int, int, int], mask_ratio: float):
        _, height, width = input_size
        if height % 2 or width % 2:
            raise ValueError(f"running cells need an even grid: {input_size=}")
        if _CELL * mask_ratio not in range(1, _CELL):
            raise ValueError(f"running cells drop 0.25, 0.5 or 0.75 of the tokens: {mask_ratio=}")
        frame, row, column = np.indices(input_size)
        self._phase = (2 * (row % 2) + column % 2 + frame).reshape(-1)
        self._dropped = int(_CELL * mask_ratio)

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """Draws bool `(N,)`, True where a token is dropped."""
        return (self._phase + rng.integers(_CELL)) % _CELL < self._dropped


MASKS: dict[str, type] = {
    "tube": TubeMaskingGenerator,
    "random": RandomMaskingGenerator,
    "run_cell": RunningCellMaskingGenerator,
}


def batch_masks(kind: str, input_size: tuple[int, int, int], mask_ratio: float) -> TokenMasks:
    """Makes what draws a mask for each clip of a batch.

    Args:
        kind: a name in `MASKS`.
        input_size: the grid (T', H', W').
        mask_ratio: share of tokens to drop.

    Returns:
        (clips, generator) -> bool `(clips, N)`, True where a token is dropped.

    Raises:
        ValueError: a ratio or a grid that the kind cannot have.
    """
    generate = MASKS[kind](input_size, mask_ratio)
    return lambda clips, rng: torch.from_numpy(np.stack([generate(rng) for _ in range(clips)]))


def _check_ratio(mask_ratio: float) -> None:
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"a share of tokens to drop lies in [0, 1): {mask_ratio=}")


def _draw_mask(rng: np.random.Generator, n: int, dropped: int) -> np.ndarray:
    return rng.permutation(n) < dropped
