"""The report of a run: what it counts, what it shows, and what it does where something is missing."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, ROOT, VAL_CLIPS
from PIL import Image
from report_runs import HANDS, Made, labels_of, scores_of, step_loss, write_run, write_test
from scipy.special import softmax

import run_alternating_hand_finetuning as run
from engine_for_alternating_finetuning import Alternation
from engine_for_finetuning import Curves
from scripts.tools.report import __main__ as report
from scripts.tools.report import statistics
from scripts.tools.report.curves import read_curves, steps_per_epoch, thinned, turns_between
from scripts.tools.report.matrix import draw_matrix
from scripts.tools.report.page import duration, text
from scripts.tools.report.run_data import read_run
from scripts.tools.report.run_figures import changes_over_rest, loss_spans

# ------------------------------------------------------------------------------------ statistics


@pytest.fixture(scope="module")
def scored():
    """Probabilities of 300 clips of six classes, of which the last has none, and their labels."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 5, 300)
    logits = rng.normal(size=(300, 6))
    logits[np.arange(300), labels] += 1.5
    return softmax(logits, axis=1), labels


def test_confusion_counts_each_clip_once(scored):
    scores, labels = scored
    predicted = scores.argmax(1)
    matrix = statistics.confusion_matrix(labels, predicted, 6)
    by_hand = [[sum((labels == a) & (predicted == b)) for b in range(6)] for a in range(6)]
    assert matrix.tolist() == by_hand


def test_class_rows_and_pairs_agree_with_brute_force(scored):
    scores, labels = scored
    predicted = scores.argmax(1)
    matrix = statistics.confusion_matrix(labels, predicted, 6)
    rows = {row.label: row for row in statistics.class_rows(matrix)}
    for label, row in rows.items():
        mine, taken = labels == label, predicted == label
        assert (row.support, row.predicted) == (mine.sum(), taken.sum())
        assert row.accuracy == (None if not mine.any() else (predicted[mine] == label).mean())
        assert row.precision == (None if not taken.any() else (labels[taken] == label).mean())
    pairs = {(a, b): int(sum((labels == a) & (predicted == b))) for a in range(6) for b in range(6) if a != b}
    found = statistics.confused_pairs(matrix, 4)
    assert [pair.clips for pair in found] == sorted(pairs.values(), reverse=True)[:4]
    for pair in found:
        assert pair.clips == pairs[pair.label, pair.predicted]
        assert pair.reverse == pairs[pair.predicted, pair.label]


def test_classes_that_nobody_saw_are_left_out():
    matrix = np.zeros((4, 4), int)
    matrix[2, 2], matrix[1, 3], matrix[1, 1] = 3, 1, 1
    assert statistics.by_support(matrix).tolist() == [2, 1, 3]
    rows = {row.label: row for row in statistics.class_rows(matrix)}
    assert set(rows) == {1, 2, 3}
    assert rows[3] == (3, 0, 1, None, 0.0, None, 0)
    assert rows[1].confused_with == 3 and rows[2].confused_with is None


def test_calibration_agrees_with_brute_force(scored):
    scores, labels = scored
    result = statistics.calibration(scores, labels, bins=10)
    gaps, total = [], 0.0
    for k in range(10):
        inside = [i for i in range(300) if k / 10 < scores[i].max() <= (k + 1) / 10]
        assert result.clips[k] == len(inside)
        if inside:
            confidence = np.mean([scores[i].max() for i in inside])
            accuracy = np.mean([scores[i].argmax() == labels[i] for i in inside])
            assert result.confidence[k] == pytest.approx(confidence)
            assert result.accuracy[k] == pytest.approx(accuracy)
            gaps.append(abs(confidence - accuracy))
            total += len(inside) / 300 * gaps[-1]
        else:
            assert np.isnan(result.accuracy[k])
    assert result.ece == pytest.approx(total) and result.mce == pytest.approx(max(gaps))
    assert result.nll == pytest.approx(-np.mean([np.log(scores[i, labels[i]]) for i in range(300)]))


def test_sure_and_right_is_perfectly_calibrated():
    result = statistics.calibration(np.eye(3), np.arange(3))
    assert result.ece == 0 and result.clips.tolist()[-1] == 3


