"""Files that are cut, lost in parts, do not fit the disk or the flags: real ones, real disks."""

import ctypes
import logging
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, FULL, assert_same_run, epochs_of, load, only_error, write_list

import run_alternating_hand_finetuning as run
import utils
from dataset.video import READER_VERSION
from engine_for_finetuning import read_most_advanced
from utils import UserError

# ----------------------------------------------------------------------------- damaged checkpoints


def cut(share):
    """Keeps a share of a file, or all but some bytes."""

    def damage(path):
        size = path.stat().st_size
        os.truncate(path, size + share if share < 0 else int(share * size))

    return damage


def lose_a_block(path):
    """Zeros where tensors were, as after a power cut: torch itself would load them."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(4096))


DAMAGES = {"empty": cut(0), "head": cut(0.001), "half": cut(0.5), "no end": cut(-1), "block": lose_a_block}


def test_torch_alone_does_not_see_a_lost_block(full_run, tmp_path):
    path = Path(shutil.copy(full_run / "checkpoint-last.pth", tmp_path))
    lose_a_block(path)
    load(path)
    with pytest.raises(UserError, match=r"checkpoint-last\.pth: damaged .*check sum of its part .* is wrong"):
        utils.read_checkpoint(path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_checkpoint_is_set_aside_for_the_one_before(full_run, tmp_path, damage, caplog):
    for name in ("checkpoint-0.pth", "checkpoint-last.pth"):
        shutil.copyfile(full_run / name, tmp_path / name)
    DAMAGES[damage](tmp_path / "checkpoint-last.pth")
    damaged = (tmp_path / "checkpoint-last.pth").read_bytes()
    path, checkpoint = read_most_advanced(tmp_path)
    assert (Path(path).name, checkpoint["epoch"]) == ("checkpoint-0.pth", 0)
    (warning,) = caplog.messages
    assert warning.startswith("set aside as checkpoint-last.pth.damaged: ")
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-0.pth", "checkpoint-last.pth.damaged"}
    assert (tmp_path / "checkpoint-last.pth.damaged").read_bytes() == damaged


@pytest.mark.parametrize("damage", ["half", "block"])
def test_run_goes_on_from_before_a_damaged_checkpoint_bit_for_bit(
    run_main, tiny_flags, full_run, tmp_path, damage
):
    for name in ("checkpoint-0.pth", "checkpoint-last.pth", "log.txt"):
        shutil.copyfile(full_run / name, tmp_path / name)
    DAMAGES[damage](tmp_path / "checkpoint-last.pth")
    result = run_main(*tiny_flags, *FULL, "--output_dir", tmp_path)
    assert result.code == 0, result.output
    assert result.output.count("set aside as checkpoint-last.pth.damaged") == 1
    assert f"resumed from {tmp_path / 'checkpoint-0.pth'} at step 4" in result.output
    assert "otherwise than it began" not in result.output
    assert_same_run(full_run, tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_alone_are_an_error_and_stay(run_main, tiny_flags, full_run, tmp_path, damage):
    names = ("checkpoint-0.pth", "checkpoint-last.pth")
    for name in names:
        shutil.copyfile(full_run / name, tmp_path / name)
        DAMAGES[damage](tmp_path / name)
    result = run_main(*tiny_flags, *FULL, "--output_dir", tmp_path)
    assert result.code == 1
    line = only_error(result.output)
    assert str(tmp_path / "checkpoint-") in line
    assert "there is no other to go on from: move it away to start anew" in line
    assert {path.name for path in tmp_path.glob("*.pth*")} == set(names)


def test_damaged_file_that_was_asked_for_is_an_error(run_main, tiny_flags, full_run, tmp_path):
    path = Path(shutil.copy(full_run / "checkpoint-last.pth", tmp_path / "given.pth"))
    lose_a_block(path)
    for flags in ((*tiny_flags, *FULL), ("--eval",)):
        result = run_main(*flags, "--resume", path, "--output_dir", tmp_path / "out")
        assert result.code == 1
        assert f"error: --resume {path}: damaged" in only_error(result.output)
    assert path.exists()


# ---------------------------------------------------------------------------------- full disks


@pytest.fixture
def small_disk(tmp_path):
    """Makes a file system of so many bytes; its folder."""
    folder = tmp_path / "disk"

    def make(size):
        folder.mkdir()
        command = ("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a small file system can only be mounted by root")
        return folder

    yield make
    if folder.is_mount():
        subprocess.run(("umount", "--lazy", folder), check=True)


def fill(folder):
    """Leaves not a byte of a file system."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def test_checkpoint_that_does_not_fit_leaves_the_last_good_one(
    run_main, tiny_flags, full_run, small_disk, tmp_path
):
    size = (full_run / "checkpoint-last.pth").stat().st_size
    disk = small_disk(int(2.6 * size))  # step 3's, step 4's, and not step 6's
    result = run_main(*tiny_flags, *FULL, "--output_dir", disk)
    assert result.code == 1
    expected = f"error: {disk / 'checkpoint-step-6.pth'}: cannot be written: No space left on device"
    assert only_error(result.output).endswith(expected)
    assert not list(disk.glob(".*"))
    assert load(disk / "checkpoint-last.pth")["alternating"]["step"] == 4
    shutil.copytree(disk, tmp_path / "roomy")
    result = run_main(*tiny_flags, *FULL, "--output_dir", tmp_path / "roomy")
    assert result.code == 0, result.output
    assert "at step 4" in result.output
    assert_same_run(full_run, tmp_path / "roomy")


