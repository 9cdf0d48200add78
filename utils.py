"""What every part stands on: errors, seeds, logging, the process group, schedules, checkpoint files.

This module knows neither models nor data; everything else may import it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import datetime
import errno
import hashlib
import importlib.metadata
import io
import json
import logging
import math
import os
import pickle
import platform
import random
import re
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, NoReturn, TextIO

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console, ConsoleRenderable
from rich.control import Control, ControlType
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text
from torch import nn
from torch.nn.parallel import DistributedDataParallel

log = logging.getLogger(__name__)


class UserError(Exception):
    """Something that the user can mend; the message is one line that names the file or flag."""


# --------------------------------------------------------------------------------------- flags


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and whose help says defaults that are values."""

    def __init__(self, **options: Any):
        super().__init__(usage="%(prog)s [flags]", formatter_class=_HelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Ends the program."""
        self.exit(2, f"error: {message} (--help lists every flag)\n")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, width=110)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_value = action.nargs != 0 and action.default not in (None, "")
        return super()._get_help_string(action) if is_value else action.help


def _number(kind: Callable[[str], float], least: float, greatest: float = math.inf) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not (least <= value <= greatest and math.isfinite(value)):
            limits = f"at least {least}" if greatest == math.inf else f"between {least} and {greatest}"
            raise argparse.ArgumentTypeError(f"{text} must be {limits}")
        return value

    parse.__name__ = kind.__name__  # argparse names it where the text is no number
    return parse


# Types of flags.
count, natural = _number(int, 1), _number(int, 0)
amount, share = _number(float, 0), _number(float, 0, 1)


def add_runtime_args(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of checkpoints, logs, device and process group."""
    add = parser.add_argument_group("checkpoints and logs").add_argument
    add("--output_dir", default="", metavar="DIR", help="all that is written; default: output, or the "
        "tested checkpoint's folder")  # fmt: skip
    add("--log_dir", metavar="DIR", help="TensorBoard events; default: OUTPUT_DIR/tensorboard")
    add("--log_interval", type=count, default=10, help="steps from one progress line to the next")
    add("--resume", default="", metavar="FILE", help="checkpoint to go on from or to test")
    add_switch(add, "auto_resume", "go on from the most advanced checkpoint in the output folder")
    add_switch(add, "save_ckpt", "write checkpoints")
    add("--save_ckpt_freq", type=count, default=10, help="epochs between kept checkpoints")
    add(
        "--save_ckpt_steps",
        type=natural,
        default=0,
        help="steps between checkpoints within an epoch; 0: none",
    )
    add("--keep_ckpts", type=count, default=2, help="step checkpoints to keep")
    add("--start_epoch", type=natural, default=0, help="first epoch, where no checkpoint says it")
    add_switch(add, "report", "make report.html after the test")
    add = parser.add_argument_group("runtime").add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--seed", type=int, default=0, help="seed of everything random")
    add("--amp_dtype", choices=("auto", "bf16", "fp16", "fp32"), default="auto",
        help="precision; auto: bf16 where native, else fp16; fp32 on CPUs")  # fmt: skip
    add("--deterministic", action="store_true", help="repeatable GPU kernels, slower")
    add("--dist_url", default="env://", help="where the processes meet")
    add("--dist_on_itp", action="store_true", help="take ranks from Open MPI")
    add("--dist_timeout", type=amount, default=60, help="longest wait for another process, minutes")
    add("--world_size", type=count, help="number of processes that must be there")
    add("--enable_deepspeed", action="store_true", help="refused")


def add_switch(add: Callable[..., Any], name: str, help_text: str) -> None:
    """Adds `--{name}` (the default) and `--no_{name}` with `add_argument`."""
    add(f"--{name}", action="store_true", default=True, help=help_text)
    add(f"--no_{name}", action="store_false", dest=name, help=f"not: {help_text}")


# --------------------------------------------------------------------------------------- seeds


def derive_seed(*keys: int | str) -> int:
    """Hashes keys such as (seed, hand, pass, clip) into one stable 63-bit seed.

    Neighbouring keys give unrelated seeds, whatever the platform or the process.
    """
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_global_generators(seed: int) -> None:
    """Seeds `random`, `numpy.random` and torch (all devices): libraries draw from these."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


# ------------------------------------------------------------------------------------- logging


def visible(text: str) -> str:
    """The text with escapes for what would act on a terminal or a log instead of being shown."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Formatter(logging.Formatter):
    """A message is one line, whatever stands in the lists and files that it quotes."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = visible(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(visible, super().formatException(ei).split("\n")))


class _LogFile(logging.FileHandler):
    """A log that may fail to grow, on a full disk: its lines are shown on stdout anyway."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


# What a record may say of itself, as `extra`: that the terminal's live line says the same, or that only this
# rank knows it.
PASSING, OF_THIS_RANK = {"passing": True}, {"of_this_rank": True}


def setup_logging(rank: int, output_dir: Path | None = None) -> None:
    """Rank 0 speaks on stdout (and to `run.log`); of the others one hears errors and what only they know."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of clips need not be in the terminal's encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    prefix = "" if rank == 0 else f"[rank {rank}] "
    screen = Terminal(rank == 0) if _can_redraw() else logging.StreamHandler(sys.stdout)
    handlers: list[logging.Handler] = [screen]
    if rank == 0 and output_dir is not None:
        with naming(output_dir / "run.log") as path:
            handlers.append(_LogFile(path))

    def is_heard(record: logging.LogRecord) -> bool:
        return rank == 0 or record.levelno >= logging.ERROR or hasattr(record, "of_this_rank")

    for handler in handlers:
        handler.setFormatter(_Formatter(prefix + "%(asctime)s %(message)s", "%H:%M:%S"))
        handler.addFilter(is_heard)
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)


# ------------------------------------------------------------------------------------ terminal

_REDRAW = 0.1  # least seconds from one drawing of the live line to the next
_PACE_OVER = 600  # seconds: some steps take half a minute
_COLOURS = {logging.WARNING: "yellow", logging.ERROR: "red"}


def _can_redraw() -> bool:
    """Whether stdout is a terminal; that of a SLURM job is kept in a file sooner or later."""
    return (
        sys.stdout.isatty() and "SLURM_JOB_ID" not in os.environ and Console(file=sys.stdout).is_interactive
    )


class _Screen:
    """A terminal's file; a run goes on though its terminal goes away, as with a broken connection."""

    def __init__(self, file: TextIO):
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> None:
        """Writes at once, or from the first failure on to nowhere: nobody must stumble over it later."""
        try:
            self._file.write(text)
            self._file.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._file.fileno())


