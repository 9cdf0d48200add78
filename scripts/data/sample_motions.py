"""How the hands of the sample data move: paths in time, and what is drawn at a point of a path.

A drawing is a function of `progress` (0 to 1) and of a layout that is fixed for the recording. A
motion runs progress up, its opposite runs the very same kind of path in reverse, so neither a
frame nor a set of frames without their order tells the two apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scripts.data.sample_canvas import Hand, PartLook, Stage, scaled
from scripts.data.sample_vocabulary import Colour

# Below half a turn between two samples of 16-frame clips taken every fourth frame.
_MAX_DEGREES_PER_FRAME = 9.5


@dataclass(frozen=True)
class Layout:
    """What one hand's work looks like in one recording.

    Args:
        look: the part in its colours.
        hand: the hand that holds it.
        fixture: colour of what the part goes into or stands on.
        spot: shift of the whole work place, picture heights.
        scale: size of the work place's travel and parts relative to the table's.
        start_angle: where a turning motion begins, degrees.
        turn: how far a turning motion goes, degrees.
    """

    look: PartLook
    hand: Hand
    fixture: Colour
    spot: tuple[float, float]
    scale: float
    start_angle: float
    turn: float


Drawing = Callable[[Stage, Layout, float, np.ndarray], None]


def progress_path(rng: np.random.Generator, frames: int, *, backward: bool) -> np.ndarray:
    """Returns a monotone path `(frames,)` of progress, with short rests at both ends.

    The backward path is a forward path read from its end, for the same draw of `rng`.
    """
    rest_before, rest_after = rng.uniform(0.0, 0.12, size=2)
    low, high = rng.uniform(0.0, 0.08), rng.uniform(0.92, 1.0)
    ease, skew = rng.uniform(0.0, 0.8), rng.uniform(-0.35, 0.35)
    time = np.linspace(0.0, 1.0, frames)
    moving = np.clip((time - rest_before) / (1.0 - rest_before - rest_after), 0.0, 1.0)
    moving = moving + skew * moving * (1.0 - moving)
    smooth = moving * moving * (3.0 - 2.0 * moving)
    path = low + (high - low) * ((1.0 - ease) * moving + ease * smooth)
    return path[::-1].copy() if backward else path


def turn_range(rng: np.random.Generator, path: np.ndarray) -> float:
    """Returns how many degrees a turning motion covers along `path`, slow enough not to alias."""
    fastest = float(np.abs(np.diff(path)).max())
    return min(float(rng.uniform(220.0, 400.0)), _MAX_DEGREES_PER_FRAME / fastest)


def tremble(rng: np.random.Generator, frames: int, size: float) -> np.ndarray:
    """Returns a small unsteady shift `(frames, 2)` whose law is the same in either time direction.

    Args:
        size: amplitude in picture heights.
    """
    time = np.arange(frames)[:, None, None]
    rate = rng.uniform(0.15, 0.9, size=(1, 3, 2))
    phase = rng.uniform(0.0, 2.0 * np.pi, size=(1, 3, 2))
    return (np.sin(time * rate + phase) * rng.uniform(0.2, 1.0, size=(1, 3, 2))).mean(1) * size


def _around(stage: Stage, angle: float, radii: tuple[float, float]) -> np.ndarray:
    """Returns the shift for an angle that grows clockwise in the picture in either half."""
    turned = np.deg2rad(angle)
    return np.array([stage.side * np.cos(turned) * radii[0], np.sin(turned) * radii[1]])


def _block(stage: Stage, u: float, top: float, size: tuple[float, float], colour: Colour) -> None:
    """Draws the top face of a block with a hole; `_block_front` goes over what sinks into it."""
    half, _ = size
    face = [(u - half * 0.8, top - 0.05), (u + half * 0.8, top - 0.05)]
    face += [(u + half, top + 0.025), (u - half, top + 0.025)]
    stage.fill(np.array(face), scaled(colour, 1.25))
    stage.ellipse((u, top - 0.012), (0.066, 0.024), (18, 18, 20))


def _block_front(stage: Stage, u: float, top: float, size: tuple[float, float], colour: Colour) -> None:
    half, height = size
    stage.rectangle(u - half, top + 0.025, u + half, top + height, colour)
    stage.rectangle(u - half, top + height - 0.02, u + half, top + height, scaled(colour, 0.6))


def draw_insert(stage: Stage, layout: Layout, progress: float, shift: np.ndarray) -> None:
    """Draws a peg held at its top that goes down into the hole of a block."""
    u, hole = 0.2 + layout.spot[0], 0.62 + layout.spot[1]
    size = (0.12, 0.26)
    peg_top = hole - (0.35 - 0.27 * progress) * layout.scale
    grip = (u + 0.03 + shift[0], peg_top + 0.02 + shift[1] * 0.5)
    stage.shadow((u, hole + size[1]), (0.17, 0.04), 0.35)
    _block(stage, u, hole, size, layout.fixture)
    layout.hand.draw_behind(stage, grip)
    origin = (u + shift[0] * 0.3, peg_top + shift[1] * 0.5)
    stage.draw_part(layout.look, origin, scale=layout.scale, floor=hole)
    _block_front(stage, u, hole, size, layout.fixture)
    layout.hand.draw_front(stage, grip)


def draw_lift(stage: Stage, layout: Layout, progress: float, shift: np.ndarray) -> None:
    """Draws a box that is raised from the table; its shadow stays on the table and fades."""
    u, rest = 0.21 + layout.spot[0], 0.76 + layout.spot[1]
    centre = (u + shift[0], rest - 0.4 * progress * layout.scale + shift[1])
    spread = 1.0 - 0.3 * progress
    stage.shadow((u, rest + 0.09), (0.14 * spread, 0.035 * spread), 0.55 - 0.25 * progress)
    grip = (centre[0] + 0.1 * layout.scale, centre[1])
    layout.hand.draw_behind(stage, grip)
    stage.draw_part(layout.look, centre, scale=layout.scale)
    layout.hand.draw_front(stage, grip)


def draw_screw(stage: Stage, layout: Layout, progress: float, shift: np.ndarray) -> None:
    """Draws a bolt cranked clockwise into a block, sinking as it turns."""
    u, hole = 0.22 + layout.spot[0], 0.7 + layout.spot[1]
    size = (0.17, 0.11)
    head = np.array([u, hole - (0.27 - 0.21 * progress) * layout.scale])
    reach = _around(stage, layout.start_angle + layout.turn * progress, (0.13, 0.085))
    reach = reach * layout.scale
    knob, tail = head + reach, head - reach * 0.9
    grip = (float(knob[0] + shift[0] * 0.5), float(knob[1] + shift[1] * 0.5))
    stage.shadow((u, hole + size[1]), (0.17, 0.04), 0.35)
    _block(stage, u, hole, size, layout.fixture)
    stage.draw_part(layout.look, (head[0], head[1]), scale=layout.scale, floor=hole)
    _block_front(stage, u, hole, size, layout.fixture)
    layout.hand.draw_behind(stage, grip)
    stage.line(tail, knob, 0.05, scaled(layout.look.body, 0.45))
    stage.line(tail, knob, 0.034, layout.look.colour("light"))
    stage.ellipse((tail[0], tail[1]), (0.055, 0.05), layout.look.mark)
    stage.ellipse((head[0], head[1]), (0.026, 0.022), scaled(layout.look.body, 0.6))
    layout.hand.draw_front(stage, grip)


def draw_slide(stage: Stage, layout: Layout, progress: float, shift: np.ndarray) -> None:
    """Draws a tray pulled out of a cabinet, towards the operator."""
    u, slot = 0.21 + layout.spot[0], 0.44 + layout.spot[1]
    top, half = slot - 0.17, 0.135
    end = (u + shift[0] * 0.3, slot + (0.05 + 0.3 * progress) * layout.scale + shift[1] * 0.5)
    grip = (end[0] + 0.07, end[1] + 0.02)
    lid = [(u - half * 0.85, top - 0.07), (u + half * 0.85, top - 0.07)]
    lid += [(u + half, top), (u - half, top)]
    stage.fill(np.array(lid), scaled(layout.fixture, 1.3))
    stage.shadow((u, (slot + end[1]) / 2 + 0.03), (0.13, (end[1] - slot) / 2 + 0.03), 0.35)
    layout.hand.draw_behind(stage, grip)
    stage.draw_part(layout.look, end, scale=layout.scale, ceiling=top)
    stage.rectangle(u - half, top, u + half, slot - 0.03, layout.fixture)
    stage.rectangle(u - half, slot - 0.03, u + half, slot + 0.005, (28, 28, 32))
    layout.hand.draw_front(stage, grip)


def draw_tilt(stage: Stage, layout: Layout, progress: float, shift: np.ndarray) -> None:
    """Draws a part on a stick in a stand that leans over from the left to the right."""
    foot = np.array([0.26 + layout.spot[0], 0.8 + layout.spot[1]])
    angle = -46.0 + 92.0 * progress
    centre = foot + _around(stage, angle - 90.0, (0.27, 0.27)) * layout.scale + shift
    grip = (float(centre[0] + 0.05), float(centre[1] + 0.05))
    stage.shadow((foot[0], foot[1] + 0.1), (0.17, 0.04), 0.4)
    layout.hand.draw_behind(stage, grip)
    stage.line(foot, centre, 0.05, scaled(layout.fixture, 0.5))
    stand = np.array([(-0.06, -0.05), (0.06, -0.05), (0.15, 0.1), (-0.15, 0.1)])
    stage.fill(stand + foot, layout.fixture)
    stage.draw_part(layout.look, (centre[0], centre[1]), scale=1.15 * layout.scale, angle=angle)
    layout.hand.draw_front(stage, grip)


def draw_pull_apart(stage: Stage, layout: Layout, progress: float, shift: np.ndarray) -> None:
    """Draws two equal parts on a rail; the outer one is pulled outwards, away from the inner one."""
    inner = (0.1 + layout.spot[0] * 0.5, 0.6 + layout.spot[1])
    outer = (inner[0] + (0.07 + 0.27 * progress) * layout.scale + shift[0], inner[1] + shift[1] * 0.5)
    grip = (outer[0] + 0.06, outer[1] + 0.03)
    rail = inner[1] + 0.1
    stage.rectangle(0.02, rail - 0.035, 0.5, rail + 0.02, scaled(layout.fixture, 1.2))
    stage.rectangle(0.02, rail + 0.02, 0.5, rail + 0.06, scaled(layout.fixture, 0.55))
    stage.draw_part(layout.look, inner, scale=0.95 * layout.scale)
    layout.hand.draw_behind(stage, grip)
    stage.draw_part(layout.look, outer, scale=0.95 * layout.scale)
    layout.hand.draw_front(stage, grip)


def draw_roll(stage: Stage, layout: Layout, progress: float, shift: np.ndarray) -> None:
    """Draws a part that rolls in a trough from the left to the right."""
    middle, ground = 0.24 + layout.spot[0], 0.74 + layout.spot[1]
    travel = (progress - 0.5) * 0.3 * layout.scale
    centre = (middle + stage.side * travel, ground - 0.1 * layout.scale)
    angle = layout.start_angle + np.rad2deg(travel / 0.11)
    grip = (centre[0] + 0.05 + shift[0], centre[1] - 0.08 + shift[1])
    wall = scaled(layout.fixture, 0.75)
    stage.shadow((middle, ground + 0.12), (0.26, 0.04), 0.4)
    stage.rectangle(middle - 0.24, ground, middle + 0.24, ground + 0.1, layout.fixture)
    for end in (middle - 0.24, middle + 0.2):
        stage.rectangle(end, ground - 0.16, end + 0.04, ground + 0.1, wall)
    layout.hand.draw_behind(stage, grip)
    stage.draw_part(layout.look, centre, scale=1.15 * layout.scale, angle=angle)
    layout.hand.draw_front(stage, grip)


def draw_swing(stage: Stage, layout: Layout, progress: float, shift: np.ndarray) -> None:
    """Draws a part on an arm that is hinged on a post near the picture's middle and swings up."""
    hinge = np.array([0.06 + layout.spot[0] * 0.5, 0.56 + layout.spot[1]])
    angle = np.deg2rad(52.0 - 110.0 * progress)
    arm = np.array([np.cos(angle), np.sin(angle)]) * 0.29 * layout.scale
    end = hinge + arm + shift
    grip = (float(end[0] + 0.05), float(end[1] + 0.04))
    stage.rectangle(hinge[0] - 0.03, hinge[1], hinge[0] + 0.03, hinge[1] + 0.34, layout.fixture)
    stage.ellipse((hinge[0], hinge[1]), (0.05, 0.05), scaled(layout.fixture, 0.6))
    layout.hand.draw_behind(stage, grip)
    stage.line(hinge, end, 0.045, scaled(layout.fixture, 1.25))
    stage.draw_part(layout.look, (end[0], end[1]), scale=1.15 * layout.scale)
    layout.hand.draw_front(stage, grip)


