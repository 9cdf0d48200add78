"""What a run shows while it lasts: on a terminal, in files, and of other ranks."""

import contextlib
import dataclasses
import datetime
import fcntl
import io
import logging
import multiprocessing
import os
import pty
import re
import signal
import struct
import sys
import termios
import threading
import types
import warnings

import pytest
from conftest import CLASSES, VAL_CLIPS, launcher_of, signal_after_step
from test_engine import batch_of, bench

import engine_for_alternating_finetuning as engine
import run_alternating_hand_finetuning as run
import utils
from dataset.loader import ClipReader

# Three steps an epoch are worth drawing where drawing is not limited to ten times a second.
LIVE = ("--num_workers", 2, "--log_interval", 1, "--epochs", 1, "--warmup_epochs", 0)
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d ")


@dataclasses.dataclass(frozen=True)
class Shown:
    """How a run on a terminal ended, and all that it wrote there."""

    code: int
    output: str

    @property
    def drawn(self):
        """What the live line said, each time."""
        return [
            re.sub(r"\x1b\[[\d;?]*[a-z]", "", text)
            for text in re.findall(r"\r\x1b\[2K([^\r\n]+)", self.output)
        ]


@pytest.fixture(scope="module")
def on_terminal():
    """Runs the command line in a copy of this process that has a terminal of its own."""

    def start(flags, fault, environment, rank):
        os.environ.update(
            {"TERM": "xterm-256color", **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            os.environ.pop(name, None)
        sys.stdout, sys.stderr = (open(fd, "w", closefd=False) for fd in (1, 2))  # noqa: SIM115
        logging.getLogger().handlers = []
        utils._REDRAW = 0.0
        if fault is not None:
            fault(rank)
        utils.exit_process(run.main([str(flag) for flag in flags]))

    def start_all(ranks, *given):
        """The session: its first process must be the last to go, as a launcher is."""
        if ranks == 1:
            start(*given, 0)
        processes = [
            multiprocessing.get_context("fork").Process(target=start, args=(*given, r)) for r in (0, 1)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        os._exit(max(process.exitcode for process in processes))

    def call(*flags, columns=120, ranks=1, fault=None, closed_at=None, **environment):
        environment |= launcher_of(ranks)
        pid, terminal = pty.fork()
        if pid == 0:
            try:
                fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
                start_all(ranks, flags, fault, environment)
            finally:
                os._exit(99)
        output = b""
        with contextlib.suppress(OSError):  # that of a terminal whose last process is gone
            while data := os.read(terminal, 1 << 16):
                output += data
                if closed_at is not None and closed_at in output:
                    break
        os.close(terminal)
        return Shown(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output.decode().replace("\r\n", "\n"))

    return call


def screen_of(output):
    """The lines that a terminal of endless width shows in the end, and whether its cursor can be seen."""
    lines, row, column, has_cursor = [""], 0, 0, True
    for control, text in re.findall(r"(\x1b\[[\d;?]*[A-Za-z]|[\r\n])|([^\x1b\r\n]+)", output):
        if text:
            lines[row] = lines[row].ljust(column)[:column] + text + lines[row][column + len(text) :]
            column += len(text)
        elif control == "\r":
            column = 0
        elif control == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif control == "\x1b[2K":
            lines[row] = ""
        elif control == "\x1b[1A":
            row -= 1
        elif control in ("\x1b[?25l", "\x1b[?25h"):
            has_cursor = control.endswith("h")
        else:
            assert control.endswith("m"), control  # colours
    return [line for line in lines if line], has_cursor


def assert_sane(shown, *more):
    """Whole log lines, and lines of `more`, are all that is left, and the cursor."""
    lines, has_cursor = screen_of(shown.output)
    torn = [line for line in lines if not LOG_LINE.match(line) and line not in more]
    assert not torn, torn
    assert not [line for line in lines if "━" in line or any(text in line for text in more if text != line)]
    assert has_cursor
    return lines


# ------------------------------------------------------------------------------------ a terminal


def heard_everywhere(rank):
    """A fault: decoders in C, libraries in workers and in the trainer itself write to stderr."""
    read, make_step = ClipReader.read, engine.AlternatingTrainer.optimizer_step

    def read_and_write(self, *given):
        os.write(2, b"[h264 @ 0x1] damaged \x1b[31m\n")
        warnings.warn("of a library in a worker", stacklevel=1)
        print("a worker's own word", file=sys.stderr)  # noqa: T201
        return read(self, *given)

    def step_and_warn(self, *given):
        warnings.warn("of a library in the trainer", stacklevel=1)
        run.log.warning("a warning of the trainer, %s", "long " * 40)
        return make_step(self, *given)

    def show(message, *_):  # as Python does, where no test catches it
        sys.stderr.write(f"warning: {message}\n")

    warnings.showwarning = show
    warnings.simplefilter("always")
    ClipReader.read, engine.AlternatingTrainer.optimizer_step = read_and_write, step_and_warn


@pytest.fixture(scope="module")
def noisy(on_terminal, tiny_flags, tmp_path_factory):
    """A run on a terminal on which everything speaks that can."""
    folder = tmp_path_factory.mktemp("noisy")
    shown = on_terminal(*tiny_flags, *LIVE, "--output_dir", folder, fault=heard_everywhere)
    assert shown.code == 0, shown.output
    return shown, folder


def test_every_phase_has_a_live_line_with_what_matters(noisy):
    shown, _ = noisy
    last = [line for line in shown.drawn if "Epoch: [0] 3/4" in line][-1]
    assert re.match(
        r"[━╸╺]+ Epoch: \[0\] 3/4  rh  [\d.]+ clips/s  eta 0:0\d:\d\d  lh_loss \d\.\d{3}", last
    ), last
    assert re.search(r"data wait \d+%", last), last
    for phase in ("validation", "test"):
        counts = re.findall(rf"[━╸╺] {phase} +(\S+)  rh", "\n".join(shown.drawn))
        assert counts[-1].endswith(f"/{sum(VAL_CLIPS.values())}")
        assert int(counts[-1].split("/")[0]) >= VAL_CLIPS["lh"]


def test_what_workers_libraries_and_decoders_say_never_tears_the_line(noisy):
    shown, _ = noisy
    said = ("[h264 @ 0x1] damaged \\x1b[31m", "warning: of a library in a worker", "a worker's own word")
    lines = assert_sane(shown, *said, "warning: of a library in the trainer")
    reads = lines.count(said[0])
    assert reads >= 16  # of training; and those of both evaluations
    assert [lines.count(text) for text in said] == [reads] * 3
    assert lines.count("warning: of a library in the trainer") == 4
    assert sum("a warning of the trainer" in line for line in lines) == 4


def test_run_log_has_every_line_and_nothing_of_the_terminal(noisy):
    shown, folder = noisy
    text = (folder / "run.log").read_text()
    assert "\x1b" not in text and "━" not in text
    assert re.findall(r"Epoch: \[0\]  \[(\d)/4\]  eta: ", text) == ["1", "2", "3", "4"]
    # Of what the live line has shown, the terminal keeps the last.
    assert [line for line in screen_of(shown.output)[0] if "Epoch: [" in line] == [
        line for line in text.splitlines() if "[4/4]" in line
    ]
    assert set(text.splitlines()) > {line for line in screen_of(shown.output)[0] if LOG_LINE.match(line)}


def test_last_words_of_workers_are_shown_too(on_terminal, tiny_flags, tmp_path):
    def fault(rank):
        test = run.final_test_alternating

        def test_and_write(*given):
            result = test(*given)
            os.write(utils.terminal()._words.fileno(), b"after the last clip\n")
            return result

        run.final_test_alternating = test_and_write

    shown = on_terminal(*tiny_flags, *LIVE, "--output_dir", tmp_path, fault=fault)
    assert shown.code == 0
    assert assert_sane(shown, "after the last clip").count("after the last clip") == 1


@pytest.mark.parametrize("columns", [30, 60])
def test_live_line_is_cut_where_the_terminal_is_narrow(on_terminal, tiny_flags, tmp_path, columns):
    shown = on_terminal(*tiny_flags, *LIVE, "--output_dir", tmp_path, columns=columns)
    assert shown.code == 0
    drawn = [line for line in shown.drawn if not LOG_LINE.match(line)]
    assert drawn and max(map(len, drawn)) == columns - 2  # room for the ^C of an interrupt
    assert_sane(shown)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_run_that_is_stopped_leaves_a_sane_terminal(on_terminal, tiny_flags, tmp_path, number, code):
    def fault(rank):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal_after_step(1, number)(rank)

    shown = on_terminal(*tiny_flags, *LIVE, "--output_dir", tmp_path, fault=fault)
    assert shown.code == code, shown.output
    assert "stopped" in assert_sane(shown)[-1]


def test_killed_run_leaves_the_cursor(on_terminal, tiny_flags, tmp_path):
    shown = on_terminal(
        *tiny_flags, *LIVE, "--output_dir", tmp_path, fault=signal_after_step(1, signal.SIGKILL)
    )
    assert shown.code == -signal.SIGKILL
    lines, has_cursor = screen_of(shown.output)
    assert "━" in lines[-1] and has_cursor


def test_run_goes_on_when_its_terminal_goes_away(on_terminal, tiny_flags, tmp_path):
    def fault(rank):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does

    flags = (*tiny_flags, *LIVE, "--output_dir", tmp_path)
    shown = on_terminal(*flags, fault=fault, closed_at=b"Epoch: [0]")
    assert shown.code == 0
    assert (tmp_path / "metrics.json").exists()
    assert "written: " in (tmp_path / "run.log").read_text().splitlines()[-1]


def test_no_thread_draws_or_loads(on_terminal, tiny_flags, tmp_path):
    def fault(rank):
        start = threading.Thread.start
        (tmp_path / "threads.txt").touch()

        def start_and_note(self):
            with (tmp_path / "threads.txt").open("a") as file:
                file.write(f"{type(self).__module__}.{type(self).__qualname__}\n")
            start(self)

        threading.Thread.start = start_and_note

    shown = on_terminal(*tiny_flags, *LIVE, "--output_dir", tmp_path / "run", fault=fault)
    assert shown.code == 0
    assert (tmp_path / "threads.txt").read_text() == ""  # processes are forked from this one meanwhile


def test_stderr_that_is_kept_in_a_file_stays_there(on_terminal, tiny_flags, tmp_path):
    def fault(rank):
        heard_everywhere(rank)
        os.dup2(os.open(tmp_path / "stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)

    shown = on_terminal(*tiny_flags, *LIVE, "--output_dir", tmp_path, fault=fault)
    assert shown.code == 0
    assert_sane(shown)
    text = (tmp_path / "stderr.txt").read_text()
    for said in ("[h264 @ 0x1]", "of a library in a worker", "a worker's own", "of a library in the trainer"):
        assert said in text


def test_lines_of_two_ranks_on_one_terminal_are_whole(on_terminal, tiny_flags, tmp_path):
    def fault(rank):
        if rank == 1:
            heard_everywhere(rank)
            make_step = engine.AlternatingTrainer.optimizer_step

            def step_and_tell(self, *given):
                run.log.warning("of this rank alone", extra=utils.OF_THIS_RANK)
                return make_step(self, *given)

            engine.AlternatingTrainer.optimizer_step = step_and_tell

    flags = (*tiny_flags, *LIVE, "--batch_size", 1, "--output_dir", tmp_path)
    shown = on_terminal(*flags, ranks=2, fault=fault)
    assert shown.code == 0, shown.output
    said = ("[h264 @ 0x1] damaged \\x1b[31m", "warning: of a library in a worker", "a worker's own word")
    output = re.sub(r"\[rank 1\] (?=\d\d:)", "", shown.output)
    lines = assert_sane(
        dataclasses.replace(shown, output=output), *said, "warning: of a library in the trainer"
    )
    assert shown.output.count("\x1b[?25l") == 3  # a live line for each phase, of rank 0 alone
    assert sum(line.endswith(" of this rank alone") for line in lines) == 4
    assert not [line for line in lines if "a warning of the trainer" in line]
    assert sum("Epoch: [0]  [4/4]" in line for line in lines) == 1
    assert [lines.count(text) for text in said] == [lines.count(said[0])] * 3 and said[0] in lines


# --------------------------------------------------------------------------------- no terminal


def assert_plain(output):
    assert "\x1b" not in output and "━" not in output and "\r" not in output.replace("\r\n", "\n")
    known = r"^\d\d:\d\d:\d\d Epoch: \[0\]  \[(\d)/4\]  eta: 0:00:\d\d  hand: [lr]h  lh_loss: [\d.]+  "
    assert re.findall(known, output, re.MULTILINE) == ["1", "2", "3", "4"]
    assert "  clips_per_second: " in output


def test_pipe_gets_plain_lines_even_where_colours_are_forced(fork_run, tiny_flags, tmp_path):
    def fault(rank):
        os.environ.update(FORCE_COLOR="1", TTY_COMPATIBLE="1", TTY_INTERACTIVE="1", TERM="xterm")

    (result,) = fork_run(*tiny_flags, *LIVE, "--output_dir", tmp_path, fault=fault)
    assert result.code == 0, result.output
    assert_plain(result.output)


@pytest.mark.parametrize("environment", [{"SLURM_JOB_ID": "7"}, {"TERM": "dumb"}])
def test_terminal_of_a_job_or_without_abilities_gets_plain_lines(
    on_terminal, tiny_flags, tmp_path, environment
):
    shown = on_terminal(*tiny_flags, *LIVE, "--output_dir", tmp_path, **environment)
    assert shown.code == 0, shown.output
    assert_plain(shown.output)


# ----------------------------------------------------------------------------------- its figures


class Line:
    """Stands in for the live line and notes what it is given."""

    def __init__(self, *given):
        self.given, self.said = given, []
        Line.last = self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def show(self, *said):
        self.said.append(said)


def test_live_line_knows_the_losses_of_the_last_interval_and_the_hand_of_this_step(monkeypatch):
    monkeypatch.setattr(engine, "LiveLine", Line)
    reads = []
    served = (batch_of("lh" if step // 4 % 2 == 0 else "rh", step) for step in range(10, 16))
    b = bench("--log_interval", 3, steps_per_epoch=8, batches=served)
    read_sums = b.trainer.read_sums
    b.trainer.read_sums = lambda meters: (reads.append(len(Line.last.said)), read_sums(meters))[1]
    records = {}
    hooks = engine.EpochHooks(record=lambda step, values: records.update({step: values}))
    engine.train_one_epoch_alternating(b.trainer, 1, 10, b.meters, hooks)
    assert Line.last.given == ("Epoch: [1]", 8, 2, 2)  # clips a step, of which there are two
    assert [(done, hand) for done, hand, *_ in Line.last.said] == [
        (done, "lh" if (8 + done) // 4 % 2 == 0 else "rh") for done in range(2, 8)
    ]
    assert reads == [2, 5, 6]  # the device is waited for at intervals alone
    for done, _, *words in Line.last.said:
        of = records.get((8 + done) // 3 * 3, {})  # the last interval's
        losses = [f"{hand}_loss {of[f'{hand}_loss']:.3f}" for hand in CLASSES if f"{hand}_loss" in of]
        assert words == ([*losses, f"data wait {of['data_wait']:.0%}"] if of else [])


def test_line_is_drawn_ten_times_a_second_at_most(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(utils.time, "monotonic", lambda: now[0])
    drawn = []
    line = utils.LiveLine("phase", 1000)
    line._terminal = types.SimpleNamespace(
        show_words_of_workers=lambda: drawn.append(now[0]), console=types.SimpleNamespace(width=80)
    )
    for step in range(1000):
        now[0] = step / 100
        line.show(step, "lh")
    assert 95 <= len(drawn) <= 100


def test_slow_steps_have_a_pace_too():
    now = [0.0]
    line = utils.LiveLine("phase", 100, clips=4)
    line._terminal = types.SimpleNamespace(
        show_words_of_workers=lambda: None, console=types.SimpleNamespace(width=80)
    )
    line._progress.get_time = lambda: now[0]
    for step in range(4):
        now[0] = 40.0 * step
        line.show(step, "lh")
    assert line._pace() == ["0.1 clips/s", f"eta {datetime.timedelta(seconds=97 * 40)}"]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_terminal_need_not_know_every_character(monkeypatch, encoding):
    written = io.BytesIO()
    screen = io.TextIOWrapper(written, encoding, line_buffering=True)
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    for name, value in {"TERM": "xterm", "COLUMNS": "30", "LINES": "20"}.items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_JOB_ID", "NO_COLOR", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    utils.setup_logging(0)
    with utils.LiveLine("Epoch: [0]", 10) as line:
        line.show(1, "lh", "long " * 20)
        logging.getLogger().info("clip \u0142.mp4")
    shown = written.getvalue().decode(encoding)
    assert "Epoch: [0]  1/10  lh  long" in shown and "clip \\u0142.mp4" in shown and "\\u2026" not in shown


# ---------------------------------------------------------------------------------- other ranks


@pytest.mark.parametrize("in_worker", [False, True])
def test_error_of_another_rank_is_shown_with_its_traceback(fork_run, tiny_flags, tmp_path, in_worker):
    def fault(rank):
        def fail(*given):
            raise ZeroDivisionError("of this rank alone")

        if rank == 1:
            where, name = (ClipReader, "read") if in_worker else (engine.AlternatingTrainer, "_forward_loss")
            setattr(where, name, fail)

    flags = (*tiny_flags, "--num_workers", 1, "--batch_size", 1, "--output_dir", tmp_path)
    first, second = fork_run(*flags, fault=fault, ranks=2)
    assert second.code == 1 and first.code == 1
    assert re.search(r"^\[rank 1\] \d\d:\d\d:\d\d error: ", second.output, re.MULTILINE), second.output
    assert "Traceback" in second.output and "of this rank alone" in second.output
    assert "another process of this run is gone" in first.output


def test_other_ranks_say_errors_and_what_only_they_know(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    utils.setup_logging(1)
    log = logging.getLogger("any")
    log.info("everybody knows")
    log.warning("everybody knows")
    log.warning("the loader is slow", extra=utils.OF_THIS_RANK)
    log.error("failed")
    shown = [re.sub(r"\d\d:\d\d:\d\d", "T", line) for line in capsys.readouterr().out.splitlines()]
    assert shown == ["[rank 1] T the loader is slow", "[rank 1] T failed"]
