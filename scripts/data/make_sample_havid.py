"""Makes a small stand-in for HA-ViD: drawn recordings of two hands that work at a table.

    python -m scripts.data.make_sample_havid --output data/sample_havid
    python -m scripts.data.make_sample_havid --output data/sample_pretrain --table pretrain

The folder gets the layout of the real data: `lh_v0/` and `rh_v0/`, each with
`train_list_video.txt` and `val_list_video.txt` (lines `name.mp4 label`), `mapping.txt` (lines
`label name`) and `videos/`. A recording shows both hands, each at an action of its own choice; the
same file is in both hands' folders and has each hand's label in that hand's lists. The operator's
left hand (`lh`) works in the left half of the picture, the right hand (`rh`) in the right half.

Of the recordings, every fifth is for validation, and shows tables and hands that no training
recording shows. The same arguments make the same files, byte for byte, with any number of
workers.

With `--raw`, the folder gets the layout of HA-ViD as it is downloaded, for `prepare_havid`: long
recordings, in which each hand does one action after the other, and a label a frame and hand.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dataset.frame_scaler import convert
from scripts.data.sample_raw import Session, plan_sessions, write_raw_labels
from scripts.data.sample_scenes import HANDS, Recording, render, render_session
from scripts.data.sample_vocabulary import SPLITS, VOCABULARIES

LOGGER = logging.getLogger(__name__)
FORMAT_VERSION = 1
RECORD_NAME = "sample.json"
_VAL_EVERY = 5
_LABEL_STREAM = 1_000_003
_KEYFRAME_STEPS = (12, 14, 16)
_BATCH = 8
_RECORDINGS, _RAW_RECORDINGS = 1200, 10
_RAW_ACTIONS = 8  # a hand and long recording
_RAW_KEYFRAME_STEP = 250  # the encoder's own, which cameras' files have too


class SampleError(Exception):
    """Something the user can put right; shown as one line."""


@dataclass(frozen=True)
class SampleSet:
    """The arguments that decide every byte of a set.

    Args:
        table: name of the vocabulary.
        recordings: how many, training and validation together.
        seed: start of all random draws.
        size: lowest and highest picture height, pixels.
        raw: whether recordings are long and labelled frame by frame.
    """

    table: str
    recordings: int
    seed: int
    size: tuple[int, int]
    raw: bool = False

    def record(self, *, complete: bool) -> dict[str, object]:
        """Returns what `sample.json` holds."""
        return {
            "format_version": FORMAT_VERSION,
            "table": self.table,
            "recordings": self.recordings,
            "seed": self.seed,
            "size": list(self.size),
            **({"raw": True} if self.raw else {}),
            "complete": complete,
        }


def split_of(index: int) -> str:
    """Returns the split that a recording belongs to by its number."""
    return "val" if index % _VAL_EVERY == _VAL_EVERY - 1 else "train"


def clip_name(sample: SampleSet, index: int) -> str:
    """Returns a file name that says nothing about what the file shows."""
    text = f"{sample.table}/{sample.seed}/{index}"
    return hashlib.sha256(text.encode()).hexdigest()[:12] + ".mp4"


def label_pairs(classes: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Returns `(count, 2)` labels of the two hands, balanced in each hand and in their pairs.

    A run of `classes` pairs has each class once for each hand, and `classes` such runs have every
    pair of classes once. The order within a run is random.
    """
    runs = -(-count // classes)
    rounds = -(-runs // classes)
    shifts = np.concatenate([rng.permutation(classes) for _ in range(rounds)])[:runs]
    rows = []
    for shift in shifts:
        left = rng.permutation(classes)
        rows.append(np.stack([left, (left + shift) % classes], axis=1))
    return np.concatenate(rows)[:count]


def plan_recordings(sample: SampleSet) -> list[Recording]:
    """Returns all recordings of a set with their splits and labels."""
    classes = len(VOCABULARIES[sample.table].actions)
    rng = np.random.default_rng([sample.seed, _LABEL_STREAM])
    indices = {
        split: [index for index in range(sample.recordings) if split_of(index) == split] for split in SPLITS
    }
    plan = []
    for split in SPLITS:
        pairs = label_pairs(classes, len(indices[split]), rng)
        for index, pair in zip(indices[split], pairs.tolist(), strict=True):
            plan.append(Recording(index, split, dict(zip(HANDS, pair, strict=True))))
    return sorted(plan, key=lambda recording: recording.index)


def encode(path: Path, frames: Iterator[np.ndarray], fps: int, keyframe_step: int) -> None:
    """Writes frames `(H, W, 3)` uint8 RGB to an H.264 file.

    Args:
        fps: frames a second.
        keyframe_step: frames from one keyframe to the next.
    """
    options = {
        "preset": "veryfast",
        "crf": "23",
        "bf": "0",
        "g": str(keyframe_step),
        "sc_threshold": "0",
        # x264's macroblock tree reads memory that it never wrote when pictures are this small, so
        # that the bytes would differ from run to run.
        "x264-params": "mbtree=0",
    }
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.pix_fmt = "yuv420p"
        # Processes share the cores already, and one thread keeps the bytes the same everywhere.
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(convert(picture, format="yuv420p")))
        container.mux(stream.encode(None))


def _link_or_copy(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`, or a copy where links are not possible."""
    partial_target = target.with_suffix(".part")
    partial_target.unlink(missing_ok=True)
    try:
        partial_target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, partial_target)
    partial_target.replace(target)
    # Renaming one hard link over another of the same file leaves both names.
    partial_target.unlink(missing_ok=True)


def make_recording(output: Path, sample: SampleSet, recording: Recording) -> None:
    """Draws and writes one recording into both hands' folders, unless it is there already."""
    name = clip_name(sample, recording.index)
    first, *others = [output / f"{hand}_v0" / "videos" / name for hand in HANDS]
    if not first.is_file():
        partial_file = first.with_suffix(".part")
        draw, frames = render(VOCABULARIES[sample.table], recording, sample.seed, sample.size)
        step = _KEYFRAME_STEPS[recording.index % len(_KEYFRAME_STEPS)]
        encode(partial_file, frames, draw.fps, step)
        partial_file.replace(first)
    for other in others:
        if not other.is_file():
            _link_or_copy(first, other)


def plan_raw(sample: SampleSet) -> list[Session]:
    """Returns all long recordings of a set."""
    splits = [split_of(index) for index in range(sample.recordings)]
    classes = len(VOCABULARIES[sample.table].actions)
    return plan_sessions(classes, splits, HANDS, _RAW_ACTIONS, sample.seed)


def make_session(output: Path, sample: SampleSet, session: Session) -> None:
    """Draws and writes one long recording, unless it is there already."""
    path = output / f"{session.name}.mp4"
    if not path.is_file():
        partial_file = path.with_suffix(".part")
        draw, frames = render_session(VOCABULARIES[sample.table], session, sample.seed, sample.size)
        encode(partial_file, frames, draw.fps, _RAW_KEYFRAME_STEP)
        partial_file.replace(path)


def _make_batch(output: Path, sample: SampleSet, batch: Sequence[Recording | Session]) -> int:
    for recording in batch:
        make = make_session if sample.raw else make_recording
        make(output, sample, recording)
    return len(batch)


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, and the cores to the other workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


def _in_processes(make: partial[int], batches: Sequence[Sequence[Recording]], workers: int) -> Iterator[int]:
    """Yields the number of recordings of each batch as it is finished.

    Raises:
        SampleError: the system refuses processes, or what they need.
    """
    context = multiprocessing.get_context("spawn")
    cannot_start = f"--workers {workers}: processes cannot be started (%s); --workers 1 needs none"
    try:
        # Not a `with` block: its exit would withdraw the order to cancel what has not begun.
        pool = ProcessPoolExecutor(workers, context, _start_worker)
    except OSError as error:  # its semaphores are files in /dev/shm
        raise SampleError(cannot_start % f"{error.strerror}, in /dev/shm or for open files") from error
    try:
        try:
            waiting: set[Future[int]] = {pool.submit(make, batch) for batch in batches}
        except OSError as error:
            raise SampleError(cannot_start % error.strerror) from error
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def make_videos(output: Path, sample: SampleSet, plan: Sequence[Recording | Session], workers: int) -> None:
    """Makes all recordings of a plan, with a progress bar if stderr is a terminal."""
    size = 1 if sample.raw else _BATCH
    batches = [plan[start : start + size] for start in range(0, len(plan), size)]
    make = partial(_make_batch, output, sample)
    finished = map(make, batches) if workers == 1 else _in_processes(make, batches, workers)
    console = Console(stderr=True)
    columns = (TextColumn("drawing recordings"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("recordings", total=len(plan))
        for count in finished:
            progress.advance(task, count)


def write_lists(output: Path, sample: SampleSet, plan: Sequence[Recording]) -> None:
    """Writes both hands' lists, in the order of the meaningless names, and their class names."""
    actions = VOCABULARIES[sample.table].actions
    mapping = "".join(f"{label} {action.name}\n" for label, action in enumerate(actions))
    for hand in HANDS:
        folder = output / f"{hand}_v0"
        (folder / "mapping.txt").write_text(mapping, encoding="utf-8")
        for split in SPLITS:
            lines = sorted(
                f"{clip_name(sample, recording.index)} {recording.labels[hand]}\n"
                for recording in plan
                if recording.split == split
            )
            (folder / f"{split}_list_video.txt").write_text("".join(lines), encoding="utf-8")


def _write_record(output: Path, record: dict[str, object]) -> None:
    partial_file = output / f"{RECORD_NAME}.part"
    partial_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    partial_file.replace(output / RECORD_NAME)


def _read_record(output: Path) -> dict[str, object] | None:
    """Returns what `sample.json` holds, or None for a folder that is new or empty.

    Raises:
        SampleError: the folder holds something else.
    """
    path = output / RECORD_NAME
    if not path.is_file():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise SampleError(
                f"--output {output} exists and holds no {RECORD_NAME}; give a new or empty folder"
            )
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SampleError(f"{path} is not readable as JSON ({error}); delete the folder") from error
    if not isinstance(record, dict):
        raise SampleError(f"{path} does not describe a sample set; give another --output")
    return record


def is_complete(output: Path, sample: SampleSet, plan: Sequence[Recording | Session]) -> bool:
    """Says whether a folder holds the whole set already.

    Raises:
        SampleError: the folder holds another set, or something that is no sample set.
    """
    record = _read_record(output)
    if record is None:
        return False
    wanted = sample.record(complete=True)
    if record.get("format_version") != FORMAT_VERSION:
        raise SampleError(
            f"--output {output} holds a set of format {record.get('format_version')}, "
            f"this program makes format {FORMAT_VERSION}; give another --output"
        )
    for key in ("table", "recordings", "seed", "size"):
        if record.get(key) != wanted[key]:
            raise SampleError(
                f"--output {output} holds a set made with --{key} {_flag_value(record.get(key))}, "
                f"not {_flag_value(wanted[key])}; give another --output"
            )
    if bool(record.get("raw")) != sample.raw:
        raise SampleError(
            f"--output {output} holds a set made {'without' if sample.raw else 'with'} --raw; "
            "give another --output"
        )
    return bool(record.get("complete")) and _has_all_files(output, sample, plan)


def _flag_value(value: object) -> str:
    return " ".join(str(item) for item in value) if isinstance(value, list) else str(value)


def _has_all_files(output: Path, sample: SampleSet, plan: Sequence[Recording | Session]) -> bool:
    if sample.raw:  # labels are written last
        return all((output / f"{session.name}.mp4").is_file() for session in plan)
    names = {clip_name(sample, recording.index) for recording in plan}
    for hand in HANDS:
        folder = output / f"{hand}_v0"
        lists = [folder / f"{split}_list_video.txt" for split in SPLITS]
        if not all(path.is_file() for path in [*lists, folder / "mapping.txt"]):
            return False
        videos = folder / "videos"
        if not videos.is_dir() or not names <= set(os.listdir(videos)):  # noqa: PTH208
            return False
    return True


def make_sample(output: Path, sample: SampleSet, workers: int) -> bool:
    """Makes a set, finishes one that was interrupted, or leaves a complete one alone.

    Returns:
        Whether there was anything to make.

    Raises:
        SampleError: the folder holds something else.
    """
    if sample.raw:
        return _make_raw_sample(output, sample, workers)
    plan = plan_recordings(sample)
    if is_complete(output, sample, plan):
        return False
    for hand in HANDS:
        (output / f"{hand}_v0" / "videos").mkdir(parents=True, exist_ok=True)
    _write_record(output, sample.record(complete=False))
    make_videos(output, sample, plan, workers)
    write_lists(output, sample, plan)
    _write_record(output, sample.record(complete=True))
    return True


def _make_raw_sample(output: Path, sample: SampleSet, workers: int) -> bool:
    plan = plan_raw(sample)
    if is_complete(output, sample, plan):
        return False
    output.mkdir(parents=True, exist_ok=True)
    _write_record(output, sample.record(complete=False))
    make_videos(output, sample, plan, workers)
    write_raw_labels(output, VOCABULARIES[sample.table], plan)
    _write_record(output, sample.record(complete=True))
    return True


def _cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    summary, _, _ = __doc__.partition("\n")
    parser = argparse.ArgumentParser(prog="python -m scripts.data.make_sample_havid", description=summary)
    parser.add_argument("--output", type=Path, required=True, help="folder to make the set in (required)")
    parser.add_argument(
        "--recordings",
        type=int,
        help="number of recordings, at least 5; every fifth is for validation (default: 1200, or "
        "10 with --raw)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="start of all random draws, 0 or more (default: 0)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=_cores(),
        help="number of processes, which changes no file (default: the cores at hand)",
    )
    parser.add_argument(
        "--table",
        choices=sorted(VOCABULARIES),
        default="sample",
        help="vocabulary: `sample` to try the trainer on, `pretrain` for weights to start from "
        "(default: sample)",
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="write long recordings with labels a frame, in the layout of HA-ViD's download",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("MIN", "MAX"),
        default=(96, 160),
        help="shortest and longest picture height, pixels, 32 to 1080; widths are 1 to 1.34 "
        "times the height (default: 96 160)",
    )
    return parser


def get_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if args.recordings is None:
        args.recordings = _RAW_RECORDINGS if args.raw else _RECORDINGS
    if args.recordings < _VAL_EVERY:
        parser.error(f"--recordings must be at least {_VAL_EVERY}, not {args.recordings}")
    if args.seed < 0:
        parser.error(f"--seed must be 0 or more, not {args.seed}")
    if args.workers < 1:
        parser.error(f"--workers must be at least 1, not {args.workers}")
    low, high = args.size
    if not 32 <= low <= high <= 1080:
        parser.error(f"--size must be two numbers 32 <= MIN <= MAX <= 1080, not {low} {high}")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit status."""
    args = get_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sample = SampleSet(args.table, args.recordings, args.seed, tuple(args.size), args.raw)
    try:
        made = make_sample(args.output, sample, args.workers)
    except (SampleError, OSError, av.FFmpegError, BrokenProcessPool) as error:
        LOGGER.error("make_sample_havid: %s", " ".join(str(error).split()))
        return 1
    except KeyboardInterrupt:
        LOGGER.error("make_sample_havid: stopped; the same command goes on from here")
        return 130
    state = "made" if made else "already complete"
    sys.stdout.write(f"{args.output}: {args.recordings} recordings, {state}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
