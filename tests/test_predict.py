"""Predictions for videos: against the model and the trainer's validation, and every file that is written."""

import csv
import itertools
import json
import shutil
import weakref

import av
import numpy as np
import pytest
import torch
from conftest import CLASSES, ROOT, draw_recording, load, write_list, write_video
from PIL import Image

from dataset.loader import ClipError, decode_frames
from dataset.sampling import validation_indices
from dataset.video_transforms import ValidationTransform
from dataset.volume_transforms import normalize_clips
from models import HANDS
from scripts.tools import predict, video_stream
from scripts.tools.annotate_video import Caption, annotate_video
from scripts.tools.readings import read_windows
from scripts.tools.timeline import Block, Lane, clock_text, draw_timeline
from scripts.tools.trained_model import load_trained
from scripts.tools.window_scorer import find_videos

CPU = torch.device("cpu")
NUM_FRAMES, RATE = 4, 2  # of the tiny run
SPAN = NUM_FRAMES * RATE
CLIPS = ROOT / "tests" / "clips"
NAMES = {"lh": ["null", "insert peg", "hold, tight", "lift"], "rh": ["null", "insert peg", "turn"]}


@pytest.fixture(scope="module")
def checkpoint(full_run):
    return full_run / "checkpoint-last.pth"


@pytest.fixture(scope="module")
def mappings(tmp_path_factory):
    """Flags that name the classes of both hands."""
    folder, flags = tmp_path_factory.mktemp("names"), []
    for hand, names in NAMES.items():
        lines = (f"{label} {name}\n" for label, name in enumerate(names))
        (folder / f"{hand}.txt").write_text("".join(lines))
        flags += [f"--{hand}_mapping", folder / f"{hand}.txt"]
    return flags


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "long.mp4"
    write_video(path, draw_recording(3, 64, 80, 45))
    return path


@pytest.fixture
def call(checkpoint, tmp_path, capsys):
    """Runs the command line; returns its exit code, the folder and what it said."""

    def run(*flags, checkpoint=checkpoint):
        words = ["--checkpoint", checkpoint, "--output", tmp_path / "out", "--device", "cpu", *flags]
        code = predict.main([str(word) for word in words])
        return code, tmp_path / "out", capsys.readouterr()

    return run


def edited(checkpoint, target, **flags):
    """A copy of a checkpoint whose run had other flags."""
    content = load(checkpoint)
    content["args"].update(flags)
    torch.save(content, target)
    return target


def probabilities_of(checkpoint, path, frames):
    """{hand: probabilities} of chosen frames: decord, the validation's transform, a pass for each hand."""
    decoded, order, _ = decode_frames(str(path), lambda n: np.asarray(frames), "decord")
    views = torch.from_numpy(ValidationTransform(36, 32)(decoded)[order])
    model = load_trained(checkpoint, CPU).model
    with torch.no_grad():
        clips = normalize_clips(views[None])
        return {hand: model(clips, hand).softmax(1)[0].numpy() for hand in HANDS}


def in_order_of_label(rows):
    """Probabilities by label, of a window that lists all classes."""
    return [row["probability"] for row in sorted(rows, key=lambda row: row["label"])]


# --------------------------------------------------------------------------------------- truth


