"""RandAugment, resized crop and flip of a clip in one warp a frame: what training uses by default.

The plain pipeline (`rand_augment`, `functional`) makes whole frames, one operation after the other, of
which the crop then keeps a part. Here the operations are drawn alike, but

- all geometry, the crop and the flip are one affine map from the view back to the frame;
- operations on single pixels are tables of 256 entries, applied to the view;
- statistics (auto-contrast, equalise, contrast) come from the whole frame, thinned out;
- sharpening blends with the means of 3 x 3 pixels of the frame, which took the same way as the view.

What differs from the plain pipeline: pictures are interpolated once instead of twice, statistics are of
a part of the pixels, and a second sharpening blends with the first one's means.

Shapes: T frames, H W pixels of a frame, S side of a view. Coordinates are continuous: pixel i covers
[i, i + 1). Matrices are 3 x 3 and act on (x, y, 1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from PIL import Image

from dataset import functional
from dataset.rand_augment import FILL, Operation
from dataset.transforms import CropBox

# timm's names without the suffix of magnitudes that grow with the level.
POINTWISE = frozenset(("Invert", "Posterize", "Solarize", "SolarizeAdd", "Brightness"))
STATISTICS = frozenset(("AutoContrast", "Equalize", "Contrast"))
GEOMETRY = frozenset(
    ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY", "TranslateXRel", "TranslateYRel")
)
SUPPORTED = POINTWISE | STATISTICS | GEOMETRY | {"Color", "Sharpness"}

_THIN_SIDE = 96  # shorter side of the frames that statistics are taken from, pixels, at least
_GREY_WEIGHTS = np.array([19595, 38470, 7471]) / 65536  # PIL's grey of R, G, B
_RAMP = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2))

ClipFunction = Callable[[np.ndarray], np.ndarray]  # of uint8 (T, h, w, 3) frames


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
    names = [op.name for op in operations]
    maps = {i: geometry_of(op, *shape) for i, op in enumerate(operations) if op.name in GEOMETRY}
    view_to_source, outside = _trace_back(maps, box, flip, size, shape)
    take = _warping(view_to_source, size, shape) if maps else _cropping(box, flip, size)

    view = take(frames)
    needed = _needed(view_to_source, size, shape)
    means = _taken_means(frames, take, needed, size) if "Sharpness" in names else None
    thin = None if STATISTICS.isdisjoint(names) else _thinned(frames)
    for i, op in enumerate(operations):
        later = names[i + 1 :]  # what none of these needs is not followed any more
        parts = [view, means] if "Sharpness" in later else [view]
        measured = not STATISTICS.isdisjoint(later)
        if op.name in GEOMETRY:
            _fill_outside(parts, outside[i])
            thin = _warp_thin(thin, maps[i], shape) if measured else None
        elif op.name == "Sharpness":
            _sharpen(view, means, *op.args)
            if measured:
                _sharpen(thin, _means(thin), *op.args)
        else:
            recolour = _recolouring(op, thin)
            for part in [*parts, thin] if measured else parts:
                recolour(part)
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
        the matrix, and {operation: uint8 `(S, S)`, not 0 in view pixels that the operation fills}.
    """
    matrix = np.array([[box.width / size, 0, box.left], [0, box.height / size, box.top], [0, 0, 1.0]])
    if flip:
        matrix = matrix @ _shift(size, 0) @ np.diag([-1.0, 1, 1])
    outside = {}
    for i in sorted(maps, reverse=True):
        matrix = maps[i] @ matrix
        x, y = _points(matrix, size)
        outside[i] = ((x < 0) | (x >= frame[1]) | (y < 0) | (y >= frame[0])).view(np.uint8)
    return matrix, outside


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def _points(matrix: np.ndarray, size: int) -> list[np.ndarray]:
    """Where the centres of a view's pixels come from: x and y, float32 `(S, S)`."""
    centres = np.arange(size, dtype=np.float32) + 0.5
    rows = matrix[:2].astype(np.float32)
    return [along_x * centres + (along_y * centres + start)[:, None] for along_x, along_y, start in rows]


