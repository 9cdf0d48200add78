"""Cuts clips out of a recording in one pass: each frame is decoded once and goes to every open clip.

The clips may overlap, as those of two hands do. Shapes: H W pixels.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
from av.video.frame import PictureType

from dataset.video import (
    ClipError,
    convert,
    explain,
    is_stored_upright,
    iterate_frames,
    open_video,
    read_header,
    to_rgb,
)
from utils import UserError, lack_of_files

_ERRORS = (ClipError, OSError, ValueError, av.error.FFmpegError)


class Cut(NamedTuple):
    """A clip to be made: frames `start` to `stop - 1` of a recording."""

    path: Path
    start: int
    stop: int


class CutJob(NamedTuple):
    """A recording and its clips."""

    recording: Path
    cuts: tuple[Cut, ...]


class CutResult(NamedTuple):
    """How a job ended.

    Attributes:
        made: clips that were written.
        kept: clips that were there already.
        problems: {clip: why it could not be made}.
        failure: why no more could be made of the whole recording, or nothing.
    """

    made: int = 0
    kept: int = 0
    problems: dict[Path, str] = {}  # noqa: RUF012 - a tuple's default; never changed
    failure: str = ""


@dataclass(frozen=True)
class ClipCutter:
    """Makes clips of H.264 video.

    Attributes:
        short_side: pixels of the shorter side; smaller recordings keep their size.
        keyframe_interval: frames from one keyframe to the next; 0: as the encoder likes.
        crf: x264's constant quality, 0 (best) to 51.
    """

    short_side: int
    keyframe_interval: int
    crf: int

    def __call__(self, job: CutJob) -> CutResult:
        """Makes those clips of a job that are not there yet.

        Raises:
            UserError: too few open files.
        """
        try:
            header = read_header(job.recording)
            size = self.clip_size(header.height, header.width)
            missing = [cut for cut in job.cuts if not is_whole(cut, size)]
            problems = self._cut(job.recording, missing, size, header.rate) if missing else {}
        except _ERRORS as error:
            if lack := lack_of_files(error):
                raise UserError(lack) from error
            return CutResult(failure=explain(error))
        return CutResult(len(missing) - len(problems), len(job.cuts) - len(missing), problems)

    def clip_size(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) of the clips of a recording: even numbers, as the encoder wants them."""
        scale = min(1.0, self.short_side / min(height, width))
        return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)

    def encoder_options(self) -> dict[str, str]:
        """What x264 is told."""
        options = {"preset": "veryfast", "crf": str(self.crf)}
        if self.keyframe_interval:
            # A frame that refers to a later one makes training decode that one too.
            options |= {"g": str(self.keyframe_interval), "sc_threshold": "0", "bf": "0"}
        return options

    def _cut(
        self, recording: Path, cuts: Sequence[Cut], size: tuple[int, int], rate: Fraction
    ) -> dict[Path, str]:
        """Decodes up to the last clip's end; returns why clips could not be made."""
        waiting = sorted(cuts, key=lambda cut: cut.start, reverse=True)
        opened: list[_OpenClip] = []
        number = 0
        try:
            for frame in itertools.islice(iterate_frames(recording), max(cut.stop for cut in cuts)):
                begins = waiting and waiting[-1].start == number
                picture = _scaled(frame, size) if opened or begins else None
                while waiting and waiting[-1].start == number:
                    opened.append(_OpenClip(waiting.pop(), self.encoder_options(), rate, picture))
                number += 1
                for clip in list(opened):
                    clip.add(picture)
                    if clip.cut.stop == number:
                        clip.finish()
                        opened.remove(clip)
            reason = f"only {number} frames of the recording can be decoded"
        except _ERRORS as error:
            reason = f"frame {number} of the recording: {explain(error)}"
        finally:
            for clip in opened:
                clip.discard()
        return {cut.path: reason for cut in [*waiting, *(clip.cut for clip in opened)]}


class _OpenClip:
    """A clip that frames are being added to, in a file that has not yet its name."""

    def __init__(self, cut: Cut, options: dict[str, str], rate: Fraction, like: av.VideoFrame):
        self.cut = cut
        self._part = part_of(cut.path)
        self._size = like.height, like.width
        self._frames = 0
        self._container = av.open(str(self._part), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=rate, options=options)
        self._stream.height, self._stream.width = self._size
        self._stream.pix_fmt = like.format.name
        context = self._stream.codec_context
        # Processes share the cores already, and one thread keeps the bytes the same everywhere.
        context.thread_count = 1
        # Else a reader would guess what the same numbers mean as colours.
        context.colorspace, context.color_range = like.colorspace, like.color_range

    def add(self, picture: av.VideoFrame) -> None:
        """Encodes a frame."""
        picture.pts, picture.time_base = self._frames, 1 / self._stream.codec_context.framerate
        self._container.mux(self._stream.encode(picture))
        self._frames += 1

    def finish(self) -> None:
        """Closes the file, reads it back whole and gives it its name."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        wanted, found = (self._frames, *self._size), _decoded_shape(self._part)
        if found != wanted:
            raise ValueError(f"{self.cut.path.name}: reads back as {found} (frames, H, W), not {wanted}")
        with self._part.open("rb+") as file:
            os.fsync(file.fileno())
        self._part.replace(self.cut.path)

    def discard(self) -> None:
        """Leaves nothing of the clip."""
        with contextlib.suppress(*_ERRORS):
            self._container.close()
        self._part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """Where a clip is written; no two processes write to the same file."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def remove_parts(folder: Path) -> None:
    """Removes what writers that were killed left in a folder."""
    for path in folder.glob(".*.part"):
        path.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------- reading


def is_whole(cut: Cut, size: tuple[int, int]) -> bool:
    """Whether a clip is there with the right number of frames and size `(H, W)`, by its file's header."""
    try:
        with open_video(cut.path) as (_, stream):
            return (stream.frames, stream.height, stream.width) == (cut.stop - cut.start, *size)
    except ClipError:
        return False


def _decoded_shape(path: Path) -> tuple[int, int, int]:
    """(frames, H, W) of a file, all of it decoded."""
    number, frame = 0, None
    for number, frame in enumerate(iterate_frames(path), 1):  # noqa: B007
        pass
    return (number, frame.height, frame.width) if frame else (0, 0, 0)


def _scaled(frame: av.VideoFrame, size: tuple[int, int]) -> av.VideoFrame:
    """An upright frame of size `(H, W)` that can be encoded."""
    if not is_stored_upright(frame):
        frame = av.VideoFrame.from_ndarray(to_rgb(frame), format="rgb24")
    picture = convert(frame, height=size[0], width=size[1], format="yuv420p", interpolation="AREA")
    # Where the recording has a keyframe says nothing about where the clip should have one.
    picture.pict_type = PictureType.NONE
    return picture