def test_log_on_a_full_disk_is_an_error_and_the_rows_before_stay(small_disk):
    disk = small_disk(64 * 1024)
    log = utils.EpochLog(disk / "log.txt")
    log.append({"epoch": 0})
    fill(disk)
    with pytest.raises(UserError, match=r"disk/log\.txt: cannot be written: No space left on device$"):
        log.append({"epoch": 1})
    assert epochs_of(disk) == [{"epoch": 0}]
    assert {path.name for path in disk.iterdir()} == {"log.txt", "ballast"}


def test_run_whose_log_does_not_fit_ends_in_one_line(run_main, tiny_flags, small_disk, tmp_path):
    # Room for the arguments, environment.json and run.log, a page each.
    flags = (*tiny_flags, "--no_save_ckpt", "--disable_eval_during_finetuning", "--log_interval", 100)
    disk = small_disk(3 * 4096)
    result = run_main(*flags, "--log_dir", tmp_path / "curves", "--output_dir", disk)
    assert result.code == 1
    expected = f"error: {disk / 'log.txt'}: cannot be written: No space left on device"
    assert only_error(result.output).endswith(expected)


def test_curves_on_a_full_disk_neither_hang_nor_hide_the_reason(run_main, tiny_flags, small_disk, tmp_path):
    disk = small_disk(4096)
    flags = ("--log_interval", 1, "--epochs", 6, "--disable_eval_during_finetuning", "--no_save_ckpt")
    result = run_main(*tiny_flags, *flags, "--log_dir", disk, "--output_dir", tmp_path / "run")
    assert result.code == 1
    assert only_error(result.output).endswith(f"error: {disk}: cannot be written: No space left on device")


def test_what_run_log_has_no_room_for_is_shown_all_the_same(small_disk, capfd):
    disk = small_disk(64 * 1024)
    pid = os.fork()
    if pid == 0:
        try:
            fill(disk)
            utils.setup_logging(0, disk)
            run.log.info("a line")
            logging.shutdown()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    shown = capfd.readouterr()
    assert shown.out.endswith("a line\n")
    assert shown.err == ""
    assert (disk / "run.log").read_text() == ""


