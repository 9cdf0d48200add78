"""Lists by their names: what a folder holds instead, and the flags that name other files."""

import argparse
import json

import pytest
from conftest import load, write_list

from dataset.build import resolve_num_classes
from dataset.list_files import ListNames, find_list, list_file
from run_alternating_hand_finetuning import get_args, inherited_flags
from scripts.data import check_dataset
from scripts.tools import browse_dataset
from scripts.tools.report.examples import ClipPictures
from scripts.tools.report.run_data import read_run
from utils import UserError


def refusal(folder, mode="train", names=None, hand="rh"):
    with pytest.raises(UserError) as error:
        find_list(folder, mode, names, hand)
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------ what is missing


def test_folder_that_does_not_exist_is_said_to_not_exist(tmp_path):
    expected = f"--rh_data_path {tmp_path}/gone: there is no such folder"
    assert refusal(tmp_path / "gone") == expected
    with pytest.raises(UserError) as error:
        resolve_num_classes("CUSTOM", None, tmp_path / "gone", "rh")
    assert str(error.value) == expected


def test_file_in_place_of_the_folder_is_said(tmp_path):
    (tmp_path / "list.txt").touch()
    expected = f"--rh_data_path {tmp_path}/list.txt: is a file; give the folder of the list files"
    assert refusal(tmp_path / "list.txt") == expected


def test_folder_without_the_list_says_which_text_files_it_holds(tmp_path):
    for name in ("b_train_list_videos.txt", "A.CSV", "notes.md", "videos"):
        (tmp_path / name).touch()
    assert refusal(tmp_path) == (
        f"--rh_data_path {tmp_path}: there is no train_list_video.txt in it; it holds A.CSV, "
        "b_train_list_videos.txt: name the list with --train_list"
    )
    assert refusal(tmp_path, "validation").endswith("name the list with --val_list")
    # The validation list serves the test, unless a test list is named.
    assert "no val_list_video.txt in it" in refusal(tmp_path, "test")
    assert "no t.txt in it" in refusal(tmp_path, "test", ListNames(test="t.txt"))
    with pytest.raises(UserError, match=r"it holds A\.CSV, b_train_list_videos\.txt: name"):
        resolve_num_classes("CUSTOM", None, tmp_path, "lh")


def test_folder_with_many_text_files_names_ten(tmp_path):
    for number in range(12):
        (tmp_path / f"{number:02}.txt").touch()
    assert "08.txt, 09.txt and 2 more: name" in refusal(tmp_path)


def test_folder_without_any_text_file_is_said(tmp_path):
    expected = f"--rh_data_path {tmp_path}: there is no train_list_video.txt in it, nor any other .txt or"
    assert refusal(tmp_path).startswith(expected)


def test_named_list_that_is_missing(tmp_path):
    (tmp_path / "lh.txt").touch()
    assert f"--rh_data_path {tmp_path}: there is no rh.txt in it; it holds lh.txt: name" in refusal(
        tmp_path, names=ListNames(train="{hand}.txt")
    )
    expected = "--train_list /nowhere/l.txt: there is no such file"
    assert refusal(tmp_path, names=ListNames(train="/nowhere/l.txt")) == expected


# ------------------------------------------------------------------------------- other names


