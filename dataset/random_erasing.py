"""Random erasing: boxes are drawn with a view on the host, and filled on the device.

B batch, K boxes a view, T frames, H W pixels.

Source: Zhong et al., Random Erasing Data Augmentation (AAAI 2020), with the distribution of timm's
    `RandomErasing`; one box for all frames of a view as in VideoMAE V2.
"""

from __future__ import annotations

import math

import numpy as np
import torch

MODES = ("pixel", "rand", "const")
_AREA = (0.02, 1 / 3)
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
_TRIES = 10


def draw_erase_boxes(
    rng: np.random.Generator, height: int, width: int, probability: float, max_count: int
) -> np.ndarray:
    """Draws the boxes to erase from one view.

    With the given probability 1 to `max_count` boxes (each number as likely) share an area of 2 %
    to a third of the frame a box; height / width of a box is 0.3 to 3.3, uniform in its logarithm.

    Args:
        rng: source of the draws.
        height: of the view, pixels.
        width: of the view, pixels.
        probability: of erasing anything, in [0, 1].
        max_count: most boxes, at least 1.

    Returns:
        int16 `(max_count, 4)`: top, left, height, width in pixels; rows of zeros erase nothing.
    """
    boxes = np.zeros((max_count, 4), np.int16)
    if rng.random() >= probability:
        return boxes
    count = int(rng.integers(1, max_count, endpoint=True))
    for row in range(count):
        for _ in range(_TRIES):
            area = rng.uniform(*_AREA) * height * width / count
            aspect = math.exp(rng.uniform(*_LOG_ASPECT))
            box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if box_height < height and box_width < width:
                top = rng.integers(height - box_height, endpoint=True)
                left = rng.integers(width - box_width, endpoint=True)
                boxes[row] = top, left, box_height, box_width
                break
    return boxes


def erase_(
    clips: torch.Tensor, boxes: torch.Tensor, mode: str = "pixel", generator: torch.Generator | None = None
) -> torch.Tensor:
    """Erases boxes from normalised clips, in place; the host does not wait for the device.

    Args:
        clips: float `(B, 3, T, H, W)`, mean 0 and deviation 1.
        boxes: integer `(B, K, 4)` on the CPU: top, left, height, width; zeros erase nothing.
        mode: `pixel` fresh normal noise for each frame, pixel and channel; `rand` one normal
            colour a box; `const` zero.
        generator: source of the noise, on the device of `clips`.

    Returns:
        `clips`.

    Raises:
        ValueError: an unknown mode, or boxes that the host would have to fetch.
    """
    if mode not in MODES:
        raise ValueError(f"--remode {mode!r}: expected one of {', '.join(MODES)}")
    if boxes.device.type != "cpu":
        raise ValueError(f"erase boxes must stay on the CPU, not on {boxes.device}")
    for clip, clip_boxes in zip(clips, boxes.tolist(), strict=True):
        for top, left, height, width in clip_boxes:
            patch = clip[:, :, top : top + height, left : left + width]
            if patch.numel() == 0:
                continue
            if mode == "pixel":
                patch.normal_(generator=generator)
            elif mode == "rand":
                colour = clip.new_empty(clip.shape[0], 1, 1, 1)
                patch.copy_(colour.normal_(generator=generator))
            else:
                patch.zero_()
    return clips
