"""Where clips are kept: in local files, or behind URLs that fsspec reads (`s3://`, `http://`, ...)."""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from utils import UserError, atomic_open

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
_PAUSES = (0.5, 1.0)  # seconds between attempts


def is_url(path: str) -> bool:
    """Whether a path has a scheme such as `https://`."""
    return _URL.match(path) is not None


def join(folder: str, path: str) -> str:
    """A path inside a folder or URL; an empty one is the folder itself."""
    if not is_url(folder):
        return str(Path(folder) / path)
    return f"{folder.rstrip('/')}/{path}" if path else folder


def exists(path: str) -> bool:
    """Whether there is such a file or folder.

    Raises:
        UserError: a URL that cannot be asked: its package is missing, or the other side refuses.
    """
    if not is_url(path):
        return Path(path).exists()
    filesystem, place = _open_filesystem(path)
    try:
        return filesystem.exists(place)
    except Exception as error:  # every storage has exceptions of its own
        raise UserError(f"{path}: could not be asked for: {_one_line(error)}") from None


def local_path(path: str) -> str | None:
    """The local file that a path or a `file://` URL means; None where bytes must be fetched."""
    if not is_url(path):
        return path
    filesystem, place = _open_filesystem(path)
    return place if isinstance(filesystem, LocalFileSystem) else None


def fetch(url: str) -> bytes:
    """Reads the whole of what a URL names; tries again where that may help.

    Raises:
        OSError: it cannot be read; the message is one line.
    """
    filesystem, place = _open_filesystem(url)
    for pause in (*_PAUSES, None):
        try:
            return filesystem.cat_file(place)
        except FileNotFoundError:
            raise OSError("no such object") from None
        except PermissionError:
            raise OSError("no permission to read it") from None
        except Exception as error:  # every storage has exceptions of its own
            if pause is None:
                raise OSError(_one_line(error)) from None
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def fetch_to(url: str, folder: Path) -> str:
    """Reads a URL through a local folder; returns the file there, which later calls find.

    The file appears whole or not at all, so that several processes may share the folder (fsspec's own
    caches write in place). Nothing is ever removed from it.

    Raises:
        OSError: the URL cannot be read.
        UserError: the folder cannot be written.
    """
    path = folder / hashlib.sha256(url.encode()).hexdigest()
    if not path.exists():
        content = fetch(url)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_open(path) as file:
                file.write(content)
        except OSError as error:
            raise UserError(f"--clip_cache {folder}: cannot be written: {error.strerror}") from None
    return str(path)


def _open_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    scheme = url.partition("://")[0].lower()
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError:
        package = _PACKAGES.get(scheme, f"fsspec's package for {scheme}")
        raise UserError(f"{url}: reading {scheme}:// needs {package}: pip install {package}") from None
    except ValueError as error:
        raise UserError(f"{url}: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
