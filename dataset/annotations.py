"""List files: one clip a line, `relative/path.mp4 label`, and the folder that the clips lie in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils import UserError

# The label is the last field; blanks, tabs and commas separate, so that paths may hold blanks.
_LINE = re.compile(r"\s*(.*\S)\s*(?:[\s,])\s*(\d{1,9})\s*")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_PROBED_CLIPS = 16


class ClipList:
    """Paths and labels of a list's clips.

    Paths lie in one byte string with offsets: a million of them costs little memory, and forked
    workers share it, because nothing in it has a reference count of its own.
    """

    def __init__(self, paths: list[str], labels: list[int], lines: list[int]):
        """Takes equally long lists of paths as written, labels and one-based line numbers."""
        encoded = [os.fsencode(path) for path in paths]
        self._blob = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self.labels = np.asarray(labels, np.int64)
        self.lines = np.asarray(lines, np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, clip: int) -> str:
        """The clip's path as the list has it."""
        start = self._ends[clip - 1] if clip > 0 else 0
        return os.fsdecode(self._blob[start : self._ends[clip]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return (self[clip] for clip in range(len(self)))


def read_clip_list(path: str | Path, num_classes: int | None = None, unique: bool = False) -> ClipList:
    """Reads a list file.

    Args:
        path: the list file; empty lines are skipped.
        num_classes: labels must be below it; None checks nothing.
        unique: keep one of several equal lines, so that an evaluation counts each clip once.

    Raises:
        UserError: no such file, an empty list, a malformed line, a label out of range, or one clip
            with two labels; file and line numbers are named.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such list file")
    paths: list[str] = []
    labels: list[int] = []
    lines: list[int] = []
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            match = _LINE.fullmatch(line)
            if match is None:
                raise UserError(f"{path}:{number}: not `path label`: {line.strip()!r}")
            paths.append(match[1].rstrip(", \t"))
            labels.append(int(match[2]))
            lines.append(number)
    if not paths:
        raise UserError(f"{path}: the list is empty")
    clips = ClipList(paths, labels, lines)
    _check_labels(path, clips, num_classes)
    keep = _first_occurrences(path, paths, clips)
    if unique and len(keep) < len(clips):
        return ClipList(*([column[i] for i in keep] for column in (paths, labels, lines)))
    return clips


def _check_labels(path: Path, clips: ClipList, num_classes: int | None) -> None:
    if num_classes is None or clips.labels.max() < num_classes:
        return
    worst = int(np.argmax(clips.labels >= num_classes))
    raise UserError(
        f"{path}:{clips.lines[worst]}: label {clips.labels[worst]} is out of range: "
        f"there are {num_classes} classes (0 to {num_classes - 1})"
    )


def _first_occurrences(path: Path, paths: list[str], clips: ClipList) -> np.ndarray:
    """Positions of the first line of each clip; lines that disagree on its label are an error."""
    hashes = np.fromiter((hash(name) for name in paths), np.int64, len(paths))
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    conflicts = np.flatnonzero(clips.labels[first[inverse]] != clips.labels)
    for clip in conflicts:
        earlier = first[inverse[clip]]
        raise UserError(
            f"{path}: lines {clips.lines[earlier]} and {clips.lines[clip]} give {paths[clip]!r} "
            f"two labels, {clips.labels[earlier]} and {clips.labels[clip]}"
        )
    return np.sort(first)


def is_url(path: str) -> bool:
    """Whether a path has a scheme such as `https://`."""
    return _URL.match(path) is not None


def locate(path: str, folder: Path | None) -> str:
    """Where a clip lies: in `folder`, unless its path is absolute or a URL."""
    return path if folder is None or is_url(path) or Path(path).is_absolute() else str(folder / path)


def find_clip_folder(clips: ClipList, root: str | Path, split: str, list_path: str | Path) -> Path:
    """The folder under `root` that holds the clips of a list.

    A sample of the list is looked for in every layout in use, so that a wrong root fails at once.

    Args:
        clips: the list.
        root: data root as given by the user.
        split: `train` or `val`: part of some layouts' folder names.
        list_path: named in the error.

    Raises:
        UserError: none of the sampled clips exists in any of the folders.
    """
    root = Path(root)
    probes = np.unique(np.linspace(0, len(clips) - 1, _PROBED_CLIPS).astype(int))
    folders = [root / name for name in ("videos", f"videos_{split}", f"video_{split}", "")]
    sample = [clips[clip] for clip in probes]
    local = [name for name in sample if not is_url(name)]
    if not local:
        return root
    found = [sum(Path(locate(name, folder)).exists() for name in local) for folder in folders]
    if max(found) == 0:
        raise UserError(
            f"{list_path}: none of {len(local)} sampled clips (such as {local[0]!r}) is in any of "
            + ", ".join(str(folder) for folder in folders)
            + "; check the data root"
        )
    return folders[int(np.argmax(found))]
