"""From flags' values to datasets and loaders."""

from __future__ import annotations

import dataclasses
import functools
import logging
import multiprocessing
import multiprocessing.util
import signal
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import cv2
import torch
from torch.utils.data import DataLoader

from dataset.annotations import read_clip_list
from dataset.datasets import MODES, ClipBatch, ClipKey, HandsDataset, VideoClsDataset, collate_clips
from dataset.decode_process import follow_the_parent, signals_held_back
from dataset.list_files import ListNames, find_list, list_file
from utils import terminal

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What a `--data_set` name stands for: classes a hand; None: as many as the lists have."""

    num_classes: int | None


DATASETS: dict[str, DatasetSpec] = {
    "HAVID": DatasetSpec(75),
    "ATTACH": DatasetSpec(24),
    "Assembly101": DatasetSpec(202),
    "Breakfast": DatasetSpec(48),
    "CUSTOM": DatasetSpec(None),
}


def build_dataset(
    mode: str,
    data_path: str | Path,
    data_root: str | Path = "",
    *,
    hand: str = "lh",
    num_classes: int | None = None,
    list_names: ListNames | None = None,
    **settings: object,
) -> VideoClsDataset:
    """One hand's dataset for a mode.

    Args:
        mode: `train`, `validation` or `test`.
        data_path: folder that holds the hand's list files.
        data_root: folder under which the clips lie; `data_path` if empty.
        hand: `lh` or `rh`.
        num_classes: labels must be below it; None: not checked.
        list_names: names of the list files in the folder; None: the usual ones.
        settings: further keywords of `VideoClsDataset`.

    Raises:
        UserError: a missing or unusable list, or no clips under the root.
    """
    path = find_list(data_path, mode, list_names, hand)
    root = data_root or data_path
    dataset = VideoClsDataset(path, root, mode, hand=hand, num_classes=num_classes, **settings)
    log.info("%s %s: %d clips of %s in %s", hand, mode, len(dataset), path, dataset.clip_folder)
    return dataset


def resolve_num_classes(
    data_set: str, given: int | None, data_path: str | Path, hand: str, list_names: ListNames | None = None
) -> int:
    """A hand's class count: the flag's, else the data set's, else one more than the largest label.

    Raises:
        UserError: no list to count the labels of.
    """
    spec = DATASETS[data_set].num_classes
    if given or spec:
        return given or spec
    paths = {list_file(data_path, mode, list_names, hand) for mode in MODES}
    present = [path for path in paths if path.is_file()] or [find_list(data_path, "train", list_names, hand)]
    return max(int(read_clip_list(path).labels.max()) for path in present) + 1


def _set_up_worker(worker: int) -> None:
    follow_the_parent()
    if screen := terminal():
        screen.serve_worker()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _end_workers() -> None:
    """Ends workers that nobody has told to end, at the end of this process.

    Python would ask them by a signal that they leave to this process, and wait for ever.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would call it an error
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def build_loader(
    datasets: Mapping[str, VideoClsDataset],
    batches: Iterable[list[ClipKey]],
    num_workers: int,
    pin_memory: bool = False,
    decode_timeout: float = 60.0,
) -> Iterator[ClipBatch]:
    """The one pool of workers: serves a known sequence of batches of both hands, in order.

    Args:
        datasets: one dataset a hand.
        batches: keys of each batch, all of one hand.
        num_workers: processes that decode; 0 decodes in this one. The result is the same.
        pin_memory: copy batches into pinned memory, from which GPUs copy asynchronously.
        decode_timeout: seconds after which a clip counts as unreadable, if there are workers; 0: never.
    """
    if num_workers:
        multiprocessing.util.Finalize(None, _end_workers, exitpriority=100)
    loader = DataLoader(
        HandsDataset(datasets, decode_timeout),
        batch_sampler=_Batches(batches),
        num_workers=num_workers,
        collate_fn=collate_clips,
        pin_memory=pin_memory,
        worker_init_fn=_set_up_worker,
        multiprocessing_context="fork" if num_workers else None,
        prefetch_factor=2 if num_workers else None,
    )
    return _say_notes(loader)


@functools.cache  # workers know nothing of each other: here, all batches of a process pass by
def _say_once(note: str) -> None:
    log.info(note)


def _say_notes(loader: DataLoader) -> Iterator[ClipBatch]:
    with signals_held_back():
        batches = iter(loader)
    try:
        for batch in batches:
            for note in sorted(batch.notes):
                _say_once(note)
            yield batch
    finally:
        # Of an iterator that an error's traceback holds, Python would take the queues apart first and
        # then wait for workers that nobody can tell to end.
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()


class _Batches:
    """A sequence of batches as the sampler that torch's loader wants."""

    def __init__(self, batches: Iterable[list[ClipKey]]):
        self._batches = batches

    def __iter__(self) -> Iterator[list[ClipKey]]:
        return iter(self._batches)


def evaluation_batches(
    sizes: Mapping[str, int], batch_size: int, rank: int, world_size: int
) -> list[list[ClipKey]]:
    """Batches that give this rank its share of every hand's clips; each clip goes to one rank.

    Args:
        sizes: clips a hand.
        batch_size: clips a batch.
        rank, world_size: this process and all of them.
    """
    batches: list[list[ClipKey]] = []
    for hand, size in sizes.items():
        keys = [ClipKey(hand, 0, clip) for clip in range(rank, size, world_size)]
        batches += [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)]
    return batches
