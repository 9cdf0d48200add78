"""Lists as users write them, and the folder their clips lie in."""

import os

import pytest

from dataset.annotations import find_clip_folder, locate, read_clip_list
from dataset.build import build_dataset, list_file, resolve_num_classes
from utils import UserError


@pytest.fixture
def listed(tmp_path):
    """Writes a list file and reads it."""

    def read(text, **kwargs):
        path = tmp_path / "list.txt"
        path.write_bytes(text.encode())
        return read_clip_list(path, **kwargs)

    return read


def rows(clips):
    return list(zip(clips, clips.labels.tolist(), strict=True))


@pytest.mark.parametrize(
    ("line", "path", "label"),
    [
        ("a/b.mp4 3", "a/b.mp4", 3),
        ("take off/x 1.mp4 12", "take off/x 1.mp4", 12),
        ("a.mp4\t0", "a.mp4", 0),
        ("take off.mp4\t7", "take off.mp4", 7),
        ("a.mp4,5", "a.mp4", 5),
        ("a.mp4, 5", "a.mp4", 5),
        ("a, b.mp4 , 5", "a, b.mp4", 5),
        ("  a.mp4   5  ", "a.mp4", 5),
        ("a.mp4 5\r", "a.mp4", 5),
        ("clip 7.mp4 8", "clip 7.mp4", 8),
        ("/data/a b.mp4 2", "/data/a b.mp4", 2),
        ("https://host/a.mp4 2", "https://host/a.mp4", 2),
        ("ümlaut/左手.mp4 1", "ümlaut/左手.mp4", 1),
        ("cam.1.mp4 007", "cam.1.mp4", 7),
    ],
)
def test_line_is_a_path_and_a_label(listed, line, path, label):
    assert rows(listed(f"first.mp4 0\n{line}\n")) == [("first.mp4", 0), (path, label)]


@pytest.mark.parametrize(
    ("line", "path", "frames"),
    [
        ("a/take 120 2", "a/take", 120),
        ("a/take 1\t120\t2", "a/take 1", 120),
        ("a/take 1, 120, 2", "a/take 1", 120),
        ("cam.1 9 2", "cam.1", 9),
        ("take9 2", "take9", 0),
    ],
)
def test_line_of_three_columns_is_a_folder_of_frames(listed, line, path, frames):
    clips = listed(f"first.mp4 0\n{line}\n")
    assert rows(clips) == [("first.mp4", 0), (path, 2)]
    assert clips.frames.tolist() == [0, frames]


def test_folder_without_frames_is_refused(listed):
    with pytest.raises(UserError, match=r"list\.txt:2: 'take' is said to have 0 frames"):
        listed("a.mp4 1\ntake 0 1\n")


def test_empty_lines_are_skipped_and_counted(listed):
    clips = listed("\na.mp4 1\n\n   \nb.mp4 0\n\n")
    assert rows(clips) == [("a.mp4", 1), ("b.mp4", 0)]
    assert clips.lines.tolist() == [2, 5]
    assert len(clips) == 2
    assert clips[1] == "b.mp4"


@pytest.mark.parametrize("name", ["r\u00e9gion.mp4".encode(), "r\u00e9gion.mp4".encode("latin-1")])
def test_any_encoding_of_a_path_is_the_file_s_name(tmp_path, name):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbf" + name + b" 3\n")
    (tmp_path / os.fsdecode(name)).touch()
    clips = read_clip_list(path)
    assert (tmp_path / clips[0]).exists()
    assert clips.labels.tolist() == [3]


def test_last_line_needs_no_end(listed):
    assert rows(listed("a.mp4 1\nb.mp4 2")) == [("a.mp4", 1), ("b.mp4", 2)]


@pytest.mark.parametrize("line", ["a.mp4", "a.mp4 one", "a.mp4 -1", "a.mp4 1.5", "5", "a.mp4 5x"])
def test_malformed_line_is_named_by_file_and_number(listed, tmp_path, line):
    with pytest.raises(UserError) as error:
        listed(f"ok.mp4 1\n\n{line}\n")
    assert str(error.value) == f"{tmp_path / 'list.txt'}:3: not `path label`: {line!r}"


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty_list_is_an_error(listed, text):
    with pytest.raises(UserError, match=r"list\.txt: the list is empty"):
        listed(text)


def test_missing_list_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"gone\.txt: there is no such list file"):
        read_clip_list(tmp_path / "gone.txt")


def test_label_out_of_range_is_named_by_file_and_number(listed, tmp_path):
    text = "a.mp4 0\n\nb.mp4 4\nc.mp4 9\n"
    assert len(listed(text, num_classes=10)) == 3
    with pytest.raises(UserError) as error:
        listed(text, num_classes=4)
    assert str(error.value) == (
        f"{tmp_path / 'list.txt'}:3: label 4 is out of range: there are 4 classes (0 to 3)"
    )


