"""Plots along each pruner's curve: ACC, ASR and RA against the number of pruned channels, and against its threshold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.canvas import Canvas, Scale, counting, percent
from analysis.drawing import Look, Page, heading, looks, name_of
from analysis.schema import METRICS
from analysis.sheets import PAIR, Key, Sheet


def draw_counts(sheet: Sheet, points: pd.DataFrame, rule: str) -> Page | None:
    """Against the number of pruned channels. Seeds are not averaged: their curves have points at different numbers, and a
    mean of 0 and 100 is nobody's ASR."""
    swept = points.groupby(["defense", "defense_settings"])["pruned"].max()
    look = {d: seen for d, seen in looks(sheet.defenses).items() if swept.get(d, 0) > 0}
    below = (
        "One line per seed, dots where it was measured. Large markers: the operating points by "
        f"{rule}. ACC on clean test images, ASR and RA on triggered ones."
    )
    names = {name_of(sheet, d): seen for d, seen in look.items()}
    x = counting(float(points["pruned"].max()) if len(points) else 1.0)
    return pages(sheet, points, look, names, below, rule, x, "pruned", lambda defense, at: at, "pruned channels")


def draw_thresholds(sheet: Sheet, points: pd.DataFrame, rule: str) -> Page | None:
    """Against the threshold; every defence has its own unit, so each is drawn from its gentlest to its strongest."""
    points = points[np.isfinite(points["at"])]
    ends = {d: span(rows) for d, rows in points.groupby(["defense", "defense_settings"])}
    look = {d: seen for d, seen in looks(sheet.defenses).items() if d in ends and ends[d][0] != ends[d][1]}
    names = {f"{name_of(sheet, d)}: {ends[d][0]:.3g} to {ends[d][1]:.3g}": seen for d, seen in look.items()}
    below = (
        "One line per seed. Each defence's own threshold, from where it prunes least (left) to where it prunes most "
        f"(right); both ends stand in the legend. Large markers: the operating points by {rule}."
    )

    def place(defense: Key, at: Any) -> Any:
        gentle, strong = ends[defense]
        return (at - gentle) / (strong - gentle)

    x = Scale(-0.04, 1.04, {0.0: "least", 0.25: "", 0.5: "", 0.75: "", 1.0: "most"})
    return pages(sheet, points, look, names, below, rule, x, "at", place, "threshold")


def span(points: pd.DataFrame) -> tuple[float, float]:
    """The gentlest and the strongest threshold. Some prune more with a higher one, others with a lower."""
    at, pruned = points["at"], points["pruned"]
    rising = float(((at - at.mean()) * (pruned - pruned.mean())).sum()) >= 0
    low, high = float(at.min()), float(at.max())
    return (low, high) if rising else (high, low)


def pages(
    sheet: Sheet,
    points: pd.DataFrame,
    look: Mapping[Key, Look],
    names: Mapping[str, Look],
    below: str,
    rule: str,
    x: Scale,
    column: str,
    place: Callable[[Key, Any], Any],
    under: str,
) -> Page | None:
    """A panel per attack, with ACC, ASR and RA below each other. `place`: from a number of `column` to one of the scale."""
    curves: Mapping[Any, pd.DataFrame] = dict(iter(points.groupby(PAIR, sort=False)))
    attacks = [a for a in sheet.attacks if any((*d, *a) in curves for d in look)]
    if not attacks:
        return None
    canvas = Canvas(Page(sheet, below, names, len(attacks), (2.5, 3.6), stacked=3), look)
    for i, attack in enumerate(attacks):
        for j, metric in enumerate(METRICS):
            words = {"left": f"{metric.upper()} (%)"}
            words |= {"title": heading(sheet, attack)} if j == 0 else {}
            words |= {"below": under} if j == 2 else {}
            panel = canvas.panel(i, j, x, percent(), words, last=j == 2)
            for defense in look:
                if (rows := curves.get((*defense, *attack))) is not None:
                    panel.lines(defense, place(defense, rows[column]), rows[metric], rows["seed"])
                chosen = [r for r in sheet.cell(defense, attack).rows if r.get(f"{column}_{rule}") is not None]
                at = np.array([r[f"{column}_{rule}"] for r in chosen], dtype=float)
                panel.mark(defense, place(defense, at), [r[f"{metric}_{rule}"] for r in chosen])
    return canvas.finish()
