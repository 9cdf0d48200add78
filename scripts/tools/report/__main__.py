"""Makes a page of a run, or of several runs side by side.

python -m scripts.tools.report OUTPUT_DIR
python -m scripts.tools.report RUN_A RUN_B RUN_C
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.tools.report.run_data import read_run
from scripts.tools.report.run_page import write_report
from utils import Parser, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = Parser(prog="python -m scripts.tools.report", description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="OUTPUT_DIR", help="folder of a run; several: "
        "they are compared with the first")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="the page; its figures go into a folder "
        "of its name beside it as PNGs; default: report.html in the run's folder, or comparison.html beside "
        "the first run's")  # fmt: skip
    parser.add_argument("--no_thumbnails", action="store_true", help="no frames of clips")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="report: %(message)s")
    try:
        runs = [read_run(folder) for folder in args.runs]
        output = args.output or runs[0].folder / "report.html"
        write_report(runs[0], output, not args.no_thumbnails)
    except UserError as error:
        sys.stderr.write(f"report: {error}\n")
        return 1
    sys.stdout.write(f"written: {output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
