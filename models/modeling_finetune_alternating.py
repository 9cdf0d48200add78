"""One video backbone with a classification head for each hand, and its sizes in timm's registry.

Shapes: B clips, C channels, T frames, H x W pixels; N tokens of width D.

Source: ADH-ViT, the alternating dual-hand trainer of Polyphony (CVPR 2026), on VideoMAE V2.
"""

from typing import Any, NamedTuple

from timm.models import register_model
from torch import Tensor, nn

from models.modeling_finetune import VIT_SIZES, VisionTransformer

HANDS = ("lh", "rh")


class HandLogits(NamedTuple):
    """Logits of both hands for the same clips.

    Attributes:
        lh: Left hand, (B, lh_num_classes).
        rh: Right hand, (B, rh_num_classes).
    """

    lh: Tensor
    rh: Tensor


class AlternatingDualHeadVisionTransformer(VisionTransformer):
    """A shared backbone with one head for the left and one for the right hand.

    Args:
        lh_num_classes: Classes of the left hand; 0 makes its head the identity.
        rh_num_classes: Classes of the right hand; 0 makes its head the identity.
        num_classes: Accepted for callers of the single-head model; there is no single head here.
        **backbone: Keywords of `VisionTransformer`; `init_scale` and `head_drop_rate` act on both
            heads.

    Source: ADH-ViT (Polyphony, CVPR 2026).
    """

    def __init__(
        self, *, lh_num_classes: int = 75, rh_num_classes: int = 75, num_classes: int = 0, **backbone: Any
    ):
        super().__init__(num_classes=0, **backbone)
        del self.head
        self.reset_classifier(lh_num_classes, rh_num_classes)

    def get_classifier(self, hand: str | None = None) -> nn.Module | tuple[nn.Module, ...]:
        """Returns the head of `hand`, or both in the order of `HANDS`.

        Raises:
            ValueError: If `hand` is neither a hand nor None.
        """
        if hand is None:
            return tuple(self.get_classifier(hand) for hand in HANDS)
        if hand not in HANDS:
            raise ValueError(f"hand must be one of {HANDS}, got {hand!r}")
        return getattr(self, f"{hand}_head")

    def reset_classifier(self, lh_num_classes: int, rh_num_classes: int) -> None:
        """Replaces both heads by fresh ones, scaled by `init_scale` (0 classes: the identity)."""
        for hand, num_classes in zip(HANDS, (lh_num_classes, rh_num_classes), strict=True):
            setattr(self, f"{hand}_head", self._new_head(num_classes))
        self.lh_num_classes = lh_num_classes
        self.rh_num_classes = rh_num_classes

    def forward_head(self, features: Tensor, hand: str) -> Tensor:
        """Turns features (B, D) into one hand's logits (B, classes of that hand)."""
        return self.get_classifier(hand)(self.head_dropout(features))

    def forward(self, x: Tensor, hand_type: str, token_mask: Tensor | None = None) -> Tensor | HandLogits:
        """Classifies clips for one hand, or for both with a single pass of the backbone.

        Args:
            x: Normalised clips, float (B, C, T, H, W).
            hand_type: "lh", "rh" or "both".
            token_mask: Tokens to leave out in training, bool (B, N), True = drop, equally many
                kept in each row.

        Returns:
            The hand's logits (B, classes), or `HandLogits` for "both".

        Raises:
            ValueError: If `hand_type` is another word, or shapes are not the model's.
        """
        if hand_type not in (*HANDS, "both"):
            raise ValueError(f"hand_type must be one of {(*HANDS, 'both')}, got {hand_type!r}")
        features = self.forward_features(x, token_mask)
        if hand_type == "both":
            return HandLogits(*(self.forward_head(features, hand) for hand in HANDS))
        return self.forward_head(features, hand_type)


def _create(size: str, pretrained: bool, **kwargs: Any) -> AlternatingDualHeadVisionTransformer:
    if pretrained:
        raise ValueError(
            "no weights are downloaded (pretrained=True): build the model, then load a file's "
            "weights with models.load_pretrained"
        )
    for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):  # injected by timm
        kwargs.pop(key, None)
    return AlternatingDualHeadVisionTransformer(**{**VIT_SIZES[size], **kwargs})


@register_model
def vit_tiny_patch16_224_alternating(
    pretrained: bool = False, **kwargs: Any
) -> AlternatingDualHeadVisionTransformer:
    """Builds the tiny size (width 192, 12 blocks), for trials; any keyword may be overridden."""
    return _create("tiny", pretrained, **kwargs)


@register_model
def vit_small_patch16_224_alternating(
    pretrained: bool = False, **kwargs: Any
) -> AlternatingDualHeadVisionTransformer:
    """Builds the small size (width 384, 12 blocks)."""
    return _create("small", pretrained, **kwargs)


@register_model
def vit_base_patch16_224_alternating(
    pretrained: bool = False, **kwargs: Any
) -> AlternatingDualHeadVisionTransformer:
    """Builds the base size (width 768, 12 blocks)."""
    return _create("base", pretrained, **kwargs)


@register_model
def vit_large_patch16_224_alternating(
    pretrained: bool = False, **kwargs: Any
) -> AlternatingDualHeadVisionTransformer:
    """Builds the large size (width 1024, 24 blocks)."""
    return _create("large", pretrained, **kwargs)


@register_model
def vit_huge_patch16_224_alternating(
    pretrained: bool = False, **kwargs: Any
) -> AlternatingDualHeadVisionTransformer:
    """Builds the huge size (width 1280, 32 blocks)."""
    return _create("huge", pretrained, **kwargs)


@register_model
def vit_giant_patch14_224_alternating(
    pretrained: bool = False, **kwargs: Any
) -> AlternatingDualHeadVisionTransformer:
    """Builds the giant size (width 1408, 40 blocks, patch 14, MLP ratio 48/11)."""
    return _create("giant", pretrained, **kwargs)
