"""A run's folder as it was left. Whatever is not there is said, and the rest is used."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset.class_names import names_beside_lists
from engine_for_alternating_finetuning import Alternation
from engine_for_finetuning import ClipScores, ViewScores, merge_views, read_results
from models import HANDS
from run_alternating_hand_finetuning import get_parser
from scripts.tools.report.curves import Curve, read_curves, steps_per_epoch
from utils import UserError, read_checkpoint

HAND_NAMES = {"lh": "Left hand", "rh": "Right hand"}
# What makes a folder a run's.
_SIGNS = ("args.json", "metrics.json", "log.txt", "run.log", "0_lh.txt", "0_rh.txt")
_RANK = re.compile(r"(\d+)_\w+\.txt")
_AGREES = 1e-6  # percent
_FIGURES = {"top1", "top5", "mean_class_acc", "top1_all", "clips", "unreadable"}  # of a hand, at least


@dataclasses.dataclass(frozen=True)
class Run:
    """All that a report is made of.

    Attributes:
        folder: the run's output folder.
        args: every flag; those that the run does not tell have their defaults.
        has_args: whether the run told its flags.
        metrics: `metrics.json`, or nothing.
        scores: {weights: {hand: clips merged over views}}, the tested weights first.
        unreadable: {hand: [(clip, reason)]} of the test.
        bad_clips: {hand: [(clip, reason)]} of the training.
        epochs: rows of `log.txt`.
        curves: {tag: curve} of TensorBoard's files.
        starts: entries of `environment.json`, the newest last.
        class_names: {hand: {label: name}}.
        remarks: what is missing or does not fit, a sentence each.
    """

    folder: Path
    args: argparse.Namespace
    has_args: bool
    metrics: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, ClipScores]]
    unreadable: Mapping[str, Sequence[tuple[str, str]]]
    bad_clips: Mapping[str, Sequence[tuple[str, str]]]
    epochs: Sequence[Mapping[str, Any]]
    curves: Mapping[str, Curve]
    starts: Sequence[Mapping[str, Any]]
    class_names: Mapping[str, Mapping[int, str]]
    remarks: Sequence[str]

    @property
    def name(self) -> str:
        """What the run is called: its folder's name."""
        return self.folder.resolve().name

    @property
    def hands(self) -> tuple[str, ...]:
        """The hands that the run trains or was tested on."""
        tested = {hand for hands in self.scores.values() for hand in hands}
        trained = {hand for hand in HANDS if any(f"train_{hand}_loss" in row for row in self.epochs)}
        known = tested | trained | {hand for hand in HANDS if hand in self.metrics}
        return tuple(hand for hand in HANDS if hand in known)

    @property
    def tested(self) -> Mapping[str, ClipScores]:
        """{hand: merged clips} of the weights that the test was about."""
        return next(iter(self.scores.values()), {})

    @property
    def weights(self) -> str | None:
        """What the tested weights are called: `raw` or `ema`."""
        return next(iter(self.scores), None)

    @property
    def alternation(self) -> Alternation:
        """Whose turn it was at which step."""
        return Alternation(HANDS[:1] if self.args.one_stream else HANDS, self.args.alternation_steps)

    @functools.cached_property
    def epoch_length(self) -> int | None:
        """Optimizer steps an epoch, if the curves tell."""
        ended = len(self.epochs) == self.args.epochs
        return steps_per_epoch(self.curves, len(self.epochs) if ended else 0)

    def num_classes(self, hand: str) -> int:
        """Classes of a tested hand."""
        return self.tested[hand].scores.shape[1]

    def class_name(self, hand: str, label: int) -> str:
        """What a class is called, or `class 7`."""
        return self.class_names.get(hand, {}).get(label, f"class {label}")


