"""The two vocabularies of the sample data: what can be held, how it moves, where and by whom.

`sample` is the set that the trainer is tried on: four parts, each with a pair of opposite motions
of its own, so that naming the part leaves two answers and only the direction in time decides.
`pretrain` is for weights to start from, made alike (a part has a pair of motions) of other parts, other
motions, other colours, scenes and hands. The two share nothing that a picture shows.

Part outlines are in units of the picture's height, x to the right, y down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]
SPLITS = ("train", "val")


@dataclass(frozen=True, eq=False)
class Part:
    """A rigid part.

    Args:
        name: as it stands in a label.
        shapes: polygons `(N, 2)` with their tone (`body`, `shade`, `light` or `mark`), back first.
        bodies: body colours, one of which is drawn for a recording.
        mark: colour of the `mark` polygons.
    """

    name: str
    shapes: tuple[tuple[np.ndarray, str], ...]
    bodies: tuple[Colour, ...]
    mark: Colour


@dataclass(frozen=True)
class MotionPair:
    """Two motions that are each other's reversal in time.

    Args:
        forward: name of the motion as its drawing runs from progress 0 to 1.
        backward: name of the same motion run from 1 to 0.
        drawing: key into `sample_motions.DRAWINGS`.
    """

    forward: str
    backward: str
    drawing: str


@dataclass(frozen=True)
class Action:
    """One class: a part, a pair of motions and which of the two."""

    part: Part
    pair: MotionPair
    backward: bool

    @property
    def name(self) -> str:
        """Returns the label's name, motion first."""
        motion = self.pair.backward if self.backward else self.pair.forward
        return f"{motion}_{self.part.name}"


@dataclass(frozen=True)
class SceneStyle:
    """A table: its texture (key into `sample_scenes.TEXTURES`), its colour and the wall's."""

    texture: str
    table: Colour
    wall: Colour


@dataclass(frozen=True)
class HandStyle:
    """A pair of hands: colours and proportions relative to a plain hand (1.0)."""

    skin: Colour
    sleeve: Colour
    fingers: int = 4
    size: float = 1.0
    palm_width: float = 1.0
    finger_width: float = 1.0
    bare_arm: float = 0.35


@dataclass(frozen=True)
class Vocabulary:
    """Everything that one table's recordings are drawn from.

    Args:
        actions: the classes; a label is an index into them, for both hands.
        scenes: table styles of each split.
        hands: hand styles of each split.
    """

    name: str
    actions: tuple[Action, ...]
    scenes: dict[str, tuple[SceneStyle, ...]]
    hands: dict[str, tuple[HandStyle, ...]]

    @property
    def parts(self) -> tuple[Part, ...]:
        """Returns the distinct parts, in the order of the classes."""
        return tuple(dict.fromkeys(action.part for action in self.actions))


def _box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _star(points: int, outer: float, inner: float) -> np.ndarray:
    """Returns the outline of a star or a gear with `points` tips, the first one upwards."""
    angles = np.arange(2 * points) * np.pi / points - np.pi / 2
    radii = np.where(np.arange(2 * points) % 2 == 0, outer, inner)
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)


