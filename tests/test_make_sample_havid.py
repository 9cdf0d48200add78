"""The sample data generator: what it writes, that it is repeatable, and that it leaks nothing."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import decord
import numpy as np
import pytest

from scripts.data import make_sample_havid as maker
from scripts.data import sample_motions as motions
from scripts.data import sample_scenes as scenes
from scripts.data import sample_vocabulary as vocabulary

SIZE = (48, 64)
SMALL = maker.SampleSet(table="sample", recordings=12, seed=0, size=SIZE)


@pytest.fixture(scope="module")
def sample_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "set"
    assert maker.make_sample(folder, SMALL, workers=1)
    return folder


def read_list(folder: Path, hand: str, split: str) -> dict[str, int]:
    text = (folder / f"{hand}_v0" / f"{split}_list_video.txt").read_text(encoding="utf-8")
    rows = [line.split(" ") for line in text.splitlines()]
    return {name: int(label) for name, label in rows}


def file_hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_layout_has_lists_mapping_and_videos_for_both_hands(sample_folder):
    for hand in ("lh", "rh"):
        train, val = (read_list(sample_folder, hand, split) for split in ("train", "val"))
        assert (len(train), len(val)) == (10, 2)
        assert not set(train) & set(val)
        videos = {path.name for path in (sample_folder / f"{hand}_v0" / "videos").iterdir()}
        assert videos == set(train) | set(val)
        mapping = (sample_folder / f"{hand}_v0" / "mapping.txt").read_text(encoding="utf-8")
        names = dict(line.split(" ") for line in mapping.splitlines())
        assert list(names) == [str(label) for label in range(8)]
        assert names["0"] == "insert_peg" and names["7"] == "slide_in_tray"
        assert set((train | val).values()) <= set(range(8))


def test_both_hands_hold_the_same_recording(sample_folder):
    left, right = (sample_folder / f"{hand}_v0" / "videos" for hand in ("lh", "rh"))
    for path in left.iterdir():
        assert path.read_bytes() == (right / path.name).read_bytes()


def test_files_are_copied_where_links_are_impossible(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    few = replace(SMALL, recordings=5)
    maker.make_sample(tmp_path / "set", few, workers=1)
    left, right = (tmp_path / "set" / f"{hand}_v0" / "videos" for hand in ("lh", "rh"))
    for path in left.iterdir():
        twin = right / path.name
        assert not path.samefile(twin) and path.read_bytes() == twin.read_bytes()


def test_videos_decode_alike_with_both_readers(sample_folder):
    for path in sorted((sample_folder / "lh_v0" / "videos").iterdir()):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.codec_context.pix_fmt == "yuv420p"
            assert 15 <= stream.average_rate <= 30
            decoded = list(container.decode(stream))
        frames = [frame.to_ndarray(format="rgb24") for frame in decoded]
        assert 20 <= len(frames) <= 120
        assert SIZE[0] <= frames[0].shape[0] <= SIZE[1]
        assert frames[0].shape[0] <= frames[0].shape[1] <= 1.36 * frames[0].shape[0]
        reader = decord.VideoReader(str(path), num_threads=1)
        assert len(reader) == len(frames)
        middle = len(frames) // 2
        other = reader[middle].asnumpy().astype(int)
        assert np.abs(other - frames[middle]).mean() < 2.0
        keys = [number for number, frame in enumerate(decoded) if frame.key_frame]
        assert keys[0] == 0 and all(12 <= step <= 16 for step in np.diff(keys))


def test_worker_count_does_not_change_a_byte(sample_folder, tmp_path):
    assert maker.make_sample(tmp_path / "set", SMALL, workers=2)
    assert file_hashes(tmp_path / "set") == file_hashes(sample_folder)


def test_leftovers_in_memory_do_not_change_a_byte(tmp_path):
    """Encoders that read memory they never wrote show up when fresh memory is not zero."""
    program = (
        "import sys; from pathlib import Path; from scripts.data import make_sample_havid as m;"
        "s = m.SampleSet('sample', 5, 0, (96, 160));"
        "(Path(sys.argv[1]) / 'lh_v0/videos').mkdir(parents=True);"
        "(Path(sys.argv[1]) / 'rh_v0/videos').mkdir(parents=True);"
        "[m.make_recording(Path(sys.argv[1]), s, r) for r in m.plan_recordings(s)[3:]]"
    )
    hashes = []
    for fill in ("1", "254"):
        folder = tmp_path / fill
        subprocess.run(
            [sys.executable, "-c", program, str(folder)],
            check=True,
            cwd=Path(__file__).parents[1],
            env=os.environ | {"MALLOC_PERTURB_": fill},
        )
        hashes.append(file_hashes(folder))
    assert hashes[0] and hashes[0] == hashes[1]


def test_another_seed_makes_other_files(sample_folder, tmp_path):
    other = replace(SMALL, seed=1, recordings=5)
    maker.make_sample(tmp_path / "set", other, workers=1)
    videos = [
        {value for name, value in file_hashes(folder).items() if name.endswith(".mp4")}
        for folder in (sample_folder, tmp_path / "set")
    ]
    assert not videos[0] & videos[1]


def test_complete_set_is_left_alone(sample_folder):
    before = {path: path.stat().st_mtime_ns for path in sample_folder.rglob("*")}
    assert not maker.make_sample(sample_folder, SMALL, workers=1)
    assert {path: path.stat().st_mtime_ns for path in sample_folder.rglob("*")} == before


def test_interrupted_set_is_finished(sample_folder, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    made = []

    def stop_after_four(output, sample, recording):
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(recording.index)
        original(output, sample, recording)

    original = maker.make_recording
    monkeypatch.setattr(maker, "make_recording", stop_after_four)
    with pytest.raises(KeyboardInterrupt):
        maker.make_sample(folder, SMALL, workers=1)
    monkeypatch.undo()
    assert not json.loads((folder / "sample.json").read_text(encoding="utf-8"))["complete"]
    assert maker.make_sample(folder, SMALL, workers=1)
    assert file_hashes(folder) == file_hashes(sample_folder)


@pytest.mark.parametrize(
    ("flag", "values"),
    [("--seed", ["7"]), ("--recordings", ["13"]), ("--table", ["pretrain"]), ("--size", ["48", "62"])],
)
def test_folder_with_another_set_is_refused(sample_folder, caplog, flag, values):
    flags = {
        "--output": [str(sample_folder)],
        "--recordings": ["12"],
        "--size": [str(side) for side in SIZE],
        "--workers": ["1"],
    } | {flag: values}
    arguments = [word for name, words in flags.items() for word in (name, *words)]
    assert maker.main(arguments) == 1
    (message,) = caplog.messages
    assert f"{flag} " in message and " ".join(values) in message and "\n" not in message


def test_folder_with_other_files_is_refused(tmp_path, caplog):
    (tmp_path / "thesis.txt").write_text("precious", encoding="utf-8")
    assert maker.main(["--output", str(tmp_path), "--workers", "1"]) == 1
    assert "--output" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--recordings", "4"],
        ["--seed", "-1"],
        ["--workers", "0"],
        ["--size", "160", "96"],
        ["--table", "other"],
    ],
)
def test_wrong_value_names_the_flag(tmp_path, capsys, wrong):
    with pytest.raises(SystemExit) as stop:
        maker.get_args(["--output", str(tmp_path / "set"), *wrong])
    assert stop.value.code == 2
    assert wrong[0] in capsys.readouterr().err.splitlines()[-1]


def test_labels_are_balanced_and_independent_between_hands():
    plan = maker.plan_recordings(replace(SMALL, recordings=1200))
    for split, count in (("train", 960), ("val", 240)):
        table = np.zeros((8, 8), dtype=int)
        for recording in plan:
            if recording.split == split:
                table[recording.labels["lh"], recording.labels["rh"]] += 1
        assert table.sum() == count
        assert set(table.sum(axis=0)) == set(table.sum(axis=1)) == {count // 8}
        assert table.max() - table.min() <= 1


def test_pretraining_labels_use_every_class_of_both_hands():
    plan = maker.plan_recordings(replace(SMALL, table="pretrain", recordings=1200))
    for hand in scenes.HANDS:
        counts = np.bincount([row.labels[hand] for row in plan if row.split == "train"])
        assert len(counts) == len(vocabulary.PRETRAIN.actions) and set(counts) == {80}


def test_scene_does_not_depend_on_labels():
    plan = maker.plan_recordings(SMALL)
    for recording in plan[:6]:
        draws = [
            scenes.draw_scene(
                vocabulary.SAMPLE, replace(recording, labels={"lh": left, "rh": right}), 0, SIZE
            )
            for left, right in ((0, 0), (7, 3))
        ]
        assert draws[0] == draws[1]


def test_other_hand_does_not_change_a_hands_half():
    # The label pair would leak if one hand's draws moved the other's.
    recording = scenes.Recording(3, "train", {"lh": 4, "rh": 0})
    halves = []
    for right in (0, 7):
        labels = {"lh": 4, "rh": right}
        draw, frames = scenes.render(vocabulary.SAMPLE, replace(recording, labels=labels), 0, SIZE)
        halves.append(np.stack(list(frames))[:, :, : draw.width // 2 - 4])
    np.testing.assert_array_equal(halves[0], halves[1])


def test_name_and_length_do_not_tell_the_label():
    sample = replace(SMALL, recordings=1200)
    plan = maker.plan_recordings(sample)
    lengths = np.array([scenes.draw_scene(vocabulary.SAMPLE, row, 0, SIZE).frames for row in plan])
    names = np.array([int(maker.clip_name(sample, row.index)[:8], 16) for row in plan])
    assert lengths.min() == scenes.MIN_FRAMES and lengths.max() >= 118
    assert len(set(names.tolist())) == len(plan)
    for hand, facts in itertools.product(scenes.HANDS, (lengths, names)):
        labels = np.array([row.labels[hand] for row in plan])
        quarter = np.searchsorted(np.quantile(facts, (0.25, 0.5, 0.75)), facts)
        table = np.zeros((8, 4))
        np.add.at(table, (labels, quarter), 1)
        expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / len(plan)
        # The 99.9 % point of chi-squared with (8 - 1) x (4 - 1) = 21 degrees of freedom.
        assert ((table - expected) ** 2 / expected).sum() < 46.8


def test_every_label_sees_the_same_backgrounds():
    plan = maker.plan_recordings(replace(SMALL, recordings=1200))
    train = [row for row in plan if row.split == "train"]
    draws = [scenes.draw_scene(vocabulary.SAMPLE, row, 0, SIZE) for row in train]
    facts = {
        "scene": (6, [draw.scene for draw in draws]),
        "hand": (5, [(draw.hand.palm_width, draw.hand.finger_width, draw.hand.bare_arm) for draw in draws]),
    }
    for count, values in facts.values():
        seen = {label: set() for label in range(8)}
        for row, value in zip(train, values, strict=True):
            seen[row.labels["lh"]].add(value)
        assert {len(styles) for styles in seen.values()} == {count}


def test_opposite_motion_is_the_reversed_path():
    for seed, frames in itertools.product(range(20), (20, 61, 120)):
        there = motions.progress_path(np.random.default_rng(seed), frames, backward=False)
        back = motions.progress_path(np.random.default_rng(seed), frames, backward=True)
        np.testing.assert_array_equal(there, back[::-1])
        assert (np.diff(there) >= 0).all()
        assert there[0] < 0.1 and there[-1] > 0.9
        still = np.isclose(np.diff(there), 0.0).mean()
        assert still < 0.35


@pytest.mark.parametrize("label", range(8))
def test_opposite_label_shows_the_same_frames_in_reverse(label):
    """With noise and tremble off, a clip of an action is its opposite's played backwards."""
    recording = scenes.Recording(5, "train", {"lh": label, "rh": label})
    pictures = []
    for each in (label, label ^ 1):
        draw, track_frames = still_frames(replace(recording, labels={"lh": each, "rh": each}))
        pictures.append(track_frames)
    assert len(pictures[0]) == draw.frames
    np.testing.assert_array_equal(pictures[0], pictures[1][::-1])
    assert np.abs(pictures[0][0].astype(int) - pictures[0][-1]).max() > 60