def _needed(matrix: np.ndarray, size: int, frame: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the source that a view is taken from, with a margin for 3 x 3 pixels."""
    corners = matrix[:2] @ [[0, size, 0, size], [0, 0, size, size], [1, 1, 1, 1]]
    spans = []
    for along, length in zip(corners[::-1], frame, strict=True):
        start = int(np.clip(math.floor(along.min()) - 2, 0, length - 1))
        spans.append(slice(start, int(np.clip(math.ceil(along.max()) + 2, start + 1, length))))
    return spans[0], spans[1]


def _cropping(box: CropBox, flip: bool, size: int) -> ClipFunction:
    """What takes a view where nothing moved."""

    def crop(frames: np.ndarray) -> np.ndarray:
        views = functional.resized_crop(frames, box, size)
        return functional.hflip(views) if flip else views

    return crop


def _warping(matrix: np.ndarray, size: int, frame: tuple[int, int]) -> ClipFunction:
    """What takes bilinear views; what lies outside of the frame repeats its border and is filled later.

    The points are made once for all frames, in whole 32nds of a pixel, and moved to within the frame:
    OpenCV takes half as long as for the matrix. Both neighbours of a point have to be in the frame for that.
    """
    nearly_one = 31 / 32
    x, y = (
        np.clip(along - 0.5, 0, length - 2 + nearly_one)
        for along, length in zip(_points(matrix, size), frame[::-1], strict=True)
    )
    points = cv2.convertMaps(x, y, cv2.CV_16SC2)

    def warp(frames: np.ndarray) -> np.ndarray:
        views = np.empty((len(frames), size, size, 3), np.uint8)
        for picture, view in zip(frames, views, strict=True):
            cv2.remap(picture, *points, cv2.INTER_LINEAR, view, cv2.BORDER_REPLICATE)
        return views

    return warp


def _fill_outside(parts: Sequence[np.ndarray], outside: np.ndarray) -> None:
    """Paints grey what an operation moved in from outside of the frame, in place."""
    if not outside.any():
        return
    grey = np.full((*outside.shape, 3), FILL, np.uint8)
    for frame in itertools.chain(*parts):
        cv2.copyTo(grey, outside, frame)


# ------------------------------------------------------------------------------------ colours


def _recolouring(op: Operation, thin: np.ndarray | None) -> ClipFunction:
    """What an operation does to the colours of frames."""
    if op.name == "Color":
        matrix = (op.args[0] * np.eye(3) + (1 - op.args[0]) * _GREY_WEIGHTS).astype(np.float32)
        return lambda frames: _by_frame(cv2.transform, frames, [matrix] * len(frames))
    if op.name in POINTWISE:
        table = np.asarray(op.function(_RAMP, *op.args, **op.options))[:, 0, 0]  # alike for all channels
        return lambda frames: _by_frame(cv2.LUT, frames, [table] * len(frames))
    tables = _statistical_tables(op, thin)
    return lambda frames: _by_frame(cv2.LUT, frames, tables)


def _by_frame(change: Callable, frames: np.ndarray, how: Sequence[np.ndarray]) -> None:
    """Applies a function of OpenCV to each frame in place, with its own argument."""
    for frame, argument in zip(frames, how, strict=True):
        change(frame, argument, dst=frame)


def _statistical_tables(op: Operation, thin: np.ndarray) -> Sequence[np.ndarray]:
    """A table `(256,)` or `(256, 1, 3)` a frame, of an operation that looks at the whole frame."""
    if op.name == "Contrast":
        return [_contrast_table(frame, *op.args) for frame in thin]
    if op.name == "Equalize":
        return [_equalising_tables(frame) for frame in thin]
    return _stretching_tables(thin)


def _contrast_table(frame: np.ndarray, factor: float) -> np.ndarray:
    mean = int(np.dot(cv2.mean(frame)[:3], _GREY_WEIGHTS) + 0.5)
    grey = Image.new("RGB", _RAMP.size, (mean, mean, mean))
    return np.asarray(Image.blend(grey, _RAMP, factor))[:, 0, 0]


def _stretching_tables(thin: np.ndarray) -> np.ndarray:
    """Tables `(T, 256, 1, 3)` that stretch each channel to the full range, as PIL's `autocontrast` does."""
    rows = thin.reshape(*thin.shape[:2], -1)  # down the columns first: much faster than by channel
    low, high = (ends(axis=1).reshape(-1, *thin.shape[2:]) for ends in (rows.min, rows.max))
    low, high = (ends[:, None, None].astype(int) for ends in (low.min(axis=1), high.max(axis=1)))
    ramp, scale = np.arange(256)[:, None, None], 255 / np.maximum(high - low, 1)
    return np.where(high > low, (ramp * scale - low * scale).clip(0, 255), ramp).astype(np.uint8)


def _equalising_tables(frame: np.ndarray) -> np.ndarray:
    """The table `(256, 1, 3)` of a frame's three channels."""
    histograms = [cv2.calcHist([frame], [channel], None, [256], (0, 256)).ravel() for channel in range(3)]
    return np.stack([equalising_table(h.astype(np.int64)) for h in histograms], axis=-1)[:, None]


def equalising_table(histogram: np.ndarray) -> np.ndarray:
    """The table `(256,)` that flattens a channel's histogram, as PIL's `ImageOps.equalize` does."""
    used = histogram[histogram > 0]
    step = (used.sum() - used[-1]) // 255
    if len(used) <= 1 or step == 0:
        return np.arange(256, dtype=np.uint8)
    below = np.concatenate([[0], np.cumsum(histogram)[:-1]])
    return np.minimum((step // 2 + below) // step, 255).astype(np.uint8)


def _taken_means(
    frames: np.ndarray, take: ClipFunction, needed: tuple[slice, slice], size: int
) -> np.ndarray:
    """The view of the means of 3 x 3 pixels, which are computed where it needs them."""
    means = np.empty_like(frames[:1])  # one frame's place for all: touching new memory takes longer
    views = np.empty((len(frames), size, size, 3), np.uint8)
    for frame, view in zip(frames, views, strict=True):
        cv2.blur(frame[needed], (3, 3), dst=means[0][needed])
        view[:] = take(means)[0]
    return views


def _means(frames: np.ndarray) -> np.ndarray:
    """The mean of 3 x 3 pixels around each."""
    return np.stack([cv2.blur(frame, (3, 3)) for frame in frames])


def _sharpen(frames: np.ndarray, means: np.ndarray, factor: float) -> None:
    """PIL's sharpening, in place: weighs a picture and a smooth one (3 x 3, the centre five-fold)."""
    share = (1 - factor) * 9 / 13
    for frame, mean in zip(frames, means, strict=True):
        cv2.addWeighted(frame, 1 - share, mean, share, 0, dst=frame)


# --------------------------------------------------------------------------------- statistics


def _thinned(frames: np.ndarray) -> np.ndarray:
    """Every k-th pixel of each frame, in both directions."""
    height, width = frames.shape[1:3]
    k = max(1, min(height, width) // _THIN_SIDE)
    thin = np.empty((len(frames), height // k, width // k, 3), np.uint8)
    for frame, target in zip(frames, thin, strict=True):
        cv2.resize(frame, target.shape[1::-1], target, interpolation=cv2.INTER_NEAREST)
    return thin


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
