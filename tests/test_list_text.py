"""Lists as other programs write them: quotes around paths, and UTF-16."""

import codecs
import csv
import io
import os
from types import SimpleNamespace

import pytest
from conftest import draw_recording, write_video

from dataset import list_text, storage
from dataset.annotations import clip_folders, find_clip_folder, read_clip_list
from dataset.build import build_dataset
from dataset.class_names import read_class_names
from run_alternating_hand_finetuning import get_parser
from scripts.data.hand_lists import read_hand_list
from scripts.tools.report.examples import ClipPictures
from scripts.tools.window_scorer import find_videos
from utils import UserError

NAMES = ["take 1.mp4", "a,b.mp4", 'say "hi" 2.mp4', "plain.mp4", "it's.mp4"]
# What pandas 3.1 writes of these names and their numbers, by its separator and quoting.
OF_PANDAS = {
    "blank": '"take 1.mp4" 0\na,b.mp4 1\n"say ""hi"" 2.mp4" 2\nplain.mp4 3\nit\'s.mp4 4\n',
    "comma": 'take 1.mp4,0\n"a,b.mp4",1\n"say ""hi"" 2.mp4",2\nplain.mp4,3\nit\'s.mp4,4\n',
    "tab": 'take 1.mp4\t0\na,b.mp4\t1\n"say ""hi"" 2.mp4"\t2\nplain.mp4\t3\nit\'s.mp4\t4\n',
    "all": '"take 1.mp4","0"\n"a,b.mp4","1"\n"say ""hi"" 2.mp4","2"\n"plain.mp4","3"\n"it\'s.mp4","4"\n',
    "single": "'take 1.mp4' 0\na,b.mp4 1\n'say \"hi\" 2.mp4' 2\nplain.mp4 3\n'it''s.mp4' 4\n",
}


@pytest.fixture
def listed(tmp_path):
    """Writes a list file and reads it, with the clips' folders under `tmp_path`."""

    def read(text, root=tmp_path, **kwargs):
        path = tmp_path / "list.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_clip_list(path, folders=clip_folders(root, "train"), **kwargs)

    return read


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# --------------------------------------------------------------------------------------- quotes


@pytest.mark.parametrize("kind", OF_PANDAS)
def test_names_are_those_that_pandas_was_given(listed, kind):
    clips = listed(OF_PANDAS[kind])
    assert list(clips) == NAMES
    assert clips.labels.tolist() == [0, 1, 2, 3, 4]
    assert not clips.frames.any()


@pytest.mark.parametrize("delimiter", " ,\t")
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_folders_of_frames_are_those_that_a_csv_writer_was_given(listed, delimiter, quoting):
    rows = [("take 1", 120, 2), ("a,b", 9, 0), ('"hi" 7', 30, 1), ("take 7", 12, 3)]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=quoting).writerows(rows)
    clips = listed(text.getvalue())
    assert list(zip(clips, clips.frames.tolist(), clips.labels.tolist(), strict=True)) == rows


def test_number_within_quotes_belongs_to_the_name(listed):
    clips = listed('"take 7" 3\n')
    assert (clips[0], clips.frames.tolist(), clips.labels.tolist()) == ("take 7", [0], [3])


@pytest.mark.parametrize("name", ['"a" "b.mp4"', "\"it's.mp4'", '"', "x'y'", "'a'b'.mp4"])
def test_what_is_not_one_quoted_name_stays(listed, name):
    assert listed(f"{name} 4\n")[0] == name


@pytest.mark.parametrize("folder", ["", "videos", "videos_train", "video_train"])
@pytest.mark.parametrize("name", ['"take 1.mp4"', "'p/take 1.mp4'", '"""hi"".mp4"'])
def test_name_that_exists_with_its_quotes_keeps_them(listed, tmp_path, folder, name):
    touch(tmp_path / folder / name)
    clips = listed(f'{name} 0\n"take 2.mp4" 1\n')
    assert list(clips) == [name, "take 2.mp4"]
    assert find_clip_folder(clips, tmp_path, "train", "list") == str(tmp_path / folder)


def test_name_whose_folder_alone_exists_loses_its_quotes(listed, tmp_path):
    touch(tmp_path / '"p' / "other")
    assert listed('"p/take 1.mp4" 0\n')[0] == "p/take 1.mp4"


def test_absolute_path_and_url_are_known_without_their_quotes(listed, tmp_path):
    touch(tmp_path / "there" / "a b.mp4")
    clips = listed(f'"{tmp_path}/there/a b.mp4" 0\n"s3://bucket/a b.mp4" 1\n', root="/nowhere")
    assert list(clips) == [f"{tmp_path}/there/a b.mp4", "s3://bucket/a b.mp4"]
    assert find_clip_folder(clips, "/nowhere", "train", "list").startswith("/nowhere")


def test_clip_with_and_without_quotes_is_one_clip(listed):
    with pytest.raises(UserError, match=r"lines 1 and 2 give 'a\.mp4' two labels, 0 and 1"):
        listed('"a.mp4" 0\na.mp4 1\n')
    assert len(listed('"a.mp4" 0\na.mp4 0\n', unique=True)) == 1


def test_quoted_folder_of_no_frames_is_refused(listed):
    with pytest.raises(UserError, match=r"list\.txt:1: 'take 1' is said to have 0 frames"):
        listed('"take 1" 0 1\n')


