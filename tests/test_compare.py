"""Runs side by side: what is compared with what, and what is said of it."""

import json

import numpy as np
import pytest
from report_runs import HANDS, Made, labels_of, scores_of, write_run, write_settings
from scipy.special import softmax

from scripts.tools.report import __main__ as report
from scripts.tools.report.comparison import changed_environment, changed_flags, compare_hand, names_of
from scripts.tools.report.run_data import read_run

MADE = {
    "short": Made(turn=4, log_interval=2, seed=1),
    "long": Made(turn=20, log_interval=2, seed=2, skill=3.0),
    "none": Made(turn=10, log_interval=20, seed=3),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three runs: short and long turns, and one whose second half of clips are others."""
    root = tmp_path_factory.mktemp("runs")
    made = {name: write_run(root / name, settings) for name, settings in MADE.items()}
    for hand in HANDS:
        path = made["none"] / f"0_{hand}.txt"
        lines = path.read_text().splitlines()
        other = [line.replace("S00/clip 003", "X/clip 003") for line in lines]
        path.write_text("\n".join(line.replace("S00/clip 004", "X/clip 004") for line in other) + "\n")
    return made


@pytest.fixture(scope="module")
def runs(folders):
    return [read_run(folder) for folder in folders.values()]


def hits_of(name, hand):
    scores = scores_of(MADE[name], hand)
    merged = softmax(scores.logits, axis=1).reshape(60, 2, -1).mean(1)
    return merged.argmax(1) == labels_of(MADE[name], hand)


@pytest.mark.parametrize("hand", HANDS)
def test_differences_are_over_shared_clips(runs, hand):
    first, second, third = compare_hand(runs, list(MADE), hand)
    hits = {name: hits_of(name, hand) for name in MADE}
    for row, name in ((first, "short"), (second, "long"), (third, "none")):
        assert row.accuracies["top1"] == pytest.approx(hits[name].mean())
    assert first.differences == {} and (second.shared, third.shared) == (60, 40)
    for row, name, kept in ((second, "long", slice(None)), (third, "none", np.r_[0:30, 50:60])):
        base, other = hits["short"][kept], hits[name][kept]
        gained = row.differences["top1"]
        assert gained.value == pytest.approx(other.mean() - base.mean())
        spread = (other.astype(float) - base).std() / np.sqrt(len(base))
        assert gained.high - gained.low == pytest.approx(2 * 1.96 * spread, rel=0.15)
        assert row.only_first == (base & ~other).sum() and row.only_this == (other & ~base).sum()


def test_clips_with_another_label_are_not_shared(folders, runs, tmp_path):
    lines = (folders["long"] / "0_lh.txt").read_text().splitlines()
    rows = [lines[0]] + [line.rsplit(" ", 3) for line in lines[1:]]
    changed = [f"{row[0]} {(int(row[1]) + 1) % 5} {row[2]} {row[3]}" for row in rows[1:21]]
    (tmp_path / "0_lh.txt").write_text("\n".join([lines[0], *changed, *lines[21:]]) + "\n")
    row = compare_hand([runs[0], read_run(tmp_path)], ["a", "b"], "lh")[1]
    assert row.shared == 50


def test_runs_without_shared_clips_have_no_difference(folders, runs, tmp_path):
    content = (folders["long"] / "0_lh.txt").read_text()
    (tmp_path / "0_lh.txt").write_text(content.replace("clip", "other"))
    row = compare_hand([runs[0], read_run(tmp_path)], ["a", "b"], "lh")[1]
    assert (row.shared, row.differences) == (0, {})


def test_flags_of_the_machine_are_apart(runs):
    of_run, of_machine = changed_flags(runs)
    assert ["--alternation_steps", 4, 20, 10] in of_run and ["--seed", 1, 2, 3] in of_run
    assert ["--log_interval", 2, 2, 20] in of_machine
    assert {row[0] for row in of_run + of_machine} == {
        "--alternation_steps", "--seed", "--log_interval", "--output_dir"
    }  # fmt: skip


def test_commits_and_versions_that_differ_are_said(folders, runs):
    assert changed_environment(runs) == []
    path = folders["long"] / "environment.json"
    starts = json.loads(path.read_text())
    starts[0] |= {"commit": None, "packages": {"torch": "2.12.0"}}
    path.write_text(json.dumps(starts))
    rows = dict((row[0], row[1:]) for row in changed_environment([runs[0], read_run(folders["long"])]))
    assert rows == {"commit": ["0123456789", "none"], "torch": ["2.13.0", "2.12.0"]}
    write_settings(MADE["long"], folders["long"])


@pytest.fixture(scope="module")
def compared(folders):
    """The page of the three runs, beside the first."""
    assert report.main([str(folder) for folder in folders.values()]) == 0
    return folders["short"].parent / "comparison.html"


def test_page_has_a_table_curves_and_changes(compared, runs):
    page = compared.read_text("utf-8")
    row = compare_hand(runs, list(MADE), "rh")[1]
    assert f"{100 * row.accuracies['top5']:.2f}" in page
    assert f"{100 * row.differences['top1'].value:+.2f}" in page
    assert page.count("<svg") == 3 and page.count("--alternation_steps") >= 2
    pictures = {path.name for path in compared.with_suffix("").iterdir()}
    assert pictures == {"accuracy.png", "validation_loss.png", "loss.png"}
    for curve in ("short", "long", "none"):
        assert f">{curve}</text>" in page  # legends


def test_table_is_printed(folders, tmp_path, capsys):
    output = tmp_path / "two.html"
    assert report.main([str(folders["short"]), str(folders["long"]), "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "Left hand" in shown and "Right hand" in shown and "[" in shown
    assert f"written: {output}" in shown


def test_runs_without_results_are_compared_by_their_settings(tmp_path):
    for name, turn in (("a", 5), ("b", 10)):
        (tmp_path / name).mkdir()
        write_settings(Made(turn=turn), tmp_path / name)
    assert report.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    page = (tmp_path / "comparison.html").read_text("utf-8")
    assert "None of the runs has results" in page and "--alternation_steps" in page


def test_every_run_is_in_the_legend_whatever_its_name(tmp_path):
    folders = [write_run(tmp_path / name, Made(epochs=2, clips=12)) for name in ("_a", "b\udcff", "c")]
    assert report.main([*map(str, folders), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text("utf-8")
    curves = page.split('id="curves"')[1].split("</section>")[0]
    assert all(f"{name}</text>" in curves for name in (" _a", "b\\udcff", "c"))


def test_names_are_the_ends_that_tell_runs_apart(tmp_path):
    for name in ("x/run", "y/run", "z/other"):
        (tmp_path / name).mkdir(parents=True)
        write_settings(Made(), tmp_path / name)
    runs = [read_run(tmp_path / name) for name in ("x/run", "y/run", "z/other")]
    assert names_of(runs) == ["x/run", "y/run", "z/other"]
    assert names_of(runs[1:]) == ["run", "other"]


def test_one_run_twice_is_an_error(folders, capsys):
    assert report.main([str(folders["long"]), str(folders["long"])]) == 1
    error = capsys.readouterr().err
    assert "is there twice" in error and error.count("\n") == 1
