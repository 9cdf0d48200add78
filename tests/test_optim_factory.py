"""Parameter groups against the published ones, layer decay, and the optimizers by name."""

import json
from argparse import Namespace
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import models
from optim_factory import (
    OPTIMIZERS,
    LayerDecayValueAssigner,
    build_layer_decay,
    create_optimizer,
    get_num_layer_for_vit,
    get_parameter_groups,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "optim.json").read_text())
DECAYS = {"layer_decay_0.75": 0.75, "layer_decay_0.9": 0.9, "no_layer_decay": 1.0}


@cache
def base_model():
    with torch.device("meta"):
        return timm.create_model("vit_base_patch16_224_alternating")


def toy():
    torch.manual_seed(0)
    return models.AlternatingDualHeadVisionTransformer(
        img_size=16,
        embed_dim=16,
        depth=2,
        num_heads=2,
        qkv_bias=True,
        all_frames=2,
        lh_num_classes=4,
        rh_num_classes=4,
        use_learnable_pos_emb=True,
    )


def options(**kwargs):
    defaults = dict(opt="adamw", lr=1e-2, weight_decay=0.1, opt_eps=1e-8, opt_betas=[0.9, 0.999])
    return Namespace(**{**defaults, "momentum": 0.9, **kwargs})


def groups_of(model, weight_decay, decay, **kwargs):
    assigner = build_layer_decay(decay, model.get_num_layers())
    functions = (assigner.get_layer_id, assigner.get_scale) if assigner else (None, None)
    skip = model.no_weight_decay()
    return get_parameter_groups(model, weight_decay, skip, *functions, **kwargs)


def named(model, groups):
    """The groups with names for parameters."""
    names = {id(param): name for name, param in model.named_parameters()}
    return [{**group, "params": [names[id(p)] for p in group["params"]]} for group in groups]


# --- groups ---


@pytest.mark.parametrize("setting", DECAYS)
def test_groups_are_published(setting):
    expected = GOLDEN["settings"][setting]["groups_in_order"]
    groups = named(base_model(), groups_of(base_model(), 0.05, DECAYS[setting]))
    assert [g["params"] for g in groups] == [g["params"] for g in expected]
    assert [g["weight_decay"] for g in groups] == [g["weight_decay"] for g in expected]
    assert [g["lr_scale"] for g in groups] == pytest.approx([g["lr_scale"] for g in expected], rel=1e-12)
    assert all(set(g) == {"params", "weight_decay", "lr_scale"} for g in groups)


@pytest.mark.parametrize("setting", DECAYS)
def test_layer_decay_values_are_published(setting):
    expected = GOLDEN["settings"][setting]["assigner_values"]
    assigner = build_layer_decay(DECAYS[setting], 12)
    if expected is None or DECAYS[setting] == 1:
        assert assigner is None
    else:
        assert list(assigner.values) == pytest.approx(expected, rel=1e-12)
        assert assigner.get_scale(13) == 1.0


def test_layer_rule_is_published():
    for name, layer in GOLDEN["get_num_layer_for_vit_num_max_layer_14"].items():
        assert get_num_layer_for_vit(name, 14) == layer, name
        assert LayerDecayValueAssigner([0.0] * 14).get_layer_id(name) == layer, name


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.1])
def test_senseless_layer_decay_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay={decay}"):
        build_layer_decay(decay, 12)


