"""Draws a contact sheet of what enters the model: views of clips of both hands, as one PNG.

    python -m scripts.tools.browse_dataset --run output/run
    python -m scripts.tools.browse_dataset --lh_data_path data/lh_v0 --rh_data_path data/rh_v0

It takes every flag of the trainer, or with `--run` those that a run was started with; what is given
wins. The views go the way of the trainer: its data sets, its normalisation, its erasing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import utils
from dataset.class_names import names_beside_lists, read_class_names
from dataset.datasets import MODES, VideoClsDataset
from models import HANDS
from optim_factory import uses_mixup
from run_alternating_hand_finetuning import (
    active_hands,
    build_datasets,
    get_args,
    get_parser,
    inherited_flags,
)
from scripts.tools.contact_sheet import ContactSheet, Section
from scripts.tools.view_pictures import choose_clips, make_clip, shown_frames
from utils import UserError

HAND_NAMES = {"lh": "Left hand", "rh": "Right hand"}
# The flags that the sheet names: what made the views of a mode.
_WINDOW = ("num_frames", "sampling_rate", "short_clips")
FLAGS_OF_VIEWS = {
    "train": (*_WINDOW, "aa", "aug_impl", "crop_scale", "hflip", "reprob", "remode", "recount", "seed"),
    "validation": (*_WINDOW, "short_side_size"),
    "test": (*_WINDOW, "short_side_size", "test_num_segment", "test_num_crop"),
}


def make_parser() -> argparse.ArgumentParser:
    """The trainer's command line with this tool's flags."""
    parser = get_parser()
    parser.prog, parser.description = "python -m scripts.tools.browse_dataset", __doc__.splitlines()[0]
    add = parser.add_argument_group("contact sheet").add_argument
    add("--run", metavar="DIR", help="output folder of a run, whose flags (args.json) are taken over")
    add("--n", type=utils.count, default=6, help="clips a hand")
    add("--views", type=utils.count, default=2, help="most views shown of a clip")
    add("--mode", choices=MODES, default="train", help="whose clips and views")
    add("--pass", dest="pass_", type=utils.natural, default=0, metavar="N",
        help="which pass over the training clips, from 0: its order and its draws")  # fmt: skip
    add("--cell", type=utils.count, metavar="SIDE", help="side of a drawn frame, pixels; default: as it is")
    add("--output", type=Path, default=Path("browse_dataset.png"), metavar="FILE", help="the picture")
    for hand in HANDS:
        add(f"--{hand}_mapping", metavar="FILE",
            help="class names, a line `label name` each; default: mapping.txt beside the lists")  # fmt: skip
    return parser


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses and checks the command line as the trainer does, over the flags of `--run`.

    Raises:
        UserError: contradictory or unusable flags, or no run.
    """
    parser = make_parser()
    given = parser.parse_args(argv)
    if given.run is not None:
        parser.set_defaults(**inherited_flags(flags_of_run(Path(given.run)), given))
    return get_args(argv, parser=parser)


def flags_of_run(folder: Path) -> dict[str, Any]:
    """Return what a run's `args.json` says."""
    path = folder / "args.json"
    try:
        saved = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"--run {folder}: {path.name} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--run {folder}: {path.name} is not JSON: {error}") from None
    if not isinstance(saved, dict):
        raise UserError(f"--run {folder}: {path.name} does not hold a run's flags")
    return saved


def make_section(args: argparse.Namespace, hand: str, dataset: VideoClsDataset) -> Section:
    """One hand's clips."""
    mapping, lists = getattr(args, f"{hand}_mapping"), getattr(args, f"{hand}_data_path")
    names = read_class_names(mapping, f"--{hand}_mapping") if mapping else names_beside_lists(lists)
    keys = choose_clips(dataset, args.n, args.pass_)
    clips = tuple(make_clip(dataset, key, names, args.remode, args.views) for key in keys)
    return Section(f"{HAND_NAMES[hand]} ({hand}): {len(keys)} of {len(dataset)} clips", clips)


def describe_views(args: argparse.Namespace) -> list[str]:
    """What the sheet shows, and the flags that made it, a line each."""
    frames = ", ".join(str(frame + 1) for frame in shown_frames(args.num_frames))
    shown = f"{args.input_size} x {args.input_size} pixels, frames {frames} of {args.num_frames}"
    if args.mode == "train":
        later = ["mixup"] * uses_mixup(args) + ["token masks"] * bool(args.train_mask_ratio)
        before = f", before {' and '.join(later)}" if later else ""
        shown = f"After augmentation and random erasing{before}: {shown}, pass {args.pass_}"
    flags = {name: getattr(args, name) for name in FLAGS_OF_VIEWS[args.mode]}
    texts = {name: " ".join(map(str, v)) if isinstance(v, list) else v for name, v in flags.items()}
    return [shown, " ".join(f"--{name} {text}" for name, text in texts.items())]


def make_sheet(args: argparse.Namespace) -> Image.Image:
    """The whole picture.

    Raises:
        UserError: lists, clips or class names that cannot be used.
    """
    num_classes = {hand: getattr(args, f"{hand}_num_classes") for hand in active_hands(args)}
    datasets = build_datasets(args, num_classes, [args.mode])[args.mode]
    sections = [make_section(args, hand, dataset) for hand, dataset in datasets.items()]
    layout = ContactSheet(args.cell or args.input_size, len(shown_frames(args.num_frames)))
    return layout.draw(f"{args.mode.capitalize()}: what enters the model", describe_views(args), sections)


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Writes the PNG, whole or not at all."""
    try:
        with utils.atomic_open(path) as file:
            sheet.save(file, format="PNG")
    except UserError as error:
        raise UserError(f"--output {error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    try:
        args = parse_flags(argv)
        sheet = make_sheet(args)
        save_sheet(sheet, args.output)
    except UserError as error:
        sys.stderr.write(f"browse_dataset: {error}\n")
        return 1
    sys.stdout.write(f"written: {args.output}, {sheet.width} x {sheet.height} pixels\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
