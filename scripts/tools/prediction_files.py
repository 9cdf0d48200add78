"""What `predict` writes and shows of a video: JSON, CSV, a timeline, an annotated copy, a table."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

import utils
from scripts.tools.annotate_video import Caption, annotate_video
from scripts.tools.progress import Show, show_nothing
from scripts.tools.readings import Reading, Segment, read_windows
from scripts.tools.timeline import Block, Lane, draw_timeline
from scripts.tools.video_stream import VideoFacts
from scripts.tools.window_scorer import WindowScorer, describe_scorer
from utils import visible

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
    scorer: WindowScorer,
    prediction: Prediction,
    report: dict[str, Any],
    base: Path,
    args: argparse.Namespace,
    show: Show = show_nothing,
) -> list[Path]:
    """Writes the files of one video, and returns which.

    Args:
        scorer: has the names of classes.
        prediction: what is written.
        report: what the JSON file holds of it.
        base: path of the files without their endings.
        args: say which pictures are wanted.
        show: is told how many frames are annotated, and of how many.

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

        def captions(frame: int) -> tuple[Caption, ...]:
            show(frame + 1, facts.frames)
            return captions_at(scorer, readings, frame)

        annotate_video(facts.path, written[-1], captions)
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


def print_report(report: dict[str, Any], written: Sequence[Path]) -> None:
    """Shows the segments of a video and where everything is."""
    video, settings = report["video"], report["settings"]
    table = Table(
        "hand", Column("seconds", justify="right"), "action", Column("probability", justify="right")
    )
    for hand, segments in report["segments"].items():
        for number, one in enumerate(segments[:_MOST_SHOWN]):
            span = f"{one['start_seconds']:.1f} - {one['end_seconds']:.1f}"
            title = "" if number else HAND_NAMES[hand]
            table.add_row(title, span, visible(one["name"]), f"{one['probability']:.2f}")
        if len(segments) > _MOST_SHOWN:
            table.add_row("", "", f"... {len(segments) - _MOST_SHOWN} more", "")
        table.add_section()
    console = Console(markup=False, highlight=False, soft_wrap=True)
    frames, windows = video["frames"], len(report["windows"])
    console.print(f"{visible(video['path'])}: {frames} frames, {windows} windows of {settings['window']}")
    console.print(table)
    console.print(f"written: {', '.join(visible(str(path)) for path in written)}\n")
