"""From a batch of 8-bit clips to what the model eats.

B batch, T frames, H W pixels.
"""

from __future__ import annotations

import functools

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from dataset.random_erasing import erase_


def normalize_clips(frames: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Brings clips to ImageNet's mean 0 and deviation 1, channels first.

    Args:
        frames: uint8 `(B, T, H, W, 3)`, RGB, on any device.
        dtype: of the result; the arithmetic is float32.

    Returns:
        contiguous `(B, 3, T, H, W)` on the same device.

    Source: VideoMAE V2 (`(x / 255 - mean) / std`).
    """
    scale, shift = _scale_and_shift(frames.device)
    clips = frames.permute(0, 4, 1, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
    return torch.addcmul(shift, clips, scale, out=clips).to(dtype)


@functools.cache
def _scale_and_shift(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors and offsets `(3, 1, 1, 1)`, moved once: a copy to the device makes the host wait."""
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN, dtype=torch.float64)
    std = torch.tensor(IMAGENET_DEFAULT_STD, dtype=torch.float64)
    factors = (1 / (255 * std), -mean / std)
    scale, shift = (f.view(3, 1, 1, 1).to(device, torch.float32) for f in factors)
    return scale, shift


class ClipsToInput:
    """What becomes of 8-bit views on the device: normalise, then erase the boxes drawn with them.

    Args:
        remode: what erased boxes are filled with, see `random_erasing.erase_`.
    """

    def __init__(self, remode: str = "pixel"):
        self._remode = remode

    def __call__(self, frames: torch.Tensor, erase_boxes: torch.Tensor | None = None) -> torch.Tensor:
        """Makes float32 `(N, 3, T, S, S)` of uint8 `(N, T, S, S, 3)` frames on the device.

        Args:
            frames: the views.
            erase_boxes: integer `(N, K, 4)` on the host; None in evaluations.
        """
        clips = normalize_clips(frames)
        return clips if erase_boxes is None else erase_(clips, erase_boxes, self._remode)
