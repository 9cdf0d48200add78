"""Fitting the weights of published and own checkpoints to a model."""

import json
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

import models
from models import AlternatingDualHeadVisionTransformer, PretrainedError, load_pretrained
from models.pretrained import resize_positions

GOLDEN = Path(__file__).parent / "golden"
TOY = dict(img_size=32, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2, qkv_bias=True)
TOY |= dict(all_frames=4, tubelet_size=2, lh_num_classes=5, rh_num_classes=3)
HEADS = ["lh_head.weight", "lh_head.bias", "rh_head.weight", "rh_head.bias"]


def toy(seed=0, **kwargs):
    torch.manual_seed(seed)
    return AlternatingDualHeadVisionTransformer(**{**TOY, **kwargs})


def backbone(model):
    return {k: v for k, v in model.state_dict().items() if k not in HEADS}


def single_head_weights(seed=1):
    """The state dict of a fine-tuned single-head model with 710 classes."""
    weights = backbone(toy(seed))
    return weights | {"head.weight": torch.zeros(710, 32), "head.bias": torch.zeros(710)}


def assert_same(actual, expected):
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("size", "file"),
    [("small", "small"), ("base", "b"), ("large", "large"), ("huge", "huge"), ("giant", "giant")],
)
def test_published_names_fit_all_but_the_single_head(size, file):
    keys = json.loads((GOLDEN / f"keys_vit_{file}.json").read_text())["videomaev2_k710"]
    patch = 14 if size == "giant" else 16
    with torch.device("meta"):
        model = timm.create_model(f"vit_{size}_patch{patch}_224_alternating")
        weights = {name: torch.empty(shape) for name, shape in keys["state_dict"].items()}
    report = load_pretrained(model, {"module": weights})
    assert report.loaded == list(keys["state_dict"])[:-2]
    assert list(report.dropped) == ["head.weight", "head.bias"]
    assert report.initialised == HEADS
    assert not report.resized


def test_values_arrive_and_fresh_heads_stay():
    model, weights = toy(), single_head_weights()
    fresh = {name: model.state_dict()[name].clone() for name in HEADS}
    report = load_pretrained(model, {"model": weights, "epoch": 3})
    assert_same(model.state_dict(), fresh)
    assert_same(model.state_dict(), {k: v for k, v in weights.items() if not k.startswith("head")})
    assert report.dropped == {"head.weight": "no such head", "head.bias": "no such head"}


def test_single_head_model_keeps_a_fitting_head():
    keywords = {k: v for k, v in TOY.items() if "num_classes" not in k}
    weights = single_head_weights() | {"head.bias": torch.ones(710)}
    model = models.VisionTransformer(num_classes=710, **keywords)
    assert not load_pretrained(model, weights).dropped
    assert torch.equal(model.head.bias, torch.ones(710))
    report = load_pretrained(models.VisionTransformer(num_classes=9, **keywords), weights)
    assert set(report.dropped.values()) == {"710 classes in the file, 9 in the model"}


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "backbone.", "encoder.", "module._orig_mod.", ""]
)
@pytest.mark.parametrize("key", ["model", "module", None])
def test_keys_and_wrapper_prefixes(prefix, key):
    weights = {f"{prefix}{name}": value for name, value in single_head_weights().items()}
    model = toy()
    report = load_pretrained(model, {key: weights} if key else weights)
    assert report.initialised == HEADS
    assert_same(model.state_dict(), backbone(toy(1)))


def test_first_present_key_wins():
    model = toy()
    checkpoint = {"model": backbone(toy(1)), "module": backbone(toy(2))}
    load_pretrained(model, checkpoint, model_key="state_dict|module|model")
    assert_same(model.state_dict(), backbone(toy(2)))


@pytest.mark.parametrize("prefix", ["visual.", "encoder."])
def test_model_prefix_selects(prefix):
    model = toy()
    weights = {f"module.{prefix}{name}": value for name, value in backbone(toy(1)).items()}
    weights |= {f"module.text.{name}": value for name, value in backbone(toy(2)).items()}
    report = load_pretrained(model, weights, model_prefix=prefix)
    assert_same(model.state_dict(), backbone(toy(1)))
    assert len(report.dropped) == len(backbone(model))
    assert set(report.dropped.values()) == {f"outside the prefix {prefix!r}"}


def test_own_heads_are_kept_where_they_fit():
    model, source = toy(), toy(1, rh_num_classes=4, init_scale=1)
    report = load_pretrained(model, {"model": source.state_dict()})
    assert_same(model.state_dict(), backbone(source))
    assert torch.equal(model.lh_head.weight, source.lh_head.weight)
    assert report.initialised == ["rh_head.weight", "rh_head.bias"]
    reason = "4 classes in the file, 3 in the model"
    assert report.dropped == {"rh_head.weight": reason, "rh_head.bias": reason}


