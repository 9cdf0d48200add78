"""Writes a trained model as safetensors with a card in JSON, and as ONNX for both hands.

    python -m scripts.tools.export --checkpoint RUN/checkpoint-best.pth --output DIR

DIR gets `model.safetensors` (the weights by this project's names; `--finetune` takes it), `model.json`
(how the model is built, how clips enter it, its classes, its test) and `model.onnx`: normalised clips in,
each hand's probabilities out. The ONNX file is run before anything is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from models import HANDS
from models.hf_layout import facts_of_model
from models.weight_files import ARCHITECTURE
from scripts.tools.onnx_file import (
    INPUT,
    OPSET,
    PACKAGES,
    TOLERANCE,
    Agreement,
    check_onnx,
    clip_shape,
    output_name,
    require_packages,
    write_onnx,
)
from scripts.tools.trained_model import WEIGHTS, TrainedModel, load_trained
from utils import Parser, UserError, add_switch, make_folder, naming, sync_folder, visible, write_json

WEIGHTS_FILE, ONNX_FILE, CARD_FILE = "model.safetensors", "model.onnx", "model.json"
HAND_NAMES = {"lh": "left hand", "rh": "right hand"}


def architecture(trained: TrainedModel) -> dict[str, Any]:
    """Facts of the model, as `--finetune` compares them."""
    return facts_of_model(trained.model) | {"norm_eps": trained.args.norm_eps}


def make_card(trained: TrainedModel, checkpoint: Path, half: bool) -> dict[str, Any]:
    """All but the files: what someone needs to build the model, to feed it and to read its answer."""
    args = trained.args
    return {
        "model": args.model,
        "build": {
            "img_size": args.input_size,
            "all_frames": args.num_frames,
            "tubelet_size": args.tubelet_size,
            "depth": len(trained.model.blocks),
            "norm_eps": args.norm_eps,
            "use_mean_pooling": not args.use_cls,
            **{f"{h}_num_classes": trained.num_classes(h) if h in trained.hands else 0 for h in HANDS},
        },
        "architecture": architecture(trained),
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "precision": "float16" if half else "float32",
        "input": {
            "layout": "clips (N, 3, frames, input_size, input_size), RGB, (pixel / 255 - mean) / std",
            "frames": args.num_frames,
            "sampling_rate": args.sampling_rate,
            "sparse_sample": args.sparse_sample,
            "short_clips": args.short_clips,
            "input_size": args.input_size,
            "short_side_size": args.short_side_size,
            "mean": list(IMAGENET_DEFAULT_MEAN),
            "std": list(IMAGENET_DEFAULT_STD),
            "test_num_segment": args.test_num_segment,
            "test_num_crop": args.test_num_crop,
        },
        "hands": {hand: describe_hand(trained, hand) for hand in trained.hands},
        "checkpoint": {"file": checkpoint.name, "weights": trained.weights, "step": trained.step},
        "metrics_of_run": read_metrics(checkpoint.parent / "metrics.json"),
        "versions": {"python": platform.python_version(), **versions("torch", "timm", "safetensors")},
    }


def describe_hand(trained: TrainedModel, hand: str) -> dict[str, Any]:
    """A hand's classes."""
    count = trained.num_classes(hand)
    names = [trained.class_name(hand, label) for label in range(count)]
    return {"name": HAND_NAMES[hand], "classes": count, "class_names": names}


