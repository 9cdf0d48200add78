"""What is wrong with a data set's lists and clips, and what may not be meant so."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from scripts.data.hand_lists import HandList

_MANY_SHORT = 0.5  # share of a list's clips
_UNLIKE = 2  # times as many classes in one hand's training list as in the other's


class Finding(NamedTuple):
    """One thing to know before a run, in one line, and each place where it is so."""

    text: str
    items: Sequence[str] = ()


def find_errors(lists: Sequence[HandList]) -> list[Finding]:
    """What a run would stumble over, or what would make its figures wrong."""
    found = [_unreadable(one) for one in lists]
    for _, group in itertools.groupby(lists, key=lambda one: one.hand):
        of_hand = list(group)
        found += [_two_labels(of_hand), *(_shared(*pair) for pair in _split_pairs(of_hand, of_hand))]
    return [finding for finding in found if finding.items]


def find_warnings(lists: Sequence[HandList], num_classes: Mapping[str, int], window: int) -> list[Finding]:
    """What a run gets along with, though it may be a mistake.

    Args:
        lists: the lists of all hands.
        num_classes: classes a hand.
        window: clips with fewer frames are short.
    """
    training = {one.hand: one for one in lists if one.mode == "train"}
    found: list[Finding] = []
    for hand, train in training.items():
        found += _untrained_classes(hand, train.labels, num_classes[hand])
        of_hand = [one for one in lists if one.hand == hand and one is not train]
        of_others = [one for one in lists if one.hand != hand]
        found += [finding for one in of_hand for finding in _unseen_classes(one, train.labels)]
        found += [
            finding._replace(text=f"{finding.text}: the backbone has seen them")
            for pair in _split_pairs([train], of_others)
            if (finding := _shared(*pair)).items
        ]
    found += _unlike_hands({hand: len(train.labels) for hand, train in training.items()})
    for one in lists:
        found += [*_repeated(one), *_many_short(one, window)]
    return found


def find_notes(lists: Sequence[HandList]) -> list[Finding]:
    """What the decoders have to say, with the number of clips."""
    counts = collections.Counter(f"{one}: {fact.note}" for one in lists for fact in one.readable if fact.note)
    return [Finding(f"{note} ({_clips(count)})") for note, count in counts.items()]


def _unreadable(one: HandList) -> Finding:
    items = [f"{one.name(clip)}: {reason}" for clip, reason in one.unreadable.items()]
    return Finding(f"{one}: {len(items)} of {_clips(len(one.facts))} cannot be read", items)


def _two_labels(lists: Sequence[HandList]) -> Finding:
    """Clips of a hand whose label depends on the list, or in one list on the path."""
    items = []
    first: dict[Hashable, tuple[HandList, int]] = {}
    for one in lists:
        for clip, key in enumerate(one.keys):
            other, place = first.setdefault(key, (one, clip))
            labels = int(other.clips.labels[place]), int(one.clips.labels[clip])
            if labels[0] != labels[1]:
                items.append(
                    f"{other.name(place)} of {other} is class {labels[0]}, "
                    f"{one.name(clip)} of {one} is class {labels[1]}"
                )
    return Finding(f"{lists[0].hand}: {_clips(len(items))} with two labels", items)


def _split_pairs(
    training: Iterable[HandList], evaluation: Iterable[HandList]
) -> Iterator[tuple[HandList, HandList]]:
    """Each training list with each list of an evaluation."""
    for train, other in itertools.product(training, evaluation):
        if train.mode == "train" != other.mode:
            yield train, other


def _shared(train: HandList, other: HandList) -> Finding:
    places = {key: clip for clip, key in enumerate(train.keys)}
    shared = {key: clip for clip, key in enumerate(other.keys) if key in places}
    items = [f"{train.name(places[key])} is {other.name(clip)} of {other}" for key, clip in shared.items()]
    return Finding(f"{train}: {_clips(len(items))} also in {other}", items)


def _untrained_classes(hand: str, labels: set[int], num_classes: int) -> Iterator[Finding]:
    missing = sorted(set(range(num_classes)) - labels)
    if missing:
        count = f"{len(missing)} of {num_classes} classes"
        yield Finding(f"{hand} train: {count} without a clip: {_ranges(missing)}")


def _unseen_classes(one: HandList, trained: set[int]) -> Iterator[Finding]:
    unseen = sorted(one.labels - trained)
    if unseen:
        clips = _clips(int(np.isin(one.clips.labels, unseen).sum()))
        yield Finding(f"{one}: {clips} of classes that training has not: {_ranges(unseen)}")


def _unlike_hands(classes: Mapping[str, int]) -> Iterator[Finding]:
    """A hint that a list is not the one that was meant."""
    for (hand, count), (other, other_count) in itertools.permutations(classes.items(), 2):
        if count > _UNLIKE * other_count:
            yield Finding(f"{hand} train has {count} classes with a clip, {other} train {other_count}")


def _repeated(one: HandList) -> Iterator[Finding]:
    places: dict[Hashable, list[int]] = {}
    for clip, key in enumerate(one.keys):
        places.setdefault(key, []).append(clip)
    items = [
        f"{one.name(clips[0])} again in line {', '.join(str(one.clips.lines[clip]) for clip in clips[1:])}"
        for clips in places.values()
        if len(clips) > 1
    ]
    if items:
        yield Finding(f"{one}: {_clips(len(items))} listed more than once", items)


def _many_short(one: HandList, window: int) -> Iterator[Finding]:
    short = sum(fact.n_frames < window for fact in one.readable)
    if short > _MANY_SHORT * len(one.readable):
        share = short / len(one.readable)
        yield Finding(f"{one}: {share:.0%} of the clips have fewer than {window} frames, see --short_clips")


def _clips(count: int) -> str:
    return f"{count:,} clip" + "s" * (count != 1)


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, with runs as ranges: `0, 3-7, 9`."""
    runs = itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(group) for _, group in runs)]
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)
