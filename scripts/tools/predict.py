"""Says what both hands do in videos of any length, with a trained checkpoint.

    python -m scripts.tools.predict --checkpoint output/run/checkpoint-last.pth video.mp4
    python -m scripts.tools.predict --checkpoint output/run/checkpoint-last.pth --annotate videos/

A window of frames slides over each video; one pass of the model gives both hands' probabilities for it.
Of each video it writes, in --output: NAME.json (all of it), NAME.csv (a row a window, hand and rank),
NAME_timeline.png, and with --annotate NAME_annotated.mp4.
"""

from __future__ import annotations

import argparse
import collections
import csv
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from scipy.special import softmax

import utils
from dataset.loader import ClipError
from scripts.tools.annotate_video import Caption, annotate_video
from scripts.tools.readings import Reading, Segment, read_windows
from scripts.tools.sliding_windows import covering_windows
from scripts.tools.timeline import Block, Lane, draw_timeline
from scripts.tools.video_stream import VideoFacts, read_facts
from scripts.tools.window_scorer import (
    WindowScorer,
    add_scorer_flags,
    describe_scorer,
    find_videos,
    load_scorer,
)
from utils import UserError, count, visible

HAND_NAMES = {"lh": "left", "rh": "right"}
_COLUMNS = (
    *("video", "window", "start_frame", "end_frame", "start_seconds", "end_seconds"),
    *("hand", "rank", "label", "name", "probability"),
)
_MOST_SHOWN = 6  # segments a hand on the terminal


