"""A trained model as safetensors, card and ONNX: what others load is what was trained."""

import hashlib
import importlib.util
import io
import json
import os
import shutil
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from conftest import CLASSES, load
from safetensors.torch import load_file

import run_alternating_hand_finetuning as run
from dataset.volume_transforms import normalize_clips
from scripts.tools import export, onnx_file
from scripts.tools.trained_model import load_trained

CPU = torch.device("cpu")
ONE_EPOCH = ("--epochs", 1, "--warmup_epochs", 0)


@pytest.fixture(scope="module")
def checkpoint(full_run):
    return full_run / "checkpoint-last.pth"


@pytest.fixture(scope="module")
def trained(checkpoint):
    return load_trained(checkpoint, CPU)


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    assert run_export(checkpoint, folder) == 0
    return folder


@pytest.fixture(scope="module")
def clips(trained):
    """Clips of the validation list as the run sees them, normalised."""
    dataset = run.build_datasets(trained.args, CLASSES, ["validation"])["validation"]["lh"]
    frames = torch.from_numpy(np.concatenate([dataset[clip].frames for clip in range(len(dataset))]))
    return normalize_clips(frames)


def run_export(checkpoint, folder, *flags):
    return export.main(["--checkpoint", str(checkpoint), "--output", str(folder), *flags])


def card_of(folder):
    return json.loads((folder / "model.json").read_text())


def both_logits(model, clips):
    with torch.inference_mode():
        return torch.cat(tuple(model(clips, "both")), dim=1)


def onnx_probabilities(folder, clips, *hands):
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == [f"{hand}_probabilities" for hand in hands]
    return [torch.from_numpy(values) for values in session.run(None, {"clips": clips.numpy()})]


def only_line(capsys):
    error = capsys.readouterr().err
    assert error.startswith("export: ") and error.count("\n") == 1, error
    return error


# ---------------------------------------------------------------------------- safetensors and card


def test_card_and_weights_alone_build_the_trained_model(exported, trained, clips):
    card = card_of(exported)
    model = timm.create_model(card["model"], **card["build"]).eval()
    model.load_state_dict(load_file(exported / "model.safetensors"))
    assert torch.equal(both_logits(model, clips), both_logits(trained.model, clips))


def test_exported_file_starts_a_run_with_the_same_logits(exported, trained, clips, tiny_flags):
    flags = [*tiny_flags, "--depth", "2", "--finetune", str(exported / "model.safetensors")]
    args = run.args_of_run(flags, 1)
    model = run.build_model(args, CLASSES).eval()
    assert "left as initialised" not in run.load_pretrained_file(model, args)
    assert torch.equal(both_logits(model, clips), both_logits(trained.model, clips))


def test_card_says_how_clips_enter_and_what_the_classes_are(exported, full_run):
    card = card_of(exported)
    entry = card["input"]
    sizes = (entry["frames"], entry["sampling_rate"], entry["input_size"], entry["short_side_size"])
    assert sizes == (4, 2, 32, 36)
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1, 1).expand(2, 1, 1, 1, 3)
    mean, std = (torch.tensor(entry[name]) for name in ("mean", "std"))
    expected = (pixels.flatten(1) / 255 - mean) / std
    torch.testing.assert_close(normalize_clips(pixels).flatten(1), expected)
    assert {hand: described["classes"] for hand, described in card["hands"].items()} == CLASSES
    assert card["hands"]["rh"]["class_names"] == ["class 0", "class 1", "class 2"]
    assert card["checkpoint"] == {"file": "checkpoint-last.pth", "weights": "model", "step": 8}
    assert card["metrics_of_run"] == json.loads((full_run / "metrics.json").read_text())
    assert torch.__version__.startswith(card["versions"]["torch"])


def test_card_lists_the_files_that_are_there(exported):
    files = {path.name for path in exported.iterdir()}
    listed = card_of(exported)["files"]
    assert files == {*listed, "model.json"} == {"model.safetensors", "model.onnx", "model.json"}
    for name, file in listed.items():
        content = (exported / name).read_bytes()
        assert file == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    modes = {(exported / name).stat().st_mode for name in files}
    assert len(modes) == 1  # who can read one can read all


