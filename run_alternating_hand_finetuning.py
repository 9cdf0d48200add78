"""Fine-tunes one video Vision Transformer for both hands in turn, and tests it.

On a CPU, with sample data:   bash scripts/quickstart.sh
On one GPU, HA-ViD:           bash scripts/finetune/train_havid_alternating.sh
On the GPUs of a node:        torchrun --nproc_per_node 8 run_alternating_hand_finetuning.py
                                  --lh_data_path data/lh_v0 --rh_data_path data/rh_v0
                                  --finetune vit_b_k710_dl_from_giant.pth --output_dir output/run
The test of a checkpoint:     python run_alternating_hand_finetuning.py --eval --resume FILE
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import json
import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

import utils
from dataset.build import DATASETS, build_dataset, build_loader, evaluation_batches, resolve_num_classes
from dataset.class_names import names_beside_lists
from dataset.datasets import VideoClsDataset
from dataset.list_files import LIST_FLAGS, USUAL_LISTS, ListNames
from dataset.loader import VIDEO_BACKENDS, ClipReader
from dataset.masking_generator import MASKS, TokenMasks, batch_masks
from dataset.sampling import ShuffledPasses
from dataset.video import READER_VERSION
from dataset.volume_transforms import ClipsToInput
from dataset.worker_pool import nothing
from engine_for_alternating_finetuning import (
    AlternatingTrainer,
    Alternation,
    EpochHooks,
    HandMeters,
    Recipe,
    Runtime,
    Together,
    collect_bad_clips,
    final_test_alternating,
    steps_an_epoch,
    train_one_epoch_alternating,
    training_batches,
    until_stopped,
    validation_one_epoch_alternating,
)
from engine_for_finetuning import (
    OF_THE_MACHINE,
    STATE_KEY,
    ClipScores,
    Curves,
    Progress,
    TrainingState,
    checkpoint_to_evaluate,
    confusion_matrix,
    describe_metrics,
    draw_confusion,
    is_best_checkpoint,
    load_weights,
    name_weights,
    read_most_advanced,
    resume_candidates,
)
from models import DEFAULT_KEYS, HANDS, PretrainedError, find_weights, load_pretrained
from optim_factory import add_optimization_args, create_criterion, create_mixup, create_updater, uses_mixup
from utils import Distributed, UserError

log = logging.getLogger(__name__)

# ----------------------------------------------------------------------------------- arguments

NO_EFFECT = {
    "nb_classes": int,
    "local_rank": int,
    "crop_pct": float,
    "color_jitter": float,
    "resplit": None,
    "imagenet_default_mean_and_std": None,
    "dist_eval": None,
}
DEFAULT_INTERPOLATION = "bicubic"
# Lies in the output folder of a run that a scheduler stopped and that can go on.
PREEMPTED = "PREEMPTED"
_LONGEST_REPORT = 600  # seconds
# What `--eval --resume FILE` does not take over from the run that wrote the file.
NOT_INHERITED = {
    *("eval", "validation", "resume", "auto_resume", "output_dir", "log_dir", "finetune"),
    *("device", "num_workers", "pin_mem", "num_segments", "enable_deepspeed", "report"),
    *("dist_url", "dist_on_itp", "dist_timeout", "world_size", *NO_EFFECT),
}


def _add_model_args(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--model", default="vit_base_patch16_224_alternating", metavar="NAME", help="registered model")
    add("--depth", type=utils.count, help="number of blocks, if not the model's own")
    add("--tubelet_size", type=utils.count, default=2, help="frames a token")
    add("--input_size", type=utils.count, default=224, help="height and width of a view, pixels")
    add("--drop", type=utils.share, default=0.0, metavar="P", help="dropout probability")
    add("--attn_drop_rate", type=utils.share, default=0.0, metavar="P", help="dropout of attention weights")
    add("--drop_path", type=utils.share, default=0.3, metavar="P", help="stochastic depth of the last block")
    add("--head_drop_rate", type=utils.share, default=0.0, metavar="P", help="dropout before both heads")
    add("--init_scale", type=utils.amount, default=0.001, help="factor on both heads' initial weights")
    add("--norm_eps", type=utils.amount, default=1e-6, help="LayerNorm epsilon, unless what --finetune "
        "names says another; ADH-ViT trained with 1e-5")  # fmt: skip
    add("--use_cls", action="store_true", help="classify the first token, not the mean over tokens")
    add("--with_checkpoint", action="store_true", help="recompute activations: less memory, slower")
    add("--compile", action="store_true", help="compile the model for training (minutes at the start)")
    add("--train_mask_ratio", type=utils.share, default=0.0, help="share of tokens dropped in training")
    add("--train_mask_type", choices=MASKS, default="tube", help="which tokens are dropped")
    add("--finetune", default="", metavar="SOURCE", help="pretrained weights to start from: a file (.pth, "
        ".safetensors), a Hugging Face model's folder, or hf://org/repo[@revision][/path]")  # fmt: skip
    add("--model_key", default=DEFAULT_KEYS, help="keys of the weights in that file, first wins")
    add("--model_prefix", default="", help="use only weights whose name starts so")
    add("--allow_missing", action="store_true", help="start from a file whose backbone is not the model's: "
        "what it lacks starts from random values")  # fmt: skip


def _add_data_args(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("hands and data").add_argument
    for hand, name in zip(HANDS, ("left", "right"), strict=True):
        add(f"--{hand}_data_path", metavar="DIR", help=f"folder of the {name} hand's list files")
        add(f"--{hand}_data_root", default="", metavar="DIR", help="folder or URL of clips; default: lists'")
        add(f"--{hand}_num_classes", type=utils.count, help="classes; default: the data set's")
    for mode, flag in LIST_FLAGS.items():
        add(f"--{flag}", metavar="FILE", help=f"{mode} list of each hand, relative to the hand's data path; "
            f"{{hand}} in it stands for lh or rh; default: {USUAL_LISTS[mode]}")  # fmt: skip
    add("--one_stream", action="store_true", help="train and test the left hand's data alone")
    add("--data_set", choices=DATASETS, default="HAVID", help="sets the class counts; CUSTOM: by lists")
    add("--video_backend", choices=VIDEO_BACKENDS, default="auto",
        help="reader of video files; auto and pyav: ffmpeg's own frames of every file; decord: refuses the "
        "files that it would misread")  # fmt: skip
    add("--fname_tmpl", default="img_{:05}.jpg", metavar="TEMPLATE", help="pictures of a folder of frames")
    add("--start_idx", type=utils.natural, default=1, help="number of a folder's first picture")
    add("--clip_cache", default="", metavar="DIR", help="keep local copies of clips behind URLs there")
    add("--decode_timeout", type=utils.amount, default=60.0, metavar="SECONDS",
        help="a clip that takes longer counts as unreadable, if there are workers; 0: never")  # fmt: skip
    add("--max_bad_clips", type=utils.share, default=0.05, metavar="SHARE",
        help="stop when more of a hand's training list than this cannot be read")  # fmt: skip
    add("--num_workers", type=utils.natural, help="decoding processes a rank; default: CPUs / local ranks")
    utils.add_switch(add, "pin_mem", "copy batches to GPUs from pinned memory")
    add = parser.add_argument_group("sampling and views").add_argument
    add("--num_frames", type=utils.count, default=16, help="frames a view")
    add("--sampling_rate", type=utils.count, default=4, help="video frames between frames of a view")
    add("--sparse_sample", action="store_true", help="spread a view's frames over the whole clip (TSN)")
    add("--short_clips", choices=("published", "stretch"), default="published",
        help="too short a clip: repeat its last frame, or spread its frames evenly")  # fmt: skip
    add("--num_sample", type=utils.count, default=2, help="augmented views of each decoded clip in training")
    add("--short_side_size", type=utils.count, default=224, help="short side in evaluations, pixels")
    add("--test_num_segment", type=utils.count, default=5, help="temporal windows a clip in the test")
    add("--test_num_crop", type=utils.count, default=3, help="spatial crops a window in the test")
    add("--num_segments", type=int, default=1, help="only 1")


def _add_augmentation_args(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("augmentation").add_argument
    add("--aa", default="rand-m7-n4-mstd0.5-inc1", help="timm's RandAugment setting; none: off")
    add("--aug_impl", choices=("fast", "reference"), default="fast", help="fast: all geometry in one "
        "warp a frame; reference: frame by frame, one operation after the other")  # fmt: skip
    add("--train_interpolation", choices=("bilinear", "bicubic", "random"), default=DEFAULT_INTERPOLATION,
        help="of RandAugment's geometry (reference; fast: bilinear)")  # fmt: skip
    add("--hflip", choices=("on", "off"), default="off",
        help="mirror half of the views: wrong where left and right are the labels")  # fmt: skip
    add("--crop_scale", type=utils.share, nargs=2, default=[0.08, 1.0], metavar=("MIN", "MAX"),
        help="share of the frame's area that a training crop covers")  # fmt: skip
    add("--smoothing", type=utils.share, default=0.1, help="label smoothing")
    add("--reprob", type=utils.share, default=0.25, metavar="P", help="probability of random erasing")
    add("--remode", choices=("pixel", "rand", "const"), default="pixel", help="erase with what")
    add("--recount", type=utils.count, default=1, help="most boxes erased in a view")


def _add_evaluation_args(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("evaluation").add_argument
    add("--eval", action="store_true", help="only the multi-view test of a checkpoint")
    add("--validation", action="store_true", help="only the validation of a checkpoint")
    add("--disable_eval_during_finetuning", action="store_true", help="no validation after epochs")
    add("--test_weights", choices=("last", "best", "ema"), default="last", help="tested at the end")
    for name, kind in NO_EFFECT.items():
        options = {"action": "store_true"} if kind is None else {"type": kind}
        add(f"--{name}", default=None, help="has no effect", **options)


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = utils.Parser(
        description=__doc__.splitlines()[0], epilog="Flags keep the names of VideoMAE V2 and ADH-ViT."
    )
    for add_args in (
        _add_model_args, _add_data_args, _add_augmentation_args, add_optimization_args, _add_evaluation_args,
        utils.add_runtime_args,
    ):  # fmt: skip
        add_args(parser)
    return parser


def get_args(
    argv: Sequence[str] | None = None,
    local_world_size: int = 1,
    parser: argparse.ArgumentParser | None = None,
) -> argparse.Namespace:
    """Parses the command line; `--eval` and `--validation` take the rest from the checkpoint.

    Args:
        argv: the command line's words; None: this process's.
        local_world_size: processes that share this node's CPUs.
        parser: the command line's own, or one that a tool added flags or defaults to.

    Raises:
        UserError: contradictory or unusable flags.
    """
    parser = parser or get_parser()
    args = parser.parse_args(argv)
    if args.eval or args.validation:
        args = _inherit_args(parser, argv, args)
    args.output_dir = args.output_dir or "output"
    check_args(args)
    # Defaults that depend on the lists and on the machine; from here on the arguments do not change.
    for hand in active_hands(args):
        given, path = getattr(args, f"{hand}_num_classes"), getattr(args, f"{hand}_data_path")
        classes = resolve_num_classes(args.data_set, given, path, hand, list_names(args))
        setattr(args, f"{hand}_num_classes", classes)
    if args.num_workers is None:
        args.num_workers = max(1, len(os.sched_getaffinity(0)) // local_world_size)
    return args


def _inherit_args(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, given: argparse.Namespace
) -> argparse.Namespace:
    """What was given, and for the rest what the run used that wrote the checkpoint."""
    resume = checkpoint_to_evaluate(given)
    if given.test_weights == "best" and not is_best_checkpoint(resume):
        raise UserError(f"--test_weights best: {resume} holds other weights; give the best one")
    saved = utils.read_checkpoint(resume, lazy=True)
    if STATE_KEY in saved:  # one of ours; the published trainers' flags mean other things
        parser.set_defaults(**inherited_flags(saved["args"], given))
        given = parser.parse_args(argv)
    given.resume, given.output_dir = str(resume), given.output_dir or str(resume.parent)
    return given


def inherited_flags(saved: Mapping[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Return the flags of another run that apply if they are not given.

    The names of its lists are files of its folders, so they do not apply if another folder is given.

    Args:
        saved: all flags of that run.
        given: the command line, parsed without them.
    """
    other_folder = any(getattr(given, f"{hand}_data_path") is not None for hand in HANDS)
    left_out = NOT_INHERITED | (set(LIST_FLAGS.values()) if other_folder else set())
    return {name: value for name, value in saved.items() if name not in left_out}


