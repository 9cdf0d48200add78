"""List files by name: the file of a hand's folder that serves a mode, or what the folder holds instead."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from utils import UserError

# By the mode that they serve.
USUAL_LISTS = {
    "train": "train_list_video.txt",
    "validation": "val_list_video.txt",
    "test": "test_list_video.txt",
}
LIST_FLAGS = {"train": "train_list", "validation": "val_list", "test": "test_list"}
_ENDINGS = (".txt", ".csv")
_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class ListNames:
    """Names of both hands' list files, relative to each hand's folder; None: the usual name.

    `{hand}` in a name stands for `lh` or `rh`.
    """

    train: str | None = None
    validation: str | None = None
    test: str | None = None

    def candidates(self, mode: str, hand: str) -> list[tuple[str, str]]:
        """Return (mode that a name belongs to, name) of the files that may serve a mode, best first."""
        given = getattr(self, mode)
        found = [(mode, (given or USUAL_LISTS[mode]).replace("{hand}", hand))]
        # The validation list serves the test too, unless there is one for it.
        return found + self.candidates("validation", hand) if mode == "test" and not given else found


def list_file(data_path: str | Path, mode: str, names: ListNames | None = None, hand: str = "lh") -> Path:
    """Return the list that serves a mode: the first that exists, or the last name tried."""
    paths = [Path(data_path) / name for _, name in (names or ListNames()).candidates(mode, hand)]
    return next((path for path in paths if path.is_file()), paths[-1])


def find_list(data_path: str | Path, mode: str, names: ListNames | None = None, hand: str = "lh") -> Path:
    """Return the list that serves a mode.

    Raises:
        UserError: there is none; it says which lists the folder holds, and the flag that names one.
    """
    names = names or ListNames()
    path = list_file(data_path, mode, names, hand)
    if path.is_file():
        return path
    named_by, name = names.candidates(mode, hand)[-1]
    raise UserError(_explain_missing(Path(data_path), hand, LIST_FLAGS[named_by], name))


def _explain_missing(folder: Path, hand: str, flag: str, name: str) -> str:
    where = f"--{hand}_data_path {folder}"
    if Path(name).is_absolute():
        return f"--{flag} {name}: there is no such file"
    if folder.is_file():
        return f"{where}: is a file; give the folder of the list files"
    if not folder.is_dir():
        return f"{where}: there is no such folder"
    held = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)
    if not held:
        return f"{where}: there is no {name} in it, nor any other .txt or .csv file"
    more = f" and {len(held) - _SHOWN} more" if len(held) > _SHOWN else ""
    return (
        f"{where}: there is no {name} in it; it holds {', '.join(held[:_SHOWN])}{more}: "
        f"name the list with --{flag}"
    )
