"""Starting weights: fits the tensors of a checkpoint that was read already to a model.

Nothing here touches files. N tokens lie on a grid (T', H', W'); D is the token width.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from models.hf_layout import PretrainedError, to_own_names
from models.modeling_finetune_alternating import HANDS
from models.other_layouts import unify_names

HEAD_PREFIXES = ("head.", *(f"{hand}_head." for hand in HANDS))
WRAPPER_PREFIXES = ("_orig_mod.", "module.", "model.", "backbone.", "encoder.")
POSITIONS = "pos_embed"
LAST_NORM = ("fc_norm.", "norm.")  # a model has one of them
DEFAULT_KEYS = "model|module|state_dict"  # VideoMAE V2 and this project, DeepSpeed, Lightning and mmengine
NAMES_SHOWN = 10
_NO_PLACE = "not in the model"
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_PREFIXED_PATCHES = re.compile(
    r"(.+\.)(?:patch_embed\.proj(?:ection)?|embeddings\.patch_embeddings\.\w+)\.weight"
)


@dataclass
class LoadReport:
    """What became of a checkpoint's weights.

    Attributes:
        loaded: Model names that were filled from the checkpoint (also the resized ones).
        dropped: Checkpoint name (without wrappers' prefixes) -> why it was not used.
        initialised: Model names that the checkpoint does not have; they keep their fresh values.
        resized: Model name -> what was done, e.g. "grid (8, 7, 7) to (8, 14, 14)".
    """

    loaded: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    initialised: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """Returns a short block of lines for the log."""
        total = len(self.loaded) + len(self.initialised)
        lines = [f"pretrained weights: {len(self.loaded)} of {total} tensors of the model loaded"]
        lines += [f"  resized: {name}, {what}" for name, what in self.resized.items()]
        for reason in dict.fromkeys(self.dropped.values()):
            names = [name for name, why in self.dropped.items() if why == reason]
            lines.append(f"  dropped ({reason}): {_some(names)}")
        if self.initialised:
            lines.append(f"  left as initialised: {_some(self.initialised)}")
        return "\n".join(lines)


def load_pretrained(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    model_key: str = DEFAULT_KEYS,
    model_prefix: str = "",
    allow_missing: bool = False,
) -> LoadReport:
    """Fills a model with a checkpoint's weights and says what became of each.

    Heads are loaded where their shapes fit and left fresh otherwise. Every tensor of the backbone must be
    in the file, except the last norm, which pretraining does not have, and every tensor of the file's
    blocks must have a place in the model. A fixed position table is computed by the model and never
    loaded; a learnable one is resized to the model's grid. Weights are cast to the model's types. Names of
    Hugging Face's VideoMAE models, mmaction2's and timm's are understood.

    Args:
        model: A `VisionTransformer` or its two-headed form, not wrapped or compiled.
        checkpoint: The mapping in the file: weights under a key, or bare.
        model_key: Keys to look under, separated by "|", the first present one wins.
        model_prefix: Use only the names that begin so, without the prefix.
        allow_missing: Load what both sides have, if there is anything.

    Returns:
        What was loaded, dropped, resized and left as initialised.

    Raises:
        PretrainedError: If no weights are found, shapes outside the heads differ, or the file's backbone
            is not the model's. The model is then unchanged.

    Source: the `--finetune` option of VideoMAE V2 (Wang et al., CVPR 2023).
    """
    report = LoadReport()
    weights = to_own_names(_rename(_select(checkpoint, model_key), model_prefix, report))
    weights = unify_names(weights, report.dropped)
    target = model.state_dict()
    if not allow_missing:
        _require_depth(weights, target)
    state: dict[str, Tensor] = {}
    mismatched = []
    for name, value in weights.items():
        reason = _reason_to_drop(name, value, target)
        if reason:
            report.dropped[name] = reason
            continue
        wanted = target[name]
        if name == POSITIONS and _same_width(value, wanted) and len(value[0]) != len(wanted[0]):
            value = _fit_positions(value, model.patch_embed.grid_size, report)
        if value.shape != wanted.shape:
            mismatched.append(f"{name}: {tuple(value.shape)} and {tuple(wanted.shape)}")
        state[name] = value
    if mismatched:
        raise PretrainedError(
            f"{len(mismatched)} tensors have another shape than the model's (file and model): "
            + "; ".join(mismatched[:NAMES_SHOWN])
        )
    report.loaded.extend(name for name in target if name in state)
    report.initialised.extend(name for name in target if name not in state)
    _require_backbone(report, allow_missing)
    if not allow_missing:
        _require_places(report)
    model.load_state_dict(state, strict=False)
    return report


def _select(checkpoint: Mapping[str, Any], model_key: str) -> Mapping[str, Any]:
    """Returns the weights under the first present key of `model_key`, or the bare mapping."""
    key = next((key for key in model_key.split("|") if key in checkpoint), None)
    weights = checkpoint if key is None else checkpoint[key]
    if isinstance(weights, Mapping) and any(isinstance(v, Tensor) for v in weights.values()):
        return weights
    where = f"at the top, nor under {model_key!r}" if key is None else f"under {key!r}"
    raise PretrainedError(f"no weights found {where}; the file's keys: {_some(checkpoint)}")


def _rename(weights: Mapping[str, Any], prefix: str, report: LoadReport) -> dict[str, Tensor]:
    """Returns the tensors by their names in the model; notes what is left out."""
    renamed: dict[str, Tensor] = {}
    for full_name, value in weights.items():
        name = _local_name(str(full_name), prefix)
        if name is None:
            report.dropped[full_name] = f"outside the prefix {prefix!r}"
        elif not isinstance(value, Tensor):
            report.dropped[full_name] = "not a tensor"
        elif name in renamed:
            raise PretrainedError(f"two tensors in the file are called {name!r} without prefixes")
        else:
            renamed[name] = value
    return renamed


def _local_name(name: str, prefix: str) -> str | None:
    """Strips wrappers' prefixes, and `prefix` once; None if `prefix` is asked for but absent."""
    if prefix and name.startswith(prefix):
        return _local_name(name.removeprefix(prefix), "")
    for wrapper in WRAPPER_PREFIXES:
        if name.startswith(wrapper):
            return _local_name(name.removeprefix(wrapper), prefix)
    return None if prefix else name


def _reason_to_drop(name: str, value: Tensor, target: Mapping[str, Tensor]) -> str | None:
    if name == POSITIONS and name not in target:
        return "the model computes its position table"
    if name not in target:
        return "no such head" if name.startswith(HEAD_PREFIXES) else _NO_PLACE
    if name.startswith(HEAD_PREFIXES) and value.shape != target[name].shape:
        there, here = (tensor.shape[:1].numel() for tensor in (value, target[name]))
        return f"{there} classes in the file, {here} in the model"
    return None


def _same_width(table: Tensor, wanted: Tensor) -> bool:
    return table.ndim == wanted.ndim and table.shape[::2] == wanted.shape[::2]


def _fit_positions(table: Tensor, grid: tuple[int, int, int], report: LoadReport) -> Tensor:
    source = _source_grid(table.shape[-2], grid)
    report.resized[POSITIONS] = f"grid {source} to {grid}"
    return resize_positions(table, source, grid)


def _source_grid(num_tokens: int, grid: tuple[int, int, int]) -> tuple[int, int, int]:
    """Guesses a table's grid: the model's time steps on a square, else the model's space."""
    steps, rows, columns = grid
    side = math.isqrt(num_tokens // steps)
    if steps * side * side == num_tokens:
        return steps, side, side
    if num_tokens % (rows * columns) == 0:
        return num_tokens // (rows * columns), rows, columns
    raise PretrainedError(
        f"a position table of {num_tokens} tokens is neither {steps} steps of a square nor "
        f"any number of steps of {rows} x {columns}: it cannot be resized to {grid}"
    )


def resize_positions(table: Tensor, source: tuple[int, int, int], grid: tuple[int, int, int]) -> Tensor:
    """Resizes a learnt position table: bicubic in space for each time step, linear in time.

    Args:
        table: (1, N, D), N tokens with time slowest, columns fastest.
        source: Grid (T', H', W') of `table`.
        grid: Grid (T', H', W') of the result.

    Returns:
        Table (1, N', D) in float32.

    Source: spatial part as in DeiT (Touvron et al., ICML 2021) and VideoMAE V2.
    """
    width = table.shape[-1]
    space = table.float().reshape(*source, width).permute(0, 3, 1, 2)
    if source[1:] != grid[1:]:
        space = F.interpolate(space, size=grid[1:], mode="bicubic", align_corners=False)
    time = space.permute(2, 3, 1, 0).flatten(0, 1)
    if source[0] != grid[0]:
        time = F.interpolate(time, size=grid[0], mode="linear", align_corners=False)
    return time.permute(2, 0, 1).reshape(1, -1, width)


def _require_depth(weights: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    there, here = (len({m[1] for name in names if (m := _BLOCK.match(name))}) for names in (weights, target))
    if not there or there == here:
        return
    in_file, norm = f"the file has {there} block{'s' * (there > 1)}", "blocks.0.norm1.weight"
    if norm in weights and weights[norm].shape != target[norm].shape:
        widths = len(weights[norm]), len(target[norm])
        raise PretrainedError(
            f"{in_file} of width {widths[0]}, the model {here} of width {widths[1]}: choose --model to fit"
        )
    raise PretrainedError(f"{in_file}, the model {here}: --depth {there}")


def _require_backbone(report: LoadReport, allow_missing: bool) -> None:
    missing = [name for name in report.initialised if not name.startswith(HEAD_PREFIXES)]
    found = sum(not name.startswith(HEAD_PREFIXES) for name in report.loaded)
    if found and (allow_missing or all(name.startswith(LAST_NORM) for name in missing)):
        return
    total = found + len(missing)
    unused = [name for name, reason in report.dropped.items() if reason == _NO_PLACE]
    message = f"none of {total} tensors of the backbone is in the file"
    if found:
        names = _some(_by_blocks(missing))
        message = f"{len(missing)} of {total} tensors of the backbone are not in the file: {names}"
    prefixes = dict.fromkeys(match[1] for name in unused if (match := _PREFIXED_PATCHES.fullmatch(name)))
    if prefixes:
        raise PretrainedError(f"{message}; it has a backbone under --model_prefix {' or '.join(prefixes)}")
    if unused:
        message += f"; the file has instead: {_some(_by_blocks(unused))}"
    if found:
        message += "; --allow_missing starts them from random values"
    raise PretrainedError(message)


def _require_places(report: LoadReport) -> None:
    homeless = [n for n, reason in report.dropped.items() if reason == _NO_PLACE and _BLOCK.match(n)]
    if homeless:
        raise PretrainedError(
            f"is of another architecture: {len(homeless)} tensors of its blocks have no place in the model: "
            f"{_some(_by_blocks(homeless))}; --allow_missing leaves them out"
        )


def _by_blocks(names: Collection[str]) -> list[str]:
    """Names of the same tensor in several blocks as one, with their number."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_BLOCK.sub("blocks.*.", name), []).append(name)
    return [f"{key} ({len(of)})" if len(of) > 1 else of[0] for key, of in groups.items()]


def _some(names: Collection[str]) -> str:
    shown = [str(name) for name in names][:NAMES_SHOWN]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
