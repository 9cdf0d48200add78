"""Names of the backbone's weights in mmaction2 and timm, where they differ from this project's.

Nothing here touches files.
"""

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from models.hf_layout import PretrainedError

# mmaction2's modules, made of mmcv's PatchEmbed and FFN -> ours.
_MMACTION = {
    "patch_embed.projection": "patch_embed.proj",
    "mlp.layers.0.0": "mlp.fc1",
    "mlp.layers.1": "mlp.fc2",
}
_MMACTION_NAME = re.compile(
    rf"(?P<block>blocks\.\d+\.)?(?P<module>{'|'.join(map(re.escape, _MMACTION))})\.(?P<kind>weight|bias)"
)
_MERGED_BIAS = re.compile(r"(blocks\.\d+\.attn\.)qkv\.bias")
# It adds the same number to all attention logits of a query, and softmax is invariant to that.
KEY_BIAS = "a key bias changes no attention weight"


def unify_names(weights: Mapping[str, Tensor], dropped: dict[str, str]) -> dict[str, Tensor]:
    """Rename the weights of mmaction2 and timm to this project's names.

    timm keeps the biases of queries, keys and values in one tensor; here keys have none.

    Args:
        weights: a state dict; other names are left as they are.
        dropped: name -> reason, to which biases of keys that are not zero are added.

    Raises:
        PretrainedError: two tensors have the same name here.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        for own_name, part in _own_parts(name, value, dropped):
            if own_name in renamed or (own_name != name and own_name in weights):
                raise PretrainedError(f"the file has {own_name!r} twice, the second time as {name!r}")
            renamed[own_name] = part
    return renamed


def _own_parts(name: str, value: Tensor, dropped: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    if match := _MMACTION_NAME.fullmatch(name):
        yield f"{match['block'] or ''}{_MMACTION[match['module']]}.{match['kind']}", value
    elif (match := _MERGED_BIAS.fullmatch(name)) and len(value) % 3 == 0:
        queries, keys, values = value.chunk(3)
        if keys.any():
            dropped[f"{name} (keys)"] = KEY_BIAS
        yield f"{match[1]}q_bias", queries
        yield f"{match[1]}v_bias", values
    else:
        yield name, value
