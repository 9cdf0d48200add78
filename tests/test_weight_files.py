"""Pretrained weights from files, Hugging Face's folders and the hub: what arrives, and what is refused."""

import argparse
import contextlib
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import MODEL_FLAGS, ROOT, load, only_error
from safetensors.torch import load_file, save_file

import run_alternating_hand_finetuning as run
import utils
from models import (
    AlternatingDualHeadVisionTransformer,
    PretrainedError,
    VisionTransformer,
    find_weights,
    load_pretrained,
)
from utils import UserError

GOLDEN = ROOT / "tests" / "golden" / "hf_videomae"
TOY = dict(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2)
TOY |= dict(qkv_bias=True, all_frames=4)
EXPECTED = load_file(GOLDEN / "expected.safetensors")
CLIPS = EXPECTED["pixel_values"].transpose(1, 2).contiguous()  # to (B, C, T, H, W)


def single_head(source, **kwargs):
    """A single-head model with a source's weights and epsilon, and the report."""
    torch.manual_seed(0)
    found = find_weights(str(source))
    keywords = {**TOY, "num_classes": 5, "norm_eps": found.facts["norm_eps"], **kwargs}
    model = VisionTransformer(**keywords).eval()
    found.check(model)
    return model, load_pretrained(model, found.read())


def logits(model):
    with torch.no_grad():
        return model(CLIPS)