def draw_circle(stage: Stage, layout: Layout, progress: float, shift: np.ndarray) -> None:
    """Draws a part that is carried clockwise around a round plate without turning itself."""
    post = np.array([0.24 + layout.spot[0], 0.6 + layout.spot[1]])
    around = layout.start_angle + layout.turn * progress
    centre = post + _around(stage, around, (0.15, 0.15)) * layout.scale + shift * 0.5
    grip = (float(centre[0] + 0.05), float(centre[1] + 0.04))
    stage.ellipse((post[0], post[1]), (0.24, 0.22), scaled(layout.fixture, 0.6))
    stage.ellipse((post[0], post[1]), (0.21, 0.19), scaled(layout.fixture, 1.2))
    stage.ellipse((post[0], post[1]), (0.045, 0.045), scaled(layout.fixture, 0.5))
    layout.hand.draw_behind(stage, grip)
    stage.draw_part(layout.look, (centre[0], centre[1]), scale=1.1 * layout.scale)
    layout.hand.draw_front(stage, grip)


def draw_unfold(stage: Stage, layout: Layout, progress: float, shift: np.ndarray) -> None:
    """Draws a panel with a part on it that is folded up from a base, about its far edge."""
    u, hinge = 0.22 + layout.spot[0], 0.6 + layout.spot[1]
    edge = hinge + (0.23 - 0.46 * progress) * layout.scale + shift[1] * 0.5
    # The free edge is nearest to the camera, and widest, half-way.
    half = 0.14 + 0.03 * (1.0 - abs(2.0 * progress - 1.0))
    grip = (u + 0.08 + shift[0] * 0.3, edge)
    stage.shadow((u, hinge + 0.27), (0.18, 0.03), 0.4)
    stage.rectangle(u - 0.14, hinge, u + 0.14, hinge + 0.26, scaled(layout.fixture, 0.45))
    layout.hand.draw_behind(stage, grip)
    panel = [(u - 0.14, hinge), (u + 0.14, hinge), (u + half, edge), (u - half, edge)]
    stage.fill(np.array(panel), scaled(layout.fixture, 1.25))
    stage.draw_part(layout.look, (u, (hinge + edge) / 2), scale=0.95 * layout.scale)
    layout.hand.draw_front(stage, grip)


DRAWINGS: dict[str, Drawing] = {
    "insert": draw_insert,
    "lift": draw_lift,
    "screw": draw_screw,
    "slide": draw_slide,
    "tilt": draw_tilt,
    "pull_apart": draw_pull_apart,
    "roll": draw_roll,
    "swing": draw_swing,
    "circle": draw_circle,
    "unfold": draw_unfold,
}
