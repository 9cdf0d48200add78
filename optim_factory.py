"""What a step optimises and how: parameter groups, layer decay, optimizers, schedules, loss, mixup."""

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from timm.data.mixup import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info
from torch import nn

import utils
from utils import UserError, cosine_scheduler

logger = logging.getLogger(__name__)

# Names worth suggesting; timm's other first-order optimizers work too.
OPTIMIZERS = (
    "adamw",
    "adam",
    "nadam",
    "radam",
    "sgd",
    "momentum",
    "rmsprop",
    "adadelta",
    "adafactor",
    "lamb",
    "lion",
    "adan",
)
# Not SGD: fused, it cannot have parameters that got no gradient yet, such as the resting hand's head.
FUSABLE = (torch.optim.Adam, torch.optim.AdamW)
FUSED_DEVICES = {"cpu", "cuda"}
MOST_OVERFLOWS = 20  # steps in a row whose fp16 gradients may overflow


def add_optimization_args(parser: ArgumentParser) -> None:
    """Adds the flags that this module reads, with the two-hand recipe's defaults."""
    add = parser.add_argument_group("optimization").add_argument
    add("--batch_size", type=utils.count, default=4, help="clips a micro step and GPU")
    add("--epochs", type=utils.count, default=50, help="epochs of the longer list over both hands' steps")
    add("--update_freq", type=utils.count, default=1, help="micro steps a step (gradient accumulation)")
    add(
        "--alternation_steps",
        type=utils.count,
        default=50,
        help="optimizer steps before the other hand's turn",
    )
    add("--opt", default="adamw", help="timm optimizer")
    add("--opt_eps", type=utils.amount, default=1e-8, help="its epsilon")
    add("--opt_betas", type=utils.share, nargs="+", default=[0.9, 0.999], help="its betas")
    add("--momentum", type=utils.share, default=0.9, help="of SGD")
    add("--clip_grad", type=utils.amount, default=5.0, help="greatest gradient norm; 0: no clipping")
    add("--weight_decay", type=utils.amount, default=0.1, help="of weights with two or more dimensions")
    add("--weight_decay_end", type=utils.amount, help="its value at the end (cosine); default: constant")
    add(
        "--lr",
        type=utils.amount,
        default=1e-3,
        help="learning rate for 256 clips a step; scaled by the batch",
    )
    add("--layer_decay", type=utils.share, default=0.9, help="factor on the rate from layer to layer down")
    add("--warmup_lr", type=utils.amount, default=1e-8, help="rate of the first step, scaled like --lr")
    add("--min_lr", type=utils.amount, default=1e-6, help="rate at the end, scaled like --lr")
    add("--warmup_epochs", type=utils.natural, default=5, help="epochs of linear warm-up")
    add("--warmup_steps", type=int, default=-1, help="steps of warm-up; wins over epochs if positive")
    add("--model_ema", action="store_true", help="keep and evaluate a moving average of the weights")
    add("--model_ema_decay", type=utils.share, default=0.9999, help="its decay a step")
    add("--model_ema_force_cpu", action="store_true", help="keep it in the host's memory")
    add = parser.add_argument_group("mixup").add_argument
    add("--mixup", type=utils.amount, default=0.8, metavar="ALPHA", help="0: no mixup")
    add("--cutmix", type=utils.amount, default=1.0, metavar="ALPHA", help="0: no CutMix")
    add("--cutmix_minmax", type=utils.share, nargs=2, help="least and greatest share; switches CutMix on")
    add("--cutmix_region", choices=("frame", "published"), default="frame",
        help="cut a box of every frame; published: of time and height, as there")  # fmt: skip
    add("--mixup_prob", type=utils.share, default=1.0, metavar="P", help="probability of either")
    add("--mixup_switch_prob", type=utils.share, default=0.5, metavar="P", help="of CutMix, if both are on")
    add("--mixup_mode", choices=("batch", "pair", "elem"), default="batch", help="draw for what")


