"""From flags' values to datasets and loaders."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path

from dataset.annotations import read_clip_list
from dataset.datasets import MODES, ClipBatch, ClipKey, HandsDataset, VideoClsDataset, collate_clips
from dataset.list_files import ListNames, find_list, list_file
from dataset.worker_pool import nothing, pin, serve_batches

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


def build_loader(
    datasets: Mapping[str, VideoClsDataset],
    batches: Iterable[list[ClipKey]],
    num_workers: int,
    pin_memory: bool = False,
    decode_timeout: float = 60.0,
    on_wait: Callable[[], None] = nothing,
) -> Iterator[ClipBatch]:
    """The one pool of workers: serves a known sequence of batches of both hands, in order.

    Args:
        datasets: one dataset a hand.
        batches: keys of each batch, all of one hand. The first batch of an iterator must be the longest.
        num_workers: processes that decode; 0 decodes in this one. The result is the same.
        pin_memory: copy batches into pinned memory, from which GPUs copy asynchronously.
        decode_timeout: seconds after which a clip counts as unreadable, if there are workers; 0: never.
        on_wait: called several times per second while a batch is waited for, if there are workers; what it
            raises ends the iterator.
    """
    hands = HandsDataset(datasets, decode_timeout)
    if num_workers:
        return _say_notes(serve_batches(hands, batches, num_workers, pin_memory, on_wait))
    made = (collate_clips([hands[key] for key in keys]) for keys in batches)
    return _say_notes(map(pin, made) if pin_memory else made)


@functools.cache  # workers know nothing of each other: here, all batches of a process pass by
def _say_once(note: str) -> None:
    log.info(note)


def _say_notes(batches: Iterator[ClipBatch]) -> Iterator[ClipBatch]:
    try:
        for batch in batches:
            for note in sorted(batch.notes):
                _say_once(note)
            yield batch
    finally:
        if isinstance(batches, Generator):  # ends the workers, though an error's traceback holds it
            batches.close()


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
