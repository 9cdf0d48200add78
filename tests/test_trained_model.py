"""A model built from a checkpoint alone."""

import pytest
import torch
from conftest import CLASSES, load

from scripts.tools.trained_model import load_trained
from utils import UserError

CPU = torch.device("cpu")
NAMES = {"lh": {0: "null", 1: "insert peg"}, "rh": {2: "hold, tight"}}
ONE_EPOCH = ("--epochs", 1, "--warmup_epochs", 0)


@pytest.fixture(scope="module")
def checkpoint(full_run):
    return full_run / "checkpoint-last.pth"


def test_checkpoint_alone_gives_the_trained_model(checkpoint):
    trained = load_trained(checkpoint, CPU)
    saved = load(checkpoint)
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, saved["model"][name])
    assert not trained.model.training and trained.weights == "model" and trained.step == 8
    assert trained.hands == ("lh", "rh") and {h: trained.num_classes(h) for h in trained.hands} == CLASSES
    average = load_trained(checkpoint, CPU, "ema")
    assert torch.equal(average.model.lh_head.weight, saved["model_ema"]["lh_head.weight"])


def test_class_names_travel_with_the_checkpoint(run_main, tiny_flags, sample, tmp_path):
    for hand, names in NAMES.items():
        lines = (f"{label} {name}\n" for label, name in names.items())
        (sample.path(hand) / "mapping.txt").write_text("".join(lines))
    try:
        run_main(*tiny_flags, *ONE_EPOCH, "--output_dir", tmp_path)
    finally:
        for hand in NAMES:
            (sample.path(hand) / "mapping.txt").unlink()
    trained = load_trained(tmp_path / "checkpoint-last.pth", CPU)
    assert trained.class_names == NAMES
    assert trained.class_name("lh", 1) == "insert peg" and trained.class_name("lh", 2) == "class 2"


def test_unusable_mapping_is_said_and_does_not_stop_a_run(run_main, tiny_flags, sample, tmp_path):
    mapping = sample.path("lh") / "mapping.txt"
    mapping.write_text("null zero\n")
    try:
        result = run_main(*tiny_flags, *ONE_EPOCH, "--output_dir", tmp_path)
    finally:
        mapping.unlink()
    assert result.code == 0 and f"not name the classes of lh: {mapping}:1" in result.output
    assert not load_trained(tmp_path / "checkpoint-last.pth", CPU).class_names.get("lh")


def test_other_trainers_files_are_refused_by_name(tmp_path, checkpoint):
    path = tmp_path / "other.pth"
    torch.save({"model": load(checkpoint)["model"], "epoch": 3}, path)
    with pytest.raises(UserError, match=rf"--checkpoint {path}: was not written by this project"):
        load_trained(path, CPU)
    with pytest.raises(UserError, match="there is no such file"):
        load_trained(tmp_path / "none.pth", CPU)


def test_weights_that_are_not_there_are_named(run_main, tiny_flags, tmp_path):
    run_main(*tiny_flags, *ONE_EPOCH, "--output_dir", tmp_path)
    with pytest.raises(UserError, match="holds no weights under 'model_ema'"):
        load_trained(tmp_path / "checkpoint-last.pth", CPU, "ema")