def test_a_probability_on_an_edge_lies_in_the_lower_bin():
    result = statistics.calibration(np.array([[0.5, 0.5], [0.25, 0.75]]), np.array([0, 1]), bins=2)
    assert result.clips.tolist() == [1, 1]


@pytest.mark.parametrize("n", [300, 12])  # of few clips, a draw holds not every class
def test_resamples_agree_with_a_loop(scored, n):
    scores, labels = (column[:n] for column in scored)
    hits = statistics.hits_of(scores, labels)
    drawn = statistics.resampled_accuracies([hits], labels, resamples=20, seed=3)
    order = np.argsort(labels, kind="stable")
    picks = order[np.random.default_rng(3).integers(n, size=(20, n))]
    assert (min(len(set(labels[pick].tolist())) for pick in picks) < 5) == (n == 12)
    for i, pick in enumerate(picks):
        mine = labels[pick]
        by_class = [hits.top1[pick][mine == label].mean() for label in set(mine.tolist())]
        expected = [hits.top1[pick].mean(), hits.top5[pick].mean(), np.mean(by_class)]
        assert drawn[0, i] == pytest.approx(expected)


def test_resamples_of_many_clips_take_little_memory():
    labels = np.arange(100_000) % 75
    hits = statistics.Hits(labels % 2 == 0, labels % 3 > 0)
    tracemalloc.start()
    try:
        drawn = statistics.resampled_accuracies([hits], labels, 150)
        assert tracemalloc.get_traced_memory()[1] < 180e6
    finally:
        tracemalloc.stop()
    assert drawn.shape == (1, 150, 3)


def test_paired_interval_is_that_of_the_differences(scored):
    _, labels = scored
    rng = np.random.default_rng(0)
    base = rng.random(300) < 0.5
    better = base | (rng.random(300) < 0.2)  # never wrong where the first is right
    found = statistics.differences(statistics.Hits(base, base), statistics.Hits(better, better), labels)
    gained = better.mean() - base.mean()
    spread = (better.astype(float) - base).std() / np.sqrt(300)
    assert found["top1"].value == pytest.approx(gained)
    assert found["top1"].low == pytest.approx(gained - 1.96 * spread, abs=0.005)
    assert found["top1"].high == pytest.approx(gained + 1.96 * spread, abs=0.005)
    same = statistics.differences(statistics.Hits(base, base), statistics.Hits(base, base), labels)
    assert same["mean_class_acc"] == (0, 0, 0)


# ---------------------------------------------------------------------------------------- curves


def test_curves_forget_what_a_restart_made_void(tmp_path):
    first = Curves(tmp_path, 0, False)
    for step in (2, 4, 6, 8):
        first.add(step, {"train/lr": step / 10})
        first.add_picture(step, "val/confusion", np.zeros((4, 4, 3), np.uint8))
    first.close()
    second = Curves(tmp_path, 4, True)
    second.add(6, {"train/lr": 60.0})
    second.close()
    (curve,) = read_curves(tmp_path).values()
    assert curve.steps.tolist() == [2, 4, 6]
    assert curve.values == pytest.approx([0.2, 0.4, 60])


@pytest.mark.parametrize("kept", [-1, -20])
def test_a_file_that_ends_within_a_record_counts_up_to_it(tmp_path, caplog, kept):
    curves = Curves(tmp_path, 0, False)
    for step in (1, 2, 3):
        curves.add(step, {"loss": step})
    curves.close()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:kept])
    assert read_curves(tmp_path)["loss"].steps.tolist() == [1, 2]
    assert str(path) in caplog.text


@pytest.mark.parametrize(("turn", "interval"), [(10, 5), (10, 20), (7, 5), (50, 5)])
def test_interval_means_undo_the_running_means(tmp_path, turn, interval):
    made = Made(turn=turn, log_interval=interval)
    run_ = read_run(write_run(tmp_path / "run", made))
    alternation = Alternation(HANDS, turn)
    recorded = run_.curves["train/lr"].steps.tolist()
    for hand, spans in loss_spans(run_).items():
        expected = []
        for before, after in zip([0, *recorded], recorded, strict=False):
            mine = [step for step in range(before, after) if alternation.hand_at(step) == hand]
            if mine:
                mean = np.mean([step_loss(made, hand, step) for step in mine])
                expected.append((before, after, pytest.approx(mean, abs=1e-5)))
        assert list(zip(spans.starts, spans.ends, spans.values, strict=True)) == expected


