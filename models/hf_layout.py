"""Hugging Face's layout of VideoMAE models: what its `config.json` says, and its names of the weights.

Nothing here touches files. A model's facts are a dict whose names are `VisionTransformer`'s keywords.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Fact -> key in the config of transformers' VideoMAE, and what a config that lacks the key means.
_CONFIG_KEYS: dict[str, tuple[str, Any]] = {
    "embed_dim": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "mlp_width": ("intermediate_size", 3072),
    "patch_size": ("patch_size", 16),
    "tubelet_size": ("tubelet_size", 2),
    "qkv_bias": ("qkv_bias", True),
    "norm_eps": ("layer_norm_eps", 1e-12),
}
# What the model here always has; a config that says something else is of another kind of model.
_FIXED = {"hidden_act": "gelu", "cos_attn": False}

# The names within a block, and outside of blocks.
_IN_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_OUTSIDE = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "fc_norm": "fc_norm",
    "classifier": "head",
}
# `encoder.` is also the prefix of a wrapper, and may have been removed.
_BLOCK = re.compile(r"(?:videomae\.)?(?:encoder\.)?layer\.(\d+)\.(.+)")
_ATTENTION = "attention.attention."
_MERGED = tuple(f"{_ATTENTION}{part}.weight" for part in ("query", "key", "value"))
# transformers before version 5 has the first spelling, and writes it still.
_BIASES = {
    **{f"{_ATTENTION}q_bias": "attn.q_bias", f"{_ATTENTION}query.bias": "attn.q_bias"},
    **{f"{_ATTENTION}v_bias": "attn.v_bias", f"{_ATTENTION}value.bias": "attn.v_bias"},
}


class PretrainedError(ValueError):
    """Weights, or what is said of them, do not fit the model."""


def facts_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a `config.json`: of transformers' VideoMAE, or of the VideoMAE V2 repositories.

    Args:
        config: the file's content.

    Returns:
        Facts of the model, all of `facts_of_model` and its `norm_eps`.

    Raises:
        PretrainedError: a config of another kind of model, or values that make no sense.
    """
    nested = config.get("model_config")
    if isinstance(nested, Mapping):
        facts = _facts_of_v2(nested)
    elif config.get("model_type") == "videomae":
        config = {"qkv_bias": config.get("qv_bias", True), **config}  # renamed in transformers 5
        facts = {name: config.get(key, default) for name, (key, default) in _CONFIG_KEYS.items()}
    else:
        raise PretrainedError(f"describes a model of type {config.get('model_type')!r}, not a VideoMAE")
    for key, value in _FIXED.items():
        if (found := {**config, **(nested or {})}.get(key, value)) != value:
            raise PretrainedError(f"{key} is {found!r}; only {value!r} can be built here")
    facts["patch_size"] = _side(facts["patch_size"])
    if not isinstance(facts["norm_eps"], (int, float)) or not 0 <= facts["norm_eps"] < 1:
        raise PretrainedError(f"layer_norm_eps is {facts['norm_eps']!r}")
    return facts


def _facts_of_v2(config: Mapping[str, Any]) -> dict[str, Any]:
    facts = {name: config.get(name) for name in _CONFIG_KEYS}  # most have our names
    try:
        facts["mlp_width"] = int(config["embed_dim"] * config["mlp_ratio"])
    except (KeyError, TypeError, ValueError):
        raise PretrainedError("model_config: lacks embed_dim or mlp_ratio") from None
    return facts | {"norm_eps": config.get("layer_norm_eps", 1e-6)}


def _side(size: Any) -> Any:
    """One number for a square that is given by height and width."""
    is_pair = isinstance(size, (list, tuple)) and len(set(size)) == 1
    return size[0] if is_pair else size


def facts_of_model(model: nn.Module) -> dict[str, Any]:
    """The same facts of a `VisionTransformer`, but for the epsilon."""
    block = model.blocks[0]
    return {
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_width": block.mlp.fc1.out_features,
        "patch_size": _side(model.patch_embed.patch_size),
        "tubelet_size": model.patch_embed.tubelet_size,
        "qkv_bias": block.attn.q_bias is not None,
    }


def to_own_names(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Renames Hugging Face's VideoMAE weights to this project's, and merges each block's q, k and v.

    Args:
        weights: a state dict; of any other layout, it is returned as it is.

    Returns:
        Weights by our names. What has no place in our model, such as the decoder of pretraining,
        keeps its name. A key bias does too: it adds the same to all attention logits of a query, which
        softmax takes out again.

    Raises:
        PretrainedError: a block has only some of q, k and v.
    """
    if not any((match := _BLOCK.fullmatch(name)) and match[2] in _MERGED for name in weights):
        return weights
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        if (match := _BLOCK.fullmatch(name)) is None:
            renamed[_renamed(name.removeprefix("videomae."), _OUTSIDE) or name] = value
        elif match[2] in _MERGED:
            parts.setdefault(match[1], {})[match[2]] = value
        else:
            inner = _BIASES.get(match[2]) or _renamed(match[2], _IN_BLOCK)
            renamed[f"blocks.{match[1]}.{inner}" if inner else name] = value
    for block, found in parts.items():
        if missing := [part for part in _MERGED if part not in found]:
            raise PretrainedError(f"block {block} has no {missing[0]}")
        renamed[f"blocks.{block}.attn.qkv.weight"] = torch.cat([found[part] for part in _MERGED])
    return renamed


def _renamed(name: str, names: Mapping[str, str]) -> str | None:
    module, _, parameter = name.rpartition(".")
    return f"{names[module]}.{parameter}" if module in names else None
