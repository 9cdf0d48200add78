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
import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.special import softmax

import utils
from dataset.class_names import read_class_names
from dataset.loader import ClipError
from models import HANDS
from scripts.tools.prediction_files import Prediction, make_report, print_report, write_results
from scripts.tools.progress import Show, progress_bar, show_nothing, task_of
from scripts.tools.sliding_windows import FrameCounter, Window, covering_windows
from scripts.tools.video_stream import read_facts
from scripts.tools.window_scorer import WindowScorer, add_scorer_flags, find_videos, load_scorer
from utils import UserError, count, visible


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
    for hand in HANDS:
        add(f"--{hand}_mapping", metavar="FILE",
            help="class names, a line `label name` each; default: the checkpoint's")  # fmt: skip
    add("--annotate", action="store_true", help="write the video with both hands' actions on it, too")
    add("--no_timeline", action="store_true", help="do not draw the timelines")
    return parser


def load_model(args: argparse.Namespace) -> WindowScorer:
    """The scorer that the flags describe, with the class names that they give.

    Raises:
        UserError: an unusable checkpoint, or flags that contradict it.
    """
    place = utils.init_distributed_mode(args.device)
    if place.world_size > 1:
        raise UserError(f"is one process, not {place.world_size}: give each that you start videos of its own")
    scorer = load_scorer(args, place.device)
    given = {hand: getattr(args, f"{hand}_mapping") for hand in HANDS}
    absent = [hand for hand, path in given.items() if path and hand not in scorer.trained.hands]
    if absent:
        raise UserError(f"--{absent[0]}_mapping: the model has no head for it, by --one_stream of its run")
    names = {hand: read_class_names(path, f"--{hand}_mapping") for hand, path in given.items() if path}
    known = {**scorer.trained.class_names, **names}
    return dataclasses.replace(scorer, trained=dataclasses.replace(scorer.trained, class_names=known))


def predict_video(scorer: WindowScorer, path: Path, stride: int, show: Show = show_nothing) -> Prediction:
    """Scores the windows of one video.

    Args:
        scorer: the model.
        path: a video file.
        stride: source frames from one window to the next, at most a window.
        show: is told how many frames were decoded, and of how many.

    Raises:
        ClipError: the video cannot be read.
    """
    facts, counter = read_facts(path), FrameCounter()
    spans: list[tuple[int, int]] = []
    parts: dict[str, list[np.ndarray]] = {hand: [] for hand in scorer.trained.hands}

    def cut(frames: Iterable[np.ndarray]) -> Iterator[Window]:
        return covering_windows(counter.through(frames), scorer.rule, stride)

    for scores in scorer.score_video(path, cut):
        spans += scores.spans
        for hand, logits in scores.logits.items():
            parts[hand].append(softmax(logits, axis=1))
        show(counter.count, facts.frames)
    if not spans:
        raise ClipError("holds no frames")
    facts = facts._replace(frames=counter.count)
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
        video.stem
        if stems[video.stem] == 1
        else "__".join(part for part in video.parts if part not in ("/", ".."))
        for video in full
    ]
    for name, times in collections.Counter(names).items():
        if times > 1:
            raise UserError(f"{times} videos would be called {name} in --output: rename one")
    return names


def predict_all(args: argparse.Namespace) -> list[str]:
    """Does every video; returns a line for each that could not be done.

    Raises:
        UserError: unusable flags, or a file that cannot be written.
    """
    videos = find_videos(args.videos)
    names = output_names(videos)
    scorer = load_model(args)
    stride = choose_stride(scorer, args.stride)
    utils.make_folder(args.output, "--output")
    problems = []
    with progress_bar() as progress:
        for video, name in zip(videos, names, strict=True):
            try:
                with task_of(progress, video.name) as show:
                    prediction = predict_video(scorer, video, stride, show)
                report = make_report(scorer, prediction, args, stride)
                with task_of(progress, f"{video.name}, annotating") as show:
                    written = write_results(scorer, prediction, report, args.output / name, args, show)
                print_report(report, written)
            except ClipError as error:
                problems.append(f"{video}: {error}")
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
