"""A Vision Transformer over video tubelets: the backbone, and optionally one classification head.

Shapes: B clips, C channels, T frames, H x W pixels; T' x H' x W' = N tokens of width D.
Parameter names are VideoMAE V2's, so its fine-tuned weights load by name.

Source: VideoMAE V2 (Wang et al., CVPR 2023) on ViT (Dosovitskiy et al., ICLR 2021).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import DropPath, Mlp, to_2tuple
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

INIT_STD = 0.02

VIT_SIZES: dict[str, dict[str, Any]] = {
    name: dict(
        patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, mlp_ratio=mlp_ratio, qkv_bias=True
    )
    for name, patch, width, depth, heads, mlp_ratio in (
        ("tiny", 16, 192, 12, 3, 4),
        ("small", 16, 384, 12, 6, 4),
        ("base", 16, 768, 12, 12, 4),
        ("large", 16, 1024, 24, 16, 4),
        ("huge", 16, 1280, 32, 16, 4),
        ("giant", 14, 1408, 40, 16, 48 / 11),
    )
}


def sinusoid_table(num_positions: int, width: int) -> Tensor:
    """Builds a fixed table of position encodings.

    Args:
        num_positions: Number of tokens, N.
        width: Token width, D.

    Returns:
        Float32 table (1, N, D) on the CPU: sine in even columns, cosine in odd ones. It is
        computed in float64, as the published weights were trained with.

    Source: Vaswani et al., Attention Is All You Need, section 3.5, over flattened tubelets as in
        VideoMAE (Tong et al., NeurIPS 2022).
    """
    exponents = 2 * (np.arange(width) // 2) / width
    table = np.arange(num_positions)[:, None] / np.power(10000.0, exponents)[None]
    table[:, 0::2] = np.sin(table[:, 0::2])
    table[:, 1::2] = np.cos(table[:, 1::2])
    return torch.from_numpy(table.astype(np.float32))[None]


def drop_tokens(tokens: Tensor, token_mask: Tensor) -> Tensor:
    """Removes masked tokens.

    Args:
        tokens: (B, N, D).
        token_mask: Bool (B, N), True = drop, the same number of kept tokens in each row. Keep it
            on the CPU: counting on a GPU makes the host wait for the device.

    Returns:
        The kept tokens in their order, (B, K, D).

    Raises:
        ValueError: If the mask has another shape or type, or keeps unequal or zero counts.

    Source: the encoder of VideoMAE (Tong et al., NeurIPS 2022) sees unmasked tokens only.
    """
    if token_mask.shape != tokens.shape[:2] or token_mask.dtype != torch.bool:
        raise ValueError(
            f"token_mask must be bool of shape {tuple(tokens.shape[:2])}, "
            f"got {token_mask.dtype} of shape {tuple(token_mask.shape)}"
        )
    kept_per_row = (~token_mask).sum(dim=1)
    kept = int(kept_per_row[0])
    if kept == 0 or bool((kept_per_row != kept).any()):
        raise ValueError(
            "token_mask must keep the same, non-zero number of tokens in every row, "
            f"kept={kept_per_row.tolist()}"
        )
    rows = (~token_mask).flatten().nonzero().squeeze(1).to(tokens.device, non_blocking=True)
    return tokens.flatten(0, 1).index_select(0, rows).view(tokens.shape[0], kept, -1)


class PatchEmbed(nn.Module):
    """Projects each tubelet of a clip linearly to one token.

    Attributes:
        patch_size: (height, width) of a tubelet in pixels.
        grid_size: Tokens along (time, height, width): (T', H', W').
        num_patches: N = T' * H' * W'.

    Source: tubelet embedding of ViViT (Arnab et al., ICCV 2021), used by VideoMAE.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        in_chans: int,
        embed_dim: int,
        num_frames: int,
        tubelet_size: int,
    ):
        super().__init__()
        self.img_size = to_2tuple(img_size)
        self.patch_size = to_2tuple(patch_size)
        self.tubelet_size = tubelet_size
        self.input_size = (in_chans, num_frames, *self.img_size)
        if num_frames < 1 or num_frames % tubelet_size:
            raise ValueError(f"frames must divide into tubelets: {num_frames=}, {tubelet_size=}")
        if any(i < 1 or i % p for i, p in zip(self.img_size, self.patch_size, strict=True)):
            raise ValueError(f"the image must divide into patches: {img_size=}, {patch_size=}")
        rows, columns = (i // p for i, p in zip(self.img_size, self.patch_size, strict=True))
        self.grid_size = (num_frames // tubelet_size, rows, columns)
        self.num_patches = int(np.prod(self.grid_size))
        tubelet = (tubelet_size, *self.patch_size)
        self.proj = nn.Conv3d(in_chans, embed_dim, kernel_size=tubelet, stride=tubelet)

    def forward(self, x: Tensor) -> Tensor:
        """Turns clips (B, C, T, H, W) into tokens (B, N, D), time slowest, columns fastest."""
        if x.ndim != 5 or tuple(x.shape[1:]) != self.input_size:
            raise ValueError(
                f"expected clips (B, C, T, H, W) = (B, {', '.join(map(str, self.input_size))}), "
                f"got {tuple(x.shape)}"
            )
        # Tubelets do not overlap, so the convolution is one matrix product, which is faster.
        patches = rearrange(
            x,
            "b c (t u) (h p) (w q) -> b (t h w) (c u p q)",
            u=self.tubelet_size,
            p=self.patch_size[0],
            q=self.patch_size[1],
        )
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention with biases for queries and values, none for keys.

    Source: BEiT (Bao et al., ICLR 2022), kept by VideoMAE.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"the width must divide into heads: {dim=}, {num_heads=}")
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.attn_drop = attn_drop
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes tokens: (B, N, D) to (B, N, D)."""
        bias = None
        if self.q_bias is not None:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """A pre-norm transformer block with stochastic depth and optional layer scale.

    Source: ViT; stochastic depth of Huang et al. (ECCV 2016); layer scale of CaiT (Touvron et
        al., ICCV 2021), with VideoMAE's names `gamma_1` and `gamma_2`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        qk_scale: float | None,
        *,
        drop: float,
        attn_drop: float,
        drop_path: float,
        init_values: float,
        norm_layer: Callable[[int], nn.Module],
    ):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(dim, num_heads, qkv_bias, qk_scale, attn_drop, drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = norm_layer(dim)
        # VideoMAE drops after the second layer only.
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=(0.0, drop))
        self.gamma_1 = nn.Parameter(init_values * torch.ones(dim)) if init_values else None
        self.gamma_2 = nn.Parameter(init_values * torch.ones(dim)) if init_values else None

    def forward(self, x: Tensor) -> Tensor:
        """Applies attention, then the MLP, each around a residual: (B, N, D) to (B, N, D)."""
        y = self.attn(self.norm1(x))
        x = x + self.drop_path(y if self.gamma_1 is None else self.gamma_1 * y)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path(y if self.gamma_2 is None else self.gamma_2 * y)


