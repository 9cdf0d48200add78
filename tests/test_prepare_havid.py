"""From recordings with a label a frame to clips and lists, on real files whose frames show their number."""

import hashlib
import json
import multiprocessing
import time

import av
import decord
import numpy as np
import pytest
from conftest import MODEL_FLAGS, ROOT

from dataset.annotations import read_clip_list
from dataset.video import count_frames
from scripts.data import cut_clips, make_sample_havid, measure_keyframes, prepare_havid
from scripts.data.clip_plan import Clip, Rules, balanced_windows
from scripts.data.cut_clips import ClipCutter, Cut, CutJob
from scripts.data.havid_layout import find_bundle, is_of_view, read_bundle, read_mapping, read_segments
from utils import UserError

BITS, CELL = 8, 8  # a frame's number, as black and white squares of some pixels
LABELS = ("null", "take", "put down")


def numbered_frames(count, height=48, width=80):
    """Frames `(count, H, W, 3)` whose number can be read in the picture, also when it is scaled."""
    frames = np.full((count, height, width, 3), 128, np.uint8)
    for number in range(count):
        for bit in range(BITS):
            frames[number, :CELL, bit * CELL : (bit + 1) * CELL] = 255 * (number >> bit & 1)
    return frames


def read_numbers(path, height=48):
    """The numbers that are burnt into a clip's frames."""
    frames = decord.VideoReader(str(path), num_threads=1)[:].asnumpy()
    cell = CELL * frames.shape[1] / height
    columns = ((np.arange(BITS) + 0.5) * cell).astype(int)
    bits = frames[:, int(cell / 2), columns].mean(axis=2) > 128
    return (bits << np.arange(BITS)).sum(axis=1).tolist()


