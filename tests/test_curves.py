"""What TensorBoard gets: curves of both hands, time and memory, confusion matrices, hyper-parameters."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, STEPS, read_events
from PIL import Image
from tensorboardX.proto.api_pb2 import Status
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from engine_for_finetuning import ClipScores, Curves, confusion_matrix, draw_confusion, memory_gib


@pytest.fixture(scope="module")
def values(full_run):
    """{tag: {step: value}} of the finished run, values as TensorBoard stores them."""
    found = {}
    for event in read_events(full_run):
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value
    return found


def scalars(values, tag):
    return {step: value.simple_value for step, value in values[tag].items()}


def test_curves_are_what_log_txt_says(values, full_run):
    rows = [json.loads(line) for line in (full_run / "log.txt").read_text().splitlines()]
    # The epoch's own in log.txt, the last interval's in the curves.
    differing = {"epoch", "train_data_wait", "train_clips_per_second"}
    for step, row in zip((4, 8), rows, strict=True):
        for name in row.keys() - differing:
            group = next(g for g in ("train", "val_ema", "val") if name.startswith(f"{g}_"))
            tag = f"{group}/{name.removeprefix(f'{group}_')}"
            assert scalars(values, tag)[step] == pytest.approx(row[name], rel=1e-6), name
    assert {"train_lh_loss", "train_rh_loss"} < rows[1].keys()
    every_interval = ("lr", "weight_decay", "grad_norm", "data_wait", "clips_per_second", "host_memory_gib")
    for name in every_interval:
        assert list(values[f"train/{name}"]) == [2, 4, 6, 8]


def test_final_test_is_recorded_with_the_moving_average(values, full_run):
    metrics = json.loads((full_run / "metrics.json").read_text())
    for group, by_hand in (("test", metrics), ("test_ema", metrics["ema"])):
        assert scalars(values, f"{group}/mean_top1") == {STEPS: pytest.approx(by_hand["mean_top1"])}
        for hand in CLASSES:
            for name, expected in by_hand[hand].items():
                assert scalars(values, f"{group}/{hand}_{name}") == {STEPS: pytest.approx(expected)}


@pytest.mark.parametrize("hand", CLASSES)
def test_confusion_matrices_are_pictures_of_every_evaluation(values, hand):
    for group, steps in (("val", [4, 8]), ("val_ema", [4, 8]), ("test", [8]), ("test_ema", [8])):
        pictures = {step: value.image for step, value in values[f"{group}/{hand}_confusion"].items()}
        assert list(pictures) == steps
        for stored in pictures.values():
            picture = Image.open(io.BytesIO(stored.encoded_image_string))
            assert picture.size == (stored.width, stored.height) and picture.mode == "RGB"


def test_hyper_parameters_stand_in_the_format_of_their_plugin_with_final_metrics(values, full_run):
    def content(name):
        (value,) = values[f"_hparams_/{name}"].values()
        assert value.metadata.plugin_data.plugin_name == "hparams"
        return HParamsPluginData.FromString(value.metadata.plugin_data.content)

    flags = json.loads((full_run / "args.json").read_text())
    given = content("session_start_info").session_start_info.hparams
    assert given["lr"].number_value == flags["lr"] == 0.05
    assert given["opt"].string_value == "adamw"
    assert not [name for name in given if "data_path" in name or "data_root" in name]  # what, not where
    assert given["model_ema"].bool_value is True
    assert given["crop_scale"].string_value == "[0.08, 1.0]"
    assert not {"output_dir", "num_workers", "device", "resume", "eval", "dist_url"} & given.keys()
    experiment = content("experiment").experiment
    assert {info.name for info in experiment.hparam_infos} == given.keys()
    metrics = [info.name.tag for info in experiment.metric_infos]
    assert metrics[0] == "test/mean_top1" and len(metrics) == 7
    assert all(list(values[tag]) == [STEPS] for tag in metrics)
    assert content("session_end_info").session_end_info.status == Status.Value("STATUS_SUCCESS")


def test_evaluation_alone_records_nothing(run_main, full_run, tmp_path):
    checkpoint = full_run / "checkpoint-last.pth"
    assert run_main("--eval", "--validation", "--resume", checkpoint, "--output_dir", tmp_path).code == 0
    assert not [path for path in tmp_path.rglob("*") if "events" in path.name]


# --------------------------------------------------------------------------- confusion matrices


def clips_of(labels, predictions, classes):
    scores = np.eye(classes)[predictions]
    return ClipScores([str(i) for i in range(len(labels))], np.asarray(labels), scores)


@pytest.mark.parametrize("classes", [2, 8, 75])
def test_confusion_matrix_counts_every_clip_once(classes):
    rng = np.random.default_rng(classes)
    labels, predictions = rng.integers(0, classes, (2, 500))
    expected = np.zeros((classes, classes), int)
    for label, prediction in zip(labels, predictions, strict=True):
        expected[label, prediction] += 1
    assert np.array_equal(confusion_matrix(clips_of(labels, predictions, classes)), expected)


@pytest.mark.parametrize("classes", [3, 75, 202])
def test_picture_shows_shares_of_rows_and_rows_without_clips(classes):
    matrix = np.zeros((classes, classes), int)
    matrix[0, 1], matrix[1, 0], matrix[1, 2] = 5, 3, 1
    picture = draw_confusion(matrix)
    cell = max(4, 600 // classes)
    assert picture.dtype == np.uint8 and picture.shape == (classes * cell + 80,) * 2 + (3,)

    def colour(row, column):
        place = [40 + cell * i for i in (row, column)]
        (found,) = {tuple(c) for c in picture[place[0] :, place[1] :][:cell, :cell].reshape(-1, 3).tolist()}
        return found

    full, white, grey = (8, 48, 107), (255, 255, 255), (225, 225, 225)
    assert colour(0, 1) == full and colour(0, 0) == colour(1, 1) == white
    assert colour(1, 0) == pytest.approx(0.25 * np.array(white) + 0.75 * np.array(full), abs=0.51)
    assert {colour(2, column) for column in range(3)} == {grey}


def test_figures_are_in_the_file_at_once(tmp_path):
    curves = Curves(tmp_path, 0, purge=False)
    curves.add(3, {"train/lh_loss": 0.5})
    (event,) = [event for event in read_events(tmp_path.parent, tmp_path.name) if event.summary.value]
    assert (event.step, event.summary.value[0].simple_value) == (3, 0.5)


@pytest.mark.parametrize("classes", [8, 75, 202])
def test_picture_takes_little_room(tmp_path, classes):
    matrix = np.random.default_rng(0).integers(0, 9, (classes, classes))
    curves = Curves(tmp_path, 0, purge=False)
    curves.add_picture(1, "val/lh_confusion", draw_confusion(matrix))
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size < 200_000
    (event,) = [event for event in read_events(tmp_path.parent, tmp_path.name) if event.summary.value]
    stored = Image.open(io.BytesIO(event.summary.value[0].image.encoded_image_string))
    assert np.array_equal(np.asarray(stored), draw_confusion(matrix))


# --------------------------------------------------------------------------------------- memory


def test_host_memory_is_the_peak_that_the_system_knows():
    ballast = np.ones(40_000_000)
    memory = memory_gib(torch.device("cpu"))
    del ballast
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    assert memory == {"host_memory_gib": pytest.approx(peak / 2**20, rel=0.02)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_memory_is_recorded_beside_it():
    held = torch.ones(2**28, device="cuda")  # 1 GiB
    memory = memory_gib(held.device)
    assert memory.keys() == {"host_memory_gib", "gpu_memory_gib"}
    assert memory["gpu_memory_gib"] >= 1
