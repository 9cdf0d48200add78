"""Which frames of a clip are looked at, and in which order clips come: integers only.

Nothing here decodes. n_frames is the length of a clip in source frames, num_frames the frames of
one view (T), sampling_rate the distance of neighbouring frames of a view in source frames; a
*window* is the stretch of `num_frames * sampling_rate` source frames that a view covers.

Source: the index rules of VideoMAE V2 (CVPR 2023), fine-tuning data.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from utils import derive_seed

SHORT_CLIPS = ("published", "stretch")

# From the length of a clip to the source frames wanted of it, in any shape.
IndexRule = Callable[[int], np.ndarray]


def train_indices(
    n_frames: int,
    num_frames: int,
    sampling_rate: int,
    rng: np.random.Generator,
    short_clips: str = "published",
    sparse: bool = False,
) -> np.ndarray:
    """Draws the source frames of one training view.

    A window lies anywhere in the clip with equal chance; its points run over it evenly, both ends
    included, and are truncated (so that steps of a rate of 4 are 4 and 5).

    Args:
        n_frames: length of the clip in frames, at least 1.
        num_frames: points to return.
        sampling_rate: source frames for each point of the window.
        rng: source of the one draw (sparse: `num_frames` draws).
        short_clips: what to do with a clip shorter than its window. `published` keeps the rate and
            repeats the last frame; `stretch` shrinks the window to the clip.
        sparse: one random frame of each of `num_frames` equal segments instead of a window.

    Returns:
        int64 `(num_frames,)`, ascending, in `[0, n_frames)`.

    Raises:
        ValueError: an empty clip or a setting out of range.

    Source: VideoMAE V2; the sparse rule is that of Temporal Segment Networks (ECCV 2016).
    """
    _check(n_frames, num_frames, sampling_rate, short_clips)
    if sparse:
        return _one_of_each_segment(n_frames, num_frames, rng.random(num_frames))
    window = num_frames * sampling_rate
    if n_frames <= window:
        return _short_clip(n_frames, num_frames, sampling_rate, short_clips)
    # The published draw excludes the window that ends with the very last frame.
    return _window(int(rng.integers(n_frames - window)), window, num_frames)


def validation_indices(
    n_frames: int, num_frames: int, sampling_rate: int, short_clips: str = "published", sparse: bool = False
) -> np.ndarray:
    """Gives the source frames of a clip's one validation view: the centred window.

    Args and Raises as for `train_indices`; sparse takes the middle of each segment.

    Returns:
        int64 `(num_frames,)`, ascending, in `[0, n_frames)`.

    Source: VideoMAE V2; Temporal Segment Networks (ECCV 2016) for the sparse rule.
    """
    _check(n_frames, num_frames, sampling_rate, short_clips)
    if sparse:
        return _one_of_each_segment(n_frames, num_frames, 0.5)
    window = num_frames * sampling_rate
    if n_frames <= window:
        return _short_clip(n_frames, num_frames, sampling_rate, short_clips)
    return _window((n_frames - window) // 2, window, num_frames)


def test_timeline(
    n_frames: int, num_frames: int, sampling_rate: int, short_clips: str = "published"
) -> np.ndarray:
    """Gives every source frame that the windows of a test are cut from: each `sampling_rate`-th.

    Args and Raises as for `train_indices`.

    Returns:
        int64 `(M,)`, ascending, M at least num_frames. Of a short clip the last sampled frame is
        repeated (`published`), or its frames are spread (`stretch`).

    Source: VideoMAE V2.
    """
    _check(n_frames, num_frames, sampling_rate, short_clips)
    frames = np.arange(0, n_frames, sampling_rate)
    missing = num_frames - len(frames)
    if missing <= 0:
        return frames
    if short_clips == "stretch":
        return _window(0, n_frames, num_frames)
    return np.pad(frames, (0, missing), mode="edge")


def test_views(
    n_frames: int,
    num_frames: int,
    sampling_rate: int,
    num_segment: int,
    short_clips: str = "published",
    sparse: bool = False,
) -> np.ndarray:
    """Gives the source frames of all temporal views of a test.

    Args and Raises as for `train_indices`, and

    Args:
        num_segment: views, spread evenly over the clip; a single one is centred. Sparse: the
            views interleave, each a fraction of a segment later than the one before.

    Returns:
        int64 `(num_segment, num_frames)`, rows in order of time. Rows of a short clip may be equal.

    Source: VideoMAE V2; Temporal Segment Networks (ECCV 2016) for the sparse rule.
    """
    if num_segment < 1:
        raise ValueError(f"at least one temporal view is needed: {num_segment=}")
    _check(n_frames, num_frames, sampling_rate, short_clips)
    if sparse:
        shares = (k / num_segment for k in range(num_segment))
        return np.stack([_one_of_each_segment(n_frames, num_frames, share) for share in shares])
    timeline = test_timeline(n_frames, num_frames, sampling_rate, short_clips)
    spare = len(timeline) - num_frames
    if num_segment == 1:
        starts = [spare // 2]
    else:
        starts = [int(k * (spare / (num_segment - 1))) for k in range(num_segment)]
    return np.stack([timeline[start : start + num_frames] for start in starts])


class PassClip(NamedTuple):
    """A place in the endless order of clips: the pass over the list, and the clip's index in it."""

    pass_: int
    clip: int