def test_copy_without_links_on_a_full_disk_names_its_target(small_disk, tmp_path):
    # Of another file system there is no link: the copy needs room.
    disk = small_disk(64 * 1024)
    utils.save_checkpoint(tmp_path / "checkpoint-last.pth", {"w": list(range(100_000))})
    with pytest.raises(UserError, match=r"checkpoint-0\.pth: cannot be written: No space left on device$"):
        utils.copy_checkpoint(tmp_path / "checkpoint-last.pth", disk / "checkpoint-0.pth")
    assert not list(disk.iterdir())


# --------------------------------------------------------------------------- leftovers of writers


def killed(function, *args):
    """Runs a function in a process that is killed on its way."""
    pid = os.fork()
    if pid == 0:
        try:
            function(*args)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_writing(path):
    with utils.atomic_open(path) as file:
        file.write(bytes(10_000))
        file.flush()
        die()


def die_while_copying(source, target):
    Path.replace = die
    utils.copy_checkpoint(source, target)


def test_start_removes_what_killed_writers_left_and_nothing_else(run_main, tiny_flags, full_run, tmp_path):
    for name in ("checkpoint-last.pth", "log.txt"):
        shutil.copyfile(full_run / name, tmp_path / name)
    kept = {".hidden", ".checkpoint-last.pth.swp", ".mine.cfg.abcdefgh", "checkpoint-9.pth.abcdefgh", ".x"}
    for name in kept:
        (tmp_path / name).write_text("mine")
    before = {path.name for path in tmp_path.iterdir()}
    for name in ("checkpoint-last.pth", "log.txt", "args.json", "predictions_lh.csv"):
        killed(die_while_writing, tmp_path / name)
    killed(die_while_copying, tmp_path / "checkpoint-last.pth", tmp_path / "checkpoint-best.pth")
    left = {path.name for path in tmp_path.iterdir()} - before
    assert len(left) == 5
    assert (tmp_path / "checkpoint-last.pth").read_bytes() == (full_run / "checkpoint-last.pth").read_bytes()
    result = run_main(*tiny_flags, *FULL, "--output_dir", tmp_path)
    assert result.code == 0, result.output
    after = {path.name for path in tmp_path.iterdir()}
    assert not left & after
    assert before <= after


# ---------------------------------------------------------------------- a resume that contradicts


