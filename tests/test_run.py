"""The command line end to end: training, files, resuming, evaluating, learning; in this process."""

import argparse
import csv
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import (
    CLASSES,
    FULL,
    MODEL_FLAGS,
    STEPS,
    TRAIN_CLIPS,
    VAL_CLIPS,
    assert_equal_states,
    assert_same_run,
    epochs_of,
    events_of,
    load,
    metrics_of,
    only_error,
    write_list,
)
from torch.nn.modules.module import register_module_forward_hook

import run_alternating_hand_finetuning as run
from engine_for_finetuning import merge_hand

HAND_METRICS = {"top1", "top5", "mean_class_acc", "top1_all", "top5_all", "clips", "unreadable"}
# ------------------------------------------------------------------------------------ files


def test_run_writes_all_its_files(full_run):
    files = {path.name for path in full_run.iterdir()}
    assert files == {
        *("args.json", "log.txt", "run.log", "tensorboard", "metrics.json", "ema"),
        *("0_lh.txt", "0_rh.txt", "predictions_lh.csv", "predictions_rh.csv", "environment.json"),
        *("checkpoint-0.pth", "checkpoint-1.pth", "checkpoint-last.pth"),
        *("checkpoint-step-3.pth", "checkpoint-step-6.pth"),
        *("checkpoint-best.pth", "checkpoint-best-lh.pth", "checkpoint-best-rh.pth"),
    }
    in_ema = {path.name for path in (full_run / "ema").iterdir()}
    assert in_ema == {"0_lh.txt", "0_rh.txt", "predictions_lh.csv", "predictions_rh.csv"}
    assert list((full_run / "tensorboard").glob("events.out.tfevents*"))


def test_metrics_have_the_documented_fields(full_run):
    metrics = metrics_of(full_run)
    assert metrics.keys() == {"lh", "rh", "mean_top1", "weights", "ema"}
    assert metrics["weights"] == "last"
    assert metrics["ema"].keys() == {"lh", "rh", "mean_top1"}
    for group in (metrics, metrics["ema"]):
        for hand, clips in VAL_CLIPS.items():
            assert group[hand].keys() == HAND_METRICS
            assert (group[hand]["clips"], group[hand]["unreadable"]) == (clips, 0)
            assert 0 <= group[hand]["top1"] <= group[hand]["top5"] == 100
        assert group["mean_top1"] == pytest.approx((group["lh"]["top1"] + group["rh"]["top1"]) / 2)


