"""Clips behind URLs, read from a real HTTP server on this machine."""

import functools
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_recording, write_list, write_video

from dataset import storage
from dataset.annotations import find_clip_folder, read_clip_list
from dataset.build import build_dataset, build_loader, evaluation_batches
from dataset.loader import ClipError, ClipReader
from utils import UserError

SIZES = {"clip_len": 4, "frame_sample_rate": 2, "crop_size": 32, "short_side_size": 36}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; notes what was asked for, and fails as often as it is told to."""

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.server.failures:
            self.server.failures -= 1
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Two clips in a folder that a server on 127.0.0.1 shows; (folder, its URL, the server)."""
    monkeypatch.setattr(storage, "_PAUSES", (0.01, 0.01))
    folder = tmp_path / "served"
    for number in range(2):
        write_video(folder / "videos" / f"clip {number}.mp4", draw_recording(number, n_frames=20))
    write_list(folder / "val_list_video.txt", [("clip 0.mp4", 0), ("clip 1.mp4", 1)])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    server.asked, server.failures = [], 0
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}", server
    server.shutdown()
    thread.join()
    server.server_close()


def frames_of(dataset, num_workers=0):
    batches = build_loader({"lh": dataset}, evaluation_batches({"lh": 2}, 1, 0, 1), num_workers)
    return [batch.frames.numpy() for batch in batches]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_data_root_may_be_a_url(served, num_workers):
    folder, url, _ = served
    remote = build_dataset("validation", folder, url, **SIZES)
    assert remote.clip_folder == f"{url}/videos"
    local = frames_of(build_dataset("validation", folder, **SIZES))
    np.testing.assert_array_equal(frames_of(remote, num_workers), local)


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_list_may_name_urls(served, tmp_path, scheme):
    folder, url, _ = served
    base = url if scheme == "http" else f"file://{folder}"
    write_list(tmp_path / "val_list_video.txt", [(f"{base}/videos/clip {n}.mp4", n) for n in range(2)])
    local = frames_of(build_dataset("validation", folder, **SIZES))
    np.testing.assert_array_equal(frames_of(build_dataset("validation", tmp_path, **SIZES)), local)


def test_folders_of_frames_may_lie_behind_a_url(served):
    from PIL import Image

    folder, url, _ = served
    (folder / "take").mkdir()
    truth = draw_recording(5, n_frames=6)
    for number, frame in enumerate(truth):
        Image.fromarray(frame).save(folder / "take" / f"{number}.png")
    frames = ClipReader(fname_tmpl="{}.png", start_idx=0).read(f"{url}/take", 6, np.arange).frames
    np.testing.assert_array_equal(frames, truth)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_cache_folder_saves_further_requests(served, tmp_path, num_workers):
    folder, url, server = served
    cache = tmp_path / "cache"
    dataset = build_dataset("validation", folder, url, reader=ClipReader(cache_dir=cache), **SIZES)
    server.asked.clear()
    first = frames_of(dataset, num_workers)
    assert sorted(server.asked) == ["/videos/clip%200.mp4", "/videos/clip%201.mp4"]
    contents = {path.read_bytes() for path in cache.iterdir()}
    assert contents == {(folder / "videos" / f"clip {n}.mp4").read_bytes() for n in range(2)}
    np.testing.assert_array_equal(frames_of(dataset, num_workers), first)
    assert len(server.asked) == 2


def test_cache_folder_that_cannot_be_written_is_named(served, tmp_path):
    _, url, _ = served
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"--clip_cache {tmp_path / 'file'}: cannot be written"):
        storage.fetch_to(f"{url}/videos/clip 0.mp4", tmp_path / "file")


def test_passing_failures_are_tried_again(served):
    folder, url, server = served
    server.failures = 2
    assert storage.fetch(f"{url}/videos/clip 0.mp4") == (folder / "videos" / "clip 0.mp4").read_bytes()
    assert len(server.asked) == 3


def test_lasting_failures_make_a_bad_clip_of_one_line(served):
    _, url, server = served
    server.failures = 3
    with pytest.raises(ClipError, match="503") as error:
        ClipReader().read(f"{url}/videos/clip 0.mp4", 0, np.arange)
    assert "\n" not in str(error.value)


def test_missing_object_is_asked_for_once(served):
    _, url, server = served
    with pytest.raises(ClipError, match="no such object"):
        ClipReader().read(f"{url}/videos/gone.mp4", 0, np.arange)
    assert server.asked == ["/videos/gone.mp4"]


def clip_list(path, *names):
    write_list(path, [(name, 0) for name in names])
    return read_clip_list(path)


def test_wrong_url_fails_at_the_start(served, tmp_path):
    _, url, _ = served
    clips = clip_list(tmp_path / "list.txt", "clip 0.mp4", "clip 1.mp4")
    with pytest.raises(UserError, match=r"list\.txt: none of 2 sampled clips .*/wrong/videos, "):
        find_clip_folder(clips, f"{url}/wrong", "val", tmp_path / "list.txt")
    clips = clip_list(tmp_path / "list.txt", f"{url}/gone.mp4")
    with pytest.raises(UserError, match=r"none of 1 sampled clips .*gone\.mp4.* can be found"):
        find_clip_folder(clips, tmp_path, "val", tmp_path / "list.txt")


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")], ids=["S3", "Google"])
def test_missing_package_is_named(tmp_path, scheme, package):
    if _is_installed(package):
        pytest.skip(f"{package} is installed")
    clips = clip_list(tmp_path / "list.txt", "a.mp4")
    with pytest.raises(UserError) as error:
        find_clip_folder(clips, f"{scheme}://bucket/clips", "val", "list.txt")
    assert str(error.value).endswith(f"reading {scheme}:// needs {package}: pip install {package}")


def _is_installed(package):
    import importlib.util

    return importlib.util.find_spec(package) is not None


def test_unknown_scheme_is_said(tmp_path):
    clips = clip_list(tmp_path / "list.txt", "nonsense://a/b.mp4")
    with pytest.raises(UserError, match=r"nonsense://a/b\.mp4: Protocol not known: nonsense"):
        find_clip_folder(clips, tmp_path, "val", "list.txt")


def test_paths_and_urls_are_told_apart():
    assert storage.is_url("https://a/b.mp4") and storage.is_url("s3://bucket/a.mp4")
    assert not storage.is_url("c:/b.mp4") and not storage.is_url("a/b.mp4") and not storage.is_url("/a://b")
    assert storage.local_path("file:///data/a.mp4") == "/data/a.mp4"
    assert storage.local_path("data/a.mp4") == "data/a.mp4"
    assert storage.local_path("http://127.0.0.1:1/a.mp4") is None
    assert Path(storage.join("/data", "a/b.mp4")) == Path("/data/a/b.mp4")
