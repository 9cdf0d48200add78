"""The lists of a data set, what decoding found of their clips, and both in figures."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset import storage
from dataset.annotations import ClipList, clip_folders, find_clip_folder, locate, read_clip_list
from scripts.data.clip_probe import ClipFacts, ClipFile


@dataclasses.dataclass(frozen=True)
class HandList:
    """A list of one hand.

    Attributes:
        hand, mode: whose it is, and the first mode that it serves.
        path: the list file.
        clips: what it holds, repeated lines included.
        folder: where the clips lie.
        keys: of each clip; equal ones are the same file, whatever their paths.
        facts: of the clips that were decoded, by their position.
    """

    hand: str
    mode: str
    path: Path
    clips: ClipList
    folder: str
    keys: Sequence[Hashable]
    facts: Mapping[int, ClipFacts] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.hand} {self.mode}"

    @property
    def labels(self) -> set[int]:
        """The classes that have a clip."""
        return set(self.clips.labels.tolist())

    @property
    def unreadable(self) -> dict[int, str]:
        """Why clips could not be decoded, by their position."""
        return {clip: fact.problem for clip, fact in self.facts.items() if fact.problem}

    @property
    def readable(self) -> list[ClipFacts]:
        """Facts of the clips that could be decoded."""
        return [fact for fact in self.facts.values() if not fact.problem]

    def name(self, clip: int) -> str:
        """The clip as a message says it: printable, with its line."""
        return f"{self.clips[clip]!r} (line {self.clips.lines[clip]})"

    def file(self, clip: int) -> ClipFile:
        """What has to be decoded."""
        return ClipFile(locate(self.clips[clip], self.folder), int(self.clips.frames[clip]))

    def file_key(self, clip: int) -> Hashable:
        """Equal for clips that need decoding only once."""
        return self.keys[clip], int(self.clips.frames[clip])

    def chosen(self, max_clips: int | None) -> list[int]:
        """The clips to decode: all, or some that are spread evenly over the list."""
        count = min(max_clips or len(self.clips), len(self.clips))
        return np.unique(np.linspace(0, len(self.clips) - 1, count).astype(int)).tolist()


def read_hand_list(hand: str, mode: str, path: Path, root: str, num_classes: int | None) -> HandList:
    """Reads a list and finds its clips.

    Args:
        hand, mode: whose it is and which mode it serves.
        path: the list file.
        root: folder or URL that the clips lie under.
        num_classes: labels must be below it; None checks nothing.

    Raises:
        UserError: an unusable list or data root.
    """
    split = "train" if mode == "train" else "val"
    clips = read_clip_list(path, num_classes, folders=clip_folders(root, split))
    folder = find_clip_folder(clips, root, split, path)
    keys = [_identify(locate(name, folder)) for name in clips]
    return HandList(hand, mode, path, clips, folder, keys)


def _identify(place: str) -> Hashable:
    """What all paths and links to a file or folder have in common."""
    if storage.is_url(place):
        return place
    try:
        status = Path(place).stat()
    except (OSError, ValueError):  # nothing is there, or it is no path
        return place
    return status.st_dev, status.st_ino


def describe_list(hand_list: HandList, num_classes: int, window: int) -> dict[str, Any]:
    """One list in figures, as plain data.

    Args:
        hand_list: with the facts of its clips.
        num_classes: classes of the hand.
        window: clips with fewer frames are short.
    """
    clips = hand_list.clips
    lengths = [fact.n_frames for fact in hand_list.readable]
    return {
        "hand": hand_list.hand,
        "mode": hand_list.mode,
        "list": str(hand_list.path),
        "clip_folder": hand_list.folder,
        "clips": len(clips),
        "decoded": len(hand_list.facts),
        "unreadable": [
            {"clip": clips[clip], "line": int(clips.lines[clip]), "reason": reason}
            for clip, reason in hand_list.unreadable.items()
        ],
        "sizes": _describe_sizes(hand_list.readable),
        "frames": _spread(lengths),
        "window": window,
        "short": sum(length < window for length in lengths),
        "labels": _describe_labels(clips.labels, num_classes),
    }


def _describe_sizes(facts: Sequence[ClipFacts]) -> dict[str, Any] | None:
    counts = collections.Counter((fact.width, fact.height) for fact in facts)
    if not counts:
        return None
    text = {size: f"{size[0]}x{size[1]}" for size in counts}
    by_area = sorted(counts, key=lambda size: size[0] * size[1])
    by_count = counts.most_common()
    return {
        "most_common": text[by_count[0][0]],
        "smallest": text[by_area[0]],
        "largest": text[by_area[-1]],
        "clips": {text[size]: count for size, count in by_count},
    }


def _describe_labels(labels: np.ndarray, num_classes: int) -> dict[str, Any]:
    counts = np.bincount(labels, minlength=num_classes)
    return {
        "classes": num_classes,
        "without_clip": np.flatnonzero(counts == 0).tolist(),
        "clips_a_class": _spread(counts[counts > 0].tolist()),
        "clips": {str(label): int(counts[label]) for label in np.flatnonzero(counts)},
    }


def _spread(numbers: Sequence[int]) -> dict[str, float] | None:
    """The least, the middle and the greatest number."""
    if not numbers:
        return None
    return {"min": min(numbers), "median": float(np.median(numbers)), "max": max(numbers)}
