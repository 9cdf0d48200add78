"""Reads the wanted frames of a clip, and nothing else.

A clip is a video file or a folder of images, one per frame. `dataset.video` decodes videos. decord, from
the maintained `decord2` package, does so only where a user asks for it: it numbers the frames of many kinds
of files wrongly.

Shapes: M distinct frames, H W pixels.
"""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from dataset import storage, video
from dataset.video import ClipError, DamagedFrameError, IndexRule

VIDEO_BACKENDS = ("auto", "decord", "pyav")


class DecodedClip(NamedTuple):
    """Chosen frames of a clip.

    Attributes:
        frames: uint8 `(M, H, W, 3)`, RGB, the distinct wanted frames in order of time.
        indices: the array that the rule returned, with frame numbers replaced by positions in `frames`.
        note: a message for the user, said once per kind of file, or nothing.
    """

    frames: np.ndarray
    indices: np.ndarray
    note: str = ""


@dataclasses.dataclass(frozen=True)
class ClipReader:
    """How clips are opened.

    Attributes:
        backend: `pyav`, or `auto`, which means the same; or `decord`, for files that it reads right.
        fname_tmpl: names of the images in a folder of frames, a format string such as `img_{:05}.jpg`.
        start_idx: the number of a folder's first image.
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
            n_frames: number of images in a folder of frames; 0: `place` is a video file.
            choose: gets the number of frames and returns integer indices, in any order, shape and
                with repetitions.

        Raises:
            ClipError: the clip cannot be read.
        """
        return self.read_and_check(place, n_frames, choose)[0]

    def read_and_check(self, place: str, n_frames: int, choose: IndexRule) -> tuple[DecodedClip, str]:
        """Reads a clip, and says how much of a video's stated duration is missing, or nothing; see `read`."""
        try:
            if n_frames:
                return self._read_folder(place, n_frames, choose), ""
            kind = Path(place.partition("?")[0]).suffix
            return _decode(self._fetched(place), choose, self.backend, kind)
        except OSError as error:
            raise ClipError(_reason(error)) from None

    def _fetched(self, place: str) -> str | bytes:
        path = storage.local_path(place)
        if path is not None:
            return path
        return storage.fetch(place) if self.cache_dir is None else storage.fetch_to(place, self.cache_dir)

    def _read_folder(self, folder: str, n_frames: int, choose: IndexRule) -> DecodedClip:
        distinct, positions = video.distinct(choose, n_frames)
        names = [self.fname_tmpl.format(self.start_idx + int(i)) for i in distinct]
        pictures = [self._read_picture(folder, name) for name in names]
        for name, picture in zip(names, pictures, strict=True):
            if picture.shape != pictures[0].shape:
                raise DamagedFrameError(f"{name}: has another size than {names[0]}")
        return DecodedClip(np.stack(pictures), positions)

    def _read_picture(self, folder: str, name: str) -> np.ndarray:
        try:
            content = self._fetched(storage.join(folder, name))
            data = content if isinstance(content, bytes) else Path(content).read_bytes()
        except OSError as error:
            raise DamagedFrameError(f"{name}: {_reason(error)}") from None
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
        if picture is None:
            raise DamagedFrameError(f"{name}: is no picture")
        return picture


def decode_frames(
    source: str | bytes, choose: IndexRule, backend: str = "auto", kind: str = ""
) -> DecodedClip:
    """Decodes chosen frames of a video, each once.

    Args:
        source: a video file's path, or its content.
        choose: gets the number of frames of the video and returns integer indices, in any order,
            shape and with repetitions. It must be a function of that number: it may be called twice.
        backend: one of `VIDEO_BACKENDS`.
        kind: suffix of such files, for the note on files that are slow to read.

    Raises:
        ClipError: the video or a wanted frame cannot be decoded, or decord would misread the video.
    """
    return _decode(source, choose, backend, kind)[0]


def _decode(source: str | bytes, choose: IndexRule, backend: str, kind: str) -> tuple[DecodedClip, str]:
    if backend == "decord":
        return _decode_with_decord(source, choose), ""
    chosen = video.read_chosen(source, choose)
    note = ""
    if chosen.is_sequential:
        note = f"some {kind or 'unnamed'} files are slow to read: they do not store the times of their frames"
    return DecodedClip(chosen.frames, chosen.positions, note), chosen.truncation


def _decode_with_decord(source: str | bytes, choose: IndexRule) -> DecodedClip:
    import decord  # most runs never need it

    n_frames = video.check_for_decord(source, choose)
    numbers, positions = video.distinct(choose, n_frames)
    stream = source if isinstance(source, str) else io.BytesIO(source)
    try:
        reader = decord.VideoReader(stream, ctx=decord.cpu(0), num_threads=1)
        frames = reader.get_batch(numbers).asnumpy()
    except Exception as error:  # decord raises its own and ctypes' errors, of several types
        raise ClipError(f"decord cannot read it: {_reason(error)}; use --video_backend auto") from None
    if len(reader) != n_frames or frames.shape[-1] != 3:
        raise ClipError("decord misreads it: use --video_backend auto")
    return DecodedClip(frames, positions)


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    # Of decord's errors the first line says it, behind times and places in its source.
    first = text.strip().split("\n")[0]
    return re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", first).strip() or type(error).__name__
