"""What knows nothing of hands: scoring views, result files, merging, metrics, time, checkpoints.

Shapes: R rows (views of clips), M clips, C classes.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import io
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.special import log_softmax, softmax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams, image, scalar
from torch import nn

from utils import (
    OF_THIS_RANK,
    UserError,
    copy_checkpoint,
    naming,
    numbered_checkpoints,
    read_checkpoint,
    save_checkpoint,
    write_text,
)

log = logging.getLogger(__name__)

MERGE_METHODS = ("prob", "score")


@dataclasses.dataclass
class ViewScores:
    """Scores of views: one row for each (clip, chunk, split), in the order in which they came."""

    names: list[str]
    logits: np.ndarray  # float64 (R, C)
    labels: np.ndarray  # int64 (R,)
    chunks: np.ndarray  # int64 (R,): temporal window
    splits: np.ndarray  # int64 (R,): spatial crop
    unreadable: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # (clip, reason)

    @classmethod
    def empty(cls, num_classes: int = 0) -> ViewScores:
        """No rows."""
        none = np.zeros(0, np.int64)
        return cls([], np.zeros((0, num_classes)), none, none, none)

    @classmethod
    def concatenate(cls, parts: Sequence[ViewScores]) -> ViewScores:
        """All rows of several parts, in order."""
        filled = [part for part in parts if part.names] or [cls.empty()]
        columns = ("logits", "labels", "chunks", "splits")
        return cls(
            [name for part in parts for name in part.names],
            *(np.concatenate([getattr(part, column) for part in filled]) for column in columns),
            unreadable=[clip for part in parts for clip in part.unreadable],
        )


@dataclasses.dataclass
class ClipScores:
    """One averaged score vector a clip."""

    names: list[str]
    labels: np.ndarray  # int64 (M,)
    scores: np.ndarray  # float64 (M, C): probabilities for `prob`, logits for `score`


# ------------------------------------------------------------------------------------- scoring


@torch.inference_mode()
def score_batches(
    batches: Iterable[Any],
    prepare: Callable[[torch.Tensor], torch.Tensor],
    forwards: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
) -> dict[str, ViewScores]:
    """Scores every view of the batches, with several sets of weights for one decoding.

    Args:
        batches: `ClipBatch`es of one hand.
        prepare: takes 8-bit views `(N, T, S, S, 3)` on the host, returns the model's input.
        forwards: for each set of weights, the model's input -> logits `(N, C)`.
    """
    parts: dict[str, list[ViewScores]] = {name: [] for name in forwards}
    for batch in batches:
        clips = prepare(batch.frames) if len(batch.frames) else None
        for name, forward in forwards.items():
            logits = None if clips is None else forward(clips).double().cpu().numpy()
            parts[name].append(_rows_of(batch, logits))
    return {name: ViewScores.concatenate(scores) for name, scores in parts.items()}


def _rows_of(batch: Any, logits: np.ndarray | None) -> ViewScores:
    views, chunks, splits = batch.rows.numpy().T
    clips = batch.clip_of_view.numpy()[views]
    return ViewScores(
        names=[batch.names[clip] for clip in clips],
        logits=np.zeros((0, 0)) if logits is None else logits[views],
        labels=batch.labels.numpy()[clips],
        chunks=chunks,
        splits=splits,
        unreadable=[(bad.name, bad.reason) for bad in batch.bad],
    )


def name_weights(model: nn.Module, ema: nn.Module | None, first: str = "raw") -> dict[str, nn.Module]:
    """Sets of weights by name, `ema` ahead if it is to come first."""
    named = {"raw": model} | ({} if ema is None else {"ema": ema})
    return dict(reversed(named.items())) if first == "ema" else named


# -------------------------------------------------------------------------------- result files


def write_results(path: Path, scores: ViewScores) -> None:
    """Writes a results file: `top1, top5`, then `clip [logits] label chunk split` a row.

    Source: the published trainers' line format, which their `merge` reads too.
    """
    top1, top5 = topk_accuracy(scores.logits, scores.labels) if scores.names else (0.0, 0.0)
    text = io.StringIO()
    text.write(f"{top1}, {top5}\n")
    rows = zip(scores.names, scores.logits, scores.labels, scores.chunks, scores.splits, strict=True)
    for name, logits, label, chunk, split in rows:
        text.write(f"{name} {logits.tolist()} {label} {chunk} {split}\n")
    write_text(path, text.getvalue())


def read_results(path: Path) -> ViewScores:
    """Reads a results file, ours or the published trainers'.

    Raises:
        UserError: a missing file or a line that is not a row, by number.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such results file")
    lines = path.read_text("utf-8", errors="surrogateescape").split("\n")[1:]
    names: list[str] = []
    logits: list[str] = []
    tails: list[str] = []
    for number, line in enumerate(lines, 2):
        if not line:
            continue
        close = line.rfind("]")
        start = line.rfind("[", 0, close)
        tail = line[close + 1 :]
        if start < 1 or len(tail.split()) != 3:
            raise UserError(f"{path}:{number}: not `clip [logits] label chunk split`")
        names.append(line[: start - 1])
        logits.append(line[start + 1 : close])
        tails.append(tail)
    if not names:
        return ViewScores.empty()
    if len({row.count(",") for row in logits}) > 1:
        raise UserError(f"{path}: its rows have different numbers of classes")
    values = np.fromstring(",".join(logits), sep=",")
    integers = np.fromstring(" ".join(tails), dtype=np.int64, sep=" ").reshape(-1, 3)
    return ViewScores(names, values.reshape(len(names), -1), *integers.T)


