"""Drawing primitives of the sample data: half-picture coordinates, polygons, shadows, hands.

Coordinates are (u, v) in units of the picture's height. v runs down from the top edge. u runs
*outwards* from the vertical middle of the picture, so the same drawing code serves both hands and
the right half is the mirror image of the left half. Colours are RGB, 0-255. Angles are degrees.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from scripts.data.sample_vocabulary import Colour, HandStyle, Part

_SUBPIXEL_BITS = 4
_ELBOW = (0.54, 1.14)


def scaled(colour: Colour, factor: float) -> Colour:
    """Returns the colour made darker (factor < 1) or lighter (factor > 1)."""
    return tuple(int(min(255, max(0, round(channel * factor)))) for channel in colour)


@lru_cache(maxsize=8)
def unit_circle(corners: int = 20) -> np.ndarray:
    """Returns `(corners, 2)` points on the circle of radius 1."""
    angles = np.linspace(0.0, 2.0 * np.pi, corners, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


@dataclass(frozen=True)
class PartLook:
    """A part with the colours that it has in one recording."""

    part: Part
    body: Colour
    mark: Colour

    def colour(self, tone: str) -> Colour:
        """Returns the colour of one of the part's tones (`body`, `shade`, `light`, `mark`)."""
        if tone == "mark":
            return self.mark
        return scaled(self.body, {"body": 1.0, "shade": 0.6, "light": 1.25}[tone])


