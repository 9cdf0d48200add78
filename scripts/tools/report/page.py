"""Sections -> one self-contained file: a page that loads nothing and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from scripts.tools.report.figures import COLOURS
from utils import atomic_open, visible, write_text

_HERE = Path(__file__).parent / "page"
# What stands before the host of a URL, and behind its path: places of passwords and signatures.
_SECRETS = re.compile(r"(://)(?:[^/\s]+@)?([^\s?]*)(?:\?\S*)?")


def write_page(
    output: Path, template: str, content: Mapping[str, Any], pictures: Mapping[str, bytes]
) -> None:
    """Writes the page, and its pictures as PNGs in a folder of its name beside it.

    Args:
        output: the HTML file.
        template: its template's name.
        content: the template's variables.
        pictures: {name: PNG}.

    Raises:
        UserError: something cannot be written.
    """
    folder = output.with_suffix("")
    for name, png in pictures.items():
        with atomic_open(folder / f"{name}.png") as file:
            file.write(png)
    write_text(output, render(template, content))


def render(template: str, content: Mapping[str, Any]) -> str:
    """The page's text. All that content holds is shown as text, but for `Markup`."""
    script = (_HERE / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "text": text}
    text_of_page = environment.get_template(template).render(
        **content,
        script=Markup(script),
        script_hash=digest,
        style=Markup((_HERE / "page.css").read_text("utf-8")),
        light=_variables(0),
        dark=_variables(1),
    )
    # Names of files need not be UTF-8; a page is.
    return text_of_page.encode("utf-8", errors="replace").decode()


def _variables(theme: int) -> Markup:
    return Markup(" ".join(f"--{role}: {colours[theme]};" for role, colours in COLOURS.items()))


def percent(share: float | None, digits: int = 1) -> str:
    """A fraction in percent; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.{digits}f}"


def text(value: Any) -> str:
    """A flag's value or a file's name, without what URLs keep secret and with what is invisible escaped."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(text, value))
    return _SECRETS.sub(r"\1\2", visible(str(value)))


def duration(seconds: float) -> str:
    """1 h 2 min, 3 min 4 s, 5.6 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def pictures_of(drawings: Iterable[Any]) -> dict[str, bytes]:
    """{name: PNG} of drawings."""
    return {drawing.name: drawing.png for drawing in drawings}
