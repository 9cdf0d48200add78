"""Windows that slide over a video whose frames come one by one; only frames still needed are kept.

A *window* is a stretch of `span` source frames, of which the model looks at T, as in the trainer's
validation. Shapes: T frames of a view, S side of a view.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dataset.sampling import validation_indices
from utils import UserError


@dataclass(frozen=True)
class WindowRule:
    """Which frames of a window the model looks at.

    Attributes:
        span: source frames that a window covers.
        num_frames: T.
        short_clips: what to do with a video shorter than a window, as the run did in its validation.
        sparse: the run took the middle of each of T equal segments of a whole clip.
    """

    span: int
    num_frames: int
    short_clips: str = "published"
    sparse: bool = False

    @classmethod
    def of_run(
        cls, args: argparse.Namespace, window: int | None = None, sampling_rate: int | None = None
    ) -> WindowRule:
        """The rule of a run's validation, with another window or sampling rate if one is given.

        Raises:
            UserError: the run looked at whole clips, so that it has no window of its own.
        """
        if args.sparse_sample and not window:
            raise UserError(
                "--window is needed: the model was trained with --sparse_sample, on whole clips; give the "
                "length of such a clip in frames"
            )
        span = window or args.num_frames * (sampling_rate or args.sampling_rate)
        return cls(span, args.num_frames, args.short_clips, args.sparse_sample)

    def of_window(self) -> np.ndarray:
        """Frames of a whole window, counted from its start: int64 `(T,)`, ascending."""
        # A window is stretched to exactly the span, whether or not the span divides by T.
        return validation_indices(self.span, self.num_frames, self.span, "stretch", self.sparse)

    def of_short_video(self, n_frames: int) -> np.ndarray:
        """Frames of a video shorter than a window: int64 `(T,)`, ascending."""
        rate = -(-self.span // self.num_frames)
        return validation_indices(n_frames, self.num_frames, rate, self.short_clips, self.sparse)


class Window(NamedTuple):
    """A stretch of a video, and what the model sees of it.

    Attributes:
        start: first source frame; negative where a centred window begins before the video.
        stop: the source frame after the last.
        views: T times uint8 `(S, S, 3)`, shared with other windows.
    """

    start: int
    stop: int
    views: list[np.ndarray]


class FrameCounter:
    """Counts the frames that go through.

    Attributes:
        count: so far.
    """

    def __init__(self):
        self.count = 0

    def through(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The frames."""
        for frame in frames:
            self.count += 1
            yield frame


class LastFrames:
    """The last `span` frames of those that were added.

    Attributes:
        count: frames that were added.
    """

    def __init__(self, span: int):
        self._ring: list[np.ndarray | None] = [None] * span
        self.count = 0

    def add(self, frame: np.ndarray) -> None:
        """Takes the next frame, and forgets the oldest if there is no more room."""
        self._ring[self.count % len(self._ring)] = frame
        self.count += 1

    def take(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Frames by their numbers, counted from the first that was added."""
        if numbers.min() < max(0, self.count - len(self._ring)) or numbers.max() >= self.count:
            raise IndexError(f"frames {numbers.min()} to {numbers.max()} are not all there")
        return [self._ring[number % len(self._ring)] for number in numbers.tolist()]


def covering_windows(frames: Iterable[np.ndarray], rule: WindowRule, stride: int) -> Iterator[Window]:
    """Windows that lie in the video and cover all of it.

    One starts every `stride` frames, at most `rule.span`; another one ends with the last frame, unless one
    does so anyway. A video shorter than a window is one window, by the run's rule for short clips.
    """
    kept, offsets, start = LastFrames(rule.span), rule.of_window(), 0
    for frame in frames:
        kept.add(frame)
        if kept.count == start + rule.span:
            yield Window(start, kept.count, kept.take(start + offsets))
            start += stride
    count = kept.count
    if 0 < count < rule.span:
        yield Window(0, count, kept.take(rule.of_short_video(count)))
    elif count > start - stride + rule.span:
        yield Window(count - rule.span, count, kept.take(count - rule.span + offsets))


def centred_windows(frames: Iterable[np.ndarray], rule: WindowRule, stride: int) -> Iterator[Window]:
    """A window around each `stride`-th frame, from the first.

    The window of frame t begins at `t - rule.span // 2`. Where it reaches beyond the video, the first or
    last frame stands for those that are missing, however short the video is.
    """
    kept, offsets, start = LastFrames(rule.span), rule.of_window(), -(rule.span // 2)

    def window() -> Window:
        numbers = np.clip(start + offsets, 0, kept.count - 1)
        return Window(start, start + rule.span, kept.take(numbers))

    for frame in frames:
        kept.add(frame)
        if kept.count == start + rule.span:
            yield window()
            start += stride
    while start + rule.span // 2 < kept.count:
        yield window()
        start += stride
