"""The check before a long run, on real files with real faults."""

import functools
import json
import multiprocessing
import os
import signal
import threading
import time

import av
import cv2
import numpy as np
import pytest
from conftest import ROOT, draw_recording, write_list, write_video
from numbered_videos import draw_number, write_numbered

from dataset import sampling
from dataset.loader import ClipReader
from scripts.data import check_dataset, check_display, list_findings
from scripts.data.clip_probe import ClipFacts, ClipFile, ClipProber, probe_clips
from utils import UserError

REAL = ROOT / "tests" / "clips" / "h264_340x256.mp4"
WINDOW = ("--num_frames", "4", "--sampling_rate", "2")


@pytest.fixture
def check(tmp_path, capsys):
    """Runs the command; returns its exit code, its JSON and what it printed."""

    def call(*flags):
        output = tmp_path / "made" / "check.json"
        output.unlink(missing_ok=True)
        code = check_dataset.main([*map(str, flags), "--output", str(output)])
        assert [path.name for path in output.parent.iterdir()] == ["check.json"]
        return code, json.loads(output.read_text()), capsys.readouterr().out

    return call


@pytest.fixture
def data(tmp_path):
    """Makes a data set of {(hand, split): rows}; the files are there already, or `ok*.mp4` are drawn."""

    def make(lists, *flags):
        for (hand, split), rows in lists.items():
            write_list(tmp_path / hand / f"{split}_list_video.txt", rows)
            for name, _ in rows:
                path = tmp_path / hand / "videos" / str(name)
                if path.name.startswith("ok") and not path.exists():
                    number = sum(map(ord, path.stem))
                    write_video(path, draw_recording(number, n_frames=12))
        hands = dict.fromkeys(hand for hand, _ in lists)
        paths = [word for hand in hands for word in (f"--{hand}_data_path", tmp_path / hand)]
        one = ["--one_stream"] if len(hands) == 1 else []
        return [*paths, *one, "--data_set", "CUSTOM", "--num_workers", "2", *WINDOW, *flags]

    return make


def rows_of(*names):
    return [(name, number % 2) for number, name in enumerate(names)]


def texts(findings):
    return [finding["text"] for finding in findings]


def test_sound_data_has_no_errors(check, tiny_flags):
    code, report, shown = check(*tiny_flags)
    assert code == 0 and report["ok"] and report["errors"] == []
    assert {(one["hand"], one["mode"]): one["clips"] for one in report["lists"]} == {
        **{("lh", "train"): 16, ("lh", "validation"): 5},
        **{("rh", "train"): 11, ("rh", "validation"): 3},
    }
    assert report["files"] == 21  # the right hand's folder is a link to the left one's
    train = report["lists"][0]
    assert (train["decoded"], train["unreadable"], train["short"], train["window"]) == (16, [], 0, 8)
    assert train["sizes"]["clips"] == {"64x48": 4, "80x64": 4, "64x64": 4, "64x80": 4}
    assert (train["sizes"]["smallest"], train["sizes"]["largest"]) == ("64x48", "64x80")
    lengths = [len(draw_recording(number)) for number in range(16)]
    assert train["frames"] == {"min": min(lengths), "median": np.median(lengths), "max": max(lengths)}
    assert train["labels"] == {
        "classes": 4,
        "without_clip": [],
        "clips_a_class": {"min": 4, "median": 4, "max": 4},
        "clips": {"0": 4, "1": 4, "2": 4, "3": 4},
    }
    assert "21 files decoded" in shown and "0 errors" in shown
    assert all(hand in shown for hand in ("lh", "rh"))


# ------------------------------------------------------------------------------ unreadable clips


