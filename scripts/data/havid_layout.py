"""HA-ViD as it is downloaded: where labels, splits, class names and recordings lie, and reading them.

Two layouts are known. In both, a recording is a video file, and `groundTruth` has a text file of the
same name for it, with one label a frame.

    DIR/view0_lh_pt/{groundTruth/*.txt, splits/*.bundle, mapping.txt}    the same of `rh`, views 0 to 2
    DIR/{groundTruth,splits}/{left,right}_hand/*    DIR/mapping.txt, or one a hand    DIR/videos/*.mp4
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from utils import UserError

HANDS = {"lh": "left_hand", "rh": "right_hand"}
SPLITS = {"train": ("train",), "val": ("test", "val")}  # as the trainer and as bundle files call them
_VIDEOS = {".mp4", ".mkv", ".avi", ".mov"}
_VIEW = re.compile(r".+M(\d)")
_ID_FIRST = re.compile(r"(\d{1,9})[\s,]+(.*\S)")
_ID_LAST = re.compile(r"(.*[^\s,])[\s,]+(\d{1,9})")


@dataclass(frozen=True)
class HandLabels:
    """What is known of a hand.

    Attributes:
        ground_truth: folder of the files with one label a frame.
        splits: {`train` or `val`: names of recordings}.
        ids: {label: class}, classes are 0, 1, 2, ...
    """

    ground_truth: Path
    splits: dict[str, list[str]]
    ids: dict[str, int]


class Segment(NamedTuple):
    """A run of equal labels: frames `start` to `stop - 1`."""

    start: int
    stop: int
    label: str


def find_hand(root: Path, hand: str, view: int, tasks: str, split: int) -> HandLabels:
    """Reads a hand's splits and class names in whichever layout is there.

    Args:
        root: folder of the download.
        hand: `lh` or `rh`.
        view: camera, 0 to 2.
        tasks: `pt` (primitive tasks) or `aa` (atomic actions).
        split: which of several pairs of bundles.

    Raises:
        UserError: a folder or file is not there, or is not what it should be; it is named.
    """
    folder = root / f"view{view}_{hand}_{tasks}"
    if folder.is_dir():
        truth, bundles, mappings = folder / "groundTruth", folder / "splits", [folder / "mapping.txt"]
    elif (root / "groundTruth").is_dir():
        truth, bundles = (root / kind / HANDS[hand] for kind in ("groundTruth", "splits"))
        mappings = [place / "mapping.txt" for place in (truth, bundles, root / HANDS[hand], root)]
        mappings[-1:-1] = [root / f"mapping_{HANDS[hand]}.txt", root / "mapping" / f"{HANDS[hand]}.txt"]
    else:
        raise UserError(f"{folder}: there is no such folder, nor {root / 'groundTruth' / HANDS[hand]}")
    for needed in (truth, bundles):
        if not needed.is_dir():
            raise UserError(f"{needed}: there is no such folder")
    mapping = next((path for path in mappings if path.is_file()), None)
    if mapping is None:
        raise UserError(f"{mappings[0]}: there is no such file")
    splits = {name: read_bundle(find_bundle(bundles, words, split)) for name, words in SPLITS.items()}
    return HandLabels(truth, splits, read_mapping(mapping))


# ----------------------------------------------------------------------------------------- files


def find_bundle(folder: Path, words: Iterable[str], split: int) -> Path:
    """The bundle whose name begins with one of some words, such as `test.split1.bundle`.

    Raises:
        UserError: there is none, or several and none has the split's number.
    """
    for word in words:
        found = sorted(path for path in folder.glob("*.bundle") if path.name.lower().startswith(word))
        numbered = [path for path in found if re.search(rf"\D0*{split}\.bundle$", path.name)]
        if numbered or (len(found) == 1 and not re.search(r"split\d", found[0].name)):
            return (numbered or found)[0]
        if found:
            names = ", ".join(path.name for path in found)
            raise UserError(f"{folder}: none of {names} is of split {split}, see --split")
    raise UserError(f"{folder / '*.bundle'}: there is none whose name begins with {' or '.join(words)}")


def read_bundle(path: Path) -> list[str]:
    """Names of recordings, each once, without folder and file type."""
    names = (Path(line.strip().replace("\\", "/")).name for line in _lines(path))
    stems = (re.sub(r"\.(txt|mp4|mkv|avi|mov|npy)$", "", name, flags=re.IGNORECASE) for name in names)
    return list(dict.fromkeys(stem for stem in stems if stem))


def read_mapping(path: Path) -> dict[str, int]:
    """{label: class} of a file with lines `id label` or `label id`; blanks, tabs or commas separate.

    Raises:
        UserError: a line is neither, a label or an id comes twice, or the ids are not 0, 1, 2, ...
    """
    lines = [line.strip() for line in _lines(path) if line.strip()]
    if not lines:
        raise UserError(f"{path}: is empty")
    readings = [_read_pairs(lines, _ID_FIRST, 1), _read_pairs(lines, _ID_LAST, 2)]
    pairs = [pairs for pairs in readings if pairs is not None]
    if not pairs:
        raise UserError(f"{path}: its lines are neither all `id label` nor all `label id`")
    # Labels may be numbers too: then only one of the two columns counts from 0.
    good = [one for one in pairs if sorted(number for _, number in one) == list(range(len(lines)))]
    if not good:
        numbers = sorted(number for _, number in pairs[0])
        wrong = next(number for place, number in enumerate(numbers) if number != place)
        raise UserError(f"{path}: ids must be 0 to {len(lines) - 1}, each once; {wrong} is out of line")
    ids = dict(good[0])
    if len(ids) < len(lines):
        twice = next(label for place, (label, _) in enumerate(good[0]) if label in dict(good[0][:place]))
        raise UserError(f"{path}: label {twice!r} has two ids")
    return ids


def _read_pairs(lines: list[str], form: re.Pattern[str], id_group: int) -> list[tuple[str, int]] | None:
    """(label, id) of each line, or None if a line has another form."""
    matches = [form.fullmatch(line) for line in lines]
    if None in matches:
        return None
    return [(match[3 - id_group], int(match[id_group])) for match in matches]


def read_segments(path: Path) -> list[Segment]:
    """Runs of equal labels of a file with one label a frame; blank lines at its end are no frames.

    Raises:
        UserError: the file cannot be read, or a line within it is empty.
    """
    labels = [line.strip() for line in _lines(path)]
    while labels and not labels[-1]:
        labels.pop()
    if "" in labels:
        raise UserError(f"{path}:{labels.index('') + 1}: there is no label")
    segments: list[Segment] = []
    for frame, label in enumerate(labels):
        if segments and segments[-1].label == label:
            segments[-1] = segments[-1]._replace(stop=frame + 1)
        else:
            segments.append(Segment(frame, frame + 1, label))
    return segments


def _lines(path: Path) -> list[str]:
    try:
        # Not splitlines(): it also breaks at characters that no label file means as line ends.
        return path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


# ------------------------------------------------------------------------------------ recordings


def find_recordings(folder: Path, without: Path) -> dict[str, list[Path]]:
    """{name without file type: video files} of a folder and those in it, but not those in `without`."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _VIDEOS and not path.resolve().is_relative_to(without.resolve()):
            found.setdefault(path.stem, []).append(path)
    return found


def is_of_view(name: str, view: int) -> bool:
    """Whether a recording's name, such as `S01A02I01M0`, is of a view; names that do not say are."""
    match = _VIEW.fullmatch(name)
    return match is None or int(match[1]) == view


def recording_of(recordings: dict[str, list[Path]], name: str, view: int) -> Path:
    """The video file of a name; where labels are shared by the views, that with the view's ending.

    Raises:
        UserError: there is none, or there are several.
    """
    paths = recordings.get(name) or recordings.get(f"{name}M{view}") or []
    if len(paths) != 1:
        several = f"{len(paths)} recordings have this name, such as {paths[0]}" if paths else ""
        raise UserError(several or "there is no recording of this name")
    return paths[0]