class ShuffledPasses:
    """The endless order of a list's clips: whole passes, each in an order of its own.

    A place needs no history, so that a run is resumed at any place at no cost.

    Args:
        n: clips in the list, at least 1.
        seed_keys: what the orders derive from, such as (seed, hand).
    """

    def __init__(self, n: int, seed_keys: tuple[int | str, ...]):
        if n < 1:
            raise ValueError(f"a pass needs at least one clip: {n=}")
        self._n = n
        self._seed_keys = seed_keys
        # A batch spans at most two passes unless the list is tiny; a permutation may be large.
        self._order = functools.lru_cache(maxsize=2)(self._draw_order)

    def at(self, position: int) -> PassClip:
        """Gives the clip at a zero-based position that runs on over all passes."""
        if position < 0:
            raise ValueError(f"positions start at 0: {position=}")
        pass_, place = divmod(position, self._n)
        return PassClip(pass_, int(self._order(pass_)[place]))

    def _draw_order(self, pass_: int) -> np.ndarray:
        seed = derive_seed(*self._seed_keys, "shuffle", pass_)
        return np.random.default_rng(seed).permutation(self._n)


def _check(n_frames: int, num_frames: int, sampling_rate: int, short_clips: str) -> None:
    if n_frames < 1:
        raise ValueError(f"a clip without frames cannot be sampled: {n_frames=}")
    if num_frames < 1 or sampling_rate < 1:
        raise ValueError(f"both must be at least 1: {num_frames=}, {sampling_rate=}")
    if short_clips not in SHORT_CLIPS:
        raise ValueError(f"{short_clips=} is none of {', '.join(SHORT_CLIPS)}")


def _window(start: int, length: int, points: int) -> np.ndarray:
    """Points evenly from `start` to `start + length`, truncated; the end itself lies outside."""
    spread = np.linspace(start, start + length, points)
    return np.minimum(spread, start + length - 1).astype(np.int64)


def _short_clip(n_frames: int, num_frames: int, sampling_rate: int, short_clips: str) -> np.ndarray:
    """The window of a clip that is no longer than it."""
    if short_clips == "stretch":
        return _window(0, n_frames, num_frames)
    spread = _window(0, n_frames, n_frames // sampling_rate)
    return np.pad(spread, (0, num_frames - len(spread)), constant_values=n_frames - 1)


def _one_of_each_segment(n_frames: int, num_frames: int, share: float | np.ndarray) -> np.ndarray:
    """The frame at a share, in [0, 1), of each of `num_frames` equal segments."""
    tick = n_frames / num_frames
    points = tick * np.arange(num_frames) + share * tick
    # A share next to 1 may round up to the end of the clip.
    return np.minimum(points, n_frames - 1).astype(np.int64)
