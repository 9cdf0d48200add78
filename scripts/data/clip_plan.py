"""Which clips are cut out of HA-ViD's recordings, and which are not and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scripts.data.havid_layout import HandLabels, Segment, is_of_view, read_segments, recording_of
from utils import UserError, derive_seed


class Clip(NamedTuple):
    """Frames `start` to `stop - 1` of a recording, which one hand's list has as class `label`."""

    hand: str
    split: str
    recording: Path
    start: int
    stop: int
    label: int

    @property
    def name(self) -> str:
        """The clip's file name, by which it is known again."""
        return f"{self.recording.stem}_{self.start:06}_{self.stop:06}.mp4"


class Skip(NamedTuple):
    """What is not in the lists.

    Attributes:
        recording: its name.
        frames: first frame and the one behind the last; None: all of the recording.
        reason: why.
        asked: whether a flag asked for that; otherwise it is worth a warning.
    """

    hand: str
    split: str
    recording: str
    frames: tuple[int, int] | None
    reason: str
    asked: bool = False


@dataclass(frozen=True)
class Rules:
    """What a user wants of the clips.

    Attributes:
        view: camera, 0 to 2.
        min_frames: shorter runs of a label make no clip.
        drop: labels that make no clips.
        window: frames of each clip; None: clips are whole segments.
        per_class: with `window`, most clips of a class in a list.
        seed: of the windows' places.
    """

    view: int
    min_frames: int
    drop: frozenset[str]
    window: int | None
    per_class: int
    seed: int


@dataclass
class Plan:
    """Clips of both hands, what was left out, and what a user should know beside."""

    clips: list[Clip] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def drop_failed(self, problem_of: Callable[[Clip], str | None]) -> None:
        """Moves the clips that have a problem to what was left out."""
        for clip in self.clips:
            if problem := problem_of(clip):
                frames = (clip.start, clip.stop)
                self.skips.append(Skip(clip.hand, clip.split, clip.recording.stem, frames, problem))
        self.clips = [clip for clip in self.clips if not problem_of(clip)]


def names_of_view(labels: HandLabels, view: int) -> Iterator[tuple[str, str]]:
    """(split, recording) of a hand, as far as they are of a view."""
    for split, names in labels.splits.items():
        for name in names:
            if is_of_view(name, view):
                yield split, name


def needed_recordings(
    hands: Mapping[str, HandLabels], recordings: Mapping[str, list[Path]], view: int
) -> list[Path]:
    """The video files that the splits name, each once, as far as they are there."""
    found = {}
    for labels in hands.values():
        for _, name in names_of_view(labels, view):
            try:
                found[recording_of(recordings, name, view)] = True
            except UserError:
                continue  # the plan says so
    return list(found)


def plan_hand(
    plan: Plan,
    hand: str,
    labels: HandLabels,
    recordings: Mapping[str, list[Path]],
    lengths: Mapping[Path, int | str],
    rules: Rules,
) -> None:
    """Adds a hand's clips to a plan.

    Args:
        plan: is added to.
        hand: `lh` or `rh`.
        labels: where the hand's labels are.
        recordings: {name: video files}.
        lengths: {video file: frames, or why it cannot be read}.
        rules: what is wanted.
    """
    by_split: dict[str, list[Clip]] = {split: [] for split in labels.splits}
    tested = set(labels.splits["val"])
    for split, name in names_of_view(labels, rules.view):
        try:
            if split == "train" and name in tested:
                raise UserError("is in the test split too")
            path = recording_of(recordings, name, rules.view)
            segments = _segments_within(plan, hand, labels.ground_truth / f"{name}.txt", path, lengths)
        except UserError as error:
            plan.skips.append(Skip(hand, split, name, None, str(error)))
            continue
        for segment in segments:
            if skip := _why_not(segment, labels, rules):
                frames = (segment.start, segment.stop)
                plan.skips.append(Skip(hand, split, name, frames, *skip))
            else:
                label = labels.ids[segment.label]
                by_split[split].append(Clip(hand, split, path, segment.start, segment.stop, label))
    for clips in by_split.values():
        plan.clips += clips if rules.window is None else balanced_windows(clips, rules)


def _segments_within(
    plan: Plan, hand: str, truth: Path, recording: Path, lengths: Mapping[Path, int | str]
) -> list[Segment]:
    """A recording's segments, none of which is longer than the recording.

    Raises:
        UserError: there are none; the message is the reason.
    """
    if not truth.is_file():
        raise UserError("groundTruth has no file of this name")
    frames, segments = lengths[recording], read_segments(truth)
    if isinstance(frames, str):
        raise UserError(f"the recording cannot be read: {frames}")
    if not segments:
        raise UserError("its groundTruth is empty")
    labelled = segments[-1].stop
    if labelled != frames:
        plan.notes.append(
            f"{hand} {recording.stem}: {labelled} labels, {frames} frames; cut at {min(labelled, frames)}"
        )
    return [one._replace(stop=min(one.stop, frames)) for one in segments if one.start < frames]


def _why_not(segment: Segment, labels: HandLabels, rules: Rules) -> tuple[str, bool] | None:
    """Why a segment makes no clip, and whether a flag asked for that."""
    length = segment.stop - segment.start
    if segment.label in rules.drop:
        return f"--drop {segment.label}", True
    if segment.label not in labels.ids:
        return f"label {segment.label!r} is not in mapping.txt", False
    if length < rules.min_frames:
        return f"shorter than --min_frames {rules.min_frames}", True
    if rules.window is not None and length < rules.window:
        return f"shorter than --window {rules.window}", True
    return None


def balanced_windows(clips: list[Clip], rules: Rules) -> list[Clip]:
    """Windows out of whole segments, equally many of each class as far as there are so many.

    All places where a class's windows may begin, one segment behind the other, are cut into equal
    strata, and each stratum gives a window: they cover everything, and overlap only in classes
    that have too few frames.
    """
    by_class: dict[int, list[Clip]] = {}
    for clip in clips:
        by_class.setdefault(clip.label, []).append(clip)
    windows = []
    for label, segments in sorted(by_class.items()):
        places = np.array([clip.stop - clip.start - rules.window + 1 for clip in segments])
        ends = np.cumsum(places)
        edges = np.linspace(0, ends[-1], min(rules.per_class, int(ends[-1])) + 1).astype(int)
        rng = np.random.default_rng(derive_seed(rules.seed, segments[0].hand, segments[0].split, label))
        for place in rng.integers(edges[:-1], edges[1:]):
            number = int(np.searchsorted(ends, place, side="right"))
            start = segments[number].stop - rules.window - int(ends[number] - 1 - place)
            windows.append(segments[number]._replace(start=start, stop=start + rules.window))
    return windows
