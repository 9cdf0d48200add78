"""What decoding a clip shows: its length and size, or what is wrong with it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dataset import sampling
from dataset.loader import ClipError, ClipReader
from scripts.data.killable_pool import work_through
from utils import UserError, derive_seed, lack_of_files


class ClipFile(NamedTuple):
    """A path or URL, and the number of pictures if it is a folder of frames (0: a video file)."""

    place: str
    n_frames: int


class ClipFacts(NamedTuple):
    """Length in frames and size in pixels, and what is wrong, in one line."""

    n_frames: int = 0
    width: int = 0
    height: int = 0
    problem: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class ClipProber:
    """Decodes what a training window, the validation and the test look at in a clip.

    Attributes:
        reader: how clips are opened.
        window: `num_frames`, `sampling_rate`, `short_clips` and `sparse` of `dataset.sampling`.
        num_segment: temporal windows of the test.
        seed: seed of the run; each clip's training window follows from it and the clip's place.
    """

    reader: ClipReader
    window: Mapping[str, Any]
    num_segment: int
    seed: int

    def __call__(self, clip: ClipFile) -> ClipFacts:
        """Reads one clip; whatever goes wrong is a fact about it, but for too few open files.

        Raises:
            UserError: too few open files.
        """
        length = 0

        def choose(n_frames: int) -> np.ndarray:
            nonlocal length
            length = n_frames
            return self.wanted_frames(n_frames, derive_seed(self.seed, clip.place))

        try:
            (frames, _, note), truncation = self.reader.read_and_check(clip.place, clip.n_frames, choose)
        except (ClipError, UserError) as error:
            if lack := lack_of_files(error):
                raise UserError(lack) from error
            return ClipFacts(problem=str(error))
        except Exception as error:  # a damaged file may make a library raise anything
            return ClipFacts(problem=" ".join(f"{type(error).__name__}: {error}".split()))
        height, width = frames.shape[1:3]
        return ClipFacts(length, width, height, truncation, note)

    def wanted_frames(self, n_frames: int, seed: int) -> np.ndarray:
        """One drawn training window and all frames of both evaluations, int64 `(n,)`."""
        training = sampling.train_indices(n_frames, rng=np.random.default_rng(seed), **self.window)
        validation = sampling.validation_indices(n_frames, **self.window)
        test = sampling.test_views(n_frames, num_segment=self.num_segment, **self.window)
        return np.concatenate([training, validation, test.ravel()])


def probe_clips(
    clips: Sequence[ClipFile],
    probe: Callable[[ClipFile], ClipFacts],
    num_workers: int,
    timeout: float = math.inf,
) -> Iterator[list[tuple[int, ClipFacts]]]:
    """Probes clips in parallel, as `killable_pool.work_through` does.

    Yields:
        (position in `clips`, facts) of what was finished since.
    """
    return work_through(clips, probe, lambda problem: ClipFacts(problem=problem), num_workers, timeout)