def list_names(args: argparse.Namespace) -> ListNames:
    """Return the names of both hands' list files, by the flags."""
    return ListNames(**{mode: getattr(args, flag) for mode, flag in LIST_FLAGS.items()})


def args_of_run(argv: Sequence[str] | None, local_world_size: int) -> argparse.Namespace:
    """Return `get_args`, by default with the epsilon that the weights to start from are made for.

    These are the weights of `--finetune`, or of the checkpoint from which a restart resumes. The checkpoint
    replaces the file of `--finetune`, so the file is not read then.
    """
    args = get_args(argv, local_world_size)
    if not args.finetune or args.eval or args.validation:
        return args
    parser = get_parser()
    if path := checkpoint_to_resume(args):
        saved = utils.read_checkpoint(path, lazy=True)
        facts = saved["args"] if STATE_KEY in saved else {}
    else:
        facts = find_weights(args.finetune).facts
    parser.set_defaults(norm_eps=facts.get("norm_eps", args.norm_eps))
    return get_args(argv, local_world_size, parser)


def checkpoint_to_resume(args: argparse.Namespace) -> Path | None:
    """Return the file to resume from: `--resume`'s, or the most advanced checkpoint in the output folder.

    Raises:
        UserError: there are such files, and none can be read.
    """
    if args.resume:
        return Path(args.resume)
    found = resume_candidates(Path(args.output_dir), silent=True) if args.auto_resume else []
    return found[0] if found else None


