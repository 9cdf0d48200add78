"""The pretrained weights that come with the project, and their card."""

import json

import pytest
import timm
import torch
from conftest import ROOT

import models
from scripts.data import make_sample_havid as maker
from scripts.tools.store_backbone import hash_lists

WEIGHTS = ROOT / "models" / "vit_tiny_sample_pretrained.pth"


@pytest.fixture(scope="module")
def card():
    return json.loads(WEIGHTS.with_suffix(".json").read_text())


def test_weights_have_the_form_of_the_published_file_and_are_small():
    assert WEIGHTS.stat().st_size < 12e6
    content = torch.load(WEIGHTS, weights_only=True)
    assert content.keys() == {"module"}
    assert {value.dtype for value in content["module"].values()} == {torch.float16}
    assert all(value.isfinite().all() for value in content["module"].values())


def test_weights_fill_the_quickstart_s_backbone(card):
    sizes = {"img_size": 64, "all_frames": 4, "depth": card["arguments"]["depth"]}
    model = timm.create_model("vit_tiny_patch16_224_alternating", **sizes)
    report = models.load_pretrained(model, torch.load(WEIGHTS, weights_only=True))
    assert {name.split(".")[0] for name in report.initialised} == {"lh_head", "rh_head"}
    quickstart = (ROOT / "scripts" / "quickstart.sh").read_text()
    assert f"--depth {sizes['depth']} --input_size 64" in quickstart and "--num_frames 4" in quickstart


def test_card_says_how_the_weights_were_made(card):
    assert card["command"] == "bash scripts/pretrain_sample_weights.sh"
    assert len(card["commit"]) == 40
    assert card["data"]["table"] == "pretrain" and card["data"]["complete"] is True
    assert card["training_hours"] > 0 and "cores" in card["machine"]
    assert min(card["pretraining_top1"].values()) > 80


def test_card_names_the_lists_that_the_generator_makes(card, tmp_path):
    data = card["data"]
    sample = maker.SampleSet(data["table"], data["recordings"], data["seed"], tuple(data["size"]))
    for hand in maker.HANDS:
        (tmp_path / f"{hand}_v0").mkdir()
    maker.write_lists(tmp_path, sample, maker.plan_recordings(sample))
    assert hash_lists(tmp_path) == card["list_sha256"]