class Terminal(logging.Handler):
    """Whole lines on a terminal, above the live line if there is one.

    Everything is drawn by hand: a thread would be a danger to the processes that are forked from this one.
    """

    def __init__(self, has_live_lines: bool):
        super().__init__()
        self.has_live_lines = has_live_lines
        self.console = Console(file=_Screen(sys.stdout), highlight=False)
        self.console.push_render_hook(self)
        # The stderr of workers, where decoders in C write too: a pipe would let them wait when it is full.
        self._words, self._read = tempfile.TemporaryFile(), 0  # noqa: SIM115

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Of rich's hook: clears the line that this or another process has drawn."""
        return [Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)), *renderables]

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record, unless it is passing."""
        if not hasattr(record, "passing"):
            try:
                self._write(self.format(record), _COLOURS.get(record.levelno, ""))
            except Exception:
                self.handleError(record)

    def close(self) -> None:
        """Of logging."""
        self._words.close()
        super().close()

    def _write(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style), soft_wrap=True)

    def show_words_of_workers(self) -> None:
        """Writes the whole lines that workers have written to stderr meanwhile."""
        written = os.fstat(self._words.fileno()).st_size
        whole, end, _ = os.pread(self._words.fileno(), written, self._read).rpartition(b"\n")
        self._read += len(whole + end)
        for line in whole.splitlines():
            self._write(visible(line.decode(errors="replace")))

    def serve_worker(self) -> None:
        """Called in a forked process: leaves it to this one to show what is written to stderr there."""
        if os.isatty(2):
            os.dup2(self._words.fileno(), 2)
            sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)


def terminal() -> Terminal | None:
    """The terminal that this process writes to, if it does."""
    return next((h for h in logging.getLogger().handlers if isinstance(h, Terminal)), None)


class LiveLine:
    """A line on the terminal that says how far a phase is, while it lasts; elsewhere nothing.

    It costs the loop that calls it no wait for the device: give it what the host knows.

    Args:
        phase: what is going on.
        total: its steps or clips.
        done: those made before.
        clips: clips of each of them, on all ranks.
    """

    def __init__(self, phase: str, total: int, done: int = 0, clips: int = 1):
        self._terminal, self._clips, self._drawn = terminal(), clips, -math.inf
        self._phase, self._total = phase, total
        screen = self._terminal and self._terminal.console
        self._has_bar = screen is not None and screen.width >= 100
        self._progress = Progress(
            *[BarColumn(bar_width=20)] * self._has_bar,
            TextColumn("{task.fields[text]}", markup=False),
            console=screen,
            auto_refresh=False,
            transient=True,
            redirect_stderr=False,
            speed_estimate_period=_PACE_OVER,
            disable=self._terminal is None or not self._terminal.has_live_lines,
        )
        self._id = self._progress.add_task("", total=total, completed=done, text=phase)
        self._stderr = contextlib.ExitStack()

    def __enter__(self) -> LiveLine:
        if self._terminal is not None and sys.stderr.isatty():
            proxy = FileProxy(self._terminal.console, sys.stderr)
            self._stderr.enter_context(contextlib.redirect_stderr(proxy))
        self._progress.start()
        if not self._progress.disable:
            self._terminal.console.show_cursor(True)  # nobody could bring it back after a SIGKILL
        return self

    def __exit__(self, *error: object) -> None:
        if self._terminal is not None:
            self._terminal.show_words_of_workers()
        self._progress.stop()
        self._stderr.close()

    def show(self, done: int, hand: str, *words: str) -> None:
        """Says what is done, whose turn it is and what else there is; seldom enough to cost nothing."""
        if self._terminal is None:
            return
        self._progress.update(self._id, completed=done)
        now = time.monotonic()
        if now - self._drawn < _REDRAW:
            return
        self._drawn = now
        self._terminal.show_words_of_workers()
        head = f"{self._phase} {done:{len(str(self._total))}}/{self._total}"
        text = Text("  ".join([head, hand, *self._pace(), *words]))
        # Room is left for the `^C` of an interrupt: it must not begin another line.
        text.truncate(self._terminal.console.width - 2 - 21 * self._has_bar, overflow="crop")
        self._progress.update(self._id, text=text.plain, refresh=True)

    def _pace(self) -> list[str]:
        (task,) = self._progress.tasks
        if not task.speed:
            return []
        left = datetime.timedelta(seconds=int(task.time_remaining))
        return [f"{self._clips * task.speed:.3g} clips/s", f"eta {left}"]

    def watch(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches of an evaluation, whose clips are counted as they go by."""
        done = 0
        for batch in batches:
            self.show(done, batch.hand)
            yield batch
            done += len(batch.names)