def check_args(args: argparse.Namespace) -> None:
    """Refuses what cannot work before anything is built.

    Raises:
        UserError: the first contradiction, naming the flag.
    """
    missing = [hand for hand in active_hands(args) if not getattr(args, f"{hand}_data_path")]
    always = (
        (args.num_segments != 1, "--num_segments: only 1 is possible; use --num_frames"),
        (args.enable_deepspeed, "--enable_deepspeed: not supported; use torchrun and --with_checkpoint"),
        (missing, f"--{missing and missing[0]}_data_path is needed: the folder of that hand's lists"
         " (or train the left hand alone with --one_stream)"),
        (args.short_side_size < args.input_size, f"--short_side_size {args.short_side_size} is less than "
         f"--input_size {args.input_size}: views would not fit"),
        (args.num_frames % args.tubelet_size, f"--num_frames {args.num_frames} does not divide by "
         f"--tubelet_size {args.tubelet_size}"),
    )  # fmt: skip
    low, high = args.cutmix_minmax or (0, 1)
    in_training = (
        (uses_mixup(args) and args.batch_size * args.num_sample % 2, f"--batch_size {args.batch_size} x "
         f"--num_sample {args.num_sample} is odd: mixup wants an even batch (or --mixup 0 --cutmix 0)"),
        (low >= high, "--cutmix_minmax: wants MIN < MAX"),
        (args.smoothing == 1, "--smoothing 1: nothing would be left of the labels"),
        (args.warmup_steps <= 0 and args.warmup_epochs > args.epochs,
         f"--warmup_epochs {args.warmup_epochs} is more than --epochs {args.epochs}"),
        (args.start_epoch >= args.epochs, f"--start_epoch {args.start_epoch}: must be below --epochs"),
        (not 0 < args.crop_scale[0] <= args.crop_scale[1], "--crop_scale: wants 0 < MIN <= MAX <= 1"),
        (not args.layer_decay, "--layer_decay 0: must lie in (0, 1]"),
        (not args.weight_decay and args.weight_decay_end, "--weight_decay_end needs --weight_decay above 0"),
        (args.test_weights == "ema" and not args.model_ema, "--test_weights ema needs --model_ema"),
        (args.test_weights == "best" and (args.disable_eval_during_finetuning or not args.save_ckpt),
         "--test_weights best needs validation and checkpoints during training"),
    )  # fmt: skip
    for condition, message in always + (() if args.eval or args.validation else in_training):
        if condition:
            raise UserError(message)