# -------------------------------------------------------------------------------------- merging


def merge_views(views: ViewScores, method: str = "prob") -> ClipScores:
    """Averages the views of each clip.

    Of equal (clip, chunk, split) the first counts; a clip's label is that of its last counted row.

    Args:
        views: rows in order of rank, then line.
        method: `prob` averages softmax scores, `score` averages logits.

    Source: the published `merge`, with views keyed by the pair instead of its digits.
    """
    if method not in MERGE_METHODS:
        raise ValueError(f"{method=} is none of {', '.join(MERGE_METHODS)}")
    position = {name: i for i, name in enumerate(dict.fromkeys(views.names))}
    clips = np.fromiter((position[name] for name in views.names), np.int64, len(views.names))
    keys = np.stack([clips, views.chunks, views.splits], axis=1)
    _, kept = np.unique(keys, axis=0, return_index=True)
    starts = np.flatnonzero(np.diff(clips[kept], prepend=-1))
    scores = views.logits[kept]
    if method == "prob":
        scores = softmax(scores, axis=1)
    counts = np.diff(np.append(starts, len(kept)))
    sums = np.add.reduceat(scores, starts, axis=0) if len(kept) else scores
    labels = np.zeros(len(position), np.int64)
    in_order = np.sort(kept)
    labels[clips[in_order]] = views.labels[in_order]
    return ClipScores(list(position), labels, sums / counts[:, None])


def merge(eval_path: str | Path, num_tasks: int, method: str = "prob") -> tuple[float, float]:
    """Merges `{rank}.txt` files of a folder: top-1 and top-5 accuracy in percent.

    Args:
        eval_path: folder of the results files.
        num_tasks: number of ranks that wrote them.
        method: see `merge_views`.
    """
    return _merge_files([Path(eval_path) / f"{rank}.txt" for rank in range(num_tasks)], method)


def merge_hand(eval_path: str | Path, num_tasks: int, hand: str, method: str = "prob") -> tuple[float, float]:
    """Merges one hand's `{rank}_{hand}.txt` files, like `merge`."""
    paths = [Path(eval_path) / f"{rank}_{hand}.txt" for rank in range(num_tasks)]
    return _merge_files(paths, method)


def _merge_files(paths: Sequence[Path], method: str) -> tuple[float, float]:
    views = ViewScores.concatenate([read_results(path) for path in paths])
    if not views.names:
        raise UserError(f"{paths[0]}: no results to merge")
    merged = merge_views(views, method)
    return topk_accuracy(merged.scores, merged.labels)


# -------------------------------------------------------------------------------------- metrics


