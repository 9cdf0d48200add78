"""Checkpoints that would run code and lists that would act on a terminal, through the command line."""

import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from conftest import VAL_CLIPS, only_error, write_list

import utils
from utils import visible


class Malicious:
    def __init__(self, marker):
        self._marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self._marker),))


def write_torch(path, content):
    torch.save(content, path)


def write_old_torch(path, content):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def write_pickle(protocol):
    return lambda path, content: path.write_bytes(pickle.dumps(content, protocol=protocol))


FORMS = {"torch": write_torch, "old torch": write_old_torch, "2": write_pickle(2), "4": write_pickle(4)}


@pytest.fixture(params=FORMS)
def malicious(request, tmp_path):
    """A checkpoint that makes a folder when it is executed; the file and the folder."""
    folder, marker = tmp_path / "run", tmp_path / "executed"
    folder.mkdir()
    path = folder / "checkpoint-last.pth"
    content = {"model": {}, "epoch": 3, "args": Malicious(marker), "alternating": {"step": 3}}
    FORMS[request.param](path, content)
    yield path, marker
    assert not marker.exists()
    pickled = request.param in ("2", "4")
    pickle.loads(path.read_bytes()) if pickled else torch.load(path, weights_only=False)
    assert marker.exists()  # it would have


@pytest.mark.parametrize("way", ["--resume", "--finetune", "--eval", "--validation", "auto_resume"])
def test_malicious_file_is_refused_in_one_line_that_names_it(run_main, tiny_flags, malicious, way):
    path, marker = malicious
    given = {
        "auto_resume": ("--output_dir", path.parent),
        "--resume": ("--resume", path, "--output_dir", path.parent / "out"),
        "--finetune": ("--finetune", path, "--output_dir", path.parent / "out"),
        "--eval": ("--eval", "--resume", path),
        "--validation": ("--validation", "--output_dir", path.parent),
    }
    result = run_main(*tiny_flags, *given[way])
    assert result.code == 1
    line = only_error(result.output)
    assert f"{path}: refused, it is not a plain weights file" in line
    assert "weights_only" not in result.output and "\x1b" not in result.output
    assert not marker.exists()
    assert path.exists()


def test_malicious_newest_checkpoint_is_set_aside_unexecuted(run_main, tiny_flags, full_run, tmp_path):
    shutil.copyfile(full_run / "checkpoint-0.pth", tmp_path / "checkpoint-0.pth")
    content = {"model": Malicious(tmp_path / "executed"), "epoch": 9}
    torch.save(content, tmp_path / "checkpoint-last.pth")
    flags = ("--depth", 2, "--epochs", 1, "--warmup_epochs", 0, "--output_dir", tmp_path)
    result = run_main(*tiny_flags, *flags)
    assert result.code == 0, result.output
    assert "set aside as checkpoint-last.pth.damaged" in result.output
    assert not (tmp_path / "executed").exists()


# ------------------------------------------------------------------------------------- shown text

EVIL = "[red]\x1b[31m\x1b]0;title\x07\u202e\x85\x0b[bold]\udce9.mp4"


@pytest.fixture
def evil_lists(sample, tmp_path):
    names = [name for name, _ in sample.val["lh"]]
    for split in ("train", "val"):
        write_list(tmp_path / f"{split}_list_video.txt", [(name, 0) for name in names])
        with (tmp_path / f"{split}_list_video.txt").open("ab") as file:
            file.write(os.fsencode(f"{EVIL} 1\n"))
    return ("--lh_data_path", tmp_path, "--lh_data_root", sample.path("lh"))


def assert_harmless(text):
    assert all(character.isprintable() or character == "\n" for character in text), repr(text)


def test_names_in_lists_act_on_neither_terminal_nor_log(run_main, tiny_flags, evil_lists, tmp_path):
    flags = (*tiny_flags, *evil_lists, "--batch_size", 1, "--epochs", 4, "--output_dir", tmp_path / "run")
    result = run_main(*flags, "--max_bad_clips", 0)
    assert result.code == 1
    assert f"such as {visible(EVIL)} (No such file or directory)" in only_error(result.output)
    assert_harmless(result.output)
    assert_harmless((tmp_path / "run" / "run.log").read_text())
    # Data stay what they are.
    assert (tmp_path / "run" / "bad_clips_lh.txt").read_bytes().startswith(os.fsencode(EVIL) + b"\t")


def test_names_of_a_malformed_list_are_shown_escaped(run_main, tiny_flags, evil_lists, tmp_path):
    with (tmp_path / "train_list_video.txt").open("a") as file:
        file.write("\x1b[2Jno label\n")
    result = run_main(*tiny_flags, *evil_lists, "--output_dir", tmp_path / "run")
    assert result.code == 1
    assert f"train_list_video.txt:{VAL_CLIPS['lh'] + 2}: not `path label`" in only_error(result.output)
    assert_harmless(result.output)


def test_text_of_a_checkpoint_is_one_harmless_line(run_main, tiny_flags, full_run, tmp_path):
    checkpoint = torch.load(full_run / "checkpoint-0.pth", weights_only=True)
    checkpoint["args"]["lr"] = "\x1b[2J\n12:00:00 error: forged"
    torch.save(checkpoint, tmp_path / "checkpoint-0.pth")
    result = run_main(
        *tiny_flags, "--depth", 2, "--epochs", 1, "--warmup_epochs", 0, "--output_dir", tmp_path
    )
    assert "(was \\x1b[2J\\n12:00:00 error: forged)" in result.output
    assert_harmless(result.output)


def test_traceback_is_shown_escaped(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    utils.setup_logging(0, tmp_path)
    try:
        raise RuntimeError(EVIL)
    except RuntimeError:
        utils.log.exception("what\nnow")
    shown = capsys.readouterr().out
    assert "what\\nnow" in shown and "Traceback" in shown
    assert_harmless(shown)
    assert_harmless(Path(tmp_path / "run.log").read_text())
