"""The flags: names, defaults, what is refused with one clear line, and what only warns."""

import shutil

import pytest
import torch
from conftest import write_list

from run_alternating_hand_finetuning import flags_without_effect, get_args, get_parser

# The published names with the two-hand recipe's defaults.
DEFAULTS = {
    **{"batch_size": 4, "epochs": 50, "update_freq": 1, "save_ckpt_freq": 10, "tubelet_size": 2},
    **{"model": "vit_base_patch16_224_alternating", "input_size": 224, "short_side_size": 224},
    **{"num_frames": 16, "sampling_rate": 4, "num_sample": 2, "drop": 0.0, "attn_drop_rate": 0.0},
    **{"drop_path": 0.3, "head_drop_rate": 0.0, "opt": "adamw", "opt_eps": 1e-8, "opt_betas": [0.9, 0.999]},
    **{"clip_grad": 5.0, "momentum": 0.9, "weight_decay": 0.1, "lr": 1e-3, "layer_decay": 0.9},
    **{"warmup_lr": 1e-8, "min_lr": 1e-6, "warmup_epochs": 5, "warmup_steps": -1, "alternation_steps": 50},
    **{"aa": "rand-m7-n4-mstd0.5-inc1", "train_interpolation": "bicubic", "smoothing": 0.1, "reprob": 0.25},
    **{"remode": "pixel", "recount": 1, "mixup": 0.8, "cutmix": 1.0, "mixup_prob": 1.0},
    **{"mixup_switch_prob": 0.5, "mixup_mode": "batch", "test_num_segment": 5, "test_num_crop": 3},
    **{"model_ema_decay": 0.9999, "init_scale": 0.001, "seed": 0, "data_set": "HAVID"},
}
# Published names that act and whose defaults the recipe leaves at "off", "none" or "as usual".
ACTING = {
    *("with_checkpoint", "model_ema", "model_ema_force_cpu", "weight_decay_end", "cutmix_minmax", "finetune"),
    *("model_key", "model_prefix", "use_cls", "lh_data_path", "lh_data_root", "rh_data_path", "rh_data_root"),
    *("lh_num_classes", "rh_num_classes", "num_workers", "one_stream", "sparse_sample", "output_dir"),
    *("log_dir", "device", "resume", "auto_resume", "save_ckpt", "start_epoch", "eval", "validation"),
    *("disable_eval_during_finetuning", "pin_mem", "dist_on_itp", "dist_url", "world_size"),
}
WITHOUT_EFFECT = {
    "nb_classes": ["9"],
    "local_rank": ["0"],
    "crop_pct": ["0.9"],
    "color_jitter": ["0.4"],
    "resplit": [],
    "imagenet_default_mean_and_std": [],
    "dist_eval": [],
}
REFUSED = {"num_segments", "enable_deepspeed"}
OWN = {
    "norm_eps": 1e-6,
    "allow_missing": False,
    "train_list": None,
    "val_list": None,
    "test_list": None,
    "hflip": "off",
    "short_clips": "published",
    "cutmix_region": "frame",
    "train_mask_ratio": 0.0,
    "train_mask_type": "tube",
    "test_weights": "last",
    "amp_dtype": "auto",
    "deterministic": False,
    "depth": None,
    "log_interval": 10,
    "save_ckpt_steps": 0,
    "keep_ckpts": 2,
    "dist_timeout": 60,
    "crop_scale": [0.08, 1.0],
    "aug_impl": "fast",
    "video_backend": "auto",
    "fname_tmpl": "img_{:05}.jpg",
    "start_idx": 1,
    "clip_cache": "",
    "decode_timeout": 60.0,
    "max_bad_clips": 0.05,
    "compile": False,
    "report": True,
}


def test_flags_are_the_published_ones_and_our_own():
    known = set(vars(get_parser().parse_args([])))
    assert known == {*DEFAULTS, *ACTING, *WITHOUT_EFFECT, *REFUSED, *OWN}


@pytest.mark.parametrize(("name", "default"), [*DEFAULTS.items(), *OWN.items()])
def test_default_is_the_recipe_s(name, default):
    assert getattr(get_parser().parse_args([]), name) == default


def test_switches_have_both_spellings():
    for name in ("auto_resume", "save_ckpt", "pin_mem"):
        assert getattr(get_parser().parse_args([]), name) is True
        assert getattr(get_parser().parse_args([f"--{name}"]), name) is True
        assert getattr(get_parser().parse_args([f"--no_{name}"]), name) is False


