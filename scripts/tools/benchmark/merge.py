"""Merging the results files of a whole test."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engine_for_finetuning import ViewScores, merge_hand, read_results, write_results
from scripts.tools.benchmark.timing import Summary, measure_in_turns, print_summary, summarize

_HAND = "lh"


def benchmark_merge(args: argparse.Namespace) -> Summary:
    """Reading the results files of all ranks, and reading and merging them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for rank, scores in enumerate(_scores_by_rank(args)):
            write_results(folder / f"{rank}_{_HAND}.txt", scores)
        files = sorted(folder.glob("*.txt"))
        runs = {
            "read": lambda turn: [read_results(path) for path in files],
            "read and merge": lambda turn: merge_hand(folder, args.ranks, _HAND),
        }
        summary = summarize(measure_in_turns(runs, args.repeats, args.clock), "read")
    title = f"{args.clips} clips x {args.views} views x {args.classes} classes of {args.ranks} rank(s)"
    print_summary(title, summary, "ratio")
    return summary


def _scores_by_rank(args: argparse.Namespace) -> Iterator[ViewScores]:
    """Random logits; as in a test, each rank has all views of every so many-th clip."""
    generator = np.random.default_rng(0)
    for rank in range(args.ranks):
        clips = np.repeat(np.arange(rank, args.clips, args.ranks), args.views)
        views = np.arange(len(clips)) % args.views
        yield ViewScores(
            names=[f"S01A02I01M0/clip_{clip:06}.mp4" for clip in clips],
            # A model's logits are float32: their digits as text are many.
            logits=generator.standard_normal((len(clips), args.classes), np.float32).astype(np.float64),
            labels=clips % args.classes,
            chunks=views // 3,
            splits=views % 3,
        )
