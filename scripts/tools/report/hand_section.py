"""What a run's page says of one hand: confusion, calibration, classes, pairs, mistakes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from engine_for_finetuning import ClipScores
from scripts.tools.report import statistics
from scripts.tools.report.examples import ClipPictures, Picture
from scripts.tools.report.figures import Drawing, accuracy_by_support, reliability
from scripts.tools.report.matrix import Matrix, draw_matrix
from scripts.tools.report.run_data import HAND_NAMES, Run

_PAIRS = 10
_EXAMPLES = 3  # clips of a pair
_MISTAKES = 9


class Example(NamedTuple):
    """A clip of the page, and what is said under it."""

    name: str
    says: str
    picture: Picture


class PairSection(NamedTuple):
    """Two classes that were confused."""

    label: str
    predicted: str
    clips: int
    support: int
    reverse: int
    examples: list[Example]


@dataclasses.dataclass(frozen=True)
class HandSection:
    """What the page says of one hand's clips."""

    hand: str
    name: str
    matrix: Matrix
    figures: list[Drawing]
    classes: list[dict[str, Any]]
    pairs: list[PairSection]
    mistakes: list[Example]


def hand_section(run: Run, hand: str, clips: ClipScores, pictures: ClipPictures) -> HandSection:
    """Counts and draws what one hand's tested clips say."""
    names = [run.class_name(hand, label) for label in range(run.num_classes(hand))]
    predicted = clips.scores.argmax(axis=1)
    counts = statistics.confusion_matrix(clips.labels, predicted, len(names))
    by_confidence = np.argsort(-clips.scores.max(axis=1), kind="stable")
    wrong = by_confidence[(predicted != clips.labels)[by_confidence]]
    hand_name = HAND_NAMES[hand]
    matrix = draw_matrix(counts, names, f"Confusion matrix of the {hand_name.lower()}")
    rows = statistics.class_rows(counts)
    result = statistics.calibration(clips.scores, clips.labels)
    figures = [reliability(f"calibration_{hand}", hand, result)]
    if matrix.is_wide:  # many classes
        figures.append(accuracy_by_support(f"classes_{hand}", hand, rows))

    def example(clip: int, says: str) -> Example:
        return Example(clips.names[clip], says, pictures.draw(hand, clips.names[clip]))

    def of_pair(pair: statistics.ConfusedPair) -> list[Example]:
        theirs = (clips.labels[wrong] == pair.label) & (predicted[wrong] == pair.predicted)
        best = clips.scores.max(axis=1)
        return [example(clip, f"probability {best[clip]:.2f}") for clip in wrong[theirs][:_EXAMPLES].tolist()]

    def mistake(clip: int) -> Example:
        label, taken = clips.labels[clip], predicted[clip]
        said, true = clips.scores[clip, [taken, label]]
        return example(clip, f"{names[label]} taken for {names[taken]}: {said:.2f} against {true:.2f}")

    return HandSection(
        hand,
        hand_name,
        matrix,
        figures,
        _class_table(rows, names),
        [
            PairSection(names[pair.label], names[pair.predicted], *pair[2:], of_pair(pair))
            for pair in statistics.confused_pairs(counts, _PAIRS)
        ],
        [mistake(clip) for clip in wrong[:_MISTAKES].tolist()],
    )


def _class_table(rows: Sequence[statistics.ClassRow], names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            **row._asdict(),
            "name": names[row.label],
            "confused_with": "" if row.confused_with is None else names[row.confused_with],
        }
        for row in sorted(rows, key=lambda row: -row.support)
    ]
