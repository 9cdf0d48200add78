"""The names that code written for the published trainers imports, used the way such code uses them."""

import inspect
from argparse import Namespace
from functools import partial

import numpy as np
import pytest
import timm
import torch
from torch import nn

import engine_for_alternating_finetuning as engine
import optim_factory
import utils
from dataset.build import build_dataset
from dataset.datasets import VideoClsDataset
from engine_for_finetuning import ViewScores, merge, merge_hand, write_results
from models.modeling_finetune import VisionTransformer
from models.modeling_finetune_alternating import AlternatingDualHeadVisionTransformer

SIGNATURES = [
    (optim_factory.LayerDecayValueAssigner, ["values"]),
    (optim_factory.LayerDecayValueAssigner.get_layer_id, ["self", "name"]),
    (optim_factory.LayerDecayValueAssigner.get_scale, ["self", "layer_id"]),
    (
        optim_factory.get_parameter_groups,
        ["model", "weight_decay", "skip_list", "get_num_layer", "get_layer_scale"],
    ),
    (
        utils.cosine_scheduler,
        [
            *("base_value", "final_value", "epochs", "niter_per_ep", "warmup_epochs"),
            *("start_warmup_value", "warmup_steps"),
        ],
    ),
    (merge, ["eval_path", "num_tasks", "method"]),
]


@pytest.mark.parametrize(("function", "names"), SIGNATURES, ids=lambda value: getattr(value, "__name__", ""))
def test_parameters_have_the_published_names_and_order(function, names):
    assert list(inspect.signature(function).parameters) == names


def test_schedule_and_merge_have_the_published_defaults():
    defaults = {name: p.default for name, p in inspect.signature(utils.cosine_scheduler).parameters.items()}
    assert (defaults["warmup_epochs"], defaults["start_warmup_value"], defaults["warmup_steps"]) == (0, 0, -1)
    assert inspect.signature(merge).parameters["method"].default == "prob"


@pytest.mark.parametrize("hands", [False, True])
def test_models_are_built_with_the_published_keywords(hands):
    keywords = dict(
        img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=2, mlp_ratio=2, qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), init_values=0.0, use_learnable_pos_emb=False,
        all_frames=4, tubelet_size=2, drop_rate=0.0, drop_path_rate=0.1, attn_drop_rate=0.0,
        head_drop_rate=0.0, use_mean_pooling=True, init_scale=0.001, with_cp=False,
    )  # fmt: skip
    clips = torch.zeros(2, 3, 4, 32, 32)
    if hands:
        model = AlternatingDualHeadVisionTransformer(lh_num_classes=5, rh_num_classes=3, **keywords)
        assert model(clips, "lh").shape == (2, 5)
        assert model(clips, hand_type="rh").shape == (2, 3)
        model.reset_classifier(4, 6)
        assert model.get_classifier("rh").out_features == 6
    else:
        model = VisionTransformer(num_classes=5, **keywords)
        assert model(clips).shape == (2, 5)
        model.reset_classifier(4)
        assert model.get_classifier().out_features == 4
    assert model.forward_features(clips).shape == (2, 24)
    assert model.get_num_layers() == 2
    assert "pos_embed" in model.no_weight_decay()


def test_optimizer_is_made_and_scheduled_as_a_user_s_script_does():
    model = timm.create_model(
        "vit_small_patch16_224_alternating", pretrained=False, img_size=32, all_frames=4, depth=2
    )
    layers = model.get_num_layers()
    assigner = optim_factory.LayerDecayValueAssigner([0.75 ** (layers + 1 - i) for i in range(layers + 2)])
    args = Namespace(opt="adamw", lr=1e-3, weight_decay=0.05, opt_eps=1e-8, opt_betas=None, momentum=0.9)
    optimizer = optim_factory.create_optimizer(
        args,
        model,
        get_num_layer=assigner.get_layer_id,
        get_layer_scale=assigner.get_scale,
        skip_list=model.no_weight_decay(),
    )
    rates = utils.cosine_scheduler(1e-3, 1e-6, 3, 10, warmup_epochs=1, start_warmup_value=1e-8)
    for group in optimizer.param_groups:
        group["lr"] = rates[5] * group["lr_scale"]
    before = model.lh_head.weight.clone()
    nn.functional.cross_entropy(model(torch.randn(2, 3, 4, 32, 32), "lh"), torch.tensor([1, 2])).backward()
    optimizer.step()
    moved = (model.lh_head.weight - before).abs().max()
    assert 0 < moved <= 1.01 * rates[5]
    assert {group["lr_scale"] for group in optimizer.param_groups} == {0.75**i for i in range(layers + 2)}


def test_datasets_are_built_from_a_list_and_a_root(sample):
    folder = sample.path("lh")
    dataset = VideoClsDataset(
        anno_path=str(folder / "val_list_video.txt"), data_root=str(folder), mode="test", clip_len=4,
        frame_sample_rate=2, crop_size=32, short_side_size=36, test_num_segment=2, test_num_crop=3,
    )  # fmt: skip
    same = build_dataset("test", folder, clip_len=4, frame_sample_rate=2, crop_size=32, short_side_size=36,
        test_num_segment=2, test_num_crop=3)  # fmt: skip
    assert len(dataset) == len(same) == len(sample.val["lh"])
    assert np.array_equal(dataset[0].frames, same[0].frames)


def test_results_are_merged_by_folder_and_number_of_ranks(tmp_path):
    rows = ViewScores(["a.mp4", "b.mp4"], np.eye(2), np.array([0, 0]), np.zeros(2, int), np.zeros(2, int))
    for name in ("0.txt", "0_lh.txt"):
        write_results(tmp_path / name, rows)
    assert merge(str(tmp_path), 1) == merge(str(tmp_path), num_tasks=1, method="score") == (50.0, 100.0)
    assert merge_hand(str(tmp_path), 1, "lh") == (50.0, 100.0)


def test_engine_has_its_three_functions():
    for name in ("train_one_epoch", "validation_one_epoch", "final_test"):
        assert callable(getattr(engine, f"{name}_alternating"))