def test_pretraining_files_leave_the_final_norm_fresh():
    weights = {f"encoder.{k}": v for k, v in backbone(toy(1)).items() if "fc_norm" not in k}
    weights |= {"encoder.norm.weight": torch.ones(32), "decoder.head.weight": torch.ones(4, 32)}
    report = load_pretrained(toy(), weights)
    assert report.dropped == {"norm.weight": "not in the model", "decoder.head.weight": "not in the model"}
    assert report.initialised == ["fc_norm.weight", "fc_norm.bias", *HEADS]


def test_half_precision_weights_are_cast():
    model = toy()
    load_pretrained(model, {k: v.half() for k, v in backbone(toy(1)).items()})
    assert all(p.dtype == torch.float32 for p in model.parameters())
    expected = toy(1).blocks[0].attn.qkv.weight.half().float()
    assert torch.equal(model.blocks[0].attn.qkv.weight, expected)


def test_non_tensors_are_dropped():
    report = load_pretrained(toy(), backbone(toy(1)) | {"epoch": 4})
    assert report.dropped == {"epoch": "not a tensor"}


def test_summary_is_short_and_complete():
    report = load_pretrained(toy(), {"model": single_head_weights()})
    lines = report.summary().splitlines()
    assert lines[0].endswith("30 of 34 tensors of the model loaded")
    assert lines[1:] == [
        "  dropped (no such head): head.weight, head.bias",
        "  left as initialised: " + ", ".join(HEADS),
    ]


# --- position tables ---


def test_fixed_table_in_a_file_is_ignored():
    model = toy()
    table = model.pos_embed.clone()
    report = load_pretrained(model, backbone(toy(1)) | {"pos_embed": torch.zeros(1, 3, 32)})
    assert report.dropped == {"pos_embed": "the model computes its position table"}
    assert torch.equal(model.pos_embed, table)


@pytest.mark.parametrize(
    ("source", "keywords", "grid"),
    [
        ((2, 4, 4), {}, (2, 2, 2)),
        ((2, 2, 2), dict(img_size=64), (2, 4, 4)),
        ((3, 2, 2), dict(all_frames=8), (4, 2, 2)),
    ],
)
def test_learnable_table_is_resized(source, keywords, grid):
    table = torch.randn(1, source[0] * source[1] * source[2], 32)
    model = toy(use_learnable_pos_emb=True, **keywords)
    report = load_pretrained(model, backbone(toy(1)) | {"pos_embed": table})
    assert report.resized == {"pos_embed": f"grid {source} to {grid}"}
    assert "pos_embed" in report.loaded
    assert torch.equal(model.pos_embed, resize_positions(table, source, grid))


def test_learnable_table_that_fits_is_copied():
    model, table = toy(use_learnable_pos_emb=True), torch.randn(1, 8, 32)
    report = load_pretrained(model, backbone(toy(1)) | {"pos_embed": table})
    assert not report.resized
    assert torch.equal(model.pos_embed, table)


def test_space_is_bicubic_for_each_step():
    table = torch.randn(1, 2 * 4 * 4, 6)
    resized = resize_positions(table, (2, 4, 4), (2, 7, 5)).view(2, 7, 5, 6)
    for step in range(2):
        image = table.view(2, 4, 4, 6)[step].permute(2, 0, 1)[None]
        expected = F.interpolate(image, size=(7, 5), mode="bicubic")[0].permute(1, 2, 0)
        torch.testing.assert_close(resized[step], expected)


def test_time_is_linear():
    ramp = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 4, 3).reshape(1, 16, 3)
    resized = resize_positions(ramp, (4, 2, 2), (2, 2, 2)).view(2, 4, 3)
    torch.testing.assert_close(resized[:, 0, 0], torch.tensor([0.5, 2.5]))
    torch.testing.assert_close(resized, resized[:, :1, :1].expand(2, 4, 3))


@pytest.mark.parametrize("table", [torch.zeros(1, 7, 32), torch.zeros(1, 8, 48), torch.zeros(8)])
def test_table_that_cannot_fit_is_an_error(table):
    model = toy(use_learnable_pos_emb=True)
    with pytest.raises(PretrainedError, match=r"pos_embed|position table of 7 tokens"):
        load_pretrained(model, backbone(toy(1)) | {"pos_embed": table})


# --- refusals ---


def assert_refused_unchanged(model, checkpoint, match):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PretrainedError, match=match) as error:
        load_pretrained(model, checkpoint)
    assert_same(model.state_dict(), before)
    return str(error.value)


def test_another_width_is_an_error_naming_ten():
    weights = toy(embed_dim=48).state_dict()
    message = assert_refused_unchanged(toy(), weights, "30 tensors have another shape")
    assert "patch_embed.proj.bias: (48,) and (32,)" in message
    assert message.count(";") == 9


