"""Seeds, schedules, launchers, files that are whole or not there, and checkpoints that run no code."""

import argparse
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import utils
from optim_factory import create_schedules
from utils import UserError, cosine_scheduler, derive_seed, read_checkpoint

GOLDEN = json.loads((Path(__file__).parent / "golden" / "schedules.json").read_text())
CRASHED = [name for name, case in GOLDEN.items() if "crash" in case]


# ---------------------------------------------------------------------------------------- seeds


def test_derived_seeds_are_the_same_everywhere_and_for_ever():
    assert derive_seed(0, "lh", 0, 0) == 4092679975971656091
    assert derive_seed(0, "rh", 12, 345, "view", 1) == 8442642906488164446


def test_derived_seeds_differ_between_neighbours_and_fit_63_bits():
    keys = [
        (seed, hand, i, j) for seed in (0, 1) for hand in ("lh", "rh") for i in range(20) for j in range(20)
    ]
    seeds = {derive_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert np.mean([seed & 1 for seed in seeds]) == pytest.approx(0.5, abs=0.08)
    assert derive_seed(1, "2") != derive_seed("1", 2) != derive_seed(12)


def test_global_generators_follow_the_seed():
    def draws(seed):
        utils.seed_global_generators(seed)
        return np.random.rand(), float(torch.rand(()))

    large = derive_seed("more than 32 bits")
    assert draws(large) == draws(large) != draws(large + 1)


# ------------------------------------------------------------------------------------ schedules


@pytest.mark.parametrize("name", [name for name in GOLDEN if name not in CRASHED])
def test_schedule_is_the_published_one(name):
    schedule = cosine_scheduler(**GOLDEN[name]["args"])
    assert schedule.dtype == np.float64
    assert len(schedule) == GOLDEN[name]["length"]
    np.testing.assert_allclose(schedule, GOLDEN[name]["values"], rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("name", [name for name in CRASHED if "longer" in name])
def test_too_long_a_warm_up_is_said(name):
    with pytest.raises(ValueError, match=r"a warm-up of \d+ steps does not fit into 30 steps"):
        cosine_scheduler(**GOLDEN[name]["args"])


def test_warm_up_steps_need_no_warm_up_epochs():
    schedule = cosine_scheduler(1e-3, 1e-6, 10, 50, warmup_epochs=0, warmup_steps=37)
    with_epochs = GOLDEN["B_warmup_steps_37_and_epochs_5"]["values"]
    np.testing.assert_allclose(schedule, with_epochs, rtol=1e-12, atol=1e-18)


def schedules(clips_a_step=64, steps_per_epoch=10, **changed):
    args = {
        "lr": 1e-3,
        "min_lr": 1e-6,
        "warmup_lr": 1e-8,
        "epochs": 10,
        "warmup_epochs": 2,
        "warmup_steps": -1,
    }
    args |= {"weight_decay": 0.1, "weight_decay_end": None, **changed}
    return create_schedules(argparse.Namespace(**args), clips_a_step, steps_per_epoch)


def test_rates_scale_with_the_clips_of_a_step_and_start_at_the_warm_up_rate():
    rates, decays = schedules()
    assert rates[0] == pytest.approx(1e-8 / 4, rel=1e-12)
    assert rates.max() == rates[19] == rates[20] == pytest.approx(1e-3 / 4, rel=1e-12)
    assert 1e-6 / 4 < rates[-1] < 2e-6
    np.testing.assert_allclose(schedules(512)[0], 8 * rates, rtol=1e-12)
    assert decays.tolist() == [0.1] * 100
    assert schedules(weight_decay_end=0.4)[1][-1] == pytest.approx(0.4, rel=1e-2)
    assert schedules(warmup_lr=0)[0][0] == 0


def test_rate_has_no_jumps_between_epochs():
    rates, _ = schedules(steps_per_epoch=200)
    assert np.abs(np.diff(rates[400:])).max() < 1e-3 / 4 / 1000
    assert (np.diff(rates[400:]) < 0).all()


# ------------------------------------------------------------------------------------ launchers

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SLURM = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "7"}
SLURM |= {"SLURM_STEP_TASKS_PER_NODE": "4(x4)", "SLURM_STEP_NODELIST": "gpu[03-06]"}
OMPI = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("env", "itp", "ranks"),
    [
        ({}, False, None),
        (TORCHRUN, False, (3, 8, 1, 2)),
        (SLURM, False, (5, 16, 1, 4)),
        ({**SLURM, **TORCHRUN}, False, (3, 8, 1, 2)),
        # A batch shell or an interactive allocation: no step of several tasks.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}, False, None),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, False, None),
        (OMPI, False, None),
        (OMPI, True, (2, 4, 0, 1)),
        ({**OMPI, **TORCHRUN, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, True, (2, 4, 0, 2)),
    ],
)
def test_ranks_come_from_the_launcher_that_counts(env, itp, ranks):
    assert utils._launcher_ranks(env, itp) == ranks


def test_open_mpi_without_its_variables_is_an_error():
    with pytest.raises(UserError, match="--dist_on_itp: OMPI_COMM_WORLD_RANK is not set"):
        utils._launcher_ranks(TORCHRUN, True)


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("gpu03", "gpu03"),
        ("gpu03,gpu07", "gpu03"),
        ("gpu[03-05,7],x1", "gpu03"),
        ("gpu-a[7]", "gpu-a7"),
        ("n1.cluster,n2.cluster", "n1.cluster"),
    ],
)
def test_first_host_of_a_slurm_node_list(nodelist, host):
    assert utils._first_slurm_host(nodelist) == host