def still_frames(recording: scenes.Recording) -> tuple[scenes.SceneDraw, np.ndarray]:
    """Draws both hands on a blank table, without anything that varies at random in time."""
    draw = scenes.draw_scene(vocabulary.SAMPLE, recording, 0, SIZE)
    frames = np.zeros((draw.frames, draw.height, draw.width, 3), np.uint8)
    for hand in scenes.HANDS:
        action = vocabulary.SAMPLE.actions[recording.labels[hand]]
        rng = np.random.default_rng(11)
        track = scenes.hand_track(action, draw, hand, rng)
        for frame, progress in zip(frames, track.path, strict=True):
            stage = scenes.Stage(frame, track.stage_side)
            track.drawing(stage, track.layout, float(progress), np.zeros(2))
    return draw, frames


def test_tremble_is_symmetric_in_time():
    shifts = np.stack([motions.tremble(np.random.default_rng(seed), 40, 0.01)[:, 0] for seed in range(1500)])
    steps = np.diff(shifts, axis=1)
    assert np.abs(shifts).max() <= 0.01
    # For a law without a direction in time, steps up and steps down have the same skew: none.
    assert abs((steps**3).mean() / steps.std() ** 3) < 0.1
    assert np.allclose(shifts[:, 0].std(), shifts[:, -1].std(), rtol=0.1)


