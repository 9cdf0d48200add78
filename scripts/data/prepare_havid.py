"""Makes training data of HA-ViD as it is downloaded: a clip of each run of equal labels, for each hand.

    python -m scripts.data.prepare_havid --input data/havid_raw --output data/havid

Expected are recordings (`*.mp4`, anywhere below --input or in --videos) and the labels of both hands
in one of two layouts:

    INPUT/view0_lh_pt/  groundTruth/*.txt  splits/*.bundle  mapping.txt      and INPUT/view0_rh_pt/
    INPUT/  groundTruth/{left,right}_hand/*.txt  splits/{left,right}_hand/*.bundle  mapping.txt  videos/

`groundTruth` has a text file of each recording's name with one label a frame; bundles whose names begin
with `train` and `test` (or `val`) name recordings, one a line; a mapping has lines `id label` or
`label id`, ids from 0.

The output has the layout that the trainer reads: `lh_v0/` and `rh_v0/`, each with
`train_list_video.txt`, `val_list_video.txt`, `mapping.txt` and `videos/`. The same command goes on where
it was stopped. `prepare_report.json` has counts, and what was skipped and why.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import utils
from dataset.video import ClipError, count_frames
from scripts.data.check_display import show_progress, visible
from scripts.data.clip_plan import Clip, Plan, Rules, needed_recordings, plan_hand
from scripts.data.cut_clips import ClipCutter, Cut, CutJob, CutResult, remove_parts
from scripts.data.havid_layout import HANDS, HandLabels, find_hand, find_recordings
from scripts.data.killable_pool import work_through
from scripts.data.prepare_report import make_report, print_report, write_lists
from utils import UserError, lack_of_files

REPORT_NAME, SETTINGS_NAME = "prepare_report.json", "prepare_settings.json"
# What decides a clip beside its name; clips made with other values cannot be kept.
_SETTINGS = ("view", "tasks", "short_side", "keyframe_interval", "crf")
Item = TypeVar("Item")
Result = TypeVar("Result")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.data.prepare_havid",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("data").add_argument
    add("--input", type=Path, required=True, metavar="DIR", help="the download (required)")
    add("--output", type=Path, required=True, metavar="DIR", help="where lh_v0/ and rh_v0/ go (required)")
    add("--videos", type=Path, metavar="DIR", help="recordings; default: INPUT/videos if there, else INPUT")
    add("--view", type=int, choices=(0, 1, 2), default=0, help="camera (default: 0)")
    add("--tasks", choices=("pt", "aa"), default="pt",
        help="primitive tasks or atomic actions, where folders are a view's (default: pt)")  # fmt: skip
    add("--split", type=utils.natural, default=1, metavar="N",
        help="N of train.splitN.bundle; one pair without a number needs none (default: 1)")  # fmt: skip
    add = parser.add_argument_group("which clips").add_argument
    add("--method", choices=("segment", "window"), default="segment",
        help="whole segments, or equal windows balanced over classes (default: segment)")  # fmt: skip
    add("--min_frames", type=utils.count, default=1, metavar="N",
        help="shorter segments make no clip (default: 1)")  # fmt: skip
    add("--drop", nargs="+", default=[], metavar="LABEL",
        help="labels that make no clips, such as null; classes keep their numbers")  # fmt: skip
    add("--window", type=utils.count, default=64, metavar="N", help="frames of a window (default: 64)")
    add("--per_class", type=utils.count, default=100, metavar="N",
        help="most windows of a class in a list (default: 100)")  # fmt: skip
    add("--seed", type=utils.natural, default=0, help="of the windows' places (default: 0)")
    add = parser.add_argument_group("video").add_argument
    add("--short_side", type=utils.count, default=320, metavar="PIXELS",
        help="of the clips; smaller recordings are not enlarged (default: 320)")  # fmt: skip
    add("--keyframe_interval", type=utils.natural, default=1, metavar="FRAMES",
        help="between keyframes; 1 decodes fastest, more are smaller, 0: x264's (default: 1)")  # fmt: skip
    add("--crf", type=int, choices=range(52), default=20, metavar="0-51",
        help="x264's quality, 0 is lossless (default: 20)")  # fmt: skip
    add = parser.add_argument_group("runtime").add_argument
    add("--workers", type=utils.count, default=len(os.sched_getaffinity(0)), metavar="N",
        help="processes, a recording each (default: the cores at hand)")  # fmt: skip
    add("--timeout", type=utils.count, default=3600, metavar="SECONDS",
        help="longest time for a recording (default: 3600)")  # fmt: skip
    return parser


# ---------------------------------------------------------------------------------------- input


def read_hands(args: argparse.Namespace) -> dict[str, HandLabels]:
    """Both hands' labels."""
    if not args.input.is_dir():
        raise UserError(f"--input {args.input}: there is no such folder")
    hands = {hand: find_hand(args.input, hand, args.view, args.tasks, args.split) for hand in HANDS}
    known = {label for labels in hands.values() for label in labels.ids}
    if unknown := sorted(set(args.drop) - known):
        raise UserError(f"--drop {unknown[0]}: neither hand's mapping.txt has this label")
    return hands


def read_recordings(args: argparse.Namespace) -> dict[str, list[Path]]:
    """{name: video files}."""
    inside = args.input / "videos"
    folder = args.videos or (inside if inside.is_dir() else args.input)
    if not folder.is_dir():
        raise UserError(f"--videos {folder}: there is no such folder")
    recordings = find_recordings(folder, without=args.output)
    if not recordings:
        raise UserError(f"{folder}: holds no recordings")
    return recordings


