"""Checks lists and clips of both hands before a long run: every clip is decoded, in parallel.

    python -m scripts.data.check_dataset --lh_data_path data/lh_v0 --rh_data_path data/rh_v0

It takes every flag of the trainer; give those of the run. It prints a table, writes all that it
found as JSON, and its exit code is 1 if there are errors.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import utils
from dataset.build import DATASETS
from dataset.list_files import find_list, list_file
from run_alternating_hand_finetuning import (
    active_hands,
    check_args,
    get_parser,
    list_names,
    make_reader,
    modes_of,
)
from scripts.data.check_display import print_report, show_progress, visible
from scripts.data.clip_probe import ClipFacts, ClipFile, ClipProber, probe_clips
from scripts.data.hand_lists import HandList, describe_list, read_hand_list
from scripts.data.list_findings import Finding, find_errors, find_notes, find_warnings
from utils import UserError

# Flags that decide what is decoded and what counts as wrong.
_FLAGS = (
    *("data_set", "num_frames", "sampling_rate", "sparse_sample", "short_clips", "test_num_segment"),
    *("video_backend", "fname_tmpl", "start_idx", "clip_cache", "seed", "max_clips", "decode_timeout"),
)


def make_parser() -> argparse.ArgumentParser:
    """The trainer's command line with this tool's flags."""
    parser = get_parser()
    parser.prog, parser.description = "python -m scripts.data.check_dataset", __doc__.splitlines()[0]
    add = parser.add_argument_group("check").add_argument
    add("--output", type=Path, default=Path("check_dataset.json"), metavar="FILE", help="all findings")
    add("--max_clips", type=utils.count, metavar="N",
        help="decode N clips a list, spread evenly over it; default: all")  # fmt: skip
    return parser


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses and checks the command line as the trainer does; reads no list yet.

    Raises:
        UserError: contradictory or unusable flags, or nowhere to write the findings.
    """
    args = make_parser().parse_args(argv)
    check_args(args)
    if args.num_workers is None:
        args.num_workers = len(os.sched_getaffinity(0))
    utils.make_folder(args.output.parent, "--output")
    if args.output.is_dir():
        raise UserError(f"--output {args.output}: is a folder; name a file")
    return args


# ------------------------------------------------------------------------------ lists and clips


def stated_classes(args: argparse.Namespace, hand: str) -> int | None:
    """Classes of a hand as a flag or the data set's name says; None: the lists do."""
    return getattr(args, f"{hand}_num_classes") or DATASETS[args.data_set].num_classes


def read_lists(args: argparse.Namespace) -> tuple[list[HandList], list[Finding]]:
    """The lists that the run uses, each file once, and what is wrong with those that cannot be used."""
    lists, errors = [], []
    for hand in active_hands(args):
        data_path = getattr(args, f"{hand}_data_path")
        root = getattr(args, f"{hand}_data_root") or data_path
        names = list_names(args)
        modes: dict[Path, str] = {}
        for mode in modes_of(args):
            modes.setdefault(list_file(data_path, mode, names, hand), mode)
        for mode in modes.values():
            try:
                path = find_list(data_path, mode, names, hand)
                lists.append(read_hand_list(hand, mode, path, root, stated_classes(args, hand)))
            except UserError as error:
                errors.append(Finding(f"{hand} {mode}: {error}"))
    return lists, errors


def count_classes(args: argparse.Namespace, lists: Sequence[HandList]) -> dict[str, int]:
    """Classes of each hand, as the trainer has them."""
    counts: dict[str, int] = {}
    for one in lists:
        by_labels = max(counts.get(one.hand, 0), max(one.labels) + 1)
        counts[one.hand] = stated_classes(args, one.hand) or by_labels
    return counts


def decode_lists(args: argparse.Namespace, lists: Sequence[HandList]) -> list[HandList]:
    """The lists with the facts of their clips; a clip of several lists is decoded once."""
    chosen = [one.chosen(args.max_clips) for one in lists]
    files = {
        one.file_key(clip): one.file(clip) for one, clips in zip(lists, chosen, strict=True) for clip in clips
    }
    facts = dict(zip(files, decode_files(args, list(files.values())), strict=True))
    return [
        dataclasses.replace(one, facts={clip: facts[one.file_key(clip)] for clip in clips})
        for one, clips in zip(lists, chosen, strict=True)
    ]


def decode_files(args: argparse.Namespace, files: Sequence[ClipFile]) -> list[ClipFacts]:
    """Decodes files in `--num_workers` processes, and shows how far it is."""
    sampling = {
        "num_frames": args.num_frames,
        "sampling_rate": args.sampling_rate,
        "short_clips": args.short_clips,
        "sparse": args.sparse_sample,
    }
    prober = ClipProber(make_reader(args), sampling, args.test_num_segment, args.seed)
    facts = [ClipFacts()] * len(files)
    done = unreadable = 0
    with show_progress(len(files)) as show:
        # At least one process even for --num_workers 0: only a process can be killed.
        for finished in probe_clips(files, prober, max(1, args.num_workers), args.decode_timeout or math.inf):
            for place, fact in finished:
                facts[place] = fact
            done += len(finished)
            unreadable += sum(bool(fact.problem) for _, fact in finished)
            show(done, unreadable)
    return facts


# --------------------------------------------------------------------------------------- report


def make_report(args: argparse.Namespace) -> dict[str, Any]:
    """Checks everything; returns what the JSON file holds."""
    start = time.monotonic()
    lists, errors = read_lists(args)
    num_classes = count_classes(args, lists)
    lists = decode_lists(args, lists)
    window = args.num_frames * (1 if args.sparse_sample else args.sampling_rate)
    errors += find_errors(lists)
    findings = {
        "errors": errors,
        "warnings": find_warnings(lists, num_classes, window),
        "notes": find_notes(lists),
    }
    return {
        "ok": not errors,
        "seconds": round(time.monotonic() - start, 1),
        "files": len({one.file_key(clip) for one in lists for clip in one.facts}),
        "flags": {name: getattr(args, name) for name in _FLAGS},
        "lists": [describe_list(one, num_classes[one.hand], window) for one in lists],
        **{kind: [finding._asdict() for finding in found] for kind, found in findings.items()},
    }


def save_report(report: dict[str, Any], path: Path) -> None:
    """Writes the JSON file, whole or not at all."""
    try:
        utils.write_json(path, report)
    except UserError as error:
        raise UserError(f"--output {error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    try:
        args = parse_flags(argv)
        report = make_report(args)
        try:
            save_report(report, args.output)
        finally:  # what took hours is shown in any case
            print_report(report, args.output)
    except UserError as error:
        sys.stderr.write(f"check_dataset: {visible(str(error))}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("check_dataset: stopped; nothing was written\n")
        return 130
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
