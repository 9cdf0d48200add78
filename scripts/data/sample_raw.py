"""The sample data in raw form: long recordings with labels a frame, laid out as HA-ViD is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.data.sample_vocabulary import SPLITS, Vocabulary

REST = "null"  # what a hand does between two actions
_BUNDLES = {"train": "train.split1.bundle", "val": "test.split1.bundle"}
_ACTION_FRAMES, _REST_FRAMES = (12, 36), (4, 12)
_STREAM = 2_000_003


@dataclass(frozen=True)
class Piece:
    """What a hand does for a while: an action, or rest where `label` is None."""

    label: int | None
    frames: int


@dataclass(frozen=True)
class Session:
    """A long recording.

    Args:
        index: its number in the set; every random draw follows from (seed, index).
        split: `train` or `val`.
        pieces: what each hand does, keyed by `lh` and `rh`; both take equally many frames.
    """

    index: int
    split: str
    pieces: dict[str, tuple[Piece, ...]]

    @property
    def name(self) -> str:
        """The recording's name, made as HA-ViD's are; the last digit is the view."""
        return f"S{self.index + 1:02}A01I01M0"

    @property
    def frames(self) -> int:
        """Length of the recording."""
        return sum(piece.frames for piece in next(iter(self.pieces.values())))


def plan_sessions(
    classes: int, splits: Sequence[str], hands: Sequence[str], actions: int, seed: int
) -> list[Session]:
    """Returns long recordings; in each, every hand does its actions in its own order and time.

    Args:
        classes: number of actions to choose from.
        splits: split of each recording.
        hands: keys of `Session.pieces`.
        actions: how many a hand does in a recording.
        seed: start of all random draws.
    """
    decks: dict[tuple[str, str], list[int]] = {}
    sessions = []
    for index, split in enumerate(splits):
        rng = np.random.default_rng([seed, _STREAM, index])
        pieces = {}
        for hand in hands:
            deck = decks.setdefault((hand, split), [])
            while len(deck) < actions:
                deck.extend(rng.permutation(classes).tolist())
            pieces[hand] = _pieces(deck[:actions], rng)
            del deck[:actions]
        sessions.append(Session(index, split, _of_equal_length(pieces)))
    return sessions


def _pieces(labels: Sequence[int], rng: np.random.Generator) -> list[Piece]:
    pieces = []
    for label in labels:
        pieces.append(Piece(label, int(rng.integers(*_ACTION_FRAMES, endpoint=True))))
        pieces.append(Piece(None, int(rng.integers(*_REST_FRAMES, endpoint=True))))
    return pieces


def _of_equal_length(pieces: dict[str, list[Piece]]) -> dict[str, tuple[Piece, ...]]:
    """Lets a hand that is done first rest until the other one is."""
    lengths = {hand: sum(piece.frames for piece in one) for hand, one in pieces.items()}
    longest = max(lengths.values())
    return {
        hand: (*one[:-1], Piece(None, one[-1].frames + longest - lengths[hand]))
        for hand, one in pieces.items()
    }


def write_raw_labels(output: Path, vocabulary: Vocabulary, sessions: Sequence[Session]) -> None:
    """Writes `view0_lh_pt/` and `view0_rh_pt/`: labels a frame, bundles and class names."""
    names = [*(action.name for action in vocabulary.actions), REST]
    mapping = "".join(f"{label} {name}\n" for label, name in enumerate(names))
    for hand in sessions[0].pieces:
        folder = output / f"view0_{hand}_pt"
        for inner in ("groundTruth", "splits"):
            (folder / inner).mkdir(parents=True, exist_ok=True)
        (folder / "mapping.txt").write_text(mapping, encoding="utf-8")
        for session in sessions:
            rows = (
                f"{REST if piece.label is None else names[piece.label]}\n" * piece.frames
                for piece in session.pieces[hand]
            )
            truth = folder / "groundTruth" / f"{session.name}.txt"
            truth.write_text("".join(rows), encoding="utf-8")
        for split in SPLITS:
            lines = "".join(f"{session.name}.txt\n" for session in sessions if session.split == split)
            (folder / "splits" / _BUNDLES[split]).write_text(lines, encoding="utf-8")
