"""Training steps of a run, from memory and from video files."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import run_alternating_hand_finetuning as finetuning
import utils
from dataset.build import build_loader
from dataset.datasets import ClipBatch, ClipKey, VideoClsDataset
from dataset.sampling import ShuffledPasses
from dataset.volume_transforms import ClipsToInput
from engine_for_alternating_finetuning import (
    AlternatingTrainer,
    Alternation,
    HandMeters,
    Recipe,
    Runtime,
    training_batches,
)
from optim_factory import create_criterion, create_mixup, create_updater
from scripts.tools.benchmark.clips import classes_of, run_on_clip, scale_clip
from scripts.tools.benchmark.timing import Run, measure_in_turns, print_summary, say, summarize

# Dense bf16 operations a second that the makers state, by the name that CUDA gives.
PEAK_FLOPS = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
}
_DEFAULTS = {
    "cpu": {"model": "vit_tiny_patch16_224_alternating", "input_size": 64, "batch_size": 2, "num_workers": 0},
    "cuda": {"model": "vit_base_patch16_224_alternating", "input_size": 224, "batch_size": 8},
}
_RUN_FLAGS = ("device", "model", "depth", "input_size", "batch_size", "num_workers")


def benchmark_train(args: argparse.Namespace) -> dict[str, Any]:
    """The run's own optimizer steps, with the recipe's defaults, on clips in memory and in files.

    A clip is what goes through the model: each of the views of a decoded clip counts.

    Returns:
        `steps`: a summary with `clips_per_s`; on a GPU also `gpu_memory_gib`, the most that was in
        use, `forward_gflop` of one clip, and in the summary `mfu`, where the GPU's peak is known.
    """
    place = utils.init_distributed_mode(args.device)
    with tempfile.TemporaryDirectory() as folder:
        clip = scale_clip(args.clip, Path(folder) / "clip.mp4", args.size)
        run_args, datasets = run_on_clip(clip, *_run_flags(args, place.device))
        trainers = _build_trainers(run_args, datasets["train"], place.device, (args.repeats + 1) * args.steps)
        runs = {name: _stepping(trainer, args.steps) for name, trainer in trainers.items()}
        seconds = _measure(runs, args, run_args.num_workers)
    summary = summarize(seconds, "from memory")
    clips_a_turn = args.steps * run_args.batch_size * run_args.update_freq * run_args.num_sample
    for row in summary.values():
        row["clips_per_s"] = clips_a_turn / (row["median_ms"] / 1e3)
    figures: dict[str, Any] = {"steps": summary}
    if place.device.type == "cuda":
        figures |= add_gpu_figures(summary, run_args, place.device)
    _print_figures(figures, args, run_args)
    return figures


def _run_flags(args: argparse.Namespace, device: torch.device) -> list[str]:
    given = {name: getattr(args, name) for name in _RUN_FLAGS if getattr(args, name) is not None}
    chosen = _DEFAULTS["cuda" if device.type == "cuda" else "cpu"] | given
    words = [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
    return [*words, "--disable_eval_during_finetuning", "--epochs", "1", "--warmup_epochs", "0"]


def _build_trainers(
    args: argparse.Namespace, datasets: Mapping[str, VideoClsDataset], device: torch.device, steps: int
) -> dict[str, AlternatingTrainer]:
    """Trainers of one and the same model that differ in where their batches come from."""
    classes = classes_of(args)
    model = finetuning.build_model(args, classes).to(device).train()
    runtime = Runtime(device, utils.pick_amp_dtype(args.amp_dtype, device))
    recipe = Recipe(
        runtime=runtime,
        alternation=Alternation(tuple(datasets), args.alternation_steps),
        steps_per_epoch=steps,
        clips_a_step=args.batch_size * args.update_freq,
        seed=args.seed,
        rank=0,
        log_interval=args.log_interval,
    )
    updater = create_updater(args, model, device, runtime.amp_dtype, recipe.clips_a_step, steps)
    mixups = {hand: create_mixup(args, classes[hand]) for hand in datasets}
    passes = {hand: ShuffledPasses(len(clips), (args.seed, hand)) for hand, clips in datasets.items()}
    batches = training_batches(recipe.alternation, passes, range(steps), args.batch_size, args.update_freq)
    keys = list(batches)
    criterion, to_clips = create_criterion(args), ClipsToInput(args.remode)
    pins = device.type == "cuda" and args.pin_mem
    return {
        name: AlternatingTrainer(model, source, updater, criterion, recipe, to_clips, mixups)
        for name, source in (
            ("from memory", from_memory(datasets, keys, pins)),
            ("from mp4", _from_files(datasets, keys, args.num_workers, pins)),
        )
    }


def from_memory(
    datasets: Mapping[str, VideoClsDataset], keys: list[list[ClipKey]], pins: bool
) -> Iterator[ClipBatch]:
    """The first batch of the hand whose turn it is, again and again."""
    first = {hand: next(batch for batch in keys if batch[0][0] == hand) for hand in {k[0][0] for k in keys}}
    held = {batch.hand: batch for batch in build_loader(datasets, first.values(), 0, pins)}
    return (held[batch[0][0]] for batch in keys)


def _from_files(
    datasets: Mapping[str, VideoClsDataset], keys: list[list[ClipKey]], num_workers: int, pins: bool
) -> Iterator[ClipBatch]:
    """The run's loader, whose workers start when the first batch is asked for."""
    yield from build_loader(datasets, keys, num_workers, pins)


