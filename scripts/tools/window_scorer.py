"""A trained model that goes over whole videos: one pass of the backbone a window, for both hands.

Shapes: B windows of a batch, T frames of a view, S side of a view, D width of the backbone, C classes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dataset.list_text import read_lines, unquote
from dataset.loader import ClipError
from dataset.video_transforms import ValidationTransform
from dataset.volume_transforms import ClipsToInput
from engine_for_alternating_finetuning import Runtime
from scripts.tools.sliding_windows import Window, WindowRule
from scripts.tools.trained_model import WEIGHTS, TrainedModel, load_trained
from scripts.tools.video_stream import stream_views
from utils import Parser, UserError, count, lacks_memory, natural, pick_amp_dtype

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".wmv", ".flv"),
    *(".ts", ".mts", ".m2ts", ".mpg", ".mpeg"),
)

CutWindows = Callable[[Iterable[np.ndarray]], Iterator[Window]]


class WindowScores(NamedTuple):
    """What the model says of the windows of a batch.

    Attributes:
        spans: (start, stop) of each window, source frames.
        features: float32 `(B, D)`, the backbone's.
        logits: float32 `(B, C)` of each hand.
    """

    spans: list[tuple[int, int]]
    features: np.ndarray
    logits: dict[str, np.ndarray]


class _Launched(NamedTuple):
    spans: list[tuple[int, int]]
    features: torch.Tensor
    logits: dict[str, torch.Tensor]


@dataclass(frozen=True)
class WindowScorer:
    """Scores windows of videos.

    Attributes:
        trained: the model and what it was trained on.
        rule: which frames of a window it looks at.
        runtime: device and precision.
        batch_size: windows of a pass, B.
        threads: of the decoder.
    """

    trained: TrainedModel
    rule: WindowRule
    runtime: Runtime
    batch_size: int = 8
    threads: int = 1

    @property
    def transform(self) -> ValidationTransform:
        """Makes the view of a frame that the run's validation sees."""
        args = self.trained.args
        return ValidationTransform(args.short_side_size, args.input_size)

    def score_video(self, path: Path, cut: CutWindows) -> Iterator[WindowScores]:
        """Decodes a video once and scores the windows that are cut from it, in batches.

        Args:
            path: a video file.
            cut: frames `(S, S, 3)` of the whole video -> windows.

        Raises:
            ClipError: the video cannot be read, or see `score`.
            UserError: see `score`.
        """
        with contextlib.closing(stream_views(path, self.transform, self.threads)) as chunks:
            yield from self.score(cut(itertools.chain.from_iterable(chunks)))

    def score(self, windows: Iterable[Window]) -> Iterator[WindowScores]:
        """Scores windows, in any number, in batches.

        Raises:
            ClipError: the model answers with what is no number.
            UserError: memory is too small for the batches.
        """
        try:
            yield from self._score(windows)
        except Exception as error:
            if not lacks_memory(error):
                raise
            raise UserError(
                f"--batch_size {self.batch_size}: out of memory: a smaller one needs less"
            ) from error

    def _score(self, windows: Iterable[Window]) -> Iterator[WindowScores]:
        # The device works on a batch while the next is made; then its memory is needed again.
        buffers = itertools.cycle([self._buffer(), self._buffer()])
        windows = iter(windows)
        before: _Launched | None = None
        while batch := list(itertools.islice(windows, self.batch_size)):
            launched = self._launch(batch, next(buffers))
            if before is not None:
                yield _collect(before)
            before = launched
        if before is not None:
            yield _collect(before)

    def _buffer(self) -> torch.Tensor:
        size = self.trained.args.input_size
        shape = (self.batch_size, self.rule.num_frames, size, size, 3)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self.runtime.device.type == "cuda")

    @torch.inference_mode()
    def _launch(self, batch: Sequence[Window], buffer: torch.Tensor) -> _Launched:
        for window, target in zip(batch, buffer.numpy(), strict=False):
            np.stack(window.views, out=target)
        views = buffer[: len(batch)].to(self.runtime.device, non_blocking=True)
        model, clips = self.trained.model, ClipsToInput()(views)
        with self.runtime.autocast():
            features = model.forward_features(clips)
            logits = {hand: model.forward_head(features, hand) for hand in self.trained.hands}
        spans = [(window.start, window.stop) for window in batch]
        return _Launched(spans, features.float(), {h: one.float() for h, one in logits.items()})