@dataclass(frozen=True)
class Prediction:
    """What the model says of one video.

    Attributes:
        facts: of the file; `frames` as they were decoded.
        spans: (start, stop) of the windows, source frames.
        probabilities: `(N, C)` of each hand.
    """

    facts: VideoFacts
    spans: list[tuple[int, int]]
    probabilities: dict[str, np.ndarray]

    def readings(self) -> dict[str, Reading]:
        """Each hand's probabilities over time."""
        return {hand: read_windows(self.spans, one) for hand, one in self.probabilities.items()}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = utils.Parser(prog="python -m scripts.tools.predict", description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video files, or folders of them")
    add_scorer_flags(parser)
    add = parser.add_argument_group("results").add_argument
    add("--stride", type=count, metavar="FRAMES",
        help="source frames from one window to the next; default: a quarter of a window")  # fmt: skip
    add("--output", type=Path, default=Path("predictions"), metavar="DIR", help="where the files go")
    add("--topk", type=count, default=5, metavar="K", help="classes listed of each window and hand")
    add("--annotate", action="store_true", help="write the video with both hands' actions on it, too")
    add("--no_timeline", action="store_true", help="do not draw the timelines")
    return parser


# ------------------------------------------------------------------------------------ predicting


def predict_video(
    scorer: WindowScorer, path: Path, stride: int, show: Any = lambda decoded, total: None
) -> Prediction:
    """Scores the windows of one video.

    Args:
        scorer: the model.
        path: a video file.
        stride: source frames from one window to the next, at most a window.
        show: is told how many frames were decoded, and of how many.

    Raises:
        ClipError: the video cannot be read.
    """
    facts = read_facts(path)
    spans: list[tuple[int, int]] = []
    parts: dict[str, list[np.ndarray]] = {hand: [] for hand in scorer.trained.hands}
    cut = partial(covering_windows, rule=scorer.rule, stride=stride)
    for scores in scorer.score_video(path, cut):
        spans += scores.spans
        for hand, logits in scores.logits.items():
            parts[hand].append(softmax(logits, axis=1))
        show(scores.frames, max(facts.frames, scores.frames))
    if not spans:
        raise ClipError("holds no frames")
    facts = facts._replace(frames=spans[-1][1])
    return Prediction(facts, spans, {hand: np.concatenate(part) for hand, part in parts.items()})


def choose_stride(scorer: WindowScorer, stride: int | None) -> int:
    """The stride of `--stride`, or a quarter of a window: each frame is then seen by four.

    Raises:
        UserError: frames would be left out.
    """
    span = scorer.rule.span
    if stride is None:
        return max(1, span // 4)
    if stride > span:
        raise UserError(f"--stride {stride}: more than a window of {span} frames, so frames would be skipped")
    return stride


def output_names(videos: Sequence[Path]) -> list[str]:
    """What the files of each video are called: its stem, or its whole path where others have that stem.

    Raises:
        UserError: two videos' files would still be called the same.
    """
    stems = collections.Counter(video.stem for video in videos)
    full = [Path(os.path.normpath(video)) for video in videos]
    names = [
        video.stem if stems[video.stem] == 1 else "__".join(part for part in video.parts if part not in "/..")
        for video in full
    ]
    for name, times in collections.Counter(names).items():
        if times > 1:
            raise UserError(f"{times} videos would be called {name} in --output: rename one")
    return names


# ----------------------------------------------------------------------------------------- files


def top_classes(scorer: WindowScorer, hand: str, probabilities: np.ndarray, k: int) -> list[dict[str, Any]]:
    """The `k` most probable classes of one window and hand."""
    best = np.argsort(-probabilities, kind="stable")[:k]
    return [
        {
            "label": int(label),
            "name": scorer.trained.class_name(hand, int(label)),
            "probability": round(float(probabilities[label]), 6),
        }
        for label in best
    ]


def make_report(
    scorer: WindowScorer, prediction: Prediction, args: argparse.Namespace, stride: int
) -> dict[str, Any]:
    """What the JSON file holds."""
    facts = prediction.facts

    def place(start: int, stop: int) -> dict[str, Any]:
        seconds = {"start_seconds": round(start / facts.rate, 3), "end_seconds": round(stop / facts.rate, 3)}
        return {"start_frame": start, "end_frame": stop, **seconds}

    def described(hand: str, segment: Segment) -> dict[str, Any]:
        name = scorer.trained.class_name(hand, segment.label)
        probability = round(segment.probability, 6)
        where = place(segment.start, segment.stop)
        return where | {"label": segment.label, "name": name, "probability": probability}

    windows = [
        place(*span)
        | {
            hand: top_classes(scorer, hand, p[number], args.topk)
            for hand, p in prediction.probabilities.items()
        }
        for number, span in enumerate(prediction.spans)
    ]
    return {
        "video": {
            "path": str(facts.path),
            "frames": facts.frames,
            "frames_a_second": round(facts.rate, 6),
            "seconds": round(facts.frames / facts.rate, 3),
        },
        "checkpoint": str(args.checkpoint),
        "settings": describe_scorer(scorer) | {"stride": stride, "topk": args.topk},
        "windows": windows,
        "segments": {
            hand: [described(hand, segment) for segment in reading.segments()]
            for hand, reading in prediction.readings().items()
        },
    }


def rows_of(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of the CSV file: a window, a hand, a rank each."""
    for number, window in enumerate(report["windows"]):
        where = {name: window[name] for name in _COLUMNS if name in window}
        for hand in report["segments"]:
            for rank, one in enumerate(window[hand], 1):
                yield {
                    "video": report["video"]["path"],
                    "window": number,
                    **where,
                    "hand": hand,
                    "rank": rank,
                    **one,
                }


def write_csv(path: Path, report: dict[str, Any]) -> None:
    """Writes the CSV file, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows_of(report))
    utils.write_text(path, text.getvalue())


def write_results(
    scorer: WindowScorer, prediction: Prediction, report: dict[str, Any], base: Path, args: argparse.Namespace
) -> list[Path]:
    """Writes the files of one video, and returns which.

    Raises:
        ClipError: the video cannot be decoded once more.
        UserError: a file cannot be written.
    """
    facts, readings = prediction.facts, prediction.readings()
    written = [base.with_name(f"{base.name}{suffix}") for suffix in (".json", ".csv")]
    utils.write_json(written[0], report)
    write_csv(written[1], report)
    if not args.no_timeline:
        written.append(base.with_name(f"{base.name}_timeline.png"))
        draw_timeline(written[-1], facts.path.name, lanes_of(report, readings))
    if args.annotate:
        written.append(base.with_name(f"{base.name}_annotated.mp4"))
        annotate_video(facts.path, written[-1], partial(captions_at, scorer, readings))
    return written


def lanes_of(report: dict[str, Any], readings: dict[str, Reading]) -> list[Lane]:
    """The lanes of the timeline."""
    rate = report["video"]["frames_a_second"]
    return [
        Lane(
            f"{HAND_NAMES[hand]} hand",
            [
                Block(s["start_seconds"], s["end_seconds"], s["label"], s["name"])
                for s in report["segments"][hand]
            ],
            reading.bounds / rate,
            reading.probabilities.max(axis=1),
        )
        for hand, reading in readings.items()
    ]


def captions_at(scorer: WindowScorer, readings: dict[str, Reading], frame: int) -> tuple[Caption, ...]:
    """What stands on a frame of the annotated video."""
    captions = []
    for hand, reading in readings.items():
        probabilities = reading.probabilities[reading.piece_at(frame)]
        label = int(probabilities.argmax())
        name = scorer.trained.class_name(hand, label)
        captions.append(Caption(HAND_NAMES[hand], name, float(probabilities[label])))
    return tuple(captions)


# -------------------------------------------------------------------------------------- terminal


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Frames decoded, on stderr, if that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


def print_report(report: dict[str, Any], written: Sequence[Path]) -> None:
    """Shows the segments of a video and where everything is."""
    video, settings = report["video"], report["settings"]
    table = Table(title=visible(video["path"]), title_justify="left")
    for name, justify in (
        ("hand", "left"),
        ("seconds", "right"),
        ("action", "left"),
        ("probability", "right"),
    ):
        table.add_column(name, justify=justify)
    for hand, segments in report["segments"].items():
        for number, one in enumerate(segments[:_MOST_SHOWN]):
            span = f"{one['start_seconds']:.1f} - {one['end_seconds']:.1f}"
            title = "" if number else HAND_NAMES[hand]
            table.add_row(title, span, visible(one["name"]), f"{one['probability']:.2f}")
        if len(segments) > _MOST_SHOWN:
            table.add_row("", "", f"... {len(segments) - _MOST_SHOWN} more", "")
        table.add_section()
    console = Console(markup=False)
    console.print(table)
    console.print(
        f"{video['frames']} frames, {len(report['windows'])} windows of {settings['window']}", highlight=False
    )
    console.print(f"written: {', '.join(map(str, written))}", highlight=False, soft_wrap=True)


def predict_all(args: argparse.Namespace) -> list[str]:
    """Does every video; returns a line for each that could not be done.

    Raises:
        UserError: unusable flags, or a file that cannot be written.
    """
    videos = find_videos(args.videos)
    names = output_names(videos)
    scorer = load_scorer(args, utils.init_distributed_mode(args.device).device)
    stride = choose_stride(scorer, args.stride)
    utils.make_folder(args.output, "--output")
    problems = []
    with progress_bar() as progress:
        for video, name in zip(videos, names, strict=True):
            task: TaskID = progress.add_task(visible(video.name), total=None)
            try:
                prediction = predict_video(
                    scorer,
                    video,
                    stride,
                    lambda n, total, task=task: progress.update(task, completed=n, total=total),
                )
                report = make_report(scorer, prediction, args, stride)
                written = write_results(scorer, prediction, report, args.output / name, args)
                print_report(report, written)
            except ClipError as error:
                problems.append(f"{video}: {error}")
            progress.remove_task(task)
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = make_parser().parse_args(argv)
    try:
        problems = predict_all(args)
    except UserError as error:
        sys.stderr.write(f"predict: {visible(str(error))}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("predict: stopped; the videos that were shown are done\n")
        return 130
    for problem in problems:
        sys.stderr.write(f"predict: {visible(problem)}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