def test_epsilon_travels_with_the_file(checkpoint, tiny_flags, tmp_path):
    saved = load(checkpoint)
    saved["args"]["norm_eps"] = 1e-4
    torch.save(saved, tmp_path / "other.pth")
    assert run_export(tmp_path / "other.pth", tmp_path / "out", "--no_onnx") == 0
    flags = [*tiny_flags, "--depth", "2", "--finetune", str(tmp_path / "out" / "model.safetensors")]
    assert run.args_of_run(flags, 1).norm_eps == 1e-4
    assert card_of(tmp_path / "out")["build"]["norm_eps"] == 1e-4


def test_moving_average_and_half_precision(checkpoint, tmp_path, tiny_flags):
    assert run_export(checkpoint, tmp_path, "--no_onnx", "--weights", "ema", "--half") == 0
    average = load(checkpoint)["model_ema"]
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == average.keys()
    assert all(torch.equal(weights[name], value.half()) for name, value in average.items())
    card = card_of(tmp_path)
    assert (card["precision"], card["checkpoint"]["weights"]) == ("float16", "ema")
    assert "onnx" not in card and not (tmp_path / "model.onnx").exists()
    args = run.args_of_run(
        [*tiny_flags, "--depth", "2", "--finetune", str(tmp_path / "model.safetensors")], 1
    )
    model = run.build_model(args, CLASSES)
    run.load_pretrained_file(model, args)
    assert torch.equal(model.rh_head.weight, average["rh_head.weight"].half().float())


def test_untested_run_has_no_metrics_and_damaged_ones_are_named(checkpoint, tmp_path, capsys):
    shutil.copyfile(checkpoint, tmp_path / "c.pth")
    assert run_export(tmp_path / "c.pth", tmp_path / "out", "--no_onnx") == 0
    assert card_of(tmp_path / "out")["metrics_of_run"] is None
    (tmp_path / "metrics.json").write_text("{")
    assert run_export(tmp_path / "c.pth", tmp_path / "out", "--no_onnx") == 1
    assert str(tmp_path / "metrics.json") in only_line(capsys)


# ---------------------------------------------------------------------------- ONNX


