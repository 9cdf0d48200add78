"""Measures the speed of this project's parts; every figure in the docs comes from here.

    python -m scripts.tools.benchmark model [--json FILE]     fused attention
    python -m scripts.tools.benchmark heads [--json FILE]     a resting head under two processes
    python -m scripts.tools.benchmark depth [--json FILE]     the tiny model, by its depth
    python -m scripts.tools.benchmark augment [--json FILE]   two training views of a decoded clip

What is compared runs in one process, in turns, so that a busy machine slows both alike; medians over
`--repeats` turns are shown. Pin it to one core (`taskset -c 0`) for figures that can be compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

import models  # noqa: F401 - registers the models with timm
from dataset.loader import decode_frames
from dataset.video_transforms import TrainTransform
from utils import Distributed, average_gradients, leave_process_group, wrap_distributed, write_json


def measure_in_turns(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, in turns; the first turn warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summarize(seconds: Mapping[str, Sequence[float]], baseline: str) -> dict[str, dict[str, float]]:
    """Median, quartiles (ms) and speed relative to the baseline's median of each run."""
    reference = float(np.median(seconds[baseline]))
    result = {}
    for name, values in seconds.items():
        low, median, high = np.percentile(values, [25, 50, 75])
        result[name] = {
            "median_ms": 1e3 * float(median),
            "low_ms": 1e3 * float(low),
            "high_ms": 1e3 * float(high),
            "speed": reference / float(median),
        }
    return result


def print_summary(title: str, summary: Mapping[str, Mapping[str, float]]) -> None:
    """Prints a row a run."""
    table = Table(title=title)
    table.add_column("")
    for column in ("median ms", "quartiles ms", "speed"):
        table.add_column(column, justify="right")
    for name, row in summary.items():
        spread = f"{row['low_ms']:.1f} to {row['high_ms']:.1f}"
        table.add_row(name, f"{row['median_ms']:.1f}", spread, f"{row['speed']:.2f}")
    Console().print(table)


