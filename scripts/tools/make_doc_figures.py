"""Draws the pictures of the docs from sample data and the quickstart's run, so that they can be renewed.

python -m scripts.tools.make_doc_figures [--data data/sample_havid] [--run output/quickstart]
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
from scripts.tools.report.browser import open_browser
from scripts.tools.report.run_data import read_run
from scripts.tools.report.run_page import write_report
from utils import Parser, UserError, atomic_open

TILE = (176, 132)  # pixels, width and height of a frame
CAPTION = 22  # pixels
FRAMES = 6  # of a recording
# Lines of the training list with different actions of both hands.
RECORDINGS = 5
LONG_RECORDING = "S02A01I01M0"
WINDOW = (1100, 1800)  # pixels, of the browser that draws a report


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
            raise UserError(f"{checkpoint}: no timeline was drawn: {said.getvalue()}")
        with Image.open(output / f"{LONG_RECORDING}_timeline.png") as picture:
            return picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)


def report_picture(run: Path) -> Image.Image:
    """Two parts of a run's report beside each other, 256 colours: its start, and its first hand's part."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        write_report(read_run(run), file)
        with open_browser() as browser:
            page = browser.new_page(viewport=dict(zip(("width", "height"), WINDOW, strict=True)))
            page.goto(file.as_uri())
            parts = [page.screenshot()]
            page.evaluate("document.querySelector('nav').remove()")
            page.evaluate("document.querySelector('section.lh').scrollIntoView()")
            page.wait_for_function("[...document.images].filter(i => i.complete).every(i => i.naturalWidth)")
            parts.append(page.screenshot())
    both = Image.new("RGB", (2 * WINDOW[0], WINDOW[1]), "white")
    for place, part in enumerate(parts):
        both.paste(Image.open(io.BytesIO(part)), (place * WINDOW[0], 0))
    small = both.resize((both.width * 2 // 3, both.height * 2 // 3), Image.Resampling.LANCZOS)
    return small.quantize(256, dither=Image.Dither.NONE)


# Every picture of the docs: its name, and what draws it by the flags.
FIGURES: dict[str, Callable[[argparse.Namespace], Image.Image]] = {
    "sample_strip": lambda args: sample_strip(args.data),
    "browse_dataset": lambda args: contact_sheet(args.data),
    "timeline": lambda args: timeline(args.run / "checkpoint-last.pth"),
    "report": lambda args: report_picture(args.run),
}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    summary, _, _ = __doc__.partition("\n")
    parser = Parser(prog="python -m scripts.tools.make_doc_figures", description=summary)
    add = parser.add_argument
    add("--data", type=Path, default=Path("data/sample_havid"), metavar="DIR", help="sample data")
    add("--run", type=Path, default=Path("output/quickstart"), metavar="DIR", help="the run of the report, "
        "which an installed Chromium draws")  # fmt: skip
    add("--only", nargs="+", choices=FIGURES, default=list(FIGURES), metavar="NAME", help="pictures to draw")
    add("--output", type=Path, default=Path("docs/images"), metavar="DIR", help="folder of the pictures")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = make_parser().parse_args(argv)
    try:
        for name in args.only:
            picture = FIGURES[name](args)
            with atomic_open(args.output / f"{name}.png") as file:
                picture.save(file, format="PNG", optimize=True)
    except (UserError, OSError) as error:
        sys.stderr.write(f"make_doc_figures: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
