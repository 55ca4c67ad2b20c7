"""Plots along each pruner's curve: ACC, ASR and RA against the number of pruned channels, and against its threshold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.canvas import MOST, Canvas, Scale, counting, lines, mark, percent
from analysis.drawing import ROOM, UNDER, Look, Page, heading, looks, name_of
from analysis.schema import METRICS
from analysis.sheets import PAIR, Key, Sheet, pairs

TOLD_APART = 20  # lines in a panel: more are a thicket


def draw_counts(sheet: Sheet, points: pd.DataFrame, rule: str) -> Page | None:
    """Against the number of pruned channels. Seeds are not averaged: their curves have points at different numbers, and a
    mean of 0 and 100 is nobody's ASR."""
    swept = points.groupby(["defense", "defense_settings"])["pruned"].max()
    look = {d: seen for d, seen in looks(sheet.defenses).items() if swept.get(d, 0) > 0}
    points, said = thinned(points, look)
    below = f"{said} Large markers: the operating points by {rule}. ACC: clean test images; ASR, RA: triggered ones."
    names = {name_of(sheet, d): seen for d, seen in look.items()}
    x = counting(float(points["pruned"].max()) if len(points) else 1.0)
    return pages(sheet, points, look, names, below, rule, x, "pruned", lambda defense, at: at, "pruned channels")


def draw_thresholds(sheet: Sheet, points: pd.DataFrame, rule: str) -> Page | None:
    """Against the threshold; every defence has its own unit, so each is drawn from its gentlest to its strongest."""
    points = points[np.isfinite(points["at"])]
    ends = {d: span(rows) for d, rows in points.groupby(["defense", "defense_settings"])}
    look = {d: seen for d, seen in looks(sheet.defenses).items() if d in ends and ends[d][0] != ends[d][1]}
    names = {f"{name_of(sheet, d)}: {ends[d][0]:.3g} to {ends[d][1]:.3g}": seen for d, seen in look.items()}
    points, said = thinned(points, look)
    below = (
        f"{said} Each defence's own threshold, from where it prunes least (left) to where it prunes most "
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


def thinned(points: pd.DataFrame, look: Mapping[Key, Look]) -> tuple[pd.DataFrame, str]:
    """The curves of the defences in `look`, and what is drawn in words: all of them, or of each defence the seed in the middle.

    The one in the middle is that of a model, which no mean of curves is.
    """
    if not len(points):
        return points, ""
    points = points[[key in look for key in pairs(points, "defense")]]
    every = points.groupby([*PAIR, "seed"], sort=True)["asr"].mean().fillna(0.0).rename("level").reset_index()
    panels = every.groupby(["attack", "attack_settings"]).size()
    said = "One line per seed" + (", dots where it was measured." if len(METRICS) * len(points) <= MOST else ".")
    if not len(panels) or panels.max() <= TOLD_APART:
        return points, said
    place = every.groupby(PAIR)["level"].rank(method="first")
    of = every.groupby(PAIR)["level"].transform("size")
    chosen = every[place == (of + 1) // 2][[*PAIR, "seed"]]
    said = f"One line per defence, of the seed whose mean ASR along it is in the middle: {panels.max()} could not be told apart."
    return points.merge(chosen, on=[*PAIR, "seed"]), said


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
    there = set(pairs(points, "attack"))
    attacks = [a for a in sheet.attacks if a in there]
    if not attacks:
        return None
    titles = [heading(sheet, a) for a in attacks]
    page = Page(sheet, below, names, len(attacks), (2.5, 3.6), ROOM, stacked=3, under=UNDER, titles=titles)
    canvas = Canvas(page, look)
    panels = []
    for j, metric in enumerate(METRICS):
        words = {"left": f"{metric.upper()} (%)", "below": under}
        every = (words | {"title": title if j == 0 else ""} for title in titles)
        panels.append([canvas.panel(i, j, x, percent(), own, last=j == 2) for i, own in enumerate(every)])
    index = {attack: i for i, attack in enumerate(attacks)}
    chosen = sheet.rows.reindex(
        columns=[*PAIR, "where", f"{column}_{rule}", *(f"{metric}_{rule}" for metric in METRICS)]
    )
    chosen = chosen[chosen["where"].isin(points["where"])]
    curves, marks = by_defense(points, index), by_defense(chosen[chosen[f"{column}_{rule}"].notna()], index)
    for defense in look:
        for j, metric in enumerate(METRICS):
            if (found := curves.get(defense)) is not None:
                which, rows = found
                lines(panels[j], defense, which, place(defense, rows[column]), rows[metric], rows["seed"])
            if (found := marks.get(defense)) is not None:
                which, rows = found
                at = rows[f"{column}_{rule}"].to_numpy(dtype=float)
                mark(panels[j], defense, which, place(defense, at), rows[f"{metric}_{rule}"].to_numpy(dtype=float))
    return canvas.finish()


def by_defense(rows: pd.DataFrame, index: Mapping[Key, int]) -> dict[Key, tuple[Any, pd.DataFrame]]:
    """Defence -> which attack each of its rows is about, by `index`, and those rows."""
    which = np.array([index.get(key, -1) for key in pairs(rows, "attack")], dtype=int)
    rows, which = rows[which >= 0], which[which >= 0]
    places = rows.reset_index(drop=True).groupby(["defense", "defense_settings"]).indices
    return {key: (which[own], rows.iloc[own]) for key, own in places.items()}  # type: ignore[misc]
