"""What the tests share: small videos and lists, the command line in this process, two processes."""

import contextlib
import dataclasses
import io
import json
import logging
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

# Before torch is imported: spinning OpenMP threads are slow where cores are shared.
os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import av  # noqa: E402
import cv2  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from numbered_videos import write_kind  # noqa: E402
from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: E402

torch.set_num_threads(1)
cv2.setNumThreads(0)

# Unequal lists and class counts, and counts of validation clips that two processes cannot share evenly.
CLASSES = {"lh": 4, "rh": 3}
TRAIN_CLIPS = {"lh": 16, "rh": 11}
VAL_CLIPS = {"lh": 5, "rh": 3}
RECORDINGS = 21


def write_video(path, frames, codec="libx264"):
    """Writes uint8 (T, H, W, 3) frames as a video file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "crf": "12"}
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def draw_recording(number, height=48, width=64, n_frames=None):
    """A coloured square that moves over a coloured background; every recording looks different."""
    rng = np.random.default_rng(number)
    n_frames = n_frames or int(rng.integers(24, 41))
    frames = np.empty((n_frames, height, width, 3), np.uint8)
    frames[:] = rng.integers(0, 256, 3)
    colour = rng.integers(0, 256, 3)
    side = int(rng.integers(10, 24))
    start, end = rng.uniform(0, 1, (2, 2))
    for i, share in enumerate(np.linspace(0, 1, n_frames)):
        top, left = ((1 - share) * start + share * end) * (height - side, width - side)
        frames[i, int(top) : int(top) + side, int(left) : int(left) + side] = colour
    return frames


def write_list(path, rows):
    """Writes a list file of (clip, label) rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{clip} {label}\n" for clip, label in rows))