def write_recording(path, frames, codec="libx264", **options):
    """As a camera's file: few keyframes, frames that refer to later ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"preset": "ultrafast", "bf": "2", **options})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def runs(*pairs):
    """One label a frame of (label, frames) pairs."""
    return [label for label, count in pairs for _ in range(count)]


TRUTH = {
    "lh": runs(("take", 13), ("null", 4), ("put down", 21), ("take", 22)),
    "rh": runs(("null", 7), ("take", 30), ("put down", 23)),
}


def write_hand(truth, bundles, mapping, rows, splits):
    for folder in (truth, bundles, mapping.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for name, labels in rows.items():
        (truth / f"{name}.txt").write_text("".join(f"{label}\n" for label in labels))
    for name, names in splits.items():
        (bundles / name).write_text("".join(f"{one}.txt\n" for one in names))
    mapping.write_text("".join(f"{number} {label}\n" for number, label in enumerate(LABELS)))


@pytest.fixture(scope="session")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("recording") / "r.mp4"
    write_recording(path, numbered_frames(60))
    return path


@pytest.fixture
def raw(tmp_path, recording):
    """A download of two recordings, folders named after view, hand and tasks."""
    root = tmp_path / "raw"
    root.mkdir()
    splits = {"train.split1.bundle": ["S01M0"], "test.split1.bundle": ["S02M0"]}
    for name in ("S01M0", "S02M0"):
        (root / f"{name}.mp4").hardlink_to(recording)
    for hand in ("lh", "rh"):
        folder = root / f"view0_{hand}_pt"
        rows = {name: TRUTH[hand] for name in ("S01M0", "S02M0")}
        write_hand(folder / "groundTruth", folder / "splits", folder / "mapping.txt", rows, splits)
    return root


@pytest.fixture
def prepare(tmp_path, capsys):
    """Runs the command; returns its exit code, report, and what it printed."""

    def call(root, *flags, output=tmp_path / "out"):
        command = ["--input", root, "--output", output, "--workers", "1", *flags]
        code = prepare_havid.main([str(word) for word in command])
        report = output / "prepare_report.json"
        shown = capsys.readouterr()
        return code, json.loads(report.read_text()) if report.is_file() else None, shown.out + shown.err

    return call


def clips_of(output, hand, split):
    """{(first frame, one behind the last): label} of a list."""
    clips = read_clip_list(output / f"{hand}_v0" / f"{split}_list_video.txt")
    return {spans(name): label for name, label in zip(clips, clips.labels.tolist(), strict=True)}


def spans(name):
    return tuple(int(part) for part in name.removesuffix(".mp4").split("_")[-2:])


def content_of(output, kinds=("*.mp4", "*.txt")):
    paths = sorted(path for kind in kinds for path in output.rglob(kind))
    return {str(p.relative_to(output)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def reasons(report):
    return [(skip["hand"], skip["recording"], skip["reason"]) for skip in report["skipped"]]


# -------------------------------------------------------------------------------------- cutting


def test_clips_hold_exactly_their_frames_and_lists_their_labels(raw, prepare, tmp_path):
    code, report, shown = prepare(raw)
    assert code == 0, shown
    for split in ("train", "val"):
        assert clips_of(tmp_path / "out", "lh", split) == {(0, 13): 1, (13, 17): 0, (17, 38): 2, (38, 60): 1}
        assert clips_of(tmp_path / "out", "rh", split) == {(0, 7): 0, (7, 37): 1, (37, 60): 2}
    videos = list((tmp_path / "out").rglob("*.mp4"))
    assert len(videos) == 14 == report["made"]
    for path in videos:
        assert read_numbers(path) == list(range(*spans(path.name)))
    assert report["lists"]["lh"]["train"] == {
        **{"clips": 4, "frames": 60},
        "classes": {"null": 1, "take": 2, "put down": 1},
    }
    assert (report["skipped"], report["notes"], report["warnings"]) == ([], [], 0)
    assert (tmp_path / "out" / "rh_v0" / "mapping.txt").read_text() == "0 null\n1 take\n2 put down\n"


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_cuts_are_exact_in_scaled_clips_too(tmp_path, codec):
    write_recording(tmp_path / "r.mp4", numbered_frames(90, 96, 160), codec, g="30")
    cuts = (Cut(tmp_path / "a.mp4", 29, 61), Cut(tmp_path / "b.mp4", 30, 31), Cut(tmp_path / "c.mp4", 61, 90))
    result = ClipCutter(48, 4, 20)(CutJob(tmp_path / "r.mp4", cuts))
    assert (result.made, result.problems, result.failure) == (3, {}, "")
    for cut in cuts:
        assert cut_clips.is_whole(cut, (48, 80))
        assert read_numbers(cut.path, 96) == list(range(cut.start, cut.stop))


@pytest.mark.parametrize(
    "interval, expected", [(1, range(40)), (4, range(0, 40, 4)), (16, (0, 16, 32)), (0, (0,))]
)
def test_keyframes_come_at_the_interval_and_not_where_the_recording_has_them(
    tmp_path, recording, interval, expected
):
    cut = Cut(tmp_path / "a.mp4", 5, 45)
    ClipCutter(320, interval, 20)(CutJob(recording, (cut,)))
    with av.open(str(cut.path)) as container:
        assert [i for i, f in enumerate(container.decode(video=0)) if f.key_frame] == list(expected)


@pytest.mark.parametrize("side, size", [(320, (48, 80)), (24, (24, 40)), (33, (32, 56))])
def test_short_side_is_reached_by_shrinking_only(side, size):
    assert ClipCutter(side, 4, 20).clip_size(48, 80) == size
    assert ClipCutter(side, 4, 20).clip_size(80, 48) == size[::-1]


def test_rotated_recordings_are_cut_upright(tmp_path):
    cut = Cut(tmp_path / "a.mp4", 0, 3)
    ClipCutter(160, 4, 20)(CutJob(ROOT / "tests" / "clips" / "video_90.mov", (cut,)))
    source = decord.VideoReader(str(ROOT / "tests" / "clips" / "video_90.mov"))[0].asnumpy()
    clip = decord.VideoReader(str(cut.path))[0].asnumpy()
    assert clip.shape == (284, 160, 3) and source.shape == (568, 320, 3)
    assert np.abs(clip.astype(int) - source[::2, ::2]).mean() < 12


def test_colours_mean_the_same_in_clips(tmp_path):
    frames = np.full((5, 48, 64, 3), (220, 40, 90), np.uint8)
    with av.open(str(tmp_path / "r.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.codec_context.colorspace = 48, 64, 1  # BT.709
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace=1)))
        container.mux(stream.encode(None))
    ClipCutter(320, 4, 10)(CutJob(tmp_path / "r.mp4", (Cut(tmp_path / "a.mp4", 1, 4),)))
    clip = decord.VideoReader(str(tmp_path / "a.mp4"))[1].asnumpy()
    assert np.abs(clip.astype(int) - frames[0]).max() < 8


def test_clip_that_reads_back_otherwise_is_not_kept(tmp_path, recording, monkeypatch):
    monkeypatch.setattr(cut_clips, "_decoded_shape", lambda path: (3, 48, 80))
    cut = Cut(tmp_path / "a.mp4", 0, 4)
    result = ClipCutter(320, 4, 20)(CutJob(recording, (cut,)))
    assert result.made == 0 and "reads back as (3, 48, 80)" in result.problems[cut.path]
    assert list(tmp_path.iterdir()) == []


def test_recording_that_ends_early_loses_only_the_clips_at_its_end(tmp_path, recording):
    cuts = (Cut(tmp_path / "a.mp4", 0, 20), Cut(tmp_path / "b.mp4", 50, 70), Cut(tmp_path / "c.mp4", 80, 90))
    result = ClipCutter(320, 4, 20)(CutJob(recording, cuts))
    reason = "only 60 frames of the recording can be decoded"
    assert (result.made, result.problems) == (1, {cuts[1].path: reason, cuts[2].path: reason})
    assert list(tmp_path.iterdir()) == [cuts[0].path]


# ------------------------------------------------------------------------------ layouts, files


def test_published_guides_layout_gives_the_same_clips(raw, prepare, recording, tmp_path):
    prepare(raw)
    guide = tmp_path / "guide"
    names = ["S01M0", "S01M1", "S02M0"]
    splits = {"training.bundle": ["S01M0", "S01M1"], "testing.bundle": ["S02M0"]}
    for name in names:
        (guide / "videos").mkdir(parents=True, exist_ok=True)
        (guide / "videos" / f"{name}.mp4").hardlink_to(recording)
    for hand, side in (("lh", "left_hand"), ("rh", "right_hand")):
        rows = {name: TRUTH[hand] for name in names}
        write_hand(guide / "groundTruth" / side, guide / "splits" / side, guide / "mapping.txt", rows, splits)
    code, _, shown = prepare(guide, output=tmp_path / "other")
    assert code == 0, shown
    assert content_of(tmp_path / "other") == content_of(tmp_path / "out")


def test_view_tasks_and_split_choose_the_folder_and_the_bundles(raw, prepare, tmp_path):
    for hand in ("lh", "rh"):
        (raw / f"view0_{hand}_pt").rename(raw / f"view2_{hand}_aa")
        bundles = raw / f"view2_{hand}_aa" / "splits"
        (bundles / "train.split1.bundle").rename(bundles / "train.split2.bundle")
        (bundles / "test.split1.bundle").rename(bundles / "test.split2.bundle")
        for path in (raw / f"view2_{hand}_aa").rglob("*.bundle"):
            path.write_text(path.read_text().replace("M0", "M2"))
        for name in ("S01M0", "S02M0"):
            truth = raw / f"view2_{hand}_aa" / "groundTruth"
            (truth / f"{name}.txt").rename(truth / f"{name[:-1]}2.txt")
    for name in ("S01M0", "S02M0"):
        (raw / f"{name}.mp4").rename(raw / f"{name[:-1]}2.mp4")
    code, _, shown = prepare(raw, "--view", "2", "--tasks", "aa", "--split", "2")
    assert code == 0, shown
    code, _, shown = prepare(raw, "--view", "2", "--tasks", "aa")
    assert code == 1 and "is of split 1, see --split" in shown


@pytest.mark.parametrize(
    "text",
    [
        "0 null\n1 take\n2 put down\n",
        "null 0\ntake 1\nput down 2\n",
        "0\tnull\n1\ttake\n2\tput down\n",
        "null,0\ntake,1\nput down,2\n",
        "2, put down\r\n0, null\r\n\r\n1, take\r\n",
        "\ufeff0 null\n1 take\n2 put down",
    ],
)
def test_every_form_of_mapping_is_read(tmp_path, text):
    (tmp_path / "mapping.txt").write_text(text, newline="")
    assert read_mapping(tmp_path / "mapping.txt") == {"null": 0, "take": 1, "put down": 2}


def test_labels_that_are_numbers_are_not_taken_for_ids(tmp_path):
    (tmp_path / "mapping.txt").write_text("7 0\n12 1\n3 2\n")
    assert read_mapping(tmp_path / "mapping.txt") == {"7": 0, "12": 1, "3": 2}


@pytest.mark.parametrize(
    "text, message",
    [
        ("0 a\n2 b\n", "ids must be 0 to 1"),
        ("1 a\n2 b\n", "ids must be 0 to 1"),
        ("0 a\n0 b\n", "ids must be 0 to 1"),
        ("0 a\n1 a\n", "label 'a' has two ids"),
        ("0 a\nb 1\n", "neither all"),
        ("a\nb\n", "neither all"),
        ("\n", "is empty"),
    ],
)
def test_bad_mapping_is_an_error(tmp_path, text, message):
    (tmp_path / "mapping.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_mapping(tmp_path / "mapping.txt")


def test_bundles_name_recordings_in_several_ways(tmp_path):
    (tmp_path / "train.bundle").write_text("S1.txt\nS2\n\ndata/groundTruth/S3.TXT\r\nS4.mp4\nS1\n")
    assert read_bundle(tmp_path / "train.bundle") == ["S1", "S2", "S3", "S4"]


@pytest.mark.parametrize(
    "names, split, found",
    [
        (["test.split1.bundle", "test.split11.bundle"], 1, "test.split1.bundle"),
        (["test.split1.bundle", "test.split2.bundle"], 2, "test.split2.bundle"),
        (["testing.bundle", "training.bundle"], 1, "testing.bundle"),
        (["val.bundle"], 1, "val.bundle"),
        (["test_view0.bundle"], 1, "test_view0.bundle"),
        (["test.split2.bundle"], 1, None),
        (["train.bundle"], 1, None),
    ],
)
def test_bundle_of_a_split_is_found(tmp_path, names, split, found):
    for name in names:
        (tmp_path / name).touch()
    if found is None:
        with pytest.raises(UserError):
            find_bundle(tmp_path, ("test", "val"), split)
    else:
        assert find_bundle(tmp_path, ("test", "val"), split).name == found


def test_runs_of_labels(tmp_path):
    (tmp_path / "a.txt").write_text("a\na\nb b\na\n\n")
    assert read_segments(tmp_path / "a.txt") == [(0, 2, "a"), (2, 3, "b b"), (3, 4, "a")]
    (tmp_path / "a.txt").write_text("a\n\nb\n")
    with pytest.raises(UserError, match=r"a.txt:2: there is no label"):
        read_segments(tmp_path / "a.txt")


def test_view_is_the_digit_behind_m():
    assert [is_of_view(name, 1) for name in ("S01A02I01M1", "S01A02I01M0", "take3")] == [True, False, True]


# -------------------------------------------------------------------------- options and reports


def test_labels_are_dropped_and_short_segments_left_out(raw, prepare, tmp_path):
    code, report, shown = prepare(raw, "--drop", "null", "--min_frames", "20")
    assert code == 0 and clips_of(tmp_path / "out", "lh", "train") == {(17, 38): 2, (38, 60): 1}
    assert report["warnings"] == 0 and len(report["skipped"]) == 6
    assert {reason for _, _, reason in reasons(report)} == {"--drop null", "shorter than --min_frames 20"}
    assert report["skipped"][0]["frames"] == [0, 13]
    assert "skipped 4: --drop null" in shown
    assert report["lists"]["lh"]["train"]["classes"]["null"] == 0  # classes keep their numbers
    code, _, shown = prepare(raw, "--drop", "nul")
    assert code == 1 and "--drop nul: neither hand's mapping.txt has this label" in shown


def test_what_cannot_be_used_is_reported_with_its_reason(raw, prepare, tmp_path):
    truth = raw / "view0_lh_pt" / "groundTruth"
    bundle = raw / "view0_lh_pt" / "splits" / "train.split1.bundle"
    bundle.write_text("S01M0\nS03M0\nS04M0\nS05M0\nS06M0\nS02M0\n")
    (truth / "S01M0.txt").write_text("take\n" * 20 + "wave\n" * 10 + "take\n" * 50)
    (truth / "S03M0.txt").write_text("take\n" * 60)
    (truth / "S04M0.txt").write_text("take\n" * 60)
    (raw / "S04M0.mp4").write_bytes(b"no video")
    (truth / "S05M0.txt").write_text("")
    for name in ("S05M0", "S06M0"):
        (raw / f"{name}.mp4").hardlink_to(raw / "S01M0.mp4")
    (raw / "view0_rh_pt" / "groundTruth" / "S02M0.txt").write_text("take\n" * 50)
    code, report, shown = prepare(raw)
    damaged = f"prepare_havid: {raw / 'S04M0.mp4'}: Invalid data found when processing input"
    assert code == 1 and shown.splitlines()[-1] == damaged
    assert sorted(reasons(report)) == [
        ("lh", "S01M0", "label 'wave' is not in mapping.txt"),
        ("lh", "S02M0", "is in the test split too"),
        ("lh", "S03M0", "there is no recording of this name"),
        ("lh", "S04M0", "the recording cannot be read: Invalid data found when processing input"),
        ("lh", "S05M0", "its groundTruth is empty"),
        ("lh", "S06M0", "groundTruth has no file of this name"),
    ]
    assert report["notes"] == [
        "lh S01M0: 80 labels, 60 frames; cut at 60",
        "rh S02M0: 50 labels, 60 frames; cut at 50",
    ]
    assert report["warnings"] == 8 and "8 warnings" in shown
    assert clips_of(tmp_path / "out", "lh", "train") == {(0, 20): 1, (30, 60): 1}
    assert clips_of(tmp_path / "out", "rh", "val") == {(0, 50): 1}


def test_damaged_recording_costs_only_its_own_clips(raw, prepare, tmp_path):
    damaged = bytearray((raw / "S01M0.mp4").read_bytes())
    start = damaged.index(b"mdat") + 4
    damaged[start : start + 40] = bytes(40)  # the header still counts 60 frames
    (raw / "S01M0.mp4").unlink()
    (raw / "S01M0.mp4").write_bytes(damaged)
    code, report, shown = prepare(raw)
    assert code == 1 and "lh train: no clip could be made" in shown
    assert report["made"] == 7 and {name for _, name, _ in reasons(report)} == {"S01M0"}
    assert len(clips_of(tmp_path / "out", "rh", "val")) == 3


@pytest.mark.parametrize(
    "gone", ["view0_rh_pt", "view0_lh_pt/groundTruth", "view0_lh_pt/splits", "view0_rh_pt/mapping.txt"]
)
def test_missing_folder_is_named_in_one_line(raw, prepare, tmp_path, gone):
    (raw / gone).rename(tmp_path / "away")
    code, report, shown = prepare(raw)
    assert code == 1 and report is None and not (tmp_path / "out").exists()
    assert shown.startswith("prepare_havid: ") and str(raw / gone) in shown and shown.count("\n") == 1


def test_no_recordings_at_all_is_an_error(raw, prepare):
    for path in raw.glob("*.mp4"):
        path.unlink()
    code, _, shown = prepare(raw)
    assert code == 1 and "holds no recordings" in shown


def test_windows_are_balanced_over_classes_and_seeded():
    rules = Rules(view=0, min_frames=1, drop=frozenset(), window=10, per_class=6, seed=3)
    long, short = "a.mp4", "b.mp4"
    make = [Clip("lh", "train", ROOT / long, 0, 200, 0), Clip("lh", "train", ROOT / short, 50, 60, 0)]
    make += [Clip("lh", "train", ROOT / short, 0, 12, 1)]
    windows = balanced_windows(make, rules)
    assert [window.label for window in windows] == [0] * 6 + [1] * 3  # there are only 3 places
    assert all(window.stop - window.start == 10 for window in windows)
    assert sorted(window.start for window in windows if window.label == 1) == [0, 1, 2]
    for window in windows:
        assert any(
            c.start <= window.start and window.stop <= c.stop and c.recording == window.recording
            for c in make
            if c.label == window.label
        )
    assert len(set(windows)) == 9 and windows == balanced_windows(make, rules)
    assert windows != balanced_windows(make, Rules(0, 1, frozenset(), 10, 6, seed=4))


def test_window_method_cuts_windows(raw, prepare, tmp_path):
    code, report, shown = prepare(raw, "--method", "window", "--window", "20", "--per_class", "2")
    assert code == 0, shown
    assert report["lists"]["lh"]["train"]["classes"] == {"null": 0, "take": 2, "put down": 2}
    for path in (tmp_path / "out").rglob("*.mp4"):
        numbers = read_numbers(path)
        assert len(numbers) == 20 and numbers == list(range(*spans(path.name)))
    assert ("lh", "S01M0", "shorter than --window 20") in reasons(report)


# ------------------------------------------------------------------------ again, and from where


def test_second_run_changes_nothing(raw, prepare, tmp_path):
    prepare(raw)
    before = content_of(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.mp4")}
    code, report, _ = prepare(raw, "--workers", "2")
    assert code == 0 and (report["made"], report["kept"]) == (0, 14)
    assert content_of(tmp_path / "out") == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_missing_and_damaged_clips_are_made_again(raw, prepare, tmp_path):
    prepare(raw)
    before = content_of(tmp_path / "out")
    gone, half, *_ = sorted((tmp_path / "out" / "rh_v0" / "videos").iterdir())
    gone.unlink()
    half.write_bytes(half.read_bytes()[:300])
    (half.parent / ".left.mp4.1.part").touch()
    code, report, _ = prepare(raw)
    assert code == 0 and (report["made"], report["kept"]) == (2, 12)
    assert content_of(tmp_path / "out") == before
    assert not list((tmp_path / "out").rglob("*.part"))


def test_output_made_otherwise_is_left_alone(raw, prepare, tmp_path):
    prepare(raw)
    code, _, shown = prepare(raw, "--keyframe_interval", "16")
    assert code == 1 and "was made with --keyframe_interval" in shown
    (tmp_path / "out" / "prepare_settings.json").unlink()
    code, _, shown = prepare(raw)
    assert code == 1 and "holds data that this program did not make" in shown


def test_killed_run_is_finished_by_the_next(raw, prepare, tmp_path):
    prepare(raw, output=tmp_path / "whole")
    frames = np.random.default_rng(0).integers(0, 255, (60, 240, 320, 3), np.uint8)  # noise takes time
    for name in ("S01M0", "S02M0"):
        (raw / f"{name}.mp4").unlink()
        write_recording(raw / f"{name}.mp4", frames)
    output = tmp_path / "out"
    flags = [str(word) for word in ("--input", raw, "--output", output, "--workers", 2)]
    process = multiprocessing.get_context("fork").Process(target=prepare_havid.main, args=[flags])
    process.start()
    deadline = time.monotonic() + 60
    while not list(output.rglob("*.mp4")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    made = list(output.rglob("*.mp4"))
    assert 0 < len(made) < 14 and not (output / "lh_v0" / "train_list_video.txt").exists()
    code, report, shown = prepare(raw)
    assert code == 0, shown
    assert report["kept"] >= len(made) and report["kept"] + report["made"] == 14
    names = {path.relative_to(output) for path in output.rglob("*.mp4")}
    assert names == {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.mp4")}
    for path in output.rglob("*.mp4"):
        start, stop = spans(path.name)
        assert cut_clips.is_whole(Cut(path, start, stop), (240, 320))


# -------------------------------------------------------------------------------- sample, tools


@pytest.fixture(scope="module")
def raw_sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "sample"
    flags = ["--raw", "--recordings", "5", "--size", "48", "64", "--workers", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_sample_havid, "_RAW_ACTIONS", 4)
        assert make_sample_havid.main(["--output", str(folder), *flags]) == 0
    return folder


def test_raw_sample_has_a_label_for_each_frame_and_is_repeatable(raw_sample, tmp_path, monkeypatch):
    monkeypatch.setattr(make_sample_havid, "_RAW_ACTIONS", 4)
    for path in raw_sample.glob("*.mp4"):
        frames = count_frames(path)
        for hand in ("lh", "rh"):
            truth = raw_sample / f"view0_{hand}_pt" / "groundTruth" / f"{path.stem}.txt"
            assert len(truth.read_text().splitlines()) == frames
    sample = make_sample_havid.SampleSet("sample", 5, 0, (48, 64), raw=True)
    assert not make_sample_havid.make_sample(raw_sample, sample, 1)
    make_sample_havid.make_session(tmp_path, sample, make_sample_havid.plan_raw(sample)[1])
    again = next(tmp_path.glob("*.mp4"))
    assert again.read_bytes() == (raw_sample / again.name).read_bytes()
    other = make_sample_havid.SampleSet("sample", 5, 0, (48, 64))
    with pytest.raises(make_sample_havid.SampleError, match="made with --raw"):
        make_sample_havid.make_sample(raw_sample, other, 1)


def test_raw_sample_is_prepared_trained_on_and_tested(raw_sample, prepare, run_main, tmp_path):
    code, report, shown = prepare(raw_sample, "--drop", "null")
    assert code == 0 and report["warnings"] == 0, shown
    data = [
        word for hand in ("lh", "rh") for word in (f"--{hand}_data_path", tmp_path / "out" / f"{hand}_v0")
    ]
    result = run_main(
        *data,
        *MODEL_FLAGS,
        *("--data_set", "CUSTOM", "--num_workers", "0", "--device", "cpu", "--batch_size", "8"),
        *(
            "--epochs",
            "1",
            "--warmup_epochs",
            "0",
            "--alternation_steps",
            "1",
            "--output_dir",
            tmp_path / "run",
        ),
        *("--test_num_segment", "1", "--test_num_crop", "1", "--no_report"),
    )
    assert result.code == 0, result.output
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["lh"]["clips"], metrics["lh"]["unreadable"]) == (4, 0)


def test_keyframe_intervals_are_measured(recording, capsys):
    flags = ["--intervals", "1", "0", "--cut", "30", "--samples", "1"]
    assert measure_keyframes.main([*flags, str(recording)]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert [row[0].strip() for row in rows[2:]] == ["1", "default"]
    assert float(rows[2][1]) > float(rows[3][1]) > 0
    assert measure_keyframes.main(["--cut", "90", str(recording)]) == 1


@pytest.mark.parametrize("module", [prepare_havid, measure_keyframes])
def test_help_says_how_the_program_is_started(module, capsys):
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    assert end.value.code == 0 and f"python -m {module.__name__} " in capsys.readouterr().out
