"""Random erasing: the boxes against timm's distribution, and the filling of each mode."""

import random

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data import random_erasing as timm_erasing

from dataset.random_erasing import MODES, draw_erase_boxes, erase_

SIDE = 224


def draws(n, probability=1.0, max_count=1, seed=0, height=SIDE, width=SIDE):
    rng = np.random.default_rng(seed)
    boxes = [draw_erase_boxes(rng, height, width, probability, max_count) for _ in range(n)]
    return np.stack(boxes)


def timm_boxes(n, height, width):
    """Boxes that timm erases, read off a picture of ones: (n, 4)."""
    erase = timm_erasing.RandomErasing(probability=1, mode="const", device="cpu")
    random.seed(5)
    boxes = []
    for _ in range(n):
        picture = erase(torch.ones(1, height, width))[0].numpy()
        rows, columns = np.where(picture.min(axis=1) == 0)[0], np.where(picture.min(axis=0) == 0)[0]
        boxes.append((rows[0], columns[0], len(rows), len(columns)))
    return np.array(boxes)


@pytest.mark.parametrize(("height", "width"), [(112, 112), (80, 160)])
def test_boxes_have_timms_distribution(height, width):
    ours = draws(10_000, height=height, width=width)[:, 0].astype(float)
    theirs = timm_boxes(10_000, height, width).astype(float)
    features = {
        "area": lambda b: b[:, 2] * b[:, 3],
        "aspect": lambda b: b[:, 2] / b[:, 3],
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "bottom": lambda b: b[:, 0] + b[:, 2],
    }
    for name, feature in features.items():
        assert stats.ks_2samp(feature(ours), feature(theirs)).pvalue > 0.01, name


@pytest.mark.parametrize("max_count", [1, 3])
def test_number_and_size_of_boxes_are_timms(monkeypatch, max_count):
    sizes = []

    def record(_per_pixel, _colour, patch_size, **_):
        sizes[-1].append(patch_size[1:])
        return torch.zeros(patch_size)

    monkeypatch.setattr(timm_erasing, "_get_pixels", record)
    erase = timm_erasing.RandomErasing(0.6, mode="pixel", max_count=max_count, device="cpu")
    random.seed(6)
    for _ in range(2500):
        sizes.append([])
        erase(torch.ones(1, SIDE, SIDE))
    ours = draws(2500, probability=0.6, max_count=max_count, seed=6).astype(int)
    counts = [(ours[..., 2] > 0).sum(axis=1), np.array([len(boxes) for boxes in sizes])]
    table = [np.bincount(count, minlength=max_count + 1) for count in counts]
    assert stats.chi2_contingency(table).pvalue > 0.01
    for count in range(1, max_count + 1):
        mine = ours[counts[0] == count].reshape(-1, 4)
        mine = mine[mine[:, 2] > 0]
        theirs = np.array([box for boxes in sizes if len(boxes) == count for box in boxes])
        areas = mine[:, 2] * mine[:, 3], theirs[:, 0] * theirs[:, 1]
        assert stats.ks_2samp(*areas).pvalue > 0.01


def test_the_probability_is_kept():
    for probability in (0.0, 0.25, 1.0):
        hits = int((draws(2000, probability)[:, 0, 2] > 0).sum())
        assert stats.binomtest(hits, 2000, probability).pvalue > 0.01


def test_boxes_lie_inside_and_unused_rows_are_zero():
    boxes = draws(500, max_count=4)
    assert boxes.dtype == np.int16 and boxes.shape == (500, 4, 4)
    top, left, height, width = boxes.astype(int).transpose(2, 0, 1)
    assert min(top.min(), left.min()) >= 0
    assert (top + height).max() <= SIDE and (left + width).max() <= SIDE
    assert np.all(boxes[height == 0] == 0) and (height == 0).any()


def erased(mode, boxes, seed=0, frames=5):
    clips = torch.full((len(boxes), 3, frames, 40, 48), 9.0)
    generator = torch.Generator().manual_seed(seed)
    result = erase_(clips, torch.tensor(boxes, dtype=torch.int16), mode, generator)
    assert result is clips
    return clips


BOX = [4, 6, 20, 30]
NONE = [0, 0, 0, 0]


@pytest.mark.parametrize("mode", MODES)
def test_only_the_boxes_change_and_in_every_frame(mode):
    clips = erased(mode, [[BOX, NONE], [NONE, NONE]])
    changed = (clips != 9.0).all(dim=1)
    expected = torch.zeros(5, 40, 48, dtype=torch.bool)
    expected[:, 4:24, 6:36] = True
    assert torch.equal(changed[0], expected)
    assert not (clips[1] != 9.0).any() and not (clips[0, :, ~expected] != 9.0).any()


@pytest.mark.parametrize("mode", MODES)
def test_every_box_of_a_view_is_erased(mode):
    clips = erased(mode, [[BOX, [30, 40, 8, 7]]])
    assert (clips[0, :, :, 4:24, 6:36] != 9.0).all()
    assert (clips[0, :, :, 30:38, 40:47] != 9.0).all()


def test_pixel_is_fresh_normal_noise_in_every_frame():
    patch = erased("pixel", [[BOX]])[0, :, :, 4:24, 6:36]
    assert stats.kstest(patch.flatten().numpy(), "norm").pvalue > 0.01
    assert patch.unique().numel() > 0.99 * patch.numel()
    correlation = np.corrcoef(patch[:, 0].flatten(), patch[:, 1].flatten())[0, 1]
    assert abs(correlation) < 0.1


def test_rand_is_one_normal_colour_a_box():
    boxes = [[BOX, [30, 40, 8, 7]]] * 150
    clips = erased("rand", boxes, frames=2)
    patch = clips[:, :, :, 4:24, 6:36]
    colours = patch[:, :, 0, 0, 0]
    assert torch.equal(patch, colours[:, :, None, None, None].expand_as(patch))
    others = clips[:, :, 0, 30, 40]
    values = torch.cat([colours, others]).flatten()
    assert values.unique().numel() == values.numel()
    assert stats.kstest(values.numpy(), "norm").pvalue > 0.01


def test_const_is_zero():
    assert not erased("const", [[BOX]])[0, :, :, 4:24, 6:36].any()


@pytest.mark.parametrize("mode", ["pixel", "rand"])
def test_noise_follows_from_the_generator(mode):
    torch.manual_seed(0)
    untouched = torch.get_rng_state()
    assert torch.equal(erased(mode, [[BOX]], seed=1), erased(mode, [[BOX]], seed=1))
    assert not torch.equal(erased(mode, [[BOX]], seed=1), erased(mode, [[BOX]], seed=2))
    assert torch.equal(torch.get_rng_state(), untouched)


def test_views_without_boxes_pass():
    clips = torch.ones(2, 3, 4, 8, 8)
    assert torch.equal(erase_(clips, torch.zeros(2, 0, 4, dtype=torch.int16)), torch.ones_like(clips))


def test_unknown_modes_and_boxes_on_the_device_are_errors():
    clips = torch.zeros(1, 3, 2, 8, 8)
    with pytest.raises(ValueError, match="--remode 'noise'"):
        erase_(clips, torch.zeros(1, 1, 4, dtype=torch.int16), "noise")
    with pytest.raises(ValueError, match="on the CPU"):
        erase_(clips, torch.zeros(1, 1, 4, dtype=torch.int16, device="meta"))
