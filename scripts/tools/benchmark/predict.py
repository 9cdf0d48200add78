"""`predict` and `extract_features` beside the model alone on the same windows."""

from __future__ import annotations

import argparse
import collections
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

import run_alternating_hand_finetuning as finetuning
import utils
from engine_for_alternating_finetuning import Runtime
from models import HANDS
from scripts.tools.benchmark.clips import Size, scale_clip
from scripts.tools.benchmark.timing import Run, Summary, measure_in_turns, print_summary, say, summarize
from scripts.tools.extract_features import Extractor
from scripts.tools.predict import choose_stride, predict_video
from scripts.tools.sliding_windows import Window, WindowRule, centred_windows, covering_windows
from scripts.tools.trained_model import TrainedModel
from scripts.tools.video_stream import stream_views
from scripts.tools.window_scorer import CutWindows, WindowScorer

_CLASSES = 75
_RUN_FLAGS = ("model", "depth", "input_size", "num_frames", "sampling_rate")


def benchmark_predict(args: argparse.Namespace) -> dict[str, dict[str, Summary]]:
    """Windows a second of both tools, of the model and of the decoder alone.

    Returns:
        {size: {tool: summary with `windows_per_s`}}, of each `model alone`, `frames alone` and the tool.
    """
    scorer = make_scorer(args)
    result = {}
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            result[str(size)] = {
                "predict": _measure_predict(args, scorer, size, Path(folder)),
                "extract_features": _measure_extract(args, scorer, size, Path(folder)),
            }
    return result


def make_scorer(args: argparse.Namespace) -> WindowScorer:
    """A model with random weights, as a checkpoint of a run with these flags would give it."""
    given = {name: getattr(args, name) for name in _RUN_FLAGS if getattr(args, name) is not None}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    if args.input_size:
        words += ["--short_side_size", str(args.input_size)]
    run = finetuning.get_parser().parse_args(words)
    run.lh_num_classes = run.rh_num_classes = _CLASSES
    device = utils.init_distributed_mode(args.device).device
    torch.manual_seed(0)
    model = finetuning.build_model(run, dict.fromkeys(HANDS, _CLASSES)).to(device).eval()
    return WindowScorer(
        trained=TrainedModel(model, run, HANDS, {}, "model", 0),
        rule=WindowRule.of_run(run),
        runtime=Runtime(device, utils.pick_amp_dtype(args.amp_dtype, device)),
        batch_size=args.batch_size,
        threads=args.decode_threads,
    )


def _measure_predict(args: argparse.Namespace, scorer: WindowScorer, size: Size, folder: Path) -> Summary:
    """Windows a quarter of their span apart, as `predict` has them."""
    stride = choose_stride(scorer, None)
    n_frames = scorer.rule.span + (args.windows - 1) * stride
    clip = scale_clip(args.clip, folder / "predict.mp4", size, n_frames=n_frames)
    cut = partial(covering_windows, rule=scorer.rule, stride=stride)
    runs = alone(scorer, clip, cut) | {"predict": lambda turn: predict_video(scorer, clip, stride)}
    return _measure(args, scorer, runs, f"{size}: predict, a window every {stride} frames")


def _measure_extract(args: argparse.Namespace, scorer: WindowScorer, size: Size, folder: Path) -> Summary:
    """A window for every frame, as `extract_features` has them, and the files."""
    clip = scale_clip(args.clip, folder / "extract.mp4", size, n_frames=args.windows)
    extractor = Extractor(scorer, folder / "features")
    cut = partial(centred_windows, rule=scorer.rule, stride=1)
    runs = alone(scorer, clip, cut) | {"extract_features": lambda turn: extractor.extract(clip)}
    return _measure(args, scorer, runs, f"{size}: extract_features, a window every frame")


def alone(scorer: WindowScorer, clip: Path, cut: CutWindows) -> dict[str, Run]:
    """The model on a video's windows, held in memory, and what makes the views of its frames."""
    windows = windows_of(scorer, clip, cut)

    def frames() -> Iterator[np.ndarray]:
        return stream_views(clip, scorer.transform, scorer.threads)

    return {
        "model alone": lambda turn: _exhaust(scorer.score(windows)),
        "frames alone": lambda turn: _exhaust(frames()),
    }


def windows_of(scorer: WindowScorer, clip: Path, cut: CutWindows) -> list[Window]:
    """All windows of a video."""
    chunks = stream_views(clip, scorer.transform, scorer.threads)
    return list(cut(frame for chunk in chunks for frame in chunk))


def _exhaust(items: Iterable[object]) -> None:
    collections.deque(items, maxlen=0)


def _measure(args: argparse.Namespace, scorer: WindowScorer, runs: dict[str, Run], title: str) -> Summary:
    summary = summarize(measure_in_turns(runs, args.repeats, args.clock), "model alone")
    for row in summary.values():
        row["windows_per_s"] = args.windows / (row["median_ms"] / 1e3)
    run, precision = scorer.trained.args, str(scorer.runtime.amp_dtype).removeprefix("torch.")
    shape = f"{run.num_frames}x{run.input_size}x{run.input_size}"
    print_summary(f"{title}; {args.windows} windows of {shape}, {run.model}, {precision}", summary)
    rates = (f"{name} {row['windows_per_s']:.3g}" for name, row in summary.items())
    say(f"windows a second: {', '.join(rates)}")
    return summary
