"""Named rules that choose one point of a curve. What each of them looks at is in its name and its sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SENTENCES = {
    "fixed": "the paper's own number, whatever it costs",
    "clean_drop": "the largest pruning that loses at most {max_drop:g} points on the defender's own held-back clean images",
    "oracle": "the lowest test ASR within {max_drop:g} points of test ACC; it looks at the test set and is no result",
}


def choose(
    curve: Sequence[Mapping[str, Any]], rule: str, *, select_before: float, acc_before: float, max_drop: float
) -> int:
    """The index of the chosen row. A defence that offers one model only has that one chosen.

    `curve`: rows with pruned, fixed, select_acc, acc, asr. `select_before`, `acc_before`: accuracy before the defence on
    the held-back clean images and on the test set, percent. `max_drop`: points. Raises ValueError for an unknown rule.
    """
    if rule not in SENTENCES:
        raise ValueError(f"selection.rule={rule} is unknown: use {', '.join(SENTENCES)}.")
    if len(curve) == 1:
        return 0
    places = range(len(curve))
    if rule == "fixed":
        return next(i for i in places if curve[i]["fixed"])
    if rule == "clean_drop":
        return max(
            (i for i in places if curve[i]["select_acc"] >= select_before - max_drop - 1e-9),
            key=lambda i: curve[i]["pruned"],
            default=0,
        )
    allowed = [i for i in places if curve[i]["acc"] >= acc_before - max_drop - 1e-9] or [0]
    return min(allowed, key=lambda i: (curve[i]["asr"], -curve[i]["acc"]))
