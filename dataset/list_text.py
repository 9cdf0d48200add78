"""Text of list files as other programs write it: encodings, and quotes around names."""

from __future__ import annotations

import codecs
import functools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dataset import storage
from utils import UserError

# The marks of UTF-32 begin like those of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_HEAD = 256  # bytes
# A mark within the quotes is doubled.
_QUOTED_NAME = """ "(?:[^"]|"")+" | '(?:[^']|'')+' """
_QUOTED = re.compile(_QUOTED_NAME, re.VERBOSE)
# As CSV writers quote: `"take 1.mp4" 0`, `"take 1.mp4","0"`, and a folder's frames between.
_QUOTED_LINE = re.compile(
    rf"""\s* (?P<name>{_QUOTED_NAME}) [\s,]+
    (?: (?P<q>["']?)(?P<frames>\d{{1,9}})(?P=q) [\s,]+ )? (?P<p>["']?)(?P<label>\d{{1,9}})(?P=p) \s*""",
    re.VERBOSE,
)
QUOTE_MARKS = "\"'"


def encoding_of(path: Path) -> str:
    """Return the encoding of a text file: UTF-16 and UTF-32 by their marks or zero bytes, else UTF-8.

    Raises:
        UserError: zero bytes that are not those of UTF-16.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    even, odd = head[::2].count(0), head[1::2].count(0)
    if not even and not odd:
        return "utf-8-sig"
    # Letters, digits and separators of paths are zero in their high byte.
    if (even and odd) or 4 * max(even, odd) < len(head):
        raise UserError(f"{path}: holds zero bytes, so it is no text; save it as UTF-8 text")
    return "utf-16-be" if even else "utf-16-le"


def read_lines(path: Path, errors: str = "surrogateescape") -> Iterator[str]:
    """Yield the lines of a text file in UTF-8, UTF-16 or UTF-32.

    Args:
        path: the file.
        errors: what becomes of bytes that are not UTF-8; the default keeps names of files as they are.

    Raises:
        UserError: UTF-16 or UTF-32 that is damaged, or no text.
        OSError: the file cannot be read.
    """
    encoding = encoding_of(path)
    try:
        with path.open(encoding=encoding, errors=errors if encoding == "utf-8-sig" else "strict") as file:
            yield from file
    except UnicodeError as error:
        raise UserError(f"{path}: damaged {encoding.upper()}: {error}; save it as UTF-8 text") from None


def unquote(text: str) -> str | None:
    """Return a quoted text without its quotes, or None for any other text."""
    if not _QUOTED.fullmatch(text):
        return None
    return text[1:-1].replace(2 * text[0], text[0])


class Quotes:
    """Removes the quotes around names, except where a file has them in its own name.

    A name that exists with its quotes begins, as a path, with a folder or file whose name begins with a
    quotation mark. So each local folder is listed once, and no file is asked for unless there are such.
    Behind a URL, each answer costs a request, so the first quoted name of the list decides for all.

    Args:
        folders: folders or URLs under which the names may exist.
    """

    def __init__(self, folders: Sequence[str]):
        places = {folder: storage.local_path(folder) for folder in folders}
        self._local = [path for path in places.values() if path is not None]
        self._remote = [folder for folder, path in places.items() if path is None]
        self._first_answer: bool | None = None

    def split_line(self, line: str) -> tuple[str, int | None, int] | None:
        """Split a line `"path" label` or `"path" frames label`.

        Returns:
            Path, frames (None for a video) and label, or None if the line has no quotes around its path.
        """
        # Lists may have millions of lines, few of them quoted.
        if line.lstrip()[:1] not in QUOTE_MARKS or not (match := _QUOTED_LINE.fullmatch(line)):
            return None
        frames = int(match["frames"]) if match["frames"] else None
        return self._settle(match["name"]), frames, int(match["label"])

    def _settle(self, quoted: str) -> str:
        exists = self._exists_here(quoted) or (self._remote and self._exists_there(quoted))
        return quoted if exists else unquote(quoted)

    def _exists_here(self, quoted: str) -> bool:
        first = quoted.partition("/")[0]
        return first in self._quoted_entries and any(Path(f, quoted).exists() for f in self._local)

    def _exists_there(self, quoted: str) -> bool:
        if self._first_answer is None:
            self._first_answer = any(storage.exists(storage.join(f, quoted)) for f in self._remote)
        return self._first_answer

    @functools.cached_property
    def _quoted_entries(self) -> set[str]:
        return {name for folder in self._local for name in _entries(folder) if name[0] in QUOTE_MARKS}


def _entries(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries)
    except OSError:  # there is none, or it may not be listed
        return
