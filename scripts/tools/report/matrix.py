"""The confusion matrix as a drawing of the page, made to be pointed at, and as a PNG.

Shapes: N classes shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from scripts.tools.report.figures import COLOURS, HALF, colour, png_of
from scripts.tools.report.statistics import by_support
from utils import visible

_SIDE = 900  # pixels of a matrix of many classes
_CELL = (4, 46)  # least and greatest side of a cell
_LEAST_TEXT = 7.5  # pixels: below it, names are left to pointing
_LEAST_COUNT = 24  # side of a cell that holds its count
_AXIS_NAME = 20  # pixels
_LONGEST = 16  # characters of a name beside the matrix
_FAINTEST = 0.1  # opacity of a cell with a single clip of very many


class Cell(NamedTuple):
    """A cell that holds clips; lengths in pixels."""

    x: float
    y: float
    is_right: bool
    strength: float  # opacity
    count: int


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A confusion matrix, rows and columns by support; lengths in pixels.

    Attributes:
        description: for who cannot see it.
        cells: those that hold clips.
        names: short ones of the N classes; none where there is no room.
        cell: side of a cell.
        start: where the cells start, from the left and from the top.
        whole: side of the drawing.
        text, count_text: sizes of names and of counts; 0: counts are not written.
        data: what pointing at it says: names, supports and the counts row by row.
        png: the same for elsewhere.
        left_out: classes without clips that were never predicted.
    """

    description: str
    cells: Sequence[Cell]
    names: Sequence[str]
    cell: float
    start: float
    whole: float
    text: float
    count_text: float
    data: dict[str, Any]
    png: bytes
    left_out: int

    @property
    def is_wide(self) -> bool:
        """Whether it takes the page's whole width."""
        return self.whole > HALF


def draw_matrix(counts: np.ndarray, names: Sequence[str], description: str) -> Matrix:
    """Lays a confusion matrix out.

    Args:
        counts: clips of each (label, prediction), int `(C, C)`.
        names: of the classes, by label.
        description: for who cannot see it.
    """
    order = by_support(counts)
    shown = counts[np.ix_(order, order)]
    named = [names[label] for label in order]
    cell = float(np.clip(_SIDE / max(len(order), 1), *_CELL))
    text = min(0.85 * cell, 12)
    short = [_short(name) for name in named] if text >= _LEAST_TEXT else []
    start = _AXIS_NAME + 0.62 * text * max(map(len, short), default=0) + 10
    strengths = _FAINTEST + (1 - _FAINTEST) * _strengths(shown)
    return Matrix(
        description,
        [
            Cell(start + j * cell, start + i * cell, i == j, strengths[i, j], int(shown[i, j]))
            for i, j in np.argwhere(shown).tolist()
        ],
        short,
        cell,
        start,
        start + cell * len(order) + 2,
        text,
        min(12, 0.4 * cell) if cell >= _LEAST_COUNT else 0,
        {"names": named, "support": shown.sum(axis=1).tolist(), "counts": shown.tolist()},
        _png(shown, named, cell),
        len(names) - len(order),
    )


def _strengths(counts: np.ndarray) -> np.ndarray:
    """Square roots of the shares of the rows, so that rare confusions can be seen."""
    return np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def _short(name: str) -> str:
    name = visible(name)
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def _png(counts: np.ndarray, names: Sequence[str], cell: float) -> bytes:
    side, margin = max(cell * len(names), 200) / 72, 2.0  # inches
    whole = side + margin + 0.2
    figure = Figure(figsize=(whole, whole), dpi=72)
    axes = figure.add_axes((margin / whole, 0.1 / whole, side / whole, side / whole))
    strengths, right = _strengths(counts), np.eye(len(names), dtype=bool)
    for role, kept in (("ink", right), ("wrong", ~right)):
        tint = LinearSegmentedColormap.from_list(role, ["#ffffff", COLOURS[role][0]])
        axes.imshow(np.where(kept, strengths, np.nan), cmap=tint, vmin=0, vmax=1)
    text = min(0.7 * cell, 11)
    places = range(len(names)) if text >= 4 else ()
    short = [_short(names[place]) for place in places]
    axes.set_xticks(places, short, rotation=90, fontsize=text)
    axes.set_yticks(places, short, fontsize=text)
    axes.tick_params(length=0, labelcolor=colour("ink"))
    axes.grid(visible=False)
    axes.tick_params(bottom=False, labelbottom=False, top=False, labeltop=True)
    axes.set(xlabel="predicted", ylabel="true")
    axes.xaxis.set_label_position("top")
    return png_of(figure)
