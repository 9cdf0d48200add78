"""The contact sheet of what enters the model."""

import json

import numpy as np
import pytest
import torch
from conftest import CLASSES, ROOT, draw_recording, write_list, write_video
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN

from dataset import class_names
from dataset.datasets import BadClip, ClipKey, ClipSample
from dataset.sampling import ShuffledPasses
from run_alternating_hand_finetuning import build_datasets, get_args
from scripts.tools import browse_dataset, contact_sheet, view_pictures
from utils import UserError

SIDE, FRAMES = 32, 4  # of the tiny run's views
HEIGHT_OF_TEXT = 18  # a line at the smallest size
RECIPE = ("--reprob", "1", "--recount", "2")


@pytest.fixture
def browse(tiny_flags, tmp_path):
    """Makes a sheet with the tiny run's flags and further ones; returns it as (H, W, 3)."""

    def call(*flags, base=tiny_flags):
        output = tmp_path / "made" / "sheet.png"
        output.unlink(missing_ok=True)
        assert browse_dataset.main([*base, "--output", str(output), *map(str, flags)]) == 0
        assert [path.name for path in output.parent.iterdir()] == ["sheet.png"]
        return np.asarray(Image.open(output)).copy()

    return call


@pytest.fixture
def refused(tiny_flags, capsys):
    """What the command says, in one line, where it fails."""

    def call(*flags, base=tiny_flags):
        assert browse_dataset.main([*base, *map(str, flags)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("browse_dataset: ") and error.count("\n") == 1
        return error

    return call


def rows_of(sheet, side=SIDE, frames=FRAMES):
    """[(top, (F, S, S, 3) frames)] of a sheet's rows, found by the paper between the frames alone."""
    width = frames * (side + contact_sheet.GAP) - contact_sheet.GAP
    left = contact_sheet.MARGIN + 6 * 12  # the gutter at the smallest text
    paper = (sheet[:, left : left + width] == sheet[0, 0]).all(2)
    gaps = np.arange(side, width, side + contact_sheet.GAP)
    # A line of text leaves the end of the line bare, or a gap covered.
    is_row = paper[:, gaps].all(1) & ~paper[:, : side // 2].all(1) & ~paper[:, -side // 2 :].any(1)
    tops = np.flatnonzero(is_row & ~np.roll(is_row, 1))
    places = left + np.arange(frames) * (side + contact_sheet.GAP)
    return [(top, np.stack([sheet[top : top + side, x : x + side] for x in places])) for top in tops]


def training_samples(flags, count):
    """The samples of the first clips that the trainer's loader is asked for, hand by hand."""
    args = get_args(flags)
    datasets = build_datasets(args, CLASSES)["train"]
    for hand, dataset in datasets.items():
        order = ShuffledPasses(len(dataset), (args.seed, hand))
        for place in range(count):
            yield dataset.sample(ClipKey(hand, *order.at(place)))


def test_frames_are_those_that_the_trainer_loads(browse, tiny_flags):
    sheet = browse("--n", 3, "--reprob", 0)
    expected = [
        view for sample in training_samples([*tiny_flags, "--reprob", "0"], 3) for view in sample.frames
    ]
    shown = [frames for _, frames in rows_of(sheet)]
    assert len(shown) == len(expected) == 2 * 3 * 2
    for frames, view in zip(shown, expected, strict=True):
        assert np.abs(frames.astype(int) - view).max() <= 1


@pytest.mark.parametrize("remode", ["pixel", "const"])
def test_erased_boxes_are_erased_and_nothing_else(browse, tiny_flags, remode):
    flags = [*RECIPE, "--remode", remode]
    shown = [frames for _, frames in rows_of(browse("--n", 3, *flags))]
    samples = list(training_samples([*tiny_flags, *flags], 3))
    views = [
        pair for sample in samples for pair in zip(sample.frames, sample.erase_boxes.tolist(), strict=True)
    ]
    for frames, (view, boxes) in zip(shown, views, strict=True):
        erased = np.zeros((SIDE, SIDE), bool)
        for top, left, height, width in boxes:
            erased[top : top + height, left : left + width] = True
        difference = np.abs(frames.astype(int) - view)
        assert difference[:, ~erased].max() <= 1
        inside = frames[:, erased].astype(float)
        if remode == "const":
            assert np.abs(inside - 255 * np.array(IMAGENET_DEFAULT_MEAN)).max() <= 1
        else:  # every frame has noise of its own
            assert np.abs(inside[0] - inside[1]).mean() > 20


def test_sheet_has_room_for_every_row_and_line(browse):
    sheet = browse("--n", 2, "--cell", 64)
    tops = [top for top, _ in rows_of(sheet, side=64)]
    assert sheet.shape[1] == contact_sheet.LEAST_WIDTH + 2 * contact_sheet.MARGIN
    row, clip, hand = 64 + 2, HEIGHT_OF_TEXT + 2 + 9, 3 * HEIGHT_OF_TEXT
    assert np.diff(tops).tolist() == [row, row + clip, row, row + clip + hand, row, row + clip, row]
    assert sheet.shape[0] == tops[-1] + row + 9 + contact_sheet.MARGIN


def test_one_hand_or_one_view_takes_less_room(browse):
    both = len(rows_of(browse("--n", 2)))
    assert (both, len(rows_of(browse("--n", 2, "--views", 1)))) == (8, 4)
    assert len(rows_of(browse("--n", 2, "--one_stream"))) == 4
    assert len(rows_of(browse("--n", 999, "--views", 1, "--one_stream"))) == 16


def test_eight_frames_spread_over_a_view():
    assert view_pictures.shown_frames(16).tolist() == [0, 2, 4, 6, 9, 11, 13, 15]
    assert view_pictures.shown_frames(8).tolist() == list(range(8))
    assert view_pictures.shown_frames(3).tolist() == [0, 1, 2]
    assert view_pictures.shown_frames(1).tolist() == [0]


def test_same_flags_give_the_same_picture_and_other_draws_another(browse):
    first = browse("--n", 2, *RECIPE)
    torch.rand(3)  # the caller's generator plays no part, and is left alone
    state = torch.get_rng_state()
    assert np.array_equal(first, browse("--n", 2, *RECIPE))
    assert torch.equal(state, torch.get_rng_state())
    for other in (("--seed", 1), ("--pass", 1)):
        assert not np.array_equal(first, browse("--n", 2, *RECIPE, *other))


def test_run_gives_the_picture_of_its_flags(browse, tiny_flags, tmp_path):
    flags = [*tiny_flags, *RECIPE, "--crop_scale", "0.5", "0.9", "--seed", "5"]
    # What the trainer writes.
    (tmp_path / "args.json").write_text(json.dumps(vars(get_args(flags)), default=str))
    of_flags = browse("--n", 2, base=flags)
    assert np.array_equal(of_flags, browse("--n", 2, "--run", tmp_path, base=[]))
    other = browse("--n", 2, "--run", tmp_path, "--seed", 6, base=[])
    assert np.array_equal(other, browse("--n", 2, "--seed", 6, base=flags))
    assert not np.array_equal(other, of_flags)


@pytest.mark.parametrize("mode", ["validation", "test"])
def test_evaluations_show_their_own_views(browse, tiny_flags, mode):
    args = get_args(tiny_flags)
    shown = iter(rows_of(browse("--mode", mode, "--n", 3, "--views", 3, "--cell", 64), side=64))
    for dataset in build_datasets(args, CLASSES)[mode].values():
        for clip in np.arange(3) * len(dataset) // 3:
            sample = dataset[clip]
            for view in sample.rows[:3, 0]:
                expected = [Image.fromarray(frame).resize((64, 64)) for frame in sample.frames[view]]
                assert np.abs(next(shown)[1].astype(int) - np.stack(expected)).max() <= 1
    assert next(shown, None) is None


def test_views_of_a_test_are_told_by_chunk_and_split():
    frames = np.zeros((3, 4, 8, 8, 3), np.uint8)
    rows = np.array([(0, 0, 0), (2, 0, 1), (1, 1, 0)])
    sample = ClipSample("lh", "a.mp4", 3, frames, np.zeros((3, 0, 4), np.int16), rows)
    notes = view_pictures.view_notes(sample)
    assert notes[1] == (2, ("view 2 of 3", "chunk 0", "split 1"))
    training = view_pictures.view_notes(sample._replace(rows=rows[:0]))
    assert training == [(view, (f"view {view + 1} of 3",)) for view in range(3)]


def test_class_names_stand_beside_the_lists_or_in_a_given_file(browse, sample, tmp_path):
    bare = browse("--n", 1)
    (tmp_path / "names").write_text("\n".join(f"{label} action {label}" for label in range(4)))
    given = browse("--n", 1, "--lh_mapping", tmp_path / "names")
    beside = sample.path("lh") / "mapping.txt"
    beside.write_bytes((tmp_path / "names").read_bytes())
    try:
        assert np.array_equal(browse("--n", 1), given)
    finally:
        beside.unlink()
    changed = np.flatnonzero((bare != given).any((1, 2)))
    caption_end = rows_of(bare)[0][0]
    assert caption_end - HEIGHT_OF_TEXT - 2 <= changed.min() and changed.max() < caption_end


def test_label_and_names(tmp_path):
    path = tmp_path / "mapping.txt"
    path.write_bytes("\ufeff0 null\n\n 1\tinsert, the peg \r\n2,x\n".encode() + b"3 \xff\n")
    names = class_names.read_class_names(path)
    assert names == {0: "null", 1: "insert, the peg", 2: "x", 3: "�"}
    assert view_pictures.describe_label(1, names) == "class 1: insert, the peg"
    assert view_pictures.describe_label(4, names) == "class 4"
    path.write_text("0 null\nnull 1\n")
    with pytest.raises(UserError, match=r"mapping\.txt:2: not `label name`: 'null 1'"):
        class_names.read_class_names(path)


def test_long_text_is_elided_in_the_middle_and_broken_at_blanks():
    assert contact_sheet.elide("abcdefghij", 10, len) == "abcdefghij"
    assert contact_sheet.elide("abcdefghij", 8, len) == "abc...ij"
    assert contact_sheet.elide("abcdefghij", 2, len) == "..."
    assert contact_sheet.wrap("a bb ccc abcdefghij", 7, len) == ["a bb", "ccc", "ab...ij"]
    assert contact_sheet.printable("a\nb\tc\udcff\u200b\x1b[1m é") == "a?b?c???[1m é"


def test_names_of_any_kind_are_only_drawn():
    names = ("x" * 3000, "%s {0} \\n <b>$HOME</b>", "\udce9\x00\x07.mp4", "手 ✋", "")
    clips = tuple(contact_sheet.Clip(name, name, (), name) for name in names)
    sheet = contact_sheet.ContactSheet(32, 4).draw("t", [], [contact_sheet.Section("h", clips)])
    assert sheet.width == contact_sheet.LEAST_WIDTH + 2 * contact_sheet.MARGIN


def write_data(root, clips):
    for hand in CLASSES:
        for split in ("train", "val"):
            write_list(root / hand / f"{split}_list_video.txt", clips)
    return [word for hand in CLASSES for word in (f"--{hand}_data_path", str(root / hand))]


def test_unreadable_clips_are_said(browse, tmp_path, tiny_flags):
    rows = write_data(tmp_path, [("good.mp4", 0), ("bad.mp4", 1)])
    for hand in CLASSES:
        write_video(tmp_path / hand / "good.mp4", draw_recording(1))
        (tmp_path / hand / "bad.mp4").write_bytes(b"no video")
    flags = [*tiny_flags, *rows]
    assert len(rows_of(browse("--n", 2, base=flags))) == 8
    assert len(rows_of(browse("--n", 2, "--mode", "validation", base=flags))) == 2
    sample = ClipSample("lh", "a.mp4", 0, np.zeros((1, 4, 8, 8, 3)), None, None)
    substitute = sample._replace(bad=(BadClip("lh", "b.mp4", "damaged"),))
    assert view_pictures.describe_trouble(sample) == ""
    assert view_pictures.describe_trouble(substitute) == "in place of b.mp4, which could not be read: damaged"
    missing = substitute._replace(frames=sample.frames[:0])
    assert view_pictures.describe_trouble(missing) == "could not be read: damaged"


def test_real_video_at_the_recipes_size(browse, tmp_path):
    clip = str(ROOT / "tests" / "clips" / "h264_340x256.mp4")
    flags = write_data(tmp_path, [(clip, 7)])
    sheet = browse("--reprob", 0, base=flags)
    assert sheet.shape[1] == 6 * 16 + 8 * (224 + 2) - 2 + 2 * contact_sheet.MARGIN
    args = get_args([*flags, "--reprob", "0"])
    view = build_datasets(args, {"lh": 75})["train"]["lh"][0].frames[0]
    left = contact_sheet.MARGIN + 6 * 16
    tops = range(len(sheet) - 224)
    first = view[0].astype(int)
    top = min(
        tops, key=lambda y: np.abs(sheet[y : y + 224 : 8, left : left + 224 : 8] - first[::8, ::8]).sum()
    )
    for place, frame in enumerate(view[view_pictures.shown_frames(16)]):
        x = left + place * 226
        assert np.abs(sheet[top : top + 224, x : x + 224].astype(int) - frame).max() <= 1


def test_remarks_say_what_comes_later_and_the_flags(tiny_flags):
    def remarks(*flags):
        return " ".join(browse_dataset.describe_views(browse_dataset.parse_flags([*tiny_flags, *flags])))

    assert "before mixup:" in remarks()
    assert "before" not in remarks("--mixup", "0", "--cutmix", "0")
    assert "before mixup and token masks:" in remarks("--train_mask_ratio", "0.5")
    assert "frames 1, 2, 3, 4 of 4, pass 2" in remarks("--pass", "2")
    assert "--crop_scale 0.5 0.9 " in remarks("--crop_scale", "0.5", "0.9")
    assert "--test_num_crop 3" in remarks("--mode", "test") and "reprob" not in remarks("--mode", "test")


def test_errors_are_one_line(refused, tmp_path, sample):
    assert "--rh_data_path is needed" in refused(base=["--lh_data_path", str(sample.path("lh"))])
    no_list = refused("--lh_data_path", tmp_path, "--lh_num_classes", 4)
    assert f"--lh_data_path {tmp_path}: there is no train_list_video.txt" in no_list
    assert "--aa" in refused("--aa", "rand-nonsense")
    assert "is odd: mixup" in refused("--batch_size", 1, "--num_sample", 1)
    missing = tmp_path / "none"
    assert f"--run {missing}: args.json cannot be read: No such file" in refused("--run", missing)
    assert f"--rh_mapping {missing}: cannot be read" in refused("--rh_mapping", missing)
    for text, problem in (("{", "is not JSON"), ("[]", "does not hold a run's flags")):
        (tmp_path / "args.json").write_text(text)
        assert f"--run {tmp_path}: args.json {problem}" in refused("--run", tmp_path)


def test_picture_that_cannot_be_written_is_said(refused, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "x.png", tmp_path):
        assert f"--output {output}: cannot be written: " in refused("--n", 1, "--output", output)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