def flags_without_effect(args: argparse.Namespace) -> list[str]:
    """What was given and does nothing in this run."""
    flags = [f"--{name}" for name in NO_EFFECT if getattr(args, name) is not None]
    if args.aug_impl == "fast" and args.train_interpolation != DEFAULT_INTERPOLATION:
        flags.append(f"--train_interpolation {args.train_interpolation} without --aug_impl reference")
    return flags


def active_hands(args: argparse.Namespace) -> tuple[str, ...]:
    """The hands that this run trains or tests."""
    return HANDS[:1] if args.one_stream else HANDS


# ------------------------------------------------------------------------------- what a run needs


def modes_of(args: argparse.Namespace) -> list[str]:
    """The modes that this run uses."""
    if args.eval or args.validation:
        return ["test"] * args.eval + ["validation"] * args.validation
    return ["train", *([] if args.disable_eval_during_finetuning else ["validation"]), "test"]


def build_datasets(
    args: argparse.Namespace, num_classes: Mapping[str, int], modes: Sequence[str] | None = None
) -> dict[str, dict[str, VideoClsDataset]]:
    """{mode: {hand: dataset}} of the given modes, or of those that this run uses."""
    settings = {
        "clip_len": args.num_frames,
        "frame_sample_rate": args.sampling_rate,
        "crop_size": args.input_size,
        "short_side_size": args.short_side_size,
        "test_num_segment": args.test_num_segment,
        "test_num_crop": args.test_num_crop,
        "sparse_sample": args.sparse_sample,
        "num_sample": args.num_sample,
        "short_clips": args.short_clips,
        "aa": args.aa,
        "train_interpolation": args.train_interpolation,
        "hflip": args.hflip == "on",
        "reprob": args.reprob,
        "recount": args.recount,
        "crop_scale": tuple(args.crop_scale),
        "aug_impl": args.aug_impl,
        "reader": make_reader(args),
        "seed": args.seed,
    }

    names = list_names(args)

    def dataset_of(mode: str, hand: str) -> VideoClsDataset:
        path, root = getattr(args, f"{hand}_data_path"), getattr(args, f"{hand}_data_root")
        try:
            return build_dataset(
                mode, path, root, hand=hand, num_classes=num_classes[hand], list_names=names, **settings
            )
        except ValueError as error:  # a setting that a transform refuses, with the flag's name
            raise UserError(str(error)) from None

    return {mode: {hand: dataset_of(mode, hand) for hand in num_classes} for mode in modes or modes_of(args)}


def make_reader(args: argparse.Namespace) -> ClipReader:
    """What opens clips, by the flags."""
    cache = Path(args.clip_cache) if args.clip_cache else None
    try:
        return ClipReader(args.video_backend, args.fname_tmpl, args.start_idx, cache)
    except ValueError as error:
        raise UserError(str(error)) from None


def build_model(args: argparse.Namespace, num_classes: Mapping[str, int]) -> nn.Module:
    """The two-headed model; a hand that does not take part has no head."""
    depth = {} if args.depth is None else {"depth": args.depth}
    try:
        return timm.create_model(
            args.model,
            pretrained=False,
            img_size=args.input_size,
            all_frames=args.num_frames,
            tubelet_size=args.tubelet_size,
            drop_rate=args.drop,
            attn_drop_rate=args.attn_drop_rate,
            drop_path_rate=args.drop_path,
            head_drop_rate=args.head_drop_rate,
            use_mean_pooling=not args.use_cls,
            init_scale=args.init_scale,
            norm_eps=args.norm_eps,
            with_cp=args.with_checkpoint,
            **{f"{hand}_num_classes": num_classes.get(hand, 0) for hand in HANDS},
            **depth,
        )
    except (ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"--model {args.model} --input_size {args.input_size}: {error}") from error


