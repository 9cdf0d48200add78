"""Set-up that every forked process needs: signals, the end of its parent, threads of libraries."""

from __future__ import annotations

import contextlib
import ctypes
import signal
from collections.abc import Iterator

import cv2
import torch

_SET_PARENT_DEATH_SIGNAL = 1  # prctl's number for it
_OF_THE_MAIN_PROCESS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Keeps such signals from processes that start inside, until they `follow_the_parent`."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_MAIN_PROCESS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def follow_the_parent() -> None:
    """Leaves signals to the process that started this one, and ends with it.

    Schedulers and terminals send their signals to every process of a job; the main one decides.
    """
    for number in _OF_THE_MAIN_PROCESS:
        signal.signal(number, signal.SIG_IGN)
    system = ctypes.CDLL(None)
    if hasattr(system, "prctl"):  # Linux
        system.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def use_one_thread() -> None:
    """Makes torch and OpenCV compute in the calling thread alone.

    A forked process calls this before it computes. The threads that its parent's libraries keep do not
    exist in the child, and torch would wait for them for ever.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
