"""The two-headed model against numbers and names measured from the published one, and its rules."""

import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import models
from models import HANDS, AlternatingDualHeadVisionTransformer, HandLogits, VisionTransformer

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = {"e5": 1e-5, "e6": 1e-6}
KEY_FILES = {"base": "b", "small": "small", "large": "large", "huge": "huge", "giant": "giant"}
TOY = dict(img_size=32, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2, qkv_bias=True)
TOY |= dict(all_frames=4, tubelet_size=2, lh_num_classes=5, rh_num_classes=3)


def toy(seed=0, **kwargs):
    torch.manual_seed(seed)
    return AlternatingDualHeadVisionTransformer(**{**TOY, **kwargs})


def toy_clips(batch=2, seed=1):
    return torch.randn(batch, 3, 4, 32, 32, generator=torch.Generator().manual_seed(seed))


def model_name(size):
    return f"vit_{size}_patch{14 if size == 'giant' else 16}_224_alternating"


@cache
def golden():
    return dict(np.load(GOLDEN / "model_tiny.npz"))


def golden_model(eps, **kwargs):
    model = AlternatingDualHeadVisionTransformer(
        img_size=64,
        patch_size=16,
        embed_dim=48,
        depth=3,
        num_heads=4,
        mlp_ratio=4,
        qkv_bias=True,
        lh_num_classes=7,
        rh_num_classes=5,
        all_frames=8,
        tubelet_size=2,
        norm_eps=eps,
        **kwargs,
    )
    with np.load(GOLDEN / "model_tiny_params.npz") as params:
        model.load_state_dict({name: torch.from_numpy(params[name]) for name in params.files})
    return model.eval()


def golden_input():
    return torch.from_numpy(golden()["input"]).float()


def close(actual, expected, atol):
    np.testing.assert_allclose(actual.detach().double().numpy(), expected, rtol=0, atol=atol)


# --- the published numbers ---


