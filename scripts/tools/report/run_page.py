"""What the report of one run says: its parts, as the template takes them."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine_for_finetuning import ClipScores, accuracy_metrics
from run_alternating_hand_finetuning import NO_EFFECT, get_parser
from scripts.tools.report import statistics
from scripts.tools.report.examples import ClipPictures
from scripts.tools.report.hand_section import HandSection, hand_section
from scripts.tools.report.page import duration, percent, pictures_of, write_page
from scripts.tools.report.run_data import HAND_NAMES, Run, metrics_of
from scripts.tools.report.run_figures import draw_training

_LISTED_CLIPS = 200


def write_report(run: Run, output: Path, thumbnails: bool = True) -> None:
    """Writes `output`, and its figures as PNGs into the folder of its name.

    Raises:
        UserError: something cannot be written.
    """
    training = list(draw_training(run))
    pictures = ClipPictures(run, thumbnails)
    hands = [hand_section(run, hand, clips, pictures) for hand, clips in run.tested.items()]
    content = {
        "title": run.name,
        "facts": _facts(run),
        "sections": _sections(hands),
        "remarks": run.remarks,
        "footer": f"Made from {run.folder.resolve()} on {datetime.date.today()}.",
        "results": _results(run),
        "resamples": statistics.RESAMPLES,
        "training": training,
        "hands": hands,
        "coverage": _coverage(run),
        "changed": _changed_flags(run),
        "configuration": _configuration(run),
        "timing": _timing(run),
        "environment": environment_tables(run),
    }
    drawings = [*training, *itertools.chain.from_iterable(part.figures for part in hands)]
    pngs = pictures_of(drawings) | {f"confusion_{part.hand}": part.matrix.png for part in hands}
    write_page(output, "report.html.j2", content, pngs)


def _sections(hands: Sequence[HandSection]) -> list[tuple[str, str]]:
    ends = ["Coverage", "Configuration", "Environment"]
    names = [("result", "Result"), ("training", "Training"), *((part.hand, part.name) for part in hands)]
    return names + [(name.lower(), name) for name in ends]


def _facts(run: Run) -> list[str]:
    facts = []
    if run.metrics:
        facts.append(f"tested weights: {run.metrics['weights']}")
    if run.has_args:
        args = run.args
        facts += [
            args.model,
            f"turns of {args.alternation_steps} steps",
            f"{len(run.epochs)} of {args.epochs} epochs",
        ]
    if run.starts:
        facts.append(f"started {run.starts[-1]['started'][:10]}")
        if commit := run.starts[-1].get("commit"):
            facts.append(f"commit {describe_commit(commit)}")
    return facts


def describe_commit(commit: Mapping[str, Any] | None) -> str:
    """A commit as `environment.json` has it, in a few characters."""
    if not commit:
        return "none"
    return commit["id"][:10] + (" with changes" if commit["modified"] else "")


# --------------------------------------------------------------------------------------- result


class Figure(NamedTuple):
    """A fraction, and its 95% interval if there is one."""

    value: float
    bounds: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class ResultRow:
    """The test of one hand with one set of weights; fractions."""

    hand: str
    hand_name: str
    weights: str
    is_tested: bool  # whether these are the weights that the test was about
    top1: Figure
    top5: Figure
    mean_class_acc: Figure
    top1_all: float
    clips: int
    unreadable: int
    ece: float | None


def _results(run: Run) -> list[ResultRow]:
    tested = run.weights or ("ema" if run.metrics.get("weights") == "ema" else "raw")
    sets = dict.fromkeys([tested, *run.scores, *(["ema"] if run.metrics.get("ema") else [])])
    rows = [_result_row(run, hand, weights, weights == tested) for hand in run.hands for weights in sets]
    return [row for row in rows if row is not None]


def _result_row(run: Run, hand: str, weights: str, is_tested: bool) -> ResultRow | None:
    told = (run.metrics if is_tested else metrics_of(run, weights)).get(hand)
    clips = run.scores.get(weights, {}).get(hand)
    if told is None and clips is None:
        return None
    metrics = told or accuracy_metrics(clips, len(run.unreadable.get(hand, ())))
    bounds = dict.fromkeys(statistics.ACCURACIES) if clips is None else accuracy_intervals(clips)
    named = weights
    if weights == "raw" and is_tested and run.metrics:
        named = f"raw ({run.metrics['weights']})"
    return ResultRow(
        hand,
        HAND_NAMES[hand],
        named,
        is_tested,
        *(Figure(metrics[name] / 100, bounds[name]) for name in statistics.ACCURACIES),
        top1_all=metrics["top1_all"] / 100,
        clips=metrics["clips"],
        unreadable=metrics["unreadable"],
        ece=None if clips is None else statistics.calibration(clips.scores, clips.labels).ece,
    )


def accuracy_intervals(clips: ClipScores) -> dict[str, tuple[float, float]]:
    """{accuracy: its 95% interval over the choice of clips}."""
    hits = statistics.hits_of(clips.scores, clips.labels)
    drawn = statistics.resampled_accuracies([hits], clips.labels)[0]
    return {name: statistics.interval(drawn[:, i]) for i, name in enumerate(statistics.ACCURACIES)}


# -------------------------------------------------------------------------------------- coverage


def _coverage(run: Run) -> list[dict[str, Any]]:
    parts = []
    for hand in run.hands:
        bad = run.unreadable.get(hand, ())
        told = run.metrics.get(hand)
        if told is not None:
            readable = told["clips"] - told["unreadable"]
            says = f"{HAND_NAMES[hand]}, test: {readable:,} of {told['clips']:,} clips could be read."
            parts.append(_coverage_part(hand, says, bad, f"unreadable_{hand}.txt"))
        if run.epochs:
            bad = run.bad_clips.get(hand, ())
            says = f"{HAND_NAMES[hand]}, training: {len(bad):,} clips could not be read and were replaced."
            parts.append(_coverage_part(hand, says, bad, f"bad_clips_{hand}.txt"))
    return parts


def _coverage_part(hand: str, says: str, clips: Sequence[tuple[str, str]], file: str) -> dict[str, Any]:
    shown = clips[:_LISTED_CLIPS]
    return {"hand": hand, "says": says, "clips": shown, "more": len(clips) - len(shown), "file": file}


# --------------------------------------------------------------------------------- configuration


def _defaults() -> dict[str, Any]:
    return vars(get_parser().parse_args([]))


def _changed_flags(run: Run) -> list[tuple[str, Any, Any]]:
    defaults, args = _defaults(), vars(run.args)
    return [
        (f"--{name}", value, defaults.get(name, "–"))
        for name, value in args.items()
        if run.has_args and name not in NO_EFFECT and value != defaults.get(name)
    ]


def _configuration(run: Run) -> list[tuple[str, list[tuple[str, Any]]]]:
    """(group, [(flag, value)]) as `--help` has them; flags of another version come last."""
    if not run.has_args:
        return []
    args = dict(vars(run.args))
    groups = []
    for group in get_parser()._action_groups:
        names = dict.fromkeys(action.dest for action in group._group_actions)
        rows = [(f"--{name}", args.pop(name)) for name in names if name in args]
        if rows:
            groups.append((group.title, rows))
    return groups + ([("other", [(f"--{name}", value) for name, value in args.items()])] if args else [])


# ------------------------------------------------------------------------- environment and timing


def environment_tables(run: Run) -> list[tuple[str, list[tuple[str, Any]]]]:
    """(heading, rows) of the last start of each kind that `environment.json` tells."""
    tables = []
    starts = collections.defaultdict(list)
    for entry in run.starts:
        starts[entry.get("mode", "run")].append(entry)
    for mode, entries in starts.items():
        times = "" if len(entries) == 1 else f", the last of {len(entries)} starts"
        tables.append((f"{mode.capitalize()}{times}", _environment_rows(entries[-1])))
    return tables


def _environment_rows(entry: Mapping[str, Any]) -> list[tuple[str, Any]]:
    said = {
        "started": entry.get("started"),
        "command": entry.get("command"),
        "commit": describe_commit(entry.get("commit")),
        "processes": entry.get("processes"),
        "devices": ", ".join(f"{count} x {name}" for name, count in entry.get("devices", {}).items()),
        "processor": f"{entry.get('cpu', '')}, {entry.get('cpus', '?')} cores for the run",
        "memory, GB": entry.get("memory_gb"),
        "system": entry.get("platform"),
        "Python": entry.get("python"),
        **entry.get("packages", {}),
    }
    return [(name, value) for name, value in said.items() if value not in (None, "")]


def _timing(run: Run) -> list[tuple[str, str]]:
    rows = []

    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row in run.epochs if row.get(name) is not None], float)

    seconds, a_step = column("train_seconds"), column("train_seconds_a_step")
    if len(seconds):
        rows.append(("training, without validation", f"{duration(seconds.sum())} in {len(seconds)} epochs"))
    if len(a_step):
        step = float(np.median(a_step))
        rows.append(("a step", f"{step:.3g} s (median over epochs)"))
    if len(speed := column("train_clips_per_second")):
        rows.append(("clips a second", f"{np.median(speed):.3g} (median over epochs)"))
    if len(waits := column("train_data_wait")):
        rows.append(("waiting for data", f"{percent(float(waits.mean()))} % of the training"))
    for name, kind in (("gpu_memory_gib", "GPU memory"), ("host_memory_gib", "memory of the first process")):
        if len(memory := column(f"train_{name}")):
            rows.append((kind, f"{memory.max():.1f} GiB at most"))
    if run.curves:
        times = [time for curve in run.curves.values() for time in curve.times[[0, -1]]]
        rows.append(("from first to last recording", duration(max(times) - min(times))))
    return rows
