"""Frame indices against recorded ones of the published loader, and the order of clips."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dataset import sampling

GOLDEN = json.loads((Path(__file__).parent / "golden" / "index_sampling.json").read_text())
CASES = [(int(rate), n) for rate in GOLDEN["rates"] for n in GOLDEN["num_frames"]]
T = GOLDEN["clip_len"]


def golden(mode, rate, n):
    return GOLDEN["rates"][str(rate)][mode][str(n)]


class FixedRng:
    """Gives one integer, and remembers from how many it was to be drawn."""

    def __init__(self, value):
        self.value, self.choices = value, None

    def integers(self, choices):
        self.choices = choices
        return self.value


@pytest.mark.parametrize(("rate", "n"), CASES)
def test_validation_is_the_published_window(rate, n):
    indices = sampling.validation_indices(n, T, rate)
    assert indices.dtype == np.int64
    assert indices.tolist() == golden("validation", rate, n)


@pytest.mark.parametrize(("rate", "n"), CASES)
def test_the_timeline_of_a_test_is_the_published_one(rate, n):
    assert sampling.test_timeline(n, T, rate).tolist() == golden("test", rate, n)


@pytest.mark.parametrize(("rate", "n"), CASES)
def test_training_gives_every_published_window_and_no_other(rate, n):
    expected = golden("train", rate, n)
    if expected["kind"] == "deterministic":
        indices = sampling.train_indices(n, T, rate, np.random.default_rng(0))
        assert indices.tolist() == expected["idx"]
        return
    low, high = expected["randint_args"]
    for end, window in expected["all_possible_by_end_idx"].items():
        rng = FixedRng(int(end) - low)
        assert sampling.train_indices(n, T, rate, rng).tolist() == window
        assert rng.choices == high - low


def test_every_training_window_is_as_likely():
    expected = golden("train", 4, 129)
    low, high = expected["randint_args"]
    end_of = {tuple(idx): int(end) for end, idx in expected["all_possible_by_end_idx"].items()}
    rng = np.random.default_rng(1)
    draws = [tuple(sampling.train_indices(129, T, 4, rng).tolist()) for _ in range(6500)]
    counts = np.bincount([end_of[draw] - low for draw in draws], minlength=high - low)
    assert stats.chisquare(counts).pvalue > 0.01


def published_starts(timeline, num_segment):
    """Window starts in plain arithmetic, independent of the module."""
    step = max(0.0, 1.0 * (timeline - T) / (num_segment - 1))
    return [int(k * step) for k in range(num_segment)]


@pytest.mark.parametrize("num_segment", [2, 3, 5, 7])
@pytest.mark.parametrize(("rate", "n"), CASES)
def test_temporal_views_are_spread_over_the_published_timeline(rate, n, num_segment):
    timeline = golden("test", rate, n)
    views = sampling.test_views(n, T, rate, num_segment)
    starts = published_starts(len(timeline), num_segment)
    assert views.shape == (num_segment, T)
    assert views.tolist() == [timeline[start : start + T] for start in starts]


def test_a_single_temporal_view_is_the_centred_one():
    (view,) = sampling.test_views(300, T, 4, 1)
    assert view[0] == 4 * ((75 - T) // 2)
    assert np.all(np.diff(view) == 4)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 15, 16, 17, 33, 60, 63])
def test_stretch_spreads_a_short_clip_evenly(n):
    views = [
        sampling.train_indices(n, T, 4, np.random.default_rng(0), "stretch"),
        sampling.validation_indices(n, T, 4, "stretch"),
    ]
    if n <= 60:  # 61 frames fill a timeline of 16 at every fourth frame
        views.extend(sampling.test_views(n, T, 4, 2, "stretch"))
    for view in views:
        assert view[0] == 0 and view[-1] == n - 1
        if n <= T:
            assert np.ptp(np.bincount(view, minlength=n)) <= 1
        else:
            assert np.ptp(np.diff(view)) <= 1 and len(set(view.tolist())) == T


@pytest.mark.parametrize("n", [64, 65, 300])
def test_stretch_leaves_long_clips_alone(n):
    for rule in (sampling.validation_indices, sampling.test_timeline):
        assert np.array_equal(rule(n, T, 4, "stretch"), rule(n, T, 4, "published"))
    pair = [
        sampling.train_indices(n, T, 4, np.random.default_rng(3), choice) for choice in sampling.SHORT_CLIPS
    ]
    assert np.array_equal(*pair)


@pytest.mark.parametrize("n", [1, 7, 16, 17, 100, 301])
@pytest.mark.parametrize("num_segment", [1, 3, 5])
def test_sparse_views_take_a_share_of_every_segment(n, num_segment):
    tick = n / T
    expected = [[int(tick * x + k * tick / num_segment) for x in range(T)] for k in range(num_segment)]
    assert sampling.test_views(n, T, 4, num_segment, sparse=True).tolist() == expected


@pytest.mark.parametrize("n", [1, 7, 16, 17, 100, 301])
def test_sparse_training_draws_within_every_segment(n):
    rng = np.random.default_rng(2)
    edges = n / T * np.arange(T + 1)
    draws = np.stack([sampling.train_indices(n, T, 4, rng, sparse=True) for _ in range(300)])
    assert np.all(draws >= np.floor(edges[:-1])) and np.all(draws < np.ceil(edges[1:]))
    assert set(draws.ravel().tolist()) == set(range(n))
    middle = [int(n / T * (x + 0.5)) for x in range(T)]
    assert sampling.validation_indices(n, T, 4, sparse=True).tolist() == middle


def test_sparse_training_frames_of_a_segment_are_as_likely():
    rng = np.random.default_rng(4)
    draws = np.stack([sampling.train_indices(160, T, 4, rng, sparse=True) for _ in range(500)])
    assert stats.chisquare(np.bincount((draws % 10).ravel(), minlength=10)).pvalue > 0.01


def test_sparse_training_cannot_leave_the_clip():
    class Highest:
        def random(self, size):
            return np.full(size, np.nextafter(1.0, 0.0))

    for n in range(1, 400):
        assert sampling.train_indices(n, T, 4, Highest(), sparse=True).max() == n - 1


@pytest.mark.parametrize("sparse", [False, True])
def test_an_empty_clip_is_an_error(sparse):
    with pytest.raises(ValueError, match="n_frames=0"):
        sampling.train_indices(0, T, 4, np.random.default_rng(0), sparse=sparse)
    with pytest.raises(ValueError, match="n_frames=0"):
        sampling.validation_indices(0, T, 4, sparse=sparse)
    with pytest.raises(ValueError, match="n_frames=0"):
        sampling.test_views(0, T, 4, 5, sparse=sparse)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((9, 0, 4), "num_frames=0"), ((9, T, 0), "sampling_rate=0"), ((9, T, 4, "loop"), "short_clips='loop'")],
)
def test_settings_out_of_range_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        sampling.validation_indices(*arguments)
    with pytest.raises(ValueError, match="num_segment=0"):
        sampling.test_views(9, T, 4, 0)


def test_each_pass_holds_each_clip_once_in_an_order_of_its_own():
    places = [sampling.ShuffledPasses(50, (0, "lh")).at(p) for p in range(200)]
    assert [place.pass_ for place in places] == [p // 50 for p in range(200)]
    orders = [tuple(place.clip for place in places[i : i + 50]) for i in range(0, 200, 50)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(orders)) == 4 and tuple(range(50)) not in orders


def test_the_order_follows_from_the_keys_alone():
    one = sampling.ShuffledPasses(30, (0, "lh"))
    straight = [one.at(p) for p in range(90)]
    again = sampling.ShuffledPasses(30, (0, "lh"))
    assert [again.at(p) for p in reversed(range(90))] == straight[::-1]
    for keys in ((1, "lh"), (0, "rh")):
        other = sampling.ShuffledPasses(30, keys)
        assert [other.at(p).clip for p in range(30)] != [place.clip for place in straight[:30]]


def test_a_pass_is_shuffled_once_not_for_each_clip(monkeypatch):
    drawn = []

    def counting_seed(*keys):
        drawn.append(keys)
        return keys[-1]

    monkeypatch.setattr(sampling, "derive_seed", counting_seed)
    passes = sampling.ShuffledPasses(10, (7, "rh"))
    for position in (*range(30), 15, 25):  # a look back at the last pass costs nothing
        passes.at(position)
    assert drawn == [(7, "rh", "shuffle", pass_) for pass_ in range(3)]


def test_passes_refuse_an_empty_list_and_negative_places():
    with pytest.raises(ValueError, match="n=0"):
        sampling.ShuffledPasses(0, (0,))
    with pytest.raises(ValueError, match="position=-1"):
        sampling.ShuffledPasses(3, (0,)).at(-1)