# ------------------------------------------------------------------------------- process group


@dataclasses.dataclass(frozen=True)
class Distributed:
    """Where this process stands among all processes of the run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    @property
    def active(self) -> bool:
        """Whether there is a process group."""
        return self.world_size > 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0


def _launcher_ranks(env: Mapping[str, str], dist_on_itp: bool) -> tuple[int, int, int, int] | None:
    """(rank, world size, local rank, local world size) from the launcher, or None for one process.

    torchrun wins over SLURM because torchrun is also started inside SLURM jobs. A batch shell has
    `SLURM_PROCID` too, so SLURM counts only when a step of several tasks runs.
    """
    if dist_on_itp:
        names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
        missing = [name for name in names if name not in env]
        if missing:
            raise UserError(f"--dist_on_itp: {missing[0]} is not set; start the run with mpirun")
        rank, world, local = (int(env[name]) for name in names)
        return rank, world, local, int(env.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
    if "RANK" in env and "WORLD_SIZE" in env:
        rank, world = int(env["RANK"]), int(env["WORLD_SIZE"])
        return rank, world, int(env.get("LOCAL_RANK", 0)), int(env.get("LOCAL_WORLD_SIZE", 1))
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        rank, world = int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"])
        local_world = int(env.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0])
        return rank, world, int(env.get("SLURM_LOCALID", 0)), local_world
    return None


def _first_slurm_host(nodelist: str) -> str:
    """First host of a SLURM node list: `gpu[03-05,7],x1` -> `gpu03`."""
    match = re.match(r"([^\[,]+)(?:\[(\w+))?", nodelist)
    if match is None:
        raise UserError(f"SLURM_STEP_NODELIST={nodelist!r} names no host; set MASTER_ADDR")
    return match[1] + (match[2] or "")


def _rendezvous(env: Mapping[str, str], dist_url: str) -> str:
    """The init method: an explicit URL, or the launcher's master; SLURM's port follows the job id."""
    if dist_url != "env://" or ("MASTER_ADDR" in env and "MASTER_PORT" in env):
        return dist_url
    if "SLURM_JOB_ID" in env:
        host = env.get("MASTER_ADDR") or _first_slurm_host(env["SLURM_STEP_NODELIST"])
        return f"tcp://{host}:{env.get('MASTER_PORT', 20000 + int(env['SLURM_JOB_ID']) % 20000)}"
    raise UserError("MASTER_ADDR and MASTER_PORT are not set; use torchrun or give --dist_url")


def _store_of_attempt(env: Mapping[str, str], dist_url: str) -> dist.Store | None:
    """This attempt's part of torchrun's own store, or None: processes meet some other way.

    The store outlives a restart with the addresses of processes that are gone (torch issue 135712). On
    several nodes attempts have no common number: there the scripts make torchrun start a new store.
    """
    own = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and env.get("GROUP_WORLD_SIZE") == "1"
    if not own or dist_url != "env://":
        return None
    store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False)
    return dist.PrefixStore(f"attempt_{env['TORCHELASTIC_RESTART_COUNT']}", store)


def init_distributed_mode(
    device: str = "auto",
    dist_url: str = "env://",
    dist_on_itp: bool = False,
    world_size: int | None = None,
    timeout_minutes: float = 30.0,
) -> Distributed:
    """Joins the process group that the launcher describes, if any, and picks this process's device.

    Args:
        device: `auto`, `cpu`, `cuda` (each process takes its local GPU) or `cuda:N` (all take that one).
        dist_url: init method; `env://` reads the launcher's variables.
        dist_on_itp: read Open MPI's variables.
        world_size: number of processes that must be there (checked), or None.
        timeout_minutes: how long a collective may take before the run is given up.

    Raises:
        UserError: a launcher that contradicts itself or a device that is not there.
    """
    ranks = _launcher_ranks(os.environ, dist_on_itp)
    rank, world, local, local_world = ranks or (0, 1, 0, 1)
    if world_size not in (None, world):
        raise UserError(
            f"--world_size {world_size}: the launcher started {world}; drop the flag or use torchrun"
        )
    chosen = _choose_device(device, local)
    if world > 1:
        store = _store_of_attempt(os.environ, dist_url)
        dist.init_process_group(
            # Objects, such as checkpoints, travel between hosts and take no room on the GPUs.
            "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo",
            init_method=None if store else _rendezvous(os.environ, dist_url),
            store=store,
            rank=rank,
            world_size=world,
            timeout=datetime.timedelta(minutes=timeout_minutes),
        )
    return Distributed(rank, world, local, local_world, chosen)


def _choose_device(device: str, local_rank: int) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"--device {device}: expected auto, cpu, cuda or cuda:N") from None
    if chosen.type != "cuda":
        return chosen
    if not torch.cuda.is_available():
        raise UserError(f"--device {device}: no CUDA device is here; use --device cpu")
    if chosen.index is None:
        # A scheduler may show each process its own GPU alone.
        chosen = torch.device("cuda", local_rank if torch.cuda.device_count() > 1 else 0)
    if chosen.index >= torch.cuda.device_count():
        raise UserError(f"--device {chosen}: this node has {torch.cuda.device_count()} GPUs")
    torch.cuda.set_device(chosen)
    return chosen


def leave_process_group() -> None:
    """Tears the process group down, if there is one. Only where all ranks do: it waits for them."""
    if dist.is_initialized():
        dist.barrier()  # a rank that left early would take the connection from one that still reads
        dist.destroy_process_group()


def exit_process(code: int) -> NoReturn:
    """Ends this process at once: it waits neither for other ranks nor for workers that are stuck."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a terminal that has gone away
            stream.flush()
    os._exit(code)