# ------------------------------------------------------------------------------------ evaluation


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Validates and tests sets of weights on this run's clips."""

    args: argparse.Namespace
    dist: Distributed
    datasets: Mapping[str, Mapping[str, VideoClsDataset]]
    runtime: Runtime
    output_dir: Path
    stop: utils.StopSignals | None = None  # None: signals end the program
    # Is shown every hand's merged clips, on rank 0, with the name of the group of curves that they belong to.
    look: Callable[[str, str, ClipScores], None] = lambda group, hand, clips: None

    @property
    def pins(self) -> bool:
        """Whether pinned memory is of use."""
        return self.args.pin_mem and self.dist.device.type == "cuda"

    @property
    def check(self) -> Callable[[], None]:
        """Raises Preempted if a signal wants the run to end."""
        return self.stop.check if self.stop else nothing

    @property
    def together(self) -> Together:
        """Encloses what all ranks end in the same way."""
        return self.stop.together if self.stop else contextlib.nullcontext

    def load(self, datasets: Mapping[str, VideoClsDataset], keys: Iterable[Any]) -> Iterator[Any]:
        """Batches of these keys; a signal ends the wait for one."""
        args = self.args
        return build_loader(datasets, keys, args.num_workers, self.pins, args.decode_timeout, self.check)

    @contextlib.contextmanager
    def _batches(self, mode: str, views: int) -> Iterator[Iterator[Any]]:
        datasets = self.datasets[mode]
        sizes = {hand: len(dataset) for hand, dataset in datasets.items()}
        clips = max(1, self.args.batch_size * self.args.num_sample // views)
        world = self.dist.world_size
        keys = evaluation_batches(sizes, clips, self.dist.rank, world)
        batches = self.load(datasets, keys)
        with utils.LiveLine(mode, total=sum(map(len, keys))) as line, contextlib.closing(batches):
            yield until_stopped(line.watch(batches), self.together, self.check)

    def validate(self, models: Mapping[str, nn.Module]) -> dict[str, dict[str, dict[str, float]]]:
        """{weights: {hand: metrics}} of one centred view a clip."""
        hands = tuple(self.datasets["validation"])
        with self._batches("validation", 1) as batches:
            result = validation_one_epoch_alternating(
                batches, models, hands, self.runtime, ClipsToInput(), self._look_at("val", models)
            )
        for name, metrics in result.items():
            log.info("validation (%s): %s", name, describe_metrics(metrics))
        return result

    def test(self, models: Mapping[str, nn.Module], weights: str) -> dict[str, Any]:
        """The multi-view test: writes the result files and `metrics.json`; returns what that says."""
        hands, to_clips = tuple(self.datasets["test"]), ClipsToInput()
        with self._batches("test", self.args.test_num_segment * self.args.test_num_crop) as batches:
            result = final_test_alternating(
                batches, models, hands, self.runtime, to_clips, self.output_dir, weights,
                self._look_at("test", models),
            )  # fmt: skip
        tested = {hand: result[hand] for hand in hands}
        log.info("test, merged over views (%s): %s", weights, describe_metrics(tested))
        log.info("written: %s", self.output_dir / "metrics.json")
        return result

    def report(self) -> None:
        """Has rank 0 make the report, while the others wait where all ranks meet next."""
        if self.args.report and self.dist.is_main:
            # Half of what the others wait at most: a report must not end a run.
            make_report(self.output_dir, min(_LONGEST_REPORT, 30 * self.args.dist_timeout))

    def _look_at(self, group: str, models: Mapping[str, nn.Module]) -> Callable[[str, str, ClipScores], None]:
        first = next(iter(models))
        return lambda name, *given: self.look(group if name == first else f"{group}_{name}", *given)


def make_report(output_dir: Path, longest: float = _LONGEST_REPORT) -> None:
    """Has a process of its own make the report of a tested run: where that fails, the run has not.

    Args:
        output_dir: of the run.
        longest: seconds after which it is given up.
    """
    # It works in this folder, which the run's relative paths are of; -P: nothing is imported from here.
    command = [sys.executable, "-P", "-m", "scripts.tools.report", str(output_dir.resolve())]
    paths = filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=longest, check=False
        )
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        problem = last if done.returncode else None
    except (OSError, subprocess.SubprocessError) as error:
        problem = str(error)
    if problem is None:
        log.info("written: %s", output_dir / "report.html")
    else:
        log.warning("no report: %s; python -m scripts.tools.report %s makes it", problem, output_dir)


# -------------------------------------------------------------------------------------- training


