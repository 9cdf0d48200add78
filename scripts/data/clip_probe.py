"""Decodes clips in processes of their own: a file that hangs or kills a decoder costs only itself."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import numpy as np

from dataset import sampling
from dataset.loader import ClipError, ClipReader
from utils import UserError, derive_seed

_TICK = 0.5  # seconds; at least that often a caller hears how far it is


class ClipFile(NamedTuple):
    """A path or URL, and the number of pictures if it is a folder of frames (0: a video file)."""

    place: str
    n_frames: int


class ClipFacts(NamedTuple):
    """What decoding found: length in frames and size in pixels, or what is wrong, in one line."""

    n_frames: int = 0
    width: int = 0
    height: int = 0
    problem: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class ClipProber:
    """Decodes what a training window, the validation and the test look at in a clip.

    Attributes:
        reader: how clips are opened.
        window: `num_frames`, `sampling_rate`, `short_clips` and `sparse` of `dataset.sampling`.
        num_segment: temporal windows of the test.
        seed: seed of the run; each clip's training window follows from it and the clip's place.
    """

    reader: ClipReader
    window: Mapping[str, Any]
    num_segment: int
    seed: int

    def __call__(self, clip: ClipFile) -> ClipFacts:
        """Reads one clip; whatever goes wrong is a fact about it."""
        length = 0

        def choose(n_frames: int) -> np.ndarray:
            nonlocal length
            length = n_frames
            return self.wanted_frames(n_frames, derive_seed(self.seed, clip.place))

        try:
            frames, _, note = self.reader.read(clip.place, clip.n_frames, choose)
        except (ClipError, UserError) as error:
            return ClipFacts(problem=str(error))
        except Exception as error:  # a damaged file may make a library raise anything
            return ClipFacts(problem=" ".join(f"{type(error).__name__}: {error}".split()))
        height, width = frames.shape[1:3]
        return ClipFacts(length, width, height, note=note)

    def wanted_frames(self, n_frames: int, seed: int) -> np.ndarray:
        """One drawn training window and all frames of both evaluations, int64 `(n,)`."""
        training = sampling.train_indices(n_frames, rng=np.random.default_rng(seed), **self.window)
        validation = sampling.validation_indices(n_frames, **self.window)
        test = sampling.test_views(n_frames, num_segment=self.num_segment, **self.window)
        return np.concatenate([training, validation, test.ravel()])


def probe_clips(
    clips: Sequence[ClipFile],
    probe: Callable[[ClipFile], ClipFacts],
    num_workers: int,
    timeout: float = math.inf,
) -> Iterator[list[tuple[int, ClipFacts]]]:
    """Probes clips in parallel.

    Args:
        clips: what to probe.
        probe: runs in the processes, which are forks of this one.
        num_workers: processes, at least 1.
        timeout: seconds after which a clip's process is killed and the clip counts as unreadable.

    Yields:
        (position in `clips`, facts) of what was finished since, at least twice a second.
    """
    waiting = iter(range(len(clips)))
    workers: list[_Worker] = []

    def start() -> None:
        clip = next(waiting, None)
        if clip is not None:
            workers.append(_Worker(probe, [worker.connection for worker in workers]))
            workers[-1].give(clip, clips[clip], timeout)

    try:
        for _ in range(num_workers):
            start()
        while workers:
            finished = []
            for worker in _settled(workers):
                finished.append((worker.clip, worker.facts(timeout)))
                following = next(waiting, None) if worker.is_usable else None
                if following is not None:
                    worker.give(following, clips[following], timeout)
                    continue
                workers.remove(worker)
                worker.kill()
                start()  # in its place; nothing is left if it was idle
            yield finished
    finally:
        for worker in workers:
            worker.kill()


class _Worker:
    """A process that probes one clip after the other.

    Args:
        probe: what it does.
        inherited: the other workers' connections, of which a fork has copies. It closes them: a
            worker ends when nobody holds the other end of its pipe any more, even if we were killed.
    """

    def __init__(self, probe: Callable[[ClipFile], ClipFacts], inherited: Sequence[Connection]):
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        args = (theirs, probe, [self.connection, *inherited])
        self._process = context.Process(target=_serve, args=args, daemon=True)
        self._process.start()
        theirs.close()
        self.clip, self.deadline, self.is_usable = -1, math.inf, True

    def give(self, clip: int, file: ClipFile, timeout: float) -> None:
        """Sends the clip with a number to the process."""
        self.clip, self.deadline = clip, time.monotonic() + timeout
        with contextlib.suppress(OSError):  # its end is noticed where its answer is wanted
            self.connection.send(file)

    def facts(self, timeout: float) -> ClipFacts:
        """The process's answer, or why there is none; then it is not usable any more."""
        try:
            if self.connection.poll():
                return self.connection.recv()
            problem = f"decoding it takes longer than {timeout:g} s"
        except (EOFError, OSError):
            self._process.join()
            problem = f"decoding it ended the process (exit code {self._process.exitcode})"
        self.is_usable = False
        return ClipFacts(problem=problem)

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


def _serve(
    connection: Connection, probe: Callable[[ClipFile], ClipFacts], inherited: Sequence[Connection]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which kills its workers
    for other in inherited:
        other.close()
    # What decoders print names no clip and would tear the progress bar.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    while True:
        try:
            clip = connection.recv()
        except EOFError:
            return
        connection.send(probe(clip))
