"""From a data set's samples to the pictures of what the model gets of them.

V views of a clip, T frames of a view, F of them shown, S side of a view in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from dataset.datasets import ClipKey, ClipSample, VideoClsDataset
from dataset.sampling import ShuffledPasses
from dataset.volume_transforms import ClipsToInput
from scripts.tools.contact_sheet import Clip, Row
from utils import derive_seed

SHOWN_FRAMES = 8


def choose_clips(dataset: VideoClsDataset, count: int, pass_: int) -> list[ClipKey]:
    """At most `count` clips: in training those that a pass begins with, else some spread over the list."""
    size = len(dataset)
    count = min(count, size)
    if dataset.mode != "train":
        return [ClipKey(dataset.hand, 0, place * size // count) for place in range(count)]
    order = ShuffledPasses(size, (dataset.seed, dataset.hand))
    return [ClipKey(dataset.hand, *order.at(pass_ * size + place)) for place in range(count)]


def shown_frames(num_frames: int) -> np.ndarray:
    """Positions of at most 8 frames, evenly from a view's first to its last."""
    return np.linspace(0, num_frames - 1, min(num_frames, SHOWN_FRAMES)).round().astype(int)


def model_input(sample: ClipSample, remode: str, seed: int) -> torch.Tensor:
    """What the model gets of a sample's views: float32 (V, 3, T, S, S).

    The noise in erased boxes follows from `seed`; a training step draws its own for the whole batch.
    """
    boxes = torch.from_numpy(sample.erase_boxes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ClipsToInput(remode)(torch.from_numpy(sample.frames), boxes)


def to_pictures(clips: torch.Tensor) -> np.ndarray:
    """Undoes the normalisation: uint8 (V, T, S, S, 3) of (V, 3, T, S, S), cut off at black and white."""
    mean, std = (torch.tensor(c).view(3, 1, 1, 1) for c in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    levels = (clips * std + mean).mul(255).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 4, 1).numpy()


def describe_label(label: int, names: Mapping[int, str]) -> str:
    """The class id, and the class's name if it is known."""
    return f"class {label}: {names[label]}" if label in names else f"class {label}"


def describe_trouble(sample: ClipSample) -> str:
    """What could not be read, or nothing."""
    if not sample.bad:
        return ""
    if not len(sample.frames):
        return f"could not be read: {sample.bad[0].reason}"
    return f"in place of {sample.bad[0].name}, which could not be read: {sample.bad[0].reason}"


def view_notes(sample: ClipSample) -> list[tuple[int, tuple[str, ...]]]:
    """(view, what is written beside it) of each row; a test's views are told by chunk and split."""
    if len(sample.rows) < 2:
        count = len(sample.frames)
        return [(view, (f"view {view + 1} of {count}",)) for view in range(count)]
    count = len(sample.rows)
    return [
        (view, (f"view {number} of {count}", f"chunk {chunk}", f"split {split}"))
        for number, (view, chunk, split) in enumerate(sample.rows.tolist(), 1)
    ]


def make_clip(
    dataset: VideoClsDataset, key: ClipKey, names: Mapping[int, str], remode: str, views: int
) -> Clip:
    """A clip as the sheet shows it.

    Args:
        dataset: the clip's.
        key: names the clip.
        names: what the labels are called.
        remode: what erased boxes are filled with.
        views: most views to show.
    """
    sample = dataset.sample(key)
    pictures = to_pictures(model_input(sample, remode, derive_seed(dataset.seed, *key, "noise")))
    pictures = pictures[:, shown_frames(pictures.shape[1])]
    rows = tuple(Row(notes, pictures[view]) for view, notes in view_notes(sample)[:views])
    return Clip(describe_label(sample.label, names), sample.name, rows, describe_trouble(sample))