def test_predictions_name_each_clip_once_and_agree_with_the_accuracy(full_run, sample):
    for hand in CLASSES:
        with (full_run / f"predictions_{hand}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["clip"]: int(row["label"]) for row in rows} == dict(sample.val[hand])
        assert len(rows) == VAL_CLIPS[hand]
        right = [row["label"] == row["prediction"] for row in rows]
        assert 100 * np.mean(right) == pytest.approx(metrics_of(full_run)[hand]["top1"])
        assert all(1 / CLASSES[hand] <= float(row["probability"]) <= 1 for row in rows)


def test_results_have_a_row_for_each_view_of_each_clip(full_run, sample):
    for hand in CLASSES:
        rows = [line.split() for line in (full_run / f"0_{hand}.txt").read_text().splitlines()[1:]]
        views = {(row[0], int(row[-2]), int(row[-1])) for row in rows}
        clips = [name for name, _ in sample.val[hand]]
        assert views == {(name, chunk, split) for name in clips for chunk in range(2) for split in range(3)}
        assert len(rows) == len(views)
        assert all(len(row) == 1 + CLASSES[hand] + 3 for row in rows)


def test_result_files_merge_to_the_metrics(full_run):
    for folder, metrics in (
        (full_run, metrics_of(full_run)),
        (full_run / "ema", metrics_of(full_run)["ema"]),
    ):
        for hand in CLASSES:
            expected = metrics[hand]["top1"], metrics[hand]["top5"]
            assert merge_hand(folder, 1, hand) == pytest.approx(expected, rel=1e-12)


def test_log_has_each_epoch_once_with_both_hands(full_run):
    rows = epochs_of(full_run)
    assert [row["epoch"] for row in rows] == [0, 1]
    for name in ("train_lh_loss", "train_rh_loss", "val_lh_top1", "val_rh_loss", "val_ema_rh_top1"):
        assert all(np.isfinite(row[name]) for row in rows)
    # Mixed labels have no right answer, so that no training accuracy is claimed.
    assert not [name for row in rows for name in row if name.startswith("train") and "top1" in name]


def test_training_accuracy_is_logged_where_labels_are_not_mixed(run_main, tiny_flags, tmp_path):
    run_main(*tiny_flags, "--mixup", 0, "--cutmix", 0, "--epochs", 1, "--output_dir", tmp_path)
    assert 0 <= epochs_of(tmp_path)[0]["train_lh_top1"] <= 100


def test_tensorboard_events_hold_the_training_loss(full_run):
    tags = {tag for _, tag in events_of(full_run)}
    assert {"train/lh_loss", "train/lr", "val/rh_top1", "val_ema/lh_top1"} <= tags


@pytest.mark.parametrize("name", ["checkpoint-step-3.pth", "checkpoint-0.pth"])
def test_tensorboard_has_each_step_once_after_a_resume(run_main, tiny_flags, full_run, tmp_path, name):
    shutil.copyfile(full_run / name, tmp_path / name)
    shutil.copytree(full_run / "tensorboard", tmp_path / "tensorboard")
    assert run_main(*tiny_flags, *FULL, "--output_dir", tmp_path).code == 0
    assert sorted(events_of(tmp_path)) == sorted(events_of(full_run))
    assert len(set(events_of(tmp_path))) == len(events_of(tmp_path))


def test_checkpoint_is_plain_and_knows_its_epoch(full_run):
    for name, epoch, step in (("0", 0, 4), ("1", 1, 8), ("last", 1, 8), ("step-3", 0, 3), ("step-6", 1, 6)):
        checkpoint = load(full_run / f"checkpoint-{name}.pth")
        assert checkpoint.keys() == {
            *("model", "model_ema", "optimizer", "scaler", "epoch", "args", "class_names", "alternating")
        }
        assert (checkpoint["epoch"], checkpoint["alternating"]["step"]) == (epoch, step)
        assert type(checkpoint["args"]) is dict
        for hand, classes in CLASSES.items():
            assert checkpoint["model"][f"{hand}_head.weight"].shape[0] == classes


def test_best_checkpoints_are_those_of_the_best_epochs(full_run):
    rows = epochs_of(full_run)
    scores = {hand: [row[f"val_{hand}_top1"] for row in rows] for hand in CLASSES}
    for name, series in {
        "best-lh": scores["lh"],
        "best-rh": scores["rh"],
        "best": np.mean(list(scores.values()), axis=0),
    }.items():
        checkpoint = load(full_run / f"checkpoint-{name}.pth")
        assert checkpoint["epoch"] == int(np.argmax(series))  # the first of equal ones
        assert checkpoint["alternating"]["best"][name] == max(series)


def test_arguments_are_saved_as_they_were_resolved(full_run):
    saved = json.loads((full_run / "args.json").read_text())
    assert (saved["lh_num_classes"], saved["rh_num_classes"]) == (CLASSES["lh"], CLASSES["rh"])
    assert saved["lr"] == 0.05


# --------------------------------------------------------------------------------- evaluating


def test_eval_of_the_last_checkpoint_repeats_the_run_s_metrics(run_main, full_run, tmp_path):
    result = run_main("--eval", "--resume", full_run / "checkpoint-last.pth", "--output_dir", tmp_path)
    assert result.code == 0, result.output
    assert metrics_of(tmp_path) == metrics_of(full_run)
    for name in ("0_lh.txt", "0_rh.txt", "predictions_rh.csv", "ema/0_lh.txt"):
        assert (tmp_path / name).read_bytes() == (full_run / name).read_bytes()
    assert not list(tmp_path.glob("checkpoint*"))


def test_eval_without_output_writes_beside_the_checkpoint(run_main, full_run, tmp_path):
    shutil.copy(full_run / "checkpoint-last.pth", tmp_path)
    assert run_main("--eval", "--resume", tmp_path / "checkpoint-last.pth").code == 0
    assert metrics_of(tmp_path) == metrics_of(full_run)


def test_eval_flags_win_over_the_checkpoint_s(run_main, full_run, tmp_path):
    flags = ("--resume", full_run / "checkpoint-last.pth", "--output_dir", tmp_path)
    assert run_main("--eval", *flags, "--test_num_segment", 1, "--test_num_crop", 1).code == 0
    rows = (tmp_path / "0_lh.txt").read_text().splitlines()[1:]
    assert [row.split()[-2:] for row in rows] == [["0", "0"]] * VAL_CLIPS["lh"]


def test_eval_finds_the_newest_checkpoint_of_a_folder(run_main, full_run, tiny_flags, tmp_path):
    for name in ("checkpoint-0.pth", "checkpoint-last.pth"):
        shutil.copyfile(full_run / name, tmp_path / name)
    result = run_main("--eval", "--output_dir", tmp_path)
    assert result.code == 0, result.output
    assert metrics_of(tmp_path) == metrics_of(full_run)


def test_validation_alone_repeats_the_epoch_s_figures(run_main, full_run, tmp_path):
    result = run_main("--validation", "--resume", full_run / "checkpoint-last.pth", "--output_dir", tmp_path)
    assert result.code == 0, result.output
    validation = json.loads((tmp_path / "validation.json").read_text())
    row = epochs_of(full_run)[-1]
    for weights, group in (("raw", "val"), ("ema", "val_ema")):
        for hand in CLASSES:
            figures = {name: row[f"{group}_{hand}_{name}"] for name in validation[weights][hand]}
            assert validation[weights][hand] == figures
    assert not (tmp_path / "metrics.json").exists()


def test_eval_needs_no_training_lists(run_main, full_run, sample, tmp_path):
    for hand in CLASSES:
        rows = [(sample.path("lh") / "videos" / name, label) for name, label in sample.val[hand]]
        write_list(tmp_path / hand / "val_list_video.txt", rows)
    paths = ("--lh_data_path", tmp_path / "lh", "--rh_data_path", tmp_path / "rh")
    flags = ("--resume", full_run / "checkpoint-last.pth", "--output_dir", tmp_path / "out")
    result = run_main("--eval", *flags, *paths)
    assert result.code == 0, result.output
    assert metrics_of(tmp_path / "out") == metrics_of(full_run)


def test_test_list_replaces_the_validation_list_in_the_test(run_main, full_run, sample, tmp_path):
    for hand in CLASSES:
        (tmp_path / hand).mkdir()
        (tmp_path / hand / "videos").symlink_to(sample.path("lh") / "videos")
        write_list(tmp_path / hand / "test_list_video.txt", sample.val[hand][:2])
        write_list(tmp_path / hand / "val_list_video.txt", sample.val[hand])
    paths = ("--lh_data_path", tmp_path / "lh", "--rh_data_path", tmp_path / "rh")
    flags = ("--resume", full_run / "checkpoint-last.pth", "--output_dir", tmp_path)
    assert run_main("--eval", "--validation", *flags, *paths).code == 0
    assert metrics_of(tmp_path)["lh"]["clips"] == 2
    validation = json.loads((tmp_path / "validation.json").read_text())
    assert validation["raw"]["lh"]["clips"] == VAL_CLIPS["lh"]


def test_clips_of_equal_base_names_are_counted_apart(run_main, full_run, sample, tmp_path):
    names = ["s1/cam.1.mp4", "s2/cam.1.mp4", "s2/cam.2.mp4"]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(sample.path("lh") / "videos" / f"r{number:02}.mp4")
    write_list(tmp_path / "val_list_video.txt", [(name, number) for number, name in enumerate(names)])
    flags = ("--resume", full_run / "checkpoint-last.pth", "--output_dir", tmp_path / "out")
    result = run_main("--eval", *flags, "--lh_data_path", tmp_path)
    assert result.code == 0, result.output
    assert metrics_of(tmp_path / "out")["lh"]["clips"] == 3
    with (tmp_path / "out" / "predictions_lh.csv").open(newline="") as file:
        assert [(row["clip"], row["label"]) for row in csv.DictReader(file)] == [
            *zip(names, "012", strict=True)
        ]


@pytest.mark.parametrize("weights", ["best", "ema"])
def test_other_weights_are_tested_and_repeated_by_eval(run_main, tiny_flags, tmp_path, weights):
    ema = ("--model_ema", "--model_ema_decay", "0.5")
    result = run_main(*tiny_flags, *ema, "--test_weights", weights, "--output_dir", tmp_path / "run")
    assert result.code == 0, result.output
    metrics = metrics_of(tmp_path / "run")
    assert metrics["weights"] == weights
    name = {"best": "checkpoint-best.pth", "ema": "checkpoint-last.pth"}[weights]
    flags = ("--resume", tmp_path / "run" / name, "--output_dir", tmp_path / "again")
    result = run_main("--eval", *flags)
    assert result.code == 0, result.output
    assert metrics_of(tmp_path / "again") == metrics
    if weights == "ema":
        assert metrics["lh"] == metrics["ema"]["lh"]
        raw = (tmp_path / "run" / "raw" / "0_lh.txt").read_text()
        assert raw != (tmp_path / "run" / "0_lh.txt").read_text()


@pytest.fixture(scope="module")
def scored_run(run_main, tiny_flags, tmp_path_factory):
    """The folder of a run that tests its best weights; its epochs' validations are given scores."""
    folder = tmp_path_factory.mktemp("scored")
    scores = iter([{"lh": 40, "rh": 60}, {"lh": 80, "rh": 10}, {"lh": 50, "rh": 50}, {"lh": 30, "rh": 70}])
    others = {"top5": 100.0, "mean_class_acc": 0.0, "clips": 1, "unreadable": 0}

    def validation(*_):
        return {"raw": {hand: {"top1": float(top1), **others} for hand, top1 in next(scores).items()}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "validation_one_epoch_alternating", validation)
        flags = ("--epochs", 4, "--test_weights", "best", "--output_dir", folder)
        result = run_main(*tiny_flags, *flags)
    assert result.code == 0, result.output
    return folder


def test_best_is_the_best_mean_of_both_hands_beside_the_best_of_each(scored_run):
    # Epoch 1 improves the left hand and epoch 3 the right one, but their means do not.
    epochs = {name: load(scored_run / f"checkpoint-{name}.pth")["epoch"] for name in ("best", "last")}
    assert epochs == {"best": 0, "last": 3}
    for name, epoch, score in (("best", 0, 50), ("best-lh", 1, 80), ("best-rh", 3, 70)):
        checkpoint = load(scored_run / f"checkpoint-{name}.pth")
        assert (checkpoint["epoch"], checkpoint["alternating"]["best"][name]) == (epoch, score)


def test_best_weights_are_tested_where_they_are_not_the_last(run_main, scored_run, tmp_path):
    for name, is_tested in (("best", True), ("last", False)):
        flags = ("--resume", scored_run / f"checkpoint-{name}.pth", "--output_dir", tmp_path / name)
        assert run_main("--eval", *flags).code == 0
        same = [
            (tmp_path / name / f"0_{hand}.txt").read_text() == (scored_run / f"0_{hand}.txt").read_text()
            for hand in CLASSES
        ]
        assert same == [is_tested] * 2


# ------------------------------------------------------------------------------- turns and order


@pytest.fixture(scope="module")
def watch(run_main, tiny_flags, tmp_path_factory):
    """Makes a run of epochs of four steps; its folder, and (step, hand, names) of each micro batch."""

    def call(*flags):
        folder, seen = tmp_path_factory.mktemp("watched"), []

        class Watched(run.AlternatingTrainer):
            def _next_batch(self, step, hand):
                batch = super()._next_batch(step, hand)
                seen.append((step, batch.hand, batch.names))
                return batch

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "AlternatingTrainer", Watched)
            quick = ("--disable_eval_during_finetuning", "--no_save_ckpt", "--output_dir", folder)
            result = run_main(*tiny_flags, *quick, "--epochs", 4, *flags)
        assert result.code == 0, result.output
        return folder, seen

    return call