def test_rise_over_the_other_hand_s_turn(tmp_path):
    made = Made(turn=10, log_interval=5, epochs=2)
    run_ = read_run(write_run(tmp_path / "run", made))
    for hand, (mean, error) in changes_over_rest(run_, loss_spans(run_)).items():
        loss = np.array([step_loss(made, hand, step) for step in range(80)])
        mine = np.flatnonzero([Alternation(HANDS, 10).hand_at(step) == hand for step in range(80)])
        means = loss[mine].reshape(-1, 2, 5).mean(axis=2)  # turns, halves
        changes = means[1:, 0] - means[:-1, 1]
        assert mean == pytest.approx(changes.mean(), abs=1e-5)
        assert error == pytest.approx(changes.std(ddof=1) / np.sqrt(len(changes)), abs=1e-5)
    coarse = read_run(write_run(tmp_path / "coarse", Made(turn=5, log_interval=10)))
    assert changes_over_rest(coarse, loss_spans(coarse)) == {}


def test_turns_tile_the_steps():
    turns = turns_between(Alternation(HANDS, 10), 5, 34)
    assert [(turn.hand, turn.start, turn.end) for turn in turns] == [
        ("lh", 5, 10), ("rh", 10, 20), ("lh", 20, 30), ("rh", 30, 34),
    ]  # fmt: skip


def test_epoch_length_is_read_off_the_validations_or_the_end(tmp_path):
    run_ = read_run(write_run(tmp_path / "run", Made(steps=23, epochs=2)))
    assert run_.epoch_length == 23
    trained = {tag: curve for tag, curve in run_.curves.items() if tag.startswith("train")}
    assert steps_per_epoch(trained, 2) == 23
    assert steps_per_epoch({}, 2) is None
    rows = (tmp_path / "run" / "log.txt").read_text().splitlines()
    (tmp_path / "run" / "log.txt").write_text(rows[0] + "\n")  # stopped within the second epoch
    stopped = dataclasses.replace(read_run(tmp_path / "run"), curves=trained)
    assert stopped.epoch_length is None


def test_thinning_keeps_the_mean_and_the_ends(tmp_path):
    run_ = read_run(write_run(tmp_path / "run"))
    spans = loss_spans(run_)["lh"]
    few, together = thinned(spans, 3)
    assert len(few.values) <= 3 and together == -(-len(spans.values) // 3)
    assert (few.starts[0], few.ends[-1]) == (spans.starts[0], spans.ends[-1])
    assert few.values[0] == pytest.approx(spans.values[:together].mean())


# ------------------------------------------------------------------------------------------ page


@pytest.fixture(scope="module")
def page(made_run):
    assert report.main([str(made_run)]) == 0
    return (made_run / "report.html").read_text("utf-8")


def cells(row):
    """Texts of a table row's cells."""
    return [
        " ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)
    ]


def rows_of(page, section):
    part = page.split(f'id="{section}"')[1].split("</section>")[0]
    return [cells(row) for row in re.findall(r"<tr.*?</tr>", part, re.DOTALL) if "<td" in row]


def test_numbers_are_those_of_metrics_json(page, made_run):
    metrics = json.loads((made_run / "metrics.json").read_text())
    rows = {(row[0], row[1]): row for row in rows_of(page, "result")}
    for hand, name in (("lh", "Left hand"), ("rh", "Right hand")):
        for weights, told in (("raw (last)", metrics), ("ema", metrics["ema"])):
            row = rows[name, weights]
            shown = [cell.split()[0] for cell in row[2:6]]
            keys = ("top1", "top5", "mean_class_acc", "top1_all")
            assert shown == [f"{told[hand][key]:.2f}" for key in keys]
            low, high = map(float, row[2].split()[1].split("–"))
            assert low < told[hand]["top1"] < high


def test_interval_is_about_the_binomial_one(page, made_run):
    metrics = json.loads((made_run / "metrics.json").read_text())
    p, n = metrics["lh"]["top1"] / 100, Made().clips
    low, high = map(float, rows_of(page, "result")[0][2].split()[1].split("–"))
    assert (high - low) / 100 == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / n), rel=0.1)


