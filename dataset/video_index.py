"""Numbers the frames of an open video by the presentation times of its packets, without decoding.

P packets in the order in which they are decoded, n frames shown.
"""

from __future__ import annotations

from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from dataset.video_file import ClipError, packets_of

MOV, MATROSKA, MPEG_TS = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts"
_PROGRESSIVE = (0, 1)  # ffmpeg's field orders: unknown and progressive
_CODED_BYTES = 16  # a smaller packet of MPEG-4 video may say that nothing changed, and then shows no frame
# Other containers have no presentation times (AVI), or not one per frame (MPEG program streams), so that
# ffmpeg makes them up.
_STORES_TIMES = (MOV, MATROSKA, MPEG_TS, "flv")


class Index(NamedTuple):
    """Presentation times of a file's packets, in units of its stream.

    Attributes:
        times: times of the packets that are shown, ascending: int64 `(n,)`.
        decode_order: times of all packets in the order of decoding: int64 `(P,)`.
        marks: (size, place in the file) of all packets in the order of decoding.
        key_times: times of the keyframes, ascending.
        key_positions: positions of the keyframes in `decode_order`.
        key_seeks: times by which the container's demuxer finds the keyframes.
        has_open_groups: whether a frame after a keyframe in order of decoding is shown before it.
    """

    times: np.ndarray
    decode_order: np.ndarray
    marks: list[tuple[int, int | None]]
    key_times: np.ndarray
    key_positions: np.ndarray
    key_seeks: np.ndarray
    has_open_groups: bool

    def rank(self, time: int | None) -> int | None:
        """Return the number of the frame that is shown at a time, or None if there is none."""
        if time is None:
            return None
        place = int(np.searchsorted(self.times, time))
        return place if place < len(self.times) and self.times[place] == time else None


class Scan(NamedTuple):
    """All packets of a stream.

    Attributes:
        index: None where the times do not number the frames.
        truncation: how much of the stated duration is missing, in words, or nothing.
    """

    index: Index | None
    truncation: str


def scan_packets(container: InputContainer, stream: VideoStream) -> Scan:
    """Reads all packets once and decides whether their times number the frames.

    Raises:
        ClipError: the file is an image.
    """
    is_hidden = _HIDDEN.get(stream.codec_context.name)
    rows = [
        (
            packet.pts,
            packet.dts,
            packet.is_keyframe,
            not (packet.is_discard or (is_hidden and is_hidden(packet))),
            packet.size,
            packet.pos,
            packet.has_sidedata("palette"),
            packet.duration,
        )
        for packet in packets_of(container, stream)
    ]
    if not rows:
        return Scan(None, "")
    if container.format.name == "gif" and len(rows) == 1:
        raise ClipError("is an image, not a video")
    columns = _Packets(*zip(*rows, strict=True))
    return Scan(_make_index(columns, container.format.name, stream), _truncation(container, stream, columns))


class _Packets(NamedTuple):
    """A stream's packets, a tuple per property."""

    times: tuple[int | None, ...]
    decode_times: tuple[int | None, ...]
    is_key: tuple[bool, ...]
    is_shown: tuple[bool, ...]
    sizes: tuple[int, ...]  # bytes
    places: tuple[int | None, ...]  # first bytes
    have_palette: tuple[bool, ...]
    durations: tuple[int | None, ...]


def _is_hidden_vp8(packet: av.Packet) -> bool:
    return not memoryview(packet)[0] & 16


def _is_hidden_vp9(packet: av.Packet) -> bool:
    data = memoryview(packet)
    if data[-1] & 0b11100000 == 0b11000000:  # a superframe: its last frame is shown
        return False
    has_reserved_bit = data[0] & 0b00110000 == 0b00110000  # profile 3
    bits = data[0] << has_reserved_bit
    return not bits & 0b00001010  # show_existing_frame, show_frame


_HIDDEN = {"vp8": _is_hidden_vp8, "vp9": _is_hidden_vp9}


def _make_index(packets: _Packets, container: str, stream: VideoStream) -> Index | None:
    context, is_key = stream.codec_context, np.array(packets.is_key)
    if (
        None in packets.times
        or not is_key[0]
        or not (container in _STORES_TIMES or packets.times == packets.decode_times)
        # A transport stream may hold each field of an interlaced frame in a packet of its own.
        or (container == MPEG_TS and context.field_order not in _PROGRESSIVE)
        or (context.name == "mpeg4" and min(packets.sizes) < _CODED_BYTES)
        # Copies of streams without presentation times have their decoding times in their place.
        or (context.has_b_frames and packets.times == packets.decode_times)
        or any(packets.have_palette)  # demuxers do not give it again after a seek
    ):
        return None
    times = np.array(packets.times)
    # Matroska has no decoding times; ffmpeg derives them, but for the first packets.
    seeks = times if container == MATROSKA else np.array(packets.decode_times, float)
    shown, key_times = np.sort(times[np.array(packets.is_shown)]), times[is_key]
    key_positions = np.flatnonzero(is_key)
    latest_before_keys = np.maximum.accumulate(times)[key_positions[1:] - 1]
    if (
        len(np.unique(times)) < len(times)
        or (container != MATROSKA and not (np.diff(seeks) > 0).all())
        or (np.diff(key_times) <= 0).any()
        or (latest_before_keys > key_times[1:]).any()  # such as of joined cuts with hidden ends
        or not len(shown)
        or shown[0] < key_times[0]  # such frames cannot be decoded
    ):
        return None
    group_starts = np.repeat(key_times, np.diff([*key_positions, len(times)]))
    return Index(
        times=shown,
        decode_order=times,
        marks=list(zip(packets.sizes, packets.places, strict=True)),
        key_times=key_times,
        key_positions=key_positions,
        key_seeks=seeks[is_key].astype(int),
        has_open_groups=bool((times < group_starts).any()),
    )


def _truncation(container: InputContainer, stream: VideoStream, packets: _Packets) -> str:
    """Says how much of the stated duration is missing, if it is more than 1 s and 5 %."""
    spans = [
        (time, time + (length or 0))
        for time, length in zip(packets.times, packets.durations, strict=True)
        if time is not None
    ]
    stated = _stated_seconds(container, stream)
    if stated is None or not spans:
        return ""
    starts, ends = zip(*spans, strict=True)
    there = float((max(ends) - min(starts)) * stream.time_base)
    if stated - there <= max(1.0, 0.05 * stated):
        return ""
    return f"breaks off: it states {stated:.1f} s of video and holds {there:.1f} s, {len(spans)} frames"


def _stated_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    if container.format.name == "avi" and stream.frames and stream.average_rate:
        return float(stream.frames / stream.average_rate)  # ffmpeg fits the duration to the file's size
    if stream.duration:
        return float(stream.duration * stream.time_base)
    try:  # Matroska writers note it as a tag of the stream
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except (KeyError, ValueError):
        pass
    if container.duration and len(container.streams) == 1:
        return container.duration / av.time_base
    return None