def test_folders_are_listed_once_and_only_for_quotes_and_no_file_is_asked_for(listed, tmp_path, monkeypatch):
    scans, scan = [], os.scandir
    monkeypatch.setattr(list_text.os, "scandir", lambda folder: scans.append(folder) or scan(folder))
    monkeypatch.setattr(list_text.Path, "exists", lambda path: pytest.fail(f"asked for {path}"))
    listed("".join(f"take {n}.mp4 0\n" for n in range(50)))
    assert not scans
    clips = listed("".join(f'"take {n}.mp4" 0\n' for n in range(50)))
    assert list(clips) == [f"take {n}.mp4" for n in range(50)]
    assert scans == clip_folders(tmp_path, "train")


@pytest.mark.parametrize("there", [True, False])
def test_behind_a_url_the_first_quoted_name_decides_for_all(listed, monkeypatch, there):
    asked = []
    monkeypatch.setattr(storage, "exists", lambda url: asked.append(url) or (there and "/videos/" in url))
    clips = listed("x.mp4 0\n" + "".join(f'"take {n}.mp4" 0\n' for n in range(50)), root="memory://clips")
    mark = '"' if there else ""
    assert list(clips) == ["x.mp4", *(f"{mark}take {n}.mp4{mark}" for n in range(50))]
    assert len(asked) == (1 if there else 4)
    assert asked[0] == 'memory://clips/videos/"take 0.mp4"'


def test_trainer_check_and_report_open_the_same_clips(tmp_path):
    names = ["take 1.mp4", '"take 2.mp4"']  # the second has its quotes on disk
    for number, name in enumerate(names):
        write_video_named(tmp_path / "videos" / name, number)
    (tmp_path / "val_list_video.txt").write_text('"take 1.mp4" 0\n"take 2.mp4" 1\n')
    dataset = build_dataset("validation", tmp_path, clip_len=4, crop_size=32, short_side_size=32)
    samples = [dataset[clip] for clip in range(2)]
    assert [sample.name for sample in samples] == names
    assert all(len(sample.frames) == 1 and not sample.bad for sample in samples)
    one = read_hand_list("lh", "validation", tmp_path / "val_list_video.txt", str(tmp_path), None)
    assert [one.file(clip).place for clip in range(2)] == [str(tmp_path / "videos" / name) for name in names]
    args = get_parser().parse_args(["--lh_data_path", str(tmp_path)])
    for listed in (names, names[1:]):
        (tmp_path / "test_list_video.txt").write_text("".join(f"{name} 0\n" for name in listed))
        pictures = ClipPictures(SimpleNamespace(args=args))
        assert all(pictures.draw("lh", name).uri for name in listed)


def write_video_named(path, number):
    """Draws a video under a name without the ending that the muxer wants."""
    write_video(path.with_name("drawn.mp4"), draw_recording(number, n_frames=8))
    path.with_name("drawn.mp4").rename(path)


def test_list_of_videos_to_predict_may_be_quoted_and_utf_16(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["take 1.mp4", "'odd.mp4'", "it's.mp4"]
    touch(*(tmp_path / name for name in names))
    lines = f"\"{tmp_path}/take 1.mp4\"\n\n'odd.mp4'\nit's.mp4\n"
    (tmp_path / "list.txt").write_bytes(lines.encode("utf-16"))
    assert [path.name for path in find_videos([], tmp_path / "list.txt")] == names


# ------------------------------------------------------------------------------------ encodings

ENCODINGS = {
    "utf-8-sig": b"",
    "utf-16": b"",
    "utf-32": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
}
TEXT = "p1/take 1.mp4 3\r\n\r\nümlaut/左手.mp4 12\r\n"


@pytest.mark.parametrize("encoding", [*ENCODINGS, "utf-16-le without mark", "utf-16-be without mark"])
def test_every_unicode_encoding_is_read(listed, encoding):
    name = encoding.removesuffix(" without mark")
    mark = ENCODINGS[name] if name == encoding else b""
    clips = listed(mark + TEXT.encode(name))
    assert list(clips) == ["p1/take 1.mp4", "ümlaut/左手.mp4"]
    assert (clips.labels.tolist(), clips.lines.tolist()) == ([3, 12], [1, 3])


def test_damaged_utf_16_is_named_as_such(listed, tmp_path):
    with pytest.raises(UserError) as error:
        listed("a.mp4 0\n".encode("utf-16") + b"\n")
    assert str(error.value).startswith(f"{tmp_path / 'list.txt'}: damaged UTF-16: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"PK\x03\x04\x14\0\0\0\0\0abc", b"a.mp4 0\nb.mp4 1\n\0 2\n" + 50 * b"x"])
def test_what_is_no_text_is_said(listed, tmp_path, content):
    with pytest.raises(UserError, match=r"list\.txt: holds zero bytes, so it is no text; save it as UTF-8"):
        listed(content)


def test_class_names_may_be_utf_16(tmp_path):
    (tmp_path / "mapping.txt").write_bytes("0 push left\n1 ziehen, schräg\n".encode("utf-16"))
    assert read_class_names(tmp_path / "mapping.txt") == {0: "push left", 1: "ziehen, schräg"}


# ------------------------------------------------------------------ what a download left instead

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"


@pytest.mark.parametrize(
    ("content", "what"), [(POINTER, "is a Git LFS pointer"), (PAGE, r"is a web page \(HTML\)")]
)
def test_list_that_is_a_pointer_or_a_page_is_named_as_such(listed, tmp_path, content, what):
    with pytest.raises(UserError, match=rf"^{tmp_path / 'list.txt'}: {what}, not the file itself: .+$"):
        listed(content)
