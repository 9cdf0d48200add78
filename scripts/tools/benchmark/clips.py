"""The clips that are measured: a real video, scaled and encoded anew; and the datasets of a run on them."""

from __future__ import annotations

import argparse
import itertools
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av

import run_alternating_hand_finetuning as finetuning
from dataset.datasets import ClipKey, VideoClsDataset
from dataset.video import convert, iterate_frames
from models import HANDS
from utils import UserError

REAL_CLIP = Path(__file__).resolve().parents[3] / "tests" / "clips" / "h264_340x256.mp4"
FRAMES_A_SECOND = 28
_KEYFRAMES = {
    12: {"g": "12", "keyint_min": "12", "sc_threshold": "0"},
    None: {},  # the encoder's own: at scene cuts, and at the latest after 250 frames
}


class Size(NamedTuple):
    """Of a picture, in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


DEFAULT_SIZES = (Size(568, 320), Size(1280, 720))


def parse_size(text: str) -> Size:
    """`568x320` as a size; argparse reports what is none."""
    width, height = (int(side) for side in text.split("x"))
    return Size(width, height)


def scale_clip(
    source: Path, target: Path, size: Size, keyframe_step: int | None = 12, n_frames: int | None = None
) -> Path:
    """Scales a video and encodes it anew: x264, preset medium, crf 23, 28 frames a second, no B-frames.

    Args:
        source: a video file.
        target: the file to write.
        size: of its pictures.
        keyframe_step: frames from a keyframe to the next, or None for the encoder's own choice.
        n_frames: how many of its first frames; None: all.

    Returns:
        `target`.

    Raises:
        UserError: the video has fewer frames.
    """
    options = {"preset": "medium", "crf": "23", "bf": "0", **_KEYFRAMES[keyframe_step]}
    with av.open(str(target), "w") as writer:
        stream = writer.add_stream("libx264", rate=FRAMES_A_SECOND, options=options)
        stream.width, stream.height, stream.pix_fmt = size.width, size.height, "yuv420p"
        stream.codec_context.thread_count = 1  # the bytes depend on the number of threads
        number = -1
        for number, frame in enumerate(itertools.islice(iterate_frames(source), n_frames)):
            scaled = convert(frame, width=size.width, height=size.height, format="yuv420p")
            # What the source was coded as would be forced upon the encoder.
            scaled.pict_type = av.video.frame.PictureType.NONE
            scaled.pts, scaled.time_base = number, Fraction(1, FRAMES_A_SECOND)
            writer.mux(stream.encode(scaled))
        writer.mux(stream.encode(None))
    if n_frames is not None and number + 1 < n_frames:
        raise UserError(f"--clip {source}: has {number + 1} frames, fewer than the {n_frames} needed")
    return target


def run_on_clip(clip: Path, *flags: str) -> tuple[argparse.Namespace, dict[str, dict[str, VideoClsDataset]]]:
    """A run's arguments and {mode: {hand: dataset}} where both hands' lists name just one clip.

    Args:
        clip: a video; the lists are written beside it.
        flags: of the run's command line; the others keep their defaults, which are the recipe.
    """
    for mode in ("train", "val"):
        (clip.parent / f"{mode}_list_video.txt").write_text(f"{clip.name} 0\n")
    paths = [word for hand in HANDS for word in (f"--{hand}_data_path", str(clip.parent))]
    args = finetuning.get_args([*paths, *flags])
    return args, finetuning.build_datasets(args, classes_of(args))


def classes_of(args: argparse.Namespace) -> dict[str, int]:
    """{hand: number of classes} of a run."""
    return {hand: getattr(args, f"{hand}_num_classes") for hand in HANDS}


def key_of(turn: int) -> ClipKey:
    """The sample of a turn: the clip's in that pass."""
    return ClipKey(HANDS[0], turn, 0)
