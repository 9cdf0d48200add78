"""The curves of one run: loss by hand and by turn, accuracy, rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from scripts.tools.report.curves import Curve, Spans, Turn, interval_means, thinned, turns_between
from scripts.tools.report.figures import (
    HALF,
    WIDE,
    Drawing,
    colour,
    finish,
    legend,
    new_figure,
    style_axes,
    use_log_scale_if_wide,
)
from scripts.tools.report.run_data import HAND_NAMES, Run

_MOST_POINTS = 500  # of a curve
_LEAST_BAND = 4  # pixels: narrower turns are not drawn
_ZOOMED_TURNS = 8


def draw_training(run: Run) -> Iterator[Drawing]:
    """The figures that the run's records allow."""
    for draw in (_loss, _turns, _accuracy, _rate, _norm):
        drawing = draw(run)
        if drawing is not None:
            yield drawing


def loss_spans(run: Run) -> dict[str, Spans]:
    """{hand: mean loss between two recordings}; nothing where the length of an epoch is unknown."""
    curves = {hand: run.curves.get(f"train/{hand}_loss") for hand in run.hands}
    known = {hand: curve for hand, curve in curves.items() if curve is not None}
    if run.epoch_length is None or not known:
        return {}
    recorded = np.unique(np.concatenate([curve.steps for curve in known.values()]))
    return {
        hand: interval_means(curve, recorded, run.alternation, hand, run.epoch_length)
        for hand, curve in known.items()
    }