def get_num_layer_for_vit(name: str, num_max_layer: int) -> int:
    """Returns the layer a parameter belongs to for layer-wise decay.

    Args:
        name: Parameter name in the unwrapped model.
        num_max_layer: Number of layers, counting the embedding and what follows the blocks: L + 2.

    Returns:
        0 for the embedding, i + 1 for block i, `num_max_layer - 1` for all after the blocks.

    Source: BEiT (Bao et al., ICLR 2022), as in VideoMAE V2.
    """
    if name in ("cls_token", "mask_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return num_max_layer - 1


class LayerDecayValueAssigner:
    """Gives each parameter its layer and each layer the factor of its learning rate.

    Args:
        values: Factor of each layer, from the embedding to what follows the blocks.

    Source: ELECTRA (Clark et al., ICLR 2020) and BEiT, as in VideoMAE V2.
    """

    def __init__(self, values: Sequence[float]):
        self.values = values

    def get_scale(self, layer_id: int) -> float:
        """Returns the factor of a layer's learning rate."""
        return self.values[layer_id]

    def get_layer_id(self, name: str) -> int:
        """Returns the layer that the parameter `name` belongs to."""
        return get_num_layer_for_vit(name, len(self.values))


def build_layer_decay(decay: float, num_layers: int) -> LayerDecayValueAssigner | None:
    """Builds the factors `decay ** (L + 1 - j)` of the layers j = 0 .. L + 1.

    Args:
        decay: Factor from one layer to the one before it, in (0, 1].
        num_layers: Number of blocks, L.

    Returns:
        The assigner, or None for a decay of 1, which changes no rate.

    Raises:
        ValueError: If `decay` lies outside (0, 1].
    """
    if not 0 < decay <= 1:
        raise ValueError(f"the layer decay must lie in (0, 1]: {decay=}")
    if decay == 1:
        return None
    return LayerDecayValueAssigner([decay ** (num_layers + 1 - j) for j in range(num_layers + 2)])


def get_parameter_groups(
    model: nn.Module,
    weight_decay: float = 1e-5,
    skip_list: Collection[str] = (),
    get_num_layer: Callable[[str], int] | None = None,
    get_layer_scale: Callable[[int], float] | None = None,
) -> list[dict[str, Any]]:
    """Groups the trainable parameters by layer and by whether they decay.

    One-dimensional parameters, biases and those in `skip_list` get no weight decay. The groups
    stand in the order of their first parameters: optimizer states in checkpoints depend on it.

    Args:
        model: The unwrapped model.
        weight_decay: Decay of the others; the groups do not depend on its value.
        skip_list: Names that do not decay.
        get_num_layer: Name -> layer; None puts all parameters in one layer.
        get_layer_scale: Layer -> factor of the learning rate; None means 1.

    Returns:
        Groups with the keys "params", "weight_decay" and "lr_scale"; a group's rate is the
        schedule's times its "lr_scale".

    Source: BEiT's optimizer factory, as in VideoMAE V2.
    """
    groups: dict[tuple[int | None, bool], dict[str, Any]] = {}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        decays = param.ndim > 1 and not name.endswith(".bias") and name not in skip_list
        layer = get_num_layer(name) if get_num_layer else None
        group = groups.setdefault(
            (layer, decays),
            {
                "params": [],
                "weight_decay": weight_decay if decays else 0.0,
                "lr_scale": get_layer_scale(layer) if get_layer_scale else 1.0,
            },
        )
        group["params"].append(param)
    logger.info("optimizer: %d parameter groups", len(groups))
    return list(groups.values())


def create_optimizer(
    args: Namespace,
    model: nn.Module,
    get_num_layer: Callable[[str], int] | None = None,
    get_layer_scale: Callable[[int], float] | None = None,
    filter_bias_and_bn: bool = True,
    skip_list: Collection[str] | None = None,
) -> torch.optim.Optimizer:
    """Creates one of timm's optimizers over a model's parameter groups.

    Args:
        args: Reads `opt`, `lr`, `weight_decay`, and where present `opt_eps`, `opt_betas` and
            `momentum`, each passed on only to optimizers that have it.
        model: The unwrapped model.
        get_num_layer: See `get_parameter_groups`.
        get_layer_scale: See `get_parameter_groups`.
        filter_bias_and_bn: Whether to exempt biases and 1-D parameters from weight decay and to
            scale rates by layer; False makes one plain group.
        skip_list: Names without weight decay; None asks the model.

    Raises:
        ValueError: If the optimizer is unknown or cannot be used here.
    """
    optimizer_class = _find_optimizer(args.opt)
    if filter_bias_and_bn:
        if skip_list is None:
            skip_list = getattr(model, "no_weight_decay", set)()
        params = get_parameter_groups(model, args.weight_decay, skip_list, get_num_layer, get_layer_scale)
    else:
        params = [p for p in model.parameters() if p.requires_grad]
    return create_optimizer_v2(
        params,
        opt=args.opt,
        lr=args.lr,
        weight_decay=args.weight_decay,
        momentum=getattr(args, "momentum", 0.9),
        **_extra_options(args, model, optimizer_class),
    )


def _base_name(name: str) -> str:
    """Returns timm's name of the optimizer inside "lookahead_adamw", or `name` itself."""
    return name.lower().removeprefix("lookahead_")


def _find_optimizer(name: str) -> type[torch.optim.Optimizer]:
    """Returns the class behind `name`, or refuses it with a reason."""
    try:
        if get_optimizer_info(_base_name(name)).second_order:
            raise ValueError("it needs second derivatives")
        return get_optimizer_class(_base_name(name), bind_defaults=False)
    except (ValueError, AssertionError, ImportError) as error:
        raise ValueError(
            f"optimizer {name!r} cannot be used: {error}; valid names are for instance "
            + ", ".join(OPTIMIZERS)
        ) from error


def _extra_options(
    args: Namespace, model: nn.Module, optimizer_class: type[torch.optim.Optimizer]
) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if getattr(args, "opt_eps", None) is not None:
        options["eps"] = args.opt_eps
    betas = getattr(args, "opt_betas", None)
    info = get_optimizer_info(_base_name(args.opt))
    if betas and info.has_betas and len(betas) != info.num_betas:
        logger.warning("%s takes %d betas and keeps its own", args.opt, info.num_betas)
    elif betas:
        options["betas"] = tuple(betas)
    # One kernel for all parameters: about three times faster on a CPU, and on a GPU it can skip
    # a step by a flag on the device.
    if optimizer_class in FUSABLE and {p.device.type for p in model.parameters()} <= FUSED_DEVICES:
        options["fused"] = True
    return options


def create_schedules(
    args: Namespace, clips_a_step: int, steps_per_epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Creates the learning rate and the weight decay of every step of a run.

    Args:
        args: Reads `lr`, `min_lr` and `warmup_lr`, given for 256 clips a step and scaled by the
            batch; `epochs`, `warmup_epochs`, `warmup_steps`, `weight_decay`, `weight_decay_end`.
        clips_a_step: Clips of an optimizer step over all processes, without repeated views.
        steps_per_epoch: Optimizer steps an epoch.

    Returns:
        Two float64 arrays of one value a step.

    Raises:
        ValueError: If the warm-up is longer than the run.

    Source: VideoMAE V2.
    """
    scale = clips_a_step / 256
    rates = cosine_scheduler(
        args.lr * scale,
        args.min_lr * scale,
        args.epochs,
        steps_per_epoch,
        args.warmup_epochs,
        args.warmup_lr * scale,
        args.warmup_steps,
    )
    decay_end = args.weight_decay if args.weight_decay_end is None else args.weight_decay_end
    return rates, cosine_scheduler(args.weight_decay, decay_end, args.epochs, steps_per_epoch)


def uses_mixup(args: Namespace) -> bool:
    """Returns whether mixup or CutMix is on."""
    return bool(args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax)


def create_mixup(args: Namespace, num_classes: int) -> Mixup | None:
    """Creates timm's Mixup/CutMix for one hand's classes, or None if both are off."""
    if not uses_mixup(args):
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


def create_criterion(args: Namespace) -> nn.Module:
    """Creates soft-target cross entropy for mixup, else cross entropy with label smoothing."""
    if uses_mixup(args):
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss()


class GradientUpdater:
    """Rates, backward pass, clipping and the optimizer step, without waiting for the device.

    A non-finite loss poisons its gradients, which the all-reduce spreads to all ranks and which
    masks the optimizer step everywhere; from then on every step is masked, so that the weights stay
    those of the last good step until the host reads `first_bad_step`.

    Args:
        optimizer: One over the groups of `get_parameter_groups`.
        lr_schedule: Learning rate of each step of the run.
        weight_decay_schedule: Weight decay of each step, for the groups that decay.
        update_freq: Micro steps (backward passes) a step.
        clip_grad: Greatest norm of the gradients; 0 does not clip.
        device: Where the model is.
        amp_dtype: float16 scales the loss (and skips steps that overflow); others need it not.

    Attributes:
        scaler: The gradient scaler; its state belongs into checkpoints.
        first_bad_step: On the device: first step whose loss or gradients were not finite, or -1.
        bad_loss: On the device: whether this rank's own loss was not finite at that step.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        lr_schedule: np.ndarray,
        weight_decay_schedule: np.ndarray,
        *,
        update_freq: int,
        clip_grad: float,
        device: torch.device,
        amp_dtype: torch.dtype,
    ):
        self.optimizer = optimizer
        self.lr_schedule, self.weight_decay_schedule = lr_schedule, weight_decay_schedule
        self.update_freq, self.clip_grad = update_freq, clip_grad
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16)
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.bad_loss = torch.zeros((), dtype=torch.bool, device=device)
        self._overflows = torch.zeros((), dtype=torch.int64, device=device)  # steps in a row
        self._decaying = [group["weight_decay"] > 0 for group in optimizer.param_groups]
        self._masks_on_device = getattr(optimizer, "_step_supports_amp_scaling", False)

    def set_rates(self, step: int) -> None:
        """Sets each group's learning rate and weight decay for a step."""
        for group, decays in zip(self.optimizer.param_groups, self._decaying, strict=True):
            group["lr"] = float(self.lr_schedule[step] * group["lr_scale"])
            if decays:
                group["weight_decay"] = float(self.weight_decay_schedule[step])

    def backward(self, loss: torch.Tensor, step: int) -> None:
        """Adds the gradients of one micro step's mean loss."""
        bad = ~torch.isfinite(loss.detach())
        self.bad_loss = self.bad_loss | (bad & (self.first_bad_step < 0))
        self._note(bad, step)
        poison = torch.where(self.first_bad_step >= 0, torch.nan, 1.0)
        self.scaler.scale(loss * poison / self.update_freq).backward()

    def step(self, step: int) -> torch.Tensor:
        """Makes the optimizer step and clears the gradients; returns the norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        params = [p for p in params if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in params])
        if self.clip_grad:
            torch.nn.utils.clip_grads_with_norm_(params, self.clip_grad, norm)
        if self.scaler.is_enabled():
            # In fp16 an overflow is the scaler's daily business: it skips the step and goes on. When
            # a millionth of the scale does not help either, it is no overflow.
            self._overflows = torch.where(torch.isfinite(norm), 0, self._overflows + 1)
            self._note(self._overflows >= MOST_OVERFLOWS, step)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self._masked_step(~torch.isfinite(norm), step)
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _masked_step(self, bad: torch.Tensor, step: int) -> None:
        self._note(bad, step)
        if self._masks_on_device:
            self.optimizer.grad_scale, self.optimizer.found_inf = None, bad.float()
            self.optimizer.step()
        elif not bad:  # optimizers without a mask on the device make the host wait here
            self.optimizer.step()

    def _note(self, bad: torch.Tensor, step: int) -> None:
        newly_bad = bad & (self.first_bad_step < 0)
        self.first_bad_step = torch.where(newly_bad, step, self.first_bad_step)


def create_updater(
    args: Namespace,
    model: nn.Module,
    device: torch.device,
    amp_dtype: torch.dtype,
    clips_a_step: int,
    steps_per_epoch: int,
) -> GradientUpdater:
    """Creates the optimizer with layer-wise rates, and its schedules.

    Raises:
        UserError: An unknown optimizer, or a warm-up that does not fit.
    """
    num_layers = model.get_num_layers()
    assigner = build_layer_decay(args.layer_decay, num_layers)
    try:
        optimizer = create_optimizer(
            args,
            model,
            get_num_layer=assigner and assigner.get_layer_id,
            get_layer_scale=assigner and assigner.get_scale,
        )
    except ValueError as error:
        raise UserError(f"--opt {args.opt}: {error}") from None
    try:
        rates, decays = create_schedules(args, clips_a_step, steps_per_epoch)
    except ValueError as error:
        raise UserError(f"--warmup_steps {args.warmup_steps}: {error}") from None
    return GradientUpdater(
        optimizer,
        rates,
        decays,
        update_freq=args.update_freq,
        clip_grad=args.clip_grad,
        device=device,
        amp_dtype=amp_dtype,
    )
