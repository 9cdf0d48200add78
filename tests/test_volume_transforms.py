"""Normalisation of 8-bit batches against torchvision."""

import pytest
import torch
from torchvision.transforms.v2 import functional as tvf

from dataset.random_erasing import erase_
from dataset.volume_transforms import normalize_clips

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def clips_of_all_values():
    """(2, 4, 16, 8, 3): every 8-bit value in every channel, in an order without symmetry."""
    return torch.randint(0, 256, (2, 4, 16, 8, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def torchvision_normalized(frames):
    channels_second = frames.permute(0, 1, 4, 2, 3).double() / 255  # (B, T, 3, H, W)
    return tvf.normalize(channels_second, MEAN, STD).transpose(1, 2)


def test_normalization_is_torchvisions():
    frames = clips_of_all_values()
    before = frames.clone()
    clips = normalize_clips(frames)
    assert clips.dtype == torch.float32 and clips.shape == (2, 3, 4, 16, 8)
    assert clips.is_contiguous()
    torch.testing.assert_close(clips.double(), torchvision_normalized(frames), rtol=0, atol=1e-6)
    assert torch.equal(frames, before)


def test_non_contiguous_batches_give_contiguous_clips():
    frames = clips_of_all_values()
    assert torch.equal(normalize_clips(frames.flip(3)), normalize_clips(frames).flip(4))
    strided = normalize_clips(frames[:, ::2])
    assert strided.is_contiguous() and torch.equal(strided, normalize_clips(frames)[:, :, ::2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_rounded_once_at_the_end(dtype):
    frames = clips_of_all_values()
    clips = normalize_clips(frames, dtype)
    assert clips.dtype == dtype
    assert torch.equal(clips, normalize_clips(frames).to(dtype))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_host_never_waits_for_the_device():
    frames = clips_of_all_values().cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    boxes = torch.tensor([[[2, 1, 5, 4]], [[0, 0, 0, 0]]], dtype=torch.int16)
    normalize_clips(frames)  # the constants are moved once
    torch.cuda.set_sync_debug_mode("error")
    try:
        clips = [
            erase_(normalize_clips(frames), boxes, mode, generator) for mode in ("pixel", "rand", "const")
        ]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for erased in clips:
        torch.testing.assert_close(
            erased[1].double().cpu(), torchvision_normalized(frames[1:].cpu())[0], rtol=0, atol=1e-6
        )
    assert clips[0][0, :, :, 2:7, 1:5].unique().numel() == 3 * 4 * 5 * 4
    assert not clips[2][0, :, :, 2:7, 1:5].any()
