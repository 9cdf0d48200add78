"""RandAugment of clips against timm on single pictures."""

import random
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment
from timm.data.auto_augment import rand_augment_transform

from dataset.rand_augment import ClipRandAugment, seeded_globals

CONFIG = "rand-m7-n4-mstd0.5-inc1"
CLIP = Path(__file__).parent / "clips" / "h264_340x256.mp4"
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@pytest.fixture(scope="module")
def frames():
    """Four frames of a real clip, far apart, at half of their size."""
    video = cv2.VideoCapture(str(CLIP))
    pictures = [video.read()[1] for _ in range(180)][::45]
    small = [cv2.resize(picture[:, :, ::-1], (170, 128)) for picture in pictures]
    return np.ascontiguousarray(np.stack(small))


def timm_on_one(frame, seed, interpolation, config=CONFIG):
    settings = {"translate_const": 100, "img_mean": (128, 128, 128)}
    if interpolation != "random":
        settings["interpolation"] = RESAMPLING[interpolation]
    augment = rand_augment_transform(config, settings)
    random.seed(seed)
    np.random.seed(seed)
    return np.asarray(augment(Image.fromarray(frame)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random"])
def test_each_frame_is_what_timm_makes_of_it(frames, interpolation):
    augment = ClipRandAugment(CONFIG, 224, interpolation)
    for seed in range(12):
        expected = [timm_on_one(frame, seed, interpolation) for frame in frames]
        assert np.array_equal(augment(frames, seed), np.stack(expected)), seed


def test_every_operation_alone_is_timms_on_each_frame(frames, monkeypatch):
    one = "rand-m7-n1-p1.0-mstd0.5-inc1"
    augment, used = ClipRandAugment(one, 224, "bicubic"), []
    operation = auto_augment.AugmentOp.__call__
    monkeypatch.setattr(
        auto_augment.AugmentOp, "__call__", lambda op, image: (used.append(op.name), operation(op, image))[1]
    )
    seen = set()
    for seed in range(120):
        used.clear()
        ours = augment(frames[:2], seed)
        assert len(used) == 2 and used[0] == used[1], seed  # one operation, the same for both frames
        if used[0] not in seen:
            seen.add(used[0])
            expected = [timm_on_one(frame, seed, "bicubic", one) for frame in frames[:2]]
            assert np.array_equal(ours, np.stack(expected)), used[0]
    assert seen == set(auto_augment._RAND_INCREASING_TRANSFORMS)


def test_interpolations_differ(frames):
    results = [
        ClipRandAugment("rand-m9-n4-p1.0", 224, interpolation)(frames[:1], 5).tobytes()
        for interpolation in ("bilinear", "bicubic")
    ]
    assert results[0] != results[1]


def test_all_frames_of_a_view_get_the_same_operations(frames):
    still = np.repeat(frames[:1], 6, axis=0)
    augment = ClipRandAugment(CONFIG, 224, "random")
    views = [augment(still, seed) for seed in range(20)]
    assert all(np.all(view == view[:1]) for view in views)
    assert len({view.tobytes() for view in views}) > 15


def test_large_seeds_differ_and_repeat(frames):
    augment = ClipRandAugment("rand-m9-n4-p1.0", 224)
    seeds = [2**63 - 1, 2**63 - 2, 2**40, 1]
    views = [augment(frames[:1], seed).tobytes() for seed in seeds]
    assert len(set(views)) == 4
    assert views == [augment(frames[:1], seed).tobytes() for seed in seeds]


def test_global_generators_are_neither_changed_nor_read(frames):
    augment = ClipRandAugment(CONFIG, 224)
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    first = augment(frames, 3)
    assert (random.random(), np.random.random()) == expected
    assert np.array_equal(augment(frames, 3), first)


def test_global_generators_are_restored_after_an_error():
    random.seed(2)
    np.random.seed(2)
    expected = random.random(), np.random.random()
    random.seed(2)
    np.random.seed(2)
    with pytest.raises(RuntimeError), seeded_globals(7):
        random.random()
        np.random.random()
        raise RuntimeError
    assert (random.random(), np.random.random()) == expected


@pytest.mark.parametrize("config", ["", "none", "None"])
def test_off_returns_the_frames_untouched(frames, config):
    assert ClipRandAugment(config, 224)(frames, 0) is frames


def test_the_input_is_not_changed(frames):
    before = frames.copy()
    ClipRandAugment("rand-m9-n4-p1.0", 224)(frames, 0)
    assert np.array_equal(frames, before)


def test_uncovered_corners_are_grey():
    white = np.full((1, 64, 64, 3), 255, np.uint8)
    augment = ClipRandAugment("rand-m9-n6-p1.0-inc1", 224, "bilinear")
    shear_or_shift = ("ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
    augment._augment.ops = [op for op in augment._augment.ops if op.name in shear_or_shift]
    colours = set(augment(white, 1).reshape(-1).tolist())
    assert 128 in colours and min(colours) == 128


def test_shifts_by_pixels_follow_the_crop_size():
    for crop_size, pixels in ((224, 100), (112, 50)):
        ops = ClipRandAugment(CONFIG, crop_size)._augment.ops
        assert {op.hparams["translate_const"] for op in ops} == {pixels}


def test_inc0_means_off():
    # The order of magnitudes is all that `inc` changes, visible in the chosen operations.
    names = [
        {op.name for op in ClipRandAugment(f"rand-m7{inc}", 224)._augment.ops}
        for inc in ("", "-inc0", "-inc1")
    ]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    "config", ["rand-", "m7-n4", "augmix-m3", "rand-m7.5", "rand-m7-w0", "rand-foo", "rand-m", "rand m7"]
)
def test_a_bad_config_is_an_error_that_names_the_flag(config):
    with pytest.raises(ValueError, match="--aa"):
        ClipRandAugment(config, 224)


@pytest.mark.parametrize("config", ["rand-m9-mstd101-inc1", "rand-m5-n3-p0.8-mmax20", "rand-n1-t3a"])
def test_all_of_timms_grammar_is_understood(frames, config):
    augment = ClipRandAugment(config, 224, "bicubic")
    expected = timm_on_one(frames[0], 11, "bicubic", config)
    assert np.array_equal(augment(frames[:1], 11)[0], expected)


def test_a_bad_interpolation_is_an_error_that_names_the_flag():
    with pytest.raises(ValueError, match="--train_interpolation 'lanczos'"):
        ClipRandAugment(CONFIG, 224, "lanczos")
