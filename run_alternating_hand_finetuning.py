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
import copy
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from tensorboardX import SummaryWriter
from timm.data.mixup import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import utils
from dataset.build import (
    DATASETS,
    build_dataset,
    build_loader,
    evaluation_batches,
    resolve_num_classes,
)
from dataset.datasets import VideoClsDataset
from dataset.masking_generator import MASKS
from dataset.sampling import ShuffledPasses
from dataset.volume_transforms import ClipsToInput
from engine_for_alternating_finetuning import (
    Alternation,
    GradientUpdater,
    HandMeters,
    Recipe,
    Runtime,
    TrainingEpoch,
    final_test_alternating,
    train_one_epoch_alternating,
    training_batches,
    validation_one_epoch_alternating,
)
from models import HANDS, PretrainedError, load_pretrained
from optim_factory import build_layer_decay, create_optimizer, get_num_layer_for_vit
from utils import Distributed, UserError

log = logging.getLogger(__name__)

# Where a checkpoint keeps what only this project knows: steps, best results, the epoch's sums.
STATE_KEY = "alternating"

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
# What `--eval --resume FILE` does not take over from the run that wrote the file.
NOT_INHERITED = {
    *("eval", "validation", "resume", "auto_resume", "output_dir", "log_dir", "finetune"),
    *("device", "num_workers", "pin_mem", "test_weights", "num_segments", "enable_deepspeed"),
    *("dist_url", "dist_on_itp", "dist_timeout", "world_size", *NO_EFFECT),
}


