"""What a report counts: confusion, classes, calibration, intervals. Pure numpy.

Shapes: M clips, C classes, B bins. Accuracies and shares are fractions unless a name says percent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BINS = 15  # as in Guo et al.
RESAMPLES = 10_000
_AT_ONCE = 5_000_000  # clips of resamples in memory
SEED = 0


# ------------------------------------------------------------------------------------ confusion


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Clips of each (label, prediction), int `(C, C)`."""
    counts = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


class ClassRow(NamedTuple):
    """What the test says of one class; None: there is nothing to divide by."""

    label: int
    support: int
    predicted: int
    accuracy: float | None
    precision: float | None
    confused_with: int | None  # the class that its clips are most often taken for
    confused_clips: int


def class_rows(matrix: np.ndarray) -> list[ClassRow]:
    """A row for each class that has clips or was predicted, by label."""
    support, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    wrong = matrix - np.diag(matrix.diagonal())
    rows = []
    for label in np.flatnonzero(support + predicted).tolist():
        hits, other = int(matrix[label, label]), int(wrong[label].argmax())
        count = int(wrong[label, other])
        rows.append(
            ClassRow(
                label,
                int(support[label]),
                int(predicted[label]),
                hits / int(support[label]) if support[label] else None,
                hits / int(predicted[label]) if predicted[label] else None,
                other if count else None,
                count,
            )
        )
    return rows


def by_support(matrix: np.ndarray) -> np.ndarray:
    """Classes that have clips or were predicted, those with most clips first, ties by label."""
    seen = np.flatnonzero(matrix.sum(axis=1) + matrix.sum(axis=0))
    return seen[np.argsort(-matrix.sum(axis=1)[seen], kind="stable")]


class ConfusedPair(NamedTuple):
    """Clips of one class that were taken for another, and how often it was the other way round."""

    label: int
    predicted: int
    clips: int
    support: int
    reverse: int


def confused_pairs(matrix: np.ndarray, count: int) -> list[ConfusedPair]:
    """The most frequent confusions, at most `count`; ties by the share of the class, then by label."""
    wrong = matrix - np.diag(matrix.diagonal())
    support = matrix.sum(axis=1)
    pairs = [
        ConfusedPair(a, b, int(wrong[a, b]), int(support[a]), int(wrong[b, a]))
        for a, b in np.argwhere(wrong).tolist()
    ]
    return sorted(pairs, key=lambda pair: (-pair.clips, pair.support, pair.label, pair.predicted))[:count]


# ---------------------------------------------------------------------------------- calibration


class Calibration(NamedTuple):
    """How far probabilities can be taken at their word.

    Attributes:
        edges: `(B + 1,)`.
        clips, confidence, accuracy: of each bin `(B,)`; NaN where it is empty.
        ece, mce: mean over clips, and greatest over bins, of |accuracy - confidence|.
        mean_confidence: over all clips.
        nll: mean of -log(probability of the label), nats.
    """

    edges: np.ndarray
    clips: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: float
    mce: float
    mean_confidence: float
    nll: float


def calibration(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Calibration:
    """Reliability of the highest probability, in bins `(lower, upper]` of equal width.

    Args:
        probabilities: `(M, C)`.
        labels: int `(M,)`.
        bins: how many.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    edges = np.linspace(0, 1, bins + 1)
    confidence = probabilities.max(axis=1)
    hits = probabilities.argmax(axis=1) == labels
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    clips = np.bincount(place, minlength=bins)
    some = np.maximum(clips, 1)
    means = [
        np.where(clips, np.bincount(place, values, minlength=bins) / some, np.nan)
        for values in (confidence, hits)
    ]
    gaps = np.abs(means[0] - means[1])
    of_labels = probabilities[np.arange(len(labels)), labels]
    return Calibration(
        edges,
        clips,
        *means,
        ece=float(np.nansum(gaps * clips) / len(labels)),
        mce=float(np.nanmax(gaps)),
        mean_confidence=float(confidence.mean()),
        nll=float(-np.log(np.maximum(of_labels, np.finfo(float).tiny)).mean()),
    )


# ------------------------------------------------------------------------------------ intervals


class Hits(NamedTuple):
    """Which clips were right, bool `(M,)` each."""

    top1: np.ndarray
    top5: np.ndarray


def hits_of(scores: np.ndarray, labels: np.ndarray) -> Hits:
    """Top-1 and top-5 hits of scores `(M, C)`, ranked as for `metrics.json`."""
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :5] == labels[:, None]
    return Hits(ranked[:, 0], ranked.any(axis=1))


ACCURACIES = ("top1", "top5", "mean_class_acc")


def resampled_accuracies(
    runs: list[Hits], labels: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED
) -> np.ndarray:
    """Accuracies of runs on the same clips, drawn anew with replacement; all runs share the draws.

    The mean over classes is over those that a draw holds.

    Args:
        runs: R runs' hits.
        labels: int `(M,)`.
        resamples: how many draws.
        seed: of the draws.

    Returns:
        `(R, resamples, 3)`, in the order of `ACCURACIES`.

    Source: the paired percentile bootstrap (Efron and Tibshirani, 1993).
    """
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    sorted_hits = [[hits[order] for hits in run] for run in runs]
    generator = np.random.default_rng(seed)
    parts = []
    at_once = max(1, _AT_ONCE // len(labels))
    for first in range(0, resamples, at_once):
        weights = _draws(generator, min(at_once, resamples - first), len(labels))
        support = np.add.reduceat(weights, starts, axis=1)
        parts.append([_accuracies(hits, weights, starts, support) for hits in sorted_hits])
    return np.concatenate(parts, axis=1)


def _draws(generator: np.random.Generator, draws: int, clips: int) -> np.ndarray:
    """How often each clip is in each draw, `(draws, clips)`."""
    picks = generator.integers(clips, size=(draws, clips))
    picks += clips * np.arange(draws)[:, None]
    return np.bincount(picks.ravel(), minlength=draws * clips).reshape(draws, clips)


def _accuracies(
    hits: list[np.ndarray], weights: np.ndarray, starts: np.ndarray, support: np.ndarray
) -> np.ndarray:
    top1, top5 = hits
    right = np.add.reduceat(weights * top1, starts, axis=1)
    by_class = np.divide(right, support, out=np.full(right.shape, np.nan), where=support > 0)
    total = weights.sum(axis=1)
    return np.stack([right.sum(axis=1) / total, weights @ top5 / total, np.nanmean(by_class, axis=1)], axis=1)


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of resampled values `(resamples,)`."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class Difference(NamedTuple):
    """What one run has more than another on the clips that both have, as fractions."""

    value: float
    low: float
    high: float


def accuracies(hits: Hits, labels: np.ndarray) -> np.ndarray:
    """Top-1, top-5 and the mean over classes `(3,)`."""
    by_class = [hits.top1[labels == label].mean() for label in np.unique(labels)]
    return np.array([hits.top1.mean(), hits.top5.mean(), np.mean(by_class)])


def differences(
    base: Hits, other: Hits, labels: np.ndarray, resamples: int = RESAMPLES
) -> dict[str, Difference]:
    """{accuracy: other - base, with its 95% interval}."""
    drawn = resampled_accuracies([base, other], labels, resamples)
    gained = accuracies(other, labels) - accuracies(base, labels)
    return {
        name: Difference(float(gained[i]), *interval(drawn[1, :, i] - drawn[0, :, i]))
        for i, name in enumerate(ACCURACIES)
    }
