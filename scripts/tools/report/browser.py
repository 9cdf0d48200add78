"""An installed Chromium that draws pages, cut off from any network."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

from utils import UserError

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """Playwright's browser, for the time of a `with`.

    Raises:
        UserError: no Chromium, or no playwright, is installed.
    """
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        raise UserError(f"pages are drawn by a Chromium, and there is no {', '.join(_NAMES)}: install one")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError("pages are drawn with playwright: install requirements-dev.txt") from None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()