def read_metrics(path: Path) -> dict[str, Any] | None:
    """The run's `metrics.json`, or None if it was not tested.

    Raises:
        UserError: a damaged file.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def versions(*packages: str) -> dict[str, str]:
    """Installed versions."""
    return {name: importlib.metadata.version(name) for name in packages}


def describe_onnx(trained: TrainedModel, agreement: Agreement) -> dict[str, Any]:
    """What the ONNX file takes and gives, and how it was checked."""
    outputs = {output_name(hand): ["N", trained.num_classes(hand)] for hand in trained.hands}
    shape = ["N", *clip_shape(trained, 1)[1:]]
    return {
        "opset": OPSET,
        "input": {"name": INPUT, "shape": shape, "type": "float32"},
        "outputs": outputs,
        "check": agreement.as_dict(),
        "versions": versions(*PACKAGES),
    }


def write_weights(trained: TrainedModel, path: Path, half: bool) -> None:
    """Writes the state dict, with the model's facts in the file's own description."""
    weights = {name: value.contiguous() for name, value in trained.model.state_dict().items()}
    if half:
        weights = {name: value.half() for name, value in weights.items()}
    description = {
        "format": "pt",
        "model": trained.args.model,
        ARCHITECTURE: json.dumps(architecture(trained)),
    }
    save_file(weights, path, description)


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A hidden folder whose files are moved, synced, to `folder` once all are written; the card last.

    Raises:
        UserError: something cannot be written; then nothing in `folder` has changed.
    """
    make_folder(folder, "--output")
    with naming(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".export.") as name:
        yield Path(name)
        mode = (Path(name) / CARD_FILE).stat().st_mode  # safetensors' files are their writer's alone
        for path in sorted(Path(name).iterdir(), key=lambda path: path.name == CARD_FILE):
            path.chmod(mode)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.replace(folder / path.name)
        sync_folder(folder)


def export(trained: TrainedModel, checkpoint: Path, output: Path, half: bool, onnx: bool) -> dict[str, Any]:
    """Writes all files; returns the card.

    Raises:
        UserError: a file cannot be written, or ONNX gives other probabilities; nothing is kept then.
    """
    card = make_card(trained, checkpoint, half)
    with staged(output) as folder:
        write_weights(trained, folder / WEIGHTS_FILE, half)
        if onnx:
            write_onnx(trained, folder / ONNX_FILE)
            agreement = check_onnx(trained, folder / ONNX_FILE)
            if not agreement.holds:
                raise UserError(
                    "the ONNX file's probabilities differ from torch's by "
                    f"{agreement.largest_difference:.2g}, more than {TOLERANCE:g}: nothing was written"
                )
            card["onnx"] = describe_onnx(trained, agreement)
        card["files"] = {path.name: describe_file(path) for path in sorted(folder.iterdir())}
        write_json(folder / CARD_FILE, card)
    return card


def describe_file(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def summary(card: dict[str, Any], output: Path) -> Iterator[str]:
    """What was written, a line each."""
    of, hands = card["checkpoint"], card["hands"].values()
    classes = ", ".join(f"{hand['classes']} classes of the {hand['name']}" for hand in hands)
    yield f"{card['model']}, {card['parameters'] / 1e6:.1f} million parameters, {classes}"
    yield f"weights: {of['weights']} of {of['file']}, step {of['step']}, {card['precision']}"
    for name, file in card["files"].items():
        yield f"{output / name}: {file['bytes'] / 1e6:.1f} MB"
    yield f"{output / CARD_FILE}: the card"
    if "onnx" in card:
        check = card["onnx"]["check"]
        yield (
            f"onnxruntime and torch: probabilities of {check['clips']} clips differ by at most "
            f"{check['largest_difference']:.1e} (between the clips by up to {check['spread']:.1e})"
        )


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="python -m scripts.tools.export", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, metavar="FILE", help="checkpoint of a run")
    add("--output", required=True, type=Path, metavar="DIR", help="folder for the files")
    add("--weights", choices=WEIGHTS, default="auto", help="the trained ones, or their moving average; auto: "
        "what the run itself tested")  # fmt: skip
    add("--half", action="store_true", help=f"{WEIGHTS_FILE} in half precision; ONNX keeps single")
    add_switch(add, "onnx", f"write {ONNX_FILE}, and compare it with torch")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = make_parser().parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    try:
        if args.onnx:
            require_packages()
        trained = load_trained(args.checkpoint, torch.device("cpu"), args.weights)
        with console.status("writing and checking"):
            card = export(trained, args.checkpoint, args.output, args.half, args.onnx)
    except UserError as error:
        sys.stderr.write(f"export: {visible(str(error))}\n")
        return 1
    for line in summary(card, args.output):
        console.print(visible(line), markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