class VisionTransformer(nn.Module):
    """A video Vision Transformer with one optional head, as VideoMAE V2 fine-tunes it.

    Args:
        img_size: Side of the square input (or height, width), pixels.
        patch_size: Side of a patch (or height, width), pixels; must divide `img_size`.
        in_chans: Channels of a frame.
        num_classes: Classes of the head; 0 makes it the identity.
        embed_dim: Token width D.
        depth: Number of blocks.
        num_heads: Attention heads of a block.
        mlp_ratio: Hidden width of the MLP over D.
        qkv_bias: Whether queries and values have biases.
        qk_scale: Factor of the attention logits; None means `head_dim ** -0.5`.
        drop_rate: Dropout of tokens, attention outputs and MLP outputs.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.
        head_drop_rate: Dropout before the head.
        norm_layer: Makes a norm from a width; None means LayerNorm with `norm_eps`.
        norm_eps: LayerNorm's eps; unused where `norm_layer` is given.
        init_values: Initial layer scale; 0 means none.
        use_learnable_pos_emb: Learn the position table instead of the fixed sinusoid.
        init_scale: Factor of a fresh head's weights.
        all_frames: Frames of a clip, T; must divide into tubelets.
        tubelet_size: Frames of a tubelet.
        use_mean_pooling: Average the tokens, then normalise; else normalise, then first token.
        with_cp: Recompute the blocks in the backward pass to save memory.

    Raises:
        ValueError: If sizes do not divide, naming them.

    Source: VideoMAE V2 (Wang et al., CVPR 2023), fine-tuning.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        *,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        head_drop_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] | None = None,
        norm_eps: float = 1e-6,
        init_values: float = 0.0,
        use_learnable_pos_emb: bool = False,
        init_scale: float = 0.001,
        all_frames: int = 16,
        tubelet_size: int = 2,
        use_mean_pooling: bool = True,
        with_cp: bool = False,
    ):
        super().__init__()
        norm_layer = norm_layer or partial(nn.LayerNorm, eps=norm_eps)
        self.num_features = self.embed_dim = embed_dim
        self.init_scale = init_scale
        self.with_cp = with_cp
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim, all_frames, tubelet_size)
        if use_learnable_pos_emb:
            table = torch.empty(1, self.patch_embed.num_patches, embed_dim)
            self.pos_embed = nn.Parameter(nn.init.trunc_normal_(table, std=INIT_STD))
        else:
            self._place_fixed_positions()
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                qkv_bias,
                qk_scale,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=drop_path_rate * i / max(depth - 1, 1),
                init_values=init_values,
                norm_layer=norm_layer,
            )
            for i in range(depth)
        )
        self.norm = nn.Identity() if use_mean_pooling else norm_layer(embed_dim)
        self.fc_norm = norm_layer(embed_dim) if use_mean_pooling else None
        self.head_dropout = nn.Dropout(head_drop_rate)
        self.apply(_init_linear)
        self.head = self._new_head(num_classes)

    def _place_fixed_positions(self) -> None:
        # A plain float32 attribute: neither in the state dict nor rounded by `.half()`. It stays
        # real when the weights are on the meta device, so that filling them is enough to run.
        device = self.patch_embed.proj.weight.device
        table = sinusoid_table(self.patch_embed.num_patches, self.embed_dim)
        self.pos_embed = table if device.type == "meta" else table.to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "VisionTransformer":
        super()._apply(fn, recurse)
        # Moves the table with the weights, so that no step copies it to the device.
        if "pos_embed" not in self._parameters:
            self._place_fixed_positions()
        return self

    def _new_head(self, num_classes: int) -> nn.Module:
        if num_classes < 0:
            raise ValueError(f"the number of classes must not be negative: {num_classes=}")
        if num_classes == 0:
            return nn.Identity()
        weight = self.patch_embed.proj.weight
        head = nn.Linear(self.embed_dim, num_classes, device=weight.device, dtype=weight.dtype)
        _init_linear(head)
        with torch.no_grad():
            head.weight.mul_(self.init_scale)
            head.bias.mul_(self.init_scale)
        return head

    def get_num_layers(self) -> int:
        """Returns the number of blocks."""
        return len(self.blocks)

    def no_weight_decay(self) -> set[str]:
        """Returns the names of parameters that weight decay leaves alone, besides 1-D ones."""
        return {"pos_embed", "cls_token"}

    def get_classifier(self) -> nn.Module:
        """Returns the head."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the head by a fresh one with `num_classes` outputs (0: the identity)."""
        self.head = self._new_head(num_classes)

    def forward_features(self, x: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Computes one feature vector a clip.

        Args:
            x: Normalised clips, float (B, C, T, H, W).
            token_mask: Tokens to leave out in training, bool (B, N), True = drop, equally many
                kept in each row (see `drop_tokens`).

        Returns:
            Features (B, D), normalised.

        Raises:
            ValueError: If the clips or the mask have another shape than the model's.
        """
        x = self.patch_embed(x)
        x = x + self.pos_embed.to(device=x.device, dtype=x.dtype)
        if token_mask is not None:
            x = drop_tokens(x, token_mask)
        x = self.pos_drop(x)
        recompute = self.with_cp and self.training
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return self.norm(x)[:, 0] if self.fc_norm is None else self.fc_norm(x.mean(dim=1))

    def forward_head(self, features: Tensor) -> Tensor:
        """Turns features (B, D) into logits (B, num_classes)."""
        return self.head(self.head_dropout(features))

    def forward(self, x: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Turns clips (B, C, T, H, W) into logits (B, num_classes); see `forward_features`."""
        return self.forward_head(self.forward_features(x, token_mask))


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