@dataclasses.dataclass(frozen=True)
class Sample:
    """A data set in the layout that users have."""

    root: Path
    labels: dict  # {hand: {clip: label}} of all recordings
    train: dict  # {hand: [(clip, label)]}
    val: dict

    def path(self, hand):
        return self.root / f"{hand}_v0"

    @property
    def flags(self):
        return ["--lh_data_path", str(self.path("lh")), "--rh_data_path", str(self.path("rh"))]


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """Sixteen and eleven training clips, five and three for validation; labels differ by hand."""
    root = tmp_path_factory.mktemp("sample")
    names = [f"r{number:02}.mp4" for number in range(RECORDINGS)]
    sizes = [(48, 64), (64, 80), (64, 64), (80, 64)]
    for number, name in enumerate(names):
        write_video(root / "lh_v0" / "videos" / name, draw_recording(number, *sizes[number % 4]))
    (root / "rh_v0").mkdir()
    (root / "rh_v0" / "videos").symlink_to(root / "lh_v0" / "videos")
    labels = {
        "lh": {name: number % CLASSES["lh"] for number, name in enumerate(names)},
        "rh": {name: (number * 5 // 3) % CLASSES["rh"] for number, name in enumerate(names)},
    }
    rows = {hand: list(by_name.items()) for hand, by_name in labels.items()}
    train = {hand: rows[hand][: TRAIN_CLIPS[hand]] for hand in rows}
    val = {hand: rows[hand][-VAL_CLIPS[hand] :] for hand in rows}
    for hand in rows:
        write_list(root / f"{hand}_v0" / "train_list_video.txt", train[hand])
        write_list(root / f"{hand}_v0" / "val_list_video.txt", val[hand])
    return Sample(root, labels, train, val)


MODEL_FLAGS = (
    *("--model", "vit_tiny_patch16_224_alternating", "--depth", "1", "--input_size", "32"),
    *("--short_side_size", "36", "--num_frames", "4", "--sampling_rate", "2"),
)


@pytest.fixture(scope="session")
def tiny_flags(sample):
    """Flags of a run that takes about a second: four steps of four clips an epoch, two epochs."""
    return [
        *sample.flags,
        *MODEL_FLAGS,
        *("--data_set", "CUSTOM", "--num_workers", "0", "--device", "cpu"),
        *("--batch_size", "2", "--update_freq", "2", "--num_sample", "2", "--epochs", "2"),
        *("--warmup_epochs", "1", "--alternation_steps", "3", "--lr", "0.05", "--log_interval", "2"),
        *("--test_num_segment", "2", "--test_num_crop", "3", "--no_report"),
    ]


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a command ended, and what it said."""

    code: int
    output: str


@pytest.fixture(scope="session")
def run_main():
    """Runs the command line in this process and leaves the process as it was."""
    import run_alternating_hand_finetuning as run

    def call(*flags):
        root = logging.getLogger()
        handlers, level = list(root.handlers), root.level
        environment = dict(os.environ)
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        deterministic = torch.are_deterministic_algorithms_enabled()
        output = io.StringIO()
        root.handlers = []
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                try:
                    code = run.main(["--no_report", *map(str, flags)])  # it takes seconds
                except SystemExit as stop:
                    code = stop.code
        finally:
            for handler in root.handlers:
                with contextlib.suppress(OSError):  # a full disk, as at the end of a process
                    handler.close()
            root.handlers, root.level = handlers, level
            os.environ.clear()
            os.environ.update(environment)
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])
            torch.use_deterministic_algorithms(deterministic)
        return RunResult(code, output.getvalue())

    return call


@pytest.fixture(scope="session")
def numbered_file(tmp_path_factory):
    """Path of the file of a kind of `numbered_videos`, which is written at its first use."""
    folder = tmp_path_factory.mktemp("numbered")
    return lambda name: folder / name if (folder / name).exists() else write_kind(folder, name)


@pytest.fixture(scope="session")
def torchrun():
    """Runs a script in two gloo processes on this machine, with torchrun."""

    def call(*command, timeout=240):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        # Each call keeps its launcher's logs to itself.
        with tempfile.TemporaryDirectory() as logs:
            done = subprocess.run(
                [*launcher, "--log-dir", logs, *map(str, command)],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout,
                check=False,
            )
        return RunResult(done.returncode, done.stdout)

    return call


def launcher_of(ranks):
    """What a launcher tells all ranks of a node; nothing to one alone."""
    if ranks == 1:
        return {}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launcher = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return launcher | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}


@pytest.fixture(scope="session")
def fork_ranks(tmp_path_factory):
    """Runs a function of the rank in two copies of this process, as a launcher would; no new imports."""

    def start(function, rank, folder, environment):
        os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
        with (folder / f"{rank}.out").open("w") as output, contextlib.redirect_stdout(output):
            result = function(rank)
        torch.save(result, folder / f"{rank}.pt")

    def call(function, timeout=120, **environment):
        folder = tmp_path_factory.mktemp("ranks")
        launcher = launcher_of(2) | environment
        context = multiprocessing.get_context("fork")
        ranks = [context.Process(target=start, args=(function, rank, folder, launcher)) for rank in (0, 1)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(timeout)
            if process.is_alive():
                process.kill()
        outputs = [(folder / f"{rank}.out").read_text() for rank in (0, 1)]
        assert [process.exitcode for process in ranks] == [0, 0], outputs
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)], outputs

    return call


@pytest.fixture(scope="session")
def fork_run(tmp_path_factory):
    """Runs the command line in copies of this process, one a rank, that may end in any way."""
    import run_alternating_hand_finetuning as run

    def start(rank, flags, fault, log, environment):
        os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
        with log.open("w", buffering=1) as output:
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
            logging.getLogger().handlers = []
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                if fault is not None:
                    fault(rank)
                run.utils.exit_process(run.main([str(flag) for flag in flags]))

    def call(*flags, fault=None, ranks=1, timeout=120):
        folder = tmp_path_factory.mktemp("ranks")
        launcher = launcher_of(ranks)
        logs = [folder / f"{rank}.out" for rank in range(ranks)]
        fork = multiprocessing.get_context("fork").Process
        processes = [
            fork(target=start, args=(rank, flags, fault, log, launcher)) for rank, log in enumerate(logs)
        ]
        for process in processes:
            process.start()
        try:
            for process in processes:
                process.join(timeout)
                assert not process.is_alive(), log_of(logs)
        finally:
            for process in processes:
                process.kill()
        return [RunResult(p.exitcode, log.read_text()) for p, log in zip(processes, logs, strict=True)]

    def log_of(logs):
        return "\n".join(log.read_text() for log in logs)

    return call


def signal_after_step(step, number, of_rank=0):
    """A fault: a rank gets a signal when it has made a step (zero-based)."""

    def fault(rank):
        import engine_for_alternating_finetuning as engine

        make_step = engine.AlternatingTrainer.optimizer_step

        def step_and_signal(self, now, meters):
            norm = make_step(self, now, meters)
            if rank == of_rank and now == step:
                os.kill(os.getpid(), number)
            return norm

        engine.AlternatingTrainer.optimizer_step = step_and_signal

    return fault


def only_error(output):
    """The one line that says why a run failed."""
    assert "Traceback" not in output and "Logging error" not in output, output
    (line,) = [line for line in output.splitlines() if "error:" in line]
    return line


def assert_equal_states(first, second, where="state"):
    """Two nested states with tensors are the same, bit for bit."""
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal_states(first[key], second[key], f"{where}[{key!r}]")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for i, pair in enumerate(zip(first, second, strict=True)):
            assert_equal_states(*pair, f"{where}[{i}]")
    else:
        assert first == second, where


# ------------------------------------------------------------------------------- runs compared

# Everything that draws or remembers: mixup, erasing, drop path, token masks, accumulation, EMA, workers.
FULL = (
    *("--model_ema", "--model_ema_decay", "0.9", "--drop_path", "0.3", "--depth", "2"),
    *("--head_drop_rate", "0.2", "--reprob", "0.5", "--train_mask_ratio", "0.25", "--train_mask_type"),
    *("random", "--num_workers", "2", "--save_ckpt_freq", "1", "--save_ckpt_steps", "3"),
)
CLOCK = ("seconds", "seconds_a_step", "data_wait", "clips_per_second", "host_memory_gib")
STEPS = 8  # of the whole tiny run


def load(path):
    return torch.load(path, map_location="cpu", weights_only=True)


def epochs_of(folder):
    """Rows of log.txt without what a clock measured."""
    rows = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    return [{name: v for name, v in row.items() if not name.endswith(CLOCK)} for row in rows]


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def assert_same_run(first, second):
    """Two runs left the same weights, moments, moving averages, log and metrics, bit for bit."""
    a, b = load(first / "checkpoint-last.pth"), load(second / "checkpoint-last.pth")
    for saved in (a, b):
        saved["alternating"].pop("run")
        for flag in ("output_dir", "resume", "auto_resume"):
            saved["args"].pop(flag)
    assert_equal_states(a, b)
    for row_a, row_b in zip(epochs_of(first), epochs_of(second), strict=True):
        assert_equal_states(row_a, row_b, "log.txt")
    assert metrics_of(first) == metrics_of(second)


@pytest.fixture(scope="session")
def full_run(run_main, tiny_flags, tmp_path_factory):
    """The folder of a finished run with everything switched on."""
    folder = tmp_path_factory.mktemp("full")
    result = run_main(*tiny_flags, *FULL, "--output_dir", folder)
    assert result.code == 0, result.output
    return folder


def read_events(folder, name="tensorboard"):
    """All events of a run's files, in the order in which they were written."""
    for path in sorted((folder / name).iterdir()):
        data = path.read_bytes()
        while data:  # records: length (8), its check sum (4), event, check sum (4)
            size = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def events_of(folder):
    """[(step, tag)] of all event files, in the order in which they were written; purged ones left out."""
    events = []
    for event in read_events(folder):
        if event.session_log.status == SessionLog.START:  # TensorBoard forgets what is not before it
            events = [(step, tag) for step, tag in events if step < event.step]
        events += [(event.step, value.tag) for value in event.summary.value]
    return events


# --------------------------------------------------------------------------------------- reports


@pytest.fixture(scope="session")
def made_run(tmp_path_factory):
    """A made-up run's folder: it has everything, names to stumble over, and half of one hand's clips."""
    import report_runs

    folder = tmp_path_factory.mktemp("made") / "run <i>1"
    made = report_runs.Made(ranks=2, unreadable=2, names=report_runs.NAMES, data=folder.parent / "data")
    video = folder.parent / "video.mp4"
    write_video(video, draw_recording(1))
    names = report_runs.clip_names(made)
    for hand in report_runs.HANDS:
        rows = zip(names, report_runs.labels_of(made, hand), strict=True)
        write_list(made.data / f"{hand}_v0" / "val_list_video.txt", rows)
    for name in names[::2]:
        path = made.data / "lh_v0" / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(video)
    return report_runs.write_run(folder, made, rh_data_root="https://user:pass@host/data?X-Signature=1")