def _collect(launched: _Launched) -> WindowScores:
    """Waits for the device."""
    features = launched.features.cpu().numpy()
    logits = {hand: one.cpu().numpy() for hand, one in launched.logits.items()}
    if not all(np.isfinite(one).all() for one in (features, *logits.values())):
        start, stop = launched.spans[0][0], launched.spans[-1][1]
        raise ClipError(
            f"frames {start} to {stop - 1}: the model answers with what is no number; unless its weights are "
            "broken, --amp_dtype fp32 or bf16 helps"
        )
    return WindowScores(launched.spans, features, logits)


# ------------------------------------------------------------------------------- command lines


def add_scorer_flags(parser: Parser) -> None:
    """Adds the flags of the model, its windows and the decoder."""
    add = parser.add_argument_group("model").add_argument
    add("--checkpoint", type=Path, required=True, metavar="FILE", help="the model; it says how it is built")
    add("--weights", choices=WEIGHTS, default="auto",
        help="ema: the moving average; auto: those that the run tested")  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--amp_dtype", choices=("auto", "bf16", "fp16", "fp32"), help="precision; default: the run's")
    add("--batch_size", type=count, default=8, help="windows a pass")
    add = parser.add_argument_group("windows and decoding").add_argument
    add("--window", type=count, metavar="FRAMES",
        help="source frames a window; default: the run's num_frames x sampling_rate")  # fmt: skip
    add("--sampling_rate", type=count, metavar="FRAMES",
        help="source frames from one frame of a view to the next, instead of --window")  # fmt: skip
    add("--decode_threads", type=natural, metavar="N",
        help="threads of the decoder; 0: it chooses; default: CPUs / local ranks")  # fmt: skip


def load_scorer(args: argparse.Namespace, device: torch.device, local_world_size: int = 1) -> WindowScorer:
    """The scorer that the flags describe; what they leave open is the run's.

    Raises:
        UserError: an unusable checkpoint, or flags that contradict it.
    """
    if args.window and args.sampling_rate:
        raise UserError("--window and --sampling_rate both say how long a window is: give one")
    trained = load_trained(args.checkpoint, device, args.weights)
    run = trained.args
    threads = args.decode_threads
    if threads is None:
        threads = max(1, len(os.sched_getaffinity(0)) // local_world_size)
    return WindowScorer(
        trained=trained,
        rule=WindowRule.of_run(run, args.window, args.sampling_rate),
        runtime=Runtime(device, pick_amp_dtype(args.amp_dtype or run.amp_dtype, device)),
        batch_size=args.batch_size,
        threads=threads,
    )


def describe_scorer(scorer: WindowScorer) -> dict[str, object]:
    """What decides the numbers, beside the weights and the video."""
    run, rule = scorer.trained.args, scorer.rule
    return {
        "model": run.model,
        "step": scorer.trained.step,
        "weights": scorer.trained.weights,
        "precision": str(scorer.runtime.amp_dtype).removeprefix("torch."),
        "num_frames": rule.num_frames,
        "window": rule.span,
        "sparse_sample": rule.sparse,
        "short_side_size": run.short_side_size,
        "input_size": run.input_size,
        "classes": {hand: scorer.trained.num_classes(hand) for hand in scorer.trained.hands},
    }


def _named_file(text: str) -> Path:
    """Return the file of a list's line, without quotes around it unless it has them in its own name."""
    inner = unquote(text)
    return Path(text if inner is None or Path(text).exists() else inner)


def find_videos(places: Iterable[str | Path], list_file: Path | None = None) -> list[Path]:
    """Video files: those named, those of folders (with all folders in them), those of a list, each once.

    Args:
        places: files and folders.
        list_file: a file with a path a line; empty lines are skipped.

    Raises:
        UserError: an unreadable list, a folder without videos, or nothing at all.
    """
    places = [Path(place) for place in places]
    if list_file is not None:
        try:
            places += [_named_file(line.strip()) for line in read_lines(list_file) if line.strip()]
        except OSError as error:
            raise UserError(f"--list {list_file}: cannot be read: {error.strerror}") from None
    found: dict[Path, Path] = {}
    for place in places:
        inside = [place]
        if place.is_dir():
            files = sorted(place.rglob("*"))
            inside = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
            if not inside:
                raise UserError(f"{place}: the folder holds no videos ({', '.join(VIDEO_SUFFIXES)})")
        for path in inside:
            found.setdefault(path.resolve(), path)
    if not found:
        raise UserError("no video is named")
    return list(found.values())
