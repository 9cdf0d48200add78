"""RandAugment, resized crop and flip of a clip in one warp a frame: what training uses by default.

The plain pipeline (`rand_augment`, `functional`) makes whole frames, one operation after the other, of
which the crop then keeps a part. Here the operations are drawn alike, but

- all geometry, the crop and the flip are one affine map from the view back to the frame;
- operations on single pixels are tables of 256 entries, applied to the view;
- statistics (auto-contrast, equalise, contrast) come from the whole frame, thinned out;
- sharpening blends with a smoothed frame that took the same way.

What differs from the plain pipeline: pictures are interpolated once instead of twice, statistics are of
a part of the pixels, and a second sharpening blends with the first one's smoothed frame.

Shapes: T frames, H W pixels of a frame, S side of a view. Coordinates are continuous: pixel i covers
[i, i + 1). Matrices are 3 x 3 and act on (x, y, 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from dataset import functional
from dataset.rand_augment import FILL, Operation
from dataset.transforms import CropBox

# timm's names without the suffix of magnitudes that grow with the level.
POINTWISE = ("Invert", "Posterize", "Solarize", "SolarizeAdd", "Brightness")
STATISTICS = ("AutoContrast", "Equalize", "Contrast")
GEOMETRY = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY", "TranslateXRel", "TranslateYRel")
OTHERS = ("Color", "Sharpness")
SUPPORTED = frozenset((*POINTWISE, *STATISTICS, *GEOMETRY, *OTHERS))

_THIN_SIDE = 96  # shorter side of the frames that statistics are taken from, pixels, at least
_GREY_WEIGHTS = np.array([19595, 38470, 7471]) / 65536  # PIL's grey of R, G, B
_RAMP = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2))


def composed_view(
    frames: np.ndarray, operations: Sequence[Operation], box: CropBox, flip: bool, size: int
) -> np.ndarray:
    """Makes one training view.

    Args:
        frames: uint8 `(T, H, W, 3)`, RGB.
        operations: drawn by `ClipRandAugment.draw`, all of them `SUPPORTED`.
        box: of the resized crop, in the frame after the operations.
        flip: whether the view is mirrored.
        size: side of the view, S.

    Returns:
        uint8 `(T, S, S, 3)`.
    """
    shape = frames.shape[1:3]
    maps = {i: geometry_of(op, *shape) for i, op in enumerate(operations) if op.name in GEOMETRY}
    view_to_source, outside = _trace_back(maps, box, flip, size, shape)

    def take(source: np.ndarray, left: int = 0, top: int = 0) -> np.ndarray:
        """The view of a source that is the frame from (left, top) on."""
        if maps:
            return _warp(source, _shift(-left, -top) @ view_to_source, size)
        plain = functional.resized_crop(source, box._replace(top=box.top - top, left=box.left - left), size)
        return functional.hflip(plain) if flip else plain

    def take_means() -> np.ndarray:
        rows, columns = _needed(view_to_source, size, shape)
        return take(_means(frames[:, rows, columns]), columns.start, rows.start)

    names = [op.name for op in operations]
    view = take(frames)
    smooth = _smoothed(view, take_means()) if "Sharpness" in names else None
    thin = _thinned(frames) if any(name in STATISTICS for name in names) else None
    for i, op in enumerate(operations):
        if op.name in GEOMETRY:
            fill_outside(view, smooth, outside[i])
            thin = None if thin is None else _warp_thin(thin, maps[i], shape)
        elif op.name == "Sharpness":
            view = _blend(view, smooth, op.args[0])
            thin = None if thin is None else _blend(thin, _smoothed(thin, _means(thin)), op.args[0])
        else:
            recolour = _recolouring(op, thin)
            view, smooth, thin = (None if part is None else recolour(part) for part in (view, smooth, thin))
    return view


# ---------------------------------------------------------------------------------- geometry


def geometry_of(op: Operation, height: int, width: int) -> np.ndarray:
    """The map from an operation's result back to its input, as PIL defines it."""
    matrix = np.eye(3)
    (value,) = op.args
    if op.name == "Rotate":
        angle = -math.radians(value)
        matrix[:2, :2] = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        centre = np.array([width / 2, height / 2])
        matrix[:2, 2] = centre - matrix[:2, :2] @ centre
    elif op.name.startswith("Shear"):
        matrix[(0, 1) if op.name == "ShearX" else (1, 0)] = value
    else:
        axis = 0 if op.name.startswith("TranslateX") else 1
        matrix[axis, 2] = value * (width, height)[axis] if op.name.endswith("Rel") else value
    return matrix