def copy_of_golden(folder, **config):
    """The golden model with other values in its config."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(GOLDEN / "model.safetensors", folder / "model.safetensors")
    values = json.loads((GOLDEN / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))
    return folder


def rewritten(folder, change):
    """The golden model with its weights by other names: `change(name, value)` gives the new pairs."""
    copy_of_golden(folder)
    weights = load_file(folder / "model.safetensors")
    pairs = (pair for name, value in weights.items() for pair in change(name, value))
    save_file(dict(pairs), folder / "model.safetensors")
    return folder


# ---------------------------------------------------------------------------- transformers' layout


def test_logits_are_those_of_transformers():
    model, report = single_head(GOLDEN)
    assert not report.dropped and not report.initialised
    torch.testing.assert_close(logits(model), EXPECTED["logits_1e-12"], rtol=0, atol=2e-5)


def test_epsilon_of_the_config_counts(tmp_path):
    model, _ = single_head(copy_of_golden(tmp_path, layer_norm_eps=1e-2))
    assert {model.blocks[1].norm1.eps, model.fc_norm.eps} == {1e-2}
    model.fc_norm.eps = 1e-5  # transformers has PyTorch's default there, whatever the config says
    torch.testing.assert_close(logits(model), EXPECTED["logits_0.01"], rtol=0, atol=2e-5)
    assert (logits(model) - EXPECTED["logits_1e-12"]).abs().max() > 2e-4


def test_config_without_an_epsilon_means_transformers_own(tmp_path):
    config = json.loads((copy_of_golden(tmp_path) / "config.json").read_text())
    del config["layer_norm_eps"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert find_weights(str(tmp_path)).facts["norm_eps"] == 1e-12


def test_biases_spelt_as_in_the_modules_arrive_and_a_key_bias_changes_nothing(tmp_path):
    def spell(name, value):
        name = name.replace(".q_bias", ".query.bias").replace(".v_bias", ".value.bias")
        yield name, value
        if name.endswith(".query.bias"):
            yield name.replace("query", "key"), torch.ones_like(value)

    model, report = single_head(rewritten(tmp_path, spell))
    assert len(report.dropped) == 2 and all("key.bias" in name for name in report.dropped)
    torch.testing.assert_close(logits(model), EXPECTED["logits_1e-12"], rtol=0, atol=2e-5)


def test_bare_backbone_and_decoder_of_pretraining(tmp_path):
    def spell(name, value):
        if name.startswith("videomae."):
            yield name.removeprefix("videomae."), value

    golden, _ = single_head(GOLDEN)
    model, report = single_head(rewritten(tmp_path / "backbone", spell))
    assert report.initialised == ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    assert torch.equal(model.blocks[1].attn.qkv.weight, golden.blocks[1].attn.qkv.weight)

    def spell_pretraining(name, value):
        if name.startswith("videomae."):
            yield name, value
            yield name.replace("videomae.encoder.layer", "decoder.decoder_layers"), value.clone()
        if name.startswith("fc_norm"):
            yield name.replace("fc_norm", "videomae.layernorm"), value

    model, report = single_head(rewritten(tmp_path / "pretraining", spell_pretraining))
    assert report.initialised == ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    assert set(report.dropped.values()) == {"not in the model"}
    decoder = [name for name in report.dropped if name.startswith("decoder.decoder_layers.1.")]
    assert len(decoder) == 15 and {"norm.weight", "norm.bias"} < set(report.dropped)
    first, _ = single_head(tmp_path / "pretraining", use_mean_pooling=False)
    assert torch.equal(first.norm.weight, golden.fc_norm.weight)


def test_single_classifier_is_reported_as_a_head_that_is_not_there():
    model = AlternatingDualHeadVisionTransformer(**TOY, lh_num_classes=5, rh_num_classes=5)
    report = load_pretrained(model, find_weights(str(GOLDEN)).read())
    assert report.dropped == {"head.weight": "no such head", "head.bias": "no such head"}


def test_names_of_transformers_are_understood_under_a_key_too():
    model = VisionTransformer(**TOY, num_classes=5, norm_eps=1e-12).eval()
    load_pretrained(model, {"epoch": 3, "module": load_file(GOLDEN / "model.safetensors")})
    torch.testing.assert_close(logits(model), EXPECTED["logits_1e-12"], rtol=0, atol=2e-5)


def test_block_without_its_queries_is_refused(tmp_path):
    def spell(name, value):
        if "layer.1.attention.attention.query" not in name:
            yield name, value

    with pytest.raises(PretrainedError, match=r"block 1 has no attention\.attention\.query\.weight"):
        single_head(rewritten(tmp_path, spell))


def test_pickled_weights_and_shards_with_an_index(tmp_path):
    golden, _ = single_head(GOLDEN)
    weights = load_file(GOLDEN / "model.safetensors")
    pickled = copy_of_golden(tmp_path / "pickled")
    torch.save(weights, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert torch.equal(logits(single_head(pickled)[0]), logits(golden))

    sharded = copy_of_golden(tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(weights)}
    for place in set(places.values()):
        save_file({name: weights[name] for name in weights if places[name] == place}, sharded / place)
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert torch.equal(logits(single_head(sharded)[0]), logits(golden))

    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors is missing, which model\.safet"):
        find_weights(str(sharded)).read()
    for weight_map in ({"a": "../pickled/pytorch_model.bin", "b": 1}, {}, None):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError, match="lists no files of weights beside it"):
            find_weights(str(sharded)).read()


def test_file_with_a_folder_s_name_counts_as_its_folder(tmp_path):
    assert find_weights(str(GOLDEN / "model.safetensors")).facts == find_weights(str(GOLDEN)).facts
    shutil.copyfile(GOLDEN / "config.json", tmp_path / "config.json")
    torch.save({}, tmp_path / "other.pth")
    assert not find_weights(str(tmp_path / "other.pth")).facts


V2_CONFIG = {"embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2, "patch_size": 8, "tubelet_size": 2}
V2_CONFIG |= {"qkv_bias": True, "layer_norm_eps": 1e-6, "cos_attn": False, "img_size": 16, "num_classes": 0}


def test_layout_of_the_videomae_v2_repositories(tmp_path):
    golden, _ = single_head(GOLDEN)
    weights = {f"model.{k}": v for k, v in golden.state_dict().items() if "head" not in k}
    save_file(weights, tmp_path / "model.safetensors")
    config = {"model_type": "VideoMAEv2_Base", "model_config": V2_CONFIG}
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = find_weights(str(tmp_path)).facts
    assert facts == {**find_weights(str(GOLDEN)).facts, "norm_eps": 1e-6}
    model, report = single_head(tmp_path)
    assert report.initialised == ["head.weight", "head.bias"]
    assert torch.equal(model.blocks[1].attn.qkv.weight, golden.blocks[1].attn.qkv.weight)


# ---------------------------------------------------------------------------- what contradicts

DIFFERENT = {
    "hidden_size": (64, "embed_dim 64", "--model"),
    "num_hidden_layers": (3, "depth 3", "--depth"),
    "num_attention_heads": (2, "num_heads 2", "--model"),
    "intermediate_size": (128, "mlp_width 128", "--model"),
    "patch_size": ([16, 16], "patch_size 16", "--model"),
    "tubelet_size": (1, "tubelet_size 1", "--tubelet_size"),
    "qkv_bias": (False, "qkv_bias False", "--model"),
    "qv_bias": (False, "qkv_bias False", "--model"),
}


@pytest.mark.parametrize("key", DIFFERENT)
def test_contradiction_names_fact_and_flag(tmp_path, key):
    value, what, flag = DIFFERENT[key]
    with pytest.raises(
        UserError, match=rf"^--finetune {tmp_path}: is for {what} \(.+\): choose {flag} to fit"
    ):
        single_head(copy_of_golden(tmp_path, **{key: value}))


BAD_CONFIGS = [
    ({"model_type": "vivit"}, "describes a model of type 'vivit', not a VideoMAE"),
    ({"hidden_act": "relu"}, "hidden_act is 'relu'; only 'gelu'"),
    ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small'"),
    ({"model_config": {"depth": 2}}, "lacks embed_dim or mlp_ratio"),
    ({"model_config": {**V2_CONFIG, "cos_attn": True}}, "cos_attn is True; only False"),
]


@pytest.mark.parametrize(("values", "message"), BAD_CONFIGS, ids=[next(iter(c[0])) for c in BAD_CONFIGS])
def test_config_of_another_model_is_refused(tmp_path, values, message):
    with pytest.raises(UserError, match=rf"^--finetune {tmp_path}: config\.json: .*{message}"):
        find_weights(str(copy_of_golden(tmp_path, **values)))


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read"), ("[]", "holds a list")])
def test_config_that_cannot_be_read_is_named(tmp_path, text, message):
    (copy_of_golden(tmp_path) / "config.json").write_text(text)
    with pytest.raises(UserError, match=rf"^--finetune {tmp_path}: config\.json {message}"):
        find_weights(str(tmp_path))


def test_folders_that_lack_something(tmp_path):
    copy_of_golden(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"there is no model\.safetensors or .+ in it"):
        find_weights(str(tmp_path)).read()
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=rf"^--finetune {tmp_path}: there is no config\.json in it"):
        find_weights(str(tmp_path))
    with pytest.raises(UserError, match=r"^--finetune /nowhere\.safetensors: there is no such file"):
        find_weights("/nowhere.safetensors")


@pytest.mark.parametrize("name", ["weights.safetensors", "model.safetensors"])
@pytest.mark.parametrize("fault", ["cut", "garbage"])
def test_damaged_safetensors_are_named(tmp_path, name, fault):
    path = tmp_path / name
    shutil.copyfile(GOLDEN / "model.safetensors", path)
    if fault == "cut":
        os.truncate(path, 5000)
    else:
        path.write_bytes(b"\xff" * 5000)
    with pytest.raises(
        UserError, match=rf"^--finetune {path}: .*damaged or no safetensors file: .+"
    ) as error:
        find_weights(str(path)).read()
    assert "\n" not in str(error.value)


def test_damaged_file_of_torch_is_named_once(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match=rf"^--finetune {tmp_path}/w\.pth: (damaged|refused)"):
        find_weights(str(tmp_path / "w.pth")).read()
    copy_of_golden(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match=rf"^--finetune {tmp_path} {tmp_path}/pytorch_model\.bin: "):
        find_weights(str(tmp_path)).read()


# ---------------------------------------------------------------------------- the command line


def hugging_face_names(weights):
    """Our weights as transformers would write them."""
    names = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "attn.proj": "attention.output.dense",
    }
    names |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense", "norm1": "layernorm_before"}
    names |= {"norm2": "layernorm_after", "blocks": "encoder.layer"}
    names |= {"attn.q_bias": "attention.attention.q_bias", "attn.v_bias": "attention.attention.v_bias"}
    for name, value in weights.items():
        if name.startswith("fc_norm."):
            yield name, value
        elif name.endswith("attn.qkv.weight"):
            block = name.split(".")[1]
            for part, weight in zip(("query", "key", "value"), value.chunk(3), strict=True):
                full = f"videomae.encoder.layer.{block}.attention.attention.{part}.weight"
                yield full, weight.contiguous()
        else:
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            yield f"videomae.{name}", value


TINY_CONFIG = {"model_type": "videomae", "hidden_size": 192, "num_hidden_layers": 1, "num_attention_heads": 3}
TINY_CONFIG |= {"intermediate_size": 768, "layer_norm_eps": 1e-4}


@pytest.fixture(scope="module")
def tiny_weights():
    """The backbone of the tiny runs, with random values everywhere."""
    model = run.build_model(run.get_parser().parse_args(MODEL_FLAGS), {"lh": 1, "rh": 1})
    generator = torch.Generator().manual_seed(7)
    weights = {name: value for name, value in model.state_dict().items() if "head" not in name}
    return {name: 0.1 * torch.randn(value.shape, generator=generator) for name, value in weights.items()}


@pytest.fixture(scope="module")
def tiny_folder(tiny_weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf_tiny")
    save_file(dict(hugging_face_names(tiny_weights)), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(TINY_CONFIG))
    return folder


# One epoch of which the rates leave the weights as they were.
STILL = ("--epochs", 1, "--warmup_epochs", 0, "--lr", 0, "--min_lr", 0, "--warmup_lr", 0)
STILL += ("--disable_eval_during_finetuning", "--num_sample", 1, "--batch_size", 8)


def test_run_from_a_folder_has_its_epsilon_and_so_has_the_test_of_its_checkpoint(
    run_main, tiny_flags, tiny_folder, tiny_weights, tmp_path, monkeypatch
):
    result = run_main(*tiny_flags, *STILL, "--finetune", tiny_folder, "--output_dir", tmp_path)
    assert result.code == 0, result.output
    assert "LayerNorm epsilon: 0.0001, the weights' own" in result.output
    checkpoint = load(tmp_path / "checkpoint-last.pth")
    assert checkpoint["args"]["norm_eps"] == 1e-4
    for name, value in tiny_weights.items():
        assert torch.equal(checkpoint["model"][name], value), name

    built, build = [], run.build_model
    monkeypatch.setattr(run, "build_model", lambda *given: built.append(build(*given)) or built[-1])
    result = run_main("--eval", "--resume", tmp_path / "checkpoint-last.pth")
    assert result.code == 0, result.output
    assert built[0].blocks[0].norm1.eps == 1e-4


def test_given_epsilon_wins_and_a_line_says_so(run_main, tiny_flags, tiny_folder, tmp_path):
    flags = ("--finetune", tiny_folder, "--norm_eps", "1e-5", "--output_dir", tmp_path)
    result = run_main(*tiny_flags, *STILL, *flags)
    assert result.code == 0, result.output
    line = "LayerNorm epsilon: 1e-05, by --norm_eps; the weights are made for 0.0001"
    assert line in result.output
    assert load(tmp_path / "checkpoint-last.pth")["args"]["norm_eps"] == 1e-5


def test_checkpoint_of_a_run_hands_its_epsilon_on(tiny_flags, tiny_weights, full_run, tmp_path):
    saved = load(full_run / "checkpoint-last.pth")
    saved["args"]["norm_eps"] = 1e-4
    torch.save(saved, tmp_path / "first.pth")
    flags = [*map(str, tiny_flags), "--finetune", str(tmp_path / "first.pth")]
    assert run.args_of_run(flags, 1).norm_eps == 1e-4
    assert run.args_of_run([*flags, "--norm_eps", "1e-5"], 1).norm_eps == 1e-5
    for args in (argparse.Namespace(model="vit_base"), {"lr": 0.1}):  # other trainers'
        torch.save({"model": tiny_weights, "args": args}, tmp_path / "other.pth")
        assert find_weights(str(tmp_path / "other.pth")).facts == {}


def test_weights_of_another_number_of_heads_are_refused_in_one_line(
    run_main, tiny_flags, tiny_folder, tmp_path
):
    shutil.copytree(tiny_folder, tmp_path / "six")
    (tmp_path / "six" / "config.json").write_text(json.dumps(TINY_CONFIG | {"num_attention_heads": 6}))
    flags = ("--finetune", tmp_path / "six", "--output_dir", tmp_path / "run")
    result = run_main(*tiny_flags, *flags)
    assert result.code == 1
    assert "is for num_heads 6 (the model's: 3): choose --model to fit" in only_error(result.output)


def test_plain_safetensors_file_starts_a_run(run_main, tiny_flags, tiny_weights, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(tiny_weights, path)
    result = run_main(*tiny_flags, *STILL, "--finetune", path, "--output_dir", tmp_path / "run")
    assert result.code == 0, result.output
    checkpoint = load(tmp_path / "run" / "checkpoint-last.pth")
    assert checkpoint["args"]["norm_eps"] == 1e-6 and "LayerNorm epsilon" not in result.output
    assert torch.equal(
        checkpoint["model"]["blocks.0.attn.qkv.weight"], tiny_weights["blocks.0.attn.qkv.weight"]
    )


def test_rank_0_alone_reads_and_all_have_the_weights(fork_ranks, tiny_flags, tiny_folder, tiny_weights):
    args = run.get_args([*tiny_flags, "--finetune", str(tiny_folder)])

    def start(rank):
        utils.init_distributed_mode("cpu")
        if rank:
            run.find_weights = None  # calling it would be an error
        model = run.build_model(args, {"lh": 4, "rh": 3})
        said = run.load_pretrained_file(model, args)
        utils.leave_process_group()
        return {"said": said, "model": model.state_dict()}

    results, _ = fork_ranks(start)
    for result in results:
        assert "LayerNorm epsilon" in result["said"]
        assert all(torch.equal(result["model"][name], value) for name, value in tiny_weights.items())


# ---------------------------------------------------------------------------- the hub

COMMIT = "a" * 40


class Hub(http.server.ThreadingHTTPServer):
    """What the library asks a hub for: a file's description (HEAD) and its content (GET)."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files, self.asked, self.cut = {}, [], False
        self.refusals = {}  # repository -> (status, code) of its errors
        self.refusals["org/gated"] = (403, "GatedRepo")
        self.refusals["org/broken"] = (400, "")

    def fill(self, repo, folder, path="", revision="main"):
        for file in Path(folder).iterdir():
            inner = f"{path}/{file.name}".removeprefix("/")
            self.files[f"/{repo}/resolve/{revision}/{inner}"] = file.read_bytes()

    def downloads(self, name=""):
        return [
            path for method, path in self.asked if method == "GET" and "/resolve/" in path and name in path
        ]


