"""From the probabilities of overlapping windows to what a hand does when.

Shapes: N windows, P pieces, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Segment(NamedTuple):
    """A run of frames in which one class is the most probable.

    Attributes:
        start: first frame.
        stop: the frame after the last.
        label: the class.
        probability: its mean over the frames.
    """

    start: int
    stop: int
    label: int
    probability: float


@dataclass(frozen=True)
class Reading:
    """One hand's probabilities over the whole video; within a piece they are the same for all frames.

    Attributes:
        bounds: int64 `(P + 1,)`, ascending: piece p has the frames `bounds[p]` to `bounds[p + 1] - 1`.
        probabilities: float64 `(P, C)`.
    """

    bounds: np.ndarray
    probabilities: np.ndarray

    def piece_at(self, frame: int) -> int:
        """The piece that a frame lies in; beyond the end, the last."""
        last = len(self.probabilities) - 1
        return min(int(np.searchsorted(self.bounds, frame, side="right")) - 1, last)

    def segments(self) -> list[Segment]:
        """Runs of pieces with the same most probable class, in order of time."""
        best = self.probabilities.argmax(axis=1)
        lengths = np.diff(self.bounds)
        firsts = np.flatnonzero(np.diff(best, prepend=-1))
        result = []
        for first, end in zip(firsts, [*firsts[1:], len(best)], strict=True):
            label, pieces = int(best[first]), slice(first, end)
            mean = np.average(self.probabilities[pieces, label], weights=lengths[pieces])
            result.append(Segment(int(self.bounds[first]), int(self.bounds[end]), label, float(mean)))
        return result


def read_windows(spans: Sequence[tuple[int, int]], probabilities: np.ndarray) -> Reading:
    """Gives each frame the mean of the windows that it lies in.

    Args:
        spans: (start, stop) of N windows, in order of time, that leave no frame out.
        probabilities: `(N, C)`, of the windows.
    """
    starts, stops = np.asarray(spans, np.int64).T
    bounds = np.unique(np.concatenate([starts, stops]))
    # The windows over a piece are neighbours: what they sum up to is a difference of running sums.
    sums = np.concatenate([np.zeros((1, probabilities.shape[1])), probabilities.cumsum(0, np.float64)])
    first = np.searchsorted(stops, bounds[:-1], side="right")
    end = np.searchsorted(starts, bounds[:-1], side="right")
    return Reading(bounds, (sums[end] - sums[first]) / (end - first)[:, None])
