"""One hand's clips as samples: list -> frame indices -> decode -> augment; and what a batch is.

Shapes: V views of a clip, N views of a batch, T frames, S input size, K erasing boxes a view.
Frames stay 8-bit and channels-last until they are on the device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from dataset import sampling
from dataset.annotations import clip_folders, find_clip_folder, locate, read_clip_list
from dataset.decode_process import DecodeProcess
from dataset.loader import ClipError, ClipReader, DamagedFrameError, DecodedClip
from dataset.video_transforms import TestTransform, TrainTransform, ValidationTransform
from utils import UserError, derive_seed

MODES = ("train", "validation", "test")
# A list in which that many seeded substitutes in a row are unreadable too is not worth training on.
_MAX_REPLACEMENTS = 20


class ClipKey(NamedTuple):
    """Names one sample of the run: everything drawn for it follows from this and the run's seed."""

    hand: str
    pass_: int
    clip: int


class BadClip(NamedTuple):
    """A clip that could not be read, and why."""

    hand: str
    name: str
    reason: str

    lasts = True  # no other window of the clip can be read either


class DamagedClip(BadClip):
    """A clip that could not be read because wanted frames are damaged; other windows may be readable."""

    __slots__ = ()
    lasts = False


class ClipSample(NamedTuple):
    """One clip, decoded and augmented.

    `rows` lists an evaluation's views as (position in `frames`, chunk, split): views that coincide
    are in `frames` once and have several rows. An unreadable clip of an evaluation has no views.
    """

    hand: str
    name: str
    label: int
    frames: np.ndarray  # uint8 (V, T, S, S, 3)
    erase_boxes: np.ndarray  # int16 (V, K, 4): top, left, height, width; zeros: none
    rows: np.ndarray  # int64 (R, 3)
    bad: tuple[BadClip, ...] = ()
    note: str = ""  # what a user should hear once


class ClipBatch(NamedTuple):
    """Clips of one hand, their views stacked clip by clip."""

    hand: str
    names: list[str]  # B clips
    labels: torch.Tensor  # int64 (B,)
    frames: torch.Tensor  # uint8 (N, T, S, S, 3)
    clip_of_view: torch.Tensor  # int64 (N,): position in `names`
    erase_boxes: torch.Tensor  # int16 (N, K, 4)
    rows: torch.Tensor  # int64 (R, 3): view (of N), chunk, split
    bad: list[BadClip]
    notes: frozenset[str] = frozenset()  # what a user should hear once


def collate_clips(samples: Sequence[ClipSample], out: np.ndarray | None = None) -> ClipBatch:
    """Stacks samples of one hand into a batch.

    Args:
        samples: at least one.
        out: flat bytes that the frames are put into; None: new memory.
    """
    counts = [len(sample.frames) for sample in samples]
    starts = np.cumsum([0, *counts[:-1]])
    if out is not None:
        shape = (sum(counts), *samples[0].frames.shape[1:])
        out = out[: math.prod(shape)].reshape(shape)
    rows = [sample.rows + np.array([start, 0, 0]) for sample, start in zip(samples, starts, strict=True)]
    return ClipBatch(
        hand=samples[0].hand,
        names=[sample.name for sample in samples],
        labels=torch.tensor([sample.label for sample in samples]),
        frames=torch.from_numpy(np.concatenate([sample.frames for sample in samples], out=out)),
        clip_of_view=torch.repeat_interleave(torch.tensor(counts)),
        erase_boxes=torch.from_numpy(np.concatenate([sample.erase_boxes for sample in samples])),
        rows=torch.from_numpy(np.concatenate(rows)),
        bad=[bad for sample in samples for bad in sample.bad],
        notes=frozenset(sample.note for sample in samples if sample.note),
    )


class Views(NamedTuple):
    """The views of one clip, as a `ClipSample` holds them."""

    frames: np.ndarray
    rows: np.ndarray
    boxes: np.ndarray | None = None
    note: str = ""


Draw = tuple[int | str, ...]  # what all seeds of a training sample derive from
MakeViews = Callable[[int, Draw], Views]