def gather_objects(item: Any) -> list[Any] | None:
    """Every rank's picklable item, in rank order, on rank 0; None on the others."""
    if not dist.is_initialized():
        return [item]
    gathered = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(item, gathered)
    return gathered


def broadcast_object(item: Any) -> Any:
    """Rank 0's picklable item, on every rank."""
    if not dist.is_initialized():
        return item
    box = [item]
    dist.broadcast_object_list(box)
    return box[0]


def on_main(compute: Callable[[], Any]) -> Any:
    """Computes on rank 0; its result is every rank's, and so is its failure.

    Raises:
        UserError: on every rank what `compute` raised; on the others, any error that it raised.
        SystemExit: on every rank, if `compute` ended the program.
    """
    outcome = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            outcome = compute()
        except (UserError, SystemExit) as error:
            outcome = error
        except Exception as error:
            broadcast_object(UserError(f"rank 0 failed: {type(error).__name__}: {error}"))
            raise
    outcome = broadcast_object(outcome)
    if isinstance(outcome, (UserError, SystemExit)):
        raise outcome
    return outcome


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sums a tensor over ranks in place and returns it."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def wrap_distributed(model: nn.Module, place: Distributed, heads: Iterable[nn.Module]) -> nn.Module:
    """The model as DistributedDataParallel, if there are several processes.

    Args:
        model: equal on all processes.
        place: this process.
        heads: parts of the model that rest in some steps. DistributedDataParallel leaves them alone:
            their gradients must be absent while they rest, and its own way to find that out walks the
            graph and waits for the device in every step. `average_gradients` serves them instead.
    """
    if not place.active:
        return model
    resting = {id(parameter) for head in heads for parameter in head.parameters()}
    ignored = [name for name, parameter in model.named_parameters() if id(parameter) in resting]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
    devices = [place.device] if place.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Averages gradients over ranks in place, like DistributedDataParallel, in one message."""
    gradients = [parameter.grad for parameter in parameters]
    flat = nn.utils.parameters_to_vector(gradients)
    dist.all_reduce(flat.div_(dist.get_world_size()))
    nn.utils.vector_to_parameters(flat, gradients)


class Preempted(Exception):
    """The job is to end soon: raised on every rank, after the same step."""


# What a preempted run ends with: sysexits' EX_TEMPFAIL, for which trying again later is the answer.
PREEMPTED_EXIT_CODE = 75
_STORE_INTERVAL = 0.5  # seconds between a rank's questions whether another has heard a signal


_OUT_OF_MEMORY = re.compile(r"can(no|')t allocate memory|MemoryError|bad_alloc", re.IGNORECASE)


def lacks_memory(error: Exception) -> bool:
    """Whether it says that memory ran out, of the machine or a GPU, in whatever library."""
    return bool(
        isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _OUT_OF_MEMORY.search(_last(error))
    )


def _last(error: Exception) -> str:
    """The last line: of an error in a loader's worker, it says what happened there."""
    return " ".join((str(error).strip().splitlines() or [""])[-1].split())[:200]