@pytest.fixture(scope="module")
def watched(watch, sample):
    """A run whose right list is the longer one, with turns of five steps."""
    swapped = ("--lh_data_path", sample.path("rh"), "--rh_data_path", sample.path("lh"))
    return watch(*swapped, "--alternation_steps", 5)


def test_turns_run_on_over_epochs_and_change_between_steps_alone(watched):
    _, seen = watched
    turns = ["lh"] * 5 + ["rh"] * 5 + ["lh"] * 5 + ["rh"]
    assert [(step, hand) for step, hand, _ in seen] == [
        (step, hand) for step, hand in enumerate(turns) for _ in range(2)
    ]


def test_loop_and_rates_follow_the_longer_list_whichever_hand_has_it(watched):
    folder, seen = watched
    assert [step for step, *_ in seen] == [
        step for step in range(4 * 4) for _ in range(2)
    ]  # 16 clips, 4 a step
    highest, lowest = 0.05 * 4 / 256, 1e-6 * 4 / 256
    steps_fallen = [0, 3, 7, 11]  # after the warm-up, at each epoch's last step
    expected = [lowest + (highest - lowest) * (1 + np.cos(np.pi * n / 12)) / 2 for n in steps_fallen]
    assert [row["train_lr"] for row in epochs_of(folder)] == pytest.approx(expected, rel=1e-9)


