"""Worker processes that make the batches of a loader, in order.

Frames come back through anonymous memory that a worker shares with this process; it is allocated before the
worker is forked. Everything else comes back through a pair of sockets without a path. There are no files in
/dev/shm, no semaphores and no threads, so a worker either answers or is seen to have ended.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import math
import mmap
import multiprocessing
import multiprocessing.util
import signal
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch

from dataset.datasets import BadClip, ClipBatch, ClipKey, HandsDataset, collate_clips
from dataset.processes import follow_the_parent, signals_held_back, use_one_thread
from utils import UserError, naming_shortages, terminal

_AHEAD = 2  # batches that a worker makes before they are asked for
_TICK = 0.2  # seconds between looks at a worker that does not answer
_PATIENCE = 1.0  # seconds until a killed process must have ended
# Clips that a task names as bad. Tasks must fit into the buffer of a socket: a worker that sends a reply does
# not read, and both ends would wait for each other.
_NEWS_PER_TASK = 20


def nothing() -> None:
    """Default callback: does nothing."""


def serve_batches(
    hands: HandsDataset,
    batches: Iterable[Sequence[ClipKey]],
    num_workers: int,
    pin_memory: bool,
    on_wait: Callable[[], None] = nothing,
) -> Iterator[ClipBatch]:
    """Makes batches in worker processes and yields them in order.

    The workers start when the first batch is asked for, and end with the iterator.

    Args:
        hands: the clips.
        batches: keys of each batch. The first batch of an iterator must be the longest.
        num_workers: processes, at least 1.
        pin_memory: put batches into pinned memory.
        on_wait: called several times per second while a batch is waited for; may raise.

    Raises:
        UserError: a worker's own, a worker that ended, or too little memory, too few processes or files.
    """
    most, tasks = _most_clips(batches)
    if not most:
        return
    if isinstance(batches, Collection):
        num_workers = min(num_workers, len(batches))
    pool: list[_Worker] = []
    # Python itself would ask workers to end by a signal that they ignore, and wait for ever.
    end = multiprocessing.util.Finalize(None, _end, (pool,), exitpriority=100)
    try:
        with naming_shortages(f"starting {num_workers} workers"), signals_held_back():
            while len(pool) < num_workers:
                pool.append(_Worker(hands, most, [worker.connection for worker in pool]))
        pending: collections.deque[_Worker] = collections.deque()
        for worker, keys in zip(pool * _AHEAD, tasks, strict=False):
            worker.give(keys)
            pending.append(worker)
        while pending:
            worker = pending.popleft()
            batch = worker.receive(pin_memory, on_wait)
            hands.learn(batch.bad)
            for keys in itertools.islice(tasks, 1):
                worker.give(keys)
                pending.append(worker)
            yield batch
    finally:
        end()


def _most_clips(batches: Iterable[Sequence[ClipKey]]) -> tuple[int, Iterator[Sequence[ClipKey]]]:
    """Returns the clips of the longest batch, and the batches."""
    tasks = iter(batches)
    if isinstance(batches, Collection):
        return max(map(len, batches), default=0), tasks
    first = list(itertools.islice(tasks, 1))
    return max(map(len, first), default=0), itertools.chain(first, tasks)


class _Worker:
    """A process that makes one batch after the other, and the memory that it shares with this one.

    Args:
        hands: the clips.
        most_clips: clips of the longest batch.
        inherited: connections to the workers before it, which a fork has copies of. The process closes
            them: a worker ends when its connection has no other end any more.
    """

    def __init__(self, hands: HandsDataset, most_clips: int, inherited: Sequence[Connection]):
        self._hands, self._most_clips = hands, most_clips
        size = most_clips * hands.most_bytes
        self._slots = np.frombuffer(mmap.mmap(-1, _AHEAD * size), np.uint8).reshape(_AHEAD, size)
        self._given = self._received = 0
        self._known = {hand: len(clips.known_bad) for hand, clips in hands.hands.items()}
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        with contextlib.closing(theirs):
            args = (theirs, hands, self._slots, [self.connection, *inherited])
            self._process = context.Process(target=_work, args=args, daemon=True)
            self._process.start()

    def give(self, keys: Sequence[ClipKey]) -> None:
        """Asks for a batch; at most `_AHEAD` may be outstanding."""
        if len(keys) > self._most_clips:
            raise ValueError(f"a batch of {len(keys)} clips after one of {self._most_clips}")
        task = _Task(self._given % _AHEAD, keys, self._take_news())
        self._given += 1
        with contextlib.suppress(ConnectionError):  # the end of a worker is noticed in `receive`
            self.connection.send(task)

    def _take_news(self) -> list[BadClip]:
        """Returns bad clips that the process has not heard of."""
        news: list[BadClip] = []
        for hand, clips in self._hands.hands.items():
            first, room = self._known[hand], _NEWS_PER_TASK - len(news)
            fresh = itertools.islice(clips.known_bad.items(), first, first + room)
            news += [BadClip(hand, name, reason) for name, reason in fresh]
            self._known[hand] = min(first + room, len(clips.known_bad))
        return news

    def receive(self, pin_memory: bool, on_wait: Callable[[], None]) -> ClipBatch:
        """Returns the next batch that was asked for.

        Raises:
            UserError: the worker's own, or the worker ended.
        """
        while not self.connection.poll(_TICK):
            on_wait()
            # Its child may hold the other end of the connection a while longer.
            if not self._process.is_alive() and not self.connection.poll():
                raise UserError(self._describe_end())
        try:
            reply = self.connection.recv()
        except (EOFError, ConnectionError):
            raise UserError(self._describe_end()) from None
        if isinstance(reply, Exception):
            raise reply
        slot = self._slots[self._received % _AHEAD]
        self._received += 1
        return _copy_out(reply, slot, pin_memory)

    def _describe_end(self) -> str:
        self._process.join(_PATIENCE)
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"a process of the loader failed with exit code {code}; its own output says why"
        return (
            f"a process of the loader failed: {signal.Signals(-code).name} ended it; if memory ran out, "
            "--num_workers, --batch_size and --num_sample lower it"
        )

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()

    def forget(self, deadline: float) -> None:
        """Frees what belongs to a process that was killed, and waits for its end until a time."""
        self._process.join(max(0.0, deadline - time.monotonic()))
        self.connection.close()


def _end(pool: list[_Worker]) -> None:
    for worker in pool:
        worker.kill()
    # A process that waits for a dead network drive cannot even be killed.
    deadline = time.monotonic() + _PATIENCE
    for worker in pool:
        worker.forget(deadline)


# ------------------------------------------------------------------------------- in the worker


class _Task(NamedTuple):
    """A batch to make."""

    slot: int  # of the shared memory
    keys: Sequence[ClipKey]
    news: list[BadClip]  # clips that need not be tried again


def _work(
    connection: Connection, hands: HandsDataset, slots: np.ndarray, inherited: list[Connection]
) -> None:
    """Makes batches until the other end of the connection is closed."""
    follow_the_parent()
    use_one_thread()
    if screen := terminal():
        screen.serve_worker()
    for other in inherited:
        other.close()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            task = connection.recv()
            connection.send(_reply(task, hands, slots[task.slot]))


def _reply(task: _Task, hands: HandsDataset, slot: np.ndarray) -> tuple[Any, ...] | Exception:
    """Returns the batch in the form that `_copy_out` takes, or the error that prevented it."""
    hands.learn(task.news)
    try:
        samples = [hands.sample_apart(key) for key in task.keys]
        batch = collate_clips(samples, out=slot)
        parts = batch._replace(frames=tuple(batch.frames.shape))
        return tuple(part.numpy() if isinstance(part, torch.Tensor) else part for part in parts)
    except UserError as error:
        return error
    except Exception:
        return RuntimeError(f"a process of the loader failed:\n{traceback.format_exc()}")


# ------------------------------------------------------------------------------ in this process


def _copy_out(parts: tuple[Any, ...], slot: np.ndarray, pin_memory: bool) -> ClipBatch:
    """Returns the batch of a reply, whose frames leave the shared memory."""
    batch = ClipBatch(*(torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in parts))
    shared = torch.from_numpy(slot[: math.prod(batch.frames)]).view(batch.frames)
    frames = torch.empty(batch.frames, dtype=torch.uint8, pin_memory=pin_memory).copy_(shared)
    return pin(batch._replace(frames=frames)) if pin_memory else batch._replace(frames=frames)


def pin(batch: ClipBatch) -> ClipBatch:
    """Returns the batch in pinned memory, from which GPUs copy asynchronously."""
    return ClipBatch(*(part.pin_memory() if isinstance(part, torch.Tensor) else part for part in batch))
