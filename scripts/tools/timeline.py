"""Draws what both hands do over time: a lane a hand, a coloured block for each action."""

from __future__ import annotations

import colorsys
import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from scripts.tools.contact_sheet import elide, printable
from utils import atomic_open

# Inches.
_WIDTH, _LANE, _MARGIN, _LEGEND_LINE = 12.0, 0.95, 0.95, 0.178
_LEGEND_COLUMNS = 4
_BLOCK, _CURVE = 0.62, 0.24  # heights, as shares of a lane
_TEXT, _SMALL = 9, 7.5  # points
_DPI = 100
_GREY = "#8a8a8a"
_HUE_STEP, _LIGHTNESS = 0.618034, (0.45, 0.68, 0.32, 0.58)


class Block(NamedTuple):
    """An action: from when to when (seconds), and its class."""

    start: float
    stop: float
    label: int
    name: str


@dataclass(frozen=True)
class Lane:
    """A hand.

    Attributes:
        title: what the hand is called.
        blocks: its actions in order of time.
        times: seconds, `(P + 1,)`: bounds of the pieces that have a probability each.
        probabilities: of the most probable class, `(P,)`.
    """

    title: str
    blocks: list[Block]
    times: np.ndarray
    probabilities: np.ndarray


def draw_timeline(path: Path, title: str, lanes: list[Lane]) -> None:
    """Writes the picture, a PNG 1,200 pixels wide; lanes from top to bottom.

    A block shows its class's name, or where that does not fit its number; all classes stand below with both.
    """
    classes = sorted({(block.label, block.name) for lane in lanes for block in lane.blocks})
    colours = dict(zip(classes, _distinct_colours(len(classes)), strict=True))
    legend = _LEGEND_LINE * (-(-len(classes) // _LEGEND_COLUMNS) + 1)
    height = _LANE * len(lanes) + _MARGIN + legend
    with matplotlib.rc_context({"font.size": _TEXT, "text.parse_math": False}):
        figure = Figure((_WIDTH, height), dpi=_DPI)
        FigureCanvasAgg(figure)
        bottom = (legend + 0.45) / height
        axes = figure.add_axes((0.085, bottom, 0.9, _LANE * len(lanes) / height))
        _prepare(axes, title, lanes)
        for row, lane in enumerate(lanes):
            _draw_lane(axes, row, lane, colours)
        patches = [
            Patch(color=colours[one], label=f"{one[0]}  {elide(printable(one[1]), 40, len)}")
            for one in classes
        ]
        figure.legend(
            handles=patches, loc="lower left", ncols=_LEGEND_COLUMNS, frameon=False, bbox_to_anchor=(0.08, 0),
            handlelength=1.2, columnspacing=1.5, labelspacing=0.3,
        )  # fmt: skip
        with atomic_open(path) as file:
            figure.savefig(file, format="png")


def _prepare(axes: Axes, title: str, lanes: list[Lane]) -> None:
    axes.set_title(printable(title), loc="left", fontsize=_TEXT + 1)
    total = max(float(lane.times[-1]) for lane in lanes)
    axes.set_xlim(0, total)
    axes.set_ylim(len(lanes), 0)
    axes.set_yticks([row + _BLOCK / 2 for row in range(len(lanes))], [lane.title for lane in lanes])
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(12, steps=[1, 2, 3, 5, 6, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: clock_text(seconds, total)))
    axes.set_xlabel("time; grey: probability of the action, from 0 to 1", fontsize=_SMALL, color="#444444")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _draw_lane(axes: Axes, row: int, lane: Lane, colours: dict[tuple[int, str], tuple[float, ...]]) -> None:
    pixels = axes.get_window_extent().width / axes.get_xlim()[1]
    for block in lane.blocks:
        length, colour = block.stop - block.start, colours[block.label, block.name]
        axes.broken_barh([(block.start, length)], (row, _BLOCK), color=colour, ec="white", lw=0.6)
        text, size = _fitting_text(block, length * pixels - 5)
        ink = "white" if np.dot(colour, (0.3, 0.59, 0.11)) < 0.55 else "black"
        axes.text(
            block.start + length / 2, row + _BLOCK / 2, text, size=size, color=ink,
            ha="center", va="center",
        )  # fmt: skip
    floor = row + _BLOCK + _CURVE + 0.04
    axes.stairs(floor - _CURVE * lane.probabilities, lane.times, baseline=floor, fill=True, color=_GREY)
    axes.hlines(floor - _CURVE, 0, lane.times[-1], color=_GREY, lw=0.4, ls=":")


def _fitting_text(block: Block, room: float) -> tuple[str, float]:
    """What fits a width in pixels, and its size: the name, the number, or nothing."""
    for text, size in itertools.product((printable(block.name), str(block.label)), (_TEXT, _SMALL)):
        if _width_of(text, size) <= room:
            return text, size
    return "", _TEXT


@functools.lru_cache(maxsize=1024)
def _width_of(text: str, size: float) -> float:
    """Pixels."""
    renderer = FigureCanvasAgg(Figure(dpi=_DPI)).get_renderer()
    return renderer.get_text_width_height_descent(text, FontProperties(size=size), False)[0]


def clock_text(seconds: float, total: float) -> str:
    """A time in a video of `total` seconds: `3.5 s` in one below two minutes, else `2:05` or `1:02:05`."""
    if total < 120:
        return f"{seconds:g} s"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def _distinct_colours(number: int) -> list[tuple[float, ...]]:
    """RGB colours of which neighbours differ most: hues a golden section apart, in turns light and dark."""
    return [
        colorsys.hls_to_rgb(0.58 + i * _HUE_STEP, _LIGHTNESS[i % len(_LIGHTNESS)], 0.62)
        for i in range(number)
    ]