def topk_accuracy(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent; with C < 5 classes top-C stands for top-5.

    Args:
        scores: `(M, C)`, any monotone score.
        labels: int `(M,)`.
    """
    top1, top5 = _hits(scores, labels)
    return 100.0 * float(top1.mean()), 100.0 * float(top5.mean())


def _hits(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :5] == labels[:, None]
    return ranked[:, 0], ranked.any(axis=1)


def accuracy_metrics(clips: ClipScores, unreadable: int) -> dict[str, float | int]:
    """What `metrics.json` says of one hand, accuracies in percent.

    `top1`, `top5` and `mean_class_acc` are over readable clips; `*_all` count unreadable clips as
    wrong; `clips` counts both.
    """
    top1, top5 = _hits(clips.scores, clips.labels)
    total = len(clips.names) + unreadable
    by_class = [top1[clips.labels == label].mean() for label in np.unique(clips.labels)]
    return {
        "top1": 100.0 * int(top1.sum()) / len(clips.names),
        "top5": 100.0 * int(top5.sum()) / len(clips.names),
        "mean_class_acc": 100.0 * float(np.mean(by_class)),
        "top1_all": 100.0 * int(top1.sum()) / total,
        "top5_all": 100.0 * int(top5.sum()) / total,
        "clips": total,
        "unreadable": unreadable,
    }


def confusion_matrix(clips: ClipScores) -> np.ndarray:
    """How many clips of each label (row) were taken for each class (column), int64 (C, C)."""
    classes = clips.scores.shape[1]
    pairs = clips.labels * classes + clips.scores.argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


_WHITE, _BLUE, _GREY = np.array([[255, 255, 255], [8, 48, 107], [225, 225, 225]], np.float64)


def draw_confusion(matrix: np.ndarray) -> np.ndarray:
    """A picture of a confusion matrix, uint8 (H, W, 3): the darker, the larger the share of its row.

    Rows are grey whose label has no clip. Numbers beside rows and columns are labels.
    """
    totals, classes = matrix.sum(axis=1), len(matrix)
    shares = (matrix / np.maximum(totals, 1)[:, None])[..., None]
    colours = np.where(totals[:, None, None] > 0, _WHITE + shares * (_BLUE - _WHITE), _GREY)
    cell, margin = max(4, 600 // classes), 40
    cells = Image.fromarray(colours.round().astype(np.uint8)).resize((cell * classes,) * 2, Image.NEAREST)
    picture = Image.new("RGB", (cells.width + 2 * margin, cells.height + 2 * margin), "white")
    picture.paste(cells, (margin, margin))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    draw.rectangle((margin - 1, margin - 1, margin + cells.width, margin + cells.height), outline="black")
    for label in range(0, classes, -(-20 // cell)):
        middle = margin + cell * label + cell // 2
        draw.text((margin - 6, middle), str(label), "black", font, anchor="rm")
        draw.text((middle, margin - 6), str(label), "black", font, anchor="mb")
    right = np.trace(matrix)
    caption = f"row: label, column: prediction; {right} of {matrix.sum()} clips are right"
    draw.text((margin, picture.height - margin // 2), caption, "black", font, anchor="lm")
    return np.asarray(picture)


def mean_cross_entropy(views: ViewScores) -> float:
    """Mean cross entropy of the rows against their labels, in nats."""
    chosen = log_softmax(views.logits, axis=1)[np.arange(len(views.labels)), views.labels]
    return -float(chosen.mean())


def write_predictions(path: Path, clips: ClipScores) -> None:
    """Writes `clip, label, prediction, probability` of each clip as CSV, best read with a CSV reader."""
    predicted = clips.scores.argmax(axis=1)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["clip", "label", "prediction", "probability"])
    best = clips.scores[np.arange(len(predicted)), predicted]
    for row in zip(clips.names, clips.labels, predicted, best, strict=True):
        writer.writerow([*row[:3], f"{row[3]:.6f}"])
    write_text(path, text.getvalue())


def write_clips_and_reasons(path: Path, clips: Iterable[tuple[str, str]]) -> None:
    """Writes a line `clip<tab>reason` for each clip that could not be read, sorted."""
    write_text(path, "".join(f"{name}\t{reason}\n" for name, reason in sorted(clips)))


def with_mean_top1(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Metrics by name and, beside them, the mean of their top-1."""
    return {**metrics, "mean_top1": float(np.mean([m["top1"] for m in metrics.values()]))}


def describe_metrics(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """One line: accuracies, loss and coverage under each name."""
    parts = []
    for name, m in metrics.items():
        text = f"{name} top-1 {m['top1']:.2f}% top-5 {m['top5']:.2f}%"
        text += f" class mean {m['mean_class_acc']:.2f}%"
        text += f" loss {m['loss']:.4f}" if "loss" in m else ""
        parts.append(f"{text} ({m['clips'] - m['unreadable']} of {m['clips']} clips)")
    return ", ".join(parts)


# ---------------------------------------------------------------------------------- TensorBoard


class Curves:
    """TensorBoard's figures and pictures, on disk when a method returns.

    tensorboardX's own writer leaves that to a thread: a run that is killed loses what it had recorded
    before its checkpoint, and where the thread fails, its queue fills up.

    Args:
        folder: where the files lie.
        step: steps that the run has made.
        purge: make what other files there say of later steps void.
    """

    def __init__(self, folder: Path, step: int, purge: bool):
        self._folder = folder
        with naming(folder):
            # Names hold but the second: a run that is restarted at once must not write over its own file.
            self._events = EventsWriter(str(folder / "events"), f".{step:09d}")
        if purge:
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(step=step + 1, session_log=start))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of a step under their names."""
        self._write(step, *(scalar(name, value) for name, value in values.items()))

    def add_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture of a step, uint8 (H, W, 3)."""
        self._write(step, image(name, picture, dataformats="HWC"))

    def add_hparams(self, step: int, flags: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Adds what TensorBoard's table of runs shows: flags, and the last values of some of the curves."""
        plain = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in flags.items()
        }
        self._write(step, *hparams(plain, dict.fromkeys(metrics)))

    def _write(self, step: int, *summaries: Summary) -> None:
        with naming(self._folder):
            for summary in summaries:
                self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            self._events.flush()

    def close(self) -> None:
        """Closes the file; what could not be written was an error before."""
        with contextlib.suppress(OSError):
            self._events.close()


# ------------------------------------------------------------------------------ where time goes

_SLOW_LOADER = 0.25  # share of an interval spent waiting for data from which on it is worth a line


class DataWait:
    """How long the device stood idle because a batch was not there yet.

    On a CPU that is the time that the host waits. With a GPU the host runs ahead and waits in vain:
    there two events, before and after, follow each other at once unless the device had nothing to do.
    """

    def __init__(self, device: torch.device):
        self.warmed_up = False  # the first interval of a run holds the start of the loader's processes
        self.said = False  # whether the user has heard that the loader is too slow
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []

    @contextlib.contextmanager
    def measure(self) -> Iterator[None]:
        """Notes the wait for one batch."""
        start = self._now()
        yield
        self._spans.append((start, self._now()))

    def take_seconds(self) -> float:
        """Seconds since it was last asked; with a GPU only after the device has caught up."""
        spans, self._spans = self._spans, []
        if self._on_gpu:
            return sum(start.elapsed_time(end) for start, end in spans) / 1e3
        return sum(end - start for start, end in spans)

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class EpochClock:
    """Where the time of an epoch went, interval by interval.

    Args:
        waiting: for data.
        clips_a_step: of all ranks.
        first_step: the next to be made.
    """

    def __init__(self, waiting: DataWait, clips_a_step: int, first_step: int):
        self._waiting, self._clips = waiting, clips_a_step
        self._start = self._interval_start = time.perf_counter()
        self._first = self._done = first_step
        self._waited = 0.0

    def whole(self) -> dict[str, float]:
        """Share of waiting for data, and clips a second, from the start to the last interval's end."""
        return self._pace(self._first, self._start, self._waited)

    def _pace(self, first: int, start: float, waited: float) -> dict[str, float]:
        seconds = self._interval_start - start
        clips = self._clips * (self._done - first)
        return {"data_wait": waited / seconds, "clips_per_second": clips / seconds}

    def interval(self, done: int) -> dict[str, float]:
        """Ends an interval, `done` steps into the run; says so if the loader was too slow in it."""
        before, start, waited = self._done, self._interval_start, self._waiting.take_seconds()
        self._interval_start, self._done = time.perf_counter(), done
        self._waited += waited
        pace = self._pace(before, start, waited)
        if pace["data_wait"] > _SLOW_LOADER and self._waiting.warmed_up and not self._waiting.said:
            self._waiting.said = True
            log.warning(
                "the loader is the bottleneck: %.0f%% of the time since the last line was spent waiting for "
                "data; raise --num_workers, or store smaller clips with more keyframes (docs/data.md)",
                100 * pace["data_wait"],
                extra=OF_THIS_RANK,
            )
        self._waiting.warmed_up = True
        seconds = self._interval_start - self._start
        return pace | {"seconds_a_step": seconds / (done - self._first), "seconds": seconds}


def memory_gib(device: torch.device) -> dict[str, float]:
    """The most memory that this process (without its workers) and torch on its GPU have held, in GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # getrusage counts bytes there, KiB elsewhere
    memory = {"host_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if device.type == "cuda":
        memory["gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return memory


# --------------------------------------------------------------------------------- checkpoints

# Where a checkpoint keeps what only this project knows.
STATE_KEY = "alternating"
# Flags that say where and how a run is made, not what it computes.
OF_THE_MACHINE = {
    *("output_dir", "log_dir", "resume", "auto_resume", "device", "num_workers", "pin_mem", "log_interval"),
    *("save_ckpt", "save_ckpt_freq", "save_ckpt_steps", "keep_ckpts", "clip_cache", "decode_timeout"),
    *("max_bad_clips", "report"),
    *("dist_url", "dist_on_itp", "dist_timeout", "world_size", "finetune"),
}
_OF_THE_MODEL = (
    "model",
    "depth",
    "input_size",
    "num_frames",
    "tubelet_size",
    "lh_num_classes",
    "rh_num_classes",
)
# Of an optimizer's groups these follow the flags and the machine of the run that goes on, not the file.
_OWN_OPTIONS = {"lr_scale", "weight_decay", "betas", "eps", "momentum", "fused", "foreach"}


@dataclasses.dataclass
class Progress:
    """What a run remembers of itself in its checkpoints."""

    step: int = 0  # optimizer steps made
    run: str = ""  # tells the files of one run from those of another in the same folder
    steps_per_epoch: int | None = None  # that `step` is counted in; None: not told
    best: dict[str, float] = dataclasses.field(default_factory=dict)  # top-1 by checkpoint name
    bad_clips: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)  # reasons by hand and name
    lasting: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # bad clips not to be tried again
    reader: int = 1  # version of the rule that numbers frames; the oldest that a step was trained with
    epoch_sums: list[list[float]] | None = None  # of an unfinished epoch, over all ranks
    epoch_stats: dict[str, float] | None = None  # of a trained epoch that has yet to be validated
    world_size: int | None = None  # processes; None: not told
    lists: dict[str, str] = dataclasses.field(default_factory=dict)  # digest of each hand's training list


@dataclasses.dataclass
class TrainingState:
    """All that changes in training, as one checkpoint holds it."""

    model: nn.Module  # unwrapped
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: Any | None  # timm's ModelEmaV3
    progress: Progress
    steps_per_epoch: int
    args: Mapping[str, Any]
    class_names: Mapping[str, Mapping[int, str]] = dataclasses.field(default_factory=dict)  # by hand

    def save(self, folder: Path, *names: str) -> None:
        """Writes `checkpoint-{name}.pth` for each of the names."""
        self.progress.steps_per_epoch = self.steps_per_epoch
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": (self.progress.step - 1) // self.steps_per_epoch,
            "args": dict(self.args),
            "class_names": {hand: dict(names) for hand, names in self.class_names.items()},
            STATE_KEY: dataclasses.asdict(self.progress),
        }
        if self.ema is not None:
            content["model_ema"] = self.ema.module.state_dict()
        first, *others = (folder / f"checkpoint-{name}.pth" for name in names)
        save_checkpoint(first, content)
        for path in others:
            copy_checkpoint(first, path)

    def load(self, checkpoint: Mapping[str, Any], path: str) -> Progress:
        """Goes on from a checkpoint of this project or of the published trainers.

        Returns:
            What the run has reached.

        Raises:
            UserError: it does not fit, naming the file.
        """
        load_weights(self.model, checkpoint, "model", path)
        if self.ema is not None:
            key = "model_ema" if "model_ema" in checkpoint else "model"
            load_weights(self.ema.module, checkpoint, key, path)
        self._load_optimizer(checkpoint, path)
        if STATE_KEY in checkpoint:
            now, self.progress = self.progress, Progress(**checkpoint[STATE_KEY])
            changes = describe_changes(checkpoint, now, self.args)
            if changes:
                log.warning("%s: goes on otherwise than it began, with %s", path, "; ".join(changes))
            if self.progress.reader < now.reader:
                log.warning(
                    "%s: trained by an older reader, which took frames of another time from some kinds of "
                    "files, such as AVI, MPEG-TS and open groups of pictures: results are not comparable",
                    path,
                )
            # Of another list, other clips are bad: a repaired one starts with none.
            before = self.progress.lists
            self.progress.bad_clips = {
                hand: bad
                for hand, bad in self.progress.bad_clips.items()
                if before.get(hand) in (None, now.lists.get(hand))
            }
            self.progress.world_size, self.progress.lists = now.world_size, now.lists
            self._fit_progress(path)
        elif isinstance(checkpoint.get("epoch"), int):
            self.progress.step = (checkpoint["epoch"] + 1) * self.steps_per_epoch
        else:
            log.warning("%s does not say its epoch: starting at --start_epoch", path)
        return self.progress

    def _load_optimizer(self, checkpoint: Mapping[str, Any], path: str) -> None:
        try:
            state = dict(checkpoint["optimizer"])
            # Before loading: where torch puts the step counts depends on whether the update is fused.
            pairs = zip(state["param_groups"], self.optimizer.param_groups, strict=True)
            state["param_groups"] = [
                saved | {key: own[key] for key in _OWN_OPTIONS & own.keys()} for saved, own in pairs
            ]
            self.optimizer.load_state_dict(state)
            if checkpoint.get("scaler") and self.scaler.is_enabled():
                self.scaler.load_state_dict(checkpoint["scaler"])
        except (KeyError, ValueError) as error:
            raise UserError(f"{path}: its optimizer state does not fit: {error}") from None

    def _fit_progress(self, path: str) -> None:
        """Counts the steps made in this run's epochs, where the file's are of another length."""
        progress, theirs = self.progress, self.progress.steps_per_epoch
        if theirs in (None, self.steps_per_epoch):
            return
        epochs, rest = divmod(progress.step, theirs)
        if rest:
            raise UserError(
                f"--resume {path}: saved within an epoch of {theirs} steps, but an epoch has "
                f"{self.steps_per_epoch} steps with these lists, this --batch_size, --update_freq and number "
                "of processes: give the same, or resume from the checkpoint of an epoch"
            )
        progress.step = epochs * self.steps_per_epoch
        log.warning(
            "%s: its epochs had %d steps, these have %d: going on after %d whole epochs",
            *(path, theirs, self.steps_per_epoch, epochs),
        )


def describe_changes(checkpoint: Mapping[str, Any], now: Progress, args: Mapping[str, Any]) -> list[str]:
    """What a run does otherwise than the one that wrote a checkpoint, a short text each.

    Args:
        checkpoint: as `TrainingState.save` wrote it.
        now: knows the lists and the number of processes of this run.
        args: its flags.
    """
    before, saved = checkpoint.get(STATE_KEY, {}), checkpoint.get("args", {})
    changes = [
        f"--{name} {value} (was {saved[name]})"
        for name, value in args.items()
        if name in saved and saved[name] != value and name not in OF_THE_MACHINE
    ]
    if before.get("world_size") not in (None, now.world_size):
        changes.append(f"{now.world_size} process(es) (was {before['world_size']})")
    changes += [
        f"another training list of {hand}"
        for hand, digest in now.lists.items()
        if before.get("lists", {}).get(hand, digest) != digest
    ]
    return changes


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], key: str, path: str | Path) -> None:
    """Fills a model with exactly the weights under a key of a checkpoint.

    Raises:
        UserError: there are none, or names or shapes differ; the file is named.
    """
    if key not in checkpoint:
        raise UserError(f"{path}: holds no weights under {key!r}")
    try:
        model.load_state_dict(checkpoint[key])
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:4]]
        saved = checkpoint.get("args")
        saved = saved if isinstance(saved, Mapping) else {}
        made = " ".join(f"--{name} {saved[name]}" for name in _OF_THE_MODEL if saved.get(name) is not None)
        raise UserError(
            f"{path}: does not fit the model; check --model, --depth, --num_frames and the class "
            f"counts{made and f' (it was made with {made})'}: {'; '.join(reasons)}"
        ) from None


def resume_candidates(folder: Path, set_aside: bool = False, silent: bool = False) -> list[Path]:
    """Files from which a run in `folder` can go on, the most advanced one first.

    Of several runs' files in one folder, those of the run that wrote last count.

    Args:
        folder: the run's output folder.
        set_aside: rename damaged files to `*.damaged`; otherwise they are only passed over.
        silent: do neither, and do not log damaged files.

    Raises:
        UserError: there are such files, and none can be read.
    """
    names = [folder / "checkpoint-last.pth"]
    names += [path for kind in ("", "step-") for _, path in numbered_checkpoints(folder, kind)]
    made: dict[Path, tuple[int, int]] = {}
    runs: dict[Path, str] = {}
    damaged: dict[Path, UserError] = {}
    for path in filter(Path.exists, names):
        try:
            checkpoint = read_checkpoint(path, lazy=True)
        except UserError as error:
            damaged[path] = error
            continue
        epoch, progress = checkpoint.get("epoch"), checkpoint.get(STATE_KEY, {})
        made[path] = (epoch if isinstance(epoch, int) else -1, progress.get("step", 0))
        runs[path] = progress.get("run", "")
    if damaged and not made:
        raise _none_left(damaged)
    for path, error in damaged.items():
        if not silent:
            _pass_over(path, error, set_aside)
    newest = max(made, key=lambda path: path.stat().st_mtime_ns, default=None)
    of_one_run = [path for path in made if runs[path] == runs[newest]]
    return sorted(of_one_run, key=made.__getitem__, reverse=True)


def _pass_over(path: Path, error: UserError, set_aside: bool) -> None:
    if not set_aside:
        log.warning("passed over: %s", error)
        return
    aside = path.with_name(f"{path.name}.damaged")
    path.replace(aside)
    log.warning("set aside as %s: %s", aside.name, error)


def read_most_advanced(folder: Path) -> tuple[str, dict[str, Any]] | None:
    """Path and content of the checkpoint from which a run in `folder` goes on, if there is one.

    Damaged files are set aside, those too whose tensors turn out to be.

    Raises:
        UserError: there are such files, and none can be read.
    """
    damaged: dict[Path, UserError] = {}
    for path in resume_candidates(folder, set_aside=True):
        try:
            checkpoint = read_checkpoint(path)
        except UserError as error:
            damaged[path] = error
            continue
        for other, error in damaged.items():
            _pass_over(other, error, set_aside=True)
        return str(path), checkpoint
    if damaged:
        raise _none_left(damaged)
    return None


def _none_left(damaged: Mapping[Path, UserError]) -> UserError:
    error = next(iter(damaged.values()))
    return UserError(f"{error}; there is no other to go on from: move it away to start anew")


def is_best_checkpoint(path: Path) -> bool:
    """Whether a file is one of the best ones, by its name."""
    return path.name.startswith("checkpoint-best")


def checkpoint_to_evaluate(args: argparse.Namespace) -> Path:
    """The file that `--resume` names, or the one in the output folder that `--test_weights` means."""
    if args.resume:
        return Path(args.resume)
    folder = Path(args.output_dir or "output")
    best = folder / "checkpoint-best.pth"
    found = [best] * best.exists() if args.test_weights == "best" else resume_candidates(folder)
    if not found:
        raise UserError(f"no checkpoint to evaluate in {folder}: give --resume FILE or --output_dir")
    return found[0]