def test_class_table_agrees_with_the_results_files(page):
    scores = scores_of(Made(), "lh")
    merged = softmax(scores.logits, axis=1).reshape(Made().clips, 2, -1).mean(1)
    labels, predicted = labels_of(Made(), "lh"), merged.argmax(1)
    rows = {int(row[1]): row for row in rows_of(page, "lh")}
    assert set(rows) == set(labels.tolist()) | set(predicted.tolist())
    for label, row in rows.items():
        mine = labels == label
        assert row[2] == str(mine.sum())
        assert row[3] == f"{100 * (predicted[mine] == label).mean():.1f}"


def test_matrix_data_and_ece_agree_with_the_results_files(page):
    scores = scores_of(Made(), "rh")
    merged = softmax(scores.logits, axis=1).reshape(Made().clips, 2, -1).mean(1)
    labels = labels_of(Made(), "rh")
    data = json.loads(re.search(r'id="matrix-rh">(.*?)</script>', page)[1])
    support = sorted(np.bincount(labels)[np.bincount(labels) > 0].tolist(), reverse=True)
    assert [count for count in data["support"] if count] == support
    assert sum(map(sum, data["counts"])) == Made().clips
    hits = sum(row[i] for i, row in enumerate(data["counts"]))
    assert hits == (merged.argmax(1) == labels).sum()
    ece = statistics.calibration(merged, labels).ece
    assert f"ECE {100 * ece:.1f} %" in page


def test_names_stay_text(page):
    assert "<script>alert" not in page and "<i>1" not in page
    assert "turn &lt;script&gt;alert(1)" in page
    assert "push &amp; pull" in page


def test_page_needs_nothing_from_elsewhere(page):
    outside = [
        url for url in re.findall(r'(?:src|href)="([^"]*)"', page) if not url.startswith(("data:", "#"))
    ]
    assert not outside
    assert not re.search(r"@import|url\(\s*['\"]?http", page)


def test_examples_show_frames_or_say_why_not(page):
    assert '<img src="data:image/jpeg;base64,' in page
    left, right = (page.split(f'id="{hand}"')[1].split("</section>")[0] for hand in HANDS)
    assert "<img " in left and "No such file" in left  # every second clip has no video
    assert "<img " not in right and "behind a URL" in right


def test_figures_lie_beside_the_page(page, made_run):
    names = {path.name for path in (made_run / "report").iterdir()}
    assert names == {
        *("loss.png", "turns.png", "accuracy.png", "lr.png", "grad_norm.png"),
        *(f"{kind}_{hand}.png" for kind in ("confusion", "calibration") for hand in HANDS),
    }
    for name in names:
        assert Image.open(made_run / "report" / name).size[0] > 500


def test_coverage_configuration_and_environment(page):
    assert "Left hand, test: 60 of 62 clips could be read." in page
    assert "bad 1.mp4" in page and "holds no video" in page
    assert ["--alternation_steps", "10", "50"] in rows_of(page, "configuration")
    shown = dict(row for row in rows_of(page, "environment") if len(row) == 2)
    assert shown["torch"] == "2.13.0" and shown["commit"] == "0123456789"
    assert shown["clips a second"] == "8 (median over epochs)"
    assert shown["training, without validation"] == "3 min 0 s in 3 epochs"


def test_an_option_leaves_the_frames_out(made_run, tmp_path):
    output = tmp_path / "elsewhere" / "page.html"
    assert report.main([str(made_run), "--output", str(output), "--no_thumbnails"]) == 0
    assert "data:image/jpeg" not in output.read_text("utf-8")
    assert (tmp_path / "elsewhere" / "page" / "loss.png").exists()