def make_plan(args: argparse.Namespace, damaged: dict[Path, str]) -> tuple[Plan, dict[str, HandLabels]]:
    """Plans the clips; returns plan and labels of both hands, and adds bad recordings to `damaged`."""
    hands, recordings = read_hands(args), read_recordings(args)
    needed = needed_recordings(hands, recordings, args.view)
    lengths = dict(zip(needed, _in_processes(args, needed, _length, str, ("reading", "read")), strict=True))
    damaged |= {path: length for path, length in lengths.items() if isinstance(length, str)}
    window = args.window if args.method == "window" else None
    rules = Rules(args.view, args.min_frames, frozenset(args.drop), window, args.per_class, args.seed)
    plan = Plan()
    for hand, labels in hands.items():
        plan_hand(plan, hand, labels, recordings, lengths, rules)
    return plan, hands


def _length(recording: Path) -> int | str:
    """Frames of a recording, or why it cannot be read.

    Raises:
        UserError: too few open files.
    """
    try:
        return count_frames(recording)
    except ClipError as error:
        if lack := lack_of_files(error):
            raise UserError(lack) from error
        return str(error)


def _in_processes(
    args: argparse.Namespace,
    items: Sequence[Item],
    work: Callable[[Item], Result],
    failed: Callable[[str], Result],
    verb: tuple[str, str],
) -> list[Result]:
    """The results of work on recordings, and shows how far it is."""
    results: dict[int, Result] = {}
    bad = 0
    with show_progress(len(items), verb, "recordings") as show:
        for finished in work_through(items, work, failed, args.workers, args.timeout):
            results.update(finished)
            problems = (getattr(result, "failure", result) for _, result in finished)
            bad += sum(isinstance(problem, str) and problem != "" for problem in problems)
            show(len(results), bad)
    return [results[place] for place in range(len(items))]


# --------------------------------------------------------------------------------------- output


def claim_output(args: argparse.Namespace) -> None:
    """Makes the output's folders, unless clips of another kind are in them.

    Raises:
        UserError: what is there was made otherwise.
    """
    settings = {name: getattr(args, name) for name in _SETTINGS}
    path = args.output / SETTINGS_NAME
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        for name, value in settings.items():
            if there.get(name) != value:
                raise UserError(
                    f"--output {args.output}: was made with --{name} {there.get(name)}, not {value}"
                )
    elif any((args.output / f"{hand}_v0").exists() for hand in HANDS):
        raise UserError(f"--output {args.output}: holds data that this program did not make")
    for hand in HANDS:
        videos = args.output / f"{hand}_v0" / "videos"
        utils.make_folder(videos, "--output")
        remove_parts(videos)
    utils.write_json(path, settings)


def place_of(args: argparse.Namespace, clip: Clip) -> Path:
    """Where a clip lies."""
    return args.output / f"{clip.hand}_v0" / "videos" / clip.name


def cut_all(args: argparse.Namespace, plan: Plan, damaged: dict[Path, str]) -> tuple[int, int]:
    """Makes the clips of a plan, and takes those out of it that cannot be made.

    Returns:
        How many clips were made, and how many were there; a recording of which some cannot be made is
        added to `damaged`.
    """
    by_recording: dict[Path, list[Cut]] = {}
    for clip in plan.clips:
        by_recording.setdefault(clip.recording, []).append(Cut(place_of(args, clip), clip.start, clip.stop))
    jobs = [CutJob(path, tuple(cuts)) for path, cuts in by_recording.items()]
    cutter = ClipCutter(args.short_side, args.keyframe_interval, args.crf)
    results = _in_processes(args, jobs, cutter, lambda why: CutResult(failure=why), ("cutting", "cut"))
    failures = {job.recording: one.failure for job, one in zip(jobs, results, strict=True)}
    problems = {path: why for one in results for path, why in one.problems.items()}
    for job, one in zip(jobs, results, strict=True):
        if one.failure or one.problems:
            damaged[job.recording] = one.failure or next(iter(one.problems.values()))
    plan.drop_failed(lambda clip: failures[clip.recording] or problems.get(place_of(args, clip)))
    return sum(one.made for one in results), sum(one.kept for one in results)


def prepare(args: argparse.Namespace) -> dict[Path, str]:
    """Does everything.

    Returns:
        {recording: reason} of those that cannot be read, or not to their end.

    Raises:
        UserError: something needed is not there, or a list would be empty.
    """
    start = time.monotonic()
    damaged: dict[Path, str] = {}
    plan, hands = make_plan(args, damaged)
    claim_output(args)
    made, kept = cut_all(args, plan, damaged)
    write_lists(args.output, plan, hands)
    cost = {"made": made, "kept": kept, "seconds": round(time.monotonic() - start, 1)}
    report = make_report(args, plan, hands) | cost
    utils.write_json(args.output / REPORT_NAME, report)
    print_report(report, args.output / REPORT_NAME)
    for hand, splits in report["lists"].items():
        for split, one in splits.items():
            if not one["clips"]:
                raise UserError(f"{hand} {split}: no clip could be made, see {args.output / REPORT_NAME}")
    return damaged


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = make_parser().parse_args(argv)
    try:
        damaged = prepare(args)
    except (UserError, OSError) as error:
        sys.stderr.write(f"prepare_havid: {visible(str(error))}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("prepare_havid: stopped; the same command goes on from here\n")
        return 130
    for path, reason in damaged.items():
        sys.stderr.write(f"prepare_havid: {visible(f'{path}: {reason}')}\n")
    return 1 if damaged else 0


if __name__ == "__main__":
    sys.exit(main())