def test_turns_are_too_slow_to_alias():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        path = motions.progress_path(rng, int(rng.integers(20, 121)), backward=bool(seed % 2))
        turn = motions.turn_range(rng, path)
        assert turn * np.abs(np.diff(path)).max() * 4 < 40.0
        assert turn >= 80.0


@pytest.mark.parametrize("table", sorted(vocabulary.VOCABULARIES))
def test_hands_stay_in_their_own_halves(table):
    words = vocabulary.VOCABULARIES[table]
    for label, action in enumerate(words.actions):
        recording = scenes.Recording(label, "train", {"lh": label, "rh": label})
        draw = scenes.draw_scene(words, recording, 0, SIZE)
        track = scenes.hand_track(action, draw, "rh", np.random.default_rng(label))
        blank = np.zeros((draw.height, draw.width, 3), np.uint8)
        for progress in (0.0, 0.5, 1.0):
            track.drawing(scenes.Stage(blank, 1), track.layout, progress, np.zeros(2))
        crossing = blank[:, : draw.width // 2].any(axis=2).mean()
        assert crossing < 0.03, action.name


@pytest.mark.parametrize(("words", "parts"), [(vocabulary.SAMPLE, 4), (vocabulary.PRETRAIN, 6)])
def test_half_of_the_classes_follow_from_the_part(words, parts):
    actions = words.actions
    assert len(actions) == 2 * parts and len(words.parts) == parts
    assert len({action.name for action in actions}) == len(actions)
    for forward, backward in zip(actions[::2], actions[1::2], strict=True):
        assert forward.part is backward.part and forward.pair is backward.pair
        assert (forward.backward, backward.backward) == (False, True)


def test_the_two_vocabularies_share_nothing():
    def facts(words: vocabulary.Vocabulary) -> dict[str, set]:
        pairs = [action.pair for action in words.actions]
        styles = [style for split in vocabulary.SPLITS for style in words.scenes[split]]
        hands = [style for split in vocabulary.SPLITS for style in words.hands[split]]
        return {
            "labels": {action.name for action in words.actions},
            "parts": {part.name for part in words.parts},
            "motions": {name for pair in pairs for name in (pair.forward, pair.backward)},
            "drawings": {pair.drawing for pair in pairs},
            "colours": {colour for part in words.parts for colour in (*part.bodies, part.mark)},
            "textures": {style.texture for style in styles},
            "tables": {colour for style in styles for colour in (style.table, style.wall)},
            "hands": {colour for style in hands for colour in (style.skin, style.sleeve)},
        }

    sample, pretrain = facts(vocabulary.SAMPLE), facts(vocabulary.PRETRAIN)
    for kind, values in sample.items():
        assert not values & pretrain[kind], kind


@pytest.mark.parametrize("words", vocabulary.VOCABULARIES.values(), ids=lambda words: words.name)
def test_validation_has_other_tables_and_hands(words):
    for attribute in ("texture", "table", "wall"):
        train, val = (
            {getattr(style, attribute) for style in words.scenes[split]} for split in ("train", "val")
        )
        assert not train & val
    for attribute in ("skin", "sleeve"):
        train, val = (
            {getattr(style, attribute) for style in words.hands[split]} for split in ("train", "val")
        )
        assert not train & val
    shapes = [
        {(s.fingers, s.size, s.palm_width, s.finger_width) for s in words.hands[split]}
        for split in ("train", "val")
    ]
    assert not shapes[0] & shapes[1]


def test_every_style_and_motion_can_be_drawn():
    for words in vocabulary.VOCABULARIES.values():
        for split in vocabulary.SPLITS:
            assert {style.texture for style in words.scenes[split]} <= set(scenes.TEXTURES)
        assert {action.pair.drawing for action in words.actions} <= set(motions.DRAWINGS)
    recording = scenes.Recording(0, "val", {"lh": 0, "rh": 11})
    draw, frames = scenes.render(vocabulary.PRETRAIN, recording, 0, SIZE)
    pictures = list(frames)
    assert len(pictures) == draw.frames
    assert pictures[0].shape == (draw.height, draw.width, 3) and pictures[0].dtype == np.uint8