def test_skip_list_and_frozen_parameters():
    model = toy()
    model.patch_embed.requires_grad_(False)
    decaying, plain = sorted(
        named(model, get_parameter_groups(model, 0.1, {"pos_embed"})),
        key=lambda group: group["weight_decay"],
        reverse=True,
    )
    assert (decaying["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert "pos_embed" in plain["params"]
    assert not any("patch_embed" in name for name in decaying["params"] + plain["params"])
    (decaying,) = (g for g in named(model, get_parameter_groups(model, 0.1)) if g["weight_decay"])
    assert "pos_embed" in decaying["params"]


def test_biases_of_any_shape_do_not_decay():
    module = nn.Module()
    module.table = nn.Parameter(torch.ones(2, 2))
    module.layer = nn.Module()
    module.layer.bias = nn.Parameter(torch.ones(2, 2))
    table, bias = named(module, get_parameter_groups(module, 0.1))
    assert (table["params"], table["weight_decay"]) == (["table"], 0.1)
    assert (bias["params"], bias["weight_decay"]) == (["layer.bias"], 0.0)


def test_no_weight_decay_keeps_groups_and_layer_scales():
    model = toy()
    assigner = build_layer_decay(0.5, 2)
    made = [
        create_optimizer(options(weight_decay=wd), model, assigner.get_layer_id, assigner.get_scale)
        for wd in (0.0, 0.1)
    ]
    without, with_decay = ([g["lr_scale"] for g in o.param_groups] for o in made)
    assert without == with_decay
    assert sorted(set(without)) == [0.125, 0.25, 0.5, 1.0]
    assert {g["weight_decay"] for g in made[0].param_groups} == {0.0}


# --- optimizers ---


def test_model_names_its_parameters_without_decay():
    model = toy()
    groups = named(model, create_optimizer(options(), model).param_groups)
    assert all(g["weight_decay"] == 0 for g in groups if "pos_embed" in g["params"])
    groups = named(model, create_optimizer(options(), model, skip_list=()).param_groups)
    assert all(g["weight_decay"] == 0.1 for g in groups if "pos_embed" in g["params"])


def test_unfiltered_parameters_make_one_group():
    (group,) = create_optimizer(options(), toy(), filter_bias_and_bn=False).param_groups
    assert group["weight_decay"] == 0.1
    assert len(group["params"]) == len(list(toy().parameters()))


def test_options_reach_the_optimizer():
    args = options(lr=0.3, opt_eps=1e-5, opt_betas=[0.8, 0.7])
    group = create_optimizer(args, toy()).param_groups[0]
    assert (group["lr"], group["eps"], group["betas"]) == (0.3, 1e-5, (0.8, 0.7))
    sgd = create_optimizer(options(opt="sgd", momentum=0.6), toy()).param_groups[0]
    assert (sgd["momentum"], sgd["nesterov"]) == (0.6, True)
    bare = Namespace(opt="adamw", lr=0.1, weight_decay=0)
    assert create_optimizer(bare, toy()).param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("name", [*OPTIMIZERS, "lookahead_adamw", "AdamW"])
def test_every_advertised_optimizer_steps_and_leaves_the_resting_hand(name):
    model = toy()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = create_optimizer(options(opt=name), model)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(2, 3, 2, 16, 16), "lh").square().sum().backward()
        optimizer.step()
    after = model.state_dict()
    assert all(v.isfinite().all() for v in after.values())
    assert not torch.equal(after["lh_head.weight"], before["lh_head.weight"])
    assert not torch.equal(after["blocks.0.mlp.fc1.weight"], before["blocks.0.mlp.fc1.weight"])
    assert torch.equal(after["rh_head.weight"], before["rh_head.weight"])
    assert not optimizer.state.get(model.rh_head.weight)


def test_fused_and_plain_steps_agree():
    results = []
    for fused in (True, False):
        model = toy()
        optimizer = create_optimizer(options(), model)
        assert all(group["fused"] for group in optimizer.param_groups)
        for group in optimizer.param_groups:
            group["fused"] = fused
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 3, 2, 16, 16), "lh").square().sum().backward()
            optimizer.step()
        results.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_meta_parameters_are_not_fused():
    assert not create_optimizer(options(), base_model()).param_groups[0].get("fused")


def test_betas_of_another_length_are_left_to_the_optimizer(caplog):
    optimizer = create_optimizer(options(opt="adan"), toy())
    assert len(optimizer.param_groups[0]["betas"]) == 3
    assert "adan takes 3 betas" in caplog.text


@pytest.mark.parametrize("name", ["adamwx", "foo_adamw", "", "adahessian"])
def test_unusable_optimizers_are_refused_with_valid_names(name):
    with pytest.raises(ValueError, match=r"adamw, adam, .*lamb") as error:
        create_optimizer(options(opt=name), toy())
    assert repr(name) in str(error.value)
