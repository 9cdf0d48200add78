"""The benchmark: what it compares is what it says, its arithmetic, and each command at tiny sizes."""

import json
import time
from functools import partial

import av
import decord
import numpy as np
import pytest
import torch

from dataset import video
from scripts.tools.benchmark import clips, data, lists, merge, predict, timing, train
from scripts.tools.benchmark.__main__ import main, make_parser
from scripts.tools.sliding_windows import covering_windows

ROW = {"median_ms", "low_ms", "high_ms", "ratio", "ratio_low", "ratio_high", "speed"}
TINY = clips.Size(64, 48)
TINY_MODEL = ("--model", "vit_tiny_patch16_224_alternating", "--depth", "1")


@pytest.fixture
def figures_of(tmp_path):
    """Runs a command with one turn; returns the figures that it writes."""

    def call(*flags):
        path = tmp_path / "figures.json"
        assert main([*flags, "--repeats", "1", "--json", str(path)]) == 0
        return json.loads(path.read_text())

    return call


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    return clips.scale_clip(clips.REAL_CLIP, tmp_path_factory.mktemp("clip") / "clip.mp4", TINY)


# ------------------------------------------------------------------------------------ arithmetic


def test_runs_take_turns_and_the_first_does_not_count():
    order = []
    runs = {name: lambda turn, name=name: order.append((name, turn)) for name in "ab"}
    seconds = timing.measure_in_turns(runs, turns=2)
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_clock_of_the_process_does_not_count_its_sleep():
    seconds = timing.measure_in_turns({"sleep": lambda turn: time.sleep(0.05)}, turns=1, clock="cpu")
    assert seconds["sleep"][0] < 0.05


def test_summary_relates_medians_and_gives_the_spread():
    summary = timing.summarize({"decode": [2.0, 4.0, 9.0], "sample": [3.0, 6.0, 6.0]}, "decode")
    assert summary["decode"].keys() == summary["sample"].keys() == ROW
    assert [summary["decode"][f"{name}_ms"] for name in ("low", "median", "high")] == [3000, 4000, 6500]
    assert (summary["sample"]["ratio"], summary["decode"]["ratio"]) == (1.5, 1)
    assert summary["sample"]["speed"] == pytest.approx(2 / 3)


def test_spread_of_the_ratio_is_within_turns():
    # A machine that gets slower slows both; the ratio is the same in every turn.
    summary = timing.summarize({"decode": [1.0, 2.0, 4.0], "sample": [1.5, 3.0, 6.0]}, "decode")
    assert {summary["sample"][name] for name in ("ratio", "ratio_low", "ratio_high")} == {1.5}


def test_memory_is_what_the_long_list_takes_more():
    assert lists.extra_memory({"resident": 300.0, "peak": 2.0}, {"resident": 480.0, "peak": 5.0}) == {
        "resident": 180.0,
        "peak": 3.0,
    }


def test_forward_pass_of_the_base_model_is_361_gflop(tiny_clip):
    args, _ = clips.run_on_clip(tiny_clip)
    assert args.model == "vit_base_patch16_224_alternating"
    assert train.forward_flops(args) == pytest.approx(361e9, rel=2e-3)


def test_step_counts_as_three_forward_passes():
    assert train.model_flop_utilisation(200.0, 361e9, 989e12) == pytest.approx(0.219, abs=1e-3)


# ---------------------------------------------------------------------------- what is compared