class HubHandler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        content = self.answer()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content[: len(content) // 2] if self.server.cut else content)

    def answer(self):
        self.server.asked.append((self.command, self.path))
        content = self.server.files.get(self.path)
        if content is None:
            repo, _, rest = self.path[1:].partition("/resolve/")
            known = {path[1:].partition("/resolve/")[0] for path in self.server.files}
            missing = "EntryNotFound" if rest.startswith(("main/", "v2/")) else "RevisionNotFound"
            not_found = (404, missing if repo in known else "RepoNotFound")
            status, code = self.server.refusals.get(repo, not_found)
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            if code == "EntryNotFound":
                self.send_header("X-Repo-Commit", COMMIT)
            content = b""
        else:
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def use_hub(hub, tmp_path, monkeypatch):
    """The library asks the local hub, and has an empty cache; the function sets offline mode."""
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return lambda offline: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)


LOADS = """
import sys, types
# The package without its other modules, whose imports take long.
sys.modules["models"] = types.ModuleType("models")
sys.modules["models"].__path__ = ["models"]
from models.weight_files import find_weights
source = find_weights(sys.argv[1])
print(source.facts["norm_eps"], float(source.read()["classifier.bias"].sum()))
"""


def test_environment_s_endpoint_cache_and_offline_mode_are_the_library_s_own(hub, tmp_path):
    hub.fill("org/tiny", GOLDEN, "k400/base")
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_OFFLINE", None)

    def loads(source, **more):
        command = [sys.executable, "-c", LOADS, source]
        options = {"cwd": ROOT, "capture_output": True, "text": True, "check": False, "timeout": 120}
        return subprocess.run(command, env=environment | more, **options)

    online = loads("hf://org/tiny/k400/base")
    bias = load_file(GOLDEN / "model.safetensors")["classifier.bias"].sum()
    assert online.stdout == f"1e-12 {float(bias)}\n", online.stderr
    assert hub.downloads() == [
        f"/org/tiny/resolve/main/k400/base/{name}" for name in ("config.json", "model.safetensors")
    ]
    asked = len(hub.asked)
    offline = loads("hf://org/tiny/k400/base", HF_HUB_OFFLINE="1")
    assert offline.stdout == online.stdout, offline.stderr
    assert len(hub.asked) == asked


