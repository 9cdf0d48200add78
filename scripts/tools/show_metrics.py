"""Prints a run's final accuracy as a table, from its `metrics.json`, and checks it if asked to.

python -m scripts.tools.show_metrics OUTPUT_DIR [--require TOP1]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

COLUMNS = {"top1": "top-1 %", "top5": "top-5 %", "mean_class_acc": "class mean %"}
NAMES = {"lh": "left hand", "rh": "right hand"}
LEAST_BALANCE = 0.85  # of the worse hand's top-1 over the better one's


def metrics_table(metrics: dict) -> Table:
    """A row a hand: accuracies merged over views, clips and those of them that could not be read."""
    table = Table(title=f"Multi-view test, weights: {metrics['weights']}")
    table.add_column("")
    for title in (*COLUMNS.values(), "clips", "unreadable"):
        table.add_column(title, justify="right")
    for hand, name in NAMES.items():
        if hand in metrics:
            row = metrics[hand]
            figures = [f"{row[column]:.2f}" for column in COLUMNS]
            table.add_row(name, *figures, str(row["clips"]), str(row["unreadable"]))
    return table


def shortcoming(metrics: dict, required: float) -> str | None:
    """What keeps the hands from being good alike, in one line, or None.

    Args:
        metrics: what `metrics.json` holds.
        required: least top-1 accuracy of each hand, percent.
    """
    top1 = {name: metrics[hand]["top1"] for hand, name in NAMES.items() if hand in metrics}
    worst, best = min(top1, key=top1.get), max(top1, key=top1.get)
    if top1[worst] < required:
        return f"{worst}: top-1 {top1[worst]:.2f}% is less than the required {required:g}%"
    if top1[worst] < LEAST_BALANCE * top1[best]:
        return f"{worst}: top-1 {top1[worst]:.2f}% is under {LEAST_BALANCE} of the {best}'s {top1[best]:.2f}%"
    return None


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.tools.show_metrics", description=__doc__)
    parser.add_argument("output_dir", type=Path, help="folder of a run that was tested")
    parser.add_argument("--require", type=float, metavar="TOP1", help="fail if a hand's top-1 is lower, "
        f"percent, or under {LEAST_BALANCE} of the other's")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = make_parser().parse_args(argv)
    path = args.output_dir / "metrics.json"
    if not path.is_file():
        sys.stderr.write(f"show_metrics: {path}: there is no such file; was the run tested?\n")
        return 1
    metrics = json.loads(path.read_text())
    Console().print(metrics_table(metrics))
    problem = None if args.require is None else shortcoming(metrics, args.require)
    if problem:
        sys.stderr.write(f"show_metrics: {problem}\n")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
