"""Works on video files in processes of their own: a file that hangs or kills a decoder costs only itself."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

from dataset.processes import use_one_thread
from utils import UserError, naming_shortages

_TICK = 0.5  # seconds; at least that often a caller hears how far it is
Item = TypeVar("Item")
Result = TypeVar("Result")


def work_through(
    items: Sequence[Item],
    work: Callable[[Item], Result],
    failed: Callable[[str], Result],
    num_workers: int,
    timeout: float = math.inf,
) -> Iterator[list[tuple[int, Result]]]:
    """Works on items in parallel.

    Args:
        items: what to work on.
        work: runs in the processes, which are forks of this one.
        failed: makes the result of an item whose process ended or had to, out of the reason.
        num_workers: processes, at least 1.
        timeout: seconds after which an item's process is killed and the item counts as failed.

    Yields:
        (position in `items`, result) of what was finished since, at least twice a second.

    Raises:
        UserError: `work` raised one, or a process cannot be started.
    """
    waiting = iter(range(len(items)))
    workers: list[_Worker[Item, Result]] = []

    def start() -> None:
        place = next(waiting, None)
        if place is not None:
            workers.append(_Worker(work, [worker.connection for worker in workers]))
            workers[-1].give(place, items[place], timeout)

    try:
        for _ in range(num_workers):
            start()
        while workers:
            finished = []
            for worker in _settled(workers):
                finished.append((worker.place, worker.result(timeout, failed)))
                following = next(waiting, None) if worker.is_usable else None
                if following is not None:
                    worker.give(following, items[following], timeout)
                    continue
                workers.remove(worker)
                worker.kill()
                start()  # in its place; nothing is left if it was idle
            yield finished
    finally:
        for worker in workers:
            worker.kill()


class _Worker(Generic[Item, Result]):
    """A process that works on one item after the other.

    Args:
        work: what it does.
        inherited: the other workers' connections, of which a fork has copies. It closes them: a
            worker ends when nobody holds the other end of its pipe any more, even if we were killed.
    """

    def __init__(self, work: Callable[[Item], Result], inherited: Sequence[Connection]):
        context = multiprocessing.get_context("fork")
        with naming_shortages("starting a process that decodes"):
            self.connection, theirs = context.Pipe()
            with contextlib.closing(theirs):
                args = (theirs, work, [self.connection, *inherited])
                self._process = context.Process(target=_serve, args=args, daemon=True)
                self._process.start()
        self.place, self.deadline, self.is_usable = -1, math.inf, True

    def give(self, place: int, item: Item, timeout: float) -> None:
        """Sends the item with a number to the process."""
        self.place, self.deadline = place, time.monotonic() + timeout
        with contextlib.suppress(OSError):  # its end is noticed where its answer is wanted
            self.connection.send(item)

    def result(self, timeout: float, failed: Callable[[str], Result]) -> Result:
        """The process's answer, or why there is none; then it is not usable any more.

        Raises:
            UserError: the work's own.
        """
        try:
            if self.connection.poll():
                answer = self.connection.recv()
                if isinstance(answer, UserError):
                    raise answer
                return answer
            problem = f"decoding it takes longer than {timeout:g} s"
        except (EOFError, OSError):
            self._process.join(1)
            problem = f"decoding it ended the process (exit code {self._process.exitcode})"
        self.is_usable = False
        return failed(problem)

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.join(1)  # one that waits for a dead network drive cannot even be killed
        self.connection.close()


def _settled(workers: Sequence[_Worker]) -> list[_Worker]:
    """The workers that have an answer, died, or are late; waits for one, but not longer than a tick."""
    rest = max(0.0, min(worker.deadline for worker in workers) - time.monotonic())
    answered = set(wait([worker.connection for worker in workers], min(rest, _TICK)))
    now = time.monotonic()
    return [worker for worker in workers if worker.connection in answered or worker.deadline <= now]


def _serve(connection: Connection, work: Callable[[Item], Result], inherited: Sequence[Connection]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which kills its workers
    use_one_thread()
    for other in inherited:
        other.close()
    # What decoders print names no file and would tear the progress bar.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            answer = work(item)
        except UserError as error:
            answer = error
        connection.send(answer)
