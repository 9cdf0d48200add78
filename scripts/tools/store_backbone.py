"""Stores a checkpoint's backbone as a small file of pretrained weights, with a card of its making.

    python -m scripts.tools.store_backbone --checkpoint RUN/checkpoint-last.pth --data DIR \\
        --commit $(git rev-parse HEAD) --output FILE.pth

The file has the form of the published K710 weights, a dict with `module`, in half precision and
without heads; `--finetune` takes it. The card, FILE.json, says how the weights were made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from models import HANDS
from utils import UserError, atomic_open, read_checkpoint, write_json


def backbone_weights(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The checkpoint's weights without the heads, in half precision."""
    heads = tuple(f"{hand}_head." for hand in HANDS)
    weights = checkpoint["model"].items()
    return {name: value.half() for name, value in weights if not name.startswith(heads)}


def hash_lists(data: Path) -> dict[str, str]:
    """SHA-256 of every list file of a data set, by its path there."""
    lists = sorted(data.glob("*/*_list_video.txt"))
    return {str(path.relative_to(data)): hashlib.sha256(path.read_bytes()).hexdigest() for path in lists}


def training_hours(run: Path) -> float:
    """Hours of training steps, from the run's log."""
    rows = [json.loads(row) for row in (run / "log.txt").read_text().splitlines()]
    return sum(row["train_seconds"] for row in rows) / 3600


def describe_machine() -> str:
    """Processor, cores and PyTorch in one line."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
    processor = models[0] if models else platform.processor()
    return f"{processor}, {len(models)} cores, torch {torch.__version__}"


def make_card(checkpoint: dict[str, Any], run: Path, data: Path, commit: str) -> dict[str, Any]:
    """What someone needs to know of the weights, and to make them again."""
    sample = json.loads((data / "sample.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    return {
        "command": "bash scripts/pretrain_sample_weights.sh",
        "commit": commit,
        "data": sample,
        "list_sha256": hash_lists(data),
        "arguments": {k: v for k, v in checkpoint["args"].items() if not str(v).startswith("/")},
        "steps": checkpoint["alternating"]["step"],
        "training_hours": round(training_hours(run), 3),
        "machine": describe_machine(),
        "pretraining_top1": {hand: metrics[hand]["top1"] for hand in HANDS if hand in metrics},
    }


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.tools.store_backbone", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="checkpoint of the pretraining run")
    parser.add_argument("--data", required=True, type=Path, help="generated set that it was trained on")
    parser.add_argument("--commit", required=True, help="commit of this project that it was trained with")
    parser.add_argument("--output", required=True, type=Path, help="file of weights to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = make_parser().parse_args(argv)
    try:
        checkpoint = read_checkpoint(args.checkpoint, "--checkpoint")
        card = make_card(checkpoint, Path(args.checkpoint).parent, args.data, args.commit)
    except (UserError, OSError, KeyError) as error:
        sys.stderr.write(f"store_backbone: {error}\n")
        return 1
    with atomic_open(args.output) as file:
        torch.save({"module": backbone_weights(checkpoint)}, file)
    write_json(args.output.with_suffix(".json"), card)
    return 0


if __name__ == "__main__":
    sys.exit(main())
