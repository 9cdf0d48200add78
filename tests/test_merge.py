"""Results files and their merge, against the published trainer's numbers and plain arithmetic."""

import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from engine_for_finetuning import (
    ClipScores,
    ViewScores,
    accuracy_metrics,
    mean_cross_entropy,
    merge,
    merge_hand,
    merge_views,
    read_results,
    topk_accuracy,
    with_mean_top1,
    write_predictions,
    write_results,
)
from utils import UserError

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = json.loads((GOLDEN / "merge.json").read_text())
METHODS = ("prob", "score")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    with zipfile.ZipFile(GOLDEN / "merge_files.zip") as archive:
        archive.extractall(folder)
    return folder


def views_of(names, logits, labels=None, chunks=None, splits=None):
    n = len(names)
    columns = (
        np.zeros(n, int) if column is None else np.asarray(column) for column in (labels, chunks, splits)
    )
    return ViewScores(list(names), np.asarray(logits, np.float64), *columns)


def random_views(seed, clips=12, chunks=3, splits=2, classes=7):
    rng = np.random.default_rng(seed)
    rows = [
        (f"clip {i}", i % classes, c, s) for i in range(clips) for c in range(chunks) for s in range(splits)
    ]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    names, *integers = zip(*rows, strict=True)
    return views_of(names, rng.normal(size=(len(rows), classes)), *integers)


# ------------------------------------------------------------------- the published trainer's files


@pytest.mark.parametrize("case", ["overlap", "sharded"])
@pytest.mark.parametrize("method", METHODS)
def test_merge_gives_the_published_accuracies(published, case, method):
    expected = EXPECTED[case][method]
    top1, top5 = merge(published / case, EXPECTED[case]["num_tasks"], method)
    assert top1 == pytest.approx(expected["top1"], abs=1e-9)
    assert top5 == pytest.approx(expected["top5"], abs=1e-9)


@pytest.mark.parametrize("case", ["overlap", "sharded"])
@pytest.mark.parametrize("method", METHODS)
def test_merge_gives_the_published_prediction_of_every_clip(published, case, method):
    paths = [published / case / f"{rank}.txt" for rank in range(EXPECTED[case]["num_tasks"])]
    merged = merge_views(ViewScores.concatenate([read_results(path) for path in paths]), method)
    per_clip = EXPECTED[case][method]["per_clip"]
    assert set(merged.names) == set(per_clip)
    for name, label, scores in zip(merged.names, merged.labels, merged.scores, strict=True):
        assert (scores.argmax(), label) == (per_clip[name]["pred"], per_clip[name]["label"]), name


@pytest.mark.parametrize("method", METHODS)
def test_views_are_keyed_by_the_pair_of_chunk_and_split(published, method):
    # The published key joins the digits, so that (1, 11) and (11, 1) collide: it says 50 here.
    assert merge(published / "quirks", 1, method)[0] == 25.0
    names, logits = ["a", "a"], [[0.0, 3.0], [9.0, 0.0]]
    merged = merge_views(views_of(names, logits, [0, 0], chunks=[1, 11], splits=[11, 1]), "score")
    assert merged.scores.tolist() == [[4.5, 1.5]]


def test_merge_of_a_hand_reads_that_hand_s_files(published, tmp_path):
    for rank in range(3):
        source = (published / "sharded" / f"{rank}.txt").read_text()
        (tmp_path / f"{rank}_rh.txt").write_text(source)
        (tmp_path / f"{rank}_lh.txt").write_text("0, 0\na [1.0, 0.0] 1 0 0\n")
    assert merge_hand(tmp_path, 3, "rh") == merge(published / "sharded", 3)
    assert merge_hand(tmp_path, 3, "lh") == (0.0, 100.0)


def test_missing_file_of_a_rank_is_an_error(published):
    with pytest.raises(UserError, match=r"3\.txt: there is no such results file"):
        merge(published / "sharded", 4)


@pytest.mark.parametrize("hand", ["lh", "rh"])
def test_published_file_written_again_is_the_same_line_by_line(published, tmp_path, hand):
    path = published / "writer" / f"0_{hand}.txt"
    scores = read_results(path)
    write_results(tmp_path / "again.txt", scores)
    first, *lines = path.read_text().splitlines()
    again_first, *again = (tmp_path / "again.txt").read_text().splitlines()
    assert again == lines
    assert [float(x) for x in again_first.split(", ")] == pytest.approx(
        [float(x) for x in first.split(", ")], rel=1e-6
    )


# --------------------------------------------------------------------------------- our own files


def test_written_results_are_read_back_exactly(tmp_path):
    names = ["a b/c d.mp4", "x[1].mp4", "[take] 2/y].mp4", "plain.mp4", "tab\tname.mp4", "ümlaut.mp4"]
    logits = np.random.default_rng(0).normal(size=(6, 4)) * 10.0 ** np.arange(-12, 12, 4)[:, None]
    scores = views_of(names, logits, range(6), chunks=[0, 1, 11, 2, 3, 4], splits=[11, 0, 1, 2, 1, 0])
    write_results(tmp_path / "r.txt", scores)
    again = read_results(tmp_path / "r.txt")
    assert again.names == names
    for column in ("logits", "labels", "chunks", "splits"):
        np.testing.assert_array_equal(getattr(again, column), getattr(scores, column))