def _disc(radius: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    angles = np.linspace(0.0, 2.0 * np.pi, 20, endpoint=False)
    return np.stack([np.cos(angles) * radius + x, np.sin(angles) * radius + y], axis=1)


PEG = Part(
    "peg",
    (
        (_box(-0.042, 0.0, 0.042, 0.32), "body"),
        (_box(0.018, 0.0, 0.042, 0.32), "shade"),
        (_box(-0.042, 0.12, 0.042, 0.155), "mark"),
        (_box(-0.042, 0.22, 0.042, 0.255), "mark"),
        (_box(-0.06, -0.02, 0.06, 0.03), "shade"),
    ),
    bodies=((214, 40, 40), (226, 74, 30)),
    mark=(250, 244, 230),
)
BOX = Part(
    "box",
    (
        (np.array([(-0.105, -0.07), (-0.07, -0.115), (0.125, -0.115), (0.105, -0.07)]), "light"),
        (np.array([(0.105, -0.07), (0.125, -0.115), (0.125, 0.06), (0.105, 0.1)]), "shade"),
        (_box(-0.105, -0.07, 0.105, 0.1), "body"),
        (_box(-0.022, -0.07, 0.022, 0.1), "mark"),
    ),
    bodies=((36, 84, 200), (28, 110, 222)),
    mark=(245, 205, 60),
)
BOLT = Part(
    "bolt",
    (
        (_box(-0.032, 0.0, 0.032, 0.26), "body"),
        (np.array([(-0.036, 0.06), (0.036, 0.045), (0.036, 0.06), (-0.036, 0.075)]), "shade"),
        (np.array([(-0.036, 0.11), (0.036, 0.095), (0.036, 0.11), (-0.036, 0.125)]), "shade"),
        (np.array([(-0.036, 0.16), (0.036, 0.145), (0.036, 0.16), (-0.036, 0.175)]), "shade"),
        (np.array([(-0.036, 0.21), (0.036, 0.195), (0.036, 0.21), (-0.036, 0.225)]), "shade"),
        (_disc(0.05), "light"),
    ),
    bodies=((206, 160, 30), (190, 140, 52)),
    mark=(200, 30, 130),
)
TRAY = Part(
    "tray",
    (
        (_box(-0.1, -0.38, 0.1, 0.0), "body"),
        (_disc(0.042, 0.0, -0.1), "mark"),
        (_disc(0.042, 0.0, -0.21), "mark"),
        (_disc(0.042, 0.0, -0.32), "mark"),
        (_box(-0.11, -0.04, 0.11, 0.02), "shade"),
    ),
    bodies=((40, 160, 84), (70, 178, 60)),
    mark=(244, 250, 250),
)

STAR = Part(
    "star",
    ((_star(5, 0.125, 0.055), "body"), (_disc(0.022, 0.0, -0.07), "mark")),
    bodies=((150, 60, 190), (120, 50, 160)),
    mark=(255, 225, 250),
)
WASHER = Part(
    "washer",
    ((_disc(0.11), "body"), (_disc(0.045), "shade"), (_disc(0.024, 0.0, -0.078), "mark")),
    bodies=((20, 170, 180), (40, 196, 200)),
    mark=(80, 20, 20),
)
CROSS = Part(
    "cross",
    (
        (_box(-0.115, -0.036, 0.115, 0.036), "body"),
        (_box(-0.036, -0.115, 0.036, 0.115), "body"),
        (_box(-0.036, -0.115, 0.036, -0.06), "mark"),
    ),
    bodies=((240, 130, 160), (230, 104, 140)),
    mark=(60, 30, 90),
)
WEDGE = Part(
    "wedge",
    (
        (np.array([(0.0, -0.13), (0.11, 0.1), (-0.11, 0.1)]), "body"),
        (np.array([(0.0, -0.13), (0.036, -0.055), (-0.036, -0.055)]), "mark"),
    ),
    bodies=((120, 74, 40), (140, 92, 60)),
    mark=(190, 240, 160),
)
GEAR = Part(
    "gear",
    ((_star(9, 0.125, 0.088), "body"), (_disc(0.03), "light"), (_disc(0.025, 0.0, -0.068), "mark")),
    bodies=((84, 92, 104), (66, 70, 86)),
    mark=(250, 150, 60),
)
BRACKET = Part(
    "bracket",
    (
        (_box(-0.09, -0.12, -0.025, 0.1), "body"),
        (_box(-0.09, 0.035, 0.11, 0.1), "body"),
        (_box(-0.09, -0.12, -0.025, -0.07), "mark"),
    ),
    bodies=((176, 214, 60), (196, 226, 96)),
    mark=(40, 60, 150),
)

_SAMPLE_PAIRS = (
    (PEG, MotionPair("insert", "remove", "insert")),
    (BOX, MotionPair("lift", "place", "lift")),
    (BOLT, MotionPair("screw", "unscrew", "screw")),
    (TRAY, MotionPair("slide_out", "slide_in", "slide")),
)
_PRETRAIN_PAIRS = (
    (STAR, MotionPair("tilt_right", "tilt_left", "tilt")),
    (WASHER, MotionPair("pull_apart", "push_together", "pull_apart")),
    (CROSS, MotionPair("roll_right", "roll_left", "roll")),
    (WEDGE, MotionPair("swing_up", "swing_down", "swing")),
    (GEAR, MotionPair("circle_right", "circle_left", "circle")),
    (BRACKET, MotionPair("unfold", "fold", "unfold")),
)


def _both_ways(pairs: Sequence[tuple[Part, MotionPair]]) -> tuple[Action, ...]:
    return tuple(Action(part, pair, way) for part, pair in pairs for way in (False, True))


SAMPLE = Vocabulary(
    name="sample",
    actions=_both_ways(_SAMPLE_PAIRS),
    scenes={
        "train": (
            SceneStyle("wood", (176, 132, 88), (206, 204, 196)),
            SceneStyle("wood", (120, 84, 58), (150, 160, 172)),
            SceneStyle("grid", (40, 98, 84), (190, 196, 190)),
            SceneStyle("brushed", (158, 164, 172), (88, 96, 110)),
            SceneStyle("felt", (92, 96, 102), (216, 208, 190)),
            SceneStyle("felt", (212, 204, 190), (120, 132, 126)),
        ),
        "val": (
            SceneStyle("speckle", (190, 150, 110), (168, 176, 182)),
            SceneStyle("checker", (188, 186, 176), (110, 104, 98)),
            SceneStyle("marble", (78, 86, 98), (196, 190, 182)),
        ),
    },
    hands={
        "train": (
            HandStyle((232, 186, 158), (44, 62, 104)),
            HandStyle((198, 146, 112), (110, 112, 116), size=1.08, finger_width=1.1),
            HandStyle((124, 82, 60), (214, 210, 204), size=0.94, palm_width=0.92),
            HandStyle((40, 42, 46), (72, 74, 70), palm_width=1.08, bare_arm=0.2),
            HandStyle((222, 170, 130), (140, 40, 44), size=0.96, bare_arm=0.6),
        ),
        "val": (
            HandStyle((92, 58, 42), (92, 120, 80), size=1.04, bare_arm=0.5),
            HandStyle((212, 160, 136), (34, 36, 40), palm_width=1.12, finger_width=0.92),
            HandStyle((92, 140, 190), (226, 226, 222), fingers=3, finger_width=1.25),
        ),
    },
)
PRETRAIN = Vocabulary(
    name="pretrain",
    actions=_both_ways(_PRETRAIN_PAIRS),
    scenes={
        "train": (
            SceneStyle("dots", (96, 88, 128), (180, 170, 190)),
            SceneStyle("stripes", (196, 190, 160), (90, 110, 120)),
            SceneStyle("tiles", (130, 150, 160), (220, 214, 200)),
            SceneStyle("stripes", (70, 76, 64), (170, 150, 140)),
            SceneStyle("dots", (206, 180, 150), (130, 120, 112)),
            SceneStyle("tiles", (152, 106, 84), (160, 170, 150)),
            SceneStyle("plain", (226, 222, 214), (140, 150, 170)),
            SceneStyle("plain", (54, 60, 84), (210, 190, 180)),
            SceneStyle("dots", (110, 140, 116), (84, 80, 90)),
            SceneStyle("stripes", (170, 124, 128), (196, 206, 214)),
            SceneStyle("tiles", (84, 104, 130), (128, 108, 96)),
            SceneStyle("plain", (164, 152, 120), (60, 72, 80)),
        ),
        "val": (
            SceneStyle("waves", (120, 134, 104), (200, 190, 176)),
            SceneStyle("hatch", (180, 168, 172), (100, 92, 106)),
        ),
    },
    hands={
        "train": (
            HandStyle((240, 200, 176), (60, 110, 70)),
            HandStyle((176, 124, 92), (220, 190, 90), size=1.06),
            HandStyle((108, 70, 52), (90, 60, 110), palm_width=0.94),
            HandStyle((230, 228, 220), (120, 60, 50), finger_width=1.15, bare_arm=0.2),
            HandStyle((96, 78, 150), (190, 200, 210), size=0.95),
            HandStyle((204, 152, 124), (30, 84, 120), palm_width=1.05, bare_arm=0.45),
            HandStyle((80, 50, 36), (200, 110, 70), size=1.02, finger_width=1.05),
            HandStyle((60, 62, 66), (150, 150, 60), size=1.05, bare_arm=0.15),
            HandStyle((250, 216, 190), (80, 80, 84), size=0.92, bare_arm=0.7),
            HandStyle((150, 104, 76), (240, 236, 230), palm_width=1.1, fingers=3),
        ),
        "val": (
            HandStyle((208, 150, 122), (70, 130, 140), size=1.04, finger_width=0.95),
            HandStyle((62, 104, 84), (52, 50, 58), fingers=3, finger_width=1.2),
        ),
    },
)
VOCABULARIES = {vocabulary.name: vocabulary for vocabulary in (SAMPLE, PRETRAIN)}