def lack_of_files(error: Exception) -> str | None:
    """Returns one line on too few open files, if that is what the error says, in whatever library."""
    texts = (os.strerror(errno.EMFILE), os.strerror(errno.ENFILE))
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or any(t in str(error) for t in texts):
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return f"too many open files: the limit is {limit} per process; raise it, such as by `ulimit -n 4096`"
    return None


_TOO_MANY_PROCESSES = (
    "the limit of processes is reached (ulimit -u, or that of a container): raise it, or lower --num_workers"
)


def _lack_of_memory(error: Exception) -> str | None:
    if lacks_memory(error):
        return (
            f"out of memory: {_last(error)}; what lowers it: --num_workers, --batch_size (with --update_freq "
            "for the same step), --num_sample 1, --with_checkpoint, --amp_dtype bf16, --num_frames, "
            "--input_size"
        )
    return None


def _shortage(error: Exception) -> str | None:
    if "can't start new thread" in str(error):
        return _TOO_MANY_PROCESSES
    return lack_of_files(error) or _lack_of_memory(error)


@contextlib.contextmanager
def naming_shortages(task: str) -> Iterator[None]:
    """Names what the system lacks when it refuses memory, a process or a file.

    Raises:
        UserError: the task, what ran out and what to do about it.
    """
    try:
        yield
    except OSError as error:
        # Elsewhere than in a fork, EAGAIN has other meanings.
        lack = _TOO_MANY_PROCESSES if error.errno == errno.EAGAIN else _shortage(error)
        if lack is None:
            raise
        raise UserError(f"{lack} ({task})") from error


