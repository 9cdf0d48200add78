"""Clip transforms against OpenCV, torch and torchvision."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop, v2

from dataset import functional, transforms, video_transforms

CLIP = Path(__file__).parent / "clips" / "h264_340x256.mp4"
SIZE = 64


@pytest.fixture(scope="module")
def frames():
    """uint8 (4, 256, 340, 3): frames of a real clip, far apart."""
    video = cv2.VideoCapture(str(CLIP))
    pictures = [video.read()[1] for _ in range(180)][::45]
    return np.ascontiguousarray(np.stack(pictures)[..., ::-1])


def coordinate_clip(height=120, width=160, n=2):
    """Red tells the column and green the row, so that a view tells its box and its flip."""
    clip = np.zeros((n, height, width, 3), np.uint8)
    clip[..., 0] = np.arange(width) + 20
    clip[..., 1] = np.arange(height)[:, None] + 20
    return clip


def torch_resized(frames, height, width):
    pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(pictures, (height, width), mode="bilinear")
    return resized.permute(0, 2, 3, 1).numpy()


def train_transform(input_size=SIZE, aa="", interpolation="bicubic", hflip=False, reprob=0.0, **settings):
    return video_transforms.TrainTransform(
        input_size, aa, interpolation, hflip, reprob, recount=2, **settings
    )


# ------------------------------------------------------------------------------------ functional


@pytest.mark.parametrize(
    ("height", "width", "short_side", "expected"),
    [
        (256, 340, 224, (224, 297)),  # 297.5 is cut
        (340, 256, 224, (297, 224)),
        (100, 333, 64, (64, 213)),  # 213.12
        (90, 90, 120, (120, 120)),
        (48, 64, 96, (96, 128)),
    ],
)
def test_the_short_side_is_resized_as_opencv_does(frames, height, width, short_side, expected):
    clip = np.ascontiguousarray(np.resize(frames, (2, height, width, 3)))
    resized = functional.resize_short_side(clip, short_side)
    assert resized.shape == (2, *expected, 3)
    for before, after in zip(clip, resized, strict=True):
        assert np.array_equal(after, cv2.resize(before, expected[::-1]))


def test_resize_is_torchs_bilinear_without_antialiasing(frames):
    resized = functional.resize_short_side(frames, 100)
    difference = np.abs(resized - torch_resized(frames, 100, 132))
    assert difference.max() <= 1 and difference.mean() < 0.3


def test_a_short_side_that_fits_is_left_alone(frames):
    assert functional.resize_short_side(frames, 256) is frames


@pytest.mark.parametrize(
    ("height", "width", "size", "top_left"),
    [
        (256, 340, 224, (16, 58)),
        (227, 229, 224, (2, 2)),  # 1.5 and 2.5 both go to the even 2
        (225, 231, 224, (0, 4)),  # 0.5 and 3.5
        (224, 224, 224, (0, 0)),
    ],
)
def test_the_centre_is_rounded_to_even(height, width, size, top_left):
    clip = coordinate_clip(height, width) if width < 236 else np.zeros((1, height, width, 3), "u1")
    assert functional.crop_offsets(height, width, size, 1) == [top_left]
    cropped = functional.center_crop(clip, size)
    top, left = top_left
    assert np.array_equal(cropped, clip[:, top : top + size, left : left + size])


@pytest.mark.parametrize(
    ("height", "width", "size", "num_crop", "expected"),
    [
        (224, 297, 224, 3, [(0, 0), (0, 36), (0, 73)]),  # step 36.5
        (297, 224, 224, 3, [(0, 0), (36, 0), (73, 0)]),
        (256, 340, 224, 3, [(16, 0), (16, 58), (16, 116)]),
        (256, 340, 224, 2, [(16, 0), (16, 116)]),
        (256, 340, 224, 1, [(16, 58)]),
        (224, 297, 224, 4, [(0, 0), (0, 24), (0, 48), (0, 73)]),  # 48.67 is cut
        (224, 224, 224, 3, [(0, 0)] * 3),
        (256, 256, 224, 3, [(0, 16), (16, 16), (32, 16)]),
    ],
)
def test_spatial_crops_run_along_the_longer_side(height, width, size, num_crop, expected):
    assert functional.crop_offsets(height, width, size, num_crop) == expected


def test_crops_that_do_not_fit_are_errors(frames):
    with pytest.raises(ValueError, match="size=300"):
        functional.center_crop(frames, 300)
    with pytest.raises(ValueError, match="num_crop=0"):
        functional.crop_offsets(256, 340, 224, 0)
    with pytest.raises(ValueError, match="size=225"):
        functional.crop_offsets(224, 340, 225, 3)
    for box in [(200, 0, 57, 10), (0, 300, 10, 41), (-1, 0, 9, 9), (0, -1, 9, 9), (0, 0, 0, 9)]:
        with pytest.raises(ValueError, match="does not lie in frames"):
            functional.resized_crop(frames, box, SIZE)
    with pytest.raises(ValueError, match="does not lie in frames"):
        functional.crop(frames, (40, 0), 224)


@pytest.mark.parametrize(
    "box", [(0, 0, 256, 340), (10, 20, 128, 128), (100, 7, 30, 40), (3, 5, 64, 64), (0, 80, 251, 96)]
)
def test_the_resized_crop_is_torchvisions(frames, box):
    view = functional.resized_crop(frames, box, SIZE)
    assert view.shape == (4, SIZE, SIZE, 3) and view.dtype == np.uint8
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    expected = v2.functional.resized_crop(pictures, *box, [SIZE, SIZE], antialias=False)
    difference = np.abs(view - expected.permute(0, 2, 3, 1).numpy())
    assert difference.max() <= 1 and difference.mean() < 0.3


def test_flip_mirrors_columns_and_nothing_else(frames):
    flipped = functional.hflip(frames)
    assert flipped.flags.c_contiguous
    expected = v2.functional.horizontal_flip(torch.from_numpy(frames).permute(0, 3, 1, 2))
    assert np.array_equal(flipped, expected.permute(0, 2, 3, 1).numpy())


# ----------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize(("height", "width"), [(256, 340), (200, 90)])
def test_crop_boxes_have_torchvisions_distribution(height, width):
    rng = np.random.default_rng(0)
    ours = np.array([transforms.draw_crop_box(height, width, rng) for _ in range(10_000)], float)
    picture = torch.empty(3, height, width)
    torch.manual_seed(0)
    theirs = np.array([torchvision_box(picture) for _ in range(10_000)], float)
    features = {
        "area": lambda b: b[:, 2] * b[:, 3],
        "aspect": lambda b: b[:, 3] / b[:, 2],
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
    }
    for name, feature in features.items():
        assert stats.ks_2samp(feature(ours), feature(theirs)).pvalue > 0.01, name
    assert (ours[:, 0] + ours[:, 2]).max() == height and ours[:, 0].min() == 0
    assert (ours[:, 1] + ours[:, 3]).max() == width and ours[:, 1].min() == 0


def torchvision_box(picture, scale=(0.08, 1.0)):
    return RandomResizedCrop.get_params(picture, list(scale), [3 / 4, 4 / 3])


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (100, 120), (33, 100)])
def test_boxes_that_never_fit_fall_back_to_torchvisions_centre(height, width):
    scale = (4.0, 5.0)  # larger than the frame
    box = transforms.draw_crop_box(height, width, np.random.default_rng(0), scale)
    assert tuple(box) == torchvision_box(torch.empty(3, height, width), scale)


def test_the_ratio_of_a_box_is_width_over_height():
    rng = np.random.default_rng(0)
    boxes = [transforms.draw_crop_box(300, 300, rng, (0.1, 0.3), (1.5, 2.0)) for _ in range(50)]
    assert all(1.45 < box.width / box.height < 2.05 for box in boxes)


def test_flips_keep_their_probability():
    for probability in (0.0, 0.5, 1.0):
        rng = np.random.default_rng(0)
        flips = sum(transforms.draw_flip(rng, probability) for _ in range(1000))
        assert stats.binomtest(flips, 1000, probability).pvalue > 0.01


# --------------------------------------------------------------------------------- training views


def test_a_training_view_has_one_draw_for_all_frames(frames):
    still = np.repeat(frames[:1], 5, axis=0)
    transform = train_transform(aa="rand-m7-n4-mstd0.5-inc1", hflip=True, reprob=0.5)
    views = [transform(still, seed) for seed in range(12)]
    for view in views:
        assert view.frames.shape == (5, SIZE, SIZE, 3) and view.frames.dtype == np.uint8
        assert view.frames.flags.c_contiguous
        assert np.all(view.frames == view.frames[:1])
        assert view.erase_boxes.shape == (2, 4)
    assert len({view.frames.tobytes() for view in views}) == 12
    assert len({view.erase_boxes.tobytes() for view in views}) > 3


def test_a_training_view_follows_from_its_seed(frames):
    transform = train_transform(aa="rand-m7-n4-mstd0.5-inc1", hflip=True, reprob=1.0)
    first, again = transform(frames, 2**63 - 5), transform(frames, 2**63 - 5)
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.erase_boxes, again.erase_boxes)


def test_flip_off_never_mirrors_and_flip_on_mirrors_half():
    clip = coordinate_clip()
    off, on = train_transform(hflip=False), train_transform(hflip=True)
    mirrored = 0
    for seed in range(200):
        plain, other = off(clip, seed).frames, on(clip, seed).frames
        assert np.all(np.diff(plain[0, 0, :, 0].astype(int)) >= 0)
        if np.array_equal(other, functional.hflip(plain)):
            mirrored += 1
        else:
            assert np.array_equal(other, plain)
    assert stats.binomtest(mirrored, 200, 0.5).pvalue > 0.01


def test_the_crop_of_a_view_is_the_random_resized_one():
    clip = coordinate_clip()
    spans = []
    for seed in range(300):
        view = train_transform()(clip, seed).frames[0].astype(float)
        width = (view[0, -1, 0] - view[0, 0, 0]) * SIZE / (SIZE - 1)
        height = (view[-1, 0, 1] - view[0, 0, 1]) * SIZE / (SIZE - 1)
        spans.append(width * height / (120 * 160))
    rng = np.random.default_rng(1)
    boxes = np.array([transforms.draw_crop_box(120, 160, rng) for _ in range(10_000)])
    expected = boxes[:, 2] * boxes[:, 3] / (120 * 160)
    assert stats.ks_2samp(spans, expected).pvalue > 0.01


def test_rand_augment_sees_the_whole_frame_and_comes_before_the_crop(frames):
    transform = train_transform(aug_impl="reference")
    seen = []

    def invert(clip, seed):
        seen.append((clip.shape, seed))
        return 255 - clip

    plain = transform(frames, 3).frames
    transform._rand_augment = invert
    augmented = transform(frames, 3).frames
    transform(frames, 4)
    assert [shape for shape, _ in seen] == [frames.shape] * 2
    assert seen[0][1] != seen[1][1]
    # Rounding may differ by one level between inverting before and after the resize.
    assert np.abs(augmented.astype(int) - (255 - plain.astype(int))).max() <= 1


def test_switching_one_augmentation_off_leaves_the_others(frames):
    full = train_transform(aa="rand-m9-n4-p1.0", hflip=True, reprob=1.0)(frames, 8)
    without_erasing = train_transform(aa="rand-m9-n4-p1.0", hflip=True)(frames, 8)
    without_aa = train_transform(hflip=True, reprob=1.0)(frames, 8)
    assert np.array_equal(full.frames, without_erasing.frames)
    assert not without_erasing.erase_boxes.any() and full.erase_boxes.any()
    assert np.array_equal(full.erase_boxes, without_aa.erase_boxes)
    assert not np.array_equal(full.frames, without_aa.frames)


def test_erase_boxes_are_only_drawn(frames):
    erased, kept = train_transform(reprob=1.0)(frames, 2), train_transform()(frames, 2)
    assert np.array_equal(erased.frames, kept.frames)
    boxes = np.stack([train_transform(reprob=1.0)(frames, s).erase_boxes for s in range(30)])
    assert np.all(boxes[:, 0, 2] > 0)
    assert (boxes[..., :2] + boxes[..., 2:]).max() <= SIZE


# -------------------------------------------------------------------------------- evaluation views


def test_validation_resizes_then_cuts_the_centre(frames):
    view = video_transforms.ValidationTransform(100, 96)(frames)
    assert view.shape == (4, 96, 96, 3) and view.flags.c_contiguous
    for before, after in zip(frames, view, strict=True):
        resized = cv2.resize(before, (132, 100))
        assert np.array_equal(after, resized[2:98, 18:114])


def test_test_views_are_cut_from_one_resize(frames):
    views = video_transforms.TestTransform(100, 96, 3)(frames)
    assert [view.crop_id for view in views] == [0, 1, 2]
    for view, left in zip(views, (0, 18, 36), strict=True):
        for before, after in zip(frames, view.frames, strict=True):
            assert np.array_equal(after, cv2.resize(before, (132, 100))[2:98, left : left + 96])


def test_a_single_test_view_is_the_validation_view(frames):
    (view,) = video_transforms.TestTransform(100, 96, 1)(frames)
    assert np.array_equal(view.frames, video_transforms.ValidationTransform(100, 96)(frames))


def test_equal_spatial_views_are_told():
    square = video_transforms.TestTransform(96, 96, 3)(coordinate_clip(120, 120))
    assert [view.crop_id for view in square] == [0, 0, 0]
    nearly = video_transforms.TestTransform(96, 96, 3)(coordinate_clip(96, 97))
    assert [view.crop_id for view in nearly] == [0, 0, 2]


def test_views_that_cannot_fit_are_errors_at_once():
    with pytest.raises(ValueError, match="--short_side_size 100 is less than --input_size 112"):
        video_transforms.ValidationTransform(100, 112)
    with pytest.raises(ValueError, match="--short_side_size 100 is less than --input_size 112"):
        video_transforms.TestTransform(100, 112, 3)
    with pytest.raises(ValueError, match="--test_num_crop 0"):
        video_transforms.TestTransform(112, 112, 0)