@dataclass(frozen=True)
class Stage:
    """One half of a picture, in which one hand works.

    Args:
        image: `(H, W, 3)` uint8 picture that is drawn into.
        side: -1 for the left half, +1 for the right half.
    """

    image: np.ndarray
    side: int

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Turns `(N, 2)` half-picture coordinates into fractional pixels."""
        height, width = self.image.shape[:2]
        pixels = np.array(points, dtype=np.float64) * height
        pixels[:, 0] = width / 2 + self.side * pixels[:, 0]
        return pixels

    def fill(self, points: np.ndarray, colour: Colour) -> None:
        """Fills a polygon given by `(N, 2)` half-picture coordinates."""
        self._fill_pixels(self.to_pixels(points), colour)

    def _fill_pixels(self, pixels: np.ndarray, colour: Colour) -> None:
        fixed = np.rint(pixels * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(self.image, [fixed], colour, cv2.LINE_AA, _SUBPIXEL_BITS)

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fills an upright rectangle; `left` is the edge nearer to the picture's middle."""
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        self.fill(np.array(corners), colour)

    def ellipse(self, centre: tuple[float, float], radii: tuple[float, float], colour: Colour) -> None:
        """Fills an upright ellipse."""
        self.fill(unit_circle() * np.array(radii) + np.array(centre), colour)

    def line(
        self, start: tuple[float, float], end: tuple[float, float], width: float, colour: Colour
    ) -> None:
        """Draws a round-ended line; `width` in units of the picture's height."""
        ends = np.rint(self.to_pixels(np.array([start, end])) * (1 << _SUBPIXEL_BITS))
        first, second = ends.astype(np.int32).tolist()
        thickness = max(1, round(width * self.image.shape[0]))
        cv2.line(self.image, first, second, colour, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)

    def shadow(self, centre: tuple[float, float], radii: tuple[float, float], strength: float) -> None:
        """Darkens an ellipse of the picture by `strength` (0 to 1)."""
        pixels = self.to_pixels(unit_circle() * np.array(radii) + np.array(centre))
        low = np.maximum(np.floor(pixels.min(axis=0)).astype(int) - 1, 0)
        high = np.ceil(pixels.max(axis=0)).astype(int) + 2
        patch = self.image[low[1] : high[1], low[0] : high[0]]
        if patch.size == 0:
            return
        dark = patch.copy()
        fixed = np.rint((pixels - low) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(dark, [fixed], (15, 15, 20), cv2.LINE_AA, _SUBPIXEL_BITS)
        cv2.addWeighted(dark, strength, patch, 1.0 - strength, 0.0, dst=patch)

    def draw_part(
        self,
        look: PartLook,
        origin: tuple[float, float],
        *,
        scale: float = 1.0,
        angle: float = 0.0,
        floor: float | None = None,
        ceiling: float | None = None,
    ) -> None:
        """Draws a part with its own origin at `origin`.

        Args:
            scale: size relative to the part's table size.
            angle: rotation, clockwise as seen in the picture in either half.
            floor: v below which the part is hidden (it has sunk into something).
            ceiling: v above which the part is hidden.
        """
        turn = np.deg2rad(angle) * self.side
        cosine, sine = np.cos(turn) * scale, np.sin(turn) * scale
        rotation = np.array([[cosine, sine], [-sine, cosine]])
        for points, tone in look.part.shapes:
            placed = points @ rotation + np.array(origin)
            if floor is not None:
                if placed[:, 1].min() >= floor:
                    continue
                placed[:, 1] = np.minimum(placed[:, 1], floor)
            if ceiling is not None:
                if placed[:, 1].max() <= ceiling:
                    continue
                placed[:, 1] = np.maximum(placed[:, 1], ceiling)
            self.fill(placed, look.colour(tone))


class Hand:
    """One gloved or bare hand that reaches in from the lower outer corner.

    The palm goes behind the part and the fingers in front of it, hence two calls a frame.
    """

    def __init__(self, style: HandStyle, elbow_shift: tuple[float, float]):
        self._style = style
        self._elbow = np.array(_ELBOW) + np.array(elbow_shift)

    def _axes(self, grip: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the grip, the unit vector from grip to elbow, and the one across it."""
        start = np.array(grip)
        along = self._elbow - start
        along = along / np.hypot(*along)
        return start, along, np.array([-along[1], along[0]])

    def draw_behind(self, stage: Stage, grip: tuple[float, float]) -> None:
        """Draws forearm, sleeve and palm."""
        style = self._style
        start, along, across = self._axes(grip)
        palm = start + along * 0.07 * style.size
        wrist = palm + along * 0.05
        cuff = wrist + (self._elbow - wrist) * style.bare_arm
        wrist_half, elbow_half = across * 0.036 * style.size, across * 0.062 * style.size
        cuff_half = across * 0.052 * style.size
        arm = [wrist + wrist_half, self._elbow + elbow_half]
        arm += [self._elbow - elbow_half, wrist - wrist_half]
        stage.fill(np.array(arm), scaled(style.skin, 0.86))
        sleeve = [cuff + cuff_half, self._elbow + elbow_half * 1.25]
        sleeve += [self._elbow - elbow_half * 1.25, cuff - cuff_half]
        stage.fill(np.array(sleeve), style.sleeve)
        circle = unit_circle()
        rim = 0.056 * style.palm_width * style.size
        palm_points = circle[:, :1] * along * 0.066 * style.size + circle[:, 1:] * across * rim
        stage.fill(palm_points + palm, scaled(style.skin, 0.95))

    def draw_front(self, stage: Stage, grip: tuple[float, float]) -> None:
        """Draws the fingers and the thumb that hold the part."""
        style = self._style
        start, along, across = self._axes(grip)
        width = 0.028 * style.finger_width * style.size
        knuckles = start + along * 0.06 * style.size
        offsets = np.linspace(-0.038, 0.022, style.fingers) * style.palm_width * style.size
        for offset in offsets:
            tip = start - along * 0.018 + across * offset * 0.75
            self._finger(stage, knuckles + across * offset, tip, width)
        thumb_root = knuckles + across * 0.048 * style.palm_width * style.size
        self._finger(stage, thumb_root, start + across * 0.04 + along * 0.002, width * 1.15)

    def _finger(self, stage: Stage, root: np.ndarray, tip: np.ndarray, width: float) -> None:
        stage.line(root, tip, width * 1.45, scaled(self._style.skin, 0.55))
        stage.line(root, tip, width, self._style.skin)