@pytest.mark.parametrize("unique", [True, False])
def test_two_labels_for_one_clip_name_both_lines(listed, unique):
    with pytest.raises(UserError, match=r"lines 2 and 5 give 'b\.mp4' two labels, 1 and 2"):
        listed("a.mp4 0\nb.mp4 1\nb.mp4 1\n\nb.mp4 2\n", unique=unique)


def test_repeated_lines_count_once_in_evaluation_and_as_listed_in_training(listed):
    text = "b.mp4 1\na.mp4 0\nb.mp4 1\nc.mp4 1\na.mp4 0\n"
    clips = listed(text, unique=True)
    assert rows(clips) == [("b.mp4", 1), ("a.mp4", 0), ("c.mp4", 1)]
    assert clips.lines.tolist() == [1, 2, 4]
    assert len(listed(text)) == 5


def test_clips_of_the_same_base_name_are_different_clips(listed):
    assert len(listed("s1/cam.1.mp4 0\ns2/cam.1.mp4 1\ns1/cam.2.mp4 2\n", unique=True)) == 3


# -------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        *[(name, split) for name in ("videos", "") for split in ("train", "val")],
        *[(f"{name}_{split}", split) for name in ("videos", "video") for split in ("train", "val")],
    ],
)
def test_every_layout_in_use_is_found(listed, tmp_path, folder, split):
    clips = listed("p 1/a.mp4 0\nb.mp4 1\n")
    for name in clips:
        path = tmp_path / "root" / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert find_clip_folder(clips, tmp_path / "root", split, "list") == str(tmp_path / "root" / folder)


def test_folder_of_the_other_split_is_not_taken(listed, tmp_path):
    clips = listed("a.mp4 0\n")
    (tmp_path / "videos_val").mkdir()
    (tmp_path / "videos_val" / "a.mp4").touch()
    with pytest.raises(UserError):
        find_clip_folder(clips, tmp_path, "train", "list")


def test_folder_with_most_clips_wins(listed, tmp_path):
    clips = listed("a.mp4 0\nb.mp4 0\nc.mp4 0\n")
    for name in ("videos/a.mp4", "video_train/a.mp4", "video_train/b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_clip_folder(clips, tmp_path, "train", "list") == str(tmp_path / "video_train")


def test_wrong_root_fails_with_the_folders_that_were_looked_in(listed, tmp_path):
    clips = listed("".join(f"c{i}.mp4 0\n" for i in range(100)))
    root = tmp_path / "wrong"
    with pytest.raises(UserError) as error:
        find_clip_folder(clips, root, "val", "some/list.txt")
    message = str(error.value)
    assert message.startswith("some/list.txt: none of 16 sampled clips (such as 'c0.mp4')")
    for name in ("videos", "videos_val", "video_val"):
        assert f"{root / name}," in message
    assert f"{root};" in message
    assert "\n" not in message


def test_a_few_missing_clips_are_no_wrong_root(listed, tmp_path):
    clips = listed("".join(f"c{i}.mp4 0\n" for i in range(40)))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "c39.mp4").touch()
    assert find_clip_folder(clips, tmp_path, "train", "list") == str(tmp_path / "videos")


def test_absolute_paths_and_urls_ignore_the_folder():
    assert locate("/data/a.mp4", "/clips") == "/data/a.mp4"
    assert locate("s3://bucket/a.mp4", "/clips") == "s3://bucket/a.mp4"
    assert locate("p/a.mp4", "/clips") == "/clips/p/a.mp4"
    assert locate("p/a b.mp4", "s3://bucket/clips/") == "s3://bucket/clips/p/a b.mp4"
    assert locate("p/a.mp4", None) == "p/a.mp4"


# ------------------------------------------------------------------------------- lists of a mode


def test_test_list_is_optional(tmp_path):
    assert list_file(tmp_path, "train").name == "train_list_video.txt"
    assert list_file(tmp_path, "test").name == "val_list_video.txt"
    (tmp_path / "val_list_video.txt").touch()
    assert list_file(tmp_path, "test").name == "val_list_video.txt"
    (tmp_path / "test_list_video.txt").touch()
    assert list_file(tmp_path, "test").name == "test_list_video.txt"
    assert list_file(tmp_path, "validation").name == "val_list_video.txt"


def test_missing_list_of_a_hand_names_the_flag(tmp_path):
    with pytest.raises(UserError, match=rf"--rh_data_path {tmp_path}: there is no val_list_video.txt in it"):
        build_dataset("validation", tmp_path, hand="rh")


def test_class_count_comes_from_the_flag_the_data_set_or_the_lists(tmp_path):
    (tmp_path / "train_list_video.txt").write_text("a.mp4 2\n")
    (tmp_path / "val_list_video.txt").write_text("a.mp4 6\n")
    assert resolve_num_classes("HAVID", 9, tmp_path, "lh") == 9
    assert resolve_num_classes("HAVID", None, tmp_path, "lh") == 75
    assert resolve_num_classes("CUSTOM", None, tmp_path, "lh") == 7
    with pytest.raises(UserError, match=r"--lh_data_path .*nowhere: there is no such folder"):
        resolve_num_classes("CUSTOM", None, tmp_path / "nowhere", "lh")