def test_names_are_relative_to_the_folder_absolute_or_by_hand(tmp_path):
    for name in ("s/lh.txt", "s/rh.txt", "v.csv", "test_list_video.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = ListNames(train="s/{hand}.txt", validation="v.csv")
    assert list_file(tmp_path, "train", names, "rh") == tmp_path / "s" / "rh.txt"
    assert list_file(tmp_path, "validation", names, "rh") == tmp_path / "v.csv"
    assert list_file(tmp_path, "test", names) == tmp_path / "test_list_video.txt"
    (tmp_path / "test_list_video.txt").unlink()
    assert list_file(tmp_path, "test", names) == tmp_path / "v.csv"
    assert list_file("/nowhere", "test", ListNames(test=str(tmp_path / "v.csv"))) == tmp_path / "v.csv"


@pytest.fixture(scope="module")
def elsewhere(sample, tmp_path_factory):
    """The sample's lists by mmaction2's names, both hands' in one folder, and the flags for them."""
    root = tmp_path_factory.mktemp("named")
    (root / "videos").symlink_to(sample.path("lh") / "videos")
    for hand, letter in (("lh", "l"), ("rh", "r")):
        write_list(root / f"{letter}h_train_list_videos.txt", sample.train[hand])
        write_list(root / f"{letter}h_val_list_videos.txt", sample.val[hand])
        write_list(root / f"{letter}h_test.txt", sample.val[hand][:2])
    names = ("--train_list", "{hand}_train_list_videos.txt", "--val_list", "{hand}_val_list_videos.txt")
    return [
        "--lh_data_path",
        str(root),
        "--rh_data_path",
        str(root),
        *names,
        "--test_list",
        "{hand}_test.txt",
    ]


def other_lists(tiny_flags, elsewhere):
    """The tiny run's flags, with the other lists."""
    return [*tiny_flags[4:], *elsewhere]


@pytest.fixture(scope="module")
def named_run(run_main, tiny_flags, elsewhere, tmp_path_factory):
    """A short run with the other lists."""
    folder = tmp_path_factory.mktemp("named_run")
    quick = ("--epochs", 1, "--warmup_epochs", 0, "--batch_size", 4, "--num_sample", 1)
    result = run_main(*other_lists(tiny_flags, elsewhere), *quick, "--output_dir", folder)
    assert result.code == 0, result.output
    return folder


def test_run_reads_the_named_lists(named_run, elsewhere):
    tested = json.loads((named_run / "metrics.json").read_text())
    assert (tested["lh"]["clips"], tested["rh"]["clips"]) == (2, 2)
    args = load(named_run / "checkpoint-last.pth")["args"]
    assert (args["lh_num_classes"], args["rh_num_classes"]) == (4, 3)
    assert args["train_list"] == "{hand}_train_list_videos.txt"
    said = (named_run / "run.log").read_text()
    for hand, clips in (("lh", 16), ("rh", 11)):
        assert f"{hand} train: {clips} clips of {elsewhere[1]}/{hand}_train_list_videos.txt" in said


def test_evaluation_takes_the_checkpoint_s_lists_but_not_in_a_folder_that_is_given(
    run_main, named_run, sample, tmp_path
):
    checkpoint = ("--resume", named_run / "checkpoint-last.pth", "--eval", "--output_dir", tmp_path)
    assert run_main(*checkpoint).code == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["lh"]["clips"] == 2
    result = run_main(*checkpoint, *sample.flags)
    assert result.code == 0, result.output
    assert json.loads((tmp_path / "metrics.json").read_text())["lh"]["clips"] == 5


@pytest.mark.parametrize("hand", ["lh", "rh"])
def test_either_hand_s_folder_resets_all_list_names_and_nothing_else(hand):
    saved = {"train_list": "t", "val_list": "v", "test_list": "e", "epochs": 7, "lh_data_root": "r"}
    given = {"lh_data_path": None, "rh_data_path": None}
    assert inherited_flags(saved, argparse.Namespace(**given)) == saved
    given[f"{hand}_data_path"] = "x"
    assert inherited_flags(saved, argparse.Namespace(**given)) == {"epochs": 7, "lh_data_root": "r"}


def test_given_list_wins_in_an_evaluation(named_run, sample):
    flags = ["--eval", "--resume", str(named_run / "checkpoint-last.pth")]
    args = get_args([*flags, "--test_list", "other.txt"])
    assert (args.val_list, args.test_list) == ("{hand}_val_list_videos.txt", "other.txt")
    args = get_args([*flags, *sample.flags, "--test_list", "val_list_video.txt"])
    assert (args.val_list, args.test_list) == (None, "val_list_video.txt")


def test_check_reads_the_named_lists_and_names_missing_ones_once(tiny_flags, elsewhere, tmp_path):
    flags = [
        *other_lists(tiny_flags, elsewhere),
        "--output",
        str(tmp_path / "check.json"),
        "--max_clips",
        "1",
    ]
    assert check_dataset.main(flags) == 0
    lists = json.loads((tmp_path / "check.json").read_text())["lists"]
    assert {(one["hand"], one["mode"]): one["clips"] for one in lists} == {
        **{("lh", "train"): 16, ("lh", "validation"): 5, ("lh", "test"): 2},
        **{("rh", "train"): 11, ("rh", "validation"): 3, ("rh", "test"): 2},
    }
    (tmp_path / "lists").mkdir()
    args = check_dataset.parse_flags([*flags, "--lh_data_path", str(tmp_path / "lists"), "--one_stream"])
    _, errors = check_dataset.read_lists(args)
    assert [error.text for error in errors] == [
        f"lh {mode}: --lh_data_path {tmp_path}/lists: there is no {name} in it, nor any other .txt or "
        ".csv file"
        for mode, name in (
            ("train", "lh_train_list_videos.txt"),
            ("validation", "lh_val_list_videos.txt"),
            ("test", "lh_test.txt"),
        )
    ]


def test_contact_sheet_takes_a_run_s_lists_but_not_in_a_folder_that_is_given(named_run, sample):
    args = browse_dataset.parse_flags(["--run", str(named_run)])
    assert args.train_list == "{hand}_train_list_videos.txt"
    args = browse_dataset.parse_flags(["--run", str(named_run), *sample.flags])
    assert (args.train_list, args.val_list, args.test_list) == (None, None, None)
    assert args.lh_data_path == str(sample.path("lh"))


def test_report_finds_the_clips_of_the_named_test_list(named_run, sample):
    pictures = ClipPictures(read_run(named_run))
    name = sample.val["rh"][0][0]
    assert pictures.draw("rh", name).uri.startswith("data:image/jpeg")
