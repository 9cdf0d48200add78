"""Weights by the names of mmaction2, timm, Lightning and mmengine: what arrives, and what it computes."""

import shutil

import pytest
import timm
import torch
from conftest import ROOT
from safetensors.torch import load_file

from models import PretrainedError, VisionTransformer, find_weights, load_pretrained
from models.other_layouts import KEY_BIAS, unify_names
from utils import read_checkpoint

GOLDEN = ROOT / "tests" / "golden"
TOY = dict(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2, qkv_bias=True)
TOY |= dict(all_frames=4, num_classes=5)
HEAD = ["head.weight", "head.bias"]


def toy(seed=0, **kwargs):
    torch.manual_seed(seed)
    return VisionTransformer(**{**TOY, **kwargs}).eval()


def loaded(source, **kwargs):
    """A model with a source's weights, as `--finetune` loads them without any other flag, and the report."""
    model = toy()
    found = find_weights(str(source))
    found.check(model)
    return model, load_pretrained(model, found.read(), **kwargs)


# ------------------------------------------------------------------------- mmaction2 and mmengine


@pytest.fixture(scope="module")
def expected():
    return load_file(GOLDEN / "mmaction2_videomae" / "expected.safetensors")


def assert_is_mmaction2_s(model, report, expected):
    assert report.initialised == HEAD
    assert set(report.dropped) == {"pos_embed", "cls_head.fc_cls.weight", "cls_head.fc_cls.bias"}
    with torch.no_grad():
        features = model.forward_features(expected["clips"])
    torch.testing.assert_close(features, expected["features"], rtol=0, atol=2e-6)


def test_checkpoint_of_mmengine_computes_the_features_of_mmaction2(expected):
    assert_is_mmaction2_s(*loaded(GOLDEN / "mmaction2_videomae" / "epoch_1.pth"), expected)


def test_published_form_without_the_trainer_s_records(expected, tmp_path):
    content = read_checkpoint(GOLDEN / "mmaction2_videomae" / "epoch_1.pth")
    torch.save({"meta": content["meta"], "state_dict": content["state_dict"]}, tmp_path / "published.pth")
    assert_is_mmaction2_s(*loaded(tmp_path / "published.pth"), expected)


def test_tensors_of_mmaction2_arrive_bit_for_bit():
    theirs = read_checkpoint(GOLDEN / "mmaction2_videomae" / "epoch_1.pth")["state_dict"]
    model, _ = loaded(GOLDEN / "mmaction2_videomae" / "epoch_1.pth")
    ours = model.state_dict()
    pairs = {"patch_embed.proj.weight": "patch_embed.projection.weight"}
    pairs |= {"blocks.1.mlp.fc1.weight": "blocks.1.mlp.layers.0.0.weight"}
    pairs |= {"blocks.1.mlp.fc2.bias": "blocks.1.mlp.layers.1.bias"}
    pairs |= {name: name for name in ("blocks.0.attn.q_bias", "blocks.0.norm2.weight", "fc_norm.bias")}
    for own_name, name in pairs.items():
        assert torch.equal(ours[own_name], theirs[f"backbone.{name}"])


def test_records_of_mmengine_run_nothing_and_keep_no_method():
    scalars = read_checkpoint(GOLDEN / "mmaction2_videomae" / "epoch_1.pth")["message_hub"]["log_scalars"]
    record = scalars["train/loss"]
    assert type(record).__module__ == "utils" and vars(record)["_log_history"].shape == (1,)
    assert set(vars(record).get("_statistics_methods", {}).values()) <= {None}


# ----------------------------------------------------------------------------- timm and Lightning