def test_each_hand_walks_its_whole_list_over_epoch_borders(watched, sample):
    _, seen = watched
    for hand, other, passes in (("lh", "rh", 3), ("rh", "lh", 1)):
        clips = sorted(name for name, _ in sample.train[other])  # the lists are swapped
        walked = [name for _, whose, names in seen if whose == hand for name in names]
        for number in range(passes):
            assert sorted(walked[number * len(clips) : (number + 1) * len(clips)]) == clips


def test_order_of_clips_differs_between_passes_hands_and_seeds(watch, sample):
    orders = []
    for seed in (0, 1):
        # Both hands have the same list; an epoch is a turn and a pass.
        flags = ("--rh_data_path", sample.path("lh"), "--alternation_steps", 4, "--seed", seed)
        names = [name for _, _, names in watch(*flags)[1] for name in names]
        orders += [tuple(names[start : start + 16]) for start in range(0, 64, 16)]
    assert {tuple(sorted(order)) for order in orders} == {tuple(name for name, _ in sample.train["lh"])}
    assert len(set(orders)) == 8


# ------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_training_validation_and_test_compute_in_one_precision(run_main, tiny_flags, tmp_path, dtype):
    seen = []

    def watch_linear(module, _, output):
        if isinstance(module, torch.nn.Linear):
            seen.append((module.training, output.dtype))

    hook = register_module_forward_hook(watch_linear)
    try:
        result = run_main(*tiny_flags, "--epochs", 1, "--amp_dtype", dtype, "--output_dir", tmp_path)
    finally:
        hook.remove()
    assert result.code == 0, result.output
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    assert set(seen) == {(True, kind), (False, kind)}


