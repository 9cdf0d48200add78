"""What was recorded in training, step by step: TensorBoard's event files, and what follows from them.

Shapes: P points of a curve.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from tensorboardX.proto.event_pb2 import Event, SessionLog

from engine_for_alternating_finetuning import Alternation

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Values over optimizer steps made, ascending."""

    steps: np.ndarray  # int64 (P,)
    values: np.ndarray  # float64 (P,)
    times: np.ndarray  # float64 (P,), seconds since 1970


def read_curves(folder: Path) -> dict[str, Curve]:
    """{tag: curve} of all event files of a folder, as TensorBoard shows them.

    A run that went on from an earlier step makes what was recorded of later ones void. Of a file whose
    end is damaged, what comes before it counts.
    """
    points: dict[str, dict[int, tuple[float, float]]] = collections.defaultdict(dict)
    for path in sorted(folder.glob("*tfevents*")) if folder.is_dir() else []:
        for event in _events_of(path):
            if event.session_log.status == SessionLog.START:
                points = _before(points, event.step)
            for value in event.summary.value:
                if not value.HasField("simple_value"):  # a picture
                    continue
                points[value.tag][event.step] = value.simple_value, event.wall_time
    return {tag: _curve_of(by_step) for tag, by_step in points.items() if by_step}


def _events_of(path: Path) -> Iterator[Event]:
    """Records are: length (8 bytes), its check sum (4), the event, its check sum (4)."""
    data = path.read_bytes()
    start = 0
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 8], "little")
        if end + 4 > len(data):
            break
        try:
            yield Event.FromString(data[start + 12 : end])
        except DecodeError:
            break
        start = end + 4
    if start < len(data):
        log.warning("%s: damaged after %d of %d bytes; the rest was left out", path, start, len(data))


def _before(
    points: Mapping[str, Mapping[int, tuple[float, float]]], step: int
) -> dict[str, dict[int, tuple[float, float]]]:
    kept = collections.defaultdict(dict)
    for tag, by_step in points.items():
        kept[tag] = {at: point for at, point in by_step.items() if at < step}
    return kept


def _curve_of(by_step: Mapping[int, tuple[float, float]]) -> Curve:
    steps = sorted(by_step)
    values, times = zip(*(by_step[step] for step in steps), strict=True)
    return Curve(np.array(steps, np.int64), np.array(values, float), np.array(times, float))


def steps_per_epoch(curves: Mapping[str, Curve], epochs_made: int) -> int | None:
    """Optimizer steps an epoch, or None where the curves do not tell.

    Args:
        curves: as `read_curves` gives them.
        epochs_made: epochs that have a row in `log.txt`.
    """
    # Validations lie at ends of epochs, and so does the last recorded step of a run that ended.
    validated = [curve.steps for tag, curve in curves.items() if tag.startswith("val")]
    if validated:
        return math.gcd(*np.concatenate(validated).tolist())
    last = max((int(curve.steps[-1]) for curve in curves.values()), default=0)
    return last // epochs_made if epochs_made and last and last % epochs_made == 0 else None


@dataclasses.dataclass(frozen=True)
class Spans:
    """A mean over each of some spans of steps, `starts` to `ends`, which hold steps of a hand."""

    starts: np.ndarray  # int64 (P,): steps made before
    ends: np.ndarray  # int64 (P,): steps made after
    values: np.ndarray  # float64 (P,)


def interval_means(
    curve: Curve, recorded: np.ndarray, alternation: Alternation, hand: str, epoch_length: int
) -> Spans:
    """Means over the steps between two recordings, of those in which the hand trained.

    What is recorded of a hand's loss is its mean over the epoch so far, which stands still while the
    hand rests. From two of them and the number of the hand's steps in each follows what it was between
    them, exactly but for rounding.

    Args:
        curve: running means of the epoch.
        recorded: all steps after which anything was recorded, int64, ascending.
        alternation: whose turn it was.
        hand: whose curve it is.
        epoch_length: steps.
    """
    spans = []
    epoch, counted, total = -1, 0, 0.0
    before = np.insert(recorded, 0, 0)[np.searchsorted(recorded, curve.steps)]  # the recording before each
    for previous, step, mean in zip(
        before.tolist(), curve.steps.tolist(), curve.values.tolist(), strict=True
    ):
        first = (step - 1) // epoch_length * epoch_length
        if first != epoch:
            epoch, counted, total = first, 0, 0.0
        steps = alternation.steps_before(step, hand) - alternation.steps_before(first, hand)
        if steps > counted:
            spans.append((max(previous, first), step, (mean * steps - total) / (steps - counted)))
            counted, total = steps, mean * steps
    starts, ends, values = zip(*spans, strict=True) if spans else ((), (), ())
    return Spans(np.array(starts, np.int64), np.array(ends, np.int64), np.array(values, float))


def thinned(spans: Spans, most: int) -> tuple[Spans, int]:
    """Neighbouring spans averaged until at most `most` are left; and how many each is the mean of."""
    together = -(-len(spans.values) // most)
    if together <= 1:
        return spans, 1
    first = np.arange(0, len(spans.values), together)
    last = np.minimum(first + together, len(spans.values))
    means = np.add.reduceat(spans.values, first) / (last - first)
    return Spans(spans.starts[first], spans.ends[last - 1], means), together


@dataclasses.dataclass(frozen=True)
class Turn:
    """Steps in a row that belong to one hand."""

    hand: str
    start: int  # first step, counted from 0
    end: int  # one past the last


def turns_between(alternation: Alternation, start: int, end: int) -> list[Turn]:
    """The turns that lie in steps `start` to `end`, cut to these."""
    length = alternation.steps_a_turn
    turns = []
    for first in range(start // length * length, end, length):
        turns.append(Turn(alternation.hand_at(first), max(first, start), min(first + length, end)))
    return turns