def read_run(folder: Path) -> Run:
    """Reads an output folder.

    Raises:
        UserError: it is no folder of a run, or a file in it is damaged; the file is named.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if not any((folder / name).is_file() for name in _SIGNS):
        raise UserError(
            f"{folder}: is not the output folder of a run: there is no {' nor '.join(_SIGNS[:3])}"
        )
    remarks: list[str] = []
    told = _read_json(folder / "args.json", {})
    args = argparse.Namespace(**{**vars(get_parser().parse_args([])), **told})
    metrics = _read_metrics(folder / "metrics.json")
    scores = _read_scores(folder, metrics)
    curves = read_curves(Path(args.log_dir) if args.log_dir else folder / "tensorboard")
    run = Run(
        folder=folder,
        args=args,
        has_args=bool(told),
        metrics=metrics,
        scores=scores,
        unreadable=_clips_and_reasons(folder, "unreadable"),
        bad_clips=_clips_and_reasons(folder, "bad_clips"),
        epochs=_read_rows(folder / "log.txt"),
        curves=curves,
        starts=_read_json(folder / "environment.json", []),
        class_names=_class_names(folder, args, remarks),
        remarks=remarks,
    )
    remarks += _what_is_missing(run)
    return run


def _read_json(path: Path, otherwise: Any) -> Any:
    if not path.is_file():
        return otherwise
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is damaged: {error}") from None
    if type(content) is not type(otherwise):
        raise UserError(f"{path}: holds something else than this project writes into it")
    return content


def _read_metrics(path: Path) -> dict[str, Any]:
    metrics = _read_json(path, {})
    for weights in filter(None, [metrics, metrics.get("ema")]):
        hands = [weights[hand] for hand in HANDS if hand in weights]
        if not all(set(figures) >= _FIGURES for figures in hands) or "weights" not in metrics:
            raise UserError(f"{path}: holds something else than this project writes into it")
    return metrics


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append({**row, "epoch": int(row["epoch"])})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: is no epoch's row: {error}") from None
    return rows


# --------------------------------------------------------------------------------- result files


def _read_scores(folder: Path, metrics: Mapping[str, Any]) -> dict[str, dict[str, ClipScores]]:
    tested = "ema" if metrics.get("weights") == "ema" else "raw"
    other = "raw" if tested == "ema" else "ema"
    places = {tested: folder, other: folder / other}
    if metrics and tested == "raw" and not metrics.get("ema"):
        del places[other]  # left there by an earlier test
    scores = {weights: _merged_hands(place) for weights, place in places.items()}
    return {weights: hands for weights, hands in scores.items() if hands}


def _merged_hands(folder: Path) -> dict[str, ClipScores]:
    merged = {}
    for hand in HANDS:
        paths = [path for path in folder.glob(f"*_{hand}.txt") if _RANK.fullmatch(path.name)]
        paths.sort(key=lambda path: int(_RANK.fullmatch(path.name)[1]))
        parts = [read_results(path) for path in paths]
        classes = max((part.logits.shape[1] for part in parts), default=0)
        for path, part in zip(paths, parts, strict=True):
            _check_results(path, part, classes)
        views = ViewScores.concatenate(parts)
        if views.names:
            merged[hand] = merge_views(views)
    return merged


def _check_results(path: Path, views: ViewScores, classes: int) -> None:
    if not views.names:
        return
    if views.logits.shape[1] != classes:
        raise UserError(f"{path}: has {views.logits.shape[1]} classes, files of other ranks have {classes}")
    if views.labels.min() < 0 or views.labels.max() >= views.logits.shape[1]:
        raise UserError(f"{path}: has labels that are none of its {views.logits.shape[1]} classes")


def _clips_and_reasons(folder: Path, kind: str) -> dict[str, list[tuple[str, str]]]:
    found = {}
    for hand in HANDS:
        path = folder / f"{kind}_{hand}.txt"
        if path.is_file():
            lines = path.read_text("utf-8", errors="surrogateescape").splitlines()
            found[hand] = [tuple(line.partition("\t")[::2]) for line in lines if line]
    return found


def metrics_of(run: Run, weights: str) -> Mapping[str, Any]:
    """What `metrics.json` says of a set of weights; nothing of those that it leaves out."""
    if weights == run.weights:
        return run.metrics
    return run.metrics.get("ema") or {} if weights == "ema" else {}


# ---------------------------------------------------------------------------------- class names


def _class_names(folder: Path, args: argparse.Namespace, remarks: list[str]) -> dict[str, dict[int, str]]:
    names = {}
    for hand in HANDS:
        path = getattr(args, f"{hand}_data_path")
        try:
            names[hand] = names_beside_lists(path) if path else {}
        except UserError as error:
            remarks.append(f"Class names of {hand} could not be read: {error}.")
    if any(names.values()):
        return names
    return _names_of_checkpoint(folder / "checkpoint-last.pth")


def _names_of_checkpoint(path: Path) -> dict[str, dict[int, str]]:
    """Where the lists are gone, the checkpoint still knows."""
    try:
        return read_checkpoint(path, lazy=True).get("class_names", {})
    except UserError:
        return {}


# ------------------------------------------------------------------------------- what is missing


def _what_is_missing(run: Run) -> list[str]:
    remarks = []
    if not run.has_args:
        remarks.append("There is no args.json: the configuration is unknown, and so is where the clips lie.")
    if not run.metrics:
        remarks.append("There is no metrics.json: the run has not been tested yet.")
    if not run.scores:
        remarks.append("There are no results files ({rank}_{hand}.txt): nothing can be said of single clips.")
    if not run.starts:
        remarks.append("There is no environment.json: versions, commit and hardware were not recorded.")
    if not run.epochs and not run.args.eval:
        remarks.append("There is no log.txt: no epoch was finished.")
    if not run.curves and not run.args.eval:
        remarks.append("There are no TensorBoard files: curves within epochs are left out.")
    return remarks + _disagreements(run)


def _disagreements(run: Run) -> list[str]:
    """Where `metrics.json` and the results files are of different tests."""
    remarks = []
    for weights, hands in run.scores.items():
        for hand, clips in hands.items():
            told = metrics_of(run, weights).get(hand)
            if told is None:
                continue
            top1 = 100.0 * float((clips.scores.argmax(axis=1) == clips.labels).mean())
            if abs(top1 - told["top1"]) > _AGREES or len(clips.names) != told["clips"] - told["unreadable"]:
                remarks.append(
                    f"{HAND_NAMES[hand]} ({weights}): metrics.json says top-1 {told['top1']:.2f}% of "
                    f"{told['clips'] - told['unreadable']} clips, the results files {top1:.2f}% of "
                    f"{len(clips.names)}: they are of different tests."
                )
    return remarks
