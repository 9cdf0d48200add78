"""Prints a run's final accuracy as a table, from its `metrics.json`.

python -m scripts.tools.show_metrics OUTPUT_DIR
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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.tools.show_metrics", description=__doc__)
    parser.add_argument("output_dir", type=Path, help="folder of a run that was tested")
    path = parser.parse_args(argv).output_dir / "metrics.json"
    if not path.is_file():
        sys.stderr.write(f"show_metrics: {path}: there is no such file; was the run tested?\n")
        return 1
    Console().print(metrics_table(json.loads(path.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
