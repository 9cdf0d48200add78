"""The alternation: whose turn it is, training a hand at a time, evaluating both.

Shapes: B clips, N views of a batch, C classes. A *step* is an optimizer step, counted over the whole
run; each has `update_freq` micro steps.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from engine_for_finetuning import (
    ClipScores,
    DataWait,
    EpochClock,
    ViewScores,
    accuracy_metrics,
    mean_cross_entropy,
    memory_gib,
    merge_views,
    read_results,
    score_batches,
    with_mean_top1,
    write_clips_and_reasons,
    write_predictions,
    write_results,
)
from utils import (
    PASSING,
    LiveLine,
    Preempted,
    UserError,
    all_reduce_sum,
    average_gradients,
    broadcast_object,
    derive_seed,
    gather_objects,
    on_main,
    seed_global_generators,
    write_json,
)

log = logging.getLogger(__name__)

ToClips = Callable[..., torch.Tensor]
# Encloses what all ranks end in the same way: with Preempted, or not (`utils.StopSignals.together`).
Together = Callable[[], contextlib.AbstractContextManager[None]]
Look = Callable[[str, str, ClipScores], None]  # at a set of weights' merged clips of a hand, on rank 0


def _nothing(*given: Any) -> None:
    """What a hook does that nobody set."""


# ------------------------------------------------------------------------------- whose turn it is


@dataclasses.dataclass(frozen=True)
class Alternation:
    """Which hand trains at a step: a pure function of the step, the same on every rank.

    Source: ADH-ViT (Polyphony); there the turn starts anew every epoch, here it runs on.
    """

    hands: tuple[str, ...]
    steps_a_turn: int

    def hand_at(self, step: int) -> str:
        """The hand that trains at an optimizer step."""
        return self.hands[step // self.steps_a_turn % len(self.hands)]

    def steps_before(self, step: int, hand: str) -> int:
        """How many of the first `step` optimizer steps were the hand's."""
        rounds, rest = divmod(step, self.steps_a_turn * len(self.hands))
        rest -= self.hands.index(hand) * self.steps_a_turn
        return rounds * self.steps_a_turn + min(max(rest, 0), self.steps_a_turn)


class Passes(Protocol):
    """Endless shuffled passes over a hand's clips."""

    def at(self, position: int) -> tuple[int, int]:
        """(pass, clip) at a position of the endless walk."""