def test_the_moving_average_comes_first_where_it_was_tested(tmp_path):
    made = Made()
    folder = tmp_path / "run"
    write_run(folder, made)
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "raw").mkdir()
    for path in folder.glob("0_*.txt"):
        path.rename(folder / "raw" / path.name)
        (folder / "ema" / path.name).rename(path)
    averaged = metrics["ema"] | {"weights": "ema", "ema": metrics["ema"]}
    (folder / "metrics.json").write_text(json.dumps(averaged))
    assert report.main([str(folder), "--no_thumbnails"]) == 0
    text_ = (folder / "report.html").read_text("utf-8")
    assert "different tests" not in text_
    rows = rows_of(text_, "result")
    assert [(row[0], row[1]) for row in rows] == [
        ("Left hand", "ema"), ("Left hand", "raw"), ("Right hand", "ema"), ("Right hand", "raw"),
    ]  # fmt: skip
    for row, told in zip(rows, (averaged, metrics, averaged, metrics), strict=True):
        hand = "lh" if row[0] == "Left hand" else "rh"
        assert row[2].split()[0] == f"{told[hand]['top1']:.2f}"


# ------------------------------------------------------------------------------- what is missing

PARTS = {
    "args.json": "configuration is unknown",
    "metrics.json": "has not been tested yet",
    "environment.json": "versions, commit and hardware were not recorded",
    "log.txt": "no epoch was finished",
    "tensorboard": "no TensorBoard files",
}


@pytest.mark.parametrize("missing", PARTS)
def test_a_part_that_is_missing_is_said(tmp_path, missing):
    folder = write_run(tmp_path / "run")
    path = folder / missing
    if path.is_dir():
        for file in path.iterdir():
            file.unlink()
    else:
        path.unlink()
    (remark,) = read_run(folder).remarks
    assert PARTS[missing] in remark


def test_metrics_alone_and_log_alone_make_a_page(tmp_path):
    folder = write_run(tmp_path / "full")
    for name in ("metrics.json", "log.txt"):
        alone = tmp_path / name.replace(".", "_")
        alone.mkdir()
        (alone / name).write_bytes((folder / name).read_bytes())
        assert report.main([str(alone)]) == 0
        page = (alone / "report.html").read_text("utf-8")
        assert ("There is no test of this run yet" in page) == (name == "log.txt")
        remarks = page.split('class="remarks"')[1].split("</div>")[0]
        assert remarks.count("<p>") == len(read_run(alone).remarks) == 5


def test_one_hand_alone(tmp_path):
    folder = write_run(tmp_path / "run", one_stream=True)
    for path in [*folder.glob("*_rh.txt"), *folder.glob("ema/*_rh.txt")]:
        path.unlink()
    metrics = json.loads((folder / "metrics.json").read_text())
    for told in (metrics, metrics["ema"]):
        del told["rh"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    rows = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    kept = [{name: value for name, value in row.items() if "rh_" not in name} for row in rows]
    (folder / "log.txt").write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert report.main([str(folder)]) == 0
    assert "Right hand" not in (folder / "report.html").read_text("utf-8")


def test_results_of_another_test_are_noticed(tmp_path):
    folder = write_run(tmp_path / "run")
    write_test(Made(seed=7), tmp_path / "other")
    (folder / "0_lh.txt").write_bytes((tmp_path / "other" / "0_lh.txt").read_bytes())
    (remark,) = read_run(folder).remarks
    assert "Left hand (raw)" in remark and "they are of different tests" in remark


def test_results_that_the_last_test_did_not_write_are_left_out(tmp_path):
    folder = write_run(tmp_path / "run")
    assert list(read_run(folder).scores) == ["raw", "ema"]
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {"ema": None}))
    assert list(read_run(folder).scores) == ["raw"]


