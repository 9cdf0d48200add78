"""Makes a page of a run, or of several runs side by side.

python -m scripts.tools.report OUTPUT_DIR
python -m scripts.tools.report RUN_A RUN_B RUN_C
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from scripts.tools.report.comparison import Row, compare_hand, names_of, write_comparison
from scripts.tools.report.page import percent, text
from scripts.tools.report.run_data import HAND_NAMES, Run, read_run
from scripts.tools.report.run_page import write_report
from scripts.tools.report.statistics import ACCURACIES, Difference
from utils import Parser, UserError

_TITLES = ("top-1 %", "top-5 %", "class mean %")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog="python -m scripts.tools.report", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="OUTPUT_DIR", help="folder of a run; several: they are "
        "compared with the first")  # fmt: skip
    add("--output", type=Path, metavar="FILE", help="the page; its figures go into a folder of its name "
        "beside it as PNGs; default: report.html in the run's folder, or comparison.html beside the first "
        "run's")  # fmt: skip
    add("--no_thumbnails", action="store_true", help="no frames of clips in a run's page")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = make_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="report: %(message)s")
    try:
        with _working("reading results"):
            runs = [read_run(folder) for folder in args.runs]
        output = make_page(runs, args.output, not args.no_thumbnails)
    except (UserError, OSError) as error:
        sys.stderr.write(f"report: {error}\n")
        return 1
    sys.stdout.write(f"written: {output}\n")
    return 0


def make_page(runs: Sequence[Run], output: Path | None, thumbnails: bool) -> Path:
    """Writes the page of one run or of several; returns where."""
    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {output}: wants the name of an .html file")
    if len(runs) == 1:
        output = output or runs[0].folder / "report.html"
        with _working("drawing"):
            write_report(runs[0], output, thumbnails)
        return output
    output = output or runs[0].folder.resolve().parent / "comparison.html"
    names = names_of(runs)
    rows = {hand: compare_hand(runs, names, hand) for hand in HAND_NAMES}
    show_rows(rows)
    with _working("drawing"):
        write_comparison(runs, names, rows, output)
    return output


def _working(what: str) -> Status:
    """Says so on a terminal meanwhile; what is printed to stdout inside would go there, too."""
    return Console(stderr=True).status(what)


def show_rows(rows: Mapping[str, Sequence[Row]]) -> None:
    """Prints a table a hand: accuracies, and differences to the first run."""
    for hand, name in HAND_NAMES.items():
        if not rows[hand]:
            continue
        table = Table(title=f"{name}, with differences to the first run (95% intervals)")
        table.add_column("run")
        for title in (*_TITLES, "shared clips"):
            table.add_column(title, justify="right")
        for row in rows[hand]:
            cells = [_cell(row.accuracies[kind], row.differences.get(kind)) for kind in ACCURACIES]
            table.add_row(escape(text(row.name)), *cells, str(row.shared) if row.run else "")
        Console().print(table)


def _cell(value: float, difference: Difference | None) -> str:
    if difference is None:
        return percent(value, 2)
    gained, low, high = (f"{100 * figure:+.1f}" for figure in difference)
    return f"{percent(value, 2)}\n{gained}\n\\[{low}, {high}]"


if __name__ == "__main__":
    sys.exit(main())