# ---------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("name", ["checkpoint-0.pth", "checkpoint-step-3.pth", "checkpoint-step-6.pth"])
def test_resumed_run_equals_the_uninterrupted_one(run_main, tiny_flags, full_run, tmp_path, name):
    # As after a stop: the checkpoint, and a log that may be ahead of it.
    shutil.copyfile(full_run / name, tmp_path / name)
    shutil.copyfile(full_run / "log.txt", tmp_path / "log.txt")
    result = run_main(*tiny_flags, *FULL, "--output_dir", tmp_path)
    assert result.code == 0, result.output
    assert f"resumed from {tmp_path / name}" in result.output
    assert_same_run(full_run, tmp_path)


def test_resumed_run_follows_its_own_flags_not_the_file_s(run_main, tiny_flags, full_run, tmp_path):
    shutil.copyfile(full_run / "checkpoint-0.pth", tmp_path / "checkpoint-0.pth")
    flags = (*FULL, "--layer_decay", "0.5", "--weight_decay", "0.3", "--output_dir", tmp_path)
    assert run_main(*tiny_flags, *flags).code == 0
    groups = load(tmp_path / "checkpoint-last.pth")["optimizer"]["param_groups"]
    assert groups[0]["lr_scale"] == 0.5**3  # two blocks
    assert {group["weight_decay"] for group in groups} == {0.0, 0.3}


def test_workers_and_step_checkpoints_change_nothing(run_main, tiny_flags, full_run, tmp_path):
    flags = ("--num_workers", 0, "--save_ckpt_steps", 0, "--output_dir", tmp_path)
    assert run_main(*tiny_flags, *FULL, *flags).code == 0
    a, b = (load(folder / "checkpoint-last.pth")["model"] for folder in (full_run, tmp_path))
    assert_equal_states(a, b)
    assert epochs_of(tmp_path) == epochs_of(full_run)


def test_seed_changes_the_run(run_main, tiny_flags, full_run, tmp_path):
    assert run_main(*tiny_flags, *FULL, "--seed", 1, "--output_dir", tmp_path).code == 0
    a, b = (load(folder / "checkpoint-last.pth")["model"] for folder in (full_run, tmp_path))
    assert not torch.equal(a["lh_head.weight"], b["lh_head.weight"])


def test_finished_run_is_only_tested_again(run_main, tiny_flags, full_run, tmp_path):
    for name in ("checkpoint-last.pth", "log.txt"):
        shutil.copyfile(full_run / name, tmp_path / name)
    assert run_main(*tiny_flags, *FULL, "--output_dir", tmp_path).code == 0
    assert metrics_of(tmp_path) == metrics_of(full_run)
    assert epochs_of(tmp_path) == epochs_of(full_run)


@pytest.mark.parametrize("is_there", [True, False])
def test_best_score_is_remembered_over_a_resume_with_its_file(
    run_main, tiny_flags, full_run, tmp_path, is_there
):
    checkpoint = load(full_run / "checkpoint-0.pth")
    checkpoint["alternating"]["best"] = {"best": 101.0, "best-lh": 101.0, "best-rh": 101.0}
    torch.save(checkpoint, tmp_path / "checkpoint-0.pth")
    if is_there:
        torch.save(checkpoint, tmp_path / "checkpoint-best.pth")
    flags = (*FULL, "--test_weights", "best", "--output_dir", tmp_path)
    result = run_main(*tiny_flags, *flags)
    assert result.code == 0, result.output
    best = load(tmp_path / "checkpoint-best.pth")["alternating"]["best"]
    assert (best["best"] == 101.0) == is_there
    assert best["best-lh"] <= 100 or is_there


def test_restart_goes_on_from_the_run_that_wrote_last(run_main, tiny_flags, full_run, tmp_path):
    # An older, longer run's files lie in the folder; the run that started anew there made one epoch.
    for name in ("checkpoint-1.pth", "checkpoint-last.pth"):
        shutil.copyfile(full_run / name, tmp_path / name)
    quick = ("--epochs", 1, "--warmup_epochs", 0, "--output_dir", tmp_path)
    assert run_main(*tiny_flags, *quick, "--no_auto_resume", "--save_ckpt_freq", 9).code == 0
    result = run_main(*tiny_flags, *quick)
    assert f"resumed from {tmp_path / 'checkpoint-last.pth'} at step 4" in result.output


