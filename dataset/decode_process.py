"""A process that opens clips for another one, and may hang or crash without harm.

Decoders are C code which some files keep busy for ever or make crash. So each worker of the loader has
a child that opens clips: one that is late is killed and replaced, and the clip counts as unreadable.
Views come back through memory that both share.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from dataset.loader import ClipError
from dataset.processes import follow_the_parent, use_one_thread
from utils import UserError, lack_of_files, naming_shortages

_PATIENCE = 100  # hundredths of a second until a killed process must have ended
_ATTEMPTS = 2  # a process may also have been ended from outside


class DecodeProcess:
    """A child process that answers one request at a time.

    Args:
        answer: makes a named tuple with an array `frames` of bytes; runs in the child, which has
            everything that this process has at the first request.
        capacity: bytes of the largest `frames`.
        timeout: seconds after which a request is given up; 0: never.
    """

    def __init__(self, answer: Callable[..., Any], capacity: int, timeout: float):
        self._answer, self._timeout = answer, timeout
        with naming_shortages("opening clips in a process of its own"):
            self._memory = np.frombuffer(mmap.mmap(-1, capacity), np.uint8)
        self._pid: int | None = None
        self._pipe: Connection | None = None

    def ask(self, *request: Any) -> Any:
        """The answer to a request.

        Raises:
            ClipError: the answer's own, or it took too long, or it ended its process again and again.
            UserError: the answer's own, or too few processes or open files.
        """
        for _ in range(_ATTEMPTS):
            if self._pid is None:
                self._start()
            try:
                self._pipe.send(request)
                if not self._pipe.poll(self._timeout or None):
                    self._end()
                    raise ClipError(f"took longer than --decode_timeout {self._timeout:g} s")
                reply = self._pipe.recv()
            except (EOFError, ConnectionError):
                cause = self._end()
                continue
            if isinstance(reply, Exception):
                raise reply
            return reply._replace(frames=self._stored(reply.frames).copy())
        raise ClipError(f"ended the process that opened it, twice ({cause})")

    def _stored(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._memory[: int(np.prod(shape))].reshape(shape)

    def _start(self) -> None:
        with naming_shortages("opening clips in a process of its own"):
            ours, theirs = multiprocessing.Pipe()
            self._pid = os.fork()
        if self._pid == 0:
            ours.close()  # so that the child sees the end of its parent
            code = 1
            try:
                self._serve(theirs)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        theirs.close()
        self._pipe = ours

    def _end(self) -> str:
        """Makes sure that the child is gone; how it ended."""
        os.kill(self._pid, signal.SIGKILL)
        ended, status = 0, 0
        for _ in range(_PATIENCE):
            ended, status = os.waitpid(self._pid, os.WNOHANG)
            if ended:
                break
            time.sleep(0.01)
        self._pid = None
        self._pipe.close()
        if not ended:  # one that waits for a dead network drive cannot even be killed
            return "it cannot be ended"
        code = os.waitstatus_to_exitcode(status)
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _serve(self, pipe: Connection) -> None:
        follow_the_parent()
        use_one_thread()
        while True:
            try:
                request = pipe.recv()
                reply = self._reply(request)
                pipe.send(reply)
            except (EOFError, ConnectionError):  # the parent is gone
                return

    def _reply(self, request: tuple[Any, ...]) -> Any:
        try:
            reply = self._answer(*request)
        except (ClipError, UserError) as error:
            lack = lack_of_files(error)  # which says nothing about the clip
            return UserError(lack) if lack else error
        except Exception:
            return RuntimeError(traceback.format_exc())
        self._stored(reply.frames.shape)[:] = reply.frames
        return reply._replace(frames=reply.frames.shape)
