"""The small tools around a run."""

import hashlib
import json

import pytest
import timm
import torch
from conftest import draw_recording, write_list, write_video
from PIL import Image

import models
from scripts.tools import make_doc_figures, show_metrics, store_backbone

ROW = {"top1": 61.25, "top5": 90.0, "mean_class_acc": 58.5, "clips": 240, "unreadable": 3}


def test_metrics_are_shown_for_each_hand(tmp_path, capsys):
    metrics = {"lh": ROW, "rh": {**ROW, "top1": 47.5}, "mean_top1": 54.375, "weights": "best", "ema": None}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert show_metrics.main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    left, right = (next(line for line in shown.splitlines() if hand in line) for hand in ("left", "right"))
    assert "61.25" in left and "240" in left and "3" in left
    assert "47.50" in right
    assert "best" in shown


def test_one_stream_has_one_row(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text(json.dumps({"lh": ROW, "weights": "last"}))
    assert show_metrics.main([str(tmp_path)]) == 0
    assert "right" not in capsys.readouterr().out


def test_untested_folder_is_said_in_one_line(tmp_path, capsys):
    assert show_metrics.main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "metrics.json") in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("left", "right", "problem"),
    [(80.0, 75.0, None), (80.0, 74.9, "right hand: top-1 74.90%"), (75.0, 89.0, "under 0.85 of the right")],
)
def test_required_accuracy_is_that_of_the_worse_hand(tmp_path, capsys, left, right, problem):
    hands = {"lh": {**ROW, "top1": left}, "rh": {**ROW, "top1": right}}
    (tmp_path / "metrics.json").write_text(json.dumps({**hands, "weights": "last"}))
    assert show_metrics.main([str(tmp_path), "--require", "75"]) == (problem is not None)
    assert (problem or "") in capsys.readouterr().err
    assert show_metrics.main([str(tmp_path)]) == 0


@pytest.fixture
def pretraining_run(tmp_path):
    """A run's folder and its generated data, as the pretraining script leaves them."""
    sizes = {"img_size": 32, "all_frames": 4, "depth": 1}
    model = timm.create_model("vit_tiny_patch16_224_alternating", **sizes)
    state = {"model": model.state_dict(), "args": {"seed": 7, "lr": 0.1}, "alternating": {"step": 12}}
    torch.save(state, tmp_path / "checkpoint-last.pth")
    (tmp_path / "log.txt").write_text('{"train_seconds": 1800.0}\n{"train_seconds": 5400.0}\n')
    (tmp_path / "metrics.json").write_text(json.dumps({"lh": ROW, "rh": ROW}))
    data = tmp_path / "data"
    write_list(data / "lh_v0" / "train_list_video.txt", [("a.mp4", 0)])
    (data / "sample.json").write_text('{"table": "pretrain", "seed": 7}')
    return model, data


def test_backbone_is_stored_as_finetune_takes_it(pretraining_run, tmp_path):
    model, data = pretraining_run
    output = tmp_path / "weights.pth"
    flags = ["--checkpoint", str(tmp_path / "checkpoint-last.pth"), "--data", str(data), "--commit", "abc"]
    assert store_backbone.main([*flags, "--output", str(output)]) == 0

    stored = torch.load(output, weights_only=True)
    assert {value.dtype for value in stored["module"].values()} == {torch.float16}
    fresh = timm.create_model(
        "vit_tiny_patch16_224_alternating", img_size=32, all_frames=4, depth=1, lh_num_classes=3
    )
    report = models.load_pretrained(fresh, stored)
    assert {name.split(".")[0] for name in report.initialised} == {"lh_head", "rh_head"}
    weight = model.blocks[0].attn.qkv.weight
    assert torch.equal(fresh.blocks[0].attn.qkv.weight, weight.half().float())

    card = json.loads(output.with_suffix(".json").read_text())
    assert (
        card["training_hours"] == 2.0
        and card["steps"] == 12
        and card["commit"] == "abc"
        and card["data"]["seed"] == 7
    )
    listed = (data / "lh_v0" / "train_list_video.txt").read_bytes()
    assert card["list_sha256"] == {"lh_v0/train_list_video.txt": hashlib.sha256(listed).hexdigest()}


def test_backbone_of_a_missing_checkpoint_is_an_error(tmp_path, capsys):
    flags = ["--checkpoint", str(tmp_path / "none.pth"), "--data", str(tmp_path), "--commit", "abc"]
    assert store_backbone.main([*flags, "--output", "x.pth"]) == 1
    assert "none.pth" in capsys.readouterr().err


def test_pictures_of_the_docs_show_both_actions(tmp_path, full_run):
    for hand, labels in (("lh", (0, 1)), ("rh", (1, 0))):
        folder = tmp_path / f"{hand}_v0"
        write_list(folder / "train_list_video.txt", [(f"{i}.mp4", label) for i, label in enumerate(labels)])
        (folder / "mapping.txt").write_text("0 lift_box\n1 place_box\n")
    for number in range(2):
        write_video(tmp_path / "lh_v0" / "videos" / f"{number}.mp4", draw_recording(number))
    assert make_doc_figures.both_labels(tmp_path)["0.mp4"] == ("lift box", "place box")
    flags = ["--data", str(tmp_path), "--output", str(tmp_path / "pictures")]
    flags += ["--run", str(full_run), "--only", "sample_strip", "browse_dataset", "timeline"]
    assert make_doc_figures.main(flags) == 0
    picture = Image.open(tmp_path / "pictures" / "sample_strip.png")
    # The second recording shows no action that the first does not.
    assert picture.size == (6 * 176, 132 + 22)
    sheet = Image.open(tmp_path / "pictures" / "browse_dataset.png")
    assert sheet.mode == "P" and sheet.height > 8 * 96  # two views of two clips of two hands
    assert Image.open(tmp_path / "pictures" / "timeline.png").width == 1200
