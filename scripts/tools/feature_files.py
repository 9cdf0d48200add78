"""Files of features: an array of a column a frame, written while the frames come."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy_format


class ColumnFile:
    """An array `(rows, T)` whose columns are written one after the other, T being known at the end.

    Columns lie one after the other in the file (`fortran_order`), so that it only grows.

    Args:
        file: opened for writing, empty.
        rows: of the array.
        dtype: of the array.
    """

    def __init__(self, file: BinaryIO, rows: int, dtype: str):
        self._file, self._rows, self._dtype = file, rows, np.dtype(dtype)
        self.columns = 0
        self._write_header()

    def add(self, columns: np.ndarray) -> None:
        """Appends columns, given as rows `(n, rows)`."""
        self._file.write(np.ascontiguousarray(columns, self._dtype).data)
        self.columns += len(columns)

    def finish(self) -> None:
        """Writes the number of columns into the header, which numpy keeps room for."""
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        header = {
            "descr": npy_format.dtype_to_descr(self._dtype),
            "fortran_order": True,
            "shape": (self._rows, self.columns),
        }
        npy_format.write_array_header_1_0(self._file, header)


def spread(batches: Iterable[np.ndarray], stride: int, n_frames: Callable[[], int]) -> Iterator[np.ndarray]:
    """Gives every frame the result of the nearest frame that has one; of two, the earlier.

    Args:
        batches: results `(n, rows)` of every `stride`-th frame, from the first.
        stride: frames.
        n_frames: says how many frames there are, when all batches were given.

    Yields:
        `(n, rows)` of the frames in order.
    """
    half, given, seen, last = (stride - 1) // 2, 0, 0, None
    for results in batches:
        known = results if last is None else np.concatenate([last, results])
        seen, last = seen + len(results), results[-1:]
        frames = np.arange(given, (seen - 1) * stride + 1)
        yield known[(frames + half) // stride - (seen - len(known))]
        given += len(frames)
    if last is not None:
        yield np.repeat(last, n_frames() - given, axis=0)


def is_whole(path: Path, rows: int, dtype: str) -> bool:
    """Whether a file is there and complete."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return array.ndim == 2 and array.shape[0] == rows and array.dtype == dtype


def remove_unfinished(path: Path) -> None:
    """Removes what writers of a file that were killed left beside it."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        part.unlink(missing_ok=True)
