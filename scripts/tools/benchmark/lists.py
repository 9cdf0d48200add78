"""What a long list costs: seconds, memory, and whether the workers share it.

Memory is that of fresh processes, one with the long list and one with a list of one line, because
what the libraries take is most of it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dataset.build import build_dataset
from dataset.datasets import VideoClsDataset
from dataset.processes import use_one_thread
from scripts.tools.benchmark.timing import measure_in_turns, print_summary, summarize

NEW_PROCESS = "spawn"  # one that has none of this process's memory
_LIST = "train_list_video.txt"


def benchmark_list(args: argparse.Namespace) -> dict[str, Any]:
    """Building a dataset on a long list, over one on a list of one line.

    Returns:
        `seconds`: a summary of both; `memory_mb`: {what: how much more of it the long list takes}.
    """
    with tempfile.TemporaryDirectory() as name:
        one, many = Path(name) / "one", Path(name) / "many"
        _write_list(one, 1)
        _write_list(many, args.lines)
        runs = {
            "one line": lambda turn: build_dataset("train", one),
            f"{args.lines} lines": lambda turn: build_dataset("train", many),
        }
        seconds = measure_in_turns(runs, args.repeats, args.clock)
        memory = extra_memory(*(_in_new_process(NEW_PROCESS, measure_memory, path) for path in (one, many)))
    summary = summarize(seconds, "one line")
    print_summary("building a dataset on a list", summary, "ratio")
    _print_memory(f"what {args.lines} lines take over one line", memory)
    return {"seconds": summary, "memory_mb": memory}


def _write_list(folder: Path, lines: int) -> None:
    """A list of that many clips, of which the first exists."""
    first = folder / _name(0)
    first.parent.mkdir(parents=True)
    first.touch()
    with (folder / _LIST).open("w") as file:
        file.writelines(f"{_name(number)} {number % 75}\n" for number in range(lines))


def _name(number: int) -> str:
    """The path of a clip that does not exist, but for the first one's."""
    return f"S{number % 30:02}A{number % 12:02}I01M0/S{number % 30:02}A{number % 12:02}I01M0_{number:07}.mp4"


# ---------------------------------------------------------------------------------------- memory


def extra_memory(small: dict[str, float], large: dict[str, float]) -> dict[str, float]:
    """How much more the second takes, by name."""
    return {name: large[name] - small[name] for name in small}


def measure_memory(folder: Path) -> dict[str, float]:
    """Memory that a dataset on the folder's list takes in this process and in a worker, in MB.

    Returns:
        `resident`: what this process holds more once the dataset exists; `peak`: what it held more
        at most; `worker_private`: what a worker that walks the whole list gets for itself alone, and
        `worker_pss`: its share of all that it uses, which counts shared memory in parts.
    """
    before = _kilobytes("status", "VmRSS")
    # From here on the peak is that of reading the list, not of importing libraries.
    Path("/proc/self/clear_refs").write_text("5")
    dataset = build_dataset("train", folder)
    usage = {
        "resident": _kilobytes("status", "VmRSS") - before,
        "peak": _kilobytes("status", "VmHWM") - before,
    }
    usage = {name: value * 1024 / 1e6 for name, value in usage.items()}
    return usage | _in_new_process("fork", _measure_walk, dataset)


def _measure_walk(dataset: VideoClsDataset) -> dict[str, float]:
    """What a worker that walks the whole list gets for itself, and its share of all, in MB."""
    before = _kilobytes("smaps_rollup", "Private_Dirty")
    for clip, label in enumerate(dataset.clips.labels):
        _ = dataset.clips[clip], int(label)
    private = _kilobytes("smaps_rollup", "Private_Dirty") - before
    share = _kilobytes("smaps_rollup", "Pss")
    return {"worker_private": private * 1024 / 1e6, "worker_pss": share * 1024 / 1e6}


def _kilobytes(file: str, field: str) -> int:
    """A field of one of this process's files in /proc, in kB of 1024 bytes."""
    return int(re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self", file).read_text(), re.MULTILINE)[1])


def _in_new_process(start: str, function: Callable[[Any], Any], argument: Any) -> Any:
    """The function's result in a process of its own: `start` is `spawn` (a fresh one) or `fork`."""
    context = multiprocessing.get_context(start)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(there, function, argument))
    process.start()
    there.close()
    try:
        return here.recv()
    finally:
        process.join()


def _send_result(pipe: Connection, function: Callable[[Any], Any], argument: Any) -> None:
    use_one_thread()
    pipe.send(function(argument))


def _print_memory(title: str, memory: dict[str, float]) -> None:
    table = Table(title=title)
    table.add_column("")
    table.add_column("MB", justify="right")
    for name, value in memory.items():
        table.add_row(name.replace("_", ", "), f"{value:.1f}")
    Console().print(table)
