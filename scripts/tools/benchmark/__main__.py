"""Measures the speed of this project's parts.

    python -m scripts.tools.benchmark decode     opening and decoding a training sample's frames
    python -m scripts.tools.benchmark data       training samples and test items beside their decoding
    python -m scripts.tools.benchmark augment    two training views of a decoded clip
    python -m scripts.tools.benchmark list       a list of a million lines
    python -m scripts.tools.benchmark model      fused attention
    python -m scripts.tools.benchmark depth      the tiny model, by its depth
    python -m scripts.tools.benchmark heads      a resting head under two processes
    python -m scripts.tools.benchmark train      training steps from memory and from video files
    python -m scripts.tools.benchmark predict    predictions and features beside the model alone
    python -m scripts.tools.benchmark merge      the results files of a whole test

What is compared runs in one process, in turns, so that a busy machine slows all of it alike; medians and
quartiles over `--repeats` turns are shown. Everything uses one thread. Pin it to one core
(`taskset -c 0`) for figures that can be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import torch

from scripts.tools.benchmark.clips import DEFAULT_SIZES, REAL_CLIP, parse_size
from scripts.tools.benchmark.data import AUGMENT_SIZES, benchmark_augment, benchmark_data, benchmark_decode
from scripts.tools.benchmark.lists import benchmark_list
from scripts.tools.benchmark.merge import benchmark_merge
from scripts.tools.benchmark.model import benchmark_depth, benchmark_heads, benchmark_model
from scripts.tools.benchmark.predict import benchmark_predict
from scripts.tools.benchmark.timing import CLOCKS
from scripts.tools.benchmark.train import benchmark_train
from utils import UserError, count, natural, write_json


def _add_data_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    decode = add("decode", benchmark_decode, "opening and decoding a training sample's frames")
    data = add("data", benchmark_data, "training samples and test items beside their decoding")
    augment = add("augment", benchmark_augment, "two training views of a decoded clip")
    for command in (decode, data, augment):
        _add_clip_flag(command)
        sizes = AUGMENT_SIZES if command is augment else DEFAULT_SIZES
        command.add_argument(
            "--sizes", type=parse_size, nargs="+", default=sizes, metavar="WxH", help="it is scaled to that"
        )
    data.add_argument(
        "--num_workers", type=natural, default=0, help="measure the throughput of that many too; 0: do not"
    )
    lists = add("list", benchmark_list, "a long list over one of one line")
    lists.add_argument("--lines", type=count, default=1_000_000, help="of the long list")
    merge = add("merge", benchmark_merge, "the results files of a whole test")
    for flag, default in (("--clips", 10_000), ("--views", 15), ("--classes", 75), ("--ranks", 2)):
        merge.add_argument(flag, type=count, default=default, help=f"default: {default}")


def _add_model_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    model = add("model", benchmark_model, "forward and backward, unfused against fused attention", 5)
    heads = add("heads", benchmark_heads, "a step of two processes, by what keeps the resting head still", 5)
    heads.add_argument("--input_size", type=count, default=224, help="height and width of a clip, pixels")
    for command in (model, heads):
        command.add_argument("--model", default="vit_base_patch16_224_alternating", help="registered model")
        command.add_argument("--depth", type=count, default=4, help="blocks")
        command.add_argument("--batch_size", type=count, default=1, help="clips")
    depth = add("depth", benchmark_depth, "the tiny model at the quickstart's size, by its depth", 5)
    depth.add_argument("--depths", type=count, nargs="+", default=[3, 6, 12], help="blocks")
    _add_predict_flags(
        add("predict", benchmark_predict, "predictions and features beside the model alone", 5)
    )
    _add_train_flags(add("train", benchmark_train, "training steps from memory and from video files"))


def _add_train_flags(train: argparse.ArgumentParser) -> None:
    _add_clip_flag(train)
    train.add_argument(
        "--size", type=parse_size, default=DEFAULT_SIZES[0], metavar="WxH", help="it is scaled to that"
    )
    train.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    train.add_argument("--model", help="registered model; default: tiny, on a GPU base")
    train.add_argument("--depth", type=count, help="blocks; default: the model's own")
    train.add_argument("--input_size", type=count, help="height and width, pixels; default: 64, on a GPU 224")
    train.add_argument("--batch_size", type=count, help="decoded clips a step; default: 2, on a GPU 8")
    train.add_argument(
        "--num_workers", type=natural, help="processes that decode; default: 0, on a GPU as many as CPUs"
    )
    train.add_argument("--steps", type=count, default=5, help="optimizer steps a turn")


def _add_predict_flags(predict: argparse.ArgumentParser) -> None:
    _add_clip_flag(predict)
    predict.add_argument(
        "--sizes",
        type=parse_size,
        nargs="+",
        default=DEFAULT_SIZES,
        metavar="WxH",
        help="it is scaled to that",
    )
    predict.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    predict.add_argument(
        "--amp_dtype", choices=("auto", "bf16", "fp16", "fp32"), default="auto", help="as the trainer's flag"
    )
    predict.add_argument("--model", default="vit_base_patch16_224_alternating", help="registered model")
    predict.add_argument("--depth", type=count, help="blocks; default: the model's own")
    predict.add_argument("--input_size", type=count, help="height and width, pixels; default: 224")
    predict.add_argument("--num_frames", type=count, help="frames of a view; default: 16")
    predict.add_argument("--sampling_rate", type=count, help="source frames for each; default: 4")
    for flag, default, text in (
        ("--windows", 4, "windows a turn"),
        ("--batch_size", 8, "most windows a pass"),
        ("--decode_threads", 1, "threads of the decoder"),
    ):
        predict.add_argument(flag, type=count, default=default, help=f"{text}; default: {default}")


def _add_clip_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument("--clip", type=_existing_file, default=REAL_CLIP, help="a real video")


def _existing_file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text}: there is no such file")
    return Path(text)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.tools.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(
        name: str, run: Callable[[argparse.Namespace], Any], help_text: str, repeats: int = 30
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_text)
        command.set_defaults(run=run)
        command.add_argument("--repeats", type=count, default=repeats, help=f"turns that count; {repeats}")
        command.add_argument(
            "--clock", choices=CLOCKS, default="wall", help="cpu: count this process's time alone"
        )
        command.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
        return command

    _add_data_commands(add)
    _add_model_commands(add)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = make_parser().parse_args(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        figures = args.run(args)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if args.json:
        write_json(args.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
