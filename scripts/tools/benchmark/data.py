"""Decoding, whole samples beside the decoding that they need, and the augmentation.

Shapes: T frames of a view, H W pixels.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import decord
import numpy as np
import torch

from dataset import loader, sampling, video
from dataset.build import build_loader
from dataset.datasets import VideoClsDataset
from dataset.video_transforms import TrainTransform
from scripts.tools.benchmark.clips import Size, key_of, run_on_clip, scale_clip
from scripts.tools.benchmark.timing import Run, Summary, measure_in_turns, print_summary, say, summarize
from utils import UserError, derive_seed

_KEYFRAMES = {"keyframes every 12": 12, "default keyframes": None}
AUGMENT_SIZES = (Size(340, 256), Size(568, 320), Size(1280, 720))
_THROUGHPUT_BATCH = 4  # clips
_WARPS = 64


def decord_alone(clip: Path, choose: loader.IndexRule) -> np.ndarray:
    """Decodes the wanted frames with decord and without any check, as a measure of the reader's cost.

    Raises:
        UserError: decord fails at this frame size. Which sizes these are depends on the processor.
    """
    reader = decord.VideoReader(str(clip), ctx=decord.cpu(0), num_threads=1)
    try:
        return reader.get_batch(video.distinct(choose, len(reader))[0]).asnumpy()
    except decord.DECORDError:
        raise UserError(
            f"{clip.name}: decord cannot decode frames of this size here: give other --sizes"
        ) from None


def read_clip(clip: Path, choose: loader.IndexRule) -> np.ndarray:
    """Decodes the wanted frames with the trainer's reader."""
    return loader.decode_frames(str(clip), choose).frames


DECODERS = {"decord alone": decord_alone, "reader": read_clip}


def training_window(
    turn: int, num_frames: int = 16, sampling_rate: int = 4, seed: int = 0
) -> loader.IndexRule:
    """The rule by which `VideoClsDataset` chooses the frames of the training sample `key_of(turn)`."""
    window_seed = derive_seed(seed, *key_of(turn), "window")
    return lambda n: sampling.train_indices(n, num_frames, sampling_rate, np.random.default_rng(window_seed))


# ---------------------------------------------------------------------------------------- decode


def benchmark_decode(args: argparse.Namespace) -> dict[str, Summary]:
    """Opening a clip and decoding the 16 frames of a training sample, by decoder and keyframes."""
    result = {}
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            summary = summarize(
                _measure_decoders(args, size, Path(folder)), "decord alone, keyframes every 12"
            )
        print_summary(f"{size}: open, decode the 16 frames of a training sample", summary, "ratio")
        result[str(size)] = summary
    return result


def _measure_decoders(args: argparse.Namespace, size: Size, folder: Path) -> dict[str, list[float]]:
    def decoding(read: Callable[[Path, loader.IndexRule], np.ndarray], clip: Path) -> Run:
        return lambda turn: read(clip, training_window(turn))

    runs = {}
    for keyframes, step in _KEYFRAMES.items():
        clip = scale_clip(args.clip, folder / f"{step}.mp4", size, step)
        runs |= {f"{name}, {keyframes}": decoding(read, clip) for name, read in DECODERS.items()}
    return measure_in_turns(runs, args.repeats, args.clock)


# ------------------------------------------------------------------------------------------ data


