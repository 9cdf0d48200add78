"""The sample data's recordings, frame by frame: table, light, noise, parts that lie about, hands.

Convention: the camera looks over the work table from the operator's side, so the operator's left
hand works in the left half of the picture and the right hand in the right half.

Shapes: H, W picture height and width in pixels (H is the short side); frames are `(H, W, 3)` uint8
RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from scripts.data.sample_canvas import Hand, PartLook, Stage
from scripts.data.sample_motions import DRAWINGS, Layout, progress_path, tremble, turn_range
from scripts.data.sample_raw import Piece, Session
from scripts.data.sample_vocabulary import (
    VOCABULARIES,
    Action,
    Colour,
    HandStyle,
    Part,
    SceneStyle,
    Vocabulary,
)

HANDS = ("lh", "rh")
MIN_FRAMES, MAX_FRAMES = 20, 120
_SIDES = {"lh": -1, "rh": 1}
_SCENE_STREAM = 0
_HAND_STREAMS = {"lh": 1, "rh": 2}
_SESSION_STREAM = 3
_NEUTRAL_GAIN = 128.0
_NOISE_MARGIN = 32


@dataclass(frozen=True)
class Recording:
    """What decides a recording besides the seed.

    Args:
        index: its number in the set; every random draw follows from (seed, index).
        split: `train` or `val`.
        labels: class of each hand, keyed by `lh` and `rh`.
    """

    index: int
    split: str
    labels: dict[str, int]


@dataclass(frozen=True)
class SceneDraw:
    """All that the two hands share in one recording."""

    frames: int
    fps: int
    height: int
    width: int
    scene: SceneStyle
    hand: HandStyle


def _stream(vocabulary: Vocabulary, seed: int, index: int, stream: int) -> np.random.Generator:
    """Returns one of the recording's random streams; a stream of a hand never moves another's."""
    table = list(VOCABULARIES).index(vocabulary.name)
    return np.random.default_rng([seed, table, index, stream])


def _jitter(rng: np.random.Generator, colour: Colour, amount: float) -> Colour:
    """Returns the colour with a common change in brightness and a smaller one a channel."""
    factors = (1.0 + rng.uniform(-amount, amount)) * (1.0 + rng.uniform(-amount / 2, amount / 2, size=3))
    return tuple(int(value) for value in np.clip(np.array(colour) * factors, 0, 255))


def _draw_scene(
    vocabulary: Vocabulary, split: str, size: tuple[int, int], rng: np.random.Generator
) -> SceneDraw:
    """Draws the recording's common facts, without a look at its labels."""
    frames = round(float(np.exp(rng.uniform(np.log(MIN_FRAMES), np.log(MAX_FRAMES)))))
    height = int(rng.integers(size[0] // 2, size[1] // 2 + 1)) * 2
    width = round(height * rng.uniform(1.0, 1.34) / 2) * 2
    scenes, hands = vocabulary.scenes[split], vocabulary.hands[split]
    return SceneDraw(
        frames=frames,
        fps=int(rng.integers(15, 31)),
        height=height,
        width=width,
        scene=scenes[rng.integers(len(scenes))],
        hand=_vary_hand(hands[rng.integers(len(hands))], rng),
    )


def _vary_hand(style: HandStyle, rng: np.random.Generator) -> HandStyle:
    """Returns the hands of one wearer of a style: somewhat other colours and size."""
    return replace(
        style,
        skin=_jitter(rng, style.skin, 0.14),
        sleeve=_jitter(rng, style.sleeve, 0.25),
        size=style.size * float(rng.uniform(0.94, 1.06)),
    )


def draw_scene(vocabulary: Vocabulary, recording: Recording, seed: int, size: tuple[int, int]) -> SceneDraw:
    """Returns a recording's length, rate, size, table and hands.

    Args:
        size: lowest and highest picture height, pixels.
    """
    rng = _stream(vocabulary, seed, recording.index, _SCENE_STREAM)
    return _draw_scene(vocabulary, recording.split, size, rng)


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cells: tuple[int, int]) -> np.ndarray:
    """Returns a cloud `(H, W)` in [0, 1] with `cells` bumps down and across."""
    coarse = rng.uniform(0.0, 1.0, size=cells).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _period(rng: np.random.Generator, height: int) -> float:
    return height * rng.uniform(0.09, 0.16)


def _wood(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    height, width = y.shape
    grain = _smooth_noise(rng, height, width, (28, 3))
    boards = (np.floor(y / (height * 0.27)) % 2) * 0.06
    return 0.88 + 0.2 * grain + boards


def _grid(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    period = _period(rng, y.shape[0])
    return 1.0 + 0.45 * ((y % period < 1.0) | (x % period < 1.0))


def _brushed(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 0.9 + 0.18 * _smooth_noise(rng, *y.shape, (y.shape[0], 4))


def _felt(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return rng.normal(1.0, 0.05, size=y.shape)


def _speckle(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    cells = (y.shape[0] // 2, y.shape[1] // 2)
    return 1.0 - 0.3 * (_smooth_noise(rng, *y.shape, cells) > 0.8)


def _checker(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    period = _period(rng, y.shape[0])
    return 0.92 + 0.16 * ((np.floor(y / period) + np.floor(x / period)) % 2)


def _marble(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    veins = np.abs(_smooth_noise(rng, *y.shape, (6, 7)) - 0.5)
    return 0.95 + 0.4 * (veins < 0.03) + 0.2 * veins


def _dots(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    period = _period(rng, y.shape[0])
    near = np.hypot(y % period - period / 2, x % period - period / 2)
    return 0.97 + 0.12 * (near < period * 0.22)


def _stripes(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 0.96 + 0.08 * (np.floor(x / _period(rng, y.shape[0])) % 2)


def _tiles(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    high, wide = _period(rng, y.shape[0]), 2.2 * _period(rng, y.shape[0])
    joint = (y % high < 1.2) | ((x + np.floor(y / high) * wide / 2) % wide < 1.2)
    return 1.02 - 0.16 * joint


def _waves(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    period = _period(rng, y.shape[0])
    return 1.0 + 0.09 * np.sin(2 * np.pi * (y + 0.3 * period * np.sin(x / period)) / period)


def _hatch(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 0.97 + 0.1 * ((y + x) % _period(rng, y.shape[0]) < 1.6)


def _plain(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 0.96 + 0.08 * _smooth_noise(rng, *y.shape, (3, 4))


Texture = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]
TEXTURES: dict[str, Texture] = {
    "wood": _wood,
    "grid": _grid,
    "brushed": _brushed,
    "felt": _felt,
    "speckle": _speckle,
    "checker": _checker,
    "marble": _marble,
    "dots": _dots,
    "stripes": _stripes,
    "tiles": _tiles,
    "waves": _waves,
    "hatch": _hatch,
    "plain": _plain,
}


def _background(draw: SceneDraw, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Returns the empty table `(H, W, 3)` and the v of its far edge."""
    y, x = np.mgrid[0 : draw.height, 0 : draw.width].astype(np.float32)
    y, x = y + rng.uniform(0, 40), x + rng.uniform(0, 40)
    table = np.array(_jitter(rng, draw.scene.table, 0.22))
    picture = TEXTURES[draw.scene.texture](rng, y, x)[:, :, None] * table
    edge = float(rng.uniform(0.1, 0.24))
    rows = round(edge * draw.height)
    cloud = _smooth_noise(rng, rows, draw.width, (2, 4))[:, :, None]
    picture[:rows] = (0.94 + 0.1 * cloud) * np.array(_jitter(rng, draw.scene.wall, 0.22))
    picture[rows : rows + 2] *= 0.6
    return np.clip(picture, 0, 255).astype(np.uint8), edge


def _look(part: Part, rng: np.random.Generator) -> PartLook:
    body = part.bodies[rng.integers(len(part.bodies))]
    return PartLook(part, _jitter(rng, body, 0.1), _jitter(rng, part.mark, 0.08))


def _scatter_parts(
    picture: np.ndarray, vocabulary: Vocabulary, edge: float, rng: np.random.Generator
) -> None:
    """Lays parts on the table that nobody uses, at its far and near edges."""
    half_width = picture.shape[1] / picture.shape[0] / 2
    for _ in range(int(rng.integers(0, 4))):
        stage = Stage(picture, int(rng.choice([-1, 1])))
        part = vocabulary.parts[rng.integers(len(vocabulary.parts))]
        far = rng.uniform() < 0.6
        v = edge + rng.uniform(0.03, 0.1) if far else rng.uniform(0.93, 1.0)
        u = float(rng.uniform(0.04, half_width))
        look, scale = _look(part, rng), float(rng.uniform(0.35, 0.5))
        stage.shadow((u, v + 0.03), (0.08, 0.03), 0.3)
        stage.draw_part(look, (u, float(v)), scale=scale, angle=float(rng.uniform(-100, 100)))


@dataclass(frozen=True)
class HandTrack:
    """One hand's work in time.

    Args:
        stage_side: -1 for the left half of the picture, +1 for the right.
        drawing: draws the work at a progress, with a small shift.
        layout: what stays the same for the whole recording.
        path: progress, `(frames,)`.
        shifts: unsteadiness of the hand, `(frames, 2)`, picture heights.
    """

    stage_side: int
    drawing: Callable[[Stage, Layout, float, np.ndarray], None]
    layout: Layout
    path: np.ndarray
    shifts: np.ndarray


Moment = tuple[HandTrack, int]  # what a hand does, and the number of the frame within it


def hand_track(action: Action, draw: SceneDraw, hand: str, rng: np.random.Generator) -> HandTrack:
    """Returns what one hand does from the first frame to the last."""
    path = progress_path(rng, draw.frames, backward=action.backward)
    grey = float(rng.uniform(70, 170))
    layout = Layout(
        look=_look(action.part, rng),
        hand=Hand(draw.hand, tuple(rng.uniform(-0.05, 0.05, size=2))),
        fixture=_jitter(rng, (grey, grey, grey * 1.04), 0.08),
        spot=tuple(rng.uniform((-0.02, -0.035), (0.025, 0.03))),
        scale=float(rng.uniform(0.92, 1.08)),
        start_angle=float(rng.uniform(0.0, 360.0)),
        turn=turn_range(rng, path),
    )
    shifts = tremble(rng, draw.frames, 0.014)
    return HandTrack(_SIDES[hand], DRAWINGS[action.pair.drawing], layout, path, shifts)


def _light(draw: SceneDraw, rng: np.random.Generator) -> np.ndarray:
    """Returns the light `(H, W, 3)` uint8 that falls on the table; 128 leaves a pixel as it is."""
    y, x = np.mgrid[-0.5 : 0.5 : draw.height * 1j, -0.5 : 0.5 : draw.width * 1j]
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.3)
    field = rng.uniform(0.82, 1.12) + slope * (np.cos(angle) * x + np.sin(angle) * y)
    tint = rng.uniform(0.95, 1.05, size=3)
    return np.clip(field[:, :, None] * tint * _NEUTRAL_GAIN, 1, 255).astype(np.uint8)


def _noise_sheet(draw: SceneDraw, rng: np.random.Generator) -> np.ndarray:
    """Returns noise larger than a frame; frames take different windows of it, which is fast."""
    shape = (draw.height + _NOISE_MARGIN, draw.width + _NOISE_MARGIN, 3)
    return np.rint(rng.normal(0.0, rng.uniform(0.8, 3.5), size=shape)).astype(np.int16)


def render(
    vocabulary: Vocabulary, recording: Recording, seed: int, size: tuple[int, int]
) -> tuple[SceneDraw, Iterator[np.ndarray]]:
    """Draws one recording.

    Args:
        size: lowest and highest picture height, pixels.

    Returns:
        What the recording shows, and its frames `(H, W, 3)` uint8 RGB in order.
    """
    rng = _stream(vocabulary, seed, recording.index, _SCENE_STREAM)
    draw = _draw_scene(vocabulary, recording.split, size, rng)
    table, edge = _background(draw, rng)
    _scatter_parts(table, vocabulary, edge, rng)
    tracks = []
    for hand in HANDS:
        action = vocabulary.actions[recording.labels[hand]]
        hand_rng = _stream(vocabulary, seed, recording.index, _HAND_STREAMS[hand])
        tracks.append(hand_track(action, draw, hand, hand_rng))
    shown = [[(track, number) for track in tracks] for number in range(draw.frames)]
    return draw, _frames(draw, table, shown, rng)


def render_session(
    vocabulary: Vocabulary, session: Session, seed: int, size: tuple[int, int]
) -> tuple[SceneDraw, Iterator[np.ndarray]]:
    """Draws one long recording, in which each hand does one action after the other.

    Args:
        size: lowest and highest picture height, pixels.

    Returns:
        What the recording shows, and its frames `(H, W, 3)` uint8 RGB in order.
    """
    rng = _stream(vocabulary, seed, session.index, _SESSION_STREAM)
    draw = replace(_draw_scene(vocabulary, session.split, size, rng), frames=session.frames)
    table, edge = _background(draw, rng)
    _scatter_parts(table, vocabulary, edge, rng)
    moments = [_moments(vocabulary, session.pieces[hand], draw, hand, rng) for hand in HANDS]
    return draw, _frames(draw, table, list(zip(*moments, strict=True)), rng)


def _moments(
    vocabulary: Vocabulary, pieces: Sequence[Piece], draw: SceneDraw, hand: str, rng: np.random.Generator
) -> list[Moment]:
    """Returns what a hand does in each frame; resting, it stays as its last action ended."""
    moments: list[Moment] = []
    for piece in pieces:
        if piece.label is None:
            moments += moments[-1:] * piece.frames
        else:
            action = vocabulary.actions[piece.label]
            track = hand_track(action, replace(draw, frames=piece.frames), hand, rng)
            moments += [(track, number) for number in range(piece.frames)]
    return moments


def _frames(
    draw: SceneDraw, table: np.ndarray, shown: Sequence[Sequence[Moment]], rng: np.random.Generator
) -> Iterator[np.ndarray]:
    light, noise = _light(draw, rng), _noise_sheet(draw, rng)
    offsets = rng.integers(0, _NOISE_MARGIN, size=(draw.frames, 2))
    flicker = rng.normal(1.0, 0.008, size=draw.frames) / _NEUTRAL_GAIN
    for number in range(draw.frames):
        picture = table.copy()
        for track, moment in shown[number]:
            stage = Stage(picture, track.stage_side)
            track.drawing(stage, track.layout, float(track.path[moment]), track.shifts[moment])
        lit = cv2.multiply(picture, light, scale=float(flicker[number]))
        down, right = offsets[number]
        window = noise[down : down + draw.height, right : right + draw.width]
        yield cv2.add(lit, window, dtype=cv2.CV_8U)
