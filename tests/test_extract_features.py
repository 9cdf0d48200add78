"""Features of every frame: against the model by brute force, and what becomes of interrupted work."""

import json
import multiprocessing
import os
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, ROOT, draw_recording, write_video

from dataset.loader import decode_frames
from dataset.video_transforms import ValidationTransform
from dataset.volume_transforms import normalize_clips
from models import HANDS
from scripts.tools import extract_features, feature_files
from scripts.tools.feature_files import ColumnFile, spread
from scripts.tools.trained_model import load_trained

NUM_FRAMES, SPAN, WIDTH = 4, 8, 192  # of the tiny run
CORRUPTED = ROOT / "tests" / "clips" / "corrupted.mp4"
LENGTHS = {"a": 29, "b": 5, "c": 16}  # frames; b is shorter than a window


@pytest.fixture(scope="module")
def checkpoint(full_run):
    return full_run / "checkpoint-last.pth"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number, (name, length) in enumerate(LENGTHS.items()):
        write_video(folder / f"{name}.mp4", draw_recording(number, 48, 64, length))
    return folder


@pytest.fixture
def words(checkpoint, tmp_path):
    """The command line up to what a test adds."""
    return ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "out"), "--device", "cpu"]


@pytest.fixture
def call(words, tmp_path, capsys):
    """Runs the command line; returns its exit code, the folder and what it said."""

    def run(*flags):
        code = extract_features.main([*words, *map(str, flags)])
        return code, tmp_path / "out", capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def truth(checkpoint, videos):
    """{hand: rows of a video}, by a pass of the model for each frame alone."""

    def compute(name, window=SPAN):
        model = load_trained(checkpoint, torch.device("cpu")).model
        frames = decode_frames(str(videos / f"{name}.mp4"), np.arange, "decord").frames
        views = ValidationTransform(36, 32)(frames)
        offsets = np.minimum(np.linspace(0, window, NUM_FRAMES), window - 1).astype(int)
        rows = {hand: [] for hand in HANDS}
        for frame in range(len(frames)):
            seen = [min(max(frame - window // 2 + offset, 0), len(frames) - 1) for offset in offsets]
            with torch.no_grad():
                clips = normalize_clips(torch.from_numpy(views[seen])[None])
                features = model.forward_features(clips)
                for hand in HANDS:
                    rows[hand].append(torch.cat([features, model(clips, hand)], 1)[0].numpy())
        return {hand: np.stack(columns, axis=1) for hand, columns in rows.items()}

    return compute


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.npy"))


# --------------------------------------------------------------------------------------- truth


@pytest.mark.parametrize("name", LENGTHS)
def test_every_frame_has_its_column(call, truth, videos, name):
    code, folder, said = call(videos / f"{name}.mp4", "--batch_size", 3)
    assert code == 0 and "1 videos done" in said.out
    wanted = truth(name)
    for hand in HANDS:
        array = np.load(folder / hand / f"{name}.npy")
        assert array.dtype == np.float32 and array.shape == (WIDTH + CLASSES[hand], LENGTHS[name])
        assert np.allclose(array, wanted[hand], atol=2e-5)
    left, right = (np.load(folder / hand / f"{name}.npy") for hand in HANDS)
    assert np.array_equal(left[:WIDTH], right[:WIDTH])  # one pass of the backbone


@pytest.mark.parametrize("flags", [("--window", "11"), ("--sampling_rate", "3")])
def test_window_is_as_long_as_asked_for(call, truth, videos, flags):
    _, folder, _ = call(videos / "a.mp4", *flags)
    span = 11 if flags[0] == "--window" else 3 * NUM_FRAMES
    assert np.allclose(np.load(folder / "rh" / "a.npy"), truth("a", span)["rh"], atol=2e-5)


@pytest.mark.parametrize("stride", [2, 3, 7, 50])
def test_stride_repeats_the_nearest_column_and_compact_leaves_it_out(call, truth, videos, tmp_path, stride):
    _, folder, _ = call(videos / "a.mp4", "--stride", stride)
    array, wanted, n = np.load(folder / "lh" / "a.npy"), truth("a")["lh"], LENGTHS["a"]
    computed = range(0, n, stride)
    nearest = [min(computed, key=lambda c: (abs(c - frame), c)) for frame in range(n)]
    assert array.shape == wanted.shape and np.allclose(array, wanted[:, nearest], atol=2e-5)
    _, folder, _ = call(videos / "a.mp4", "--stride", stride, "--compact", "--output", tmp_path / "compact")
    assert np.array_equal(np.load(tmp_path / "compact" / "lh" / "a.npy"), array[:, ::stride])


def test_half_precision_and_features_alone(call, truth, videos):
    _, folder, _ = call(videos / "a.mp4", "--float16", "--features_only")
    for hand in HANDS:
        array = np.load(folder / hand / "a.npy")
        assert array.dtype == np.float16 and array.shape == (WIDTH, LENGTHS["a"])
        assert np.allclose(array, truth("a")[hand][:WIDTH], atol=5e-3)


def test_files_are_read_as_segmentation_models_read_them(call, videos):
    _, folder, _ = call(videos)
    features = np.load(folder / "lh" / "a.npy")
    batch = torch.zeros(1, len(features), LENGTHS["a"] + 3)
    batch[0, :, : LENGTHS["a"]] = torch.from_numpy(features)  # as MS-TCN does
    assert torch.equal(batch[0, :, 4], torch.from_numpy(np.ascontiguousarray(features[:, 4])))
    assert np.load(folder / "lh" / "a.npy", mmap_mode="r").shape == features.shape


@pytest.mark.parametrize("sizes", [(5,), (2, 2, 1), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_nearest_result_whatever_the_batches(sizes, stride):
    results = np.arange(5)[:, None]
    batches = np.split(results, np.cumsum(sizes)[:-1])
    for n in range(4 * stride + 1, 5 * stride + 1):  # lengths that have five results
        rows = np.concatenate(list(spread(batches, stride, lambda n=n: n)))[:, 0]
        assert rows.tolist() == [min(range(5), key=lambda k: (abs(k * stride - t), k)) for t in range(n)]


def test_columns_are_written_as_numpy_reads_them(tmp_path):
    columns = np.random.default_rng(0).normal(size=(1234, 7)).astype(np.float32)
    with (tmp_path / "a.npy").open("wb") as file:
        written = ColumnFile(file, 7, "float32")
        for part in np.array_split(columns, 5):
            written.add(part)
        written.finish()
    assert np.array_equal(np.load(tmp_path / "a.npy"), columns.T)


# ----------------------------------------------------------------------------- many videos


def test_bad_video_is_named_and_the_others_are_done(call, videos, tmp_path):
    (tmp_path / "list.txt").write_text(f"{videos / 'b.mp4'}\n\n{CORRUPTED}\n{tmp_path / 'none.mp4'}\n")
    code, folder, said = call(videos / "a.mp4", "--list", tmp_path / "list.txt")
    assert code == 1 and files_in(folder) == ["lh/a.npy", "lh/b.npy", "rh/a.npy", "rh/b.npy"]
    errors = [line for line in said.err.splitlines() if line.startswith("extract_features: ")]
    assert sorted(line.split(": ")[1] for line in errors) == sorted(
        [str(CORRUPTED), str(tmp_path / "none.mp4")]
    )
    assert "2 videos done, 0 there already, 2 failed" in said.out


def test_what_is_there_is_kept_and_what_is_damaged_is_made_again(call, videos):
    _, folder, _ = call(videos)
    before = {name: (folder / name).read_bytes() for name in files_in(folder)}
    stamps = {name: (folder / name).stat().st_mtime_ns for name in before}
    (folder / "lh" / "a.npy").write_bytes(before["lh/a.npy"][:500])
    (folder / "rh" / "b.npy").unlink()
    (folder / "lh" / "b.npy").write_bytes(b"")
    code, _, said = call(videos)
    assert code == 0 and "2 videos done, 1 there already" in said.out
    assert {name: (folder / name).read_bytes() for name in files_in(folder)} == before
    assert (folder / "lh" / "c.npy").stat().st_mtime_ns == stamps["lh/c.npy"]
    _, _, said = call(videos, "--overwrite")
    assert "3 videos done" in said.out


def test_killed_command_goes_on(call, words, videos):
    def start():
        add = feature_files.ColumnFile.add

        def deadly(self, columns):
            if (
                len(list(videos.parent.glob("*")))
                and (done := sorted(output.rglob("*.npy")))
                and len(done) > 1
            ):
                os.kill(os.getpid(), signal.SIGKILL)
            add(self, columns)

        feature_files.ColumnFile.add = deadly
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
        extract_features.main([*words, str(videos)])

    output = Path(words[words.index("--output") + 1])
    process = multiprocessing.get_context("fork").Process(target=start)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(files_in(output)) == 2  # those of the first video; no half file has a name
    left = list(output.rglob(".*.npy.*"))
    assert left
    code, folder, said = call(videos)
    assert code == 0 and "2 videos done, 1 there already" in said.out and len(files_in(folder)) == 6
    assert not [path for path in left if path.exists()]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--window", 9), "window 8, not 9"),
        (("--stride", 2), "stride 1, not 2"),
        (("--float16",), "dtype float32, not float16"),
        (("--features_only",), "features_only False, not True"),
        (("--weights", "ema"), "weights model, not ema"),
    ],
)
def test_settings_of_a_folder_are_not_mixed(call, videos, flags, problem):
    call(videos / "b.mp4")
    code, folder, said = call(videos / "a.mp4", *flags)
    assert code == 1 and str(folder) in said.err and problem in said.err and said.err.count("\n") == 1
    assert files_in(folder) == ["lh/b.npy", "rh/b.npy"]


def test_another_model_is_another_setting(call, checkpoint, videos, tmp_path):
    call(videos / "b.mp4")
    content = torch.load(checkpoint, weights_only=True)
    content["model"]["blocks.0.mlp.fc1.bias"][3] += 1e-3
    torch.save(content, tmp_path / "other.pth")
    code, _, said = call(videos / "b.mp4", "--checkpoint", tmp_path / "other.pth")
    assert code == 1 and "made with weights_blake2b" in said.err


def test_damaged_settings_are_said(call, videos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "settings.json").write_text("{")
    code, _, said = call(videos / "b.mp4")
    assert code == 1 and "settings.json: cannot be read" in said.err


def test_videos_of_the_same_name_are_refused(call, videos, tmp_path):
    write_video(tmp_path / "a.mp4", draw_recording(9))
    code, folder, said = call(videos, tmp_path / "a.mp4")
    assert code == 1 and str(tmp_path / "a.mp4") in said.err and not folder.exists()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [(("--compact",), "--compact"), (("--list", "none.txt"), "--list none.txt"), ((), "no video is named")],
)
def test_unusable_flags_are_said_in_one_line(call, videos, flags, problem):
    code, _, said = call(*([videos / "a.mp4"] if flags else []), *flags)
    assert code == 1 and problem in said.err and said.err.count("\n") == 1


# ---------------------------------------------------------------------------------- processes


def run_rank(words, rank):
    return extract_features.main(words)


def assert_shared(folder, alone):
    """Two processes left what one leaves."""
    assert files_in(folder) == files_in(alone)
    for name in files_in(alone):
        assert np.array_equal(np.load(folder / name), np.load(alone / name))
    assert json.loads((folder / "settings.json").read_text()) == json.loads(
        (alone / "settings.json").read_text()
    )


def test_processes_share_the_videos(call, words, videos, fork_ranks, tmp_path):
    _, alone, _ = call(videos, CORRUPTED)
    shared = [*words, "--output", str(tmp_path / "shared"), str(videos), str(CORRUPTED)]
    codes, outputs = fork_ranks(partial(run_rank, shared))
    assert codes == [1, 1]  # every rank ends alike, and none before the others are done
    assert_shared(tmp_path / "shared", alone)
    done = ["".join(name for name in LENGTHS if f"{name}.mp4: " in output) for output in outputs]
    assert sorted("".join(done)) == sorted(LENGTHS) and all(done)
    assert "3 videos done, 0 there already, 1 failed" in outputs[0]


@pytest.mark.slow
def test_torchrun_shares_the_videos(call, words, videos, torchrun, tmp_path):
    _, alone, _ = call(videos)
    shared = [*words, "--output", str(tmp_path / "shared"), str(videos)]
    result = torchrun("-m", "scripts.tools.extract_features", *shared)
    assert result.code == 0, result.output
    assert "[rank 1]" in result.output
    assert_shared(tmp_path / "shared", alone)
