"""How far a tool is, on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from utils import visible

Show = Callable[[int, int], None]


def show_nothing(done: int, total: int) -> None:
    """Stands in for a progress bar."""


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Progress on stderr, if that is a terminal; what is printed meanwhile stands above it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


@contextmanager
def task_of(progress: Progress | None, name: str) -> Iterator[Show]:
    """A line of the progress, if there is any; the function takes how much is done, and of how much."""
    if progress is None:
        yield show_nothing
        return
    task = progress.add_task(visible(name), total=None)
    try:
        yield lambda done, total: progress.update(task, completed=done, total=max(done, total))
    finally:
        progress.remove_task(task)