class Training:
    """A run's training: its state, and its epochs."""

    def __init__(
        self,
        args: argparse.Namespace,
        dist: Distributed,
        model: nn.Module,
        num_classes: Mapping[str, int],
        evaluator: Evaluator,
    ):
        self.args, self.dist = args, dist
        self.evaluator = dataclasses.replace(evaluator, look=self._draw)
        self.datasets, self.output_dir = evaluator.datasets["train"], evaluator.output_dir
        clips_a_step = args.batch_size * args.update_freq * dist.world_size
        steps_per_epoch = steps_an_epoch(map(len, self.datasets.values()), clips_a_step)
        runtime = evaluator.runtime
        self.updater = create_updater(
            args, model, runtime.device, runtime.amp_dtype, clips_a_step, steps_per_epoch
        )
        log.info(
            "%d epochs of %d steps of %d clips; a turn is %d steps; highest learning rate %.3g",
            *(args.epochs, steps_per_epoch, clips_a_step, args.alternation_steps),
            self.updater.lr_schedule.max(),
        )
        self.recipe = Recipe(
            runtime=runtime,
            alternation=Alternation(tuple(self.datasets), args.alternation_steps),
            steps_per_epoch=steps_per_epoch,
            clips_a_step=clips_a_step,
            seed=args.seed,
            rank=dist.rank,
            log_interval=args.log_interval,
            save_interval=args.save_ckpt_steps,
            cutmix_region=args.cutmix_region,
        )
        ema_device = torch.device("cpu") if args.model_ema_force_cpu else None
        self.state = TrainingState(
            model=model,
            optimizer=self.updater.optimizer,
            scaler=self.updater.scaler,
            ema=ModelEmaV3(model, args.model_ema_decay, device=ema_device) if args.model_ema else None,
            progress=Progress(
                step=args.start_epoch * steps_per_epoch,
                run=uuid.uuid4().hex,
                world_size=dist.world_size,
                lists={hand: dataset.clips.digest() for hand, dataset in self.datasets.items()},
                reader=READER_VERSION,
            ),
            steps_per_epoch=steps_per_epoch,
            args=vars(args),
            class_names=names_of_classes(args),
        )
        self.mixups = {hand: create_mixup(args, num_classes[hand]) for hand in self.datasets}
        self.curves: Curves | None = None
        self.batches: Any = None

    def resume(self, found: tuple[str, dict[str, Any]] | None) -> None:
        """Resume from a checkpoint, given by its path and content, if there is one."""
        same_steps = True
        if found:
            path, checkpoint = found
            progress = self.state.load(checkpoint, path)
            same_steps = progress.step == checkpoint.get(STATE_KEY, {}).get("step")
            # A best that another folder holds is of no use at this run's end.
            here = utils.on_main(lambda: [n for n in progress.best if self._checkpoint(n).exists()])
            progress.best = {name: progress.best[name] for name in here}
            self._learn_bad()
            log.info("resumed from %s at step %d", path, progress.step)
        folder = Path(self.args.log_dir or self.output_dir / "tensorboard")
        utils.on_main(lambda: utils.make_folder(folder, "--log_dir"))
        if self.dist.is_main:
            self.curves = Curves(folder, self.state.progress.step, same_steps)

    def fit(self) -> None:
        """Trains, validates and saves, epoch by epoch."""
        trainer, progress = self._trainer(), self.state.progress
        first_epoch = progress.step // self.recipe.steps_per_epoch - (progress.epoch_stats is not None)
        epoch_log = utils.EpochLog(self.output_dir / "log.txt", first_epoch)
        hooks = EpochHooks(self._record, self._save_step, functools.partial(self._collect_bad, trainer))
        for epoch in range(first_epoch, self.args.epochs):
            if progress.epoch_stats is None:
                self._train_epoch(trainer, epoch, hooks)
            row = {"epoch": epoch, **{f"train_{name}": v for name, v in progress.epoch_stats.items()}}
            better = self._validate_or_stop(row)
            progress.epoch_stats = None
            kept = (epoch + 1) % self.args.save_ckpt_freq == 0 or epoch + 1 == self.args.epochs
            if self.dist.is_main:
                # Before the checkpoint: a run that stops in between makes the epoch and its row again.
                epoch_log.append(row)
            # The file that a restart goes on from comes last: what it claims of the others is then true.
            self._save(*better, *([str(epoch)] if kept else []), "last")

    def _learn_bad(self) -> None:
        """Spares this rank's loader from trying clips that any rank could not read."""
        progress = self.state.progress
        for hand, dataset in self.datasets.items():
            reasons = progress.bad_clips.get(hand, {})
            lasting = filter(reasons.__contains__, progress.lasting.get(hand, []))
            dataset.known_bad.update({name: reasons[name] for name in lasting})

    def _collect_bad(self, trainer: AlternatingTrainer) -> None:
        lengths = {hand: len(clips) for hand, clips in self.datasets.items()}
        progress, most = self.state.progress, self.args.max_bad_clips
        lasting = collect_bad_clips(trainer, progress.bad_clips, lengths, most, self.output_dir)
        for hand, names in lasting.items():
            progress.lasting[hand] = list(dict.fromkeys(progress.lasting.get(hand, []) + names))
        self._learn_bad()

    def _train_epoch(self, trainer: AlternatingTrainer, epoch: int, hooks: EpochHooks) -> None:
        progress = self.state.progress
        # Sums are added up over ranks when they are read, so one rank takes the saved ones.
        sums = progress.epoch_sums if self.dist.is_main else None
        meters = HandMeters(tuple(self.datasets), self.dist.device, sums)
        progress.epoch_stats = train_one_epoch_alternating(trainer, epoch, progress.step, meters, hooks)
        progress.step, progress.epoch_sums = (epoch + 1) * self.recipe.steps_per_epoch, None

    def test(self) -> None:
        """The final test, and what TensorBoard shows of it."""
        weights = self.args.test_weights
        result = self.evaluator.test(self._weights_to_test(), weights)
        sets = {"test": result, "test_ema": (weights != "ema" and result["ema"]) or {}}
        for group, metrics in sets.items():
            self._record(self.state.progress.step, _flat(metrics), group)
        if self.curves is not None:
            flags = {
                name: value
                for name, value in vars(self.args).items()
                if name not in OF_THE_MACHINE | NOT_INHERITED
                and value is not None
                and not name.endswith(("_data_path", "_data_root"))  # may be URLs with passwords
            }
            shown = [
                f"test/{hand}_{name}" for hand in self.datasets for name in ("top1", "top5", "mean_class_acc")
            ]
            self.curves.add_hparams(self.state.progress.step, flags, ["test/mean_top1", *shown])
        self.evaluator.report()  # last: it may take long, and the rest is on disk by then

    def _weights_to_test(self) -> dict[str, nn.Module]:
        """The sets of weights of the final test, the one that `--test_weights` names first."""
        model, ema = self.state.model, self._ema_on_device()
        if self.args.test_weights == "best":
            path = self._checkpoint("best")
            checkpoint = utils.on_main(lambda: utils.read_checkpoint(path))
            load_weights(model, checkpoint, "model", path)
            if "model_ema" not in checkpoint:  # of a time before --model_ema was given
                ema = None
            if ema is not None:
                load_weights(ema, checkpoint, "model_ema", path)
        return name_weights(model, ema, first=self.args.test_weights)

    def close(self) -> None:
        """Ends the loader's processes and closes the file of the curves."""
        if self.batches is not None:
            self.batches.close()
        if self.curves is not None:
            self.curves.close()

    def _trainer(self) -> AlternatingTrainer:
        args, recipe, model = self.args, self.recipe, self.state.model
        passes = {
            hand: ShuffledPasses(len(clips), (args.seed, hand)) for hand, clips in self.datasets.items()
        }
        keys = training_batches(
            recipe.alternation,
            passes,
            range(self.state.progress.step, args.epochs * recipe.steps_per_epoch),
            args.batch_size,
            args.update_freq,
            self.dist.rank,
            self.dist.world_size,
        )
        self.batches = self.evaluator.load(self.datasets, keys)
        trained = torch.compile(model) if args.compile else model
        return AlternatingTrainer(
            utils.wrap_distributed(trained, self.dist, model.get_classifier()),
            self.batches,
            self.updater,
            create_criterion(args),
            recipe,
            ClipsToInput(args.remode),
            self.mixups,
            self.state.ema,
            make_token_masks(args, model),
            self.evaluator.together,
        )

    def _save(self, *names: str) -> None:
        if self.args.save_ckpt and self.dist.is_main:
            self.state.save(self.output_dir, *names)

    def _record(self, step: int, values: Mapping[str, float], group: str = "train") -> None:
        if self.curves is not None:
            self.curves.add(step, {f"{group}/{name}": value for name, value in values.items()})

    def _draw(self, group: str, hand: str, clips: ClipScores) -> None:
        if self.curves is not None:
            picture = draw_confusion(confusion_matrix(clips))
            self.curves.add_picture(self.state.progress.step, f"{group}/{hand}_confusion", picture)

    def _checkpoint(self, name: str) -> Path:
        return self.output_dir / f"checkpoint-{name}.pth"

    def _save_step(self, steps: int, sums: np.ndarray, stops: bool) -> None:
        progress = self.state.progress
        progress.step, progress.epoch_sums = steps, sums.tolist()
        self._save("last" if stops else f"step-{steps}")
        if self.args.save_ckpt and self.dist.is_main:
            utils.prune_step_checkpoints(self.output_dir, self.args.keep_ckpts)

    def _validate_or_stop(self, row: dict[str, Any]) -> list[str]:
        try:
            return self._validate(row)
        except utils.Preempted:
            self._save("last")  # trained, but not validated
            raise

    def _validate(self, row: dict[str, Any]) -> list[str]:
        """Adds the validation's figures to the epoch's row; returns names of the best checkpoints."""
        if self.args.disable_eval_during_finetuning:
            return []
        result = self.evaluator.validate(name_weights(self.state.model, self._ema_on_device()))
        for weights, group in (("raw", "val"), ("ema", "val_ema")):
            values = _flat(result.get(weights, {}))
            row |= {f"{group}_{name}": value for name, value in values.items()}
            self._record(self.state.progress.step, values, group)
        scores = {f"best-{hand}": metrics["top1"] for hand, metrics in result["raw"].items()}
        scores["best"] = float(np.mean(list(scores.values())))
        best = self.state.progress.best
        better = [name for name, score in scores.items() if score > best.get(name, -1.0)]
        best |= {name: scores[name] for name in better}
        return better

    def _ema_on_device(self) -> nn.Module | None:
        ema, device = self.state.ema, self.dist.device
        if ema is None or not self.args.model_ema_force_cpu:
            return ema and ema.module
        return copy.deepcopy(ema.module).to(device)