def by_epoch(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of `log.txt` over steps made at the epochs' ends, or over epochs if those are unknown."""
    rows = [row for row in run.epochs if row.get(name) is not None]
    ends = np.array([row["epoch"] + 1 for row in rows], np.int64) * (run.epoch_length or 1)
    return ends, np.array([row[name] for row in rows], float)


def x_name(run: Run) -> str:
    """What lies on the x axis of `by_epoch`."""
    return "optimizer steps" if run.epoch_length else "epochs"


def draw_bands(axes: Axes, turns: Sequence[Turn]) -> None:
    """Whose turn it is, as tints of the background."""
    for turn in turns:
        axes.axvspan(turn.start, turn.end, color=colour(turn.hand), alpha=0.1, linewidth=0)


def _loss(run: Run) -> Drawing | None:
    epochs = {hand: by_epoch(run, f"train_{hand}_loss") for hand in run.hands}
    spans = loss_spans(run)
    if not spans and not any(len(x) for x, _ in epochs.values()):
        return None
    figure, (axes,) = new_figure(WIDE, 380)
    notes = ["Strong: the epoch's mean of each hand."]
    for hand in run.hands:
        if hand in spans:
            few, together = thinned(spans[hand], _MOST_POINTS)
            axes.plot(few.ends, few.values, color=colour(hand), alpha=0.35, linewidth=1)
        axes.plot(*epochs[hand], color=colour(hand), marker=".", label=f"{HAND_NAMES[hand]}, training")
        x, values = by_epoch(run, f"val_{hand}_loss")
        if len(x):
            name = f"{HAND_NAMES[hand]}, validation"
            axes.plot(x, values, color=colour(hand), linestyle=(0, (4, 2)), label=name)
    if spans:
        many = f", {together} of them averaged" if together > 1 else ""
        notes.append(f"Thin: between two recordings, {run.args.log_interval} steps apart{many}.")
        notes.append(_bands_if_wide(axes, run, max(int(s.ends[-1]) for s in spans.values() if len(s.ends))))
    if run.args.mixup or run.args.cutmix or run.args.smoothing:
        notes.append("Mixup and label smoothing raise the training's loss above the validation's.")
    style_axes(axes, x_name(run), "loss, nats", whole=True)
    use_log_scale_if_wide(axes, [values for _, values in epochs.values()])
    legend(axes, loc="upper right", ncols=2)
    return finish(figure, "loss", "Loss of each hand", " ".join(filter(None, notes)), is_wide=True)


def _bands_if_wide(axes: Axes, run: Run, steps: int) -> str:
    turns = turns_between(run.alternation, 0, steps)
    if len(run.alternation.hands) < 2:
        return ""
    if WIDE / len(turns) < _LEAST_BAND:
        return f"{len(turns)} turns of {run.args.alternation_steps} steps are too narrow to show here."
    draw_bands(axes, turns)
    return f"Tints: whose turn it was, {run.args.alternation_steps} steps each."


def _turns(run: Run) -> Drawing | None:
    """The first and the last turns, where the alternation can be seen."""
    spans = loss_spans(run)
    length, interval = run.args.alternation_steps, run.args.log_interval
    if len(run.alternation.hands) < 2 or not any(len(s.ends) for s in spans.values()):
        return None
    last = max(int(s.ends[-1]) for s in spans.values() if len(s.ends))
    window = max(_ZOOMED_TURNS * length, 12 * interval)
    places = [("First turns", 0, min(window, last))]
    if last > 2 * window:
        places.append(("Last turns", (last - window) // length * length, last))
    figure, panels = new_figure(WIDE, 330, len(places))
    for axes, (title, start, end) in zip(panels, places, strict=True):
        draw_bands(axes, turns_between(run.alternation, start, end))
        for hand, s in spans.items():
            seen = (s.starts >= start) & (s.ends <= end)
            middle = (s.starts + s.ends)[seen] / 2
            axes.plot(middle, s.values[seen], color=colour(hand), alpha=0.5, linewidth=1)
            axes.hlines(
                s.values[seen], s.starts[seen], s.ends[seen], color=colour(hand), linewidth=2.6,
                label=HAND_NAMES[hand],
            )  # fmt: skip
        axes.set_title(title)
        style_axes(axes, "optimizer steps", "loss, nats", whole=True)
        axes.set_xlim(start, end)
    legend(panels[0], loc="upper right")
    caption = (
        f"Tints: whose turn it was, {length} steps each. A bar is the mean over the steps of a hand between "
        f"two recordings ({interval} steps, --log_interval)."
    )
    if interval >= length:
        caption += (
            f" Bars are as long as {interval / length:g} turns: a --log_interval below --alternation_steps "
            "would show what happens within a turn."
        )
    caption += _say_changes(run, spans)
    return finish(figure, "turns", "Turn by turn", caption, is_wide=True)


def _say_changes(run: Run, spans: Mapping[str, Spans]) -> str:
    changes = changes_over_rest(run, spans)
    texts = [
        f"{mean:+.3f} ± {error:.3f} nats ({HAND_NAMES[h].lower()})" for h, (mean, error) in changes.items()
    ]
    if not texts:
        return ""
    return (
        " From the end of a hand's turn to the start of its next, its loss changes by "
        f"{' and '.join(texts)}, mean and standard error over turns."
    )


def changes_over_rest(run: Run, spans: Mapping[str, Spans]) -> dict[str, tuple[float, float]]:
    """{hand: how its loss changes while the other has its turn: mean and standard error, nats}.

    Between the last recording of a turn and the first of the hand's next; nothing where recordings are not
    finer than turns.
    """
    result = {}
    for hand, s in spans.items():
        turn = s.starts // run.args.alternation_steps
        within = turn == (s.ends - 1) // run.args.alternation_steps
        values, turn = s.values[within], turn[within]
        changes = np.diff(values)[np.diff(turn) > 0]
        if len(changes) > 2 and run.args.log_interval < run.args.alternation_steps:
            result[hand] = float(changes.mean()), float(changes.std(ddof=1) / np.sqrt(len(changes)))
    return result


def _accuracy(run: Run) -> Drawing | None:
    figure, (axes,) = new_figure(WIDE, 330)
    kinds = (("val", "-", "validation"), ("val_ema", (0, (1, 1.2)), "validation, EMA"),
             ("train", (0, (4, 2)), "training"))  # fmt: skip
    for hand in run.hands:
        for group, style, name in kinds:
            x, values = by_epoch(run, f"{group}_{hand}_top1")
            if len(x):
                label = f"{HAND_NAMES[hand]}, {name}"
                axes.plot(x, values, color=colour(hand), linestyle=style, label=label)
    if not axes.lines:
        return None
    style_axes(axes, x_name(run), "top-1, %", whole=True)
    legend(axes, loc="lower right", ncols=2)
    caption = "One centred view a clip. Training accuracy is there where labels are not mixed."
    return finish(figure, "accuracy", "Accuracy of each hand", caption, is_wide=True)


def _of_steps(run: Run, name: str, title: str, y: str, caption: str, log_scale: bool) -> Drawing | None:
    curve = run.curves.get(f"train/{name}")
    if curve is None:
        x, values = by_epoch(run, f"train_{name}")
        curve = Curve(x, values, x.astype(float))
    if not len(curve.steps):
        return None
    figure, (axes,) = new_figure(HALF, 330)
    few, together = thinned(Spans(curve.steps, curve.steps, curve.values), 2 * _MOST_POINTS)
    axes.plot(few.ends, few.values, color=colour("ink"), linewidth=1.3)
    style_axes(axes, x_name(run), y, whole=True)
    if log_scale:
        use_log_scale_if_wide(axes, [few.values], 20)
    caption += f" {together} recordings averaged." if together > 1 else ""
    return finish(figure, name, title, caption)


def _rate(run: Run) -> Drawing | None:
    caption = "Of the last layers; layer decay lowers it towards the input."
    return _of_steps(run, "lr", "Learning rate", "learning rate", caption, log_scale=False)


def _norm(run: Run) -> Drawing | None:
    norm = _norm_by_hand(run)
    if norm is not None:
        return norm
    caption = "Of the last step before each recording, before clipping."
    return _of_steps(run, "grad_norm", "Gradient norm", "L2 norm", caption, log_scale=True)


def _norm_by_hand(run: Run) -> Drawing | None:
    """Both hands' gradient norms, where recordings fall into turns of both."""
    curve = run.curves.get("train/grad_norm")
    if curve is None:
        return None
    hands = np.array([run.alternation.hand_at(step - 1) for step in curve.steps.tolist()])
    if len(set(hands.tolist())) < 2:
        return None
    figure, (axes,) = new_figure(HALF, 330)
    for hand in run.hands:
        mine = hands == hand
        few, _ = thinned(Spans(curve.steps[mine], curve.steps[mine], curve.values[mine]), _MOST_POINTS)
        axes.plot(few.ends, few.values, color=colour(hand), linewidth=1.2, label=HAND_NAMES[hand])
    style_axes(axes, x_name(run), "L2 norm", whole=True)
    use_log_scale_if_wide(axes, [curve.values], 20)
    legend(axes, loc="upper right")
    caption = "Of the last step before each recording, before clipping, under the hand whose step it was."
    return finish(figure, "grad_norm", "Gradient norm", caption)