def test_every_flag_has_help(run_main):
    actions = [action for action in get_parser()._actions if action.dest != "help"]
    assert not [action.dest for action in actions if not action.help]
    result = run_main("--help")
    assert result.code == 0
    assert "--alternation_steps" in result.output


@pytest.mark.parametrize(
    ("data_set", "classes"), [("HAVID", 75), ("ATTACH", 24), ("Assembly101", 202), ("Breakfast", 48)]
)
def test_data_set_sets_the_class_counts(sample, data_set, classes):
    args = get_args([*sample.flags, "--data_set", data_set])
    assert (args.lh_num_classes, args.rh_num_classes) == (classes, classes)
    args = get_args([*sample.flags, "--data_set", data_set, "--rh_num_classes", "7"])
    assert (args.lh_num_classes, args.rh_num_classes) == (classes, 7)


def test_custom_data_set_counts_the_classes_of_the_lists(sample):
    args = get_args([*sample.flags, "--data_set", "CUSTOM"])
    assert (args.lh_num_classes, args.rh_num_classes) == (4, 3)


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_flag_without_effect_warns_in_one_line(run_main, tiny_flags, tmp_path, name):
    quick = ("--epochs", 1, "--num_sample", 1, "--batch_size", 4, "--disable_eval_during_finetuning")
    result = run_main(*tiny_flags, *quick, f"--{name}", *WITHOUT_EFFECT[name], "--output_dir", tmp_path)
    assert result.code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if "no effect" in line]
    assert line.endswith(f"--{name} has no effect")


def test_interpolation_says_that_fast_augmentation_does_not_take_it(sample):
    given = [*sample.flags, "--train_interpolation", "bilinear"]
    (said,) = flags_without_effect(get_args(given))
    assert said == "--train_interpolation bilinear without --aug_impl reference"
    assert not flags_without_effect(get_args([*given, "--aug_impl", "reference"]))


def test_no_warning_without_such_a_flag(run_main, tiny_flags, tmp_path):
    quick = ("--epochs", 1, "--disable_eval_during_finetuning", "--no_save_ckpt")
    result = run_main(*tiny_flags, *quick, "--output_dir", tmp_path)
    assert result.code == 0
    assert "no effect" not in result.output
    assert not list(tmp_path.glob("checkpoint*"))


# ------------------------------------------------------------------------------------- errors


def assert_one_clear_line(result, *parts):
    """The command failed, and its last line says why; no traceback."""
    assert result.code not in (0, None), result.output
    assert "Traceback" not in result.output
    lines = [line for line in result.output.splitlines() if "error:" in line]
    assert len(lines) == 1, result.output
    for part in parts:
        assert str(part) in lines[0], lines[0]
    return lines[0]