def benchmark_data(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Training samples and test items of the real datasets beside the decoding that they need."""
    result = {}
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            clip = scale_clip(args.clip, Path(folder) / "clip.mp4", size)
            result[str(size)] = _measure_data(args, size, clip)
    return result


def _measure_data(args: argparse.Namespace, size: Size, clip: Path) -> dict[str, Any]:
    run_args, datasets = run_on_clip(clip, "--disable_eval_during_finetuning")
    train, test = (next(iter(datasets[mode].values())) for mode in ("train", "test"))

    def beside_decoding(runs: dict[str, Run]) -> Summary:
        return summarize(measure_in_turns(runs, args.repeats, args.clock), "decode")

    figures: dict[str, Any] = {
        "train": beside_decoding(training_runs(train, clip, run_args)),
        "test": beside_decoding(test_item_runs(test, clip, run_args)),
        "bytes_a_view": bytes_a_view(train),
    }
    print_summary(f"{size}: a training sample of {run_args.num_sample} views", figures["train"], "ratio")
    views = run_args.test_num_segment * run_args.test_num_crop
    print_summary(f"{size}: a test item of {views} views", figures["test"], "ratio")
    say(f"from worker to trainer: {figures['bytes_a_view'] / 1e6:.2f} MB a view")
    if args.num_workers:
        figures["clips_per_s"] = _throughput(train, args.num_workers, args.repeats)
        say(f"{args.num_workers} workers: {figures['clips_per_s']:.1f} clips/s")
    return figures


def training_runs(dataset: VideoClsDataset, clip: Path, args: argparse.Namespace) -> dict[str, Run]:
    """A sample, and the decoding of the very frames that it takes."""

    def window(turn: int) -> loader.IndexRule:
        return training_window(turn, args.num_frames, args.sampling_rate, args.seed)

    return {
        "decord alone": lambda turn: decord_alone(clip, window(turn)),
        "decode": lambda turn: read_clip(clip, window(turn)),
        "sample": lambda turn: dataset.sample(key_of(turn)),
    }


def test_item_runs(dataset: VideoClsDataset, clip: Path, args: argparse.Namespace) -> dict[str, Run]:
    """All views of the clip, and one decoding of all frames that they are made of."""
    choose = partial(
        sampling.test_views,
        num_frames=args.num_frames,
        sampling_rate=args.sampling_rate,
        num_segment=args.test_num_segment,
    )
    return {
        "decord alone": lambda turn: decord_alone(clip, choose),
        "decode": lambda turn: read_clip(clip, choose),
        "item": lambda turn: dataset.sample(key_of(0)),
    }


def bytes_a_view(dataset: VideoClsDataset) -> float:
    """Bytes of tensors that cross from a worker to the trainer, for each view of a batch of two clips."""
    (batch,) = build_loader({dataset.hand: dataset}, [[key_of(0), key_of(1)]], num_workers=0)
    tensors = [part for part in batch if isinstance(part, torch.Tensor)]
    return sum(tensor.nbytes for tensor in tensors) / len(batch.frames)


def _throughput(dataset: VideoClsDataset, num_workers: int, batches: int) -> float:
    """Clips a second that the workers deliver in that many batches, once all of them are at work."""
    passes = range(_THROUGHPUT_BATCH * (batches + num_workers))
    keys = [list(map(key_of, passes[i : i + _THROUGHPUT_BATCH])) for i in passes[::_THROUGHPUT_BATCH]]
    delivered = build_loader({dataset.hand: dataset}, keys, num_workers)
    for _ in range(num_workers):
        next(delivered)
    start = time.perf_counter()
    clips = sum(len(batch.names) for batch in delivered)
    return clips / (time.perf_counter() - start)


# --------------------------------------------------------------------------------------- augment


def benchmark_augment(args: argparse.Namespace) -> dict[str, Summary]:
    """Two training views of 16 decoded frames with the recipe's augmentation, in warps of one frame."""
    real, _, _ = loader.decode_frames(str(args.clip), lambda n: np.arange(16) * (n // 16))
    result = {}
    for size in args.sizes:
        frames = np.stack([cv2.resize(frame, size) for frame in real])
        summary = summarize(measure_in_turns(_augmentations(frames), args.repeats, args.clock), "reference")
        for row in summary.values():
            row["warps"] = _WARPS * row["median_ms"] / summary[f"{_WARPS} warps"]["median_ms"]
        print_summary(f"two views of 16 frames of {size}, RandAugment and crop to 224", summary)
        warps = ", ".join(f"{name} {row['warps']:.0f}" for name, row in summary.items())
        say(f"in warps of one frame: {warps}\n")
        result[str(size)] = summary
    return result


def _augmentations(frames: np.ndarray) -> dict[str, Run]:
    """What is compared on `(T, H, W, 3)` frames; every turn draws anew, all ways alike."""
    matrix = np.array([[0.9, 0.1, 3.0], [-0.1, 0.9, 5.0]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP

    def two_views(impl: str) -> Run:
        recipe = ("rand-m7-n4-mstd0.5-inc1", "bicubic", False, 0.25, 1)
        transform = TrainTransform(224, *recipe, aug_impl=impl)
        return lambda turn: [transform(frames, 2 * turn + view) for view in range(2)]

    return {
        # As many as take about as long as the augmentation, so that what interrupts one interrupts the other.
        f"{_WARPS} warps": lambda turn: [
            cv2.warpAffine(frames[i % len(frames)], matrix, (224, 224), flags=flags) for i in range(_WARPS)
        ],
        "reference": two_views("reference"),
        "fast": two_views("fast"),
    }
