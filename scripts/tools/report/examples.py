"""Frames of clips, small enough to lie in the page."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import logging

import numpy as np
from PIL import Image

from dataset import storage
from dataset.annotations import clip_folders, find_clip_folder, locate, read_clip_list
from dataset.list_files import find_list
from dataset.loader import ClipError
from run_alternating_hand_finetuning import list_names, make_reader
from scripts.tools.report.run_data import Run
from utils import UserError

log = logging.getLogger(__name__)

_FRAMES = 3  # of a clip, spread over it
_HEIGHT, _GAP = 84, 3  # pixels
_QUALITY = 72  # JPEG
_TYPE = "data:image/jpeg;base64,"


@dataclasses.dataclass(frozen=True)
class Picture:
    """Frames of a clip beside each other as a data URI, or why there are none although they are wanted."""

    uri: str = ""
    width: int = 0  # pixels
    reason: str = ""


class ClipPictures:
    """Draws clips of a run's test where they still lie on this machine.

    Args:
        run: says where the clips were.
        enabled: False: there are no pictures, and no clip is opened.
    """

    def __init__(self, run: Run, enabled: bool = True):
        self._run, self._enabled = run, enabled
        self._reader = make_reader(run.args)

    def draw(self, hand: str, name: str) -> Picture:
        """A clip as its list calls it; whatever keeps it from being drawn is the picture's reason."""
        if not self._enabled:
            return Picture()
        try:
            places, folder = self._list_of(hand)
            place = locate(name, folder)
            if storage.is_url(place):
                return Picture(reason="behind a URL")
            frames, order, _ = self._reader.read(place, places.get(name, 0), _spread)
        except (UserError, ClipError) as error:
            return Picture(reason=str(error))
        return _strip(frames[order])

    @functools.cache  # noqa: B019 - lives as long as the report is made
    def _list_of(self, hand: str) -> tuple[dict[str, int], str]:
        """{clip: pictures of its folder, 0 for a video}, and the folder that the clips are in."""
        path = getattr(self._run.args, f"{hand}_data_path")
        root = getattr(self._run.args, f"{hand}_data_root") or path
        if not path:
            raise UserError("the run does not say where its clips are")
        if storage.is_url(str(root)):
            raise UserError("behind a URL")
        listed = find_list(path, "test", list_names(self._run.args), hand)
        clips = read_clip_list(listed, folders=clip_folders(root, "val"))
        return dict(zip(clips, clips.frames.tolist(), strict=True)), find_clip_folder(
            clips, root, "val", listed
        )


def _spread(n_frames: int) -> np.ndarray:
    """The middles of equal parts of a clip."""
    return ((np.arange(_FRAMES) + 0.5) * n_frames / _FRAMES).astype(int)


def _strip(frames: np.ndarray) -> Picture:
    width = round(_HEIGHT * frames.shape[2] / frames.shape[1])
    pictures = [Image.fromarray(frame).resize((width, _HEIGHT), Image.Resampling.LANCZOS) for frame in frames]
    strip = Image.new("RGB", ((width + _GAP) * len(pictures) - _GAP, _HEIGHT), "#8a8f96")
    for place, picture in enumerate(pictures):
        strip.paste(picture, (place * (width + _GAP), 0))
    data = io.BytesIO()
    strip.save(data, "JPEG", quality=_QUALITY, optimize=True)
    return Picture(_TYPE + base64.b64encode(data.getvalue()).decode(), strip.width)
