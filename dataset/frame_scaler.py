"""Converts frames of videos to other formats and sizes."""

from __future__ import annotations

import os
import threading
from typing import Any

import av
from av.video.reformatter import VideoReformatter

_scaler = threading.local()


def convert(frame: av.VideoFrame, **wanted: Any) -> av.VideoFrame:
    """Convert a frame to another format or size, with a scaler of this process and thread.

    The threads of a scaler do not survive a fork. A process that uses, or only frees, a scaler that another
    one has used with threads waits for them for ever.

    Args:
        frame: the frame.
        wanted: `format`, `height`, `width` and other keywords of PyAV's `VideoReformatter.reformat`.
    """
    if getattr(_scaler, "process", None) != os.getpid():
        _scaler.process, _scaler.own = os.getpid(), VideoReformatter()
    return _scaler.own.reformat(frame, threads=1, **wanted)