class VideoClsDataset(Dataset):
    """The labelled clips of one hand.

    Args:
        anno_path: list file.
        data_root: folder or URL under which the clips lie; the list's own folder if empty.
        mode: `train`, `validation` or `test`.
        clip_len: frames a view.
        frame_sample_rate: frames of the video from one frame of a view to the next.
        crop_size: height and width of a view in pixels.
        short_side_size: what the short side is resized to in validation and test, in pixels.
        test_num_segment, test_num_crop: temporal windows and spatial crops of the test.
        sparse_sample: sample over the whole clip in `clip_len` equal segments (TSN).
        hand: names the samples and takes part in every seed.
        num_classes: labels must be below it; None takes the list as it is.
        num_sample: augmented views of one decoded clip in training.
        short_clips: `published` repeats the last frame of a clip that is too short, `stretch`
            spreads its frames evenly.
        aa, train_interpolation, hflip, reprob, recount, crop_scale, aug_impl: augmentation, see
            `TrainTransform`.
        reader: how clips are opened.
        seed: seed of the run.

    Raises:
        UserError: an unusable list or data root.

    Source: VideoMAE V2's dataset of the same name; substitution and coverage are our own.
    """

    def __init__(
        self,
        anno_path: str | Path,
        data_root: str | Path = "",
        mode: str = "train",
        clip_len: int = 16,
        frame_sample_rate: int = 4,
        crop_size: int = 224,
        short_side_size: int = 224,
        test_num_segment: int = 5,
        test_num_crop: int = 3,
        sparse_sample: bool = False,
        *,
        hand: str = "lh",
        num_classes: int | None = None,
        num_sample: int = 1,
        short_clips: str = "published",
        aa: str = "rand-m7-n4-mstd0.5-inc1",
        train_interpolation: str = "bicubic",
        hflip: bool = False,
        reprob: float = 0.25,
        recount: int = 1,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        aug_impl: str = "fast",
        reader: ClipReader = ClipReader(),  # noqa: B008 - immutable
        seed: int = 0,
    ):
        if mode not in MODES:
            raise ValueError(f"{mode=} is none of {', '.join(MODES)}")
        self.hand, self.mode, self.seed, self.num_sample = hand, mode, seed, num_sample
        self.known_bad: dict[str, str] = {}  # training clips that could not be read, and why
        self.list_path = Path(anno_path)
        split = "train" if mode == "train" else "val"
        root = data_root or self.list_path.parent
        folders = clip_folders(root, split)
        self.clips = read_clip_list(anno_path, num_classes, unique=mode != "train", folders=folders)
        self.clip_folder = find_clip_folder(self.clips, root, split, self.list_path)
        self._reader = reader
        self._sampling = {
            "num_frames": clip_len,
            "sampling_rate": frame_sample_rate,
            "short_clips": short_clips,
            "sparse": sparse_sample,
        }
        self._num_segment = test_num_segment
        self._most_views = num_sample if mode == "train" else test_num_segment * test_num_crop
        no_frames = np.zeros((0, clip_len, crop_size, crop_size, 3), np.uint8)
        self._no_views = Views(no_frames, np.zeros((0, 3), np.int64))
        if mode == "train":
            self._transform = TrainTransform(
                crop_size, aa, train_interpolation, hflip, reprob, recount, crop_scale, aug_impl
            )
        elif mode == "validation":
            self._transform = ValidationTransform(short_side_size, crop_size)
        else:
            self._transform = TestTransform(short_side_size, crop_size, test_num_crop)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, clip: int) -> ClipSample:
        """The clip's sample of the first pass."""
        return self.sample(ClipKey(self.hand, 0, clip))

    @property
    def most_bytes(self) -> int:
        """Bytes of a sample with all views that there can be."""
        return self._most_views * math.prod(self._no_views.frames.shape[1:])

    def sample(self, key: ClipKey, make_views: MakeViews | None = None) -> ClipSample:
        """One sample: a function of the key and the run's seed alone.

        In training an unreadable clip is replaced by another, which the same key determines, and stays
        replaced from then on. One that is damaged in some frames is replaced only where they are wanted.
        An evaluation returns a sample without views instead.

        Args:
            key: names the sample.
            make_views: stands in for this object's own method, in a process of its own.

        Raises:
            UserError: in training, no readable substitute was found.
        """
        make_views = make_views or self.make_views
        if self.mode == "train":
            return self._training_sample(key, make_views)
        try:
            return self._sample_of(key.clip, make_views(key.clip, ()))
        except ClipError as error:
            bad = BadClip(self.hand, self.clips[key.clip], str(error))
            return self._sample_of(key.clip, self._no_views, (bad,))

    def make_views(self, clip: int, draw: Draw) -> Views:
        """Decodes one clip and makes its views.

        Raises:
            ClipError: it cannot be read.
        """
        try:
            if self.mode == "train":
                return self._training_views(clip, draw)
            return self._validation_view(clip) if self.mode == "validation" else self._test_views(clip)
        except (cv2.error, MemoryError) as error:  # pictures that are too large
            raise ClipError(f"cannot be made into views: {' '.join(str(error).split())}") from None

    def _training_sample(self, key: ClipKey, make_views: MakeViews) -> ClipSample:
        bad: list[BadClip] = []
        clip, draw = key.clip, (self.seed, *key)
        for attempt in range(_MAX_REPLACEMENTS):
            name = self.clips[clip]
            if name not in self.known_bad:
                try:
                    return self._sample_of(clip, make_views(clip, draw), tuple(bad))
                except DamagedFrameError as error:
                    bad.append(DamagedClip(self.hand, name, str(error)))
                except ClipError as error:
                    self.known_bad[name] = str(error)
            if name in self.known_bad:
                bad.append(BadClip(self.hand, name, self.known_bad[name]))
            draw = (self.seed, *key, "replace", attempt)
            clip = derive_seed(*draw) % len(self.clips)
        raise UserError(
            f"{self.list_path}: {len(bad)} clips in a row could not be read, the last one "
            f"{bad[-1].name!r}: {bad[-1].reason}; check the list and the data root"
        )

    def _training_views(self, clip: int, draw: Draw) -> Views:
        seed = derive_seed(*draw, "window")

        def choose(n: int) -> np.ndarray:  # a second decoder that tries the clip must draw the same
            return sampling.train_indices(n, rng=np.random.default_rng(seed), **self._sampling)

        frames, order, note = self._decode(clip, choose)
        in_place = np.array_equal(order, np.arange(len(frames)))
        window = frames if in_place else frames[order]  # a copy of large frames takes as long as a view
        views = [self._transform(window, derive_seed(*draw, "view", view)) for view in range(self.num_sample)]
        boxes = np.stack([v.erase_boxes for v in views])
        return self._no_views._replace(frames=np.stack([v.frames for v in views]), boxes=boxes, note=note)

    def _validation_view(self, clip: int) -> Views:
        frames, order, note = self._decode(clip, lambda n: sampling.validation_indices(n, **self._sampling))
        return Views(self._transform(frames)[order][None], np.zeros((1, 3), np.int64), note=note)

    def _test_views(self, clip: int) -> Views:
        """Every distinct view once, and a row for each (chunk, split)."""
        frames, windows, note = self._decode(
            clip, lambda n: sampling.test_views(n, num_segment=self._num_segment, **self._sampling)
        )
        crops = self._transform(frames)
        distinct: dict[tuple[bytes, int], int] = {}
        views = np.empty((len(windows) * len(crops), *self._no_views.frames.shape[1:]), np.uint8)
        rows: list[tuple[int, int, int]] = []
        for chunk, window in enumerate(windows):
            for split, (crop_id, crop) in enumerate(crops):
                key = (window.tobytes(), crop_id)
                if key not in distinct:
                    distinct[key] = len(distinct)
                    for frame, target in zip(window, views[distinct[key]], strict=True):
                        target[:] = crop[frame]
                rows.append((distinct[key], chunk, split))
        return Views(views[: len(distinct)], np.asarray(rows, np.int64), note=note)

    def _decode(self, clip: int, choose: Callable[[int], np.ndarray]) -> DecodedClip:
        place = locate(self.clips[clip], self.clip_folder)
        return self._reader.read(place, int(self.clips.frames[clip]), choose)

    def _sample_of(self, clip: int, views: Views, bad: tuple[BadClip, ...] = ()) -> ClipSample:
        boxes = np.zeros((len(views.frames), 0, 4), np.int16) if views.boxes is None else views.boxes
        name, label = self.clips[clip], int(self.clips.labels[clip])
        return ClipSample(self.hand, name, label, views.frames, boxes, views.rows, bad, views.note)


