"""What a label is called, from the `mapping.txt` that data sets keep beside their lists."""

from __future__ import annotations

import re
from pathlib import Path

from dataset.list_text import read_lines
from utils import UserError

# Blanks, tabs and commas separate, as in the lists; names may hold blanks.
_LINE = re.compile(r"\s*(\d{1,9})[\s,]+(.*\S)\s*")


def read_class_names(path: str | Path, flag: str = "") -> dict[int, str]:
    """{label: name} of a file with a line `label name` for each class.

    Args:
        path: the file; empty lines are skipped.
        flag: named in errors, if the user gave the file with one.

    Raises:
        UserError: no such file, or a line that is something else; the line is named.
    """
    where = f"{flag} {path}".strip()
    try:
        lines = list(read_lines(Path(path), errors="replace"))
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from None
    names: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match:
            names[int(match[1])] = match[2]
        elif line.strip():
            raise UserError(f"{where}:{number}: not `label name`: {line.strip()!r}")
    return names


def names_beside_lists(data_path: str | Path) -> dict[int, str]:
    """The class names of a hand's folder; none if it holds no `mapping.txt`."""
    path = Path(data_path) / "mapping.txt"
    return read_class_names(path) if path.is_file() else {}