def _trace_back(
    maps: dict[int, np.ndarray], box: CropBox, flip: bool, size: int, frame: tuple[int, int]
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """The map from the view to the source, and where each operation's input lies outside of it.

    Returns:
        the matrix, and {operation: bool `(S, S)`} of view pixels that the operation fills.
    """
    matrix = np.array([[box.width / size, 0, box.left], [0, box.height / size, box.top], [0, 0, 1.0]])
    if flip:
        matrix = matrix @ _shift(size, 0) @ np.diag([-1.0, 1, 1])
    outside = {}
    centres = np.arange(size) + 0.5
    for i in sorted(maps, reverse=True):
        matrix = maps[i] @ matrix
        x, y = (
            matrix[k, 0] * centres[None] + (matrix[k, 1] * centres + matrix[k, 2])[:, None] for k in (0, 1)
        )
        outside[i] = (x < 0) | (x >= frame[1]) | (y < 0) | (y >= frame[0])
    return matrix, outside


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def _needed(matrix: np.ndarray, size: int, frame: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the source that a view is taken from, with a margin for 3 x 3 pixels."""
    corners = matrix[:2] @ [[0, size, 0, size], [0, 0, size, size], [1, 1, 1, 1]]
    spans = []
    for along, length in zip(corners[::-1], frame, strict=True):
        start = int(np.clip(math.floor(along.min()) - 2, 0, length - 1))
        spans.append(slice(start, int(np.clip(math.ceil(along.max()) + 2, start + 1, length))))
    return spans[0], spans[1]


def _warp(frames: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Bilinear views of all frames; what lies outside repeats the border and is filled later."""
    half = _shift(0.5, 0.5)
    in_pixels = (np.linalg.inv(half) @ matrix @ half)[:2]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    views = np.empty((len(frames), size, size, 3), np.uint8)
    for frame, view in zip(frames, views, strict=True):
        cv2.warpAffine(frame, in_pixels, (size, size), view, flags, cv2.BORDER_REPLICATE)
    return views


def fill_outside(view: np.ndarray, smooth: np.ndarray | None, outside: np.ndarray) -> None:
    """Paints grey what an operation moved in from outside of the frame, in place."""
    if not outside.any():
        return
    kept = np.where(outside[..., None], 0, 255).astype(np.uint8)
    kept = np.repeat(kept, 3, axis=2)
    filled = ~kept & np.array(FILL, np.uint8)
    for part in (view, smooth):
        if part is not None:  # two passes over bytes are much faster than a mask over pixels
            np.bitwise_and(part, kept, out=part)
            np.bitwise_or(part, filled, out=part)


# ------------------------------------------------------------------------------------ colours


def _recolouring(op: Operation, thin: np.ndarray | None):  # noqa: ANN202 - a function of frames
    """What an operation does to the colours of `(T, h, w, 3)` frames."""
    if op.name == "Color":
        matrix = op.args[0] * np.eye(3) + (1 - op.args[0]) * _GREY_WEIGHTS
        return lambda frames: _by_pixel(frames, lambda flat: cv2.transform(flat, matrix.astype(np.float32)))
    if op.name in POINTWISE:
        table = np.asarray(op.function(_RAMP, *op.args, **op.options))[:, 0, 0]  # alike for all channels
        return lambda frames: _by_pixel(frames, lambda flat: cv2.LUT(flat, table))
    tables = [_statistical_table(op, frame) for frame in thin]
    return lambda frames: np.stack([cv2.LUT(f, table) for f, table in zip(frames, tables, strict=True)])


def _by_pixel(frames: np.ndarray, change) -> np.ndarray:  # noqa: ANN001 - a function of one picture
    """Applies what acts on single pixels to all frames as one tall picture."""
    return change(frames.reshape(-1, *frames.shape[2:])).reshape(frames.shape)


def _statistical_table(op: Operation, frame: np.ndarray) -> np.ndarray:
    """The table `(256,)` or `(256, 1, 3)` of an operation that looks at the whole frame."""
    if op.name == "Contrast":
        mean = int(np.dot(cv2.mean(frame)[:3], _GREY_WEIGHTS) + 0.5)
        grey = Image.new("RGB", _RAMP.size, (mean, mean, mean))
        return np.asarray(Image.blend(grey, _RAMP, op.args[0]))[:, 0, 0]
    histograms = [cv2.calcHist([frame], [channel], None, [256], (0, 256)).ravel() for channel in range(3)]
    if op.name == "Equalize":
        return np.stack([equalising_table(h.astype(np.int64)) for h in histograms], axis=-1)[:, None]
    # PIL stretches between the extremes: a ramp that is cut off there has the same ones.
    ends = [np.flatnonzero(histogram)[[0, -1]] for histogram in histograms]
    within = np.clip(np.asarray(_RAMP), *np.transpose(ends).astype(np.uint8))
    return np.asarray(op.function(Image.fromarray(within)))


def equalising_table(histogram: np.ndarray) -> np.ndarray:
    """The table `(256,)` that flattens a channel's histogram, as PIL's `ImageOps.equalize` does."""
    used = histogram[histogram > 0]
    step = (used.sum() - used[-1]) // 255
    if len(used) <= 1 or step == 0:
        return np.arange(256, dtype=np.uint8)
    below = np.concatenate([[0], np.cumsum(histogram)[:-1]])
    return np.minimum((step // 2 + below) // step, 255).astype(np.uint8)


def _means(frames: np.ndarray) -> np.ndarray:
    """The mean of 3 x 3 pixels around each."""
    return np.stack([cv2.blur(frame, (3, 3)) for frame in frames])


def _smoothed(frames: np.ndarray, means: np.ndarray) -> np.ndarray:
    """What PIL's sharpening blends with: 3 x 3 pixels, the centre five-fold."""
    return _blend(frames, means, 4 / 13)


def _blend(frames: np.ndarray, smooth: np.ndarray, factor: float) -> np.ndarray:
    first, second = (part.reshape(len(part), -1) for part in (frames, smooth))
    return cv2.addWeighted(first, factor, second, 1 - factor, 0).reshape(frames.shape)


# --------------------------------------------------------------------------------- statistics


def _thinned(frames: np.ndarray) -> np.ndarray:
    """Every k-th pixel of each frame, in both directions."""
    height, width = frames.shape[1:3]
    k = max(1, min(height, width) // _THIN_SIDE)
    shape = (width // k, height // k)
    return np.stack([cv2.resize(frame, shape, interpolation=cv2.INTER_NEAREST) for frame in frames])


def _warp_thin(thin: np.ndarray, matrix: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    """Moves thinned frames as an operation moves whole ones."""
    height, width = thin.shape[1:3]
    to_whole = np.diag([frame[1] / width, frame[0] / height, 1.0])
    half = _shift(0.5, 0.5)
    in_pixels = (np.linalg.inv(to_whole @ half) @ matrix @ to_whole @ half)[:2]
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    moved = [
        cv2.warpAffine(f, in_pixels, (width, height), None, flags, cv2.BORDER_CONSTANT, FILL) for f in thin
    ]
    return np.stack(moved)
