"""A trained model from a checkpoint alone: the file says how it is built and how clips enter it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine_for_finetuning import STATE_KEY, load_weights
from run_alternating_hand_finetuning import active_hands, build_model, get_parser
from utils import UserError, read_checkpoint

WEIGHTS = ("auto", "model", "ema")


@dataclass(frozen=True)
class TrainedModel:
    """A model that can be asked, and what it was trained on.

    Attributes:
        model: in evaluation mode, on its device.
        args: every flag of the run that trained it.
        hands: the hands that it was trained for.
        class_names: {hand: {label: name}}; empty where the run knew no names.
        weights: `model` or `ema`: which weights these are.
        step: optimizer steps that they have seen.
    """

    model: nn.Module
    args: argparse.Namespace
    hands: tuple[str, ...]
    class_names: Mapping[str, Mapping[int, str]]
    weights: str
    step: int

    def num_classes(self, hand: str) -> int:
        """Classes of a hand."""
        return getattr(self.args, f"{hand}_num_classes")

    def class_name(self, hand: str, label: int) -> str:
        """What a class is called, or `class 7`."""
        return self.class_names.get(hand, {}).get(label, f"class {label}")


def load_trained(
    path: str | Path, device: torch.device, weights: str = "auto", flag: str = "--checkpoint"
) -> TrainedModel:
    """Builds the model that a checkpoint of this project holds, and fills it.

    Args:
        path: the checkpoint.
        device: where the model goes.
        weights: `model`, `ema` (the moving average), or `auto`: what the run itself tested.
        flag: named in errors.

    Raises:
        UserError: no such file, another trainer's, or one without the weights asked for.
    """
    checkpoint = read_checkpoint(path, flag, lazy=True)
    if STATE_KEY not in checkpoint:
        raise UserError(f"{flag} {path}: was not written by this project, and does not describe its model")
    args = _args_of(checkpoint)
    hands = active_hands(args)
    if weights == "auto":
        weights = "ema" if args.test_weights == "ema" and "model_ema" in checkpoint else "model"
    model = build_model(args, {hand: getattr(args, f"{hand}_num_classes") for hand in hands})
    load_weights(model, checkpoint, {"model": "model", "ema": "model_ema"}[weights], path)
    names = checkpoint.get("class_names", {})
    step = checkpoint[STATE_KEY]["step"]
    return TrainedModel(model.to(device).eval(), args, hands, names, weights, step)


def _args_of(checkpoint: Mapping[str, Any]) -> argparse.Namespace:
    # Flags that are younger than the file have their defaults.
    return argparse.Namespace(**{**vars(get_parser().parse_args([])), **checkpoint["args"]})
