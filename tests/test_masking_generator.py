"""Token masks: equal counts in every draw, and the structure that each kind promises."""

import numpy as np
import pytest
from scipy import stats

from dataset.masking_generator import MASKS

GRID = (8, 6, 4)


def draw(kind, ratio, n_draws, grid=GRID, seed=0):
    generator, rng = MASKS[kind](grid, ratio), np.random.default_rng(seed)
    masks = np.stack([generator(rng) for _ in range(n_draws)])
    assert masks.dtype == np.bool_ and masks.shape == (n_draws, np.prod(grid))
    return masks


@pytest.mark.parametrize(
    ("kind", "ratio", "dropped"),
    [
        ("tube", 0.5, 96),
        ("tube", 0.9, 8 * 21),  # 21.6 of 24 places
        ("tube", 0.0, 0),
        ("random", 0.5, 96),
        ("random", 0.9, 172),  # 172.8 of 192 tokens
        ("run_cell", 0.25, 48),
        ("run_cell", 0.5, 96),
        ("run_cell", 0.75, 144),
    ],
)
def test_every_draw_drops_the_same_number(kind, ratio, dropped):
    assert set(draw(kind, ratio, 50).sum(axis=1).tolist()) == {dropped}


@pytest.mark.parametrize("kind", ["tube", "random"])
def test_places_are_dropped_equally_often(kind):
    masks = draw(kind, 0.5, 2000)
    per_place = masks[:, :24].sum(axis=0)  # the first frame
    # Draws without replacement vary less than a binomial, so this is a safe test of uniformity.
    assert stats.chisquare(per_place).pvalue > 0.01
    assert len({mask.tobytes() for mask in masks}) > 1990


def test_a_tube_drops_the_same_places_in_every_frame():
    frames = draw("tube", 0.5, 20).reshape(20, 8, 24)
    assert np.all(frames == frames[:, :1])


def test_random_masks_differ_from_frame_to_frame():
    frames = draw("random", 0.5, 20).reshape(20, 8, 24)
    assert not np.any(np.all(frames == frames[:, :1], axis=(1, 2)))


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_running_cells_move_one_place_a_frame(kept):
    masks = draw("run_cell", 1 - kept / 4, 60).reshape(60, 8, 3, 2, 2, 2)
    cells = masks.transpose(0, 1, 2, 4, 3, 5).reshape(60, 8, 6, 4)  # places of a cell last
    assert np.all(cells == cells[:, :, :1])  # all cells of a frame alike
    assert np.all(cells.sum(axis=-1) == 4 - kept)
    assert np.all(cells[:, 1:] == np.roll(cells[:, :-1], -1, axis=-1))
    assert len({mask.tobytes() for mask in masks}) == 4


def test_the_published_running_cell_comes_out():
    cell = np.array([1, 1, 0, 0], bool)  # half of the tokens; the queue turns by one a frame
    expected = {
        np.stack([np.tile(np.roll(cell, -(start + t)).reshape(2, 2), (3, 2)) for t in range(8)])
        .reshape(-1)
        .tobytes()
        for start in range(4)
    }
    assert {mask.tobytes() for mask in draw("run_cell", 0.5, 60)} == expected


@pytest.mark.parametrize("kind", list(MASKS))
def test_masks_follow_from_the_generator(kind):
    assert np.array_equal(draw(kind, 0.5, 5, seed=3), draw(kind, 0.5, 5, seed=3))
    assert not np.array_equal(draw(kind, 0.5, 5, seed=3), draw(kind, 0.5, 5, seed=4))


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5])
@pytest.mark.parametrize("kind", list(MASKS))
def test_ratios_out_of_range_are_errors(kind, ratio):
    with pytest.raises(ValueError, match="mask_ratio="):
        MASKS[kind](GRID, ratio)


def test_running_cells_need_even_grids_and_whole_quarters():
    with pytest.raises(ValueError, match="even grid"):
        MASKS["run_cell"]((8, 7, 4), 0.5)
    with pytest.raises(ValueError, match=r"mask_ratio=0\.4"):
        MASKS["run_cell"](GRID, 0.4)
