"""What preparing HA-ViD leaves behind beside clips: lists, class names and a report."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import utils
from scripts.data.check_display import visible
from scripts.data.clip_plan import Plan
from scripts.data.havid_layout import SPLITS, HandLabels

_REASONS = 8  # shown


def write_lists(output: Path, plan: Plan, hands: dict[str, HandLabels]) -> None:
    """Writes lists and class names, which name only clips that are there."""
    for hand, labels in hands.items():
        folder = output / f"{hand}_v0"
        names = sorted((number, label) for label, number in labels.ids.items())
        utils.write_text(folder / "mapping.txt", "".join(f"{number} {label}\n" for number, label in names))
        for split in SPLITS:
            clips = sorted((c.name, c.label) for c in plan.clips if (c.hand, c.split) == (hand, split))
            text = "".join(f"{name} {label}\n" for name, label in clips)
            utils.write_text(folder / f"{split}_list_video.txt", text)


def make_report(args: argparse.Namespace, plan: Plan, hands: dict[str, HandLabels]) -> dict[str, Any]:
    """What the JSON file holds, but for what was counted while clips were made."""
    lists: dict[str, dict[str, Any]] = {hand: {} for hand in hands}
    for hand, labels in hands.items():
        for split in SPLITS:
            clips = [clip for clip in plan.clips if (clip.hand, clip.split) == (hand, split)]
            counts = Counter(clip.label for clip in clips)
            lists[hand][split] = {
                "clips": len(clips),
                "frames": sum(clip.stop - clip.start for clip in clips),
                "classes": {label: counts[number] for label, number in labels.ids.items()},
            }
    warnings = len(plan.notes) + sum(not skip.asked for skip in plan.skips)
    skipped = [skip._asdict() for skip in plan.skips]
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    return {"flags": flags, "lists": lists, "warnings": warnings, "notes": plan.notes, "skipped": skipped}


def print_report(report: dict[str, Any], path: Path) -> None:
    """A line a list, the commonest reasons for skipping, and where to read more."""
    say = sys.stdout.write
    for hand, splits in report["lists"].items():
        for split, one in splits.items():
            counts = [count for count in one["classes"].values() if count]
            spread = f", {min(counts)} to {max(counts)} a class" if counts else ""
            classes = f"{len(counts)} of {len(one['classes'])} classes{spread}"
            say(f"{hand} {split}: {one['clips']:,} clips, {one['frames']:,} frames, {classes}\n")
    reasons = Counter(skip["reason"] for skip in report["skipped"])
    for reason, times in reasons.most_common(_REASONS):
        say(visible(f"skipped {times:,}: {reason}") + "\n")
    clips = f"{report['made']:,} clips made, {report['kept']:,} were there, in {report['seconds']:g} s"
    say(visible(f"{clips}; {report['warnings']:,} warnings; details: {path}") + "\n")