def test_meeting_place():
    both = {"MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert utils._rendezvous({**both, **SLURM}, "env://") == "env://"
    assert utils._rendezvous(SLURM, "tcp://b:2") == "tcp://b:2"
    url = utils._rendezvous({**SLURM, "SLURM_JOB_ID": "123456"}, "env://")
    assert url == "tcp://gpu03:23456"
    other = utils._rendezvous({**SLURM, "SLURM_JOB_ID": "123457"}, "env://")
    assert url != other
    with pytest.raises(UserError, match="MASTER_ADDR"):
        utils._rendezvous({}, "env://")


def test_plain_python_is_one_process(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_")) or name in (*TORCHRUN, "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name)
    dist = utils.init_distributed_mode("cpu")
    assert (dist.rank, dist.world_size, dist.active, dist.is_main) == (0, 1, False, True)
    assert dist.device.type == "cpu"
    assert not torch.distributed.is_initialized()
    assert utils.gather_objects("x") == ["x"]
    assert utils.broadcast_object("x") == "x"


def test_process_group_is_joined_as_the_flags_say(monkeypatch):
    joined = {}
    monkeypatch.setattr(
        utils.dist, "init_process_group", lambda backend, **options: joined.update(options, backend=backend)
    )
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    place = utils.init_distributed_mode("cpu", "tcp://node0:1234", world_size=2, timeout_minutes=7)
    assert (place.rank, place.world_size) == (1, 2)
    assert joined["init_method"] == "tcp://node0:1234"
    assert joined["backend"] == "gloo"
    assert joined["timeout"].total_seconds() == 7 * 60
    with pytest.raises(UserError, match="--world_size 3: the launcher started 2"):
        utils.init_distributed_mode("cpu", "tcp://node0:1234", world_size=3)


def test_precision_by_name():
    cpu = torch.device("cpu")
    names = {"auto": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    assert {name: utils.pick_amp_dtype(name, cpu) for name in names} == names


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_gpus_compute_in_bf16_where_it_is_native(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert utils.pick_amp_dtype("auto", torch.device("cuda", 0)) == dtype


# ---------------------------------------------------------------------------------------- files


def test_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")

    def write_half():
        with utils.atomic_open(path) as file:
            file.write(b"half of")
            file.flush()
            assert path.read_text() == "old"
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_replaces_the_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    utils.write_json(path, {"old": 1})
    utils.write_json(path, {"path": tmp_path, "number": 1.5})
    assert json.loads(path.read_text()) == {"path": str(tmp_path), "number": 1.5}
    assert list(path.parent.iterdir()) == [path]


def test_written_files_have_the_usual_rights(tmp_path):
    utils.write_text(tmp_path / "ours", "x")
    (tmp_path / "usual").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "checkpoint-last.pth"
    utils.save_checkpoint(path, {"epoch": 1})
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        utils.save_checkpoint(path, {"epoch": 2, "cannot": lambda: None})
    assert read_checkpoint(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_epoch_log_has_each_epoch_once_over_resumes(tmp_path):
    path = tmp_path / "log.txt"
    log = utils.EpochLog(path)
    for epoch in range(4):
        log.append({"epoch": epoch, "run": 1})
    resumed = utils.EpochLog(path, start_epoch=2)
    assert len(path.read_text().splitlines()) == 4  # nothing is lost before something is won
    resumed.append({"epoch": 2, "run": 2})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["epoch"], row["run"]) for row in rows] == [(0, 1), (1, 1), (2, 2)]


def test_epoch_log_drops_lines_that_are_no_rows(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text('{"epoch": 0}\n{"epo\n[1]\n\n')
    utils.EpochLog(path, start_epoch=1).append({"epoch": 1})
    assert path.read_text() == '{"epoch": 0}\n{"epoch": 1}\n'


# ---------------------------------------------------------------------------------- checkpoints


def old_spelling(path):
    """Renames numpy's private package inside a checkpoint to what numpy 1 called it."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data.replace(b"cnumpy._core.", b"cnumpy.core."))


@pytest.mark.parametrize("numpy_one", [False, True])
@pytest.mark.parametrize("lazy", [False, True])
def test_files_of_the_published_trainer_are_read(tmp_path, numpy_one, lazy):
    path = tmp_path / "checkpoint-best.pth"
    content = {
        "model": {"w": torch.arange(3.0)},
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(1e-3), "betas": (0.9, 0.999)}]},
        "epoch": "best",
        "scaler": {},
        "args": argparse.Namespace(lr=np.float64(0.5), opt_betas=None, model="vit", n=np.int64(3)),
        "lr_schedule": np.linspace(0, 1, 3),
    }
    torch.save(content, path)
    if numpy_one:
        old_spelling(path)
        assert b"numpy._core" not in path.read_bytes()
    loaded = read_checkpoint(path, lazy=lazy)
    assert torch.equal(loaded["model"]["w"], torch.arange(3.0))
    assert (loaded["epoch"], loaded["scaler"]) == ("best", {})
    assert (loaded["args"].lr, loaded["args"].model, loaded["args"].n) == (0.5, "vit", 3)
    assert loaded["lr_schedule"].tolist() == [0, 0.5, 1]


class Malicious:
    def __init__(self, marker):
        self._marker = marker

    def __reduce__(self):
        return (Path.touch, (self._marker,))


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_malicious_file_is_refused_and_not_executed(tmp_path, form):
    path, marker = tmp_path / "evil.pth", tmp_path / "executed"
    content = {"model": {}, "args": Malicious(marker)}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError) as error:
        read_checkpoint(path, "--finetune")
    assert not marker.exists()
    assert str(error.value).startswith(f"--finetune {path}: ")
    assert "\n" not in str(error.value)
    if form == "torch":
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert marker.exists()  # the file would have done it


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "no dict"])
def test_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "checkpoint-last.pth"
    torch.save({"w": torch.zeros(5000)} if damage != "no dict" else torch.zeros(3), path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:9000])
    elif damage in ("text", "empty"):
        path.write_text("hello\n" * (damage == "text"))
    with pytest.raises(UserError) as error:
        read_checkpoint(path)
    assert str(error.value).startswith(f"--resume {path}: ")
    assert "\n" not in str(error.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--resume .*gone\.pth: there is no such file"):
        read_checkpoint(tmp_path / "gone.pth")


@pytest.mark.parametrize("links", [True, False])
def test_second_name_of_a_checkpoint_survives_a_new_first_one(tmp_path, monkeypatch, links):
    def no_links(self, target):
        raise OSError("this file system has no links")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
    first, second = tmp_path / "checkpoint-last.pth", tmp_path / "checkpoint-0.pth"
    second.write_text("old")
    utils.save_checkpoint(first, {"epoch": 0})
    utils.copy_checkpoint(first, second)
    utils.save_checkpoint(first, {"epoch": 1})
    assert [read_checkpoint(path)["epoch"] for path in (first, second)] == [1, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-0.pth", "checkpoint-last.pth"]


def test_step_checkpoints_that_were_written_first_are_pruned(tmp_path):
    # Of a run that started anew in a folder with files of an earlier one, whose numbers are higher.
    written = ["step-9", "step-10", "0", "last", "best", "step-2", "step-4"]
    for time, name in enumerate(written):
        path = tmp_path / f"checkpoint-{name}.pth"
        path.touch()
        os.utime(path, ns=(time, time))
    utils.prune_step_checkpoints(tmp_path, 2)
    left = {path.name[11:-4] for path in tmp_path.iterdir()}
    assert left == {"0", "last", "best", "step-2", "step-4"}
    utils.prune_step_checkpoints(tmp_path, 2)
    assert len(list(tmp_path.iterdir())) == 5


class Gpus:
    """Stands in for `torch.cuda` on a node with GPUs; moving to one needs its index."""

    def __init__(self, count):
        self.count, self.chosen = count, []

    def install(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: self.count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: self.count)
        monkeypatch.setattr(torch.cuda, "set_device", self.chosen.append)


@pytest.mark.parametrize(
    ("device", "gpus", "local_rank", "expected"),
    [
        ("auto", 1, 0, "cuda:0"),
        ("cuda", 1, 0, "cuda:0"),
        ("auto", 8, 0, "cuda:0"),
        ("auto", 8, 5, "cuda:5"),
        ("cuda", 1, 5, "cuda:0"),  # a scheduler shows each process its own GPU alone
        ("cuda:3", 8, 5, "cuda:3"),
        ("auto", 0, 0, "cpu"),
        ("cpu", 8, 5, "cpu"),
    ],
)
def test_each_process_takes_its_gpu(monkeypatch, device, gpus, local_rank, expected):
    node = Gpus(gpus)
    node.install(monkeypatch)
    expected = torch.device(expected)
    assert utils._choose_device(device, local_rank) == expected
    # `torch.cuda.set_device` refuses a device without an index.
    assert node.chosen == [expected] * (expected.type == "cuda")


@pytest.mark.parametrize(("device", "local_rank"), [("cuda:8", 0), ("auto", 8), ("foo", 0), ("cuda0", 0)])
def test_device_that_is_not_there_is_an_error(monkeypatch, device, local_rank):
    Gpus(8).install(monkeypatch)
    with pytest.raises(UserError, match="--device"):
        utils._choose_device(device, local_rank)


def test_names_that_are_no_unicode_are_written_as_they_are(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    utils.write_text(tmp_path / "list.txt", name)
    assert (tmp_path / "list.txt").read_bytes() == b"caf\xe9.mp4"


def test_log_is_json_where_a_figure_is_not_finite(tmp_path):
    utils.EpochLog(tmp_path / "log.txt").append({"epoch": 0, "grad_norm": float("inf"), "loss": 0.5})
    text = (tmp_path / "log.txt").read_text()
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert row == {"epoch": 0, "grad_norm": None, "loss": 0.5}
