"""How the check of a data set looks on a terminal or in a log: its progress, a table, findings."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from utils import visible

_SHOWN = 3  # places of a finding
_PLAIN_SECONDS = 10  # between lines of progress where no terminal is
_PLAIN_WIDTH = 200


@contextlib.contextmanager
def show_progress(
    total: int, verb: tuple[str, str] = ("decoding", "decoded"), things: str = "clips"
) -> Iterator[Callable[[int, int], None]]:
    """Gives a function that shows (done, unreadable): a bar on a terminal, else a line now and then."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_progress(total, verb[1], things)
        return
    bad = TextColumn("{task.fields[unreadable]} unreadable")
    columns = (
        TextColumn(f"{verb[0]} {things}"),
        BarColumn(),
        MofNCompleteColumn(),
        bad,
        TimeRemainingColumn(),
    )
    # Without its thread: processes are forked meanwhile.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=total, unreadable=0)
        yield lambda done, unreadable: progress.update(
            task, completed=done, unreadable=unreadable, refresh=True
        )


def _plain_progress(total: int, done_verb: str, things: str) -> Callable[[int, int], None]:
    last = time.monotonic()

    def show(done: int, unreadable: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _PLAIN_SECONDS:
            last = time.monotonic()
            sys.stderr.write(f"{done_verb} {done:,} of {total:,} {things}, {unreadable:,} unreadable\n")

    return show


def make_table(lists: Sequence[dict[str, Any]]) -> Table:
    """A column a list."""
    table = Table("")
    for one in lists:
        table.add_column(f"{one['hand']}\n{one['mode']}", justify="right")
    columns = [_cells(one) for one in lists]
    for cells in zip(*columns, strict=True):
        name = cells[0][0]
        table.add_row(name, *(value for _, value in cells))
    return table


def _cells(one: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of each row."""
    labels, sizes, frames = one["labels"], one["sizes"] or {}, one["frames"] or {}
    bad = len(one["unreadable"])
    good = one["decoded"] - bad
    return [
        ("clips", _figure(one["clips"])),
        ("  decoded", _figure(one["decoded"])),
        ("  unreadable", _figure(bad)),
        (f"  under {one['window']} frames", f"{one['short'] / good:.0%}" if good else "-"),
        ("frames, fewest", _figure(frames.get("min"))),
        ("  median", _figure(frames.get("median"))),
        ("  most", _figure(frames.get("max"))),
        ("picture sizes", _figure(len(sizes.get("clips", ())))),
        ("  most common", sizes.get("most_common", "-")),
        ("  smallest", sizes.get("smallest", "-")),
        ("  largest", sizes.get("largest", "-")),
        ("classes", _figure(labels["classes"])),
        ("  without a clip", _figure(len(labels["without_clip"]))),
        ("clips a class, fewest", _figure(labels["clips_a_class"]["min"])),
        ("  median", _figure(labels["clips_a_class"]["median"])),
        ("  most", _figure(labels["clips_a_class"]["max"])),
    ]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.10g}"


def print_report(report: dict[str, Any], output: Path) -> None:
    """Prints the table, and each finding in a line with its first places below."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    if report["lists"]:
        console.print(make_table(report["lists"]))
    for kind, style in (("errors", "bold red"), ("warnings", "yellow"), ("notes", "dim")):
        for finding in report[kind]:
            _print_finding(console, Text(kind[:-1], style), finding, output)
    errors, warnings = (_count(len(report[kind]), kind[:-1]) for kind in ("errors", "warnings"))
    decoded = f"{_count(report['files'], 'file')} decoded in {report['seconds']:g} s"
    ending = f"{decoded}: {errors}, {warnings}; details: {output}"
    console.print(Text(visible(ending)), soft_wrap=True)


def _print_finding(console: Console, kind: Text, finding: dict[str, Any], output: Path) -> None:
    items = finding["items"]
    lines = [f"  {item}" for item in items[:_SHOWN]]
    if len(items) > _SHOWN:
        lines.append(f"  and {len(items) - _SHOWN:,} more, see {output}")
    console.print(kind + Text(visible(f": {finding['text']}")), soft_wrap=True)
    for line in lines:
        console.print(Text(visible(line)), soft_wrap=True)


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + "s" * (number != 1)
