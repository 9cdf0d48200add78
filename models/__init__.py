"""The two-headed video Vision Transformer; importing this package registers its sizes with timm."""

from models.modeling_finetune import VIT_SIZES, VisionTransformer
from models.modeling_finetune_alternating import HANDS, AlternatingDualHeadVisionTransformer, HandLogits
from models.pretrained import DEFAULT_KEYS, LoadReport, PretrainedError, load_pretrained
from models.weight_files import WeightSource, find_weights

__all__ = [
    "DEFAULT_KEYS",
    "HANDS",
    "VIT_SIZES",
    "AlternatingDualHeadVisionTransformer",
    "HandLogits",
    "LoadReport",
    "PretrainedError",
    "VisionTransformer",
    "WeightSource",
    "find_weights",
    "load_pretrained",
]