def _add_model_args(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add(
        "--model",
        default="vit_base_patch16_224_alternating",
        metavar="NAME",
        help="registered model",
    )
    add("--depth", type=int, help="number of blocks, if not the model's own")
    add("--tubelet_size", type=int, default=2, help="frames a token")
    add("--input_size", type=int, default=224, help="height and width of a view, pixels")
    add("--drop", type=float, default=0.0, metavar="P", help="dropout probability")
    add(
        "--attn_drop_rate",
        type=float,
        default=0.0,
        metavar="P",
        help="dropout of attention weights",
    )
    add(
        "--drop_path",
        type=float,
        default=0.3,
        metavar="P",
        help="stochastic depth of the last block",
    )
    add("--head_drop_rate", type=float, default=0.0, metavar="P", help="dropout before both heads")
    add("--init_scale", type=float, default=0.001, help="factor on both heads' initial weights")
    add("--norm_eps", type=float, default=1e-6, help="LayerNorm epsilon; ADH-ViT trained with 1e-5")
    add("--use_cls", action="store_true", help="classify the first token, not the mean over tokens")
    add("--with_checkpoint", action="store_true", help="recompute activations: less memory, slower")
    add("--train_mask_ratio", type=float, default=0.0, help="share of tokens dropped in training")
    add("--train_mask_type", choices=MASKS, default="tube", help="which tokens are dropped")
    add("--finetune", default="", metavar="FILE", help="pretrained weights to start from")
    add("--model_key", default="model|module", help="keys of the weights in that file, first wins")
    add("--model_prefix", default="", help="use only weights whose name starts so")


def _add_data_args(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("hands and data").add_argument
    for hand, name in zip(HANDS, ("left", "right"), strict=True):
        add(f"--{hand}_data_path", metavar="DIR", help=f"folder of the {name} hand's list files")
        add(
            f"--{hand}_data_root",
            default="",
            metavar="DIR",
            help="clips' folder; default: the lists'",
        )
        add(f"--{hand}_num_classes", type=int, help="classes; default: the data set's")
    add("--one_stream", action="store_true", help="train and test the left hand's data alone")
    add(
        "--data_set",
        choices=DATASETS,
        default="HAVID",
        help="sets the class counts; CUSTOM: by lists",
    )
    add("--num_workers", type=int, help="decoding processes a rank; default: CPUs / local ranks")
    _add_switch(add, "pin_mem", "copy batches to GPUs from pinned memory")
    add = parser.add_argument_group("sampling and views").add_argument
    add("--num_frames", type=int, default=16, help="frames a view")
    add("--sampling_rate", type=int, default=4, help="video frames between frames of a view")
    add(
        "--sparse_sample",
        action="store_true",
        help="spread a view's frames over the whole clip (TSN)",
    )
    add("--short_clips", choices=("published", "stretch"), default="published",
        help="too short a clip: repeat its last frame, or spread its frames evenly")  # fmt: skip
    add(
        "--num_sample", type=int, default=2, help="augmented views of each decoded clip in training"
    )
    add("--short_side_size", type=int, default=224, help="short side in evaluations, pixels")
    add("--test_num_segment", type=int, default=5, help="temporal windows a clip in the test")
    add("--test_num_crop", type=int, default=3, help="spatial crops a window in the test")
    add("--num_segments", type=int, default=1, help="only 1")


def _add_augmentation_args(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("augmentation").add_argument
    add("--aa", default="rand-m7-n4-mstd0.5-inc1", help="timm's RandAugment setting; none: off")
    add("--train_interpolation", choices=("bilinear", "bicubic", "random"), default="bicubic",
        help="of RandAugment's geometry")  # fmt: skip
    add("--hflip", choices=("on", "off"), default="off",
        help="mirror half of the views: wrong where left and right are the labels")  # fmt: skip
    add("--smoothing", type=float, default=0.1, help="label smoothing")
    add("--reprob", type=float, default=0.25, metavar="P", help="probability of random erasing")
    add("--remode", choices=("pixel", "rand", "const"), default="pixel", help="erase with what")
    add("--recount", type=int, default=1, help="most boxes erased in a view")
    add = parser.add_argument_group("mixup").add_argument
    add("--mixup", type=float, default=0.8, metavar="ALPHA", help="0: no mixup")
    add("--cutmix", type=float, default=1.0, metavar="ALPHA", help="0: no CutMix")
    add("--cutmix_minmax", type=float, nargs=2, help="least and greatest share; switches CutMix on")
    add("--cutmix_region", choices=("frame", "published"), default="frame",
        help="cut a box of every frame; published: of time and height, as there")  # fmt: skip
    add("--mixup_prob", type=float, default=1.0, metavar="P", help="probability of either")
    add(
        "--mixup_switch_prob",
        type=float,
        default=0.5,
        metavar="P",
        help="of CutMix, if both are on",
    )
    add("--mixup_mode", choices=("batch", "pair", "elem"), default="batch", help="draw for what")


def _add_optimization_args(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("optimization").add_argument
    add("--batch_size", type=int, default=4, help="clips a micro step and GPU")
    add("--epochs", type=int, default=50, help="epochs of the longer list over both hands' steps")
    add("--update_freq", type=int, default=1, help="micro steps a step (gradient accumulation)")
    add(
        "--alternation_steps",
        type=int,
        default=50,
        help="optimizer steps before the other hand's turn",
    )
    add("--opt", default="adamw", help="timm optimizer")
    add("--opt_eps", type=float, default=1e-8, help="its epsilon")
    add("--opt_betas", type=float, nargs="+", default=[0.9, 0.999], help="its betas")
    add("--momentum", type=float, default=0.9, help="of SGD")
    add("--clip_grad", type=float, default=5.0, help="greatest gradient norm; 0: no clipping")
    add("--weight_decay", type=float, default=0.1, help="of weights with two or more dimensions")
    add("--weight_decay_end", type=float, help="its value at the end (cosine); default: constant")
    add(
        "--lr",
        type=float,
        default=1e-3,
        help="learning rate for 256 clips a step; scaled by the batch",
    )
    add(
        "--layer_decay", type=float, default=0.9, help="factor on the rate from layer to layer down"
    )
    add("--warmup_lr", type=float, default=1e-8, help="rate of the first step, scaled like --lr")
    add("--min_lr", type=float, default=1e-6, help="rate at the end, scaled like --lr")
    add("--warmup_epochs", type=int, default=5, help="epochs of linear warm-up")
    add(
        "--warmup_steps",
        type=int,
        default=-1,
        help="steps of warm-up; wins over epochs if positive",
    )
    add(
        "--model_ema", action="store_true", help="keep and evaluate a moving average of the weights"
    )
    add("--model_ema_decay", type=float, default=0.9999, help="its decay a step")
    add("--model_ema_force_cpu", action="store_true", help="keep it in the host's memory")


def _add_run_args(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("evaluation").add_argument
    add("--eval", action="store_true", help="only the multi-view test of a checkpoint")
    add("--validation", action="store_true", help="only the validation of a checkpoint")
    add("--disable_eval_during_finetuning", action="store_true", help="no validation after epochs")
    add("--test_weights", choices=("last", "best", "ema"), default="last", help="tested at the end")
    add = parser.add_argument_group("checkpoints and logs").add_argument
    add("--output_dir", default="", metavar="DIR", help="all that is written; default: output, or the "
        "tested checkpoint's folder")  # fmt: skip
    add("--log_dir", metavar="DIR", help="TensorBoard events; default: OUTPUT_DIR/tensorboard")
    add("--log_interval", type=int, default=10, help="steps from one progress line to the next")
    add("--resume", default="", metavar="FILE", help="checkpoint to go on from or to test")
    _add_switch(add, "auto_resume", "go on from the newest checkpoint in the output folder")
    _add_switch(add, "save_ckpt", "write checkpoints")
    add("--save_ckpt_freq", type=int, default=10, help="epochs between kept checkpoints")
    add("--save_ckpt_steps", type=int, default=0, help="steps between step checkpoints; 0: none")
    add("--keep_ckpts", type=int, default=2, help="step checkpoints to keep")
    add("--start_epoch", type=int, default=0, help="first epoch, where no checkpoint says it")
    add = parser.add_argument_group("runtime").add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--seed", type=int, default=0, help="seed of everything random")
    add("--amp_dtype", choices=("auto", "bf16", "fp16", "fp32"), default="auto",
        help="precision; auto: bf16 where native, else fp16; fp32 on CPUs")  # fmt: skip
    add("--deterministic", action="store_true", help="repeatable GPU kernels, slower")
    add("--dist_url", default="env://", help="where the processes meet")
    add("--dist_on_itp", action="store_true", help="take ranks from Open MPI")
    add("--dist_timeout", type=float, default=60, help="longest wait for another process, minutes")
    add("--world_size", type=int, help="number of processes that must be there")
    add("--enable_deepspeed", action="store_true", help="refused")
    for name, kind in NO_EFFECT.items():
        options = {"action": "store_true"} if kind is None else {"type": kind}
        add(f"--{name}", default=None, help="has no effect", **options)


def _add_switch(add: Callable[..., Any], name: str, help_text: str) -> None:
    add(f"--{name}", action="store_true", default=True, help=help_text)
    add(f"--no_{name}", action="store_false", dest=name, help=f"not: {help_text}")


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Flags keep the names of VideoMAE V2 and ADH-ViT.",
        formatter_class=lambda prog: argparse.ArgumentDefaultsHelpFormatter(prog, width=110),
    )
    for add_args in (
        _add_model_args, _add_data_args, _add_augmentation_args, _add_optimization_args, _add_run_args,
    ):  # fmt: skip
        add_args(parser)
    return parser


def get_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; `--eval` and `--validation` take the rest from the checkpoint.

    Raises:
        UserError: contradictory or unusable flags.
    """
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.eval or args.validation:
        args.resume = str(_checkpoint_to_evaluate(args))
        saved = utils.read_checkpoint(args.resume, lazy=True)
        if STATE_KEY in saved:  # one of ours; the published trainers' flags mean other things
            inherited = {k: v for k, v in saved["args"].items() if k not in NOT_INHERITED}
            parser.set_defaults(**inherited, resume=args.resume)
            args = parser.parse_args(argv, argparse.Namespace(resume=args.resume))
        args.output_dir = args.output_dir or str(Path(args.resume).parent)
    args.output_dir = args.output_dir or "output"
    check_args(args)
    return args


def _checkpoint_to_evaluate(args: argparse.Namespace) -> Path:
    """The file that `--resume` names, or the one in the output folder that `--test_weights` means."""
    if args.resume:
        return Path(args.resume)
    folder = Path(args.output_dir or "output")
    found = utils.resume_candidates(folder)
    if args.test_weights == "best":
        found = [path for path in found if path.name == "checkpoint-best.pth"]
    if not found:
        raise UserError(
            f"no checkpoint to evaluate in {folder}: give --resume FILE or --output_dir"
        )
    return found[0]


def check_args(args: argparse.Namespace) -> None:
    """Refuses what cannot work before anything is built.

    Raises:
        UserError: the first contradiction, naming the flag.
    """
    mixes = args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax
    positive = ("tubelet_size", "input_size", "num_frames", "sampling_rate", "num_sample", "batch_size",
                "update_freq", "alternation_steps", "epochs", "test_num_segment", "test_num_crop",
                "log_interval", "save_ckpt_freq", "recount")  # fmt: skip
    wrong = [name for name in positive if getattr(args, name) < 1]
    missing = [hand for hand in active_hands(args) if not getattr(args, f"{hand}_data_path")]
    refused = (
        (args.num_segments != 1, "--num_segments: only 1 is possible; use --num_frames"),
        (args.enable_deepspeed, "--enable_deepspeed: not supported; use torchrun and --with_checkpoint"),
        (wrong, f"--{wrong and wrong[0]}: must be at least 1"),
        (missing, f"--{missing and missing[0]}_data_path is needed: the folder of that hand's lists"
         " (or train the left hand alone with --one_stream)"),
        (args.short_side_size < args.input_size, f"--short_side_size {args.short_side_size} is less than "
         f"--input_size {args.input_size}: views would not fit"),
        (args.num_frames % args.tubelet_size, f"--num_frames {args.num_frames} does not divide by "
         f"--tubelet_size {args.tubelet_size}"),
        (mixes and args.batch_size * args.num_sample % 2, f"--batch_size {args.batch_size} x --num_sample "
         f"{args.num_sample} is odd: mixup wants an even batch (or --mixup 0 --cutmix 0)"),
        (args.warmup_steps <= 0 and args.warmup_epochs > args.epochs,
         f"--warmup_epochs {args.warmup_epochs} is more than --epochs {args.epochs}"),
        (not args.weight_decay and args.weight_decay_end, "--weight_decay_end needs --weight_decay above 0"),
        (args.test_weights == "ema" and not (args.model_ema or args.eval),
         "--test_weights ema needs --model_ema"),
        (args.test_weights == "best" and not (args.eval or args.save_ckpt)
         or args.test_weights == "best" and args.disable_eval_during_finetuning and not args.eval,
         "--test_weights best needs validation and checkpoints during training"),
    )  # fmt: skip
    for condition, message in refused:
        if condition:
            raise UserError(message)


def active_hands(args: argparse.Namespace) -> tuple[str, ...]:
    """The hands that this run trains or tests."""
    return HANDS[:1] if args.one_stream else HANDS


# ------------------------------------------------------------------------------- what a run needs


def build_datasets(
    args: argparse.Namespace, num_classes: Mapping[str, int]
) -> dict[str, dict[str, VideoClsDataset]]:
    """{mode: {hand: dataset}} of the modes that this run uses."""
    modes = ["train", "validation", "test"]
    if args.eval or args.validation:
        modes = ["test"] * args.eval + ["validation"] * args.validation
    elif args.disable_eval_during_finetuning:
        modes.remove("validation")
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
        "seed": args.seed,
    }

    def dataset_of(mode: str, hand: str) -> VideoClsDataset:
        path, root = getattr(args, f"{hand}_data_path"), getattr(args, f"{hand}_data_root")
        return build_dataset(mode, path, root, hand=hand, num_classes=num_classes[hand], **settings)

    return {mode: {hand: dataset_of(mode, hand) for hand in num_classes} for mode in modes}


def count_classes(args: argparse.Namespace) -> dict[str, int]:
    """{hand: number of classes} of the hands of this run."""
    return {
        hand: resolve_num_classes(
            args.data_set,
            getattr(args, f"{hand}_num_classes"),
            getattr(args, f"{hand}_data_path"),
            hand,
        )
        for hand in active_hands(args)
    }


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
        raise UserError(f"--model {args.model}: {error}") from error


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], key: str, path: str) -> None:
    """Fills the model with all weights under a key of a checkpoint of this project or ADH-ViT.

    Raises:
        UserError: the weights do not fit, naming the file.
    """
    if key not in checkpoint:
        raise UserError(f"{path}: holds no weights under {key!r}")
    try:
        model.load_state_dict(checkpoint[key])
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise UserError(
            f"{path}: does not fit the model; check --model, --depth and the class counts: {reason}"
        ) from None


def pick_amp_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of `--amp_dtype` on a device."""
    if name == "auto" and device.type != "cuda":
        name = "fp32"
    if name == "auto":
        name = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]


def make_deterministic() -> None:
    """Asks GPUs for repeatable kernels; CPUs are repeatable anyway."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


# ------------------------------------------------------------------------------------ evaluation


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Validates and tests sets of weights on this run's clips."""

    args: argparse.Namespace
    dist: Distributed
    datasets: Mapping[str, Mapping[str, VideoClsDataset]]
    runtime: Runtime
    output_dir: Path

    def _batches(self, mode: str, views: int) -> Any:
        datasets = self.datasets[mode]
        sizes = {hand: len(dataset) for hand, dataset in datasets.items()}
        clips = max(1, self.args.batch_size * self.args.num_sample // views)
        keys = evaluation_batches(sizes, clips, self.dist.rank, self.dist.world_size)
        return build_loader(datasets, keys, self.args.num_workers, pins(self.args, self.dist))

    def validate(self, models: Mapping[str, nn.Module]) -> dict[str, dict[str, dict[str, float]]]:
        """{weights: {hand: metrics}} of one centred view a clip."""
        result = validation_one_epoch_alternating(
            self._batches("validation", 1),
            models,
            tuple(self.datasets["validation"]),
            self.runtime,
            ClipsToInput(),
        )
        for name, metrics in result.items():
            log.info("validation (%s): %s", name, describe(metrics))
        return result

    def test(self, models: Mapping[str, nn.Module], weights: str) -> dict[str, Any]:
        """The multi-view test; writes result files and `metrics.json`, returns what is in it."""
        result = final_test_alternating(
            self._batches("test", self.args.test_num_segment * self.args.test_num_crop),
            models,
            tuple(self.datasets["test"]),
            self.runtime,
            ClipsToInput(),
            self.output_dir,
        )
        main = next(iter(result))
        metrics = with_mean(result[main]) | {
            "weights": weights,
            "ema": with_mean(result["ema"]) if "ema" in result else None,
        }
        if self.dist.is_main:
            utils.write_json(self.output_dir / "metrics.json", metrics)
        log.info("test, merged over views (%s): %s", weights, describe(result[main]))
        log.info("written: %s", self.output_dir / "metrics.json")
        return metrics


def with_mean(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The hands' metrics and the mean of their top-1."""
    return {**metrics, "mean_top1": float(np.mean([m["top1"] for m in metrics.values()]))}


def describe(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """One line: accuracies, loss and coverage of each hand."""
    parts = []
    for hand, m in metrics.items():
        text = f"{hand} top-1 {m['top1']:.2f}% top-5 {m['top5']:.2f}%"
        text += f" class mean {m['mean_class_acc']:.2f}%"
        text += f" loss {m['loss']:.4f}" if "loss" in m else ""
        parts.append(f"{text} ({m['clips'] - m['unreadable']} of {m['clips']} clips)")
    return ", ".join(parts)


def pins(args: argparse.Namespace, dist: Distributed) -> bool:
    """Whether pinned memory is of use."""
    return args.pin_mem and dist.device.type == "cuda"


# -------------------------------------------------------------------------------------- training


@dataclasses.dataclass
class Progress:
    """What a run remembers of itself, in checkpoints."""

    step: int = 0  # optimizer steps made
    best: dict[str, float] = dataclasses.field(default_factory=dict)  # top-1: mean and each hand's
    bad_clips: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    epoch_sums: list[list[float]] | None = None  # of an unfinished epoch, over all ranks


class Training:
    """A run's training: all that changes in it, its checkpoints and its epochs."""

    def __init__(
        self,
        args: argparse.Namespace,
        dist: Distributed,
        model: nn.Module,
        num_classes: Mapping[str, int],
        evaluator: Evaluator,
    ):
        self.args, self.dist, self.model, self.evaluator = args, dist, model, evaluator
        self.datasets = evaluator.datasets["train"]
        self.output_dir = evaluator.output_dir
        self.recipe = make_recipe(args, dist, evaluator.runtime, self.datasets)
        self.optimizer = make_optimizer(args, model)
        self.updater = GradientUpdater(self.optimizer, self.recipe)
        self.ema = None
        if args.model_ema:
            device = torch.device("cpu") if args.model_ema_force_cpu else None
            self.ema = ModelEmaV3(model, decay=args.model_ema_decay, device=device)
        self.mixups = {hand: make_mixup(args, num_classes[hand]) for hand in self.datasets}
        self.progress = Progress(step=args.start_epoch * self.recipe.steps_per_epoch)
        log_dir = args.log_dir or self.output_dir / "tensorboard"
        self.writer = SummaryWriter(str(log_dir)) if dist.is_main else None

    def resume(self) -> None:
        """Goes on from `--resume`, or from the newest checkpoint in the output folder."""
        path = self.args.resume
        if not path and self.args.auto_resume:
            newest = utils.on_main(lambda: utils.resume_candidates(self.output_dir)[:1])
            path = str(newest[0]) if newest else ""
        if not path:
            return
        checkpoint = utils.on_main(lambda: utils.read_checkpoint(path))
        load_weights(self.model, checkpoint, "model", path)
        try:
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            if checkpoint.get("scaler"):
                self.updater.scaler.load_state_dict(checkpoint["scaler"])
        except (KeyError, ValueError) as error:
            raise UserError(f"--resume {path}: its optimizer state does not fit: {error}") from None
        if self.ema is not None:
            has_ema = "model_ema" in checkpoint
            load_weights(self.ema.module, checkpoint, "model_ema" if has_ema else "model", path)
        if STATE_KEY in checkpoint:
            self.progress = Progress(**checkpoint[STATE_KEY])
        elif isinstance(checkpoint.get("epoch"), int):
            self.progress.step = (checkpoint["epoch"] + 1) * self.recipe.steps_per_epoch
        else:
            log.warning("%s does not say its epoch: starting at --start_epoch", path)
        log.info("resumed from %s at step %d", path, self.progress.step)

    def save(self, *names: str) -> None:
        """Writes a checkpoint under each of the names; on rank 0."""
        if not self.dist.is_main:
            return
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.updater.scaler.state_dict(),
            "epoch": (self.progress.step - 1) // self.recipe.steps_per_epoch,
            "args": vars(self.args),
            STATE_KEY: dataclasses.asdict(self.progress),
        }
        if self.ema is not None:
            content["model_ema"] = self.ema.module.state_dict()
        for name in names:
            utils.save_checkpoint(self.output_dir / f"checkpoint-{name}.pth", content)

    def fit(self) -> None:
        """Trains, validates and saves, epoch by epoch."""
        epoch_run, recipe = self._epoch_run(), self.recipe
        first_epoch = self.progress.step // recipe.steps_per_epoch
        epoch_log = utils.EpochLog(self.output_dir / "log.txt", first_epoch)
        for epoch in range(first_epoch, self.args.epochs):
            meters = HandMeters(tuple(self.datasets), self.dist.device, self._share_of_sums())
            stats = train_one_epoch_alternating(
                epoch_run, epoch, self.progress.step, meters, self._record, self._after_step
            )
            self.progress.epoch_sums = None
            self._collect_bad_clips(epoch_run)
            row = {"epoch": epoch, **{f"train_{name}": value for name, value in stats.items()}}
            better = self._validate(row)
            kept = (epoch + 1) % self.args.save_ckpt_freq == 0 or epoch + 1 == self.args.epochs
            if self.args.save_ckpt:
                self.save("last", *([str(epoch)] if kept else []), *better)
            if self.dist.is_main:
                epoch_log.append(row)

    def weights_to_test(self) -> dict[str, nn.Module]:
        """The sets of weights of the final test, the one that `--test_weights` names first."""
        ema = None if self.ema is None else copy.deepcopy(self.ema.module).to(self.dist.device)
        if self.args.test_weights == "best":
            path = self.output_dir / "checkpoint-best.pth"
            checkpoint = utils.on_main(lambda: utils.read_checkpoint(path))
            load_weights(self.model, checkpoint, "model", str(path))
            if ema is not None:
                load_weights(ema, checkpoint, "model_ema", str(path))
        return order_weights(self.model, ema, self.args.test_weights)

    def close(self) -> None:
        """Flushes what is still buffered."""
        if self.writer is not None:
            self.writer.close()

    def _epoch_run(self) -> TrainingEpoch:
        args, recipe = self.args, self.recipe
        passes = {
            hand: ShuffledPasses(len(dataset), (args.seed, hand))
            for hand, dataset in self.datasets.items()
        }
        keys = training_batches(
            recipe.alternation,
            passes,
            range(self.progress.step, len(recipe.lr_schedule)),
            args.batch_size,
            args.update_freq,
            self.dist.rank,
            self.dist.world_size,
        )
        return TrainingEpoch(
            wrap_distributed(self.model, self.dist, len(self.datasets) > 1),
            build_loader(self.datasets, keys, args.num_workers, pins(args, self.dist)),
            self.updater,
            make_criterion(args),
            recipe,
            ClipsToInput(args.remode),
            self.mixups,
            self.ema,
            make_token_mask(args, self.model),
        )

    def _share_of_sums(self) -> list[list[float]] | None:
        # Sums are added up over ranks when they are read, so one rank takes the saved ones.
        return self.progress.epoch_sums if self.dist.is_main else None

    def _record(self, step: int, values: Mapping[str, float]) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"train/{name}", value, step)

    def _after_step(self, step: int, meters: HandMeters) -> None:
        self.progress.step = step
        every = self.args.save_ckpt_steps
        if not (self.args.save_ckpt and every and step % every == 0):
            return
        self.progress.epoch_sums = utils.all_reduce_sum(meters.sums.clone()).tolist()
        if step % self.recipe.steps_per_epoch == 0:
            self.progress.epoch_sums = None
        self.save(f"step-{step}")
        if self.dist.is_main:
            utils.prune_step_checkpoints(self.output_dir, self.args.keep_ckpts)

    def _collect_bad_clips(self, epoch_run: TrainingEpoch) -> None:
        """Adds this epoch's unreadable clips of all ranks to the lists, and writes those."""
        gathered = utils.broadcast_object(utils.gather_objects(epoch_run.bad))
        epoch_run.bad = []
        for hand, name, reason in (bad for rank in gathered for bad in rank):
            self.progress.bad_clips.setdefault(hand, {})[name] = reason
        for hand, bad in self.progress.bad_clips.items() if self.dist.is_main else ():
            lines = [f"{name}\t{reason}\n" for name, reason in sorted(bad.items())]
            utils.write_text(self.output_dir / f"bad_clips_{hand}.txt", "".join(lines))
            log.warning("%s: %d unreadable clips so far, replaced by others", hand, len(bad))

    def _validate(self, row: dict[str, Any]) -> list[str]:
        """Validates and adds the figures to the epoch's row; names of the checkpoints that are best."""
        if self.args.disable_eval_during_finetuning:
            return []
        models = {"raw": self.model} | ({} if self.ema is None else {"ema": self._ema_on_device()})
        result = self.evaluator.validate(models)
        for name, metrics in result.items():
            prefix = "val" if name == "raw" else "val_ema"
            row |= {f"{prefix}_{h}_{k}": v for h, m in metrics.items() for k, v in m.items()}
        for name, value in row.items() if self.writer is not None else ():
            if name.startswith("val"):
                self.writer.add_scalar(name.replace("_", "/", 1), value, self.progress.step)
        scores = {f"best-{hand}": metrics["top1"] for hand, metrics in result["raw"].items()}
        scores["best"] = float(np.mean(list(scores.values())))
        better = [
            name for name, score in scores.items() if score > self.progress.best.get(name, -1)
        ]
        self.progress.best |= {name: scores[name] for name in better}
        return better

    def _ema_on_device(self) -> nn.Module:
        return copy.deepcopy(self.ema.module).to(self.dist.device)


def order_weights(model: nn.Module, ema: nn.Module | None, first: str) -> dict[str, nn.Module]:
    """Sets of weights to test by name; `first` is `ema` or stands for the raw ones."""
    named = {"raw": model} | ({} if ema is None else {"ema": ema})
    return dict(reversed(named.items())) if first == "ema" else named


def make_recipe(
    args: argparse.Namespace,
    dist: Distributed,
    runtime: Runtime,
    datasets: Mapping[str, VideoClsDataset],
) -> Recipe:
    """The run's steps and schedules; rates are scaled by the clips of an optimizer step.

    Raises:
        UserError: the longer list is shorter than one step, or the warm-up longer than the run.
    """
    clips_a_step = args.batch_size * args.update_freq * dist.world_size
    longest = max(len(dataset) for dataset in datasets.values())
    steps_per_epoch = longest // clips_a_step
    if steps_per_epoch == 0:
        raise UserError(
            f"the longer list has {longest} clips, fewer than the {clips_a_step} of one step: lower "
            "--batch_size or --update_freq, or use fewer processes"
        )
    scale = clips_a_step / 256
    try:
        rates = utils.cosine_scheduler(
            args.lr * scale,
            args.min_lr * scale,
            args.epochs,
            steps_per_epoch,
            args.warmup_epochs,
            args.warmup_lr * scale,
            args.warmup_steps,
        )
    except ValueError as error:
        raise UserError(f"--warmup_steps {args.warmup_steps}: {error}") from None
    decay_end = args.weight_decay if args.weight_decay_end is None else args.weight_decay_end
    decays = utils.cosine_scheduler(args.weight_decay, decay_end, args.epochs, steps_per_epoch)
    log.info(
        "%d epochs of %d steps of %d clips; a turn is %d steps; highest learning rate %.3g",
        args.epochs, steps_per_epoch, clips_a_step, args.alternation_steps, args.lr * scale,
    )  # fmt: skip
    return Recipe(
        runtime=runtime,
        alternation=Alternation(tuple(datasets), args.alternation_steps),
        steps_per_epoch=steps_per_epoch,
        update_freq=args.update_freq,
        seed=args.seed,
        rank=dist.rank,
        clip_grad=args.clip_grad,
        lr_schedule=rates,
        weight_decay_schedule=decays,
        log_interval=args.log_interval,
        cutmix_region=args.cutmix_region,
    )


def make_optimizer(args: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over layer-wise decayed parameter groups."""
    num_layers = model.get_num_layers()
    assigner = build_layer_decay(args.layer_decay, num_layers)
    try:
        return create_optimizer(
            args,
            model,
            get_num_layer=lambda name: get_num_layer_for_vit(name, num_layers + 2),
            get_layer_scale=assigner and assigner.get_scale,
        )
    except ValueError as error:
        raise UserError(f"--opt {args.opt}: {error}") from None


def make_mixup(args: argparse.Namespace, num_classes: int) -> Mixup | None:
    """timm's Mixup/CutMix for one hand's classes, or None if both are off."""
    if not (args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax):
        return None
    return Mixup(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        cutmix_minmax=args.cutmix_minmax,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        mode=args.mixup_mode,
        label_smoothing=args.smoothing,
        num_classes=num_classes,
    )


def make_criterion(args: argparse.Namespace) -> nn.Module:
    """Soft-target cross entropy with mixup, else cross entropy with label smoothing."""
    if args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss()


def make_token_mask(
    args: argparse.Namespace, model: nn.Module
) -> Callable[[int, np.random.Generator], torch.Tensor] | None:
    """Draws a batch's dropped tokens `(N, tokens)`, or None if none are dropped.

    Raises:
        UserError: a ratio that the kind of mask cannot have.
    """
    if not args.train_mask_ratio:
        return None
    try:
        generate = MASKS[args.train_mask_type](model.patch_embed.grid_size, args.train_mask_ratio)
    except ValueError as error:
        raise UserError(f"--train_mask_ratio {args.train_mask_ratio}: {error}") from None
    return lambda views, rng: torch.from_numpy(np.stack([generate(rng) for _ in range(views)]))


def wrap_distributed(model: nn.Module, dist: Distributed, several_heads: bool) -> nn.Module:
    """The model as DistributedDataParallel, if there are several processes."""
    if not dist.active:
        return model
    # The resting hand's head takes no part in a step: its gradients must stay absent, not zero.
    devices = [dist.device] if dist.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=several_heads)


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
        result = evaluator.validate(order_weights(model, ema, "raw"))
        if evaluator.dist.is_main:
            utils.write_json(evaluator.output_dir / "validation.json", result)
    if args.eval:
        is_best = Path(args.resume).name.startswith("checkpoint-best")
        weights = "best" if is_best and args.test_weights == "last" else args.test_weights
        evaluator.test(order_weights(model, ema, args.test_weights), weights)


def run(argv: Sequence[str] | None, dist: Distributed) -> None:
    """The story of a run: arguments, data, model, optimizer; train, validate, test."""
    args = utils.on_main(lambda: get_args(argv))
    if args.num_workers is None:
        args.num_workers = max(1, len(os.sched_getaffinity(0)) // dist.local_world_size)
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    utils.setup_logging(dist.rank, output_dir)
    warn_of_flags_without_effect(args)
    if args.deterministic:
        make_deterministic()
    utils.seed_global_generators(args.seed)

    num_classes = count_classes(args)
    datasets = build_datasets(args, num_classes)
    model = build_model(args, num_classes).to(dist.device)
    runtime = Runtime(dist.device, pick_amp_dtype(args.amp_dtype, dist.device))
    evaluator = Evaluator(args, dist, datasets, runtime, output_dir)
    if args.eval or args.validation:
        return evaluate(args, model, evaluator)

    if args.finetune:
        log.info(load_pretrained_file(model, args))
    if dist.is_main:
        utils.write_json(output_dir / "args.json", vars(args))
    training = Training(args, dist, model, num_classes, evaluator)
    try:
        training.resume()
        training.fit()
        evaluator.test(training.weights_to_test(), args.test_weights)
    finally:
        training.close()
    return None


def load_pretrained_file(model: nn.Module, args: argparse.Namespace) -> str:
    """Starts the model from `--finetune`; returns what was loaded, as a short block."""
    checkpoint = utils.on_main(lambda: utils.read_checkpoint(args.finetune, "--finetune"))
    try:
        report = load_pretrained(model, checkpoint, args.model_key, args.model_prefix)
    except PretrainedError as error:
        raise UserError(f"--finetune {args.finetune}: {error}") from None
    return f"{args.finetune}: {report.summary()}"


def warn_of_flags_without_effect(args: argparse.Namespace) -> None:
    """One line for each flag that is only accepted for old command lines' sake."""
    for name in NO_EFFECT:
        if getattr(args, name) is not None:
            log.warning("--%s has no effect", name)


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
        # An error of a loader's worker arrives with its traceback; the last line is the message.
        log.error(
            "error: %s", str(error).strip().splitlines()[-1].removeprefix("utils.UserError: ")
        )
        return 1
    finally:
        utils.leave_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
