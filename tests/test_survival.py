"""Runs that are killed, preempted or lose a rank, and go on as if nothing had been."""

import contextlib
import functools
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import FULL, ROOT, STEPS, assert_same_run, epochs_of, events_of, signal_after_step

import engine_for_alternating_finetuning as engine
import run_alternating_hand_finetuning as run
import utils
from dataset.loader import ClipReader

pytestmark = pytest.mark.timeout(600)


# ------------------------------------------------------------------------------------------ faults


def signal_in_call(module, name, count, number, of_rank=0):
    """A fault: a rank gets a signal when it is about to make the count-th call of a function."""

    def fault(rank):
        calls, function = [], getattr(module, name)

        def call_and_signal(*args, **kwargs):
            calls.append(name)
            if rank == of_rank and len(calls) == count:
                os.kill(os.getpid(), number)
            return function(*args, **kwargs)

        setattr(module, name, call_and_signal)

    return fault


def assert_equal_records(first, second):
    """Every step and epoch once, in TensorBoard and log.txt."""
    assert sorted(events_of(second)) == sorted(events_of(first))
    assert epochs_of(second) == epochs_of(first)


# ------------------------------------------------------------------------------------ exact resume

EXACT = (*FULL, "--save_ckpt_steps", 2)
# What checkpoints there are, and how much is redone, depends on where the run was killed.
KILLED_AFTER = [
    pytest.param(step, marks=[] if step in (1, 2, 5) else pytest.mark.slow) for step in range(STEPS)
]


