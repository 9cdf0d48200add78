"""Random access to the frames of a video by the presentation times of its packets."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from dataset.video_file import decode, is_fresh_start, lost, packets_of
from dataset.video_index import Index

_NEVER = -(2**63)  # before all times


class WrongTimesError(Exception):
    """Decoded frames have other times than the packets."""


def seek_frames(
    container: InputContainer, stream: VideoStream, index: Index, numbers: np.ndarray, strict: bool = False
) -> Iterator[av.VideoFrame]:
    """Decodes frames by their numbers, ascending, each from the keyframe at or before it.

    Args:
        container, stream, index: the video.
        numbers: int64 `(M,)`.
        strict: refuse keyframes from which decoding cannot start, instead of starting at the first one.

    Raises:
        DamagedFrameError: a frame cannot be decoded.
        WrongTimesError: decoded frames have other times than the packets, or `strict` refuses.
    """
    run, may_seek = None, True
    for number in numbers.tolist():
        time = int(index.times[number])
        key = int(np.searchsorted(index.key_times, time, side="right")) - 1
        if run is None or (may_seek and index.key_positions[key] > run.position):
            run = _Run(container, stream, index, key)
        frame = run.advance(time)
        if frame is None and may_seek and run.key:
            # With intra refresh, or false keyframes, only the first one is a start that can be relied on.
            may_seek, run = False, _Run(container, stream, index, 0)
            frame = run.advance(time)
            if strict and frame is not None:
                raise WrongTimesError
        if frame is None:
            raise lost(number, run.error)
        yield frame


class _Run:
    """Decodes forward from a keyframe, and checks the frames' times.

    Attributes:
        key: number of the keyframe.
        position: position of the next packet in the order of decoding.
        error: the decoder's last one.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, index: Index, key: int):
        self.key, self.position = key, int(index.key_positions[key])
        self.error: Exception | None = None
        self._index, self._start = index, int(index.key_times[key])
        self._expected = 0  # number of the next frame
        self._damaged_until = _NEVER  # a time; damage ends with a fresh start after it
        self._ahead: av.VideoFrame | None = None  # decoded, and not yet asked for
        self._packet_time = self._start
        packets = _land_on_key(container, stream, index, key)
        self._frames = self._checked(decode(stream, self._count(packets)))

    def advance(self, time: int) -> av.VideoFrame | None:
        """Return the frame that is shown at a time, not before the last one, or None if it is lost."""
        while True:
            frame = self._ahead or next(self._frames, None)
            self._ahead = frame
            if frame is None or frame.pts > time:
                return None
            if frame.pts == time:
                return frame if self._damaged_until == _NEVER else None
            self._ahead = None

    def _is_key(self, time: int) -> bool:
        return bool(np.isin(time, self._index.key_times))

    def _count(self, packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
        for packet in packets:
            self.position += 1
            self._packet_time = packet.pts
            yield packet

    def _checked(self, frames: Iterable[av.VideoFrame | Exception]) -> Iterator[av.VideoFrame]:
        is_first = True
        for frame in frames:
            if isinstance(frame, Exception):
                self.error, self._damaged_until = frame, self._packet_time
                continue
            if frame.pts is not None and frame.pts < self._start:
                continue  # it refers to frames before the keyframe
            rank = self._index.rank(frame.pts)
            if rank is None or rank < self._expected:
                raise WrongTimesError
            if rank > self._expected and not is_first:
                self._damaged_until = int(self._index.times[rank - 1])
            # Some files call packets keyframes that are none.
            starts_late = is_first and self.key > 0 and not is_fresh_start(frame)
            self._expected, is_first = rank + 1, False
            if frame.is_corrupt or starts_late:
                self._damaged_until = frame.pts
            elif frame.pts > self._damaged_until and is_fresh_start(frame) and self._is_key(frame.pts):
                self._damaged_until = _NEVER
            yield frame


def _land_on_key(
    container: InputContainer, stream: VideoStream, index: Index, key: int
) -> Iterator[av.Packet]:
    """Seeks, and reads packets from a keyframe on; a demuxer may land before it, and rarely behind it."""
    for earlier in range(key, -1, -1):
        try:
            container.seek(int(index.key_seeks[earlier]), stream=stream)
        except av.error.FFmpegError:  # the container cannot be sought in
            break
        packets = packets_of(container, stream)
        first = next(packets, None)
        positions = np.flatnonzero(index.decode_order == first.pts) if first is not None else ()
        if not len(positions) or index.marks[positions[0]] != (first.size, first.pos):
            break  # the container's own index is damaged
        if positions[0] <= index.key_positions[key]:
            skipped = int(index.key_positions[key] - positions[0])
            return itertools.islice(itertools.chain([first], packets), skipped, None)
    raise WrongTimesError
