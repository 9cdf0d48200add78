"""The model alone: fused attention, depth, and a resting head under two processes."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

import models  # noqa: F401 - registers the models with timm
from scripts.tools.benchmark.timing import Run, Summary, measure_in_turns, print_summary, summarize
from utils import Distributed, average_gradients, leave_process_group, wrap_distributed, write_json


def benchmark_model(args: argparse.Namespace) -> Summary:
    """Forward and backward of one batch with unfused and with fused attention."""
    torch.manual_seed(0)
    model = timm.create_model(args.model, depth=args.depth, lh_num_classes=75, rh_num_classes=75)
    clips = torch.randn(args.batch_size, 3, 16, 224, 224)
    labels = torch.randint(0, 75, (args.batch_size,))

    def step(backend: SDPBackend) -> None:
        with sdpa_kernel(backend):
            torch.nn.functional.cross_entropy(model(clips, "lh"), labels).backward()
        model.zero_grad()

    runs = {
        "unfused attention": lambda turn: step(SDPBackend.MATH),
        "fused attention": lambda turn: step(SDPBackend.FLASH_ATTENTION),
    }
    summary = summarize(measure_in_turns(runs, args.repeats, args.clock), "unfused attention")
    title = f"{args.model}, {args.depth} blocks, {args.batch_size} clips of 16x224x224, forward and backward"
    print_summary(f"{title}, {torch.get_num_threads()} thread(s), fp32", summary)
    return summary


def benchmark_depth(args: argparse.Namespace) -> Summary:
    """Forward and backward of a quickstart's batch with models of several depths."""
    torch.manual_seed(0)
    clips, labels = torch.randn(32, 3, 4, 64, 64), torch.randint(0, 8, (32,))

    def stepper(depth: int) -> Run:
        name = "vit_tiny_patch16_224_alternating"
        model = timm.create_model(name, depth=depth, img_size=64, all_frames=4)

        def step(turn: int) -> None:
            torch.nn.functional.cross_entropy(model(clips, "lh"), labels).backward()
            model.zero_grad()

        return step

    runs = {f"{depth} blocks": stepper(depth) for depth in args.depths}
    summary = summarize(measure_in_turns(runs, args.repeats, args.clock), f"{max(args.depths)} blocks")
    title = "the tiny model, 32 clips of 4x64x64, forward and backward"
    print_summary(f"{title}, {torch.get_num_threads()} thread(s), fp32", summary)
    return summary


def benchmark_heads(args: argparse.Namespace) -> Summary:
    """A training step of two gloo processes, one of whose heads rests, by what keeps that head still."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_measure_heads, (args, Path(folder)), nprocs=2)
        seconds = json.loads((Path(folder) / "seconds.json").read_text())
    summary = summarize(seconds, "find_unused_parameters")
    size = f"{args.batch_size} clips of 16x{args.input_size}x{args.input_size}"
    title = f"{args.model}, {args.depth} blocks, {size} a process, two gloo processes"
    print_summary(f"{title}, forward, backward and averaging, fp32", summary)
    return summary


def _measure_heads(rank: int, args: argparse.Namespace, folder: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    torch.manual_seed(0)
    clips = torch.randn(args.batch_size, 3, 16, args.input_size, args.input_size)
    labels = torch.randint(0, 75, (args.batch_size,))

    def stepper(wrap: Callable[[torch.nn.Module], torch.nn.Module], apart: bool) -> Run:
        sizes = {"img_size": args.input_size, "lh_num_classes": 75, "rh_num_classes": 75}
        model = timm.create_model(args.model, depth=args.depth, **sizes)
        wrapped = wrap(model)

        def step(turn: int) -> None:
            torch.nn.functional.cross_entropy(wrapped(clips, "lh"), labels).backward()
            if apart:
                average_gradients(model.get_classifier("lh").parameters())
            assert all(parameter.grad is None for parameter in model.get_classifier("rh").parameters())
            model.zero_grad()

        return step

    def with_heads_apart(model: torch.nn.Module) -> torch.nn.Module:
        return wrap_distributed(model, Distributed(rank, 2), model.get_classifier())

    runs = {
        "find_unused_parameters": stepper(
            partial(DistributedDataParallel, find_unused_parameters=True), apart=False
        ),
        "heads apart": stepper(with_heads_apart, apart=True),
    }
    seconds = measure_in_turns(runs, args.repeats, args.clock)
    if rank == 0:
        write_json(folder / "seconds.json", seconds)
    leave_process_group()