class HandsDataset(Dataset):
    """The clips of all hands behind one index, so that one pool of workers serves them in order.

    Args:
        hands: one dataset a hand.
        decode_timeout: seconds that a clip may take in a child process; 0: no limit.
    """

    def __init__(self, hands: Mapping[str, VideoClsDataset], decode_timeout: float = 60.0):
        self.hands = dict(hands)
        self._timeout = decode_timeout
        self._process: DecodeProcess | None = None

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.hands.values())

    def __getitem__(self, key: tuple[str, int, int]) -> ClipSample:
        """Returns the sample of a key, made in this process."""
        key = ClipKey(*key)
        return self.hands[key.hand].sample(key)

    def sample_apart(self, key: tuple[str, int, int]) -> ClipSample:
        """Returns the sample of a key; the clip is opened in a child of this process."""
        key = ClipKey(*key)
        if self._process is None:
            self._process = DecodeProcess(self._make_views, self.most_bytes, self._timeout)
        return self.hands[key.hand].sample(key, functools.partial(self._process.ask, key.hand))

    @property
    def most_bytes(self) -> int:
        """Bytes of the largest sample that there can be."""
        return max(dataset.most_bytes for dataset in self.hands.values())

    def learn(self, bad: Iterable[BadClip]) -> None:
        """Notes training clips that need not be tried again: another process could not read them."""
        for clip in bad:
            if clip.lasts and self.hands[clip.hand].mode == "train":
                self.hands[clip.hand].known_bad.setdefault(clip.name, clip.reason)

    def _make_views(self, hand: str, clip: int, draw: Draw) -> Views:
        return self.hands[hand].make_views(clip, draw)
