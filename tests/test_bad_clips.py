"""Clips of every kind of damage, as files: what training replaces, counts and remembers; coverage."""

import csv
import json
import multiprocessing
import os
import re
import shutil
import time

import av
import numpy as np
import pytest
from conftest import (
    CLASSES,
    FULL,
    ROOT,
    assert_same_run,
    draw_recording,
    load,
    metrics_of,
    only_error,
    write_list,
    write_video,
)

import run_alternating_hand_finetuning as run
from dataset.build import build_dataset, build_loader
from dataset.datasets import ClipKey

# --------------------------------------------------------------------------------- kinds of clips


def write_audio(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux([*stream.encode(sound), *stream.encode(None)])


def write_no_frames(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()


def write_truncated(path, **options):
    """The first 60% of a video; `faststart` has its index ahead, so that only pictures are missing."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 128, 160, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in draw_recording(1, 128, 160, 60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])


def write_odd(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 47, 63, "yuv444p"
        stream.codec_context.thread_count = 1
        for frame in draw_recording(4, 47, 63, 30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def copy_of(name):
    return lambda path: shutil.copyfile(ROOT / "tests" / "clips" / name, path)


BAD = {
    "missing.mp4": lambda path: None,
    "empty.mp4": lambda path: path.touch(),
    "truncated.mp4": write_truncated,
    "truncated_pictures.mp4": lambda path: write_truncated(path, movflags="faststart"),
    "text.mp4": lambda path: path.write_text("no video\n" * 100),
    "audio.mp4": write_audio,
    "no_frames.mp4": write_no_frames,
    "corrupted.mp4": copy_of("corrupted.mp4"),
}
REASONS = {
    **dict.fromkeys(BAD, "Invalid data found when processing input"),
    "missing.mp4": "No such file or directory",
    "audio.mp4": "holds no video",
    "no_frames.mp4": "holds no video",
}
IN_PART = ("corrupted.mp4", "truncated_pictures.mp4")  # some windows of these can be read


def without_frame(reason):
    """A reason without the number of the damaged frame, which depends on the window."""
    return re.sub(r"^frame \d+ is damaged or missing: ", "", reason)


READABLE = {
    "one_frame.mp4": lambda path: write_video(path, draw_recording(2, n_frames=1)),
    "huge.mp4": lambda path: write_video(path, draw_recording(3, 2304, 4096, 4)),
    "odd.mp4": write_odd,
    "rotated.mov": copy_of("video_90.mov"),
    "timestamps.mov": copy_of("unordered.mov"),
}
SOUND = [f"r{number:02}.mp4" for number in range(8)]


@pytest.fixture(scope="module")
def clips(sample, tmp_path_factory):
    """A folder with a clip of every kind, and sound ones."""
    folder = tmp_path_factory.mktemp("kinds") / "videos"
    folder.mkdir()
    for name, write in (BAD | READABLE).items():
        write(folder / name)
    for name in SOUND:
        (folder / name).symlink_to(sample.path("lh") / "videos" / name)
    return folder


def write_lists(folder, clips, **names):
    """A hand's folder with lists of these clips, labelled in turn; its flags for both hands."""
    for split, of_split in names.items():
        rows = [(clips / name, of_split.index(name) % 3) for name in of_split]
        write_list(folder / f"{split}_list_video.txt", rows)
    return ("--lh_data_path", folder, "--rh_data_path", folder)


def bad_clips_of(folder, hand="lh"):
    rows = (line.split("\t") for line in (folder / f"bad_clips_{hand}.txt").read_text().splitlines())
    return [(name.rpartition("/")[2], reason) for name, reason in rows]


# ------------------------------------------------------------------------------------- replacing


def samples_of(clips, folder, workers, hand="lh", seed=0):
    """{(pass, clip): sample's name} and {bad clip: reason} of three passes over every kind."""
    names = [*SOUND, *BAD, *READABLE]
    write_lists(folder, clips, train=names)
    sizes = {"clip_len": 4, "frame_sample_rate": 2, "crop_size": 32, "short_side_size": 36}
    dataset = build_dataset("train", folder, num_sample=2, hand=hand, seed=seed, **sizes)
    keys = [ClipKey(hand, pass_, clip) for pass_ in range(3) for clip in range(len(names))]
    served, reasons = {}, {}
    for key, batch in zip(keys, build_loader({hand: dataset}, [[key] for key in keys], workers), strict=True):
        assert batch.frames.shape == (2, 4, 32, 32, 3)
        served[key.pass_, names[key.clip]] = batch.names[0].rpartition("/")[2]
        reasons |= {bad.name.rpartition("/")[2]: bad.reason for bad in batch.bad}
    return served, reasons


@pytest.fixture(scope="module")
def served(clips, tmp_path_factory):
    return samples_of(clips, tmp_path_factory.mktemp("lists"), 0)


def test_unusual_clips_are_trained_on_and_broken_ones_are_replaced(served):
    names, reasons = served
    assert {name: without_frame(reason) for name, reason in reasons.items()} == REASONS
    assert {name for name, reason in reasons.items() if reason.startswith("frame ")} == set(IN_PART)
    for (_, listed), name in names.items():
        if listed in BAD:
            assert name in SOUND or name in READABLE or name in IN_PART
        else:
            assert name == listed


def test_replacement_follows_from_seed_hand_pass_and_clip_and_not_from_workers(served, clips, tmp_path):
    names, reasons = served
    assert samples_of(clips, tmp_path, 2) == (names, reasons)
    by_pass = [[names[pass_, listed] for listed in BAD] for pass_ in range(3)]
    assert by_pass[0] != by_pass[1] != by_pass[2]
    assert len(set(by_pass[0])) > 1
    for other in ({"seed": 1}, {"hand": "rh"}):
        assert samples_of(clips, tmp_path, 0, **other)[0] != names


# --------------------------------------------------------------------------------- the whole run


@pytest.mark.parametrize("workers", [0, 2])
def test_run_lists_each_bad_clip_once_with_its_reason(run_main, tiny_flags, clips, tmp_path, workers):
    flags = write_lists(tmp_path, clips, train=[*SOUND, *BAD, *READABLE], val=SOUND)
    quick = ("--max_bad_clips", 0.5, "--epochs", 4, "--alternation_steps", 6, "--num_workers", workers)
    result = run_main(*tiny_flags, *flags, *quick, "--output_dir", tmp_path / "run")
    assert result.code == 0, result.output
    for hand in CLASSES:
        listed = bad_clips_of(tmp_path / "run", hand)
        assert [(name, without_frame(reason)) for name, reason in listed] == sorted(REASONS.items())
        saved = load(tmp_path / "run" / "checkpoint-last.pth")["alternating"]
        bad = {name.rpartition("/")[2]: reason for name, reason in saved["bad_clips"][hand].items()}
        assert bad == dict(listed)
        assert {name.rpartition("/")[2] for name in saved["lasting"][hand]} == set(REASONS) - set(IN_PART)
    assert "lh: 8 unreadable clips were replaced so far, see " in result.output


def test_too_many_bad_clips_end_the_run_in_one_line(run_main, tiny_flags, clips, tmp_path):
    flags = write_lists(tmp_path, clips, train=[*SOUND, *BAD], val=SOUND)
    folder = tmp_path / "run"
    result = run_main(*tiny_flags, *flags, "--max_bad_clips", 0.1, "--output_dir", folder)
    assert result.code == 1
    line = only_error(result.output)
    listed = bad_clips_of(folder)
    assert f"error: --max_bad_clips 0.1: {len(listed)} of 16 training clips of lh cannot be read" in line
    assert str(folder / "bad_clips_lh.txt") in line
    assert any(f"{clips / name} ({reason})" in line for name, reason in listed)


@pytest.mark.parametrize(("share", "code"), [(0.06, 1), (0.0625, 0)])
def test_run_goes_on_up_to_the_share_that_may_be_bad(
    run_main, tiny_flags, clips, sample, tmp_path, share, code
):
    names = [name for name, _ in sample.train["lh"]][:15]
    write_list(tmp_path / "train_list_video.txt", [*((name, 0) for name in names), ("gone.mp4", 1)])
    write_list(tmp_path / "val_list_video.txt", sample.val["lh"])
    flags = ("--lh_data_path", tmp_path, "--lh_data_root", sample.path("lh"), "--alternation_steps", 4)
    flags = (*flags, "--max_bad_clips", share, "--output_dir", tmp_path / "run")
    result = run_main(*tiny_flags, *flags)
    assert result.code == code, result.output
    assert bad_clips_of(tmp_path / "run") == [("gone.mp4", "No such file or directory")]


def test_clip_that_hangs_is_a_bad_one(run_main, tiny_flags, clips, tmp_path):
    os.mkfifo(tmp_path / "hangs.mp4")
    rows = [*((clips / name, 0) for name in SOUND), (tmp_path / "hangs.mp4", 1)]
    write_list(tmp_path / "train_list_video.txt", rows)
    write_list(tmp_path / "val_list_video.txt", rows[:2])
    flags = ("--lh_data_path", tmp_path, "--num_workers", 1, "--decode_timeout", 1.5, "--max_bad_clips", 0.2)
    result = run_main(*tiny_flags, *flags, "--output_dir", tmp_path / "run")
    assert result.code == 0, result.output
    assert bad_clips_of(tmp_path / "run") == [("hangs.mp4", "took longer than --decode_timeout 1.5 s")]


def test_default_share_is_five_in_a_hundred():
    assert run.get_parser().get_default("max_bad_clips") == 0.05


def test_both_processes_stop_together_for_too_many_bad_clips(fork_ranks, tiny_flags, clips, tmp_path):
    paths = write_lists(tmp_path, clips, train=[*SOUND, *BAD], val=SOUND)
    flags = [*tiny_flags, *paths, "--max_bad_clips", 0.1, "--batch_size", 1, "--output_dir", tmp_path / "run"]
    codes, outputs = fork_ranks(lambda rank: run.main([str(flag) for flag in flags]))
    assert codes == [1, 1]
    first, second = (only_error(output).partition("error: ")[2] for output in outputs)
    assert first == second
    assert first.startswith("--max_bad_clips 0.1: ")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("hand", CLASSES)
def test_all_bad_list_is_an_error_and_not_a_loop(run_main, tiny_flags, clips, tmp_path, hand, workers):
    paths = write_lists(tmp_path, clips, train=[*BAD, *BAD], val=SOUND)
    flags = ("--alternation_steps", 1, "--num_workers", workers, "--output_dir", tmp_path / "run")
    start = time.monotonic()
    result = run_main(*tiny_flags, *paths[2 * (hand == "rh") :][:2], *flags)
    assert time.monotonic() - start < 20
    assert not multiprocessing.active_children()
    assert result.code == 1
    line = only_error(result.output)
    list_path = tmp_path / "train_list_video.txt"
    assert f"error: {list_path}: 20 clips in a row could not be read" in line
    assert "check the list and the data root" in line


@pytest.mark.parametrize("workers", [0, 2])
def test_all_bad_list_ends_both_processes(fork_ranks, tiny_flags, clips, tmp_path, workers):
    paths = write_lists(tmp_path, clips, train=[*BAD, *BAD], val=SOUND)
    flags = [
        *tiny_flags,
        *paths,
        "--num_workers",
        workers,
        "--batch_size",
        1,
        "--output_dir",
        tmp_path / "run",
    ]
    codes, outputs = fork_ranks(lambda rank: run.main([str(flag) for flag in flags]), timeout=60)
    assert codes == [1, 1]
    for output in outputs:
        assert "could not be read" in only_error(output) or "another process" in only_error(output)


# -------------------------------------------------------------------------------------- coverage


def test_evaluation_reports_coverage_and_both_accuracies(run_main, full_run, clips, tmp_path):
    names = [*SOUND, *BAD, *READABLE]
    paths = write_lists(tmp_path, clips, val=names)
    flags = ("--resume", full_run / "checkpoint-last.pth", "--output_dir", tmp_path / "out")
    result = run_main("--eval", "--validation", *flags, *paths)
    assert result.code == 0, result.output
    validation = json.loads((tmp_path / "out" / "validation.json").read_text())["raw"]
    for hand in CLASSES:
        with (tmp_path / "out" / f"predictions_{hand}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["clip"].rpartition("/")[2] for row in rows} == {*SOUND, *READABLE}
        right = sum(row["label"] == row["prediction"] for row in rows)
        metrics = metrics_of(tmp_path / "out")[hand]
        assert (metrics["clips"], metrics["unreadable"]) == (len(names), len(BAD))
        assert metrics["top1"] == pytest.approx(100 * right / (len(names) - len(BAD)))
        assert metrics["top1_all"] == pytest.approx(100 * right / len(names))
        assert (validation[hand]["clips"], validation[hand]["unreadable"]) == (len(names), len(BAD))
        unreadable = (tmp_path / "out" / f"unreadable_{hand}.txt").read_text().splitlines()
        named = [line.rpartition("/")[2].split("\t") for line in unreadable]
        assert [(name, without_frame(reason)) for name, reason in named] == sorted(REASONS.items())


def test_evaluation_of_bad_clips_alone_is_an_error(run_main, full_run, clips, tmp_path):
    paths = write_lists(tmp_path, clips, val=list(BAD))
    flags = ("--resume", full_run / "checkpoint-last.pth", "--output_dir", tmp_path / "out")
    for mode in ("--eval", "--validation"):
        result = run_main(mode, *flags, *paths)
        assert result.code == 1
        assert "error: lh: not one clip could be evaluated: " in only_error(result.output)
    assert not (tmp_path / "out" / "metrics.json").exists()


# -------------------------------------------------------------------------------------- resuming


@pytest.fixture(scope="module")
def faulty_run(run_main, tiny_flags, sample, tmp_path_factory):
    """A finished run of which two clips of each hand cannot be read; its folder and its flags."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "videos").mkdir()
    for path in (sample.path("lh") / "videos").iterdir():
        (folder / "videos" / path.name).symlink_to(path)
    for name in ("r01.mp4", "r06.mp4"):
        (folder / "videos" / name).unlink()
        (folder / "videos" / name).write_text("damaged")
    flags = [*tiny_flags, *FULL, "--max_bad_clips", 0.2, "--epochs", 4, "--keep_ckpts", 9]
    flags += ["--lh_data_root", folder / "videos", "--rh_data_root", folder / "videos"]
    result = run_main(*flags, "--output_dir", folder / "run")
    assert result.code == 0, result.output
    return folder / "run", flags


@pytest.mark.parametrize("name", ["checkpoint-1.pth", "checkpoint-step-9.pth"])
def test_resume_repeats_the_replacements_of_clips_that_were_repaired(
    run_main, faulty_run, sample, tmp_path, name
):
    folder, flags = faulty_run
    saved = load(folder / name)["alternating"]["bad_clips"]
    shutil.copytree(folder.parent / "videos", tmp_path / "videos", symlinks=True)
    for bad in set.intersection(*(set(saved[hand]) for hand in CLASSES)):  # both hands know that it was
        shutil.copyfile(sample.path("lh") / "videos" / bad, tmp_path / "videos" / bad)
    shutil.copyfile(folder / name, tmp_path / name)
    shutil.copyfile(folder / "log.txt", tmp_path / "log.txt")
    (folder.parent / "videos").rename(folder.parent / "as it was")
    (folder.parent / "videos").symlink_to(tmp_path / "videos")
    try:
        result = run_main(*flags, "--output_dir", tmp_path)
    finally:
        (folder.parent / "videos").unlink()
        (folder.parent / "as it was").rename(folder.parent / "videos")
    assert result.code == 0, result.output
    assert saved["lh"].keys() == {"r01.mp4", "r06.mp4"}
    assert_same_run(folder, tmp_path)


def test_changed_list_starts_without_bad_clips_and_the_other_keeps_its_own(
    run_main, faulty_run, sample, tmp_path
):
    folder, flags = faulty_run
    sound = [row for row in sample.train["lh"] if row[0] not in ("r01.mp4", "r06.mp4")]
    write_list(tmp_path / "lh" / "train_list_video.txt", [*sound, *sound[:2]])
    write_list(tmp_path / "lh" / "val_list_video.txt", sample.val["lh"])
    shutil.copyfile(folder / "checkpoint-1.pth", tmp_path / "checkpoint-1.pth")
    before = load(tmp_path / "checkpoint-1.pth")["alternating"]["bad_clips"]
    result = run_main(*flags, "--lh_data_path", tmp_path / "lh", "--output_dir", tmp_path)
    assert result.code == 0, result.output
    after = load(tmp_path / "checkpoint-last.pth")["alternating"]["bad_clips"]
    assert "lh" in before and "lh" not in after
    assert after["rh"].items() >= before["rh"].items()
    assert "another training list of lh" in result.output