def test_position_table_is_published():
    model = golden_model(1e-6)
    assert model.pos_embed.dtype == torch.float32
    close(model.pos_embed, golden()["pos_embed"], atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_match_published(variant):
    model, clips = golden_model(VARIANTS[variant]), golden_input()
    with torch.no_grad():
        close(model.forward_features(clips), golden()[f"{variant}_features"], atol=5e-6)
        for hand in HANDS:
            close(model(clips, hand), golden()[f"{variant}_{hand}"], atol=2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_double_precision_outputs_match_published(variant):
    model, clips = golden_model(VARIANTS[variant]).double(), golden_input().double()
    with torch.no_grad():
        close(model.forward_features(clips), golden()[f"{variant}_features_f64"], atol=1e-10)
        for hand in HANDS:
            close(model(clips, hand), golden()[f"{variant}_{hand}_f64"], atol=1e-10)


def test_tolerances_tell_the_eps_variants_apart():
    model, clips = golden_model(1e-5), golden_input()
    with torch.no_grad():
        for actual, name, atol in (
            (model.forward_features(clips), "e6_features", 5e-6),
            (model(clips, "lh"), "e6_lh", 2e-6),
        ):
            with pytest.raises(AssertionError, match="Not equal to tolerance"):
                close(actual, golden()[name], atol)


def test_norm_eps_default_and_explicit_norm_layer():
    assert toy().fc_norm.eps == toy().blocks[0].norm1.eps == 1e-6
    assert toy(norm_eps=1e-5).blocks[1].norm2.eps == 1e-5
    assert toy(norm_layer=nn.LayerNorm, norm_eps=1e-3).fc_norm.eps == nn.LayerNorm(1).eps


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("with_cp", [False, True])
def test_loss_and_gradients_match_published(variant, with_cp):
    model = golden_model(VARIANTS[variant], with_cp=with_cp).train()
    loss = F.cross_entropy(model(golden_input(), "lh"), torch.tensor([1, 3]))
    close(loss, golden()[f"{variant}_loss"], atol=2e-6)
    loss.backward()
    names = [str(name) for name in golden()["param_names"]]
    assert names == [name for name, _ in model.named_parameters()]
    for i, (name, param) in enumerate(model.named_parameters()):
        assert (param.grad is None) == golden()[f"{variant}_grad_none"][i], name
        if param.grad is None:
            assert name.startswith("rh_head.")
            continue
        grad, norm = param.grad.double(), golden()[f"{variant}_grad_l2"][i]
        generator = torch.Generator().manual_seed(zlib.crc32(f"{name}#proj".encode()))
        direction = torch.randn(param.shape, generator=generator).double()
        assert grad.norm().item() == pytest.approx(norm, rel=1e-5, abs=1e-7), name
        atol = 1e-5 * max(1, norm)
        close(grad.sum(), golden()[f"{variant}_grad_sum"][i], atol)
        close((grad * direction).sum(), golden()[f"{variant}_grad_proj"][i], atol)


# --- names and shapes ---


def names_and_shapes(model):
    return [(name, list(value.shape)) for name, value in model.state_dict().items()]


@pytest.mark.parametrize("size", KEY_FILES)
def test_state_dict_is_published(size):
    keys = json.loads((GOLDEN / f"keys_vit_{KEY_FILES[size]}.json").read_text())
    single_keys = list(keys["videomaev2_k710"]["state_dict"].items())
    with torch.device("meta"):
        single = VisionTransformer(num_classes=710, **models.VIT_SIZES[size])
        dual = timm.create_model(model_name(size), lh_num_classes=75, rh_num_classes=24)
    assert names_and_shapes(single) == single_keys
    width = single.embed_dim
    heads = [("lh_head.weight", [75, width]), ("lh_head.bias", [75])]
    heads += [("rh_head.weight", [24, width]), ("rh_head.bias", [24])]
    assert names_and_shapes(dual) == single_keys[:-2] + heads
    if "alternating_75_75" in keys:
        dual.reset_classifier(75, 75)
        expected = list(keys["alternating_75_75"]["state_dict"].items())
        assert names_and_shapes(dual) == expected
    assert not list(dual.buffers())
    assert single.get_num_layers() == models.VIT_SIZES[size]["depth"]


def test_options_have_published_names():
    model = toy(use_learnable_pos_emb=True, init_values=0.1, use_mean_pooling=False)
    names = list(model.state_dict())
    assert names[0] == "pos_embed"
    assert names[3:5] == ["blocks.0.gamma_1", "blocks.0.gamma_2"]
    assert "norm.weight" in names
    assert "fc_norm.weight" not in names
    assert model.no_weight_decay() == {"pos_embed", "cls_token"}


# --- timm ---


def test_timm_creates_with_the_published_keywords():
    model = timm.create_model(
        "vit_base_patch16_224_alternating",
        pretrained=False,
        img_size=32,
        lh_num_classes=7,
        rh_num_classes=5,
        all_frames=4,
        tubelet_size=2,
        drop_rate=0.1,
        drop_path_rate=0.3,
        attn_drop_rate=0.2,
        head_drop_rate=0.4,
        use_mean_pooling=False,
        init_scale=0.5,
        with_cp=True,
        depth=2,
    )
    assert isinstance(model, AlternatingDualHeadVisionTransformer)
    assert (model.lh_num_classes, model.rh_num_classes, model.get_num_layers()) == (7, 5, 2)
    assert model.patch_embed.grid_size == (2, 2, 2)
    assert model.patch_embed.num_patches == 8
    assert model.patch_embed.patch_size == (16, 16)
    assert (model.pos_drop.p, model.blocks[0].attn.attn_drop) == (0.1, 0.2)
    assert model.blocks[1].mlp.drop2.p == model.blocks[1].attn.proj_drop.p == 0.1
    assert model.blocks[1].mlp.drop1.p == 0
    assert isinstance(model.blocks[0].drop_path, nn.Identity)
    assert model.blocks[1].drop_path.drop_prob == pytest.approx(0.3)
    assert model.head_dropout.p == 0.4
    assert model.fc_norm is None
    assert model.with_cp


def test_tiny_is_registered_and_depth_is_free():
    with torch.device("meta"):
        assert timm.create_model(model_name("tiny")).get_num_layers() == 12
        model = timm.create_model(model_name("tiny"), depth=4)
    assert (model.embed_dim, model.get_num_layers(), model.blocks[0].attn.num_heads) == (192, 4, 3)


def test_pretrained_is_refused():
    with pytest.raises(ValueError, match="load_pretrained"):
        timm.create_model(model_name("tiny"), pretrained=True)


# --- heads ---


def test_both_equals_the_single_calls():
    model, clips = toy(init_scale=1).eval(), toy_clips()
    both = model(clips, "both")
    assert isinstance(both, HandLogits)
    assert (both.lh.shape, both.rh.shape) == ((2, 5), (2, 3))
    assert torch.equal(both.lh, model(clips, "lh"))
    assert torch.equal(both.rh, model(clips, "rh"))


def test_both_runs_the_backbone_once():
    model, calls = toy().eval(), []
    model.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    model(toy_clips(), "both")
    assert len(calls) == 1


@pytest.mark.parametrize(("hand", "other"), [("lh", "rh"), ("rh", "lh")])
def test_other_head_gets_no_gradient(hand, other):
    model = toy()
    model(toy_clips(), hand).sum().backward()
    assert all(param.grad is None for param in model.get_classifier(other).parameters())
    assert all(param.grad is not None for param in model.get_classifier(hand).parameters())


@pytest.mark.parametrize("hand", ["left", "LH", "", None])
def test_unknown_hand_is_refused(hand):
    with pytest.raises(ValueError, match="hand_type"):
        toy()(toy_clips(), hand)
    with pytest.raises(ValueError, match="hand"):
        toy().get_classifier("both")


@pytest.mark.parametrize("hand", HANDS)
def test_init_scale_acts_on_both_heads(hand):
    plain = toy(embed_dim=64, lh_num_classes=400, rh_num_classes=400, init_scale=1)
    scaled = toy(embed_dim=64, lh_num_classes=400, rh_num_classes=400, init_scale=0.001)
    assert plain.get_classifier(hand).weight.std().item() == pytest.approx(0.02, rel=0.05)
    torch.testing.assert_close(scaled.get_classifier(hand).weight, plain.get_classifier(hand).weight * 0.001)
    assert plain.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not plain.blocks[0].mlp.fc1.bias.any()
    assert not plain.get_classifier(hand).bias.any()


@pytest.mark.parametrize("hand", HANDS)
def test_head_drop_rate_acts_on_both_heads(hand):
    model = toy(init_scale=1, head_drop_rate=0.9)
    features = torch.ones(64, 32)
    kept = model.eval().forward_head(features, hand)
    dropped = model.train().forward_head(features, hand)
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(dropped[0], dropped[1])


def test_reset_classifier_makes_fresh_heads():
    model = toy(init_scale=0.5).double()
    old = model.lh_head.weight
    model.reset_classifier(9, 0)
    assert model.lh_head.weight is not old
    assert model.lh_head.weight.dtype == torch.float64
    assert 0 < model.lh_head.weight.std() < 0.013
    assert isinstance(model.rh_head, nn.Identity)
    assert (model.lh_num_classes, model.rh_num_classes) == (9, 0)
    assert model.get_classifier() == (model.lh_head, model.rh_head)
    with pytest.raises(ValueError, match="num_classes=-1"):
        model.reset_classifier(3, -1)


def test_single_head_model():
    torch.manual_seed(0)
    toy_keywords = {k: v for k, v in TOY.items() if "num_classes" not in k}
    model = VisionTransformer(num_classes=6, **toy_keywords)
    assert model(toy_clips()).shape == (2, 6)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert torch.equal(model(toy_clips()), model.forward_features(toy_clips()))


# --- backbone options ---


def test_first_token_pooling():
    model, clips = toy(use_mean_pooling=False).eval(), toy_clips()
    seen = []
    model.norm.register_forward_hook(lambda _module, _args, out: seen.append(out))
    features = model.forward_features(clips)
    assert torch.equal(features, seen[0][:, 0])


@pytest.mark.parametrize("name", ["gamma_1", "gamma_2"])
def test_layer_scale_acts(name):
    plain, scaled, clips = toy(), toy(init_values=1), toy_clips()
    gammas = {k: v for k, v in scaled.state_dict().items() if "gamma" in k}
    scaled.load_state_dict(plain.state_dict() | gammas)
    torch.testing.assert_close(plain.forward_features(clips), scaled.forward_features(clips))
    nn.init.zeros_(getattr(scaled.blocks[1], name))
    assert not torch.allclose(plain.forward_features(clips), scaled.forward_features(clips))
    assert (toy(init_values=0.1).blocks[0].gamma_1 == 0.1).all()


@pytest.mark.parametrize("option", ["drop_rate", "attn_drop_rate", "drop_path_rate"])
def test_dropouts_act_in_training_only(option):
    model, clips = toy(**{option: 0.5}), toy_clips(8)
    first, second = (model.train().forward_features(clips) for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (model.eval().forward_features(clips) for _ in range(2))
    assert torch.equal(first, second)


def test_drop_rate_acts_on_the_tokens_themselves():
    model, clips = toy(depth=0, drop_rate=0.5), toy_clips()
    assert not torch.equal(model.forward_features(clips), model.eval().forward_features(clips))


def test_checkpointing_gives_the_same_gradients_under_dropout():
    grads = []
    for with_cp in (False, True):
        model = toy(with_cp=with_cp, drop_path_rate=0.5, attn_drop_rate=0.3, drop_rate=0.2)
        torch.manual_seed(5)
        model(toy_clips(), "lh").square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*grads, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize(("training", "expected"), [(True, 2), (False, 0)])
def test_checkpointing_recomputes_in_training_only(training, expected):
    model, calls = toy(with_cp=True).train(training), []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    loss = model(toy_clips(), "lh").sum()
    calls.clear()
    loss.backward()
    assert len(calls) == expected


def test_runs_are_bit_equal():
    results = []
    for _ in range(2):
        model = toy(drop_path_rate=0.3)
        logits = model(toy_clips(), "rh")
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# --- token masks ---


def test_mask_that_keeps_all_changes_nothing():
    model, clips = toy(), toy_clips()
    mask = torch.zeros(2, model.patch_embed.num_patches, dtype=torch.bool)
    assert torch.equal(model(clips, "both", mask).lh, model(clips, "both").lh)


def test_masked_tokens_are_not_seen_and_not_computed():
    model, clips, lengths = toy().eval(), toy_clips(), []
    model.blocks[0].register_forward_hook(lambda _m, _a, out: lengths.append(out.shape[1]))
    mask = torch.zeros(2, 2, 2, 2, dtype=torch.bool)  # (B, T', H', W')
    mask[0, :, 0, 1] = True  # the upper right patch of clip 0, the lower left one of clip 1
    mask[1, :, 1, 0] = True
    masked = model(clips, "lh", mask.flatten(1))
    changed = clips.clone()
    changed[0, :, :, :16, 16:] = 9
    changed[1, :, :, 16:, :16] = 9
    assert torch.equal(masked, model(changed, "lh", mask.flatten(1)))
    assert lengths == [6, 6]
    assert not torch.equal(model(clips, "lh"), model(changed, "lh"))
    assert not torch.equal(masked, model(clips, "lh", mask.flip(0).flatten(1)))


@pytest.mark.parametrize(
    "mask",
    [
        torch.zeros(2, 7, dtype=torch.bool),
        torch.zeros(2, 8),
        torch.ones(2, 8, dtype=torch.bool),
        torch.arange(16).view(2, 8) < 3,
    ],
    ids=["shape", "type", "all dropped", "unequal rows"],
)
def test_bad_masks_are_refused(mask):
    with pytest.raises(ValueError, match="token_mask"):
        toy()(toy_clips(), "lh", mask)


# --- types, devices, errors ---


def test_position_table_stays_float32_in_half_models():
    model = toy()
    table = model.pos_embed.clone()
    model.half()
    assert model.patch_embed.proj.weight.dtype == torch.float16
    assert torch.equal(model.pos_embed, table)
    assert model.bfloat16()(toy_clips().bfloat16(), "lh").dtype == torch.bfloat16


def test_meta_model_runs_once_filled():
    source = toy(init_scale=1).eval()
    with torch.device("meta"):
        model = AlternatingDualHeadVisionTransformer(**TOY).eval()
        assert model(torch.empty(2, 3, 4, 32, 32), "both").rh.shape == (2, 3)
    assigned = model.load_state_dict(source.state_dict(), assign=True)
    assert not assigned.missing_keys
    assert torch.equal(model(toy_clips(), "lh"), source(toy_clips(), "lh"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_position_table_moves_with_the_weights():
    model = toy().cuda()
    assert model.pos_embed.is_cuda
    torch.testing.assert_close(
        model.eval()(toy_clips().cuda(), "lh").cpu(), toy().eval()(toy_clips(), "lh"), rtol=1e-3, atol=1e-4
    )


def test_position_table_survives_to_empty():
    model = toy().to("meta").to_empty(device="cpu")
    assert torch.equal(model.pos_embed, toy().pos_embed)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        (dict(img_size=40), ["img_size=40", "patch_size=16"]),
        (dict(img_size=0), ["img_size=0", "patch_size=16"]),
        (dict(all_frames=5), ["num_frames=5", "tubelet_size=2"]),
        (dict(num_heads=3), ["dim=32", "num_heads=3"]),
    ],
)
def test_sizes_that_do_not_divide_are_refused(keywords, words):
    with pytest.raises(ValueError) as error:
        toy(**keywords)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("shape", [(2, 3, 4, 32, 48), (2, 3, 8, 32, 32), (2, 4, 3, 32, 32), (3, 4)])
def test_wrong_clip_shape_is_refused(shape):
    with pytest.raises(ValueError) as error:
        toy()(torch.zeros(shape), "lh")
    assert "(B, 3, 4, 32, 32)" in str(error.value)
    assert str(shape) in str(error.value)


def test_patch_embedding_is_the_strided_convolution():
    model = toy(img_size=(32, 48), patch_size=(16, 8))
    clips = torch.randn(2, 3, 4, 32, 48)
    expected = model.patch_embed.proj(clips).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.patch_embed(clips), expected, rtol=1e-5, atol=1e-5)
    assert model.patch_embed.grid_size == (2, 2, 6)