def benchmark_model(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Forward and backward of one batch with unfused and with fused attention."""
    torch.manual_seed(0)
    model = timm.create_model(args.model, depth=args.depth, lh_num_classes=75, rh_num_classes=75)
    clips = torch.randn(args.batch_size, 3, 16, 224, 224)
    labels = torch.randint(0, 75, (args.batch_size,))

    def step(backend: SDPBackend) -> None:
        with sdpa_kernel(backend):
            torch.nn.functional.cross_entropy(model(clips, "lh"), labels).backward()
        model.zero_grad()

    runs = {
        "unfused attention": lambda: step(SDPBackend.MATH),
        "fused attention": lambda: step(SDPBackend.FLASH_ATTENTION),
    }
    summary = summarize(measure_in_turns(runs, args.repeats), "unfused attention")
    title = f"{args.model}, {args.depth} blocks, {args.batch_size} clips of 16x224x224, forward and backward"
    print_summary(f"{title}, {torch.get_num_threads()} thread(s), fp32", summary)
    return summary


def benchmark_depth(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Forward and backward of a quickstart's batch with models of several depths."""
    torch.manual_seed(0)
    clips, labels = torch.randn(32, 3, 4, 64, 64), torch.randint(0, 8, (32,))

    def stepper(depth: int) -> Callable[[], None]:
        name = "vit_tiny_patch16_224_alternating"
        model = timm.create_model(name, depth=depth, img_size=64, all_frames=4)

        def step() -> None:
            torch.nn.functional.cross_entropy(model(clips, "lh"), labels).backward()
            model.zero_grad()

        return step

    runs = {f"{depth} blocks": stepper(depth) for depth in args.depths}
    summary = summarize(measure_in_turns(runs, args.repeats), f"{max(args.depths)} blocks")
    title = "the tiny model, 32 clips of 4x64x64, forward and backward"
    print_summary(f"{title}, {torch.get_num_threads()} thread(s), fp32", summary)
    return summary


def benchmark_heads(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """A training step of two gloo processes, one of whose heads rests, by what keeps that head still."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_measure_heads, (args, Path(folder)), nprocs=2)
        seconds = json.loads((Path(folder) / "seconds.json").read_text())
    summary = summarize(seconds, "find_unused_parameters")
    size = f"{args.batch_size} clips of 16x{args.input_size}x{args.input_size}"
    title = f"{args.model}, {args.depth} blocks, {size} a process, two gloo processes"
    print_summary(f"{title}, forward, backward and averaging, fp32", summary)
    return summary


def _measure_heads(rank: int, args: argparse.Namespace, folder: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    torch.manual_seed(0)
    clips = torch.randn(args.batch_size, 3, 16, args.input_size, args.input_size)
    labels = torch.randint(0, 75, (args.batch_size,))

    def stepper(wrap: Callable[[torch.nn.Module], torch.nn.Module], apart: bool) -> Callable[[], None]:
        sizes = {"img_size": args.input_size, "lh_num_classes": 75, "rh_num_classes": 75}
        model = timm.create_model(args.model, depth=args.depth, **sizes)
        wrapped = wrap(model)

        def step() -> None:
            torch.nn.functional.cross_entropy(wrapped(clips, "lh"), labels).backward()
            if apart:
                average_gradients(model.get_classifier("lh").parameters())
            assert all(parameter.grad is None for parameter in model.get_classifier("rh").parameters())
            model.zero_grad()

        return step

    def with_heads_apart(model: torch.nn.Module) -> torch.nn.Module:
        return wrap_distributed(model, Distributed(rank, 2), model.get_classifier())

    runs = {
        "find_unused_parameters": stepper(
            partial(DistributedDataParallel, find_unused_parameters=True), apart=False
        ),
        "heads apart": stepper(with_heads_apart, apart=True),
    }
    seconds = measure_in_turns(runs, args.repeats)
    if rank == 0:
        write_json(folder / "seconds.json", seconds)
    leave_process_group()


def benchmark_augment(args: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Two training views of 16 decoded frames with the recipe's augmentation, in warps of one frame."""
    cv2.setNumThreads(0)
    real, _, _ = decode_frames(str(args.clip), lambda n: np.arange(16) * (n // 16))
    result = {}
    for width, height in ((340, 256), (568, 320), (1280, 720)):
        frames = np.stack([cv2.resize(frame, (width, height)) for frame in real])
        seconds = measure_in_turns(_augmentations(frames), args.repeats)
        result[f"{width}x{height}"] = summary = summarize(seconds, "reference")
        for row in summary.values():
            row["warps"] = 16 * row["median_ms"] / summary["16 warps"]["median_ms"]
        title = f"two views of 16 frames of {width}x{height}, RandAugment and crop to 224, one thread"
        print_summary(title, summary)
        warps = ", ".join(f"{name} {row['warps']:.0f}" for name, row in summary.items())
        Console().print(f"in warps of one frame: {warps}\n")
    return result


def _augmentations(frames: np.ndarray) -> dict[str, Callable[[], Any]]:
    """What is compared; every turn draws anew, all ways alike."""
    matrix = np.array([[0.9, 0.1, 3.0], [-0.1, 0.9, 5.0]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP

    def two_views(impl: str) -> Callable[[], None]:
        recipe = ("rand-m7-n4-mstd0.5-inc1", "bicubic", False, 0.25, 1)
        transform, seeds = TrainTransform(224, *recipe, aug_impl=impl), itertools.count()
        return lambda: [transform(frames, next(seeds)) for _ in range(2)]

    return {
        "16 warps": lambda: [cv2.warpAffine(frame, matrix, (224, 224), flags=flags) for frame in frames],
        "reference": two_views("reference"),
        "fast": two_views("fast"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.tools.benchmark", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    model = commands.add_parser("model", help="forward and backward, unfused against fused attention")
    model.set_defaults(run=benchmark_model)
    heads = commands.add_parser("heads", help="a step of two processes, by what keeps the resting head still")
    heads.add_argument("--input_size", type=int, default=224, help="height and width of a clip, pixels")
    heads.set_defaults(run=benchmark_heads)
    for command in (model, heads):
        command.add_argument("--model", default="vit_base_patch16_224_alternating", help="registered model")
        command.add_argument("--depth", type=int, default=4, help="blocks")
        command.add_argument("--batch_size", type=int, default=1, help="clips")
    depth = commands.add_parser("depth", help="the tiny model at the quickstart's size, by its depth")
    depth.add_argument("--depths", type=int, nargs="+", default=[3, 6, 12], help="blocks")
    depth.set_defaults(run=benchmark_depth)
    augment = commands.add_parser("augment", help="two training views of a decoded clip")
    augment.add_argument("--clip", type=Path, default="tests/clips/h264_340x256.mp4", help="a real video")
    augment.set_defaults(run=benchmark_augment)
    for command in (model, heads, depth, augment):
        command.add_argument("--repeats", type=int, default=5, help="turns that count")
        command.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args(argv)
    summary = args.run(args)
    if args.json:
        write_json(args.json, summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
