"""Runs that were never made: folders such as the trainer leaves, with known truth, in moments."""

import contextlib
import dataclasses
import json

import numpy as np

from engine_for_alternating_finetuning import Alternation
from engine_for_finetuning import (
    Curves,
    ViewScores,
    accuracy_metrics,
    merge_views,
    with_mean_top1,
    write_clips_and_reasons,
    write_results,
)
from run_alternating_hand_finetuning import get_parser
from utils import write_json

HANDS = ("lh", "rh")
NAMES = ("turn <script>alert(1)</script>", "push & pull", "lift", "place", "hold")


@dataclasses.dataclass(frozen=True)
class Made:
    """How large a made-up run is."""

    classes: int = 5
    clips: int = 60
    views: int = 2
    epochs: int = 3
    steps: int = 40  # an epoch
    turn: int = 10
    log_interval: int = 5
    ranks: int = 1
    seed: int = 0
    skill: float = 2.0  # how far a label's logit stands out
    unreadable: int = 0
    ema: bool = True
    names: tuple = ()  # of the classes
    data: object = None  # folder with lh_v0/ and rh_v0/


def labels_of(made, hand):
    """Labels of the test clips, few of the later classes; the same for every run of that size."""
    rng = np.random.default_rng(HANDS.index(hand))
    weights = 1 / np.arange(1, made.classes + 1) ** 0.7
    return rng.choice(made.classes, made.clips, p=weights / weights.sum())


def clip_names(made):
    return [f"S{number // 100:02}/clip {number:04}.mp4" for number in range(made.clips)]


def scores_of(made, hand, shift=0.0):
    """Views' logits that favour the label, and by a fixed rule its neighbours."""
    rng = np.random.default_rng([made.seed, HANDS.index(hand), round(100 * shift)])
    labels = np.repeat(labels_of(made, hand), made.views)
    logits = rng.normal(size=(len(labels), made.classes))
    logits += np.repeat(rng.normal(size=(made.clips, made.classes)), made.views, axis=0)
    rows = np.arange(len(labels))
    logits[rows, labels] += made.skill + shift
    logits[rows, (labels + 1) % made.classes] += 0.6 * made.skill * (labels % 3 == 0)
    names = np.repeat(clip_names(made), made.views).tolist()
    views = np.tile(np.arange(made.views), made.clips)
    return ViewScores(names, logits, labels, views, np.zeros_like(views))


def write_test(made, folder, kinds=("", "ema")):
    """Results files and `metrics.json`."""
    merged = {}
    for kind in kinds:
        metrics = {}
        for hand in HANDS:
            scores = scores_of(made, hand, 0.3 if kind else 0.0)
            clip = np.arange(len(scores.names)) // made.views
            for rank in range(made.ranks):
                mine = np.flatnonzero(clip % made.ranks == rank)
                part = ViewScores(
                    [scores.names[i] for i in mine],
                    *(getattr(scores, name)[mine] for name in ("logits", "labels", "chunks", "splits")),
                )
                write_results(folder / kind / f"{rank}_{hand}.txt", part)
            metrics[hand] = accuracy_metrics(merge_views(scores), made.unreadable)
            if made.unreadable:
                bad = [(f"bad {number}.mp4", "holds no video") for number in range(made.unreadable)]
                write_clips_and_reasons(folder / kind / f"unreadable_{hand}.txt", bad)
        merged[kind] = with_mean_top1(metrics)
    write_json(folder / "metrics.json", merged[""] | {"weights": "last", "ema": merged.get("ema")})


def step_loss(made, hand, step):
    """What a step of a hand's costs: it falls, and rises again over the other's turns."""
    within = step % made.turn / made.turn
    return (
        0.4 + 3 * np.exp(-2.5 * step / (made.epochs * made.steps)) + 0.2 * (1 - within) + 0.1 * (hand == "rh")
    )


def write_training(made, folder):
    """`log.txt` and TensorBoard's files, with the running means that the trainer records."""
    alternation = Alternation(HANDS, made.turn)
    rng = np.random.default_rng(made.seed)
    rows = []
    (folder / "tensorboard").mkdir(exist_ok=True)
    with contextlib.closing(Curves(folder / "tensorboard", 0, False)) as curves:
        for epoch in range(made.epochs):
            sums = {hand: [0.0, 0] for hand in HANDS}
            for done in range(epoch * made.steps + 1, (epoch + 1) * made.steps + 1):
                hand = alternation.hand_at(done - 1)
                sums[hand][0] += step_loss(made, hand, done - 1)
                sums[hand][1] += 1
                if done % made.log_interval == 0 or done == (epoch + 1) * made.steps:
                    values = {f"{h}_loss": total / n for h, (total, n) in sums.items() if n}
                    rate = 1e-3 * np.cos(0.5 * np.pi * done / (made.epochs * made.steps))
                    values |= {"lr": rate, "grad_norm": float(rng.lognormal(hand == "rh", 0.3))}
                    curves.add(done, {f"train/{name}": value for name, value in values.items()})
            row = {f"train_{name}": value for name, value in values.items()}
            row |= {"train_seconds": 60.0, "train_seconds_a_step": 0.5, "train_data_wait": 0.1}
            row |= {"train_clips_per_second": 8.0, "train_host_memory_gib": 1.5}
            for group in ("val", "val_ema"):
                best = 30 + 50 * (epoch + 1) / made.epochs
                row |= {f"{group}_{hand}_top1": best + 3 * (group == "val") for hand in HANDS}
                row |= {f"{group}_{hand}_loss": 2 / (epoch + 1) for hand in HANDS}
                curves.add(done, {f"{group}/{hand}_top1": best for hand in HANDS})
            rows.append({"epoch": epoch, **row})
    (folder / "log.txt").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_settings(made, folder, **flags):
    """`args.json` and `environment.json`."""
    args = vars(get_parser().parse_args([]))
    args |= {"alternation_steps": made.turn, "epochs": made.epochs, "log_interval": made.log_interval}
    args |= {"model_ema": made.ema, "output_dir": str(folder), "seed": made.seed}
    if made.data is not None:
        args |= {f"{hand}_data_path": str(made.data / f"{hand}_v0") for hand in HANDS}
        for hand in HANDS if made.names else ():
            lines = "".join(f"{label} {name}\n" for label, name in enumerate(made.names))
            path = made.data / f"{hand}_v0" / "mapping.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(lines)
    write_json(folder / "args.json", args | flags)
    environment = {
        "started": "2026-11-24T14:00:00+00:00", "mode": "train", "command": ["run.py", "--epochs", "3"],
        "python": "3.11.0", "platform": "Linux", "packages": {"torch": "2.13.0"}, "cpu": "A processor",
        "cpus": 2, "memory_gb": 8.0, "processes": 1, "devices": {"cpu": 1},
        "commit": {"id": "0123456789abcdef0123456789abcdef01234567", "modified": False},
    }  # fmt: skip
    write_json(folder / "environment.json", [environment])


def write_run(folder, made=Made(), **flags):
    """A whole folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_settings(made, folder, **flags)
    write_training(made, folder)
    write_test(made, folder, ("", "ema") if made.ema else ("",))
    return folder