def _flat(metrics: Mapping[str, Any]) -> dict[str, float]:
    """{hand_name: value} of each hand's metrics, and what is of both."""
    both = {name: value for name, value in metrics.items() if isinstance(value, float)}
    hands = {hand: metrics[hand] for hand in HANDS if hand in metrics}
    return {f"{hand}_{name}": value for hand, m in hands.items() for name, value in m.items()} | both


def names_of_classes(args: argparse.Namespace) -> dict[str, dict[int, str]]:
    """{hand: {label: name}} by the `mapping.txt` beside each hand's lists; what cannot be read is said."""
    names = {}
    for hand in active_hands(args):
        try:
            names[hand] = names_beside_lists(getattr(args, f"{hand}_data_path"))
        except UserError as error:
            log.warning("checkpoints will not name the classes of %s: %s", hand, error)
    return names


def make_token_masks(args: argparse.Namespace, model: nn.Module) -> TokenMasks | None:
    """What draws the tokens to drop in training, or None if all are kept."""
    if not args.train_mask_ratio:
        return None
    try:
        return batch_masks(args.train_mask_type, model.patch_embed.grid_size, args.train_mask_ratio)
    except ValueError as error:
        raise UserError(f"--train_mask_ratio {args.train_mask_ratio}: {error}") from None


# ------------------------------------------------------------------------------------------ main


def evaluate(args: argparse.Namespace, model: nn.Module, evaluator: Evaluator) -> None:
    """`--eval` and `--validation`: the checkpoint's weights, and their moving average if it has one."""
    checkpoint = utils.on_main(lambda: utils.read_checkpoint(args.resume))
    load_weights(model, checkpoint, "model", args.resume)
    ema = None
    if "model_ema" in checkpoint or args.test_weights == "ema":
        ema = copy.deepcopy(model)
        load_weights(ema, checkpoint, "model_ema", args.resume)
    log.info("evaluating %s", args.resume)
    if args.validation:
        result = evaluator.validate(name_weights(model, ema))
        utils.on_main(lambda: utils.write_json(evaluator.output_dir / "validation.json", result))
    if args.eval:
        path = evaluator.output_dir / "args.json"
        utils.on_main(lambda: _is_of_training(path) or utils.write_json(path, vars(args)))
        of_file = "best" if is_best_checkpoint(Path(args.resume)) else "last"
        weights = "ema" if args.test_weights == "ema" else of_file
        evaluator.test(name_weights(model, ema, first=weights), weights)
        evaluator.report()


def _is_of_training(path: Path) -> bool:
    """Whether an `args.json` is there that is not of an evaluation: its run goes on by it."""
    try:
        return not json.loads(path.read_text("utf-8")).get("eval")
    except (OSError, ValueError, AttributeError):
        return False


