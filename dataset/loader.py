"""Decoding: the frames that are wanted of a clip, and nothing else.

A clip is a video file or a folder of pictures, one a frame. `decord` is imported from the maintained
`decord2` package: the same API and frames, AV1 too. PyAV takes over where decord fails: decord 3.4
misreads, for one, pictures that are 48, 96 or 144 pixels wide. Of 8-bit video of even size both give
the same bytes; 10-bit video and odd sizes are rounded differently.

Shapes: M distinct frames, H W pixels.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import decord
import numpy as np

from dataset import storage

IndexRule = Callable[[int], np.ndarray]
VIDEO_BACKENDS = ("auto", "decord", "pyav")


class ClipError(Exception):
    """A clip that cannot be opened or decoded; the message is one line without its path."""


class DecodedClip(NamedTuple):
    """Chosen frames of a clip.

    Attributes:
        frames: uint8 `(M, H, W, 3)`, RGB, the distinct wanted frames in order of time.
        indices: the array that the rule returned, with frame numbers replaced by positions in `frames`.
        note: what a user should hear once, or nothing.
    """

    frames: np.ndarray
    indices: np.ndarray
    note: str = ""


@dataclasses.dataclass(frozen=True)
class ClipReader:
    """How clips are opened.

    Attributes:
        backend: `decord`, `pyav`, or `auto`: decord, and PyAV for files that decord cannot read.
        fname_tmpl: names of the pictures in a folder of frames, a format string such as `img_{:05}.jpg`.
        start_idx: the number of a folder's first picture.
        cache_dir: local folder that clips behind URLs are copied into; None: they are read each time.

    Raises:
        ValueError: an unknown backend, or a template that makes no names; the flag is named.
    """

    backend: str = "auto"
    fname_tmpl: str = "img_{:05}.jpg"
    start_idx: int = 1
    cache_dir: Path | None = None

    def __post_init__(self):
        if self.backend not in VIDEO_BACKENDS:
            raise ValueError(f"--video_backend {self.backend}: is none of {', '.join(VIDEO_BACKENDS)}")
        try:
            names = {self.fname_tmpl.format(i) for i in range(2)}
        except (ValueError, IndexError, KeyError):
            names = set()
        if len(names) < 2:
            raise ValueError(f"--fname_tmpl {self.fname_tmpl!r}: wants one number, as in 'img_{{:05}}.jpg'")

    def read(self, place: str, n_frames: int, choose: IndexRule) -> DecodedClip:
        """Decodes chosen frames of a clip, each once.

        Args:
            place: a path or URL.
            n_frames: pictures of a folder of frames; 0: `place` is a video file.
            choose: gets the number of frames and returns integer indices, in any order, shape and
                with repetitions.

        Raises:
            ClipError: the clip cannot be read.
        """
        try:
            if n_frames:
                return self._read_folder(place, n_frames, choose)
            kind = Path(place.partition("?")[0]).suffix
            return decode_frames(self._fetched(place), choose, self.backend, kind)
        except OSError as error:
            raise ClipError(_reason(error)) from None

    def _fetched(self, place: str) -> str | bytes:
        path = storage.local_path(place)
        if path is not None:
            return path
        return storage.fetch(place) if self.cache_dir is None else storage.fetch_to(place, self.cache_dir)

    def _read_folder(self, folder: str, n_frames: int, choose: IndexRule) -> DecodedClip:
        distinct, positions = _distinct(choose, n_frames)
        names = [self.fname_tmpl.format(self.start_idx + int(i)) for i in distinct]
        pictures = [self._read_picture(folder, name) for name in names]
        for name, picture in zip(names, pictures, strict=True):
            if picture.shape != pictures[0].shape:
                raise ClipError(f"{name}: has another size than {names[0]}")
        return DecodedClip(np.stack(pictures), positions)

    def _read_picture(self, folder: str, name: str) -> np.ndarray:
        try:
            content = self._fetched(storage.join(folder, name))
            data = content if isinstance(content, bytes) else Path(content).read_bytes()
        except OSError as error:
            raise ClipError(f"{name}: {_reason(error)}") from None
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
        if picture is None:
            raise ClipError(f"{name}: is no picture")
        return picture


def decode_frames(
    source: str | bytes, choose: IndexRule, backend: str = "auto", kind: str = ""
) -> DecodedClip:
    """Decodes chosen frames of a video, each once.

    Args:
        source: a video file's path, or what it contains.
        choose: gets the number of frames of the video and returns integer indices, in any order,
            shape and with repetitions.
        backend: one of `VIDEO_BACKENDS`.
        kind: what files like this one are called where it is noted that PyAV had to take over.

    Raises:
        ClipError: no decoder that may be used can read the file.
    """
    note = ""
    if backend != "pyav":
        try:
            return _decode_with_decord(source, choose)
        except Exception as error:  # decord raises its own and ctypes' errors, of several types
            if backend == "decord":
                raise ClipError(f"decord cannot read it: {_reason(error)}") from None
            note = f"decord cannot read some {kind or 'unnamed'} files: PyAV decodes them"
    try:  # PyAV also says better what is wrong
        return _decode_with_pyav(source, choose)._replace(note=note)
    except (OSError, ValueError, IndexError, av.error.FFmpegError) as error:
        raise ClipError(_reason(error)) from None


def _decode_with_decord(source: str | bytes, choose: IndexRule) -> DecodedClip:
    stream = source if isinstance(source, str) else io.BytesIO(source)
    reader = decord.VideoReader(stream, ctx=decord.cpu(0), num_threads=1)
    distinct, positions = _distinct(choose, len(reader))
    return DecodedClip(reader.get_batch(distinct).asnumpy(), positions)


def _decode_with_pyav(source: str | bytes, choose: IndexRule) -> DecodedClip:
    def opened() -> av.container.InputContainer:
        container = av.open(source if isinstance(source, str) else io.BytesIO(source))
        container.streams.video[0].codec_context.thread_count = 1
        return container

    with opened() as container:
        n_frames = sum(packet.size > 0 for packet in container.demux(video=0))
    distinct, positions = _distinct(choose, n_frames)
    chosen = set(distinct.tolist())
    with opened() as container:
        pictures = enumerate(itertools.islice(container.decode(video=0), int(distinct[-1]) + 1))
        frames = [_upright(frame) for i, frame in pictures if i in chosen]
    if len(frames) != len(distinct):
        raise ClipError(f"gave {len(frames)} of {len(distinct)} frames")
    return DecodedClip(np.stack(frames), positions)


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """RGB as it is to be shown; phones store a rotation beside the picture."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def _distinct(choose: IndexRule, n_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """The frames that a rule wants, ascending, and its answer as positions in them."""
    if n_frames == 0:
        raise ClipError("holds no frames")
    wanted = choose(n_frames)
    distinct, positions = np.unique(wanted, return_inverse=True)
    return distinct, positions.reshape(np.shape(wanted))


def _reason(error: Exception) -> str:
    if isinstance(error, IndexError):  # PyAV's for `video=0` where there is none
        return "holds no video"
    text = getattr(error, "strerror", None) or str(error)
    # Of decord's errors the first line says it, behind times and places in its source.
    first = text.strip().split("\n")[0]
    return re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", first).strip() or type(error).__name__