def explain(error: Exception) -> str | None:
    """One line on a failure whose cause lies outside of the program, or None: what to do about it."""
    text = " ".join(str(error).split())
    if lack := _shortage(error):
        return lack
    among_ranks = dist.is_initialized() or isinstance(error, dist.DistNetworkError)
    if among_ranks and re.search(r"[Cc]onnection (was likely )?(closed|reset|refused)|Broken pipe", text):
        return f"another process of this run is gone; its own output says why ({text[:200]})"
    if "Timed out waiting" in text:
        return f"another process of this run did not answer for --dist_timeout minutes ({text[:200]})"
    return None


class StopSignals:
    """SIGTERM and SIGUSR1, by which schedulers announce the end of a job.

    Any rank may hear one. All ranks obey at the same call of `together`.

    Args:
        timeout_minutes: how long to wait for another rank.
    """

    def __init__(self, timeout_minutes: float = 30.0):
        self._heard = self._said = False
        self._asked = -math.inf
        self._group = self._store = None
        if dist.is_initialized():  # a group of the hosts alone: nobody waits for what their devices do
            timeout = datetime.timedelta(minutes=timeout_minutes)
            self._group = dist.new_group(backend="gloo", timeout=timeout)
            store = dist.distributed_c10d._get_default_store()
            self._store = dist.PrefixStore(f"signals of group {self._group.group_name}", store)
        numbers = (signal.SIGTERM, signal.SIGUSR1)
        self._previous = {number: signal.signal(number, self._hear) for number in numbers}

    def _hear(self, number: int, frame: object) -> None:
        self._heard = True

    def check(self) -> None:
        """Not collective: a rank may call this as often as it likes, such as while it waits.

        Raises:
            Preempted: a signal was heard, here or on another rank.
        """
        self._exchange()
        if self._heard:
            raise Preempted

    def _exchange(self) -> None:
        """Says or asks, through the store, whether a rank has heard a signal."""
        if self._store is None or self._said:
            return
        if self._heard:
            self._store.set("heard", "yes")
            self._said = True
        elif time.monotonic() - self._asked > _STORE_INTERVAL:
            self._asked = time.monotonic()
            if self._store.check(["heard"]):  # a signal of our own may come meanwhile: it must not be lost
                self._heard = True

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Collective: what is done inside ends on all ranks, or with Preempted on all ranks.

        What is done inside must not wait for another rank, and should `check` while it waits.

        Raises:
            Preempted: on all ranks, if any rank's `check` raised it by the end.
        """
        try:
            self.check()
            yield
        except Preempted:
            self._any_rank(True)
            raise
        if self._any_rank(False):
            raise Preempted

    def _any_rank(self, stops: bool) -> bool:
        """Whether any rank stops here. A rank may wait long for the others: it listens meanwhile."""
        if self._group is None:
            return stops
        flag = torch.tensor(float(stops))
        sending = dist.all_reduce(flag, dist.ReduceOp.MAX, self._group, async_op=True)
        pause = 1e-5
        while not sending.is_completed():
            self._exchange()
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        sending.wait()  # raises what went wrong
        return bool(flag)

    def close(self) -> None:
        """Restores the previous signal handlers."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)


# -------------------------------------------------------------------------------- environment

_ROOT = Path(__file__).resolve().parent
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "decord2", "decord", "av", "opencv-python-headless")