def test_onnx_gives_the_probabilities_of_both_hands_for_any_number_of_clips(exported, trained, clips):
    assert len(clips) == 5
    for batch in (clips, clips[:1], clips[1:3]):
        with torch.inference_mode():
            expected = [logits.softmax(1) for logits in trained.model(batch, "both")]
        for found, wanted in zip(onnx_probabilities(exported, batch, "lh", "rh"), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
            assert (wanted.amax(0) - wanted.amin(0)).max() > 1e-3 or len(batch) == 1


def test_backbone_is_in_the_file_once(exported, trained):
    graph = onnx.load(exported / "model.onnx").graph
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    assert len(norms) == 2 * len(trained.model.blocks) + 1
    (entry,) = graph.input
    dimensions = [d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim]
    assert entry.name == "clips" and isinstance(dimensions[0], str) and dimensions[1:] == [3, 4, 32, 32]


def test_card_tells_how_the_onnx_file_was_checked(exported):
    described = card_of(exported)["onnx"]
    assert described["input"] == {"name": "clips", "shape": ["N", 3, 4, 32, 32], "type": "float32"}
    assert described["outputs"] == {f"{hand}_probabilities": ["N", CLASSES[hand]] for hand in CLASSES}
    check = described["check"]
    assert 0 <= check["largest_difference"] < 1e-5 < check["spread"] and check["tolerance"] == 1e-3


@pytest.mark.parametrize("fault", [0.1, float("nan")], ids=["shifted", "nan"])
def test_file_that_disagrees_is_refused_and_nothing_changes(
    checkpoint, exported, trained, tmp_path, capsys, monkeypatch, fault
):
    def write_wrong(trained, path):
        model = onnx.load(exported / "model.onnx")
        (bias,) = [tensor for tensor in model.graph.initializer if tensor.name.endswith("rh_head.bias")]
        wrong = onnx.numpy_helper.to_array(bias).copy()
        wrong[0] += fault
        bias.CopyFrom(onnx.numpy_helper.from_array(wrong, bias.name))
        onnx.save(model, path)

    monkeypatch.setattr(export, "write_onnx", write_wrong)
    (tmp_path / "model.onnx").write_text("of an earlier export")
    assert run_export(checkpoint, tmp_path) == 1
    line = only_line(capsys)
    assert "probabilities differ from torch's by" in line and "nothing was written" in line
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "of an earlier export"


def test_file_that_onnxruntime_cannot_run_is_refused(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "write_onnx", lambda trained, path: path.write_bytes(b"no model"))
    assert run_export(checkpoint, tmp_path) == 1
    assert "onnxruntime cannot run the file" in only_line(capsys)
    assert not list(tmp_path.iterdir())


def test_weights_too_large_for_one_file_lie_in_a_second_one(
    checkpoint, trained, clips, tmp_path, monkeypatch
):
    monkeypatch.setattr(onnx_file, "LARGEST_FILE", 0)
    assert run_export(checkpoint, tmp_path / "out") == 0
    assert "model.onnx.data" in card_of(tmp_path / "out")["files"]
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 1e6
    (tmp_path / "out").rename(tmp_path / "moved")
    left, _ = onnx_probabilities(tmp_path / "moved", clips, "lh", "rh")
    with torch.inference_mode():
        torch.testing.assert_close(left, trained.model(clips, "lh").softmax(1), rtol=0, atol=1e-5)


def test_one_stream_has_one_hand(run_main, tiny_flags, clips, tmp_path):
    quick = (*ONE_EPOCH, "--disable_eval_during_finetuning", "--output_dir", tmp_path / "run")
    assert run_main(*tiny_flags, *quick, "--one_stream").code == 0
    checkpoint = tmp_path / "run" / "checkpoint-last.pth"
    assert run_export(checkpoint, tmp_path / "out") == 0
    card = card_of(tmp_path / "out")
    assert list(card["hands"]) == ["lh"]
    model = timm.create_model(card["model"], **card["build"]).eval()
    model.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    (found,) = onnx_probabilities(tmp_path / "out", clips, "lh")
    with torch.inference_mode():
        torch.testing.assert_close(found, model(clips, "lh").softmax(1), rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------- the command line


def test_missing_packages_are_named_before_any_work(checkpoint, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    assert run_export(checkpoint, tmp_path / "out") == 1
    line = only_line(capsys)
    assert "need onnxscript: install requirements-tools.txt" in line
    assert not (tmp_path / "out").exists()
    assert run_export(checkpoint, tmp_path / "out", "--no_onnx") == 0


def test_what_cannot_be_exported_is_one_line(checkpoint, tmp_path, capsys):
    assert run_export(tmp_path / "none.pth", tmp_path / "out") == 1
    assert f"--checkpoint {tmp_path / 'none.pth'}: there is no such file" in only_line(capsys)
    torch.save({"model": load(checkpoint)["model"]}, tmp_path / "other.pth")
    assert run_export(tmp_path / "other.pth", tmp_path / "out") == 1
    assert "was not written by this project" in only_line(capsys)
    (tmp_path / "file").touch()
    assert run_export(checkpoint, tmp_path / "file", "--no_onnx") == 1
    assert f"--output {tmp_path / 'file'}: cannot be made" in only_line(capsys)


def test_names_of_folders_may_hold_anything(checkpoint, tmp_path, monkeypatch, capsys):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # strict, as a terminal is
    monkeypatch.setattr(sys, "stdout", stdout)
    folder = tmp_path / os.fsdecode(b"a\xff\x1b[31m")
    assert run_export(checkpoint, folder, "--no_onnx") == 0 and card_of(folder)
    stdout.seek(0)
    assert r"a\udcff\x1b[31m" in stdout.read()
    assert run_export(folder / "none.pth", tmp_path / "out") == 1
    assert "\x1b" not in only_line(capsys)


def test_summary_names_files_and_check(checkpoint, exported, capsys):
    lines = list(export.summary(card_of(exported), exported))
    assert lines[0].endswith("4 classes of the left hand, 3 classes of the right hand")
    assert lines[1] == "weights: model of checkpoint-last.pth, step 8, float32"
    assert any(line.startswith(f"{exported / 'model.onnx'}: ") for line in lines)
    assert lines[-1].startswith("onnxruntime and torch: probabilities of 4 clips differ by at most ")