def test_second_time_nothing_is_downloaded_and_a_silent_hub_is_no_hindrance(hub, use_hub):
    hub.fill("org/tiny", GOLDEN)
    first = find_weights("hf://org/tiny").read()
    again = find_weights("hf://org/tiny").read()
    assert len(hub.downloads()) == 2
    hub.shutdown()
    hub.server_close()
    silent = find_weights("hf://org/tiny").read()
    for weights in (again, silent):
        assert all(torch.equal(weights[name], value) for name, value in first.items())


def test_hub_that_falls_silent_is_waited_for_once(hub, use_hub, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    hub.fill("org/tiny", GOLDEN)
    source = find_weights("hf://org/tiny")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(
        UserError, match=rf"model\.safetensors or .+ and {hub.url} did not give it \(.*refused"
    ):
        source.read()
    for_all_names = len(waits)
    with pytest.raises(UserError, match=r"config\.json is not in the cache, and"):
        find_weights("hf://org/other")
    assert len(waits) == 2 * for_all_names > 0


@pytest.mark.parametrize(
    "address",
    ["hf://org/tiny/sub/w.safetensors@v2", "hf://org/tiny@v2/sub/w.safetensors", "hf://org/tiny@v2/sub"],
)
def test_files_folders_and_revisions(hub, use_hub, tmp_path, address):
    folder = copy_of_golden(tmp_path / "source")
    shutil.copyfile(folder / "model.safetensors", folder / "w.safetensors")
    hub.fill("org/tiny", folder, "sub", "v2")
    assert "classifier.bias" in find_weights(address).read()
    assert all("/resolve/v2/sub/" in path for path in hub.downloads())
    assert bool(find_weights(address).facts) == address.endswith("sub")  # a folder has a config


def test_shards_and_pickles_of_the_hub(hub, use_hub, tmp_path):
    folder = copy_of_golden(tmp_path / "source")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "part.bin")
    index = {"weight_map": dict.fromkeys(weights, "part.bin")}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    hub.fill("org/tiny", folder)
    model, report = single_head("hf://org/tiny")
    assert not report.dropped
    use_hub(offline=True)
    assert torch.equal(logits(single_head("hf://org/tiny")[0]), logits(model))