def record_start(path: Path, mode: str, words: Sequence[str] | None, place: Distributed) -> None:
    """Adds to a JSON list by what, where and with which versions a run was started. All ranks call it.

    The host's name is left out: reports are passed around.

    Args:
        path: the list; one that cannot be read starts anew.
        mode: what was started, such as `train`.
        words: the command line's; None: this process's.
        place: this process.
    """
    is_gpu = place.device.type == "cuda"
    devices = gather_objects(torch.cuda.get_device_name(place.device) if is_gpu else "cpu")

    def write() -> None:
        try:
            earlier = list(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            earlier = []
        entry = {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "mode": mode,
            "command": [sys.argv[0], *(sys.argv[1:] if words is None else words)],
            "commit": _commit_of(_ROOT),
            "processes": place.world_size,
            "devices": collections.Counter(devices),
        }
        write_json(path, [*earlier, entry | _describe_machine()])

    on_main(write)


def _describe_machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "python": platform.python_version(),
        "packages": _versions(),
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 2**30, 1),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _commit_of(folder: Path) -> dict[str, Any] | None:
    """The commit of a git checkout, and whether its files differ from it; None of anything else."""
    if not (folder / ".git").exists():
        return None

    def ask(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()

    try:
        return {"id": ask("rev-parse", "HEAD"), "modified": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):  # no git, or it does not trust the folder
        return None


def _cpu_model() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def pick_amp_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of `--amp_dtype` on a device."""
    if name == "auto" and device.type != "cuda":
        name = "fp32"
    if name == "auto":
        name = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]


def make_deterministic() -> None:
    """Asks GPUs for repeatable kernels; CPUs are repeatable anyway."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


# ----------------------------------------------------------------------------------- schedules


def cosine_scheduler(
    base_value: float,
    final_value: float,
    epochs: int,
    niter_per_ep: int,
    warmup_epochs: int = 0,
    start_warmup_value: float = 0,
    warmup_steps: int = -1,
) -> np.ndarray:
    """Linear warm-up, then half a cosine, one value an optimizer step.

    Args:
        base_value: value at the end of the warm-up.
        final_value: what the cosine tends to (it is not reached: the last step is one short of it).
        epochs, niter_per_ep: length of the schedule in epochs and steps an epoch.
        warmup_epochs: length of the warm-up in epochs.
        start_warmup_value: value of the first warm-up step.
        warmup_steps: length of the warm-up in steps; wins over `warmup_epochs` when positive.

    Returns:
        float64 array of `epochs * niter_per_ep` values.

    Raises:
        ValueError: the warm-up is longer than the schedule.

    Source: VideoMAE V2's schedule, which in turn is BEiT's.
    """
    total = epochs * niter_per_ep
    warmup = warmup_steps if warmup_steps > 0 else warmup_epochs * niter_per_ep
    if warmup > total:
        raise ValueError(f"a warm-up of {warmup} steps does not fit into {total} steps of training")
    rising = np.linspace(start_warmup_value, base_value, warmup)
    phase = np.arange(total - warmup) / max(total - warmup, 1)
    falling = final_value + 0.5 * (base_value - final_value) * (1 + np.cos(np.pi * phase))
    return np.concatenate([rising, falling])


# ---------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def naming(path: Path) -> Iterator[Path]:
    """Names the file that the operating system would not let the caller write.

    Raises:
        UserError: such as of a full disk.
    """
    try:
        yield path
    except (OSError, RuntimeError) as error:
        # torch's own error follows that of the system, and does not say what it was.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        reason = lack_of_files(cause) or cause.strerror or cause
        raise UserError(f"{path}: cannot be written: {reason}") from error


@contextlib.contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Opens a binary file beside `path` and moves it there, synced, only when all was written.

    Raises:
        UserError: it cannot be written; what was there is there still.
    """
    with naming(path), _synced_in_place(path) as file:
        yield file


@contextlib.contextmanager
def _synced_in_place(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Removes what writers that were killed left beside the files of a folder."""
    for path in folder.glob(".*.????????"):
        if re.fullmatch(r"\..+\.(pth|txt|json|csv|log|html)\.[a-z0-9_]{8}", path.name):
            path.unlink(missing_ok=True)


def make_folder(path: Path, flag: str) -> None:
    """Makes a folder and its parents, if it is not there.

    Raises:
        UserError: it cannot be made, naming `flag`.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be made: {error.strerror}") from None


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def sync_folder(folder: Path) -> None:
    """Makes what was moved into a folder durable: a rename is so only once its folder is synced."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically; names of files that are not UTF-8 come out as they came in."""
    with atomic_open(path) as file:
        file.write(text.encode(errors="surrogateescape"))


def write_json(path: Path, data: Any) -> None:
    """Writes JSON atomically, indented; paths and other plain objects as text."""
    write_text(path, json.dumps(data, indent=2, default=str) + "\n")


class EpochLog:
    """`log.txt`: one JSON object an epoch, each epoch once, also over resumes."""

    def __init__(self, path: Path, start_epoch: int = 0):
        """Keeps the rows of epochs before `start_epoch`; later ones will be trained again."""
        self._path = path
        rows = path.read_text().splitlines() if path.exists() else []
        self._rows = [row for row in rows if self._epoch(row) < start_epoch]

    @staticmethod
    def _epoch(row: str) -> float:
        try:
            return int(json.loads(row)["epoch"])
        except (ValueError, KeyError, TypeError):
            return float("inf")

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds one epoch's row and rewrites the file; JSON knows no NaN, so that is written as null."""
        is_number = {
            name: not isinstance(value, float) or math.isfinite(value) for name, value in row.items()
        }
        self._rows.append(json.dumps({name: row[name] if is_number[name] else None for name in row}))
        write_text(self._path, "\n".join(self._rows) + "\n")


# ---------------------------------------------------------------------------------- checkpoints


class _Inert:
    """Object that stands for one of another trainer's, without its methods."""


def _look_up_nothing(*_: object) -> None:
    """Stands for `getattr`, which mmengine's records of losses ask for their own methods."""


# What other trainers' files hold besides tensors. None of these runs code when it is built.
_SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    collections.OrderedDict,
    collections.defaultdict,
    np.dtype,
    np.ndarray,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    *(
        (getattr(np._core.multiarray, name), f"{package}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for package in ("numpy.core", "numpy._core")
    ),
    (_Inert, "mmengine.logging.history_buffer.HistoryBuffer"),
    (_look_up_nothing, "builtins.getattr"),
    *((PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
]


_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|\?xml)\b", re.IGNORECASE)


def describe_stand_in(path: Path) -> str | None:
    """Return what a download left in place of a file and what to do, or None for any other file."""
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except (OSError, ValueError):  # such as of a null byte in the name
        return None
    if head.startswith(_LFS_POINTER):
        return "is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
    if _WEB_PAGE.match(head):
        return "is a web page (HTML), not the file itself: download it again, with its direct address"
    return None


def read_checkpoint(path: str | Path, flag: str = "--resume", lazy: bool = False) -> dict[str, Any]:
    """Reads a checkpoint file without executing anything in it.

    Files of the published trainers are read too: an argparse Namespace and numpy scalars in them
    are allowed by name.

    Args:
        path: the file.
        flag: named in errors.
        lazy: leave tensors on disk until they are used.

    Raises:
        UserError: a missing, damaged or unsafe file, naming `flag` and the file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{flag} {path}: there is no such file")
    is_zip = zipfile.is_zipfile(path)  # torch's files are, but for very old ones
    try:
        if stand_in := describe_stand_in(path):
            raise UserError(f"{flag} {path}: {stand_in}")
        if is_zip and not lazy:
            _check_sums(path)
        with torch.serialization.safe_globals(_SAFE_GLOBALS), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=lazy and is_zip)
    except pickle.UnpicklingError as error:
        # Around this, torch explains how to execute the file.
        reason = re.search(r"Unpickl\w+ error:\s*(.+?)(?:\. Please|\n|$)", str(error))
        because = f": {reason[1]}" if reason else ""
        raise UserError(f"{flag} {path}: refused, it is not a plain weights file{because}") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{flag} {path}: damaged or not a checkpoint: {reason}") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{flag} {path}: holds a {type(content).__name__}, not a checkpoint dict")
    return dict(content)


def _check_sums(path: Path) -> None:
    # torch stores check sums and does not look at them: a lost block would be read as zeros.
    with zipfile.ZipFile(path) as file:
        if damaged := file.testzip():
            raise OSError(f"the check sum of its part {damaged} is wrong")


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint atomically."""
    with atomic_open(path) as file:
        torch.save(dict(content), file)


def numbered_checkpoints(folder: Path, kind: str = "") -> list[tuple[int, Path]]:
    """(number, path) of `checkpoint-{kind}{number}.pth` files in a folder, ascending."""
    pattern = re.compile(rf"checkpoint-{kind}(\d+)\.pth")
    found = ((pattern.fullmatch(path.name), path) for path in folder.glob("checkpoint-*.pth"))
    return sorted((int(match[1]), path) for match, path in found if match)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Gives a checkpoint a second name, atomically and, where the file system can, without a copy."""
    link = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        link.hardlink_to(source)
    except OSError:
        with source.open("rb") as old, atomic_open(target) as new:
            return shutil.copyfileobj(old, new)
    link.replace(target)
    return sync_folder(target.parent)


def prune_step_checkpoints(folder: Path, keep: int) -> None:
    """Deletes all but the `keep` last written `checkpoint-step-{N}.pth` files."""
    files = [path for _, path in numbered_checkpoints(folder, "step-")]
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)[:-keep]:
        path.unlink()