def run(argv: Sequence[str] | None, dist: Distributed) -> None:
    """The story of a run: arguments, data, model, optimizer; train, validate, test."""
    args = utils.on_main(lambda: args_of_run(argv, dist.local_world_size))
    output_dir = Path(args.output_dir)
    utils.on_main(lambda: utils.make_folder(output_dir, "--output_dir"))
    utils.setup_logging(dist.rank, output_dir)
    for flag in flags_without_effect(args):
        log.warning("%s has no effect", flag)
    if args.deterministic:
        utils.make_deterministic()
    utils.seed_global_generators(args.seed)

    num_classes = {hand: getattr(args, f"{hand}_num_classes") for hand in active_hands(args)}
    datasets = build_datasets(args, num_classes)
    model = build_model(args, num_classes).to(dist.device)
    runtime = Runtime(dist.device, utils.pick_amp_dtype(args.amp_dtype, dist.device))
    evaluator = Evaluator(args, dist, datasets, runtime, output_dir)
    mode = "eval" if args.eval else "validation" if args.validation else "train"
    utils.record_start(output_dir / "environment.json", mode, argv, dist)
    if args.eval or args.validation:
        return evaluate(args, model, evaluator)
    return train(args, dist, model, num_classes, evaluator)


def train(
    args: argparse.Namespace,
    dist: Distributed,
    model: nn.Module,
    num_classes: Mapping[str, int],
    evaluator: Evaluator,
) -> None:
    """Training, or the rest of it, and the final test.

    Raises:
        Preempted: the scheduler ends the job; all that is needed to go on is saved.
    """
    mark = evaluator.output_dir / PREEMPTED
    utils.on_main(lambda: mark.unlink(missing_ok=True))
    utils.on_main(lambda: utils.remove_unfinished(evaluator.output_dir))
    with contextlib.closing(utils.StopSignals(args.dist_timeout)) as stop:
        evaluator = dataclasses.replace(evaluator, stop=stop)
        training = start_training(args, dist, model, num_classes, evaluator)
        utils.on_main(lambda: utils.write_json(evaluator.output_dir / "args.json", vars(args)))
        try:
            training.fit()
            training.test()
        except utils.Preempted:
            if args.save_ckpt:
                step = training.state.progress.step
                utils.on_main(lambda: utils.write_text(mark, f"step {step}\n"))
                again = f"the same command{' without --resume' if args.resume else ''} goes on from there"
            else:
                again = "nothing was saved (--no_save_ckpt)"
            log.warning("stopped by a signal after a whole step; %s", again)
            raise
        finally:
            training.close()


def start_training(
    args: argparse.Namespace,
    dist: Distributed,
    model: nn.Module,
    num_classes: Mapping[str, int],
    evaluator: Evaluator,
) -> Training:
    """Return the training at its start: with `--finetune`'s weights, or the checkpoint that replaces them."""
    found = utils.on_main(lambda: read_checkpoint_to_resume(args))
    if found and args.finetune:
        log.info("%s replaces --finetune %s, which is not read", found[0], args.finetune)
    elif args.finetune:
        for line in load_pretrained_file(model, args).splitlines():
            log.info(line)
    training = Training(args, dist, model, num_classes, evaluator)
    training.resume(found)
    return training


def read_checkpoint_to_resume(args: argparse.Namespace) -> tuple[str, dict[str, Any]] | None:
    """Read the checkpoint to resume from; damaged ones in the output folder are set aside.

    Returns:
        Its path and content, or None if training begins.
    """
    if args.resume:
        return args.resume, utils.read_checkpoint(args.resume)
    return read_most_advanced(Path(args.output_dir)) if args.auto_resume else None


def load_pretrained_file(model: nn.Module, args: argparse.Namespace) -> str:
    """Starts the model from `--finetune`; returns what was loaded, as a short block."""

    def read() -> tuple[dict[str, Any], float | None]:
        source = find_weights(args.finetune)
        source.check(model)  # before all the weights are fetched
        return source.read(), source.facts.get("norm_eps")

    checkpoint, norm_eps = utils.on_main(read)
    try:
        report = load_pretrained(model, checkpoint, args.model_key, args.model_prefix, args.allow_missing)
    except PretrainedError as error:
        raise UserError(f"--finetune {args.finetune}: {error}") from None
    lines = f"{args.finetune}: {report.summary()}"
    if norm_eps is not None:
        other = f"by --norm_eps; the weights are made for {norm_eps:g}"
        whose = "the weights' own" if norm_eps == args.norm_eps else other
        lines += f"\n  LayerNorm epsilon: {args.norm_eps:g}, {whose}"
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    utils.setup_logging(int(os.environ.get("RANK", 0)))
    known, _ = get_parser().parse_known_args(argv)
    try:
        dist = utils.init_distributed_mode(
            known.device, known.dist_url, known.dist_on_itp, known.world_size, known.dist_timeout
        )
        run(argv, dist)
    except UserError as error:
        log.error("error: %s", error)
        return 1
    except utils.Preempted:
        return utils.PREEMPTED_EXIT_CODE
    except KeyboardInterrupt:
        log.warning("stopped from the keyboard; the same command goes on from the last checkpoint")
        return 130
    except Exception as error:
        explanation = utils.explain(error)
        if explanation is None:
            log.exception("error: this should not have happened")
        else:
            log.error("error: %s", explanation)
        return 1
    utils.leave_process_group()
    return 0


if __name__ == "__main__":
    utils.exit_process(main())
