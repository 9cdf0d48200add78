"""Writes features of every frame of videos, with both hands' logits, for models of temporal segmentation.

    python -m scripts.tools.extract_features --checkpoint output/run/checkpoint-last.pth videos/
    torchrun --nproc_per_node 8 -m scripts.tools.extract_features --checkpoint FILE --list videos.txt

Of each video it writes, in --output, `lh/NAME.npy` and `rh/NAME.npy`, of shape [D + classes, T]: a column a
frame, the backbone's D features of the window around it above that hand's logits. The same command goes on
where it was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

import utils
from dataset.loader import ClipError
from scripts.tools.feature_files import ColumnFile, is_whole, remove_unfinished, spread
from scripts.tools.progress import Show, progress_bar, show_nothing, task_of
from scripts.tools.sliding_windows import FrameCounter, Window, centred_windows
from scripts.tools.video_stream import read_facts
from scripts.tools.window_scorer import (
    WindowScorer,
    add_scorer_flags,
    describe_scorer,
    find_videos,
    load_scorer,
)
from utils import Distributed, UserError, atomic_open, count, visible

SETTINGS = "settings.json"
# Ranks meet only at the end, and the last may have hours to go.
_PATIENCE_MINUTES = 60.0 * 24 * 30


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = utils.Parser(
        prog="python -m scripts.tools.extract_features", description=__doc__.splitlines()[0]
    )
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="video files, or folders of them")
    parser.add_argument("--list", type=Path, metavar="FILE", help="more of them, a path a line")
    add_scorer_flags(parser)
    add = parser.add_argument_group("features").add_argument
    add("--output", type=Path, default=Path("features"), metavar="DIR", help="where the files go")
    add("--stride", type=count, default=1, metavar="FRAMES",
        help="the model is run for every so many frames; those between repeat the nearer one")  # fmt: skip
    add("--compact", action="store_true", help="with --stride N: only the ceil(T / N) columns computed")
    add("--features_only", action="store_true", help="no logits: [D, T]")
    add("--float16", action="store_true", help="half the size")
    add("--overwrite", action="store_true", help="compute again what is there")
    return parser


# ------------------------------------------------------------------------------------ extracting


@dataclass(frozen=True)
class Extractor:
    """Makes the files of videos.

    Attributes:
        scorer: the model.
        output: folder.
        stride: frames from one that the model is run for to the next.
        compact: only those frames have columns.
        features_only: no logits.
        dtype: of the files.
    """

    scorer: WindowScorer
    output: Path
    stride: int = 1
    compact: bool = False
    features_only: bool = False
    dtype: str = "float32"

    def files_of(self, video: Path) -> dict[str, Path]:
        """{hand: file} of a video."""
        return {hand: self.output / hand / f"{video.stem}.npy" for hand in self.scorer.trained.hands}

    def is_done(self, video: Path) -> bool:
        """Whether all files of a video are there."""
        return all(
            is_whole(path, self._n_rows(hand), self.dtype) for hand, path in self.files_of(video).items()
        )

    def _n_rows(self, hand: str) -> int:
        classes = 0 if self.features_only else self.scorer.trained.num_classes(hand)
        return self.scorer.trained.model.num_features + classes

    def extract(self, video: Path, show: Show = show_nothing) -> int:
        """Makes the files of one video, all or none; returns how many frames it has.

        Args:
            video: the file.
            show: is told how many frames were decoded, and of how many.

        Raises:
            ClipError: the video cannot be read.
            UserError: a file cannot be written.
        """
        facts, counter = read_facts(video), FrameCounter()

        def cut(frames: Iterable[np.ndarray]) -> Iterator[Window]:
            return centred_windows(counter.through(frames), self.scorer.rule, self.stride)

        def results() -> Iterator[np.ndarray]:
            for scores in self.scorer.score_video(video, cut):
                show(counter.count, facts.frames)
                yield np.hstack([scores.features, *scores.logits.values()])

        rows = self._rows_of_hands()
        with contextlib.ExitStack() as stack:
            files = {}
            for hand, path in self.files_of(video).items():
                remove_unfinished(path)
                opened = stack.enter_context(atomic_open(path))
                files[hand] = ColumnFile(opened, len(rows[hand]), self.dtype)
            columns = results() if self.compact else spread(results(), self.stride, lambda: counter.count)
            for block in columns:
                for hand, file in files.items():
                    file.add(block[:, rows[hand]])
            if not counter.count:
                raise ClipError("holds no frames")
            for file in files.values():
                file.finish()
        return counter.count

    def _rows_of_hands(self) -> dict[str, np.ndarray]:
        """{hand: places of its rows among features and both hands' logits}."""
        width = self.scorer.trained.model.num_features
        rows, start = {}, width
        for hand in self.scorer.trained.hands:
            stop = start + self.scorer.trained.num_classes(hand)
            logits = range(0) if self.features_only else range(start, stop)
            rows[hand], start = np.array([*range(width), *logits]), stop
        return rows

    def settings(self) -> dict[str, Any]:
        """What decides the numbers in the files."""
        model = self.scorer.trained.model
        return describe_scorer(self.scorer) | {
            "weights_blake2b": digest_of(model),
            "features": model.num_features,
            "stride": self.stride,
            "compact": self.compact,
            "features_only": self.features_only,
            "dtype": self.dtype,
        }


def digest_of(model: nn.Module) -> str:
    """The same for equal weights alone."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Writes `settings.json`, or checks that the folder's files were made with the same.

    Raises:
        UserError: they were not; the first difference is named.
    """
    path = folder / SETTINGS
    if not path.exists():
        return utils.write_json(path, settings)
    try:
        there = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    for name, value in settings.items():
        if there.get(name) != value:
            raise UserError(
                f"--output {folder}: by its {SETTINGS}, the files there were made with {name} "
                f"{there.get(name)}, not {value}; name another folder"
            )
    return None


# ------------------------------------------------------------------------------------------ main


def share_of(videos: Sequence[Path], place: Distributed) -> list[Path]:
    """A rank's videos: dealt from the largest file to the smallest, whatever is done already.

    Raises:
        UserError: two videos' files would be called the same.
    """
    names: dict[str, Path] = {}
    for video in videos:
        if names.setdefault(video.stem, video) is not video:
            raise UserError(f"{video}: its files would be called as those of {names[video.stem]}: rename one")
    by_size = sorted(videos, key=lambda video: (-video.stat().st_size if video.is_file() else 0, str(video)))
    return by_size[place.rank :: place.world_size]


def extract_share(
    extractor: Extractor, videos: Sequence[Path], place: Distributed, overwrite: bool
) -> dict[str, list[str]]:
    """Does a rank's videos; returns which were `made` and `kept`, and a line on each that `failed`."""
    done: dict[str, list[str]] = {"made": [], "kept": [], "failed": []}
    console = Console(markup=False, highlight=False, soft_wrap=True)
    prefix = f"[rank {place.rank}] " if place.active else ""
    with progress_bar() if place.is_main else contextlib.nullcontext() as progress:
        for number, video in enumerate(videos, 1):
            if not overwrite and extractor.is_done(video):
                done["kept"].append(str(video))
                continue
            try:
                with task_of(progress, f"{number}/{len(videos)} {video.name}") as show:
                    frames = extractor.extract(video, show)
                done["made"].append(str(video))
                console.print(f"{prefix}{visible(str(video))}: {frames} frames")
            except ClipError as error:
                done["failed"].append(f"{video}: {error}")
    return done


def run(args: argparse.Namespace) -> int:
    """Extracts; returns the exit code, which is the same on all ranks.

    Raises:
        UserError: unusable flags, or a file that cannot be written.
    """
    place = utils.init_distributed_mode(args.device, timeout_minutes=_PATIENCE_MINUTES)
    if args.compact and args.stride == 1:
        raise UserError("--compact: needs --stride; with a stride of 1 every frame has its column")
    videos = find_videos(args.videos, args.list)
    mine = share_of(videos, place)
    extractor = Extractor(
        scorer=load_scorer(args, place.device, place.local_world_size),
        output=args.output,
        stride=args.stride,
        compact=args.compact,
        features_only=args.features_only,
        dtype="float16" if args.float16 else "float32",
    )
    utils.make_folder(args.output, "--output")
    keep_settings(args.output, extractor.settings())
    done = extract_share(extractor, mine, place, args.overwrite)
    # A rank that ended with an error before the others are done would make torchrun end them.
    ranks = utils.broadcast_object(utils.gather_objects(done))
    failed = [line for rank in ranks for line in rank["failed"]]
    if place.is_main:
        made, kept = (sum(len(rank[name]) for rank in ranks) for name in ("made", "kept"))
        sys.stdout.write(f"{made} videos done, {kept} there already, {len(failed)} failed: {args.output}\n")
        for line in failed:
            sys.stderr.write(f"extract_features: {visible(line)}\n")
    utils.leave_process_group()
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = make_parser().parse_args(argv)
    try:
        return run(args)
    except UserError as error:
        sys.stderr.write(f"extract_features: {visible(str(error))}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("extract_features: stopped; the same command goes on\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
