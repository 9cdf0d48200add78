"""Seconds of what is compared, in turns; medians and quartiles of them, as a table and as plain data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

Run = Callable[[int], Any]
Row = dict[str, float]
Summary = dict[str, Row]

# `cpu` is this process's alone: it does not count while other work has the core.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def measure_in_turns(runs: Mapping[str, Run], turns: int, clock: str = "wall") -> dict[str, list[float]]:
    """Seconds of each run, in turns; the first turn warms up and does not count.

    In one process and in turns, a busy machine slows all that is compared alike.

    Args:
        runs: each gets the number of the turn, so that all can draw alike.
        turns: how many count.
        clock: one of `CLOCKS`.
    """
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            start = now()
            run(turn)
            if turn:
                seconds[name].append(now() - start)
    return seconds


def summarize(seconds: Mapping[str, Sequence[float]], baseline: str) -> Summary:
    """Median and quartiles of each run, and how they relate to the baseline's.

    Returns:
        Of each run `median_ms`, `low_ms`, `high_ms`; `ratio`, its median over the baseline's, with
        `ratio_low` and `ratio_high`, the quartiles of the ratios within the turns; and `speed`, the
        baseline's median over its own.
    """
    reference = np.asarray(seconds[baseline])
    result = {}
    for name, values in seconds.items():
        low, median, high = (float(value) for value in np.percentile(values, [25, 50, 75]))
        ratio_low, ratio_high = np.percentile(values / reference, [25, 75])
        ratio = median / float(np.median(reference))
        result[name] = {
            "median_ms": 1e3 * median,
            "low_ms": 1e3 * low,
            "high_ms": 1e3 * high,
            "ratio": ratio,
            "ratio_low": float(ratio_low),
            "ratio_high": float(ratio_high),
            "speed": 1 / ratio,
        }
    return result


def say(text: str) -> None:
    """Prints a line beside the tables."""
    Console().print(text, highlight=False)


def print_summary(title: str, summary: Mapping[str, Mapping[str, float]], relation: str = "speed") -> None:
    """Prints a row a run; `relation` is `speed` or `ratio`, which has quartiles too."""
    table = Table(title=title)
    table.add_column("", no_wrap=True)
    for column in ("median ms", "quartiles ms", relation):
        table.add_column(column, justify="right")
    for name, row in summary.items():
        related = f"{row[relation]:.2f}"
        if relation == "ratio":
            related += f" ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        spread = f"{row['low_ms']:.1f} to {row['high_ms']:.1f}"
        table.add_row(name, f"{row['median_ms']:.1f}", spread, related)
    Console().print(table)