def test_checkpoint_of_lightning_with_timm_s_blocks_computes_their_logits():
    model, report = loaded(GOLDEN / "lightning" / "last.ckpt")
    keys = [f"blocks.{block}.attn.qkv.bias (keys)" for block in range(2)]
    assert report.dropped == dict.fromkeys(keys, KEY_BIAS)
    assert not report.initialised
    assert f"dropped ({KEY_BIAS}): {', '.join(keys)}" in report.summary()
    expected = load_file(GOLDEN / "lightning" / "expected.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(model(expected["clips"]), expected["logits"], rtol=0, atol=2e-6)


@pytest.fixture
def timm_model():
    """timm's smallest vision transformer, with every bias drawn."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=2, global_pool="avg").eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_(std=0.5)
    return model


def as_video(weights):
    """An image model's weights with the patches of a video model."""
    name = "patch_embed.proj.weight"
    return weights | {name: weights[name].unsqueeze(2).repeat(1, 1, 2, 1, 1)}


def of_tiny(**kwargs):
    sizes = dict(img_size=224, patch_size=16, embed_dim=192, num_heads=3, mlp_ratio=4, all_frames=2)
    return toy(**sizes, norm_eps=1e-6, **kwargs)


@pytest.mark.parametrize("keys", ["zero", "drawn"])
def test_blocks_of_a_timm_model_compute_the_same(timm_model, keys):
    weights = {name: value.clone() for name, value in timm_model.state_dict().items()}
    if keys == "zero":
        for name in weights:
            if name.endswith("qkv.bias"):
                weights[name][192:384] = 0
    model = of_tiny()
    report = load_pretrained(model, as_video(weights))
    said = [name for name, reason in report.dropped.items() if reason == KEY_BIAS]
    assert len(said) == (2 if keys == "drawn" else 0)
    bias = weights["blocks.1.attn.qkv.bias"]
    assert torch.equal(model.blocks[1].attn.q_bias, bias[:192])
    assert torch.equal(model.blocks[1].attn.v_bias, bias[384:])
    timm_model.load_state_dict(weights)
    tokens = torch.randn(2, 9, 192)
    with torch.no_grad():
        ours = tokens
        for block in model.blocks:
            ours = block(ours)
        torch.testing.assert_close(ours, timm_model.blocks(tokens), rtol=0, atol=1e-5)


def test_image_model_s_patches_are_refused_by_their_shape(timm_model):
    with pytest.raises(
        PretrainedError, match=r"patch_embed\.proj\.weight: \(192, 3, 16, 16\) and \(192, 3, 2"
    ):
        load_pretrained(of_tiny(), timm_model.state_dict())


@pytest.mark.parametrize("options", [dict(init_values=0.1), dict(qk_norm=True)], ids=lambda o: next(iter(o)))
def test_blocks_of_another_architecture_are_refused(options):
    source = timm.create_model("vit_tiny_patch16_224", depth=2, **options)
    weights = as_video(source.state_dict())
    names = {
        "init_values": r"blocks\.\*\.ls1\.gamma \(2\)",
        "qk_norm": r"blocks\.\*\.attn\.q_norm\.weight \(2\)",
    }
    match = rf"another architecture.*{names[next(iter(options))]}.*--allow_missing leaves them out"
    with pytest.raises(PretrainedError, match=match):
        load_pretrained(of_tiny(), weights)
    report = load_pretrained(of_tiny(), weights, allow_missing=True)
    assert "not in the model" in report.dropped.values()


# ------------------------------------------------------------------------------------- both at once


def test_names_that_are_there_twice_are_refused():
    weights = toy(1).state_dict()
    for name in ("blocks.0.mlp.layers.1.bias", "patch_embed.projection.weight", "blocks.0.attn.qkv.bias"):
        with pytest.raises(PretrainedError, match="twice"):
            unify_names(weights | {name: torch.ones(48)}, {})
        with pytest.raises(PretrainedError, match="twice"):
            unify_names({name: torch.ones(48)} | weights, {})


@pytest.mark.parametrize("prefix", ["net.", "student.backbone."])
def test_unknown_prefix_is_named_with_its_flag(tmp_path, prefix):
    shutil.copyfile(GOLDEN / "lightning" / "last.ckpt", tmp_path / "last.ckpt")
    content = read_checkpoint(tmp_path / "last.ckpt")
    weights = {k.replace("model.", prefix): v for k, v in content["state_dict"].items()}
    torch.save({"state_dict": weights | {"other.weight": torch.ones(1)}}, tmp_path / "last.ckpt")
    with pytest.raises(PretrainedError, match=rf"none of 30 tensors.* under --model_prefix {prefix}$"):
        loaded(tmp_path / "last.ckpt")
    model, report = loaded(tmp_path / "last.ckpt", model_prefix=prefix)
    assert not report.initialised
    reference, _ = loaded(GOLDEN / "lightning" / "last.ckpt")
    assert torch.equal(model.blocks[1].attn.v_bias, reference.blocks[1].attn.v_bias)


def test_hugging_face_names_within_a_wrapper(tmp_path):
    folder = GOLDEN / "hf_videomae"
    sizes = dict(embed_dim=32, num_heads=4)
    weights = {f"model.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    model, plain = toy(**sizes), toy(**sizes)
    assert not load_pretrained(model, {"state_dict": weights}).dropped
    load_pretrained(plain, load_file(folder / "model.safetensors"))
    ours = model.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in plain.state_dict().items())