def test_another_tubelet_size_is_an_error():
    weights = toy(tubelet_size=1).state_dict()
    message = assert_refused_unchanged(toy(), weights, "1 tensors have another shape")
    assert "patch_embed.proj.weight: (32, 3, 1, 16, 16) and (32, 3, 2, 16, 16)" in message


def test_foreign_weights_are_an_error_even_if_tensors_may_be_missing():
    weights = {f"layer{i}.weight": torch.zeros(3) for i in range(12)}
    message = assert_refused_unchanged(toy(), {"model": weights}, "none of 30 tensors of the backbone is in")
    assert "layer9.weight and 2 more" in message
    with pytest.raises(PretrainedError, match="none of 30 tensors"):
        load_pretrained(toy(), weights, allow_missing=True)


MISSING = {
    "one": (["blocks.1.attn.v_bias"], "1 of 30", "blocks.1.attn.v_bias; --allow"),
    "patches": (["patch_embed.proj.weight"], "1 of 30", "patch_embed.proj.weight; --allow"),
    "of all blocks": (
        [f"blocks.{block}.mlp.{name}" for block in range(2) for name in ("fc1.weight", "fc1.bias")],
        "4 of 30",
        r"blocks.\*.mlp.fc1.weight \(2\), blocks.\*.mlp.fc1.bias \(2\); --allow",
    ),
    "beside the last norm": (["fc_norm.bias", "blocks.0.norm1.bias"], "2 of 30", "norm1.bias, fc_norm.bias"),
}


@pytest.mark.parametrize("case", MISSING)
def test_every_tensor_of_the_backbone_must_be_there(case):
    names, count, shown = MISSING[case]
    weights = {name: value for name, value in single_head_weights().items() if name not in names}
    match = rf"^{count} tensors of the backbone are not in the file: .*{shown}"
    assert_refused_unchanged(toy(), weights, match)
    model = toy()
    fresh = {name: model.state_dict()[name].clone() for name in names}
    report = load_pretrained(model, weights, allow_missing=True)
    assert set(report.initialised) == {*names, *HEADS}
    assert_same(model.state_dict(), fresh)
    assert_same(model.state_dict(), {n: v for n, v in weights.items() if not n.startswith("head")})


@pytest.mark.parametrize("kept", [0, 1, 15, 16, 27])
def test_no_part_of_the_backbone_is_enough(kept):
    weights = dict(list(backbone(toy(1)).items())[:kept]) | {"x": torch.ones(1)}
    if kept >= 16:  # both blocks have begun
        assert_refused_unchanged(toy(), weights, rf"^{30 - kept} of 30 tensors.*the file has instead: x; --a")
    else:
        assert_refused_unchanged(toy(), weights, "none of 30|29 of 30|has 1 block, the model 2: --depth 1$")


def test_first_token_s_norm_alone_may_be_fresh():
    weights = {name: value for name, value in backbone(toy(1)).items() if "fc_norm" not in name}
    report = load_pretrained(toy(use_mean_pooling=False), weights)
    assert report.initialised == ["norm.weight", "norm.bias", *HEADS]


@pytest.mark.parametrize(("there", "here"), [(3, 12), (12, 3)])
def test_another_depth_is_named_with_its_flag_alone(there, here):
    with torch.device("meta"):
        weights, model = toy(depth=there).state_dict(), toy(depth=here)
    with pytest.raises(PretrainedError) as error:
        load_pretrained(model, {"model": weights})
    assert str(error.value) == f"the file has {there} blocks, the model {here}: --depth {there}"


@pytest.mark.parametrize(("there", "here"), [(3, 1), (1, 3)])
def test_another_depth_may_be_wanted(there, here):
    weights, model = toy(1, depth=there).state_dict(), toy(depth=here)
    report = load_pretrained(model, weights, allow_missing=True)
    assert_same(model.state_dict(), {name: weights[name] for name in report.loaded})
    assert len(report.loaded) == len([name for name in weights if name in model.state_dict()])


def test_another_depth_and_width_are_another_model():
    weights = toy(embed_dim=48, depth=3).state_dict()
    match = "^the file has 3 blocks of width 48, the model 2 of width 32: choose --model to fit$"
    assert_refused_unchanged(toy(), weights, match)


@pytest.mark.parametrize(
    ("checkpoint", "match"),
    [
        ({"weights": {"a": torch.ones(1)}, "epoch": 1}, "no weights found at the top.*weights, epoch"),
        ({"model": {"a": 1}}, "no weights found under 'model'"),
        ({"model": None}, "no weights found under 'model'"),
        ({}, "no weights found"),
    ],
)
def test_files_without_weights_are_an_error(checkpoint, match):
    assert_refused_unchanged(toy(), checkpoint, match)


def test_names_that_collide_are_an_error():
    weights = backbone(toy(1)) | {"module.fc_norm.bias": torch.zeros(32)}
    assert_refused_unchanged(toy(), weights, "fc_norm.bias")