def test_rank_without_clips_writes_a_file_without_rows(tmp_path):
    write_results(tmp_path / "0.txt", ViewScores.empty())
    write_results(tmp_path / "1.txt", random_views(0))
    assert read_results(tmp_path / "0.txt").names == []
    merged = merge_views(random_views(0))
    assert merge(tmp_path, 2) == topk_accuracy(merged.scores, merged.labels)
    with pytest.raises(UserError, match="no results to merge"):
        merge(tmp_path, 1)


@pytest.mark.parametrize("line", ["clip 1.0 2.0 3 0 0", "clip [1.0, 2.0] 3 0", "[1.0] 0 0 0", "clip"])
def test_line_that_is_no_row_is_named_by_number(tmp_path, line):
    (tmp_path / "0.txt").write_text(f"0, 0\na [1.0, 2.0] 1 0 0\n{line}\n")
    with pytest.raises(UserError, match=r"0\.txt:3: not `clip \[logits\] label chunk split`"):
        read_results(tmp_path / "0.txt")


def test_rows_with_different_numbers_of_classes_are_refused(tmp_path):
    (tmp_path / "0.txt").write_text("0, 0\na [1.0, 2.0] 1 0 0\nb [1.0, 2.0, 3.0] 1 0 0\n")
    with pytest.raises(UserError, match="different numbers of classes"):
        read_results(tmp_path / "0.txt")


# -------------------------------------------------------------------------------------- merging


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_merge_is_the_average_over_a_clip_s_distinct_views(method, seed):
    views = random_views(seed)
    merged = merge_views(views, method)
    for position, name in enumerate(merged.names):
        rows = views.logits[[i for i, other in enumerate(views.names) if other == name]]
        if method == "prob":
            rows = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
        np.testing.assert_allclose(merged.scores[position], rows.mean(0), rtol=1e-12)
    assert len(merged.names) == 12


def test_first_of_equal_views_counts():
    names = ["a", "b", "a", "a"]
    logits = [[4.0, 0], [1, 1], [0, 8], [2, 2]]
    merged = merge_views(views_of(names, logits, chunks=[0, 0, 0, 1]), "score")
    assert merged.names == ["a", "b"]
    assert merged.scores.tolist() == [[3.0, 1.0], [1.0, 1.0]]


def test_large_logits_do_not_overflow():
    merged = merge_views(views_of(["a"], [[1000.0, 0.0]]))
    assert merged.scores.tolist() == [[1.0, 0.0]]


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match="prob, score"):
        merge_views(random_views(0), "max")


# -------------------------------------------------------------------------------------- metrics


def brute_force_metrics(scores, labels, unreadable):
    right1 = right5 = 0
    classes = {}
    for row, label in zip(scores, labels, strict=True):
        better = sum(value > row[label] for value in row)
        right1 += better == 0
        right5 += better < 5
        classes.setdefault(label, []).append(better == 0)
    n = len(labels)
    return {
        "top1": 100 * right1 / n,
        "top5": 100 * right5 / n,
        "mean_class_acc": 100 * sum(sum(hits) / len(hits) for hits in classes.values()) / len(classes),
        "top1_all": 100 * right1 / (n + unreadable),
        "top5_all": 100 * right5 / (n + unreadable),
        "clips": n + unreadable,
        "unreadable": unreadable,
    }


@pytest.mark.parametrize("classes", [2, 4, 5, 6, 30])
@pytest.mark.parametrize("unreadable", [0, 3])
def test_metrics_equal_counting_by_hand(classes, unreadable):
    rng = np.random.default_rng(classes)
    scores, labels = rng.normal(size=(40, classes)), rng.integers(0, classes, 40) ** 2 % classes
    scores[np.arange(40), labels] += 0.7
    clips = ClipScores([str(i) for i in range(40)], labels, scores)
    assert accuracy_metrics(clips, unreadable) == pytest.approx(
        brute_force_metrics(scores, labels, unreadable)
    )


def test_fewer_than_five_classes_are_all_in_the_top_five():
    assert topk_accuracy(np.array([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]), np.array([0, 0])) == (50.0, 100.0)


def test_cross_entropy_is_the_mean_over_rows():
    views = random_views(1)
    losses = []
    for row, label in zip(views.logits, views.labels, strict=True):
        losses.append(np.log(np.exp(row).sum()) - row[label])
    assert mean_cross_entropy(views) == pytest.approx(np.mean(losses), rel=1e-12)


def test_mean_top1_is_over_the_hands_that_are_there():
    assert with_mean_top1({"lh": {"top1": 20.0}, "rh": {"top1": 50.0}})["mean_top1"] == 35.0
    assert with_mean_top1({"lh": {"top1": 20.0}}) == {"lh": {"top1": 20.0}, "mean_top1": 20.0}


def test_concatenation_keeps_order_and_unreadable_clips():
    parts = [random_views(0), ViewScores.empty(), random_views(1)]
    parts[1].unreadable = [("gone.mp4", "no such file")]
    whole = ViewScores.concatenate(parts)
    assert whole.names == parts[0].names + parts[2].names
    assert whole.logits.shape == (144, 7)
    assert whole.unreadable == [("gone.mp4", "no such file")]
    assert ViewScores.concatenate([ViewScores.empty()]).names == []


def test_predictions_are_escaped_as_csv(tmp_path):
    names = ['a, "b".mp4', "plain.mp4"]
    clips = ClipScores(names, np.array([1, 0]), np.array([[0.25, 0.75], [0.125, 0.875]]))
    write_predictions(tmp_path / "p.csv", clips)
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["clip", "label", "prediction", "probability"],
        [names[0], "1", "1", "0.750000"],
        [names[1], "0", "1", "0.875000"],
    ]