def _stepping(trainer: AlternatingTrainer, steps: int) -> Run:
    """A turn: that many optimizer steps, until the device has made them."""
    device = trainer.recipe.runtime.device
    meters = HandMeters(trainer.recipe.alternation.hands, device)

    def make_steps(turn: int) -> None:
        for step in range(turn * steps, (turn + 1) * steps):
            trainer.optimizer_step(step, meters)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return make_steps


def _measure(runs: Mapping[str, Run], args: argparse.Namespace, num_workers: int) -> dict[str, list[float]]:
    """In turns, unless workers would fill their queues while the run from memory has its turn."""
    groups = [{name: run} for name, run in runs.items()] if num_workers else [runs]
    measured = [measure_in_turns(group, args.repeats, args.clock) for group in groups]
    return {name: seconds for group in measured for name, seconds in group.items()}


# ------------------------------------------------------------------------------------------- GPUs


def forward_flops(args: argparse.Namespace) -> int:
    """Operations of one clip's forward pass, counted on shapes alone.

    A multiplication and the addition after it are two, as in the peaks that makers state. ViT-B with
    16 frames of 224 x 224 takes 361e9.
    """
    with torch.device("meta"):
        model = finetuning.build_model(args, classes_of(args)).eval()
        clip = torch.empty(1, 3, args.num_frames, args.input_size, args.input_size)
    # Not on a CPU: its fused attention is not counted.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(clip, "lh")
    return counter.get_total_flops()


def model_flop_utilisation(clips_per_s: float, flops: float, peak: float) -> float:
    """The share of the device's peak that goes into the model: a step is three forward passes' work."""
    return 3 * flops * clips_per_s / peak


def add_gpu_figures(
    summary: dict[str, dict[str, float]], args: argparse.Namespace, device: torch.device
) -> dict[str, float]:
    """Adds `mfu` to the summary; returns the other figures."""
    flops, name = forward_flops(args), torch.cuda.get_device_name(device)
    if name in PEAK_FLOPS:
        for row in summary.values():
            row["mfu"] = model_flop_utilisation(row["clips_per_s"], flops, PEAK_FLOPS[name])
    else:
        say(f"no utilisation: the peak of {name} is not in the table")
    return {"gpu_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30, "forward_gflop": flops / 1e9}


def _print_figures(figures: Mapping[str, Any], args: argparse.Namespace, run: argparse.Namespace) -> None:
    size = f"{run.batch_size} x {run.num_sample} views of {run.num_frames}x{run.input_size}x{run.input_size}"
    print_summary(f"{args.steps} step(s) of {run.model}, {size}, videos of {args.size}", figures["steps"])
    for name, row in figures["steps"].items():
        utilisation = f", {row['mfu']:.1%} of the peak" if "mfu" in row else ""
        say(f"{name}: {row['clips_per_s']:.1f} clips/s{utilisation}")
    if "gpu_memory_gib" in figures:
        say(f"GPU memory: {figures['gpu_memory_gib']:.1f} GiB")
