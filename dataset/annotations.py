"""List files: one clip a line, `relative/path.mp4 label`, and the folder that the clips lie in.

A clip may also be a folder of pictures, one a frame: `relative/folder frames label`.
"""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dataset import storage
from dataset.list_text import Quotes, read_lines
from utils import UserError, describe_stand_in

# The label is the last field; blanks, tabs and commas separate, so that paths may hold blanks.
_LINE = re.compile(r"\s*(.*\S)\s*(?:[\s,])\s*(\d{1,9})\s*")
_FRAMES = re.compile(r"(.*[^\s,])[\s,]+(\d{1,9})")
_PROBED_CLIPS = 16
_PROBED_URLS = 4  # each costs a request


class ClipList:
    """Paths and labels of a list's clips.

    Paths lie in one byte string with offsets: a million of them costs little memory, and forked
    workers share it, because nothing in it has a reference count of its own.

    Attributes:
        labels: int64 `(n,)`.
        frames: int64 `(n,)`, pictures of a clip that is a folder of them; 0: the clip is a video file.
        lines: int64 `(n,)`, one-based line numbers.
    """

    def __init__(
        self, blob: np.ndarray, ends: np.ndarray, labels: np.ndarray, frames: np.ndarray, lines: np.ndarray
    ):
        """Takes all paths as bytes behind each other, where each ends in them, and the columns."""
        self._blob, self._ends = blob, ends
        self.labels, self.frames, self.lines = labels, frames, lines

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, clip: int) -> str:
        """The clip's path as the list has it."""
        start = self._ends[clip - 1] if clip > 0 else 0
        return os.fsdecode(self._blob[start : self._ends[clip]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return (self[clip] for clip in range(len(self)))

    def digest(self) -> str:
        """Equal for equal lists, and hardly ever for others."""
        hashed = hashlib.sha256()
        for column in (self._blob, self._ends, self.labels, self.frames):
            hashed.update(np.ascontiguousarray(column))
        return hashed.hexdigest()

    def where(self, kept: np.ndarray) -> ClipList:
        """The clips whose place in the bool array `(n,)` is true."""
        lengths = np.diff(self._ends, prepend=0)
        columns = (self.labels, self.frames, self.lines)
        return ClipList(
            self._blob[np.repeat(kept, lengths)],
            np.cumsum(lengths[kept]),
            *(column[kept] for column in columns),
        )


def read_clip_list(
    path: str | Path, num_classes: int | None = None, unique: bool = False, folders: Sequence[str] = ()
) -> ClipList:
    """Reads a list file.

    Args:
        path: the list file; empty lines are skipped. `path label` names a video file; `path frames
            label` a folder of that many pictures. Quotes around a path are removed.
        num_classes: labels must be below it; None checks nothing.
        unique: keep one of several equal lines, so that an evaluation counts each clip once.
        folders: where clips may be located, see `clip_folders`. A path that exists in one of them with its
            quotes keeps them.

    Raises:
        UserError: no such file, an empty list, a malformed line, a label out of range, or one clip
            with two labels; file and line numbers are named.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such list file")
    clips, hashes = _parse(path, Quotes(folders))
    if not len(clips):
        raise UserError(f"{path}: the list is empty")
    _check_labels(path, clips, num_classes)
    first = _first_occurrences(path, clips, hashes)
    return clips.where(first) if unique and not first.all() else clips


def _parse(path: Path, quotes: Quotes) -> tuple[ClipList, np.ndarray]:
    """The list, and a hash of each path; no Python object a line outlives its line."""
    blob = bytearray()
    ends, labels, frames, lines, hashes = (array("q") for _ in range(5))
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        parts = quotes.split_line(line) or _split_line(line)
        if parts is None:
            stand_in = describe_stand_in(path)
            raise UserError(
                f"{path}: {stand_in}" if stand_in else f"{path}:{number}: not `path label`: {line.strip()!r}"
            )
        name, count, label = parts
        if count == 0:
            raise UserError(f"{path}:{number}: {name!r} is said to have 0 frames")
        blob += os.fsencode(name)
        for column, value in zip(
            (ends, labels, frames, lines, hashes),
            (len(blob), label, count or 0, number, hash(name)),
            strict=True,
        ):
            column.append(value)
    columns = [np.frombuffer(column, np.int64) for column in (ends, labels, frames, lines, hashes)]
    return ClipList(np.frombuffer(blob, np.uint8), *columns[:-1]), columns[-1]


def _split_line(line: str) -> tuple[str, int | None, int] | None:
    """Return (path, frames or None, label) of a line without quotes around its path, or None if malformed."""
    if (match := _LINE.fullmatch(line)) is None:
        return None
    name, label = match[1].rstrip(", \t"), int(match[2])
    if folder := _FRAMES.fullmatch(name):
        return folder[1], int(folder[2]), label
    return name, None, label


def _check_labels(path: Path, clips: ClipList, num_classes: int | None) -> None:
    if num_classes is None or clips.labels.max() < num_classes:
        return
    worst = int(np.argmax(clips.labels >= num_classes))
    raise UserError(
        f"{path}:{clips.lines[worst]}: label {clips.labels[worst]} is out of range: "
        f"there are {num_classes} classes (0 to {num_classes - 1})"
    )


def _first_occurrences(path: Path, clips: ClipList, hashes: np.ndarray) -> np.ndarray:
    """Which lines, bool `(n,)`, are their clip's first; lines that disagree on its label are an error."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    conflicts = np.flatnonzero(clips.labels[first[inverse]] != clips.labels)
    for clip in conflicts:
        earlier = first[inverse[clip]]
        raise UserError(
            f"{path}: lines {clips.lines[earlier]} and {clips.lines[clip]} give {clips[clip]!r} "
            f"two labels, {clips.labels[earlier]} and {clips.labels[clip]}"
        )
    is_first = np.zeros(len(clips), bool)
    is_first[first] = True
    return is_first


def locate(path: str, folder: str | None) -> str:
    """Where a clip lies: in `folder`, a path or a URL, unless its own path is absolute or a URL."""
    if folder is None or storage.is_url(path) or Path(path).is_absolute():
        return path
    return storage.join(folder, path)


def clip_folders(root: str | Path, split: str) -> list[str]:
    """Return the folders under a data root that may hold the clips of a list: every layout in use.

    Args:
        root: data root as given by the user, a folder or a URL.
        split: `train` or `val`: part of some layouts' folder names.
    """
    return [storage.join(str(root), name) for name in ("videos", f"videos_{split}", f"video_{split}", "")]


def find_clip_folder(clips: ClipList, root: str | Path, split: str, list_path: str | Path) -> str:
    """The folder under `root` that holds the clips of a list.

    A sample of the list is looked for in every layout in use, so that a wrong root fails at once.

    Args:
        clips: the list.
        root: data root as given by the user, a folder or a URL.
        split: `train` or `val`: part of some layouts' folder names.
        list_path: named in the error.

    Raises:
        UserError: none of the sampled clips exists in any of the folders, or a URL cannot be asked.
    """
    root, folders = str(root), clip_folders(root, split)
    sample = _sample(clips, _PROBED_URLS if storage.is_url(root) else _PROBED_CLIPS)
    inside = [name for name in sample if not storage.is_url(name)]
    if not inside:  # they say themselves where they are, but should be there
        folders = [root]
    probes = inside or sample[:_PROBED_URLS]
    found = [sum(storage.exists(locate(name, folder)) for name in probes) for folder in folders]
    if max(found) == 0:
        looked_in = f"is in any of {', '.join(folders)}; check the data root" if inside else "can be found"
        raise UserError(
            f"{list_path}: none of {len(probes)} sampled clips (such as {probes[0]!r}) {looked_in}"
        )
    return folders[int(np.argmax(found))]


def _sample(clips: ClipList, count: int) -> list[str]:
    return [clips[clip] for clip in np.unique(np.linspace(0, len(clips) - 1, count).astype(int))]