@pytest.mark.parametrize("flags", [(), ("--stride", 5), ("--window", 11), ("--sampling_rate", 3)])
def test_windows_say_what_the_model_says_of_their_frames(call, checkpoint, video, flags):
    code, folder, _ = call(video, "--topk", 9, "--no_timeline", "--batch_size", 3, *flags)
    assert code == 0
    report = json.loads((folder / "long.json").read_text())
    options = dict(zip(flags[::2], flags[1::2], strict=True))
    span = options.get("--window", NUM_FRAMES * options.get("--sampling_rate", RATE))
    stride = options.get("--stride", span // 4)
    starts = sorted({*range(0, 45 - span + 1, stride), 45 - span})
    assert [(w["start_frame"], w["end_frame"]) for w in report["windows"]] == [(s, s + span) for s in starts]
    for window in report["windows"][:3] + report["windows"][-2:]:
        offsets = np.minimum(np.linspace(0, span, NUM_FRAMES), span - 1).astype(int)
        truth = probabilities_of(checkpoint, video, window["start_frame"] + offsets)
        for hand in HANDS:
            assert in_order_of_label(window[hand]) == pytest.approx(truth[hand].tolist(), abs=2e-6)


def test_videos_up_to_a_window_have_the_loss_of_the_trainer_s_validation(
    call, checkpoint, run_main, tmp_path
):
    lengths = [SPAN, SPAN, 5, 1]
    for number, length in enumerate(lengths):
        write_video(tmp_path / "clips" / f"{number}.mp4", draw_recording(number, n_frames=length))
    write_list(tmp_path / "clips" / "val_list_video.txt", [(f"{n}.mp4", n % 3) for n in range(len(lengths))])
    data = [word for hand in HANDS for word in (f"--{hand}_data_path", tmp_path / "clips")]
    flags = ("--validation", "--resume", checkpoint, "--output_dir", tmp_path, "--num_workers", 0, *data)
    assert run_main(*flags).code == 0
    validation = json.loads((tmp_path / "validation.json").read_text())["raw"]

    code, folder, _ = call(tmp_path / "clips", "--topk", 9, "--no_timeline")
    assert code == 0
    reports = [json.loads((folder / f"{n}.json").read_text()) for n in range(len(lengths))]
    assert [(len(r["windows"]), r["video"]["frames"]) for r in reports] == [(1, n) for n in lengths]
    for hand in HANDS:
        rows = [in_order_of_label(report["windows"][0][hand]) for report in reports]
        loss = -np.mean([np.log(row[number % 3]) for number, row in enumerate(rows)])
        assert loss == pytest.approx(validation[hand]["loss"], abs=1e-5)


@pytest.mark.parametrize(("flags", "rule"), [({"short_clips": "stretch"}, "stretch"), ({}, "published")])
def test_short_video_follows_the_run_s_rule(call, checkpoint, tmp_path, flags, rule):
    write_video(tmp_path / "short.mp4", draw_recording(1, n_frames=6))
    copy = edited(checkpoint, tmp_path / "copy.pth", **flags)
    _, folder, _ = call(tmp_path / "short.mp4", "--topk", 9, "--no_timeline", checkpoint=copy)
    (window,) = json.loads((folder / "short.json").read_text())["windows"]
    frames = validation_indices(6, NUM_FRAMES, RATE, rule)
    truth = probabilities_of(checkpoint, tmp_path / "short.mp4", frames)
    assert in_order_of_label(window["rh"]) == pytest.approx(truth["rh"].tolist(), abs=2e-6)


def test_weights_and_hands_are_those_of_the_checkpoint(
    call, checkpoint, video, run_main, tiny_flags, tmp_path
):
    call(video, "--no_timeline")
    raw = (tmp_path / "out" / "long.csv").read_text()
    call(video, "--no_timeline", "--weights", "ema")
    assert (tmp_path / "out" / "long.csv").read_text() != raw
    flags = ("--one_stream", "--epochs", 1, "--warmup_epochs", 0, "--output_dir", tmp_path / "one")
    assert run_main(*tiny_flags, *flags).code == 0
    code, folder, _ = call(video, "--annotate", checkpoint=tmp_path / "one" / "checkpoint-last.pth")
    report = json.loads((folder / "long.json").read_text())
    assert code == 0 and list(report["segments"]) == ["lh"] and "rh" not in report["windows"][0]
    mapping = ("--rh_mapping", tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("0 null\n")
    code, _, said = call(video, *mapping, checkpoint=tmp_path / "one" / "checkpoint-last.pth")
    assert code == 1 and said.err.startswith("predict: --rh_mapping: the model has no head for it")


# ------------------------------------------------------------------------------------ readings


def test_frame_has_the_mean_of_its_windows():
    rng = np.random.default_rng(0)
    spans = [(0, 8), (3, 11), (6, 14), (9, 17), (10, 18)]
    probabilities = rng.dirichlet(np.ones(5), len(spans)).astype(np.float32)
    reading = read_windows(spans, probabilities)
    for frame in range(18):
        over = [row for (start, stop), row in zip(spans, probabilities, strict=True) if start <= frame < stop]
        assert np.allclose(reading.probabilities[reading.piece_at(frame)], np.mean(over, axis=0))
    best = [int(reading.probabilities[reading.piece_at(frame)].argmax()) for frame in range(18)]
    segments = reading.segments()
    assert [label for s in segments for label in [s.label] * (s.stop - s.start)] == best
    assert all(a.stop == b.start and a.label != b.label for a, b in itertools.pairwise(segments))
    for one in segments:
        pieces = [reading.piece_at(frame) for frame in range(one.start, one.stop)]
        assert one.probability == pytest.approx(np.mean(reading.probabilities[pieces, one.label]))
    assert reading.piece_at(99) == len(reading.probabilities) - 1  # a frame more than was predicted


# --------------------------------------------------------------------------------------- files


def test_json_csv_and_names_agree(call, video, mappings):
    code, folder, said = call(video, "--topk", 2, *mappings)
    assert code == 0 and {path.suffix for path in folder.iterdir()} == {".json", ".csv", ".png"}
    report = json.loads((folder / "long.json").read_text())
    assert report["video"] == {"path": str(video), "frames": 45, "frames_a_second": 25.0, "seconds": 1.8}
    settings = report["settings"]
    assert (settings["window"], settings["stride"], settings["classes"]) == (SPAN, SPAN // 4, CLASSES)
    with (folder / "long.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(report["windows"]) * 2 * 2
    for row in rows:
        window = report["windows"][int(row["window"])]
        one = window[row["hand"]][int(row["rank"]) - 1]
        assert one == {
            "label": int(row["label"]),
            "name": row["name"],
            "probability": float(row["probability"]),
        }
        assert row["name"] == NAMES[row["hand"]][int(row["label"])]
        assert float(row["end_seconds"]) == window["end_seconds"] == window["end_frame"] / 25
    for hand in HANDS:
        probabilities = [one["probability"] for one in report["windows"][0][hand]]
        assert probabilities == sorted(probabilities, reverse=True)
        segments = report["segments"][hand]
        assert segments[0]["start_frame"] == 0 and segments[-1]["end_frame"] == 45
        assert segments[0]["name"] in said.out


def test_bad_video_is_named_and_the_others_are_done(call, video, tmp_path):
    (tmp_path / "empty.mp4").touch()
    code, folder, said = call(tmp_path / "empty.mp4", CLIPS / "corrupted.mp4", tmp_path / "none.mp4", video)
    assert code == 1 and [path.name for path in folder.glob("*.json")] == ["long.json"]
    errors = [line for line in said.err.splitlines() if line.startswith("predict: ")]
    assert [line.split(": ")[1] for line in errors] == [
        str(tmp_path / "empty.mp4"), str(CLIPS / "corrupted.mp4"), str(tmp_path / "none.mp4")
    ]  # fmt: skip
    assert "No such file" in errors[2]


def test_videos_of_the_same_name_keep_their_files_apart(call, video, tmp_path, monkeypatch):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        shutil.copy(video, tmp_path / folder / "x.mp4")
    monkeypatch.chdir(tmp_path)
    code, folder, _ = call("a", "b/x.mp4", "a/x.mp4", video, "--no_timeline")
    assert code == 0
    assert sorted(path.name for path in folder.glob("*.json")) == [
        "a__x.mp4.json",
        "b__x.mp4.json",
        "long.json",
    ]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--stride", 99), "--stride 99: more than a window of 8 frames"),
        (("--window", 9, "--sampling_rate", 3), "--window and --sampling_rate"),
        (("--lh_mapping", "none.txt"), "--lh_mapping none.txt"),
        (("--device", "cuda:99"), "--device cuda:99"),
        (("--batch_size", 10**12), "--batch_size 1000000000000: out of memory"),
    ],
)
def test_unusable_flags_are_said_in_one_line(call, video, flags, problem):
    code, folder, said = call(video, *flags)
    assert code == 1 and said.err.startswith("predict: ") and problem in said.err
    assert said.err.count("\n") == 1 and not (folder.exists() and list(folder.iterdir()))


def test_answers_that_are_no_numbers_are_an_error_and_not_written(call, checkpoint, video, tmp_path):
    content = load(checkpoint)
    content["model"]["rh_head.bias"][1] = torch.inf
    torch.save(content, tmp_path / "broken.pth")
    code, folder, said = call(video, "--batch_size", 2, checkpoint=tmp_path / "broken.pth")
    assert code == 1 and not list(folder.iterdir())
    line = f"predict: {video}: frames 0 to 9: the model answers with what is no number"
    assert said.err.startswith(line) and "--amp_dtype fp32" in said.err


def test_several_processes_are_refused(checkpoint, video, tmp_path, fork_ranks, capfd):
    words = ["--checkpoint", checkpoint, "--output", tmp_path / "out", "--device", "cpu", video]
    codes, _ = fork_ranks(lambda rank: predict.main([str(word) for word in words]))
    assert codes == [1, 1] and capfd.readouterr().err.count("is one process, not 2") == 2
    assert not (tmp_path / "out").exists()


def test_model_of_whole_clips_asks_for_a_window(call, checkpoint, video, tmp_path):
    sparse = edited(checkpoint, tmp_path / "sparse.pth", sparse_sample=True)
    code, _, said = call(video, checkpoint=sparse)
    assert code == 1 and "--window is needed" in said.err
    code, folder, _ = call(video, "--window", 20, "--topk", 9, "--no_timeline", checkpoint=sparse)
    window = json.loads((folder / "long.json").read_text())["windows"][1]
    truth = probabilities_of(checkpoint, video, 5 + np.array([2, 7, 12, 17]))
    assert in_order_of_label(window["lh"]) == pytest.approx(truth["lh"].tolist(), abs=2e-6)


def test_folder_without_videos_is_an_error(call, tmp_path):
    (tmp_path / "videos").mkdir()
    code, _, said = call(tmp_path / "videos")
    assert code == 1 and "holds no videos" in said.err


# ------------------------------------------------------------------------------------ pictures


def read_video(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return frames, stream.average_rate


def is_gauge(pixels):
    """Where the green of the bars that show a probability is."""
    red, green, blue = (pixels[..., channel].astype(int) for channel in range(3))
    return (green > 150) & (green - red > 60) & (green > blue)


def test_annotated_video_shows_each_hand_on_its_side(tmp_path):
    grey = np.full((6, 240, 320, 3), 128, np.uint8)
    write_video(tmp_path / "grey.mp4", grey)
    shares = {0: (1.0, 0.0), 1: (0.0, 0.5)}

    def captions(frame):
        left, right = shares[frame % 2]
        return Caption("left", "insert peg", left), Caption("right", "null", right)

    annotate_video(tmp_path / "grey.mp4", tmp_path / "out.mp4", captions)
    frames, rate = read_video(tmp_path / "out.mp4")
    assert frames.shape == grey.shape and rate == 25
    for number, frame in enumerate(frames):
        lengths = [int(is_gauge(half[-2]).sum()) for half in (frame[:, :160], frame[:, 160:])]
        assert lengths == pytest.approx([152 * share for share in shares[number % 2]], abs=8)
        assert np.abs(frame[:180].astype(int) - 128).max() < 6
        assert frame[-30:].max() > 200  # text
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["video_90.mov", "unordered.mov", "mpeg4.avi"])
def test_annotated_copy_has_the_frames_and_size_of_the_video(name, tmp_path):
    caption = Caption("left", "null", 0.5)
    annotate_video(CLIPS / name, tmp_path / "out.mp4", lambda frame: (caption,))
    frames, _ = read_video(tmp_path / "out.mp4")
    wanted = decode_frames(str(CLIPS / name), np.arange).frames
    assert frames.shape == wanted.shape
    upper = slice(0, wanted.shape[1] // 3)
    assert np.abs(frames[:, upper].astype(int) - wanted[:, upper]).mean() < 8


@pytest.mark.parametrize("size", [(2000, 30), (200, 10), (16, 16)])
def test_narrow_pictures_have_what_fits_of_the_captions(tmp_path, size):
    write_video(tmp_path / "narrow.mp4", draw_recording(0, *size, 2))
    captions = (Caption("left", "insert peg", 0.5), Caption("right", "null", 1.0))
    annotate_video(tmp_path / "narrow.mp4", tmp_path / "out.mp4", lambda frame: captions)
    assert read_video(tmp_path / "out.mp4")[0].shape == (2, *size, 3)


def test_odd_size_grows_by_a_pixel(tmp_path):
    with av.open(str(tmp_path / "odd.avi"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 49, 65, "yuv444p"
        for frame in draw_recording(0, 49, 65, 5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    annotate_video(tmp_path / "odd.avi", tmp_path / "out.mp4", lambda frame: (Caption("left", "a", 0.5),))
    assert read_video(tmp_path / "out.mp4")[0].shape == (5, 50, 66, 3)


@pytest.mark.parametrize("codec", ["aac", "libmp3lame", "ac3"])
def test_sound_is_kept(tmp_path, codec):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("libx264", rate=25), container.add_stream(codec, rate=48000)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        for frame in draw_recording(0, n_frames=25):
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        tone = np.sin(np.arange(48000) / 20).astype(np.float32)[None]
        samples = av.AudioFrame.from_ndarray(np.repeat(tone, 2, 0), format="fltp", layout="stereo")
        samples.sample_rate = 48000
        for stream, frame in ((sound, samples), (sound, None), (video, None)):
            container.mux(stream.encode(frame))
    annotate_video(path, tmp_path / "out.mp4", lambda frame: (Caption("left", "a", 0.5),))

    def packets(file):
        with av.open(str(file)) as container:
            return [(packet.pts, bytes(packet)) for packet in container.demux(audio=0) if packet.size]

    assert packets(tmp_path / "out.mp4") == packets(path) != []


def test_damaged_video_leaves_no_annotated_copy(tmp_path):
    with pytest.raises(ClipError, match="cannot be annotated"):
        annotate_video(CLIPS / "corrupted.mp4", tmp_path / "out.mp4", lambda frame: (Caption("l", "a", 0.5),))
    assert list(tmp_path.iterdir()) == []


def test_annotating_is_asked_for(call, video):
    code, folder, said = call(video, "--annotate", "--no_timeline")
    frames, rate = read_video(folder / "long_annotated.mp4")
    assert code == 0 and frames.shape == (45, 64, 80, 3) and rate == 25
    assert str(folder / "long_annotated.mp4") in said.out


def test_timeline_gives_each_class_a_colour_and_each_hand_a_lane(tmp_path):
    def lane(title, labels):
        blocks = [Block(10.0 * k, 10.0 * (k + 1), label, f"action {label}") for k, label in enumerate(labels)]
        times = 10.0 * np.arange(len(labels) + 1)
        return Lane(title, blocks, times, np.full(len(labels), 0.5))

    lanes = [lane("left hand", [0, 1, 2, 0]), lane("right hand", [2, 2, 0, 74])]
    draw_timeline(tmp_path / "timeline.png", "a $video$ of mine", lanes)
    picture = np.asarray(Image.open(tmp_path / "timeline.png").convert("RGB"))
    assert picture.shape[1] == 1200

    def colour(row, column):  # below the text in the middle of a block
        left, right, top = 0.085 * 1200, 0.985 * 1200, 51
        x = round(left + (column + 0.5) / 4 * (right - left))
        return tuple(picture[round(top + 95 * row + 8), x].tolist())

    first, second = ([colour(row, column) for column in range(4)] for row in range(2))
    assert first[0] == first[3] == second[2] and first[2] == second[0] == second[1]
    assert len({*first, *second}) == 4 and (255, 255, 255) not in {*first, *second}


@pytest.mark.parametrize(
    ("seconds", "total", "text"),
    [(3.5, 60, "3.5 s"), (90, 600, "1:30"), (125, 130, "2:05"), (3725, 4000, "1:02:05")],
)
def test_times_are_read_easily(seconds, total, text):
    assert clock_text(seconds, total) == text


# -------------------------------------------------------------------------------------- memory


def test_long_video_is_decoded_once_and_never_held(checkpoint, tmp_path, monkeypatch):
    n, path = 1500, tmp_path / "long.mp4"
    write_video(path, np.concatenate([draw_recording(number, n_frames=100) for number in range(n // 100)]))
    decode, views = video_stream.decode_all, video_stream._views
    decoded = alive = most = 0

    def counted(*how):
        nonlocal decoded
        for frame in decode(*how):
            decoded += 1
            yield frame

    def forget():
        nonlocal alive
        alive -= 1

    def tracked(*how):
        nonlocal alive, most
        for chunk in views(*how):
            alive += 1
            most = max(most, alive)
            weakref.finalize(chunk, forget)
            yield chunk

    monkeypatch.setattr(video_stream, "decode_all", counted)
    monkeypatch.setattr(video_stream, "_views", tracked)
    args = predict.make_parser().parse_args(["--checkpoint", str(checkpoint), "--device", "cpu", "x"])
    prediction = predict.predict_video(predict.load_model(args), path, 2)
    assert decoded == prediction.facts.frames == n
    assert len(prediction.spans) == (n - SPAN) // 2 + 1
    of_a_batch = -(-(SPAN + 2 * args.batch_size) // video_stream.CHUNK) + 1
    assert most <= video_stream.CHUNKS_AHEAD + 2 + of_a_batch < n / video_stream.CHUNK / 10


def test_folders_are_searched_for_every_kind_of_video(tmp_path):
    names = ["a.MP4", "b.ts", "c.mpg", "d.wmv", "e.m2ts", "f.3gp"]
    for name in [*names, "notes.txt", "frame.png"]:
        (tmp_path / name).touch()
    assert [path.name for path in find_videos([str(tmp_path)])] == names