@pytest.fixture
def half_run(full_run, tmp_path):
    """A folder with the checkpoint of the first of the full run's two epochs."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copyfile(full_run / "checkpoint-0.pth", folder / "checkpoint-0.pth")
    return folder


def change_line(output):
    (line,) = [line for line in output.splitlines() if "goes on otherwise than it began" in line]
    return line.split("goes on otherwise than it began, with ")[1]


def test_resume_says_which_flags_are_others_and_goes_on_with_them(run_main, tiny_flags, half_run):
    flags = ("--lr", 0.01, "--smoothing", 0, "--num_workers", 0, "--output_dir", half_run)
    result = run_main(*tiny_flags, *FULL, *flags)
    assert result.code == 0, result.output
    assert change_line(result.output) == "--smoothing 0.0 (was 0.1); --lr 0.01 (was 0.05)"
    assert epochs_of(half_run)[-1]["train_lr"] < 0.01 * 4 / 256


def test_resume_says_whose_list_is_another(run_main, tiny_flags, half_run, sample, tmp_path):
    write_list(tmp_path / "rh" / "train_list_video.txt", reversed(sample.train["rh"]))
    write_list(tmp_path / "rh" / "val_list_video.txt", sample.val["rh"])
    paths = ("--rh_data_path", tmp_path / "rh", "--rh_data_root", sample.path("rh"))
    result = run_main(*tiny_flags, *FULL, *paths, "--output_dir", half_run)
    assert result.code == 0, result.output
    said = change_line(result.output).split("; ")
    assert said[-1] == "another training list of rh"
    assert {text.split()[0] for text in said[:-1]} == {"--rh_data_path", "--rh_data_root"}


@pytest.mark.parametrize(
    "flags",
    [
        ("--lh_num_classes", 7),
        ("--depth", 3),
        ("--model", "vit_small_patch16_224_alternating"),
        ("--num_frames", 8, "--tubelet_size", 1),
    ],
)
def test_resume_that_cannot_fit_says_what_the_file_was_made_with(run_main, tiny_flags, half_run, flags):
    result = run_main(*tiny_flags, *FULL, *flags, "--output_dir", half_run)
    assert result.code == 1
    line = only_error(result.output)
    assert f"error: {half_run / 'checkpoint-0.pth'}: does not fit the model" in line
    made = "--model vit_tiny_patch16_224_alternating --depth 2 --input_size 32 --num_frames 4"
    made += f" --tubelet_size 2 --lh_num_classes {CLASSES['lh']} --rh_num_classes {CLASSES['rh']}"
    assert f"(it was made with {made})" in line
    assert [path.name for path in half_run.glob("*.pth*")] == ["checkpoint-0.pth"]


def test_resume_says_that_the_number_of_processes_changed(fork_ranks, tiny_flags, half_run):
    flags = [*tiny_flags, *FULL, "--batch_size", 1, "--output_dir", half_run]
    codes, outputs = fork_ranks(lambda rank: run.main([str(flag) for flag in flags]))
    assert codes == [0, 0], outputs
    assert change_line(outputs[0]) == "--batch_size 1 (was 2); 2 process(es) (was 1)"
    assert "resumed from" in outputs[0]


# --------------------------------------------------------------------- nodes that share no folder


def hide(folder):
    """Gives this process an empty folder of its own in a folder's place."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000):  # CLONE_NEWNS
        return False
    commands = (("mount", "--make-rprivate", "/"), ("mount", "-t", "tmpfs", "tmpfs", folder))
    return not any(subprocess.run(command, check=False).returncode for command in commands)


def test_only_the_main_process_needs_the_output_folder(fork_ranks, tiny_flags, tmp_path):
    flags = [*tiny_flags, *FULL, "--batch_size", 1, "--test_weights", "best"]

    def train(folder, blind=False):
        def on_rank(rank):
            if blind and rank == 1 and not hide(folder):
                return [-1]
            code = run.main([str(flag) for flag in (*flags, "--output_dir", folder)])
            return [code, *sorted(path.name for path in folder.iterdir())]

        return fork_ranks(on_rank)

    ranks, outputs = train(tmp_path / "whole")
    assert [rank[0] for rank in ranks] == [0, 0], outputs
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for path in (tmp_path / "part").glob("checkpoint-*"):
        if path.name not in ("checkpoint-0.pth", "checkpoint-best.pth"):
            path.unlink()
    (first, second), outputs = train(tmp_path / "part", blind=True)
    if second == [-1]:
        pytest.skip("a process can only be given its own view of the disk by root")
    assert first[0] == 0, outputs
    assert second == [0], outputs  # it saw nothing there, and wrote nothing
    assert "at step 4" in outputs[0]
    assert_same_run(tmp_path / "whole", tmp_path / "part")


@pytest.mark.parametrize("is_older", [True, False])
def test_resume_warns_of_steps_that_an_older_reader_trained(run_main, tiny_flags, half_run, is_older):
    path = half_run / "checkpoint-0.pth"
    checkpoint = load(path)
    assert checkpoint["alternating"]["reader"] == READER_VERSION == 2
    if is_older:
        del checkpoint["alternating"]["reader"]  # as before readers had versions
        torch.save(checkpoint, path)
    result = run_main(*tiny_flags, *FULL, "--output_dir", half_run)
    assert result.code == 0, result.output
    assert ("trained by an older reader" in result.output) == is_older
    oldest = load(half_run / "checkpoint-last.pth")["alternating"]["reader"]
    assert oldest == (1 if is_older else READER_VERSION)