HUB_ERRORS = [
    ("hf://org", "wants hf://org/repo"),
    ("hf://org/tiny@v1/config.json@v2", "wants hf://org/repo"),
    ("hf://org/none", "there is no repository org/none at http://127.0.0.1:"),
    ("hf://org/gated", "needs its owner's permission"),
    ("hf://org/broken", "config.json is not in the cache, and http://127.0.0.1:"),
    ("hf://org/tiny@v9", "the repository has no revision 'v9'"),
    ("hf://org/tiny/none.safetensors", "there is no none.safetensors in it"),
    ("hf://org/tiny/none", "there is no config.json in it"),
    ("hf://o rg/tiny", "config.json was not downloaded"),
]


@pytest.mark.parametrize(("address", "message"), HUB_ERRORS, ids=[case[0] for case in HUB_ERRORS])
def test_what_the_hub_refuses_is_one_line_with_the_address(hub, use_hub, address, message):
    hub.fill("org/tiny", GOLDEN)
    with pytest.raises(UserError) as error:
        find_weights(address).read()
    text = str(error.value)
    assert text.startswith(f"--finetune {address}: ") and message in text and "\n" not in text


def test_offline_without_a_copy_is_one_line(hub, use_hub, run_main, tiny_flags, tmp_path):
    hub.fill("org/tiny", GOLDEN)
    use_hub(offline=True)
    result = run_main(*tiny_flags, "--finetune", "hf://org/tiny", "--output_dir", tmp_path / "run")
    assert result.code == 1
    line = only_error(result.output)
    assert "--finetune hf://org/tiny: HF_HUB_OFFLINE is set, and config.json is not in the cache" in line
    assert line.endswith(str(tmp_path / "cache"))
    assert not [path for _, path in hub.asked if "resolve" in path]


