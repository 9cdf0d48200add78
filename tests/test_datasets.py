"""Samples as functions of their key, unreadable clips, and the views of the test."""

import shutil
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from conftest import draw_recording, write_list, write_video

from dataset import sampling, video
from dataset.build import build_loader, evaluation_batches
from dataset.datasets import ClipKey, HandsDataset, VideoClsDataset, collate_clips
from dataset.loader import decode_frames
from utils import UserError

CLIPS = Path(__file__).parent / "clips"
SMALL = {"clip_len": 4, "frame_sample_rate": 2, "crop_size": 32, "short_side_size": 36, "seed": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight clips of several shapes and lengths; `bad` of them are no videos."""
    root = tmp_path_factory.mktemp("clips")
    shapes = [(48, 64, 30), (64, 48, 20), (64, 64, 26), (40, 80, 6), (50, 66, 12), (48, 64, 1), (64, 64, 3)]
    for number, (height, width, n_frames) in enumerate(shapes):
        write_video(root / "videos" / f"c {number}.mp4", draw_recording(number, height, width, n_frames))
    (root / "videos" / "bad.mp4").write_text("no video")
    names = [f"c {number}.mp4" for number in range(len(shapes))]
    write_list(root / "good.txt", [(name, i % 3) for i, name in enumerate(names)])
    write_list(root / "mixed.txt", [("bad.mp4", 2), *((name, 1) for name in names), ("gone.mp4", 0)])
    write_list(root / "none.txt", [("bad.mp4", 0), ("gone.mp4", 1)])
    return root


def dataset_of(folder, mode, name="good.txt", **kwargs):
    return VideoClsDataset(folder / name, mode=mode, **{**SMALL, **kwargs})


def assert_same(a, b):
    assert a._replace(frames=0, erase_boxes=0, rows=0) == b._replace(frames=0, erase_boxes=0, rows=0)
    for column in ("frames", "erase_boxes", "rows"):
        np.testing.assert_array_equal(getattr(a, column), getattr(b, column))


# ------------------------------------------------------------------------------------- training


def test_sample_is_a_function_of_its_key_and_the_seed(folder):
    first = dataset_of(folder, "train", num_sample=2, reprob=1.0)
    again = dataset_of(folder, "train", num_sample=2, reprob=1.0)
    keys = [ClipKey("lh", pass_, clip) for pass_ in (0, 1) for clip in range(len(first))]
    samples = [first.sample(key) for key in keys]
    np.random.seed(99)
    torch.manual_seed(99)
    for key, sample in reversed(list(zip(keys, samples, strict=True))):
        assert_same(again.sample(key), sample)
        assert sample.frames.shape == (2, 4, 32, 32, 3)
        assert sample.frames.dtype == np.uint8
        assert sample.label == key.clip % 3


def test_sampling_leaves_the_global_generators_alone(folder):
    dataset = dataset_of(folder, "train", reprob=1.0)
    np.random.seed(7)
    torch.manual_seed(7)
    expected = np.random.rand(), float(torch.rand(()))
    np.random.seed(7)
    torch.manual_seed(7)
    dataset.sample(ClipKey("lh", 0, 0))
    assert (np.random.rand(), float(torch.rand(()))) == expected


def test_key_seed_and_view_each_change_the_draw(folder):
    base = dataset_of(folder, "train", num_sample=2)
    key = ClipKey("lh", 0, 0)
    sample = base.sample(key)
    assert not np.array_equal(*sample.frames)
    others = [
        base.sample(key._replace(pass_=1)),
        base.sample(key._replace(hand="rh")),
        dataset_of(folder, "train", num_sample=2, seed=6).sample(key),
    ]
    assert not any(np.array_equal(other.frames, sample.frames) for other in others)


def test_number_of_views_changes_none_of_them(folder):
    key = ClipKey("lh", 3, 2)
    one, three = (dataset_of(folder, "train", num_sample=n).sample(key) for n in (1, 3))
    np.testing.assert_array_equal(one.frames, three.frames[:1])


@pytest.mark.parametrize("mode", ["train", "validation", "test"])
def test_number_of_workers_changes_nothing(folder, mode):
    datasets = {hand: dataset_of(folder, mode, "mixed.txt", hand=hand, num_sample=2) for hand in ("lh", "rh")}
    keys = [
        [ClipKey(hand, pass_, clip) for clip in clips]
        for hand, pass_, clips in [
            ("lh", 0, (0, 1, 2)),
            ("rh", 0, (3, 0)),
            ("rh", 1, (8, 7)),
            ("lh", 1, (5,)),
        ]
    ]
    alone, pool = (list(build_loader(datasets, keys, workers)) for workers in (0, 2))
    assert [batch.hand for batch in pool] == ["lh", "rh", "rh", "lh"]
    for a, b in zip(alone, pool, strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


def write_ramp(path, n_frames, width=64):
    """A video of grey frames whose brightness tells their number."""
    frames = np.empty((n_frames, 48, width, 3), np.uint8)
    frames[:] = (20 + 7 * np.arange(n_frames, dtype=np.uint8))[:, None, None, None]
    write_video(path, frames)


def numbers_of(view):
    """Which frames of a ramp a view shows."""
    return np.round((view.mean((1, 2, 3)) - 20) / 7).astype(int).tolist()


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("long", {}, [0, 2, 5, 7]),  # after its first frame: a window of 8, both ends, truncated
        ("short", {}, [0, 3, 5, 5]),
        ("short", {"short_clips": "stretch"}, [0, 2, 4, 5]),
    ],
)
def test_training_views_show_the_frames_of_the_index_rule(tmp_path, name, settings, expected):
    write_ramp(tmp_path / "long.mp4", 30)
    write_ramp(tmp_path / "short.mp4", 6)
    write_list(tmp_path / "list.txt", [(f"{name}.mp4", 0)])
    dataset = dataset_of(tmp_path, "train", "list.txt", aa="none", **settings)
    starts = set()
    for pass_ in range(20):
        numbers = numbers_of(dataset.sample(ClipKey("lh", pass_, 0)).frames[0])
        starts.add(numbers[0])
        assert [number - numbers[0] for number in numbers] == expected
    assert len(starts) > 5 if name == "long" else starts == {0}
    assert max(starts) < 30 - 8


def test_sparse_views_spread_over_the_whole_clip(tmp_path):
    write_ramp(tmp_path / "long.mp4", 28)
    write_list(tmp_path / "list.txt", [("long.mp4", 0)])
    dataset = dataset_of(tmp_path, "train", "list.txt", aa="none", sparse_sample=True)
    for pass_ in range(10):
        numbers = numbers_of(dataset.sample(ClipKey("lh", pass_, 0)).frames[0])
        assert [number // 7 for number in numbers] == [0, 1, 2, 3]
    dataset = dataset_of(tmp_path, "validation", "list.txt", sparse_sample=True)
    assert numbers_of(dataset[0].frames[0]) == [3, 10, 17, 24]


def test_decoder_that_reads_a_clip_does_not_change_its_draws(tmp_path):
    # One of the decoders gives up on clips of 48 pixels' width.
    views = []
    for width in (48, 64):
        write_ramp(tmp_path / f"{width}" / "clip.mp4", 30, width)
        write_list(tmp_path / f"{width}" / "list.txt", [("clip.mp4", 0)])
        dataset = dataset_of(tmp_path / f"{width}", "train", "list.txt", aa="none")
        views.append([numbers_of(dataset.sample(ClipKey("lh", i, 0)).frames[0]) for i in range(10)])
    assert views[0] == views[1]


# ----------------------------------------------------------------------------- unreadable clips


def test_unreadable_training_clip_is_replaced_by_the_same_clip_every_time(folder):
    dataset = dataset_of(folder, "train", "mixed.txt")
    bad, gone = ClipKey("lh", 0, 0), ClipKey("lh", 0, 8)
    for key, name in ((bad, "bad.mp4"), (gone, "gone.mp4")):
        sample = dataset.sample(key)
        assert sample.name not in ("bad.mp4", "gone.mp4")
        assert sample.label == 1  # the substitute's own
        assert sample.frames.shape == (1, 4, 32, 32, 3)
        assert sample.bad[0][:2] == ("lh", name)
        assert sample.bad[0].reason
        assert_same(dataset_of(folder, "train", "mixed.txt").sample(key), sample)
    names = {dataset.sample(bad._replace(pass_=pass_)).name for pass_ in range(12)}
    assert len(names) > 2  # not always the same substitute
    assert dataset.sample(ClipKey("lh", 0, 1)).bad == ()


def test_list_of_unreadable_clips_ends_with_an_error(folder):
    with pytest.raises(UserError, match=r"none\.txt: 20 clips in a row could not be read"):
        VideoClsDataset(folder / "none.txt", mode="train", **SMALL)[0]


@pytest.mark.parametrize("mode", ["validation", "test"])
def test_unreadable_clip_is_never_replaced_in_an_evaluation(folder, mode):
    dataset = dataset_of(folder, mode, "mixed.txt")
    for clip, name, label in ((0, "bad.mp4", 2), (8, "gone.mp4", 0)):
        sample = dataset[clip]
        assert (sample.name, sample.label) == (name, label)
        assert sample.frames.shape == (0, 4, 32, 32, 3)
        assert sample.rows.shape == (0, 3)
        assert sample.bad[0].name == name
    batch = collate_clips([dataset[clip] for clip in (0, 1, 8)])
    assert [bad.name for bad in batch.bad] == ["bad.mp4", "gone.mp4"]
    assert batch.names == ["bad.mp4", "c 0.mp4", "gone.mp4"]
    assert set(batch.clip_of_view.tolist()) == {1}
    everything_bad = collate_clips([dataset[0], dataset[8]])
    assert everything_bad.frames.shape == (0, 4, 32, 32, 3)
    assert len(everything_bad.bad) == 2


# ----------------------------------------------------------------------------------- evaluation


def frames_at(folder, clip, indices):
    everything, _, _ = decode_frames(str(folder / "videos" / f"c {clip}.mp4"), lambda n: np.arange(n))
    return everything[np.minimum(indices, len(everything) - 1)], len(everything)


def resized(frames, short):
    height, width = frames.shape[1:3]
    size = (int(width * short / min(height, width)), int(height * short / min(height, width)))
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in frames])


def brute_force_views(folder, clip, segments, crops, short=36, size=32, length=4, rate=2):
    """{(chunk, split): view}, each from the whole decoded clip by the published rules."""
    everything, n = frames_at(folder, clip, np.arange(10**4))
    timeline = list(range(0, n, rate))
    timeline += [timeline[-1]] * (length - len(timeline))
    frames = resized(everything[:n][timeline], short)
    height, width = frames.shape[1:3]
    views = {}
    for chunk in range(segments):
        spare = len(timeline) - length
        start = spare // 2 if segments == 1 else int(chunk * (spare / (segments - 1)))
        for split in range(crops):
            free = max(height, width) - size
            along = round(free / 2) if crops == 1 else int(split * (free / (crops - 1)))
            across = round((min(height, width) - size) / 2)
            top, left = (along, across) if height >= width else (across, along)
            views[chunk, split] = frames[start : start + length, top : top + size, left : left + size]
    return views


@pytest.mark.parametrize(("segments", "crops"), [(1, 1), (1, 3), (5, 1), (5, 3), (2, 2)])
@pytest.mark.parametrize("short", [32, 36])
def test_views_of_the_test_equal_those_cut_one_by_one(folder, segments, crops, short):
    settings = {"test_num_segment": segments, "test_num_crop": crops, "short_side_size": short}
    dataset = dataset_of(folder, "test", **settings)
    for clip in range(len(dataset)):
        sample = dataset[clip]
        expected = brute_force_views(folder, clip, segments, crops, short)
        assert sorted(map(tuple, sample.rows[:, 1:])) == sorted(expected)
        for view, chunk, split in sample.rows:
            np.testing.assert_array_equal(sample.frames[view], expected[chunk, split], f"{clip=}")


@pytest.mark.parametrize(
    ("clip", "views"),
    [
        (0, 15),  # 48x64, 30 frames: all views differ
        (2, 15),  # square, but resized to 36 and cut to 32: three places along the side
        (3, 3),  # 6 frames: one window
        (5, 3),  # one frame
    ],
)
def test_coinciding_views_are_stored_once(folder, clip, views):
    dataset = dataset_of(folder, "test", test_num_segment=5, test_num_crop=3)
    sample = dataset[clip]
    assert (len(sample.frames), len(sample.rows)) == (views, 15)
    assert sorted(set(sample.rows[:, 0])) == list(range(views))


def test_all_views_of_the_test_come_from_one_decoding(folder, monkeypatch):
    opened, decoded = [], []
    open_file, to_rgb = av.open, video.to_rgb
    monkeypatch.setattr(
        av, "open", lambda path, **kwargs: (opened.append(path), open_file(path, **kwargs))[1]
    )
    monkeypatch.setattr(video, "to_rgb", lambda frame: (decoded.append(frame.pts), to_rgb(frame))[1])
    sample = dataset_of(folder, "test", test_num_segment=5, test_num_crop=3)[0]
    assert len(sample.rows) == 15
    assert opened == [f"file:{folder / 'videos' / 'c 0.mp4'}"]
    assert len(set(decoded)) == len(decoded) == 15  # each second one of 30 frames, once


def test_square_clip_that_is_not_cut_has_one_crop(folder):
    dataset = dataset_of(folder, "test", test_num_segment=5, test_num_crop=3, short_side_size=32)
    assert len(dataset[2].frames) == 5
    assert len(dataset[6].frames) == 1
    assert len(dataset[6].rows) == 15


def test_validation_is_the_centred_view(folder):
    dataset = dataset_of(folder, "validation")
    for clip in range(len(dataset)):
        _, n = frames_at(folder, clip, [0])
        sample = dataset[clip]
        indices = sampling.validation_indices(n, num_frames=4, sampling_rate=2)
        frames = resized(frames_at(folder, clip, indices)[0], 36)
        top, left = (round((side - 32) / 2) for side in frames.shape[1:3])
        np.testing.assert_array_equal(sample.frames[0], frames[:, top : top + 32, left : left + 32])
        assert sample.rows.tolist() == [[0, 0, 0]]


def test_evaluation_is_the_same_for_every_pass_and_seed(folder):
    for mode in ("validation", "test"):
        first, other = dataset_of(folder, mode), dataset_of(folder, mode, seed=77)
        assert_same(first.sample(ClipKey("lh", 0, 0)), other.sample(ClipKey("lh", 9, 0)))


def test_batches_keep_each_view_s_clip(folder):
    dataset = dataset_of(folder, "test", test_num_segment=2, test_num_crop=3)
    keys = evaluation_batches({"lh": len(dataset)}, 3, 0, 1)
    names, rows = [], 0
    for batch in build_loader({"lh": dataset}, keys, 0):
        for view, chunk, split in batch.rows.tolist():
            clip = int(batch.clip_of_view[view])
            expected = brute_force_views(folder, int(batch.names[clip][2]), 2, 3)[chunk, split]
            np.testing.assert_array_equal(batch.frames[view], expected)
            rows += 1
        names += batch.names
    assert names == [f"c {number}.mp4" for number in range(7)]
    assert rows == 7 * 6


def test_duplicate_lines_are_one_clip_in_evaluations_alone(folder, tmp_path):
    write_list(tmp_path / "list.txt", [("c 0.mp4", 0), ("c 1.mp4", 1), ("c 0.mp4", 0)])
    lengths = {
        mode: len(VideoClsDataset(tmp_path / "list.txt", folder, mode, **SMALL))
        for mode in ("train", "validation", "test")
    }
    assert lengths == {"train": 3, "validation": 2, "test": 2}


def test_hands_are_served_behind_one_index(folder):
    hands = {hand: dataset_of(folder, "validation", hand=hand) for hand in ("lh", "rh")}
    both = HandsDataset(hands)
    assert len(both) == 14
    assert both["rh", 0, 3].hand == "rh"
    assert_same(both["lh", 0, 3], hands["lh"][3])


def test_unknown_mode_is_refused(folder):
    with pytest.raises(ValueError, match="train, validation, test"):
        dataset_of(folder, "val")


def test_clip_that_is_damaged_in_part_is_replaced_only_where_the_damage_is_wanted(tmp_path):
    shutil.copyfile(CLIPS / "corrupted.mp4", tmp_path / "damaged.mp4")
    for number in range(4):
        write_video(tmp_path / f"sound{number}.mp4", draw_recording(number, n_frames=30))
    names = ["damaged.mp4", *(f"sound{number}.mp4" for number in range(4))]
    write_list(tmp_path / "train_list_video.txt", [(name, 0) for name in names])
    dataset = VideoClsDataset(tmp_path / "train_list_video.txt", **SMALL)
    passes = [dataset.sample(ClipKey("lh", pass_, 0)) for pass_ in range(40)]
    read = [not sample.bad for sample in passes]
    assert 3 < sum(read) < 37 and dataset.known_bad == {}
    # The same whatever was tried before: a function of the key.
    again = VideoClsDataset(tmp_path / "train_list_video.txt", **SMALL)
    for pass_ in (39, 20, 0):
        sample = again.sample(ClipKey("lh", pass_, 0))
        assert sample.bad == passes[pass_].bad
        np.testing.assert_array_equal(sample.frames, passes[pass_].frames)
