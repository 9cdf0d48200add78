"""Draws clips as rows of frames under captions; knows nothing of where they come from.

    title
    hand's heading
        caption of a clip
        margin notes | frame | frame | ...     one row a view
        margin notes | frame | frame | ...

Lengths are pixels. F frames shown of a view, S side of a frame.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 2  # between frames
MARGIN = 14  # around the sheet
LEAST_WIDTH = 480  # so that text has room where frames are tiny
# The paper is grey so that white and black frames both stand out.
PAPER, INK, FADED, RULE, RED = "#e9e9e9", "#1a1a1a", "#5c5c5c", "#b4b4b4", "#a01818"
ELLIPSIS = "..."


@dataclasses.dataclass(frozen=True)
class Row:
    """One view: lines beside it, and its frames, uint8 (F, S, S, 3)."""

    notes: tuple[str, ...]
    frames: np.ndarray


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip: what it shows, what it is called, its views, and what is wrong with it, if anything."""

    label: str
    name: str
    rows: tuple[Row, ...]
    warning: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """One hand's clips under a heading."""

    heading: str
    clips: tuple[Clip, ...]


def printable(text: str) -> str:
    """The text with a question mark for what has no picture, such as line ends and undecodable bytes."""
    return "".join(character if character.isprintable() else "?" for character in text)


def elide(text: str, width: float, measure: Callable[[str], float]) -> str:
    """The text, or as much of its beginning and end as fits a width as `measure` counts it."""
    if measure(text) <= width:
        return text

    def shortened(kept: int) -> str:
        return text[: (kept + 1) // 2] + ELLIPSIS + text[len(text) - kept // 2 :]

    fitting = bisect.bisect_right(range(len(text)), width, key=lambda kept: measure(shortened(kept)))
    return shortened(max(fitting - 1, 0))


def wrap(text: str, width: float, measure: Callable[[str], float]) -> list[str]:
    """The text in lines that fit a width, broken at blanks."""
    lines: list[str] = []
    for word in text.split():
        if lines and measure(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [elide(line, width, measure) for line in lines]


class ContactSheet:
    """The layout for frames of one size.

    Args:
        side: of a frame.
        count: most frames a row.
    """

    def __init__(self, side: int, count: int):
        text = min(max(side // 14, 12), 20)
        self._font, self._large = ImageFont.load_default(text), ImageFont.load_default(text * 3 // 2)
        self._line = text * 3 // 2
        self._side = side
        self._gutter = 6 * text  # room for the notes beside a row
        self._room = max(self._gutter + count * (side + GAP) - GAP, LEAST_WIDTH)

    def draw(self, title: str, remarks: Sequence[str], sections: Sequence[Section]) -> Image.Image:
        """The sheet as an RGB picture; each remark starts a line under the title."""
        strips = list(self._strips(title, remarks, sections))
        height = sum(strip.height for strip in strips)
        sheet = Image.new("RGB", (self._room + 2 * MARGIN, height + 2 * MARGIN), PAPER)
        top = MARGIN
        for strip in strips:
            sheet.paste(strip, (MARGIN, top))
            top += strip.height
        return sheet

    def _strips(
        self, title: str, remarks: Sequence[str], sections: Sequence[Section]
    ) -> Iterator[Image.Image]:
        """What the sheet is made of, from top to bottom, all of one width."""
        yield self._text(title, self._large, INK)
        for remark in remarks:
            yield self._text(remark, self._font, FADED)
        for section in sections:
            yield self._heading(section.heading)
            for clip in section.clips:
                yield self._caption(clip)
                if clip.warning:
                    yield self._text(clip.warning, self._font, RED)
                yield from map(self._row, clip.rows)
                yield self._blank(self._line // 2)

    def _blank(self, height: int) -> Image.Image:
        return Image.new("RGB", (self._room, height), PAPER)

    def _text(self, text: str, font: ImageFont.FreeTypeFont, ink: str) -> Image.Image:
        lines = wrap(printable(text), self._room, font.getlength)
        height = int(font.size * 1.4)
        strip = self._blank(height * len(lines))
        for number, line in enumerate(lines):
            ImageDraw.Draw(strip).text((0, number * height), line, ink, font)
        return strip

    def _heading(self, text: str) -> Image.Image:
        strip = self._blank(3 * self._line)
        canvas = ImageDraw.Draw(strip)
        canvas.line((0, self._line // 2, self._room, self._line // 2), RULE)
        canvas.text((0, self._line), printable(text), INK, self._large)
        return strip

    def _caption(self, clip: Clip) -> Image.Image:
        """What the clip shows, and in what is left of the line its name."""
        strip = self._blank(self._line + GAP)
        canvas, measure = ImageDraw.Draw(strip), self._font.getlength
        label = elide(printable(clip.label), 0.6 * self._room, measure)
        start = measure(label) + self._line
        canvas.text((0, 0), label, INK, self._font)
        canvas.text((start, 0), elide(printable(clip.name), self._room - start, measure), FADED, self._font)
        return strip

    def _row(self, row: Row) -> Image.Image:
        frames_height = self._side if len(row.frames) else 0
        strip = self._blank(max(frames_height, len(row.notes) * self._line) + GAP)
        for number, note in enumerate(row.notes):
            place = (0, number * self._line)
            ImageDraw.Draw(strip).text(place, printable(note), FADED, self._font)
        for place, frame in enumerate(row.frames):
            picture = Image.fromarray(frame)
            if picture.width != self._side:
                picture = picture.resize((self._side, self._side), Image.Resampling.BICUBIC, reducing_gap=2)
            strip.paste(picture, (self._gutter + place * (self._side + GAP), 0))
        return strip