def test_best_of_a_time_without_moving_average_is_tested(run_main, tiny_flags, tmp_path):
    flags = ("--test_weights", "best", "--output_dir", tmp_path)
    assert run_main(*tiny_flags, *flags).code == 0
    best = load(tmp_path / "checkpoint-last.pth")["alternating"]["best"]
    last = load(tmp_path / "checkpoint-last.pth")
    last["alternating"]["best"] = dict.fromkeys(best, 101.0)
    torch.save(last, tmp_path / "checkpoint-last.pth")
    result = run_main(*tiny_flags, *flags, "--epochs", 3, "--model_ema")
    assert result.code == 0, result.output
    metrics = metrics_of(tmp_path)
    assert (metrics["weights"], metrics["ema"]) == ("best", None)


def test_run_with_another_batch_goes_on_after_the_epochs_made(run_main, tiny_flags, full_run, tmp_path):
    shutil.copyfile(full_run / "checkpoint-0.pth", tmp_path / "checkpoint-0.pth")
    flags = (*FULL, "--epochs", 3, "--batch_size", 4, "--output_dir", tmp_path)
    result = run_main(*tiny_flags, *flags)
    assert result.code == 0, result.output
    assert "going on after 1 whole epochs" in result.output
    assert [row["epoch"] for row in epochs_of(tmp_path)] == [1, 2]
    assert load(tmp_path / "checkpoint-last.pth")["alternating"]["step"] == 6  # epochs of 2 steps


def test_step_checkpoint_never_skips_an_epoch_s_validation(run_main, tiny_flags, tmp_path):
    # Four steps an epoch: a file of step 4 would be written before epoch 0 is validated and logged.
    assert run_main(*tiny_flags, "--save_ckpt_steps", 2, "--output_dir", tmp_path).code == 0
    steps = sorted(path.name for path in tmp_path.glob("checkpoint-step-*"))
    assert steps == ["checkpoint-step-2.pth", "checkpoint-step-6.pth"]


def test_best_checkpoint_can_be_resumed(run_main, tiny_flags, full_run, tmp_path):
    best = full_run / "checkpoint-best.pth"
    result = run_main(*tiny_flags, *FULL, "--resume", best, "--output_dir", tmp_path)
    assert result.code == 0, result.output
    step = load(best)["alternating"]["step"]
    assert f"resumed from {best} at step {step}" in result.output
    assert metrics_of(tmp_path) == metrics_of(full_run)


def test_no_auto_resume_starts_anew(run_main, tiny_flags, full_run, tmp_path):
    shutil.copyfile(full_run / "checkpoint-last.pth", tmp_path / "checkpoint-last.pth")
    shutil.copyfile(full_run / "log.txt", tmp_path / "log.txt")
    result = run_main(*tiny_flags, *FULL, "--no_auto_resume", "--output_dir", tmp_path)
    assert "resumed" not in result.output
    assert_same_run(full_run, tmp_path)


def published_file(ours, path, epoch):
    """What ADH-ViT's trainer would have written: a namespace, numpy numbers, no state of this project."""
    checkpoint = load(ours)
    for group in checkpoint["optimizer"]["param_groups"]:
        group |= {"fused": None, "lr": np.float64(group["lr"])}
    args = argparse.Namespace(model="vit_base_patch16_224_alternating", lr=np.float64(1e-3), epochs=50)
    kept = {name: checkpoint[name] for name in ("model", "optimizer")}
    torch.save(kept | {"epoch": epoch, "scaler": {}, "args": args}, path)
    return path


def test_file_of_the_published_trainer_is_resumed_after_its_epoch(run_main, tiny_flags, full_run, tmp_path):
    path = published_file(full_run / "checkpoint-0.pth", tmp_path / "published.pth", 0)
    result = run_main(*tiny_flags, *FULL, "--resume", path, "--output_dir", tmp_path / "run")
    assert result.code == 0, result.output
    assert [row["epoch"] for row in epochs_of(tmp_path / "run")] == [1]
    a, b = (load(folder / "checkpoint-last.pth")["model"] for folder in (full_run, tmp_path / "run"))
    assert_equal_states(a, b)


def test_best_file_of_the_published_trainer_starts_where_it_is_told(run_main, tiny_flags, full_run, tmp_path):
    path = published_file(full_run / "checkpoint-0.pth", tmp_path / "published.pth", "best")
    flags = ("--resume", path, "--start_epoch", 1, "--output_dir", tmp_path / "run")
    result = run_main(*tiny_flags, *FULL, *flags)
    assert result.code == 0, result.output
    assert f"{path} does not say its epoch" in result.output
    assert [row["epoch"] for row in epochs_of(tmp_path / "run")] == [1]