def test_weights_whose_config_cannot_be_asked_for_are_refused(hub, use_hub, tmp_path):
    """Their epsilon would be another, without a sign."""
    hub.fill("org/tiny", GOLDEN)
    address = "hf://org/tiny/model.safetensors"
    huggingface_hub.hf_hub_download("org/tiny", "model.safetensors")
    use_hub(offline=True)
    with pytest.raises(UserError, match=rf"^--finetune {address}: .*config\.json is not in the cache"):
        find_weights(address)
    use_hub(offline=False)
    online = find_weights(address)
    use_hub(offline=True)
    assert find_weights(address).facts == online.facts != {}


@pytest.mark.parametrize("says", ["the file", "the hub"])
def test_weights_without_a_config_are_found_offline_too(hub, use_hub, tmp_path, says):
    weights, facts = load_file(GOLDEN / "model.safetensors"), {"norm_eps": 1e-3}
    (tmp_path / "in").mkdir()
    description = {"architecture": json.dumps(facts)} if says == "the file" else None
    save_file(weights, tmp_path / "in" / "model.safetensors", description)
    hub.fill("org/tiny", tmp_path / "in")
    address = "hf://org/tiny/model.safetensors"
    find_weights(address).read()
    use_hub(offline=True)
    assert find_weights(address).facts == (facts if description else {})


def test_broken_off_download_is_an_error_and_is_made_again(hub, use_hub, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library's waits between its tries
    hub.fill("org/tiny", GOLDEN)
    hub.cut = True
    with pytest.raises(UserError, match=r"^--finetune hf://org/tiny: config\.json was not downloaded"):
        find_weights("hf://org/tiny")
    hub.cut = False
    assert "classifier.bias" in find_weights("hf://org/tiny").read()


def test_run_from_the_hub(hub, use_hub, run_main, tiny_flags, tiny_folder, tmp_path):
    hub.fill("org/tiny", tiny_folder)
    result = run_main(*tiny_flags, *STILL, "--finetune", "hf://org/tiny", "--output_dir", tmp_path / "run")
    assert result.code == 0, result.output
    assert "hf://org/tiny: pretrained weights: " in result.output
    assert len(hub.downloads("model.safetensors")) == 1
    assert load(tmp_path / "run" / "checkpoint-last.pth")["args"]["norm_eps"] == 1e-4