@pytest.fixture(scope="module")
def exact_run(run_main, tiny_flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact")
    result = run_main(*tiny_flags, *EXACT, "--output_dir", folder)
    assert result.code == 0, result.output
    return folder


@pytest.mark.parametrize("step", KILLED_AFTER)
def test_run_killed_at_any_step_ends_as_if_it_had_not_been(
    fork_run, run_main, tiny_flags, exact_run, tmp_path, step
):
    flags = (*tiny_flags, *EXACT, "--output_dir", tmp_path)
    (killed,) = fork_run(*flags, fault=signal_after_step(step, signal.SIGKILL))
    assert killed.code == -signal.SIGKILL, killed.output
    result = run_main(*flags)
    assert result.code == 0, result.output
    assert ("resumed from" in result.output) == (step >= 2)
    assert_same_run(exact_run, tmp_path)
    assert_equal_records(exact_run, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("count", range(1, 25, 3))
def test_run_killed_while_it_writes_a_file_ends_as_if_it_had_not_been(
    fork_run, run_main, tiny_flags, exact_run, tmp_path, count
):
    flags = (*tiny_flags, *EXACT, "--output_dir", tmp_path)
    (killed,) = fork_run(*flags, fault=signal_in_call(os, "fsync", count, signal.SIGKILL))
    assert killed.code == -signal.SIGKILL, killed.output
    result = run_main(*flags)
    assert result.code == 0, result.output
    assert_same_run(exact_run, tmp_path)
    assert_equal_records(exact_run, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


TWO = ("--batch_size", 1, *EXACT)


@pytest.fixture(scope="module")
def exact_two(fork_run, tiny_flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact_two")
    results = fork_run(*tiny_flags, *TWO, "--output_dir", folder, ranks=2)
    assert [result.code for result in results] == [0, 0], results
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("of_rank", [0, 1])
@pytest.mark.parametrize("step", [1, 3, 6])
def test_two_processes_of_which_one_is_killed_go_on_exactly(
    fork_run, tiny_flags, exact_two, tmp_path, step, of_rank
):
    flags = (*tiny_flags, *TWO, "--output_dir", tmp_path)
    results = fork_run(*flags, fault=signal_after_step(step, signal.SIGKILL, of_rank), ranks=2)
    assert results[of_rank].code == -signal.SIGKILL
    results = fork_run(*flags, ranks=2)
    assert [result.code for result in results] == [0, 0], results
    assert_same_run(exact_two, tmp_path)
    assert_equal_records(exact_two, tmp_path)


# -------------------------------------------------------------------------------------- preemption

SIGNALS = [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)]


def assert_preempted(results, folder, step):
    assert [result.code for result in results] == [utils.PREEMPTED_EXIT_CODE] * len(results), results
    assert (folder / "PREEMPTED").read_text() == f"step {step}\n"
    saved = torch.load(folder / "checkpoint-last.pth", weights_only=True)
    assert saved["alternating"]["step"] == step
    assert "stopped by a signal" in results[0].output


@pytest.mark.parametrize("number", SIGNALS)
def test_preempted_run_saves_the_step_and_goes_on_exactly(
    fork_run, run_main, tiny_flags, full_run, tmp_path, number
):
    flags = (*tiny_flags, *FULL, "--output_dir", tmp_path)
    assert_preempted(fork_run(*flags, fault=signal_after_step(4, number)), tmp_path, 5)
    result = run_main(*flags)
    assert result.code == 0, result.output
    assert f"resumed from {tmp_path / 'checkpoint-last.pth'} at step 5" in result.output
    assert not (tmp_path / "PREEMPTED").exists()
    assert_same_run(full_run, tmp_path)
    assert_equal_records(full_run, tmp_path)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (run, "validation_one_epoch_alternating"),
        pytest.param(run, "final_test_alternating", marks=pytest.mark.slow),
    ],
)
def test_signal_during_an_evaluation_loses_nothing(
    fork_run, run_main, tiny_flags, full_run, tmp_path, module, name
):
    flags = (*tiny_flags, *FULL, "--output_dir", tmp_path)
    fault = signal_in_call(module, name, 1, signal.SIGTERM)
    assert_preempted(fork_run(*flags, fault=fault), tmp_path, 4 if "validation" in name else 8)
    result = run_main(*flags)
    assert result.code == 0, result.output
    assert_same_run(full_run, tmp_path)
    assert_equal_records(full_run, tmp_path)


@pytest.mark.parametrize("of_rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_all_ranks_stop_after_the_same_step_whichever_heard_the_signal(
    fork_run, tiny_flags, exact_two, tmp_path, of_rank
):
    flags = (*tiny_flags, *TWO, "--output_dir", tmp_path)
    results = fork_run(*flags, fault=signal_after_step(1, signal.SIGUSR1, of_rank), ranks=2)
    # The ranks agree before the next step is made.
    assert_preempted(results, tmp_path, 2)
    results = fork_run(*flags, ranks=2)
    assert [result.code for result in results] == [0, 0], results
    assert_same_run(exact_two, tmp_path)


# ------------------------------------------------------------------------------ waiting for a clip


def hang_and_signal(folder, read, number=signal.SIGTERM, of_rank=0, to_rank=0):
    """A fault: the read-th clip of a rank (one worker) never ends, and a rank gets a signal meanwhile."""
    hangs = folder / "hangs"

    def signal_when_it_hangs():
        while not hangs.exists():
            time.sleep(0.05)
        time.sleep(1.0)  # until then every rank waits
        os.kill(os.getpid(), number)

    def fault(rank):
        reads, read_clip = itertools.count(), ClipReader.read

        def read_or_hang(self, *given):
            if next(reads) == read:
                hangs.touch()
                time.sleep(3600)
            return read_clip(self, *given)

        if rank == of_rank:
            ClipReader.read = read_or_hang
        if rank == to_rank:
            threading.Thread(target=signal_when_it_hangs, daemon=True).start()

    return fault


WAITING = ("--num_workers", 1, "--decode_timeout", 0)


@pytest.mark.parametrize("read", [16, 18])  # of step 4: the first micro step's clips, and the second's
def test_signal_ends_the_wait_for_a_clip_and_the_run_goes_on_exactly(
    fork_run, run_main, tiny_flags, full_run, tmp_path, read
):
    flags = (*tiny_flags, *FULL, "--output_dir", tmp_path)
    results = fork_run(*flags, *WAITING, fault=hang_and_signal(tmp_path, read))
    assert_preempted(results, tmp_path, 4)
    result = run_main(*flags)
    assert result.code == 0, result.output
    assert_same_run(full_run, tmp_path)
    assert_equal_records(full_run, tmp_path)


@pytest.mark.parametrize(
    ("of_rank", "to_rank"),
    [(1, 0), pytest.param(0, 1, marks=pytest.mark.slow), pytest.param(1, 1, marks=pytest.mark.slow)],
)
def test_signal_to_any_rank_ends_the_wait_of_any_other(
    fork_run, tiny_flags, exact_two, tmp_path, of_rank, to_rank
):
    flags = (*tiny_flags, *TWO, "--output_dir", tmp_path)
    fault = hang_and_signal(tmp_path, 9, of_rank=of_rank, to_rank=to_rank)
    assert_preempted(fork_run(*flags, *WAITING, fault=fault, ranks=2), tmp_path, 4)
    results = fork_run(*flags, ranks=2)
    assert [result.code for result in results] == [0, 0], results
    assert_same_run(exact_two, tmp_path)


@pytest.mark.parametrize(
    ("mode", "ranks", "step"),
    [
        ("validation", 2, 4),
        pytest.param("validation", 1, 4, marks=pytest.mark.slow),
        ("test", 1, 8),
        pytest.param("test", 2, 8, marks=pytest.mark.slow),
    ],
)
def test_signal_ends_the_wait_of_an_evaluation(fork_run, tiny_flags, tmp_path, mode, ranks, step):
    hang = hang_and_signal(tmp_path, 1, of_rank=ranks - 1)

    def fault(rank):
        load = run.Evaluator.load

        def load_with_fault(self, datasets, keys):
            if datasets is self.datasets[mode]:
                hang(rank)
            return load(self, datasets, keys)

        run.Evaluator.load = load_with_fault

    flags = (*tiny_flags, *WAITING, "--batch_size", 2 // ranks, "--output_dir", tmp_path)
    assert_preempted(fork_run(*flags, fault=fault, ranks=ranks), tmp_path, step)


def test_evaluation_alone_dies_of_the_signal_like_any_program(fork_run, full_run, tmp_path):
    flags = ("--eval", "--resume", full_run / "checkpoint-last.pth", "--output_dir", tmp_path)
    fault = signal_in_call(run, "final_test_alternating", 1, signal.SIGTERM)
    (result,) = fork_run(*flags, fault=fault)
    assert result.code == -signal.SIGTERM
    assert not (tmp_path / "PREEMPTED").exists()


def test_signal_that_comes_while_the_other_ranks_are_asked_is_not_lost():
    class Store:
        def check(self, keys):
            os.kill(os.getpid(), signal.SIGTERM)
            return False

        def set(self, key, value):
            pass

    with contextlib.closing(utils.StopSignals()) as stop:
        stop._store = Store()
        with pytest.raises(utils.Preempted):
            stop.check()


def test_interrupt_from_the_keyboard_ends_in_a_line(fork_run, tiny_flags, tmp_path):
    interrupt = signal_after_step(2, signal.SIGINT)

    def fault(rank):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        interrupt(rank)

    (result,) = fork_run(*tiny_flags, "--num_workers", 2, "--output_dir", tmp_path, fault=fault)
    assert result.code == 130, result.output
    assert "stopped from the keyboard" in result.output and "Traceback" not in result.output


def test_signals_are_left_to_whom_they_belonged(run_main, tiny_flags, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    for flags, code in ((("--epochs", 1, "--warmup_epochs", 0), 0), (("--batch_size", 500), 1)):
        assert run_main(*tiny_flags, *flags, "--output_dir", tmp_path).code == code
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


# -------------------------------------------------------------------------------- launchers, ranks


def start_torchrun(folder, flags):
    """torchrun with two ranks, as the scripts start it, in the background."""
    launcher = [
        "exec",
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    command = [*launcher, "--log-dir", folder / "launcher", "run_alternating_hand_finetuning.py", *flags]
    script = "source scripts/finetune/environment.sh; " + " ".join(map(str, command))
    output = (folder / "output.txt").open("w")
    return subprocess.Popen(["bash", "-c", script], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)


def wait_for(condition, process, seconds=240):
    for _ in range(10 * seconds):
        if condition():
            return
        assert process.poll() is None, "ended too early"
        time.sleep(0.1)
    pytest.fail("waited in vain")


def steps_logged(folder):
    log = folder / "run.log"
    return log.read_text().count("Epoch: [") if log.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_torchrun_passes_the_signal_on_and_the_run_is_saved(tiny_flags, tmp_path, number):
    flags = (*tiny_flags, *TWO, "--epochs", 40, "--log_interval", 1)
    output = tmp_path / "run"
    process = start_torchrun(tmp_path, [*flags, "--output_dir", output])
    wait_for(lambda: steps_logged(output) >= 3, process)
    process.send_signal(number)
    assert process.wait(60) != 0  # the launcher hides the workers' code
    text = (tmp_path / "output.txt").read_text()
    assert (output / "PREEMPTED").exists(), text
    step = int((output / "PREEMPTED").read_text().split()[1])
    saved = torch.load(output / "checkpoint-last.pth", weights_only=True)
    assert saved["alternating"]["step"] == step >= 3
    assert text.count("stopped by a signal") == 1


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_lost_a_rank_and_it_ends_right(tiny_flags, exact_two, tmp_path):
    output, flag = tmp_path / "run", tmp_path / "was killed"
    launcher = tmp_path / "launch.py"
    # The first attempt's second rank is killed after its fourth step.
    launcher.write_text(f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
import engine_for_alternating_finetuning as engine
import run_alternating_hand_finetuning as run
flag, make_step = Path({str(flag)!r}), engine.AlternatingTrainer.optimizer_step
def step_and_die(self, step, meters):
    norm = make_step(self, step, meters)
    if step == 3 and os.environ["RANK"] == "1" and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return norm
engine.AlternatingTrainer.optimizer_step = step_and_die
run.utils.exit_process(run.main())
""")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["--max_restarts", "2", launcher, *tiny_flags, *TWO, "--output_dir", output]
    done = subprocess.run(
        [*map(str, command)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert flag.exists() and "resumed from" in done.stdout
    assert_same_run(exact_two, output)
    assert_equal_records(exact_two, output)


@pytest.mark.parametrize("of_rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_rank_that_is_left_alone_ends_with_a_word(fork_run, tiny_flags, tmp_path, of_rank):
    flags = (*tiny_flags, *TWO, "--output_dir", tmp_path)
    fault = signal_after_step(2, signal.SIGKILL, of_rank)
    results = fork_run(*flags, fault=fault, ranks=2, timeout=60)
    left = results[1 - of_rank]
    assert results[of_rank].code == -signal.SIGKILL
    assert left.code == 1
    assert "another process of this run is gone" in left.output, left.output
    assert "Traceback" not in left.output


# ------------------------------------------------------------------------------------------ memory


def resident_mb(pid):
    """Memory of a process and all below it, pages they share counted once, in MB."""
    total, queue = 0.0, [pid]
    while queue:
        process = Path(f"/proc/{queue.pop()}")
        queue += map(int, (process / f"task/{process.name}/children").read_text().split())
        lines = (process / "smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return total


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_memory_does_not_grow_over_two_thousand_steps(fork_run, tiny_flags, tmp_path):
    notes = tmp_path / "memory.txt"

    def watch(rank):
        make_step = engine.AlternatingTrainer.optimizer_step

        @functools.wraps(make_step)
        def step_and_note(self, step, meters):
            if step % 200 == 0:
                with notes.open("a") as file:
                    file.write(f"{resident_mb(os.getpid())}\n")
            return make_step(self, step, meters)

        engine.AlternatingTrainer.optimizer_step = step_and_note

    flags = ("--epochs", 525, "--num_workers", 2, "--update_freq", 1, "--batch_size", 4, "--model_ema")
    quiet = ("--no_save_ckpt", "--disable_eval_during_finetuning", "--output_dir", tmp_path / "run")
    (result,) = fork_run(*tiny_flags, *flags, *quiet, fault=watch, timeout=1400)
    assert result.code == 0, result.output
    _, after_200, *later = map(float, notes.read_text().split())
    assert len(later) >= 8
    assert max(later) < 1.05 * after_200, (after_200, later)