@pytest.mark.parametrize("epoch", [1, "best"])
def test_file_of_the_published_trainer_is_evaluated(run_main, tiny_flags, full_run, tmp_path, epoch):
    # It does not say this project's flags: they are given, and the numbers are those of the weights.
    path = published_file(full_run / "checkpoint-last.pth", tmp_path / "published.pth", epoch)
    flags = ("--eval", "--resume", path, "--depth", 2, "--output_dir", tmp_path / "out")
    result = run_main(*tiny_flags, *flags)
    assert result.code == 0, result.output
    metrics, expected = metrics_of(tmp_path / "out"), metrics_of(full_run)
    assert {hand: metrics[hand] for hand in CLASSES} == {hand: expected[hand] for hand in CLASSES}


# ------------------------------------------------------------------------------ non-finite losses


def test_non_finite_loss_leaves_what_was_before_it(run_main, tiny_flags, full_run, sample, tmp_path):
    shutil.copyfile(full_run / "checkpoint-0.pth", tmp_path / "checkpoint-last.pth")
    before = (tmp_path / "checkpoint-last.pth").read_bytes()
    flags = ("--lr", 1e30, "--log_interval", 4, "--output_dir", tmp_path)
    result = run_main(*tiny_flags, *FULL, "--save_ckpt_steps", 0, *flags)
    assert result.code == 1
    line = only_error(result.output)
    step, hand, rate = re.search(r"at step (\d+) \(hand (..), learning rate (.*?)\)", line).groups()
    assert 4 <= int(step) < STEPS
    assert hand == ("lh", "rh")[int(step) // 3 % 2]
    assert float(rate) > 1e20
    assert 3 <= len([name for name in sample.labels[hand] if name in line]) <= 4  # of a step's four clips
    assert (tmp_path / "checkpoint-last.pth").read_bytes() == before
    assert [path.name for path in tmp_path.glob("*.pth*")] == ["checkpoint-last.pth"]
    # With a rate that works it goes on as if nothing had been.
    shutil.copyfile(full_run / "log.txt", tmp_path / "log.txt")
    assert run_main(*tiny_flags, *FULL, "--output_dir", tmp_path).code == 0
    assert_same_run(full_run, tmp_path)


# ---------------------------------------------------------------------------- hands and classes


def test_one_stream_trains_and_reports_the_left_hand_alone(run_main, sample, tiny_flags, tmp_path):
    flags = [flag for flag in tiny_flags if flag not in ("--rh_data_path", str(sample.path("rh")))]
    result = run_main(*flags, "--one_stream", "--output_dir", tmp_path)
    assert result.code == 0, result.output
    metrics = metrics_of(tmp_path)
    assert metrics.keys() == {"lh", "mean_top1", "weights", "ema"}
    assert metrics["ema"] is None
    assert metrics["mean_top1"] == metrics["lh"]["top1"]
    assert not list(tmp_path.glob("*rh*"))
    assert "rh" not in result.output
    assert not [name for name in load(tmp_path / "checkpoint-last.pth")["model"] if "rh" in name]
    again = ("--resume", tmp_path / "checkpoint-last.pth", "--output_dir", tmp_path / "again")
    assert run_main("--eval", *again).code == 0
    assert metrics_of(tmp_path / "again") == metrics


def test_unreadable_clips_are_reported_and_never_replaced_in_the_test(run_main, sample, tiny_flags, tmp_path):
    for hand in CLASSES:
        folder = tmp_path / f"{hand}_v0"
        rows = {
            split: [(sample.path("lh") / "videos" / name, label) for name, label in rows[hand]]
            for split, rows in (("train", sample.train), ("val", sample.val))
        }
        for split in rows:
            rows[split][1] = (folder / "broken one.mp4", 1)
            write_list(folder / f"{split}_list_video.txt", rows[split])
        (folder / "broken one.mp4").write_bytes(b"no video")
    paths = ("--lh_data_path", tmp_path / "lh_v0", "--rh_data_path", tmp_path / "rh_v0")
    result = run_main(*tiny_flags, *paths, "--max_bad_clips", 0.2, "--output_dir", tmp_path / "run")
    assert result.code == 0, result.output
    for hand, clips in VAL_CLIPS.items():
        metrics = metrics_of(tmp_path / "run")[hand]
        assert (metrics["clips"], metrics["unreadable"]) == (clips, 1)
        assert metrics["top1_all"] == pytest.approx(metrics["top1"] * (clips - 1) / clips)
        assert "broken one" not in (tmp_path / "run" / f"0_{hand}.txt").read_text()
    for name in ("bad_clips_lh.txt", "unreadable_lh.txt"):
        (line,) = (tmp_path / "run" / name).read_text().splitlines()
        assert line.startswith(f"{tmp_path / 'lh_v0' / 'broken one.mp4'}\t")
        assert "Invalid data" in line


def test_clip_whose_name_is_no_unicode_is_tested(run_main, full_run, sample, tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    (tmp_path / name).symlink_to(sample.path("lh") / "videos" / "r00.mp4")
    (tmp_path / "val_list_video.txt").write_bytes(b"caf\xe9.mp4 1\n")
    flags = ("--resume", full_run / "checkpoint-last.pth", "--output_dir", tmp_path / "out")
    result = run_main("--eval", *flags, "--lh_data_path", tmp_path)
    assert result.code == 0, result.output
    assert metrics_of(tmp_path / "out")["lh"]["clips"] == 1
    assert b"caf\xe9.mp4 [" in (tmp_path / "out" / "0_lh.txt").read_bytes()


# ------------------------------------------------------------------------------------- learning


@pytest.fixture(scope="module")
def overfitted(run_main, sample, tmp_path_factory):
    """A run that saw 16 recordings with balanced labels, independent between the hands."""
    folder = tmp_path_factory.mktemp("overfit")
    names = list(sample.labels["lh"])[: TRAIN_CLIPS["lh"]]
    labels = {"lh": [i % 4 for i in range(16)], "rh": [i // 4 for i in range(16)]}
    for hand, of_hand in labels.items():
        for split in ("train", "val"):
            write_list(folder / hand / f"{split}_list_video.txt", zip(names, of_hand, strict=True))
    result = run_main(
        *("--lh_data_path", folder / "lh", "--lh_data_root", sample.path("lh")),
        *("--rh_data_path", folder / "rh", "--rh_data_root", sample.path("rh")),
        *MODEL_FLAGS,
        *("--data_set", "CUSTOM", "--num_workers", 0, "--device", "cpu", "--short_side_size", 32),
        *("--batch_size", 8, "--num_sample", 1, "--epochs", 200, "--alternation_steps", 5),
        *("--lr", 0.06, "--layer_decay", 1, "--weight_decay", 0, "--drop_path", 0, "--init_scale", 1),
        *("--mixup", 0, "--cutmix", 0, "--smoothing", 0, "--reprob", 0, "--aa", "none"),
        *("--disable_eval_during_finetuning", "--test_num_segment", 2, "--test_num_crop", 3),
        *("--log_interval", 100, "--output_dir", folder / "run"),
    )
    assert result.code == 0, result.output
    return folder


def test_tiny_model_overfits_both_hands(overfitted):
    metrics = metrics_of(overfitted / "run")
    assert (metrics["lh"]["top1"], metrics["rh"]["top1"]) == (100, 100)


def test_loss_falls_for_both_hands(overfitted):
    for hand in CLASSES:
        losses = [row.get(f"train_{hand}_loss") for row in epochs_of(overfitted / "run")]
        losses = [loss for loss in losses if loss is not None]
        assert np.mean(losses[:5]) > 1.0
        assert np.mean(losses[-5:]) < 0.4 * np.mean(losses[:5])


def test_each_head_reads_its_own_hand(run_main, overfitted, tmp_path):
    # Each head faces the labels of the other hand; a quarter of them agree by design.
    swapped = ("--lh_data_path", overfitted / "rh", "--rh_data_path", overfitted / "lh")
    flags = ("--resume", overfitted / "run" / "checkpoint-last.pth", "--output_dir", tmp_path)
    assert run_main("--eval", *flags, *swapped).code == 0
    metrics = metrics_of(tmp_path)
    assert (metrics["lh"]["top1"], metrics["rh"]["top1"]) == (25, 25)


# ---------------------------------------------------------------------------------- --compile


def assert_compiled_run_matches(run_main, tiny_flags, tmp_path):
    weights = []
    for name, flags in (("plain", ()), ("compiled", ("--compile",))):
        result = run_main(*tiny_flags, *flags, "--output_dir", tmp_path / name)
        assert result.code == 0, result.output
        weights.append(load(tmp_path / name / "checkpoint-last.pth")["model"])
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_compiled_training_makes_the_same_weights(run_main, tiny_flags, tmp_path, monkeypatch):
    # The graphs are captured as they are for users; only code generation, a minute long, is left out.
    compile_model, compiled = torch.compile, []

    def without_code_generation(model):
        compiled.append(model)
        return compile_model(model, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", without_code_generation)
    assert_compiled_run_matches(run_main, tiny_flags, tmp_path)
    assert len(compiled) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="code generation for CPUs needs g++")
def test_generated_code_makes_the_same_weights(run_main, tiny_flags, tmp_path):
    assert_compiled_run_matches(run_main, tiny_flags, tmp_path)