@pytest.mark.parametrize("step", [12, None])
def test_clip_is_encoded_as_the_docs_say(tmp_path, step):
    path = clips.scale_clip(clips.REAL_CLIP, tmp_path / "clip.mp4", TINY, step)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 28)
        frames = list(container.decode(video=0))
    assert len(frames) == 280
    assert {(frame.width, frame.height) for frame in frames} == {TINY}
    keyframes = [number for number, frame in enumerate(frames) if frame.key_frame]
    if step:
        assert keyframes == list(range(0, 280, 12))
    else:
        assert keyframes[0] == 0 and len(keyframes) < 12
    with av.open(str(path)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert times == sorted(times)  # no frame waits for a later one: there are no B-frames


@pytest.fixture
def decoded(monkeypatch):
    """[frames of the video that were decoded] of each call from now on."""
    calls, distinct = [], video.distinct

    def record(choose, n_frames):
        numbers, positions = distinct(choose, n_frames)
        calls.append(numbers.tolist())
        return numbers, positions

    monkeypatch.setattr(video, "distinct", record)
    return calls


@pytest.mark.parametrize(("mode", "runs_of"), [("train", data.training_runs), ("test", data.test_item_runs)])
@pytest.mark.usefixtures("any_size")
def test_decoding_alone_decodes_the_frames_of_the_sample(tiny_clip, decoded, mode, runs_of):
    args, datasets = clips.run_on_clip(tiny_clip)
    runs = runs_of(datasets[mode]["lh"], tiny_clip, args)
    for turn in range(3):
        for run in runs.values():
            run(turn)
    assert next(iter(runs)) == "decord alone"
    assert decoded[0::3] == decoded[1::3] == decoded[2::3]
    assert (len({tuple(frames) for frames in decoded}) == 1) == (mode == "test")


def test_view_crosses_in_8_bit(tiny_clip):
    _, datasets = clips.run_on_clip(tiny_clip)
    pixels = 16 * 224 * 224 * 3
    assert pixels < data.bytes_a_view(datasets["train"]["lh"]) < 1.001 * pixels


def test_batch_from_memory_is_of_the_hand_whose_turn_it_is(tiny_clip):
    _, datasets = clips.run_on_clip(tiny_clip)
    hands = ["lh", "lh", "rh", "rh", "lh"]
    keys = [[(hand, number, 0)] for number, hand in enumerate(hands)]
    batches = list(train.from_memory(datasets["train"], keys, pins=False))
    assert [batch.hand for batch in batches] == hands
    assert batches[0] is batches[1] is batches[4] and batches[2] is batches[3]


def test_results_files_hold_every_view_of_every_clip_once(figures_of, monkeypatch):
    rows = []
    read = merge.read_results
    monkeypatch.setattr(merge, "read_results", lambda path: rows.append(read(path)) or rows[-1])
    figures = figures_of("merge", "--clips", "5", "--views", "6", "--classes", "7", "--ranks", "2")
    assert set(figures) == {"read", "read and merge"} and figures["read"].keys() == ROW
    views = [set(zip(part.names, part.chunks, part.splits, strict=True)) for part in rows[:2]]
    assert [len(part) for part in views] == [18, 12] and not views[0] & views[1]
    assert rows[0].logits.shape == (18, 7)


# ---------------------------------------------------------------------------- the other commands


@pytest.mark.usefixtures("any_size")
def test_decode_compares_decoders_and_keyframes(figures_of):
    figures = figures_of("decode", "--sizes", "64x48")
    assert set(figures["64x48"]) == {
        f"{name}, {keyframes}"
        for name in ("decord alone", "reader")
        for keyframes in ("keyframes every 12", "default keyframes")
    }


def test_sizes_at_which_decord_fails_are_named(tiny_clip, monkeypatch, capsys):
    def fail(*args):
        raise decord.DECORDError("Check failed")

    monkeypatch.setattr(decord.VideoReader, "get_batch", fail)
    assert main(["decode", "--sizes", "64x48", "--repeats", "1"]) == 1
    assert "decord cannot decode frames of this size here: give other --sizes" in capsys.readouterr().err


@pytest.fixture
def any_size(monkeypatch):
    """decord fails at some sizes, which depend on the processor: the reader takes its place."""
    monkeypatch.setattr(data, "decord_alone", data.read_clip)
    monkeypatch.setitem(data.DECODERS, "decord alone", data.read_clip)


@pytest.mark.usefixtures("any_size")
def test_data_relates_samples_to_their_decoding(figures_of, capsys):
    figures = figures_of("data", "--sizes", "64x48", "96x64", "--num_workers", "1")
    assert list(figures) == ["64x48", "96x64"]
    for size in figures.values():
        assert set(size) == {"train", "test", "bytes_a_view", "clips_per_s"}
        assert size["train"].keys() == {"decord alone", "decode", "sample"}
        assert size["test"].keys() == {"decord alone", "decode", "item"}
        assert size["train"]["sample"].keys() == ROW and size["clips_per_s"] > 0
    assert "15 views" in capsys.readouterr().out


def test_augment_counts_in_warps(figures_of):
    figures = figures_of("augment", "--sizes", "96x64", "--clock", "cpu")
    assert figures["96x64"].keys() == {"64 warps", "reference", "fast"}
    assert figures["96x64"]["64 warps"]["warps"] == 64 and figures["96x64"]["fast"]["warps"] > 0


def test_list_reports_seconds_and_memory(figures_of, monkeypatch):
    monkeypatch.setattr(lists, "NEW_PROCESS", "fork")  # importing torch twice takes seconds
    figures = figures_of("list", "--lines", "30000")
    assert figures["seconds"].keys() == {"one line", "30000 lines"}
    assert figures["memory_mb"].keys() == {"resident", "peak", "worker_private", "worker_pss"}


def test_model_compares_both_attentions(figures_of, capsys):
    assert figures_of("model", *TINY_MODEL).keys() == {"unfused attention", "fused attention"}
    assert "fused attention" in capsys.readouterr().out


def test_depth_reports_each(figures_of):
    figures = figures_of("depth", "--depths", "1", "2")
    assert list(figures) == ["1 blocks", "2 blocks"] and figures["2 blocks"]["speed"] == 1


@pytest.mark.slow
def test_heads_run_two_processes(figures_of):
    figures = figures_of("heads", *TINY_MODEL, "--input_size", "32")
    assert set(figures) == {"find_unused_parameters", "heads apart"}


@pytest.mark.parametrize("workers", [0, 1])
def test_train_reports_clips_a_second(figures_of, workers):
    size = ("--size", "64x48", "--input_size", "32", "--batch_size", "2", "--steps", "2")
    flags = ("--device", "cpu", "--num_workers", str(workers))
    figures = figures_of("train", *TINY_MODEL, *size, *flags)
    assert figures.keys() == {"steps"}
    for row in figures["steps"].values():
        assert row.keys() == ROW | {"clips_per_s"}
        # Two steps of two clips of two views.
        assert row["clips_per_s"] == pytest.approx(8 / (row["median_ms"] / 1e3))
    assert list(figures["steps"]) == ["from memory", "from mp4"]


def test_predict_compares_both_tools_with_the_model(figures_of, capsys):
    flags = ("--sizes", "64x48", "--input_size", "32", "--num_frames", "4", "--sampling_rate", "2")
    figures = figures_of("predict", *TINY_MODEL, *flags, "--windows", "3", "--device", "cpu")["64x48"]
    for tool, summary in figures.items():
        assert list(summary) == ["model alone", "frames alone", tool]
        for row in summary.values():
            assert row.keys() == ROW | {"windows_per_s"}
            assert row["windows_per_s"] == pytest.approx(3 / (row["median_ms"] / 1e3))
    assert list(figures) == ["predict", "extract_features"] and "windows a second" in capsys.readouterr().out


def test_model_alone_sees_the_windows_of_the_tool(tmp_path):
    flags = ("predict", *TINY_MODEL, "--input_size", "32", "--num_frames", "4", "--sampling_rate", "2")
    scorer = predict.make_scorer(make_parser().parse_args([*flags, "--device", "cpu"]))
    clip = clips.scale_clip(clips.REAL_CLIP, tmp_path / "clip.mp4", TINY, n_frames=15)
    cut = partial(covering_windows, rule=scorer.rule, stride=2)
    windows = predict.windows_of(scorer, clip, cut)
    assert [window.start for window in windows] == [0, 2, 4, 6, 7]
    held, streamed = scorer.score(windows), scorer.score_video(clip, cut)
    for a, b in zip(held, streamed, strict=True):
        assert a.spans == b.spans and np.array_equal(a.features, b.features)


def test_clip_that_is_too_short_is_said(capsys):
    assert (
        main(["predict", "--clip", str(clips.REAL_CLIP), "--windows", "99", "--sizes", "64x48", *TINY_MODEL])
        == 1
    )
    assert "has 280 frames, fewer than the 1632 needed" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_train_reports_memory_and_work_on_a_gpu(figures_of):
    size = ("--size", "64x48", "--input_size", "32", "--batch_size", "2", "--steps", "1")
    figures = figures_of("train", *TINY_MODEL, *size, "--device", "cuda", "--num_workers", "1")
    assert figures["gpu_memory_gib"] > 0 and figures["forward_gflop"] > 0
    assert ("mfu" in figures["steps"]["from mp4"]) == (torch.cuda.get_device_name() in train.PEAK_FLOPS)


def test_utilisation_is_that_of_the_device_s_peak(monkeypatch, tiny_clip, capsys):
    args, _ = clips.run_on_clip(tiny_clip, *TINY_MODEL, "--input_size", "32")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    names = iter(("NVIDIA H200", "a new one"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: next(names))
    summary = {"from memory": {"clips_per_s": 100.0}}
    figures = train.add_gpu_figures(summary, args, torch.device("cuda"))
    flops = train.forward_flops(args)
    assert figures == {"gpu_memory_gib": 3.0, "forward_gflop": flops / 1e9}
    assert summary["from memory"]["mfu"] == pytest.approx(3 * flops * 100 / 989e12)
    unknown = {"from memory": {"clips_per_s": 100.0}}
    train.add_gpu_figures(unknown, args, torch.device("cuda"))
    assert "mfu" not in unknown["from memory"]
    assert "a new one" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------- errors


def test_missing_clip_is_said_before_anything_runs(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["data", "--clip", "none.mp4"])
    assert stop.value.code == 2
    assert "none.mp4" in capsys.readouterr().err


def test_absent_gpu_is_said_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["train", "--device", "cuda"]) == 1
    error = capsys.readouterr().err
    assert "--device cuda" in error and error.count("\n") == 1