BAD_FLAGS = [
    (("--num_segments", 2), ["--num_segments", "--num_frames"]),
    (("--enable_deepspeed",), ["--enable_deepspeed"]),
    (("--num_frames", 5), ["--num_frames 5", "--tubelet_size 2"]),
    (("--input_size", 33), ["--input_size 33", "patch_size=16"]),
    (("--short_side_size", 16), ["--short_side_size 16", "--input_size 32"]),
    (("--num_sample", 1, "--batch_size", 3), ["--batch_size 3", "--num_sample 1", "odd"]),
    (("--warmup_epochs", 3), ["--warmup_epochs 3", "--epochs 2"]),
    (("--warmup_steps", 100), ["--warmup_steps 100", "100 steps"]),
    (("--batch_size", 32), ["--batch_size", "16 clips", "64"]),
    (("--lh_num_classes", 3), ["train_list_video.txt:4", "label 3", "out of range", "3 classes"]),
    (("--rh_num_classes", 1), ["rh_v0", "train_list_video.txt:2", "out of range"]),
    (("--lh_data_root", "/nowhere"), ["none of 16", "/nowhere/videos,", "/nowhere/video_train", "r00.mp4"]),
    (("--lh_data_path", "/nowhere"), ["--lh_data_path /nowhere", "no such folder"]),
    (("--rh_data_path", ""), ["--rh_data_path", "--one_stream"]),
    (("--lh_data_path", ""), ["--lh_data_path"]),
    (("--model", "vit_enormous"), ["--model", "vit_enormous"]),
    (("--opt", "sgdd"), ["--opt", "sgdd", "adamw"]),
    (("--epochs", 0), ["--epochs", "at least 1"]),
    (("--alternation_steps", 0), ["--alternation_steps", "at least 1"]),
    (("--test_num_crop", 0), ["--test_num_crop", "at least 1"]),
    (("--train_mask_ratio", "1.5"), ["--train_mask_ratio", "1.5"]),
    (("--test_weights", "ema"), ["--test_weights ema", "--model_ema"]),
    (("--test_weights", "best", "--no_save_ckpt"), ["--test_weights best"]),
    (("--weight_decay", 0, "--weight_decay_end", "0.1"), ["--weight_decay_end"]),
    (("--world_size", 2), ["--world_size 2", "launcher started 1"]),
    (("--dist_on_itp",), ["--dist_on_itp", "OMPI_COMM_WORLD_RANK"]),
    (("--finetune", "/nowhere.pth"), ["--finetune /nowhere.pth"]),
    (("--resume", "/nowhere.pth"), ["--resume /nowhere.pth"]),
    (("--eval", "--resume", "/nowhere.pth"), ["--resume /nowhere.pth"]),
    (("--aa", "nonsense"), ["--aa", "nonsense"]),
    (("--layer_decay", "1.5"), ["--layer_decay", "1.5"]),
    (("--no_such_flag",), ["--no_such_flag"]),
    (("--mixup_mode", "row"), ["--mixup_mode", "row"]),
    (("--num_workers", "-1"), ["--num_workers", "at least 0"]),
    (("--depth", 0), ["--depth", "at least 1"]),
    (("--lh_num_classes", 0), ["--lh_num_classes", "at least 1"]),
    (("--keep_ckpts", 0), ["--keep_ckpts", "at least 1"]),
    (("--save_ckpt_steps", "-1"), ["--save_ckpt_steps", "at least 0"]),
    (("--clip_grad", "-1"), ["--clip_grad", "at least 0"]),
    (("--lr", "nan"), ["--lr", "nan", "at least 0"]),
    (("--lr", "inf"), ["--lr", "inf", "at least 0"]),
    (("--log_dir", "/dev/null/x"), ["--log_dir /dev/null/x"]),
    (("--reprob", 2), ["--reprob", "between 0 and 1"]),
    (("--drop_path", "1.5"), ["--drop_path", "between 0 and 1"]),
    (("--model_ema_decay", 2), ["--model_ema_decay", "between 0 and 1"]),
    (("--smoothing", 1), ["--smoothing 1"]),
    (("--cutmix_minmax", "0.9", "0.1"), ["--cutmix_minmax", "MIN < MAX"]),
    (("--start_epoch", 2), ["--start_epoch 2", "--epochs"]),
    (("--batch_size", "four"), ["--batch_size", "'four'"]),
    (("--device", "gpu0"), ["--device gpu0", "cuda:N"]),
    (("--output_dir", "/dev/null/run"), ["--output_dir /dev/null/run"]),
]


@pytest.mark.parametrize(("flags", "parts"), BAD_FLAGS, ids=[" ".join(map(str, f)) for f, _ in BAD_FLAGS])
def test_bad_flag_is_refused_in_one_line_that_names_it(run_main, tiny_flags, tmp_path, flags, parts):
    result = run_main(*tiny_flags, "--output_dir", tmp_path, *flags)
    assert_one_clear_line(result, *parts)
    assert not list(tmp_path.glob("checkpoint*"))


def test_checkpoint_is_not_called_the_best_one_when_it_is_not(run_main, small_run):
    flags = ("--eval", "--resume", small_run / "checkpoint-last.pth", "--test_weights", "best")
    assert_one_clear_line(run_main(*flags), "--test_weights best", small_run / "checkpoint-last.pth")


def test_flags_of_training_do_not_hinder_a_test(run_main, small_run, tmp_path):
    flags = ("--eval", "--resume", small_run / "checkpoint-last.pth", "--output_dir", tmp_path)
    result = run_main(*flags, "--mixup", "0.8", "--batch_size", 1, "--num_sample", 1)
    assert result.code == 0, result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_missing_gpu_is_said(run_main, tiny_flags, tmp_path):
    result = run_main(*tiny_flags, "--output_dir", tmp_path, "--device", "cuda")
    assert_one_clear_line(result, "--device cuda", "--device cpu")


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ("r00.mp4 0\nr01.mp4 one\n", [":2", "r01.mp4 one"]),
        ("r00.mp4 0\nr01.mp4 1\nr00.mp4 2\n", ["lines 1 and 3", "r00.mp4", "0 and 2"]),
        ("\n\n", ["empty"]),
    ],
)
def test_bad_list_is_refused_with_file_and_line(run_main, sample, tiny_flags, tmp_path, rows, parts):
    (tmp_path / "train_list_video.txt").write_text(rows)
    flags = ("--lh_data_path", tmp_path, "--lh_data_root", sample.path("lh"))
    result = run_main(*tiny_flags, *flags, "--output_dir", tmp_path / "run")
    assert_one_clear_line(result, tmp_path / "train_list_video.txt", *parts)