def test_a_file_that_may_not_be_read_is_one_line(tmp_path, monkeypatch, capsys):
    folder = write_run(tmp_path / "run")
    monkeypatch.setattr(Path, "read_text", lambda path, *_, **__: path.open("x"))
    assert report.main([str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("report: ") and str(folder) in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [("args.json", "{"), ("metrics.json", "[]"), ("log.txt", "{}\n"), ("0_lh.txt", "x\ny\n"),
     ("environment.json", "3"), ("log.txt", b"\xff\n"), ("metrics.json", '{"lh": {"top1": 3}}'),
     ("0_rh.txt", "1, 1\nclip.mp4 [1.0, 2.0] 2 0 0\n"), ("1_rh.txt", "1, 1\nclip.mp4 [1.0, 2.0] 0 0 0\n")],
)  # fmt: skip
def test_a_damaged_file_is_one_line(tmp_path, capsys, name, content):
    folder = write_run(tmp_path / "run")
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert report.main([str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("report: ") and str(folder / name) in error and error.count("\n") == 1


def test_what_is_no_run_is_one_line(tmp_path, capsys):
    for folder, reason in (
        (tmp_path, "not the output folder of a run"),
        (tmp_path / "none", "no such folder"),
    ):
        assert report.main([str(folder)]) == 1
        error = capsys.readouterr().err
        assert str(folder) in error and reason in error and error.count("\n") == 1


def test_output_that_is_no_page_is_refused(made_run, tmp_path, capsys):
    assert report.main([str(made_run), "--output", str(tmp_path / "page.pdf")]) == 1
    assert "--output" in capsys.readouterr().err


def test_secrets_of_urls_are_not_shown(page):
    assert "https://host/data" in page
    assert "pass@" not in page and "X-Signature" not in page


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ([0.9, 0.95], "0.9 0.95"),
        ("a?b.mp4", "a?b.mp4"),
        ("s3://b/c.mp4?v=1 x", "s3://b/c.mp4 x"),
        ("a\nb", "a\\nb"),
        ("https://me:p@ss@host/a b@c", "https://host/a b@c"),
    ],
)
def test_values_as_text(value, shown):
    assert text(value) == shown


def test_durations():
    assert [duration(s) for s in (5.61, 61, 3 * 3600 + 125)] == ["5.6 s", "1 min 1 s", "3 h 2 min"]


def test_two_hundred_classes_have_no_names_beside_them_but_all_data():
    counts = np.eye(200, dtype=int)
    matrix = draw_matrix(counts, [f"class {i}" for i in range(200)], "a matrix")
    assert not matrix.names and len(matrix.data["names"]) == 200
    assert len(matrix.cells) == 200 and matrix.count_text == 0


# ------------------------------------------------------------------------------ a run's own report


@pytest.fixture
def report_calls(monkeypatch):
    """Keeps runs from starting the report's process, and collects what they would have started."""
    calls = []
    real = subprocess.run

    def fake(command, **options):
        if "scripts.tools.report" not in command:
            return real(command, **options)
        calls.append((command, options))
        recorded = b"".join(file.read_bytes() for file in Path(command[-1]).rglob("*tfevents*"))
        options["had_final_metrics"] = b"_hparams_/session_start_info" in recorded
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", fake)
    return calls


QUICK = (
    "--epochs",
    1,
    "--warmup_epochs",
    0,
    "--disable_eval_during_finetuning",
    "--no_save_ckpt",
    "--report",
)


def test_a_run_makes_its_report(run_main, tiny_flags, tmp_path, report_calls):
    result = run_main(*tiny_flags, *QUICK, "--output_dir", tmp_path)
    assert result.code == 0 and f"written: {tmp_path / 'report.html'}" in result.output
    ((command, options),) = report_calls
    assert command == [sys.executable, "-P", "-m", "scripts.tools.report", str(tmp_path)]
    assert options["env"]["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
    assert options["had_final_metrics"]  # whatever becomes of the report
    assert options["timeout"] == 600
    report_calls.clear()
    assert run_main(*tiny_flags, *QUICK, "--no_report", "--output_dir", tmp_path).code == 0
    assert not report_calls


def test_an_evaluation_makes_its_report_in_its_folder(run_main, full_run, tmp_path, report_calls):
    flags = ("--eval", "--resume", full_run / "checkpoint-last.pth", "--output_dir", tmp_path)
    earlier = [tmp_path / "unreadable_lh.txt", tmp_path / "1_rh.txt"]
    for path in earlier:
        path.write_text("of an earlier test with more processes\n")
    for weights in ("last", "ema"):
        assert run_main(*flags, "--report", "--test_weights", weights, "--dist_timeout", 4).code == 0
        args = json.loads((tmp_path / "args.json").read_text())
        assert args["eval"] and args["depth"] == 2 and args["test_weights"] == weights
    assert report_calls[0][0][-1] == str(tmp_path)
    assert report_calls[0][1]["timeout"] == 120  # other ranks wait meanwhile
    assert not any(path.exists() for path in earlier)
    assert (tmp_path / "0_rh.txt").exists()


def test_an_evaluation_leaves_the_training_s_flags(run_main, full_run, tmp_path):
    settings = (full_run / "args.json").read_bytes()
    (tmp_path / "args.json").write_bytes(settings)
    flags = ("--eval", "--resume", full_run / "checkpoint-last.pth", "--output_dir", tmp_path)
    assert run_main(*flags, "--no_report").code == 0
    assert (tmp_path / "args.json").read_bytes() == settings


FAILURES = {
    "ends with an error": lambda command, **_: subprocess.CompletedProcess(
        command, 1, "", "x\nNo module: jinja2\n"
    ),
    "cannot be started": OSError(12, "Cannot allocate memory"),
    "takes too long": subprocess.TimeoutExpired("report", 600),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_report_that_fails_is_a_warning(tmp_path, monkeypatch, caplog, failure):
    outcome = FAILURES[failure]

    def fake(command, **options):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome(command)

    monkeypatch.setattr(subprocess, "run", fake)
    run.make_report(tmp_path)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "no report" in record.message
    assert f"python -m scripts.tools.report {tmp_path}" in record.message


def test_real_run_is_reported_by_the_real_process(full_run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(full_run, folder, ignore=shutil.ignore_patterns("*.pth"))
    run.make_report(folder)
    page = (folder / "report.html").read_text("utf-8")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 'class="remarks"' not in page
    rows = {(row[0], row[1]): row for row in rows_of(page, "result")}
    assert set(rows) == {(name, w) for name in ("Left hand", "Right hand") for w in ("raw (last)", "ema")}
    assert rows["Right hand", "ema"][2].split()[0] == f"{metrics['ema']['rh']['top1']:.2f}"
    wrong = round(VAL_CLIPS["lh"] * (1 - metrics["lh"]["top1"] / 100))
    part = page.split('id="lh"')[1].split("</section>")[0]
    assert part.count("<img ") == part.count('class="clip"') >= 2 * min(wrong, 1)
    data = json.loads(re.search(r'id="matrix-lh">(.*?)</script>', page)[1])
    assert len(data["names"]) <= CLASSES["lh"]


def test_relative_paths_are_of_the_folder_in_which_the_run_was_started(tmp_path, monkeypatch):
    write_run(tmp_path / "run", log_dir="logs")
    (tmp_path / "run" / "tensorboard").rename(tmp_path / "logs")
    (tmp_path / "utils.py").write_text("raise RuntimeError('of somebody else')")
    monkeypatch.chdir(tmp_path)
    run.make_report(Path("run"))
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "There are no TensorBoard files" not in page and "Turn by turn" in page


# ------------------------------------------------------------------------------------ environment


def test_starts_are_kept_with_versions_and_commit(full_run, run_main, tmp_path):
    (entry,) = json.loads((full_run / "environment.json").read_text())[:1]
    assert entry["mode"] == "train" and entry["devices"] == {"cpu": 1} and entry["processes"] == 1
    assert torch.__version__.startswith(entry["packages"]["torch"])
    assert entry["python"] == sys.version.split()[0] and entry["cpus"] >= 1
    assert "--model_ema" in entry["command"]
    for times in (1, 2):
        flags = ("--eval", "--resume", full_run / "checkpoint-last.pth", "--output_dir", tmp_path)
        assert run_main(*flags).code == 0
        starts = json.loads((tmp_path / "environment.json").read_text())
        assert [start["mode"] for start in starts] == ["eval"] * times


def git(folder, *words):
    command = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_says_whether_files_were_changed(tmp_path):
    assert run.utils._commit_of(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert run.utils._commit_of(tmp_path) is None  # nothing was committed
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "output.txt").write_text("of a run")
    assert run.utils._commit_of(tmp_path) == {"id": head, "modified": False}
    (tmp_path / "file").write_text("2")
    assert run.utils._commit_of(tmp_path) == {"id": head, "modified": True}


def test_made_runs_differ_by_seed_alone():
    first, second = (scores_of(dataclasses.replace(Made(), seed=seed), "lh") for seed in (0, 1))
    assert np.array_equal(first.labels, second.labels) and not np.array_equal(first.logits, second.logits)
