"""Parameter groups, layer-wise learning-rate decay and optimizers by name."""

import logging
from argparse import Namespace
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info
from torch import nn

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
FUSABLE = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
FUSED_DEVICES = {"cpu", "cuda"}


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
        params = get_parameter_groups(
            model, args.weight_decay, skip_list, get_num_layer, get_layer_scale
        )
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