@pytest.mark.parametrize("workers", [0, 1])
def test_list_of_unreadable_clips_is_refused_with_its_file(run_main, tiny_flags, tmp_path, workers):
    rows = [(f"c{i}.mp4", i % 4) for i in range(16)]
    for name, _ in rows:
        (tmp_path / name).write_bytes(b"no video")
    for split in ("train", "val"):
        write_list(tmp_path / f"{split}_list_video.txt", rows)
    flags = ("--lh_data_path", tmp_path, "--num_workers", workers, "--output_dir", tmp_path / "run")
    result = run_main(*tiny_flags, *flags)
    assert_one_clear_line(result, tmp_path / "train_list_video.txt", "20 clips in a row")


# -------------------------------------------------------------------------- errors of checkpoints


@pytest.fixture(scope="module")
def small_run(run_main, tiny_flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    result = run_main(*tiny_flags, "--epochs", 1, "--output_dir", folder)
    assert result.code == 0, result.output
    return folder


def test_nothing_to_evaluate_is_an_error(run_main, tiny_flags, tmp_path):
    for mode in ("--eval", "--validation"):
        result = run_main(*tiny_flags, mode, "--output_dir", tmp_path)
        assert_one_clear_line(result, "no checkpoint to evaluate", tmp_path, "--resume")


@pytest.mark.parametrize(
    "flags", [("--lh_num_classes", 9), ("--depth", 2), ("--model", "vit_small_patch16_224_alternating")]
)
def test_checkpoint_that_does_not_fit_is_refused(run_main, small_run, tiny_flags, tmp_path, flags):
    path = small_run / "checkpoint-last.pth"
    result = run_main("--eval", "--resume", path, "--output_dir", tmp_path, *flags)
    assert_one_clear_line(result, path, "does not fit the model", "class counts")
    assert not (tmp_path / "metrics.json").exists()
    result = run_main(*tiny_flags, "--resume", path, "--output_dir", tmp_path, *flags)
    assert_one_clear_line(result, path, "does not fit the model")


def test_checkpoint_with_too_few_classes_for_the_lists_is_refused(run_main, small_run, sample, tmp_path):
    rows = [(name, label + 7) for name, label in sample.val["rh"]]
    write_list(tmp_path / "val_list_video.txt", rows)
    flags = ("--rh_data_path", tmp_path, "--rh_data_root", sample.path("rh"), "--output_dir", tmp_path)
    result = run_main("--eval", "--resume", small_run / "checkpoint-last.pth", *flags)
    assert_one_clear_line(result, tmp_path / "val_list_video.txt", "out of range", "3 classes")


def test_optimizer_that_does_not_fit_is_refused(run_main, small_run, tiny_flags, tmp_path):
    path = small_run / "checkpoint-last.pth"
    flags = ("--resume", path, "--output_dir", tmp_path, "--layer_decay", 1)
    assert_one_clear_line(run_main(*tiny_flags, *flags), path, "optimizer")


def test_weights_of_something_else_are_refused(run_main, tiny_flags, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"model": {"layer.weight": torch.zeros(3, 3)}}, path)
    result = run_main(*tiny_flags, "--finetune", path, "--output_dir", tmp_path)
    assert_one_clear_line(result, f"--finetune {path}")


def test_ema_that_is_not_in_the_file_is_an_error(run_main, small_run, tmp_path):
    path = small_run / "checkpoint-last.pth"
    result = run_main("--eval", "--resume", path, "--test_weights", "ema", "--output_dir", tmp_path)
    assert_one_clear_line(result, path, "model_ema")


def test_damaged_checkpoint_is_named(run_main, small_run, tiny_flags, tmp_path):
    path = tmp_path / "checkpoint-last.pth"
    shutil.copyfile(small_run / "checkpoint-last.pth", path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    result = run_main(*tiny_flags, "--output_dir", tmp_path)
    assert_one_clear_line(result, path, "damaged")