def training_batches(
    alternation: Alternation,
    passes: Mapping[str, Passes],
    steps: range,
    batch_size: int,
    update_freq: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[list[tuple[str, int, int]]]:
    """The clips of every micro batch of a rank, known before the run starts.

    Each hand walks its passes without a gap, whatever the turns, the epochs and the ranks: the
    ranks of a micro step share consecutive clips.

    Yields:
        `batch_size` keys (hand, pass, clip), all of one hand.
    """
    clips_a_step = batch_size * update_freq * world_size
    for step in steps:
        hand = alternation.hand_at(step)
        first = alternation.steps_before(step, hand) * clips_a_step
        for micro in range(update_freq):
            start = first + (micro * world_size + rank) * batch_size
            yield [(hand, *passes[hand].at(start + i)) for i in range(batch_size)]


def steps_an_epoch(list_lengths: Iterable[int], clips_a_step: int) -> int:
    """Optimizer steps an epoch: those that walk the longer list once, whichever hand has them.

    Raises:
        UserError: the longer list is shorter than one step.
    """
    longest = max(list_lengths)
    if longest < clips_a_step:
        raise UserError(
            f"the longer list has {longest} clips, fewer than the {clips_a_step} of one step: lower "
            "--batch_size or --update_freq, or use fewer processes"
        )
    return longest // clips_a_step


# --------------------------------------------------------------------------------- one update


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Where and how precisely this process computes; the same in training and evaluation."""

    device: torch.device
    amp_dtype: torch.dtype  # float32: no mixed precision

    def autocast(self) -> contextlib.AbstractContextManager:
        """Mixed precision, where there is any."""
        enabled = self.amp_dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=enabled)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The run's fixed training settings, as the engine needs them."""

    runtime: Runtime
    alternation: Alternation
    steps_per_epoch: int
    clips_a_step: int  # over all ranks
    seed: int
    rank: int
    log_interval: int  # steps
    cutmix_region: str = "frame"
    save_interval: int = 0  # steps between step checkpoints; 0: none


class Updater(Protocol):
    """What makes the optimizer steps: `optim_factory.GradientUpdater`."""

    update_freq: int
    lr_schedule: np.ndarray
    weight_decay_schedule: np.ndarray
    first_bad_step: torch.Tensor  # on the device; -1: none
    bad_loss: torch.Tensor  # on the device: whether this rank's own loss was not finite

    def set_rates(self, step: int) -> None:
        """Sets the rates of a step."""

    def backward(self, loss: torch.Tensor, step: int) -> None:
        """Adds gradients of a micro step."""

    def step(self, step: int) -> torch.Tensor:
        """Makes the step; returns the gradients' norm."""


class NonFiniteLoss(UserError):
    """The loss or the gradients became NaN or infinite; every rank raises it at the same step."""


# -------------------------------------------------------------------------------------- meters


class HandMeters:
    """An epoch's sums for each hand; on the device, so that no step waits for them."""

    def __init__(self, hands: Sequence[str], device: torch.device, sums: Any = None):
        """Starts from `sums`, as `state` gave them, or from nothing."""
        self._hands = tuple(hands)
        # A row a hand: sum of losses, views that were right, views, views whose labels were mixed.
        start = torch.zeros(len(hands), 4) if sums is None else torch.tensor(sums, dtype=torch.float64)
        self.sums = start.to(device, torch.float64)

    def update(self, hand: str, loss: torch.Tensor, hits: torch.Tensor, views: int, mixed: bool) -> None:
        """Adds a micro step: mean loss over its views, hits, number of views, mixed or not."""
        row = self.sums[self._hands.index(hand)]
        for i, value in enumerate((loss.double() * views, hits, views, views * mixed)):
            row[i] += value

    @contextlib.contextmanager
    def whole_step(self) -> Iterator[None]:
        """Forgets what was added inside, if the step did not come to its end."""
        before = self.sums.clone()
        try:
            yield
        except Preempted:
            self.sums = before
            raise

    def averages(self, sums: np.ndarray) -> dict[str, float]:
        """{`lh_loss`: ..., `lh_top1`: ...} of sums over ranks.

        A hand that had no turn is left out; so is its accuracy where labels are mixed.
        """
        result: dict[str, float] = {}
        for hand, (loss, hits, views, mixed) in zip(self._hands, sums, strict=True):
            if views:
                result[f"{hand}_loss"] = float(loss / views)
            if views and not mixed:
                result[f"{hand}_top1"] = float(100.0 * hits / views)
        return result


def _sum_over_ranks(*tensors: torch.Tensor) -> list[np.ndarray]:
    """Sums tensors over ranks and reads them, waiting for the device once."""
    flat = torch.cat([tensor.double().flatten() for tensor in tensors])
    sizes = [tensor.numel() for tensor in tensors]
    return np.split(all_reduce_sum(flat).cpu().numpy(), np.cumsum(sizes)[:-1])


# ------------------------------------------------------------------------------------ training


class AlternatingTrainer:
    """Makes the optimizer steps of a run; `train_one_epoch_alternating` drives it."""

    def __init__(
        self,
        model: nn.Module,
        batches: Iterator[Any],
        updater: Updater,
        criterion: nn.Module,
        recipe: Recipe,
        to_clips: ToClips,
        mixups: Mapping[str, Any],
        ema: Any = None,
        draw_token_mask: Callable[[int, np.random.Generator], torch.Tensor] | None = None,
        together: Together = contextlib.nullcontext,
    ):
        self.model, self.batches, self.updater, self.recipe = model, batches, updater, recipe
        self.criterion, self.to_clips, self.mixups, self.ema = criterion, to_clips, mixups, ema
        self.draw_token_mask, self.together = draw_token_mask, together
        self.data_wait = DataWait(recipe.runtime.device)
        self.bad: list[Any] = []
        # Names of the last micro batches, for the message of a non-finite loss.
        self._recent: collections.deque = collections.deque(
            maxlen=2 * recipe.log_interval * updater.update_freq
        )

    def optimizer_step(self, step: int, meters: HandMeters) -> torch.Tensor:
        """All micro steps of one optimizer step; returns the gradient norm.

        Raises:
            Preempted: on all ranks, before weights or meters have changed.
        """
        with meters.whole_step():
            return self._micro_steps(step, meters)

    def _micro_steps(self, step: int, meters: HandMeters) -> torch.Tensor:
        hand = self.recipe.alternation.hand_at(step)
        self.updater.set_rates(step)
        for micro in range(self.updater.update_freq):
            batch = self._next_batch(step, hand)
            is_last = micro == self.updater.update_freq - 1
            with contextlib.nullcontext() if is_last else self._no_sync():
                loss = self._forward_loss(batch, step, micro, meters)
                self.updater.backward(loss, step)
        if isinstance(self.model, DistributedDataParallel):
            average_gradients(unwrap(self.model).get_classifier(hand).parameters())
        norm = self.updater.step(step)
        if self.ema is not None:
            self.ema.update(unwrap(self.model))
        return norm

    def _no_sync(self) -> contextlib.AbstractContextManager:
        distributed = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if distributed else contextlib.nullcontext()

    def _next_batch(self, step: int, hand: str) -> Any:
        # No rank computes before all have their clips: it would wait inside a library for a rank that
        # stops without them, and could not hear a signal there.
        with self.together(), self.data_wait.measure():
            batch = next(self.batches)
        if batch.hand != hand:
            raise RuntimeError(f"step {step} trains {hand}, but the loader served {batch.hand}")
        self.bad += batch.bad
        self._recent.append((step, batch.names))
        return batch

    def _forward_loss(self, batch: Any, step: int, micro: int, meters: HandMeters) -> torch.Tensor:
        """Loss of a micro step; its random draws follow from (seed, rank, step, micro step)."""
        recipe, hand = self.recipe, batch.hand
        seed = derive_seed(recipe.seed, recipe.rank, step, micro)
        seed_global_generators(seed)
        clips = self.to_clips(batch.frames.to(recipe.runtime.device, non_blocking=True), batch.erase_boxes)
        labels = batch.labels[batch.clip_of_view].to(recipe.runtime.device, non_blocking=True)
        targets = labels
        mixup = self.mixups.get(hand)
        if mixup is not None:
            clips, targets = mix_clips(mixup, clips, labels, recipe.cutmix_region)
        token_mask = None
        if self.draw_token_mask is not None:
            token_mask = self.draw_token_mask(len(clips), np.random.default_rng(seed))
        with recipe.runtime.autocast():
            logits = self.model(clips, hand, token_mask)
            loss = self.criterion(logits, targets)
        hits = (logits.detach().argmax(dim=1) == labels).sum()
        meters.update(hand, loss.detach(), hits, len(clips), mixup is not None)
        return loss

    def read_sums(self, meters: HandMeters) -> tuple[np.ndarray, int]:
        """The meters' sums and the number of bad clips to collect, over ranks; waits for the device.

        Raises:
            NonFiniteLoss: on every rank, once any rank's loss or gradients were not finite.
        """
        is_bad = self.updater.first_bad_step >= 0
        bad_clips = is_bad.new_full((), len(self.bad), dtype=torch.long)
        ranks_that_are_bad, n_bad_clips, sums = _sum_over_ranks(is_bad, bad_clips, meters.sums)
        if ranks_that_are_bad[0]:
            raise NonFiniteLoss(self._describe_bad_step())
        return sums.reshape(meters.sums.shape), int(n_bad_clips[0])

    def _describe_bad_step(self) -> str:
        first = int(self.updater.first_bad_step)
        names = [name for step, batch in self._recent if step == first for name in batch]
        reports = broadcast_object(gather_objects((first, bool(self.updater.bad_loss), names)))
        step = min(first for first, _, _ in reports if first >= 0)
        # The all-reduce spreads one rank's bad gradients: the clips are those of a bad loss, if any was.
        any_loss = any(bad_loss for _, bad_loss, _ in reports)
        clips = [name for first, bad_loss, names in reports if bad_loss or not any_loss for name in names]
        hand = self.recipe.alternation.hand_at(step)
        return (
            f"the loss or its gradients became non-finite at step {step} (hand {hand}, learning rate "
            f"{self.updater.lr_schedule[step]:.3g}); the weights were not touched. "
            f"Clips: {', '.join(clips)}. Lower --lr, or try --amp_dtype bf16 or fp32"
        )


def mix_clips(
    mixup: Any, clips: torch.Tensor, labels: torch.Tensor, region: str = "frame"
) -> tuple[torch.Tensor, torch.Tensor]:
    """timm's Mixup/CutMix on clips `(N, 3, T, H, W)`; draws from `numpy.random`.

    Args:
        region: what CutMix's box cuts. `frame`: a box of every frame, as its label weights assume.
            `published`: timm's image code applied to the 5-D batch as it is, so that the box falls
            on (T, H) and the weights do not fit what was mixed.
    """
    if region == "published":
        return mixup(clips, labels)
    mixed, targets = mixup(clips.flatten(1, 2), labels)
    return mixed.view_as(clips), targets


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile."""
    if isinstance(model, DistributedDataParallel):
        model = model.module
    return getattr(model, "_orig_mod", model)


@dataclasses.dataclass(frozen=True)
class EpochHooks:
    """What an epoch calls on its way, on all ranks.

    Attributes:
        record: at every logging interval, with the steps made so far and the figures.
        save: within the epoch, at every saving interval and when the run is to stop, with the steps
            made so far, the meters' sums over ranks, and whether it stops. Not at the epoch's end:
            what is saved there has been validated.
        collect_bad: before the others, where any rank met unreadable clips.
    """

    record: Callable[[int, dict[str, float]], None] = _nothing
    save: Callable[[int, np.ndarray, bool], None] = _nothing
    collect_bad: Callable[[], None] = _nothing


def train_one_epoch_alternating(
    trainer: AlternatingTrainer,
    epoch: int,
    first_step: int,
    meters: HandMeters,
    hooks: EpochHooks = EpochHooks(),
) -> dict[str, float]:
    """Trains the steps of one epoch, or what is left of it.

    Args:
        trainer: the model, its data and how to train it.
        epoch: zero-based epoch.
        first_step: the first step to make; within the epoch after a resume.
        meters: what the epoch's earlier steps summed up; empty at its start.
        hooks: what is called on the way.

    Returns:
        The epoch's averages over ranks: loss of each hand, accuracy where labels are not mixed,
        last learning rate and gradient norm, share of time spent waiting for data, clips a second. What
        is recorded and logged has the two since the last interval.

    Raises:
        NonFiniteLoss: on all ranks, at most a logging interval after the fact, and before anything
            is saved.
        Preempted: on all ranks, after the same step, which is saved.
    """
    recipe = trainer.recipe
    before, last_step = epoch * recipe.steps_per_epoch, (epoch + 1) * recipe.steps_per_epoch
    trainer.model.train()
    clock = EpochClock(trainer.data_wait, recipe.clips_a_step, first_step)
    values: dict[str, float] = {}
    words: list[str] = []
    with LiveLine(
        f"Epoch: [{epoch}]", recipe.steps_per_epoch, first_step - before, recipe.clips_a_step
    ) as line:
        for step in range(first_step, last_step):
            line.show(step - before, recipe.alternation.hand_at(step), *words)
            try:
                norm = trainer.optimizer_step(step, meters)
            except Preempted:
                hooks.save(step, _read_sums(trainer, meters, hooks), True)
                raise
            done = step + 1
            logs = done % recipe.log_interval == 0 or done == last_step
            saves = recipe.save_interval > 0 and done % recipe.save_interval == 0 and done < last_step
            if logs or saves:
                sums = _read_sums(trainer, meters, hooks)
            if logs:
                values = meters.averages(sums) | _progress_figures(trainer, step, norm)
                values |= clock.interval(done)
                words = _log_progress(recipe, epoch, step, last_step, values)
                hooks.record(done, values)
            if saves:
                hooks.save(done, sums, False)
    return values | clock.whole()


def _read_sums(trainer: AlternatingTrainer, meters: HandMeters, hooks: EpochHooks) -> np.ndarray:
    """The meters' sums over ranks; unreadable clips that any rank met are collected on the way."""
    sums, n_bad_clips = trainer.read_sums(meters)
    if n_bad_clips:
        hooks.collect_bad()
    return sums


def _progress_figures(trainer: AlternatingTrainer, step: int, norm: torch.Tensor) -> dict[str, float]:
    values = {
        "lr": float(trainer.updater.lr_schedule[step]),
        "weight_decay": float(trainer.updater.weight_decay_schedule[step]),
        "grad_norm": float(norm),
    }
    return values | memory_gib(norm.device)


def collect_bad_clips(
    trainer: AlternatingTrainer,
    known: dict[str, dict[str, str]],
    list_lengths: Mapping[str, int],
    most: float,
    output_dir: Path,
) -> dict[str, list[str]]:
    """Adds the unreadable clips that all ranks met to `known`, {hand: {clip: reason}}.

    Rank 0 lists them in `bad_clips_{hand}.txt`.

    Args:
        trainer: has met them.
        known: those of the run so far.
        list_lengths: clips in each hand's list.
        most: share of a list that may be unreadable.
        output_dir: where rank 0 writes.

    Returns:
        {hand: names of those that no rank needs to try again}.

    Raises:
        UserError: on all ranks, if a hand has more of them.
    """
    gathered = broadcast_object(gather_objects(trainer.bad))
    trainer.bad = []
    news = set()
    lasting: dict[str, list[str]] = {}
    for clip in itertools.chain(*gathered):
        hand, name, reason = clip
        if clip.lasts:
            lasting.setdefault(hand, []).append(name)
        if name not in known.setdefault(hand, {}):
            known[hand][name] = reason
            news.add(hand)
    for hand in sorted(news):
        path, bad = output_dir / f"bad_clips_{hand}.txt", known[hand]
        on_main(lambda path=path, bad=bad: write_clips_and_reasons(path, bad.items()))
        log.warning("%s: %d unreadable clips were replaced so far, see %s", hand, len(bad), path)
        if len(bad) > most * list_lengths[hand]:
            name, reason = next(iter(bad.items()))
            raise UserError(
                f"--max_bad_clips {most:g}: {len(bad)} of {list_lengths[hand]} training clips of {hand} "
                f"cannot be read, such as {name} ({reason}): repair them or take them from the list; "
                f"all are in {path}"
            )
    return lasting


def _log_progress(
    recipe: Recipe, epoch: int, step: int, last_step: int, values: Mapping[str, float]
) -> list[str]:
    """Logs a line; returns what the live line says of it until the next."""
    made = step - epoch * recipe.steps_per_epoch + 1
    width = len(str(recipe.steps_per_epoch))
    left = datetime.timedelta(seconds=int((last_step - step - 1) * values["seconds_a_step"]))
    figures = "  ".join(f"{name}: {value:.4g}" for name, value in values.items())
    hand = recipe.alternation.hand_at(step)
    log.info(
        "Epoch: [%d]  [%*d/%d]  eta: %s  hand: %s  %s",
        epoch, width, made, recipe.steps_per_epoch, left, hand, figures,
        extra=PASSING if step + 1 < last_step else None,
    )  # fmt: skip
    losses = [f"{name} {value:.3f}" for name, value in values.items() if name.endswith("_loss")]
    return [*losses, f"data wait {values['data_wait']:.0%}"]


# ---------------------------------------------------------------------------------- evaluation


def _scores_by_rank(
    batches: Iterable[Any],
    models: Mapping[str, nn.Module],
    hands: Sequence[str],
    runtime: Runtime,
    to_clips: ToClips,
) -> list[dict[str, dict[str, ViewScores]]] | None:
    """Scores this rank's clips; on rank 0 {hand: {weights: scores}} of every rank, else None."""
    for model in models.values():
        model.eval()

    def prepare(frames: torch.Tensor) -> torch.Tensor:
        return to_clips(frames.to(runtime.device, non_blocking=True))

    def forward_of(model: nn.Module, hand: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(clips: torch.Tensor) -> torch.Tensor:
            with runtime.autocast():
                return model(clips, hand).float()

        return forward

    # A hand of which this rank has no clip has no batches either.
    scores = {hand: {name: ViewScores.empty() for name in models} for hand in hands}
    for hand, group in itertools.groupby(batches, key=lambda batch: batch.hand):
        forwards = {name: forward_of(unwrap(model), hand) for name, model in models.items()}
        scores[hand] = score_batches(group, prepare, forwards)
    return gather_objects(scores)


def _merge_ranks(ranks: Sequence[ViewScores], hand: str) -> tuple[ClipScores, dict[str, float]]:
    """Merged clips of one hand and their metrics."""
    scores = ViewScores.concatenate(ranks)
    if not scores.names:
        name, reason = scores.unreadable[0] if scores.unreadable else ("", "the list is empty")
        raise UserError(f"{hand}: not one clip could be evaluated: {name} {reason}")
    merged = merge_views(scores)
    return merged, accuracy_metrics(merged, len(scores.unreadable))


def until_stopped(batches: Iterable[Any], together: Together, check: Callable[[], None]) -> Iterator[Any]:
    """A rank's batches of an evaluation, unless the run is to stop.

    Args:
        batches: ranks may have unequally many.
        together: all ranks leave it in the same way, which they agree on when all are through.
        check: raises Preempted if this rank is to stop.

    Raises:
        Preempted: on all ranks.
    """
    with together():
        for batch in batches:
            check()
            yield batch


def validation_one_epoch_alternating(
    batches: Iterable[Any],
    models: Mapping[str, nn.Module],
    hands: Sequence[str],
    runtime: Runtime,
    to_clips: ToClips,
    look: Look = _nothing,
) -> dict[str, dict[str, dict[str, float]]]:
    """Evaluates one centred view of every validation clip, for each hand and set of weights.

    Args:
        batches: this rank's share of the validation clips, hand by hand.
        models: sets of weights by name, such as `raw` and `ema`.
        hands: hands to report.
        runtime: device and precision.
        to_clips: 8-bit views on the device -> the model's input.
        look: is shown the merged clips on rank 0.

    Returns:
        {weights: {hand: metrics}}, on every rank; the metrics of `accuracy_metrics` and `loss`.
    """

    ranks = _scores_by_rank(batches, models, hands, runtime, to_clips)

    def compute() -> dict[str, dict[str, dict[str, float]]]:
        result: dict[str, dict[str, dict[str, float]]] = {name: {} for name in models}
        for name, hand in itertools.product(models, hands):
            scores = [rank[hand][name] for rank in ranks]
            merged, metrics = _merge_ranks(scores, hand)
            look(name, hand, merged)
            loss = mean_cross_entropy(ViewScores.concatenate(scores))
            result[name][hand] = metrics | {"loss": loss}
        return result

    return on_main(compute)


def final_test_alternating(
    batches: Iterable[Any],
    models: Mapping[str, nn.Module],
    hands: Sequence[str],
    runtime: Runtime,
    to_clips: ToClips,
    output_dir: Path,
    weights: str = "last",
    look: Look = _nothing,
) -> dict[str, Any]:
    """The multi-view test: scores every view, writes the results files, merges them.

    Rank 0 writes `{rank}_{hand}.txt` and `predictions_{hand}.csv` of the first of `models` into
    `output_dir`, those of any other into a folder of its name there, and `metrics.json`.

    Args:
        batches, models, hands, runtime, to_clips, look: as for the validation.
        output_dir: where rank 0 writes.
        weights: what the first of `models` is called in `metrics.json`.

    Returns:
        What `metrics.json` says, on every rank.
    """
    ranks = _scores_by_rank(batches, models, hands, runtime, to_clips)

    def merge_one(name: str, folder: Path) -> dict[str, Any]:
        metrics = {}
        for hand in hands:
            _remove_of_earlier_test(folder, hand, len(ranks))
            written = [
                _write_and_read(folder / f"{rank}_{hand}.txt", scores[hand][name])
                for rank, scores in enumerate(ranks)
            ]
            merged, metrics[hand] = _merge_ranks(written, hand)
            look(name, hand, merged)
            unreadable = [clip for rank in written for clip in rank.unreadable]
            if unreadable:
                path = folder / f"unreadable_{hand}.txt"
                write_clips_and_reasons(path, unreadable)
                log.warning("%s: %d clips could not be read, see %s", hand, len(unreadable), path)
            write_predictions(folder / f"predictions_{hand}.csv", merged)
        return with_mean_top1(metrics)

    def compute() -> dict[str, Any]:
        main = next(iter(models))
        merged = {name: merge_one(name, output_dir if name == main else output_dir / name) for name in models}
        metrics = merged[main] | {"weights": weights, "ema": merged.get("ema")}
        write_json(output_dir / "metrics.json", metrics)
        return metrics

    return on_main(compute)


def _remove_of_earlier_test(folder: Path, hand: str, processes: int) -> None:
    """Removes what this test does not write over: it may have fewer processes, or no unreadable clips."""
    for path in folder.glob(f"*_{hand}.txt"):
        kind = path.name.partition("_")[0]
        if kind == "unreadable" or (kind.isdecimal() and int(kind) >= processes):
            path.unlink()


def _write_and_read(path: Path, scores: ViewScores) -> ViewScores:
    # Metrics come from the file, so that it says the same as `metrics.json` for ever.
    write_results(path, scores)
    return dataclasses.replace(read_results(path), unreadable=scores.unreadable)