def write_audio(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 16000
        container.mux([*stream.encode(frame), *stream.encode(None)])


def write_broken_tail(path):
    """The index is whole and the beginning decodes; what the last frames are made of is gone."""
    content = bytearray(REAL.read_bytes())
    start = content.index(b"mdat") + 4
    end = start - 8 + int.from_bytes(content[start - 8 : start - 4], "big")
    gone = start + (end - start) * 2 // 3
    content[gone:end] = bytes(end - gone)
    path.write_bytes(content)


def write_frames(folder, count, height=48):
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        cv2.imwrite(str(folder / f"img_{number:05}.jpg"), np.full((height, 64, 3), 9 * number, np.uint8))


@pytest.fixture
def faulty(tmp_path):
    """A folder with a file for each fault."""
    folder = tmp_path / "lh" / "videos"
    write_audio(folder / "audio.mp4")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video\n" * 500)
    (folder / "truncated.mp4").write_bytes(REAL.read_bytes()[:100_000])
    (folder / "damaged.mp4").write_bytes((REAL.parent / "corrupted.mp4").read_bytes())
    write_broken_tail(folder / "tail.mp4")
    os.mkfifo(folder / "fifo.mp4")
    (folder / "folder.mp4").mkdir()
    write_frames(folder / "gap", 12)
    (folder / "gap" / "img_00007.jpg").unlink()
    return folder


def test_every_unreadable_clip_is_an_error_with_its_reason(check, data, faulty):
    bad = ["missing", "audio", "empty", "text", "truncated", "damaged", "tail", "fifo", "folder"]
    rows = [("ok0.mp4", 0), *((f"{name}.mp4", 1) for name in bad), ("gap 12", 1), ("ok1.mp4", 0)]
    flags = data(
        {("lh", "train"): rows, ("lh", "val"): [("ok2.mp4", 1), ("ok3.mp4", 0)]}, "--decode_timeout", 2
    )
    start = time.monotonic()
    code, report, shown = check(*flags)
    assert time.monotonic() - start < 10  # the pipe that nobody writes to has cost its two seconds
    assert code == 1 and not report["ok"]
    train = report["lists"][0]
    reasons = {row["clip"]: row["reason"] for row in train["unreadable"]}
    assert list(reasons) == [*(f"{name}.mp4" for name in bad), "gap"]
    assert [row["line"] for row in train["unreadable"]] == list(range(2, 12))
    assert reasons["missing.mp4"] == "No such file or directory"
    assert reasons["audio.mp4"] == "holds no video"
    assert reasons["folder.mp4"] == "Is a directory"
    assert reasons["fifo.mp4"] == "decoding it takes longer than 2 s"
    assert "img_00007.jpg: No such file" in reasons["gap"]
    assert all(reason and "\n" not in reason for reason in reasons.values())
    assert report["lists"][1]["unreadable"] == []
    (finding,) = report["errors"]
    assert finding["text"] == "lh train: 10 of 12 clips cannot be read" and len(finding["items"]) == 10
    assert "'missing.mp4' (line 2): No such file" in shown and "and 7 more, see " in shown
    assert not multiprocessing.active_children()


def test_unusual_clips_are_fine(check, data, tmp_path):
    folder = tmp_path / "lh" / "videos"
    write_video(folder / "one.mp4", draw_recording(1, n_frames=1))
    write_video(folder / "odd.mp4", draw_recording(2, height=49, width=65, n_frames=9), "mpeg4")
    write_frames(folder / "frames", 12)
    rows = rows_of("one.mp4", "odd.mp4", "frames 12", REAL)
    code, report, _ = check(*data({("lh", "train"): rows, ("lh", "val"): rows_of("ok0.mp4", "ok1.mp4")}))
    train = report["lists"][0]
    assert code == 0 and train["unreadable"] == []
    assert train["sizes"]["clips"] == {"64x48": 2, "65x49": 1, "340x256": 1}
    assert (train["sizes"]["most_common"], train["sizes"]["largest"]) == ("64x48", "340x256")
    assert train["frames"] == {"min": 1, "median": 10.5, "max": 280}
    assert train["short"] == 1


def test_kinds_of_files_that_are_slow_to_read_are_noted(check, data, tmp_path):
    write_numbered(tmp_path / "lh" / "videos" / "slow.avi", options={"bf": "2"})
    lists = {("lh", "train"): rows_of("slow.avi", "ok1.mp4"), ("lh", "val"): rows_of("ok2.mp4", "ok3.mp4")}
    code, report, _ = check(*data(lists))
    assert code == 0
    (note,) = texts(report["notes"])
    assert note.startswith("lh train: some .avi files are slow to read") and note.endswith("(1 clip)")
    assert check(*data(lists, "--video_backend", "decord"))[0] == 1


def test_truncated_files_are_errors(check, data, tmp_path):
    frames = [draw_number(number) for number in range(150)]
    whole = write_numbered(tmp_path / "whole.mkv", frames=frames, options={"g": "25"}).read_bytes()
    (tmp_path / "lh" / "videos").mkdir(parents=True)
    (tmp_path / "lh" / "videos" / "half.mkv").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "lh" / "videos" / "most.mkv").write_bytes(whole[: len(whole) * 19 // 20])
    lists = {("lh", "train"): rows_of("half.mkv", "most.mkv"), ("lh", "val"): rows_of("ok2.mp4", "ok3.mp4")}
    code, report, _ = check(*data(lists))
    assert code == 1
    (error,) = report["errors"]
    assert error["text"] == "lh train: 1 of 2 clips cannot be read"
    assert "half.mkv" in str(error) and "breaks off: it states 6.0 s of video and holds " in str(error)


# ---------------------------------------------------------------------------------------- lists


def test_unusable_lists_are_errors_and_the_others_are_checked(check, data):
    lists = {
        ("lh", "train"): [("ok0.mp4", 0), ("ok1.mp4", 1), ("ok0.mp4", 1)],
        ("lh", "val"): [("ok2.mp4", 0), ("ok3.mp4", 1)],
        ("rh", "train"): [("ok0.mp4", 0), ("ok1.mp4", 7)],
        ("rh", "test"): [("ok2.mp4", "left")],
    }
    code, report, shown = check(*data(lists, "--rh_num_classes", 7))
    assert code == 1
    assert [(one["hand"], one["mode"]) for one in report["lists"]] == [("lh", "validation")]
    conflict, label, missing, malformed = texts(report["errors"])
    assert (
        conflict.startswith("lh train: ") and "lines 1 and 3 give 'ok0.mp4' two labels, 0 and 1" in conflict
    )
    assert "rh/train_list_video.txt:2: label 7 is out of range" in label
    assert "rh validation: " in missing and "there is no val_list_video.txt in it" in missing
    assert "rh/test_list_video.txt:1: not `path label`: 'ok2.mp4 left'" in malformed
    assert shown.count("error: ") == 4


def test_nothing_usable_is_reported_too(check, data, tmp_path):
    (tmp_path / "lh").mkdir()
    code, report, shown = check(*data({("lh", "val"): rows_of("nowhere.mp4")}))
    assert code == 1 and report["lists"] == [] and report["files"] == 0
    assert "none of 1 sampled clips" in texts(report["errors"])[1]
    assert "2 errors" in shown


def test_labels_that_lists_disagree_on_and_shared_clips_are_errors(check, data):
    lists = {
        ("lh", "train"): [("ok0.mp4", 0), ("ok1.mp4", 1), ("../videos/ok1.mp4", 0)],
        ("lh", "val"): [("ok0.mp4", 1), ("ok2.mp4", 0)],
        ("lh", "test"): [("ok2.mp4", 1), ("ok1.mp4", 1)],
    }
    code, report, shown = check(*data(lists))
    assert code == 1
    labels, in_validation, in_test = report["errors"]
    assert labels["text"] == "lh: 3 clips with two labels"
    assert labels["items"] == [
        "'ok1.mp4' (line 2) of lh train is class 1, '../videos/ok1.mp4' (line 3) of lh train is class 0",
        "'ok0.mp4' (line 1) of lh train is class 0, 'ok0.mp4' (line 1) of lh validation is class 1",
        "'ok2.mp4' (line 2) of lh validation is class 0, 'ok2.mp4' (line 1) of lh test is class 1",
    ]
    assert in_validation["text"] == "lh train: 1 clip also in lh validation"
    assert in_validation["items"] == ["'ok0.mp4' (line 1) is 'ok0.mp4' (line 1) of lh validation"]
    assert in_test["text"] == "lh train: 1 clip also in lh test"
    assert report["files"] == 3
    assert "error: lh train: 1 clip also in lh validation" in shown


def test_what_may_be_meant_so_is_a_warning(check, data, tmp_path):
    lists = {
        ("lh", "train"): [(f"ok{i}.mp4", i) for i in range(5)] + [("ok0.mp4", 0)],
        ("lh", "val"): [("ok6.mp4", 7), ("ok7.mp4", 0), ("ok8.mp4", 8)],
        ("rh", "train"): [("ok7.mp4", 0), ("ok9.mp4", 1)],
        ("rh", "val"): [("oka.mp4", 0), ("okb.mp4", 1)],
    }
    (tmp_path / "lh").mkdir()
    (tmp_path / "rh").symlink_to(tmp_path / "lh2")
    (tmp_path / "lh2" / "videos").mkdir(parents=True)
    flags = data(lists, "--sampling_rate", 4, "--lh_num_classes", 9)
    (tmp_path / "rh" / "videos" / "ok7.mp4").unlink()
    (tmp_path / "rh" / "videos" / "ok7.mp4").hardlink_to(tmp_path / "lh" / "videos" / "ok7.mp4")
    code, report, shown = check(*flags)
    assert code == 0 and report["ok"]
    warnings = texts(report["warnings"])
    assert warnings == [
        "lh train: 4 of 9 classes without a clip: 5-8",
        "lh validation: 2 clips of classes that training has not: 7-8",
        "rh train: 1 clip also in lh validation: the backbone has seen them",
        "lh train has 5 classes with a clip, rh train 2",
        "lh train: 1 clip listed more than once",
        *(
            f"{one}: 100% of the clips have fewer than 16 frames, see --short_clips"
            for one in ("lh train", "lh validation", "rh train", "rh validation")
        ),
    ]
    assert report["warnings"][4]["items"] == ["'ok0.mp4' (line 1) again in line 6"]
    assert shown.count("warning: ") == len(warnings)


def test_window_of_sparse_samples_is_the_clip(check, data):
    lists = {("lh", "train"): rows_of("ok0.mp4", "ok1.mp4"), ("lh", "val"): rows_of("ok2.mp4", "ok3.mp4")}
    _, report, _ = check(*data(lists, "--sampling_rate", 4, "--sparse_sample"))
    assert (report["lists"][0]["short"], report["lists"][0]["window"]) == (0, 4)
    _, report, _ = check(*data(lists, "--sampling_rate", 4))
    assert (report["lists"][0]["short"], report["lists"][0]["window"]) == (2, 16)


def test_some_clips_of_a_list_are_spread_over_it(check, data):
    names = [f"ok{number}.mp4" for number in range(9)]
    lists = {("lh", "train"): rows_of(*names), ("lh", "val"): rows_of("okx.mp4", "oky.mp4")}
    flags = data(lists, "--max_clips", 3)
    for name in ("ok0.mp4", "ok4.mp4", "ok7.mp4", "ok8.mp4"):
        (flags[1] / "videos" / name).write_bytes(b"")
    code, report, _ = check(*flags)
    train = report["lists"][0]
    assert code == 1 and (train["clips"], train["decoded"], report["files"]) == (9, 3, 5)
    assert [row["clip"] for row in train["unreadable"]] == ["ok0.mp4", "ok4.mp4", "ok8.mp4"]
    assert train["sizes"] is None and train["frames"] is None


def test_runs_of_numbers_are_ranges():
    assert list_findings._ranges([0, 3, 4, 5, 7]) == "0, 3-5, 7"


# -------------------------------------------------------------------------------------- terminal


@pytest.mark.parametrize("colour", [True, False])
def test_names_cannot_act_on_the_terminal(check, data, tmp_path, monkeypatch, colour):
    if colour:
        monkeypatch.setenv("FORCE_COLOR", "1")
    evil = "[red]\x1b[31m:smile:\u202e\x07[bold].mp4"
    lists = {
        ("lh", "train"): [(evil, 0), ("ok1.mp4", 1)],
        ("lh", "val"): [("ok2.mp4", 0), ("\x1b[2J.mp4", "x")],
    }
    code, report, shown = check(*data(lists))
    assert code == 1
    assert report["lists"][0]["unreadable"][0]["clip"] == evil
    assert r"'[red]\x1b[31m:smile:\u202e\x07[bold].mp4' (line 1): No such file" in shown
    assert "\x1b[2J" not in shown and "\x07" not in shown and ("\x1b" in shown) == colour
    assert check_display.visible("a\nb\udcff é") == r"a\nb\udcff é"


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(data, capsys, monkeypatch, tmp_path):
    lists = {("lh", "train"): rows_of("ok0.mp4", "ok1.mp4"), ("lh", "val"): rows_of("ok2.mp4", "ok3.mp4")}
    flags = [*map(str, data(lists)), "--output", str(tmp_path / "check.json")]
    monkeypatch.setattr(check_display, "_PLAIN_SECONDS", 0)
    assert check_dataset.main(flags) == 0
    assert "decoded 4 of 4 clips, 0 unreadable\n" in capsys.readouterr().err
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert check_dataset.main(flags) == 0
    error = capsys.readouterr().err
    assert "decoding clips" in error and "4/4" in error and "0 unreadable" in error


def test_bad_flags_are_one_line(data, capsys, tmp_path):
    flags = list(map(str, data({("lh", "train"): rows_of("ok0.mp4"), ("lh", "val"): rows_of("ok1.mp4")})))
    (tmp_path / "file").touch()
    for bad, message in (
        (["--output", tmp_path], f"--output {tmp_path}: is a folder"),
        (["--output", tmp_path / "file" / "x"], "--output"),
        (["--fname_tmpl", "img.jpg", "--output", tmp_path / "x"], "--fname_tmpl"),
        (["--num_frames", 5], "--tubelet_size"),
    ):
        assert check_dataset.main([*flags, *map(str, bad)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("check_dataset: ") and message in error and error.count("\n") == 1
    with pytest.raises(SystemExit):
        check_dataset.main([*flags, "--decode_timeout", "-1"])


def test_report_that_cannot_be_written_is_shown_all_the_same(data, capsys, tmp_path, monkeypatch):
    def no_space(path, report):
        raise UserError(f"{path}: cannot be written: No space left on device")

    flags = data({("lh", "train"): rows_of("ok0.mp4"), ("lh", "val"): rows_of("ok1.mp4")})
    monkeypatch.setattr(check_dataset.utils, "write_json", no_space)
    assert check_dataset.main([*map(str, flags), "--output", str(tmp_path / "x")]) == 1
    captured = capsys.readouterr()
    assert "No space left" in captured.err and "2 files decoded" in captured.out


def test_interrupt_leaves_nothing_behind(data, tmp_path, capsys):
    (tmp_path / "lh" / "videos").mkdir(parents=True)
    os.mkfifo(tmp_path / "lh" / "videos" / "fifo.mp4")
    lists = {("lh", "train"): rows_of("fifo.mp4", "ok1.mp4"), ("lh", "val"): rows_of("ok2.mp4", "ok3.mp4")}
    flags = [*map(str, data(lists)), "--output", str(tmp_path / "made" / "x")]
    done = threading.Event()

    def interrupt_when_the_clip_is_being_read():
        with (tmp_path / "lh" / "videos" / "fifo.mp4").open("wb"):
            time.sleep(2)  # until all processes are there
            os.kill(os.getpid(), signal.SIGINT)
            done.wait()

    thread = threading.Thread(target=interrupt_when_the_clip_is_being_read)
    # Where the tests run in the background, the shell has told them to ignore it.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread.start()
    try:
        assert check_dataset.main(flags) == 130
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGINT, previous)
    assert capsys.readouterr().err == "check_dataset: stopped; nothing was written\n"
    assert list((tmp_path / "made").iterdir()) == []
    assert not multiprocessing.active_children()


# ------------------------------------------------------------------------------------- processes


def misbehave(clip):
    """A probe that does what the clip's name says."""
    if clip.place == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if clip.place == "sleep":
        time.sleep(60)
    return ClipFacts(clip.n_frames)


@pytest.mark.parametrize("num_workers", [1, 3, 50])
def test_clips_that_kill_or_hang_their_process_cost_only_themselves(num_workers):
    places = ["fine", "die", "die", "fine", "sleep", "fine", "die", "fine"]
    clips = [ClipFile(place, number) for number, place in enumerate(places)]
    found = [pair for pairs in probe_clips(clips, misbehave, num_workers, 0.5) for pair in pairs]
    assert sorted(clip for clip, _ in found) == list(range(len(clips)))
    problems = {"fine": "", "die": "decoding it ended the process (exit code -9)"}
    problems["sleep"] = "decoding it takes longer than 0.5 s"
    for clip, facts in found:
        assert facts.problem == problems[places[clip]]
        assert facts.problem or facts.n_frames == clip
    assert not multiprocessing.active_children()


def test_caller_hears_from_a_slow_clip_and_may_leave():
    results = probe_clips([ClipFile("sleep", 0)], misbehave, 1, 60)
    assert next(results) == next(results) == []
    results.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("sparse", [False, True])
def test_frames_are_those_of_training_and_both_evaluations(sparse):
    window = {"num_frames": 4, "sampling_rate": 2, "short_clips": "published", "sparse": sparse}
    prober = ClipProber(ClipReader(), window, num_segment=3, seed=5)
    wanted = functools.partial(prober.wanted_frames, 50)
    drawn = {tuple(wanted(seed)[:4]) for seed in range(20)}
    assert len(drawn) > 5
    assert wanted(1)[4:8].tolist() == sampling.validation_indices(50, **window).tolist()
    assert wanted(1)[8:].tolist() == sampling.test_views(50, num_segment=3, **window).ravel().tolist()


def test_any_exception_of_a_library_is_a_fact_about_the_clip():
    class Broken(ClipReader):
        def read_and_check(self, place, n_frames, choose):
            raise RuntimeError("out\nof luck")

    prober = ClipProber(Broken(), {}, 1, 0)
    assert prober(ClipFile("a.mp4", 0)) == ClipFacts(problem="RuntimeError: out of luck")
