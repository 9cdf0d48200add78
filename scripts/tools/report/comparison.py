"""Several runs side by side: what each reached, and what the others have more or less than the first."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from engine_for_finetuning import OF_THE_MACHINE
from scripts.tools.report import statistics
from scripts.tools.report.curves import thinned
from scripts.tools.report.figures import (
    RUN_COLOURS,
    WIDE,
    Drawing,
    colour,
    finish,
    legend,
    new_figure,
    style_axes,
)
from scripts.tools.report.page import pictures_of, write_page
from scripts.tools.report.run_data import HAND_NAMES, Run
from scripts.tools.report.run_figures import by_epoch, changes_over_rest, loss_spans
from scripts.tools.report.run_page import describe_commit
from utils import UserError, visible

_MOST_POINTS = 300  # of a curve
_STYLES = ("-", (0, (4, 2)), (0, (1, 1.2)))  # when colours run out


def names_of(runs: Sequence[Run]) -> list[str]:
    """What each run is called: the end of its path that no other has.

    Raises:
        UserError: one folder is there twice.
    """
    parts = [run.folder.resolve().parts for run in runs]
    if len(set(parts)) < len(parts):
        twice = next(run.folder for run, path in zip(runs, parts, strict=True) if parts.count(path) > 1)
        raise UserError(f"{twice}: is there twice; give different runs")
    for length in itertools.count(1):
        names = ["/".join(path[-length:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError


# --------------------------------------------------------------------------------------- results


@dataclasses.dataclass(frozen=True)
class Row:
    """One run's test of one hand.

    Attributes:
        run: its place among the runs.
        name: what it is called.
        weights: which were tested.
        accuracies: {accuracy: fraction}, over all of the run's clips.
        differences: {accuracy: to the first run's, on shared clips}; nothing for the first.
        shared: clips that both have.
        only_first, only_this: shared clips of which the top-1 of one alone is right.
    """

    run: int
    name: str
    weights: str
    accuracies: Mapping[str, float]
    differences: Mapping[str, statistics.Difference]
    shared: int = 0
    only_first: int = 0
    only_this: int = 0


def compare_hand(runs: Sequence[Run], names: Sequence[str], hand: str) -> list[Row]:
    """A row for each run that was tested on the hand."""
    rows = []
    for place, (run, name) in enumerate(zip(runs, names, strict=True)):
        clips = run.tested.get(hand)
        if clips is None:
            continue
        values = statistics.accuracies(statistics.hits_of(clips.scores, clips.labels), clips.labels)
        known = dict(zip(statistics.ACCURACIES, values.tolist(), strict=True))
        weights = run.metrics.get("weights", "unknown")
        against = {} if place == 0 else _against_first(runs[0], run, hand)
        rows.append(Row(place, name, weights, known, against.pop("differences", {}), **against))
    return rows


def _against_first(first: Run, run: Run, hand: str) -> dict[str, Any]:
    if hand not in first.tested:
        return {}
    pair = [first.tested[hand], run.tested[hand]]
    places = [{name: i for i, name in enumerate(clips.names)} for clips in pair]
    common = [
        name
        for name in pair[0].names
        if name in places[1] and pair[0].labels[places[0][name]] == pair[1].labels[places[1][name]]
    ]
    if not common:
        return {}
    picked = [[place[name] for name in common] for place in places]
    labels = pair[0].labels[picked[0]]
    base, other = (
        statistics.hits_of(clips.scores[rows], labels) for clips, rows in zip(pair, picked, strict=True)
    )
    return {
        "differences": statistics.differences(base, other, labels),
        "shared": len(common),
        "only_first": int((base.top1 & ~other.top1).sum()),
        "only_this": int((other.top1 & ~base.top1).sum()),
    }


# --------------------------------------------------------------------------------- configuration


def changed_flags(runs: Sequence[Run]) -> tuple[list[list[Any]], list[list[Any]]]:
    """Flags that differ between runs, a value a run: those of what is computed, and those of the machine."""
    told = [vars(run.args) if run.has_args else {} for run in runs]
    of_run: list[list[Any]] = []
    of_machine: list[list[Any]] = []
    for name in dict.fromkeys(itertools.chain.from_iterable(told)):
        values = [args.get(name, "unknown") for args in told]
        if any(value != values[0] for value in values):
            (of_machine if name in OF_THE_MACHINE else of_run).append([f"--{name}", *values])
    return of_run, of_machine


def changed_environment(runs: Sequence[Run]) -> list[list[Any]]:
    """What differs of versions, commits and hardware at the runs' last starts."""
    described = []
    for run in runs:
        entry = run.starts[-1] if run.starts else {}
        devices = ", ".join(f"{count} x {name}" for name, count in entry.get("devices", {}).items())
        known = {"commit": describe_commit(entry.get("commit")), "devices": devices, "cpu": entry.get("cpu")}
        known |= {"python": entry.get("python"), **entry.get("packages", {})}
        described.append(known if entry else {})
    names = dict.fromkeys(itertools.chain.from_iterable(described))
    rows = [[name, *(known.get(name, "unknown") for known in described)] for name in names]
    return [row for row in rows if any(value != row[1] for value in row[1:])]


def alternation_rows(runs: Sequence[Run], names: Sequence[str]) -> list[list[str]]:
    """How long turns are, and how each hand's loss changes while the other has its turn."""
    rows = []
    for run, name in zip(runs, names, strict=True):
        changes = changes_over_rest(run, loss_spans(run)) if len(run.alternation.hands) > 1 else {}
        said = [f"{changes[h][0]:+.3f} ± {changes[h][1]:.3f}" if h in changes else "–" for h in HAND_NAMES]
        rows.append([name, str(run.args.alternation_steps), str(run.args.log_interval), *said])
    return rows


# ---------------------------------------------------------------------------------------- curves


def draw_comparison(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Drawing]:
    """Overlaid curves, a panel a hand."""
    kinds = (
        ("accuracy", "Validation accuracy", "top-1, %", "val_{}_top1", "One centred view a clip."),
        ("validation_loss", "Validation loss", "loss, nats", "val_{}_loss", ""),
        (
            "loss",
            "Training loss",
            "loss, nats",
            "train_{}_loss",
            "Strong: means of epochs. Thin: within them.",
        ),
    )
    hands = [hand for hand in HAND_NAMES if any(hand in run.hands for run in runs)]
    for name, title, y, column, caption in kinds:
        if not any(len(by_epoch(run, column.format(hand))[0]) for run in runs for hand in hands):
            continue
        figure, panels = new_figure(WIDE, 340, len(hands), sharey=True)
        for axes, hand in zip(panels, hands, strict=True):
            for place, run in enumerate(runs):
                _overlay(
                    axes, run, place, names[place], column.format(hand), hand if name == "loss" else None
                )
            axes.set_title(HAND_NAMES[hand])
            style_axes(axes, _x_name(runs), y, whole=True)
        legend(panels[-1], loc="lower right" if name == "accuracy" else "upper right")
        yield finish(figure, name, title, caption, is_wide=True)


def _overlay(axes: Axes, run: Run, place: int, name: str, column: str, thin_of: str | None) -> None:
    ink, style = colour(f"run{place % RUN_COLOURS}"), _STYLES[place // RUN_COLOURS % len(_STYLES)]
    spans = loss_spans(run).get(thin_of) if thin_of else None
    if spans is not None:
        few, _ = thinned(spans, _MOST_POINTS)
        axes.plot(few.ends, few.values, color=ink, alpha=0.3, linewidth=0.9)
    x, values = by_epoch(run, column)
    marker = "." if len(x) < 30 else ""
    axes.plot(x, values, color=ink, linestyle=style, marker=marker, label=_legend_name(name))


def _legend_name(name: str) -> str:
    # matplotlib leaves out what starts with an underscore, and cannot draw what is not Unicode.
    return f" {visible(name)}" if name.startswith("_") else visible(name)


def _x_name(runs: Sequence[Run]) -> str:
    return "optimizer steps" if all(run.epoch_length for run in runs) else "optimizer steps, or epochs"


# ------------------------------------------------------------------------------------------ page


def write_comparison(
    runs: Sequence[Run], names: Sequence[str], rows: Mapping[str, Sequence[Row]], output: Path
) -> None:
    """Writes `output`, and its figures as PNGs into the folder of its name.

    Raises:
        UserError: something cannot be written.
    """
    drawings = list(draw_comparison(runs, names))
    of_run, of_machine = changed_flags(runs)
    folders = [run.folder.resolve() for run in runs]
    content = {
        "title": "Comparison of " + ", ".join(names),
        "facts": [f"{len(runs)} runs", f"differences are to {names[0]}"],
        "sections": [(name.lower(), name) for name in ("Result", "Curves", "Alternation", "Configuration")],
        "remarks": [
            f"{name}: {remark}" for run, name in zip(runs, names, strict=True) for remark in run.remarks
        ],
        "footer": f"Made on {datetime.date.today()} from {', '.join(map(str, folders))}.",
        "hands": [(hand, HAND_NAMES[hand], table) for hand, table in rows.items() if table],
        "resamples": statistics.RESAMPLES,
        "drawings": drawings,
        "alternation": alternation_rows(runs, names),
        "hand_names": list(HAND_NAMES.values()),
        "names": names,
        "of_run": of_run,
        "of_machine": of_machine,
        "environment": changed_environment(runs),
        "colours": [f"var(--run{place % RUN_COLOURS})" for place in range(len(runs))],
    }
    write_page(output, "comparison.html.j2", content, pictures_of(drawings))
