"""A trained model as an ONNX file, and the check that the file computes what the model does."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.volume_transforms import normalize_clips
from scripts.tools.trained_model import TrainedModel
from utils import UserError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
INPUT = "clips"
TOLERANCE = 1e-3
# The most that one ONNX file can hold is 2 GiB; weights of larger models lie in a second file.
LARGEST_FILE = 1_900_000_000


def require_packages() -> None:
    """Says which packages are missing, before any work.

    Raises:
        UserError: naming them and what installs them.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX files need {', '.join(missing)}: install requirements-tools.txt, or give --no_onnx"
        )


def output_name(hand: str) -> str:
    """The file's name of a hand's output."""
    return f"{hand}_probabilities"


class Probabilities(nn.Module):
    """Probabilities of all hands for the same clips, after one pass of the backbone."""

    def __init__(self, trained: TrainedModel):
        super().__init__()
        self.model, self.hands = trained.model, trained.hands

    def forward(self, clips: Tensor) -> tuple[Tensor, ...]:
        """Turns normalised clips (N, 3, T, S, S) into probabilities (N, classes), a tensor a hand."""
        features = self.model.forward_features(clips)
        return tuple(self.model.forward_head(features, hand).softmax(dim=1) for hand in self.hands)


def write_onnx(trained: TrainedModel, path: Path) -> None:
    """Writes `path`, and `path`.data beside it where the weights do not fit into one file.

    Raises:
        UserError: torch cannot express the model.
    """
    example = torch.zeros(clip_shape(trained, 2))
    size = sum(p.numel() * p.element_size() for p in trained.model.parameters())
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                Probabilities(trained).eval(),
                (example,),
                input_names=[INPUT],
                output_names=[output_name(hand) for hand in trained.hands],
                dynamic_shapes={"clips": {0: torch.export.Dim("batch")}},
                opset_version=OPSET,
                verbose=False,
            )
            program.save(path, external_data=size > LARGEST_FILE)
    except torch.onnx.OnnxExporterError as error:
        raise UserError(f"torch cannot express this model in ONNX: {' '.join(str(error).split())}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks, which are about torch's own code."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def clip_shape(trained: TrainedModel, clips: int) -> tuple[int, ...]:
    """(N, 3, T, S, S) of a batch."""
    side = trained.args.input_size
    return (clips, 3, trained.args.num_frames, side, side)


def clips_to_check(trained: TrainedModel) -> list[Tensor]:
    """Batches of one and of three clips: noise; two of soft moving colours, as in videos, and a black one."""
    generator = torch.Generator().manual_seed(0)
    _, _, frames, side, _ = clip_shape(trained, 1)
    noise = torch.randn(clip_shape(trained, 1), generator=generator)
    coarse = torch.rand(2, 3, max(2, frames // 4), 6, 6, generator=generator)
    colours = F.interpolate(coarse, size=(frames, side, side), mode="trilinear", align_corners=True)
    pictures = torch.cat([colours, torch.zeros_like(colours[:1])])
    return [noise, normalize_clips((255 * pictures).byte().permute(0, 2, 3, 4, 1))]


@dataclass(frozen=True)
class Agreement:
    """How well two computations of the same probabilities agree.

    Attributes:
        largest_difference: of a probability, over all clips, hands and classes.
        spread: how far a probability differs between the clips: were it not far above the
            difference, agreement would say nothing.
        clips: number of clips.
    """

    largest_difference: float
    spread: float
    clips: int

    @property
    def holds(self) -> bool:
        """Whether the difference is small enough."""
        return self.largest_difference <= TOLERANCE

    def as_dict(self) -> dict[str, Any]:
        """For the card."""
        return {**vars(self), "tolerance": TOLERANCE}


def check_onnx(trained: TrainedModel, path: Path) -> Agreement:
    """Compares the file in onnxruntime with the model in torch.

    Raises:
        UserError: onnxruntime cannot run the file.
    """
    import onnxruntime

    batches = clips_to_check(trained)
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [output_name(hand) for hand in trained.hands]
        found = [session.run(names, {INPUT: clips.numpy()}) for clips in batches]
    except Exception as error:  # onnxruntime's errors have no common type
        raise UserError(f"onnxruntime cannot run the file: {' '.join(str(error).split())[:300]}") from error
    with torch.inference_mode():
        expected = [Probabilities(trained)(clips) for clips in batches]
    differences, spreads = [], []
    for hand in range(len(names)):
        torch_s = torch.cat([outputs[hand] for outputs in expected])
        onnx_s = torch.cat([torch.from_numpy(outputs[hand]) for outputs in found])
        difference = (torch_s - onnx_s).abs().max()
        differences.append(float(difference.nan_to_num(nan=torch.inf)))
        spreads.append(float((torch_s.amax(0) - torch_s.amin(0)).max()))
    return Agreement(max(differences), max(spreads), sum(map(len, batches)))
