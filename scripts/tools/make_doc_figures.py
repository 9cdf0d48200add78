"""Draws the pictures of the docs from sample data, so that they can be renewed.

python -m scripts.tools.make_doc_figures [--data data/sample_havid] [--output docs/images]

The timeline wants a trained model too: the quickstart's, or another by `--checkpoint`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dataset.annotations import read_clip_list
from dataset.class_names import read_class_names
from dataset.loader import decode_frames
from models import HANDS
from scripts.data import make_sample_havid
from scripts.tools import browse_dataset, predict
from utils import Parser, UserError, atomic_open

TILE = (176, 132)  # pixels, width and height of a frame
CAPTION = 22  # pixels
FRAMES = 6  # of a recording
# Lines of the training list with different actions of both hands.
RECORDINGS = 5
LONG_RECORDING = "S02A01I01M0"


def both_labels(data: Path) -> dict[str, tuple[str, ...]]:
    """{clip: (left hand's action, right hand's action)} of the training clips."""
    named: list[dict[str, str]] = []
    for hand in HANDS:
        folder = data / f"{hand}_v0"
        names = read_class_names(folder / "mapping.txt")
        clips = read_clip_list(folder / "train_list_video.txt")
        labelled = zip(clips, clips.labels, strict=True)
        named.append({clip: names[int(label)].replace("_", " ") for clip, label in labelled})
    return {clip: tuple(labels[clip] for labels in named) for clip in named[0] if clip in named[1]}


def pick_recordings(labels: dict[str, tuple[str, ...]]) -> list[str]:
    """The first recordings that show actions not shown yet."""
    chosen: list[str] = []
    seen: set[str] = set()
    for clip, actions in labels.items():
        if not seen & set(actions) and len(set(actions)) == len(actions) and len(chosen) < RECORDINGS:
            chosen.append(clip)
            seen |= set(actions)
    return chosen


def strip_of(video: Path, caption: str) -> Image.Image:
    """One recording as a row of frames from its first to its last, under a caption."""
    frames, order, _ = decode_frames(str(video), lambda n: np.linspace(0, n - 1, FRAMES).round().astype(int))
    strip = Image.new("RGB", (FRAMES * TILE[0], TILE[1] + CAPTION), "white")
    for place, frame in enumerate(frames[order]):
        picture = Image.fromarray(frame).resize(TILE, Image.Resampling.BICUBIC)
        strip.paste(picture, (place * TILE[0], CAPTION))
    ImageDraw.Draw(strip).text((4, 3), caption, fill="black", font=ImageFont.load_default(14))
    return strip


def sample_strip(data: Path) -> Image.Image:
    """Recordings of the sample data under each other, both hands' actions above each."""
    labels = both_labels(data)
    rows = [
        strip_of(data / "lh_v0" / "videos" / clip, "left hand: {}    right hand: {}".format(*labels[clip]))
        for clip in pick_recordings(labels)
    ]
    return Image.fromarray(np.concatenate([np.asarray(row) for row in rows]))


def contact_sheet(data: Path) -> Image.Image:
    """A small sheet of `browse_dataset`: two clips a hand with the default augmentation, 256 colours."""
    flags = [f"--{hand}_data_path={data / f'{hand}_v0'}" for hand in HANDS]
    # A recording is in both hands' folders.
    roots = [f"--{hand}_data_root={data / 'lh_v0'}" for hand in HANDS]
    args = browse_dataset.parse_flags([*flags, *roots, "--n", "2", "--cell", "96"])
    return browse_dataset.make_sheet(args).quantize(256, dither=Image.Dither.NONE)


def timeline(checkpoint: Path) -> Image.Image:
    """The timeline that `predict` draws of a long recording of the sample's tables, 128 colours."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as said:
        raw, output = Path(folder) / "raw", Path(folder) / "predictions"
        make_sample_havid.main(["--raw", "--output", str(raw), "--recordings", "5", "--workers", "1"])
        flags = ["--checkpoint", str(checkpoint), "--window", "24", "--output", str(output)]
        if predict.main([*flags, str(raw / f"{LONG_RECORDING}.mp4")]):
            raise UserError(f"--checkpoint {checkpoint}: no timeline was drawn: {said.getvalue()}")
        with Image.open(output / f"{LONG_RECORDING}_timeline.png") as picture:
            return picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)


# Every picture of the docs: its name, and what draws it.
FIGURES: dict[str, Callable[[argparse.Namespace], Image.Image]] = {
    "sample_strip": lambda args: sample_strip(args.data),
    "browse_dataset": lambda args: contact_sheet(args.data),
    "timeline": lambda args: timeline(args.checkpoint),
}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    summary, _, _ = __doc__.partition("\n")
    parser = Parser(prog="python -m scripts.tools.make_doc_figures", description=summary)
    add = parser.add_argument
    add("--data", type=Path, default=Path("data/sample_havid"), metavar="DIR", help="sample data")
    add("--checkpoint", type=Path, default=Path("output/quickstart/checkpoint-last.pth"), metavar="FILE",
        help="what the timeline is predicted with")  # fmt: skip
    add("--output", type=Path, default=Path("docs/images"), metavar="DIR", help="folder of the pictures")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = make_parser().parse_args(argv)
    try:
        for name, draw in FIGURES.items():
            with atomic_open(args.output / f"{name}.png") as file:
                draw(args).save(file, format="PNG", optimize=True)
    except (UserError, OSError) as error:
        sys.stderr.write(f"make_doc_figures: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
