"""A pointer or a web page that a download left in place of a file is named wherever it is read."""

import shutil

import pytest
from conftest import ROOT

from models import find_weights
from utils import UserError, describe_stand_in, read_checkpoint

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 345678901\n"
PAGES = {
    "page": b"<!DOCTYPE html>\n<html lang='en'><head><title>Sign in</title></head></html>\n",
    "page in capitals": b"\n  <HTML><BODY>404 Not Found</BODY></HTML>",
    "page with a mark": b"\xef\xbb\xbf<!doctype   html>",
    "answer of a storage": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
}
CONTENTS = {"pointer": POINTER, **PAGES}


def expected(name):
    return r"is a Git LFS pointer.*git lfs pull" if name == "pointer" else r"is a web page.*download it again"


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".bin", ".ckpt"])
@pytest.mark.parametrize("name", CONTENTS)
def test_weights_are_named_as_such(tmp_path, name, ending):
    path = tmp_path / f"weights{ending}"
    path.write_bytes(CONTENTS[name])
    with pytest.raises(UserError, match=rf"^--finetune {path}: {expected(name)}[^\n]*$"):
        find_weights(str(path)).read()


@pytest.mark.parametrize("name", CONTENTS)
def test_checkpoint_is_named_as_such(tmp_path, name):
    path = tmp_path / "checkpoint-last.pth"
    path.write_bytes(CONTENTS[name])
    for lazy in (False, True):
        with pytest.raises(UserError, match=rf"^--resume {path}: {expected(name)}[^\n]*$"):
            read_checkpoint(path, lazy=lazy)


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_file_of_a_model_s_folder_is_named_as_such(tmp_path, name, file):
    for golden in ("config.json", "model.safetensors"):
        shutil.copyfile(ROOT / "tests" / "golden" / "hf_videomae" / golden, tmp_path / golden)
    (tmp_path / file).write_bytes(CONTENTS[name])
    with pytest.raises(UserError, match=rf"^--finetune {tmp_path}: {file} {expected(name)}[^\n]*$"):
        find_weights(str(tmp_path)).read()


def test_real_files_are_none():
    for path in (
        ROOT / "tests" / "golden" / "hf_videomae" / "model.safetensors",
        ROOT / "tests" / "golden" / "lightning" / "last.ckpt",
        ROOT / "tests" / "golden" / "hf_videomae" / "config.json",
        ROOT / "tests" / "clips" / "h264_340x256.mp4",
    ):
        assert describe_stand_in(path) is None
