"""Measures what keyframe intervals cost in size and save in decoding time, on videos of your own.

    python -m scripts.data.measure_keyframes --cut 64 data/havid_raw/*.mp4

It prints a table of Markdown. Each video is cut into clips as `prepare_havid` does; a training sample
is 16 frames of a clip, 4 apart, or as far apart as the clip allows, from a random start.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import utils
from dataset.loader import decode_frames
from dataset.sampling import train_indices
from dataset.video import ClipError, count_frames
from scripts.data.check_display import show_progress
from scripts.data.cut_clips import ClipCutter, Cut, CutJob


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.data.measure_keyframes", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("videos", nargs="+", type=Path, metavar="FILE", help="recordings")
    add("--intervals", nargs="+", type=utils.natural, default=[1, 4, 16, 0], metavar="FRAMES",
        help="keyframe intervals, 0: as the encoder likes (default: 1 4 16 0)")  # fmt: skip
    add("--cut", type=utils.count, default=64, metavar="FRAMES", help="length of a clip (default: 64)")
    add("--short_side", type=utils.count, default=320, metavar="PIXELS", help="of the clips (default: 320)")
    add("--crf", type=int, choices=range(52), default=20, metavar="0-51", help="quality (default: 20)")
    add("--samples", type=utils.count, default=5, metavar="N", help="training samples a clip (default: 5)")
    return parser


def cut_recordings(cutter: ClipCutter, recordings: Sequence[Path], length: int, folder: Path) -> list[Path]:
    """Cuts recordings into clips of a length, whose paths are returned; what is left over is not used."""
    clips = []
    for number, recording in enumerate(recordings):
        starts = range(0, count_frames(recording) - length + 1, length)
        cuts = tuple(Cut(folder / f"{number}_{start}.mp4", start, start + length) for start in starts)
        result = cutter(CutJob(recording, cuts))
        if result.failure or result.problems:
            raise utils.UserError(f"{recording}: {result.failure or next(iter(result.problems.values()))}")
        clips += [cut.path for cut in cuts]
    return clips


def decode_seconds(clip: Path, samples: int) -> float:
    """Mean CPU seconds to open a clip and decode a training sample; every interval gets the same samples."""
    rng = np.random.default_rng(0)
    start = time.process_time()
    for _ in range(samples):
        decode_frames(str(clip), lambda n: train_indices(n, num_frames=16, sampling_rate=4, rng=rng))
    return (time.process_time() - start) / samples


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = make_parser().parse_args(argv)
    rows = []
    try:
        with show_progress(len(args.intervals), ("measuring", "measured"), "intervals") as show:
            for interval in args.intervals:
                rows.append(measure(interval, args))
                show(len(rows), 0)
    except (utils.UserError, ClipError, ValueError) as error:
        sys.stderr.write(f"measure_keyframes: {error}\n")
        return 1
    sys.stdout.write(
        "| keyframe interval | kB a second of 25 frames | CPU ms a sample |\n| --- | ---: | ---: |\n"
    )
    for interval, (size, seconds) in zip(args.intervals, rows, strict=True):
        sys.stdout.write(f"| {interval or 'default'} | {size / 1000:.0f} | {seconds * 1000:.1f} |\n")
    return 0


def measure(interval: int, args: argparse.Namespace) -> tuple[float, float]:
    """(bytes of 25 frames, CPU seconds of a training sample) with a keyframe interval."""
    with tempfile.TemporaryDirectory() as folder:
        cutter = ClipCutter(args.short_side, interval, args.crf)
        clips = cut_recordings(cutter, args.videos, args.cut, Path(folder))
        if not clips:
            raise utils.UserError(f"no video has --cut {args.cut} frames")
        size = sum(clip.stat().st_size for clip in clips) / (len(clips) * args.cut) * 25
        return size, float(np.median([decode_seconds(clip, args.samples) for clip in clips]))


if __name__ == "__main__":
    sys.exit(main())
