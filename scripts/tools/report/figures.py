"""Curves as drawings: an SVG that follows the page's colours, light or dark, and a PNG of the light one.

Sizes are CSS pixels. A figure is drawn once, with the light colours; in the SVG each of them becomes the
page's variable of its role, and text takes the page's font.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterable, Sequence

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from scripts.tools.report.statistics import Calibration, ClassRow

# {role: (light, dark)}. Every light colour is another one: the SVG tells roles by them.
COLOURS = {
    "ink": ("#1f2630", "#e4e7eb"),
    "faded": ("#5d6773", "#9aa4b0"),
    "rule": ("#dfe3e8", "#333a44"),
    "lh": ("#2468b2", "#6fb0f2"),
    "rh": ("#b85c00", "#f0a04b"),
    "wrong": ("#c62f3d", "#ff7b84"),
    "run0": ("#20262f", "#e5e8ec"),
    "run1": ("#0a72b5", "#5eb4ee"),
    "run2": ("#c85a04", "#f39a4f"),
    "run3": ("#0b8460", "#4fc9a2"),
    "run4": ("#9c3f86", "#db8fc8"),
    "run5": ("#8a6d00", "#d9bb4a"),
    "run6": ("#5a55c9", "#a5a1f5"),
    "run7": ("#a8323a", "#ee8b90"),
}
RUN_COLOURS = 8
WIDE, HALF = 1080, 520  # widths of figures
_DPI = 72  # an SVG's point is then one pixel
_PNG_DPI = 144
_STYLE = {
    "font.size": 12,
    "font.family": "sans-serif",
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.edgecolor": COLOURS["rule"][0],
    "axes.labelcolor": COLOURS["faded"][0],
    "axes.titlecolor": COLOURS["ink"][0],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.limits": (-3, 6),
    "grid.color": COLOURS["rule"][0],
    "xtick.color": COLOURS["rule"][0],
    "ytick.color": COLOURS["rule"][0],
    "xtick.labelcolor": COLOURS["faded"][0],
    "ytick.labelcolor": COLOURS["faded"][0],
    "text.color": COLOURS["ink"][0],
    "text.parse_math": False,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "lines.linewidth": 1.7,
    "lines.solid_joinstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
}
mpl.rcParams.update(_STYLE)  # a process of its own draws reports


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure of the page.

    Attributes:
        name: of its PNG.
        title: heading.
        caption: what it shows, and what to know of it.
        svg: for the page.
        png: for elsewhere.
        is_wide: whether it takes the page's whole width.
    """

    name: str
    title: str
    caption: str
    svg: Markup
    png: bytes
    is_wide: bool


def colour(role: str) -> str:
    """The light colour of a role."""
    return COLOURS[role][0]


def new_figure(width: int, height: int, columns: int = 1, **options: object) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, side by side."""
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False, **options)[0])


def finish(
    figure: Figure, name: str, title: str, caption: str, is_wide: bool = False, description: str = ""
) -> Drawing:
    """Draws a figure into both forms."""
    svg = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(svg, format="svg", transparent=True, metadata=nothing)
    drawn = _for_page(svg.getvalue(), description or title)
    return Drawing(name, title, caption, drawn, png_of(figure), is_wide)


def png_of(figure: Figure) -> bytes:
    """A figure as a PNG on white."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=_PNG_DPI, facecolor="white")
    return png.getvalue()


def _for_page(svg: str, description: str) -> Markup:
    """An SVG file's text as part of a page: colours by variables, the page's font, width by its place."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|<defs>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # several drawings would share these names
    for role, (light, _) in COLOURS.items():
        svg = svg.replace(light, f"var(--{role})")
    label = Markup('<svg role="img" aria-label="{}"').format(description)
    return label + Markup(svg.removeprefix("<svg"))


def style_axes(axes: Axes, x: str = "", y: str = "", whole: bool = False) -> None:
    """Names the axes; `whole`: only whole numbers on the x axis."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.tick_params(length=0)
    axes.margins(x=0.01)
    if whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def legend(axes: Axes, **options: object) -> None:
    """A legend, if there is more than one thing to tell apart."""
    _, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        axes.legend(**{"loc": "best", "handlelength": 1.6, "borderaxespad": 0.8, **options})


def use_log_scale_if_wide(axes: Axes, values: Iterable[np.ndarray], ratio: float = 50.0) -> None:
    """A logarithmic y axis where values span more than `ratio`."""
    known = np.concatenate([np.asarray(v, float) for v in values] or [np.zeros(0)])
    known = known[np.isfinite(known)]
    if len(known) and known.min() > 0 and np.quantile(known, 0.99) > ratio * np.quantile(known, 0.01):
        axes.set_yscale("log")


def reliability(name: str, role: str, result: Calibration) -> Drawing:
    """Accuracy over confidence, and how many clips lie where."""
    figure = Figure(figsize=(HALF / _DPI, 430 / _DPI), dpi=_DPI, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    width = np.diff(result.edges)
    known = result.clips > 0
    accuracy, confidence = np.nan_to_num(result.accuracy), np.nan_to_num(result.confidence)
    top.plot([0, 1], [0, 1], color=colour("faded"), linewidth=1, linestyle=(0, (4, 3)), label="perfect")
    top.bar(
        result.edges[:-1][known], accuracy[known], width[known], align="edge", color=colour(role), alpha=0.35,
        edgecolor=colour(role), linewidth=0.8, label="accuracy",
    )  # fmt: skip
    top.plot(
        confidence[known], accuracy[known], "o-", color=colour(role), markersize=4, linewidth=1.2,
        label="at mean probability",
    )  # fmt: skip
    top.set(xlim=(0, 1), ylim=(0, 1))
    style_axes(top, "", "share that is right")
    legend(top, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
    bottom.bar(result.edges[:-1], result.clips, width, align="edge", color=colour(role), alpha=0.35)
    style_axes(bottom, "highest probability", "clips")
    bottom.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    caption = (
        f"ECE {100 * result.ece:.1f} %, greatest gap {100 * result.mce:.1f} %, {len(result.clips)} bins of "
        f"equal width. Mean probability {100 * result.mean_confidence:.1f} %; label smoothing and mixup in "
        "training lower it."
    )
    return finish(figure, name, "Calibration", caption)


def accuracy_by_support(name: str, role: str, rows: Sequence[ClassRow]) -> Drawing:
    """A dot a class: how many clips it has in the test, and how many of them are right."""
    figure, (axes,) = new_figure(HALF, 430)
    known = [row for row in rows if row.support]
    axes.scatter(
        [row.support for row in known], [100 * row.accuracy for row in known], s=26, color=colour(role),
        alpha=0.6, linewidth=0,
    )  # fmt: skip
    style_axes(axes, "clips of the class in the test", "accuracy, %")
    axes.set(xscale="log", ylim=(-3, 103))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    caption = "A dot a class. Of classes with few clips, accuracies are few and far between."
    return finish(figure, name, "Rare and frequent classes", caption)
