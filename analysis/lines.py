"""Plots along each pruner's curve: ACC, ASR and RA against the number of pruned channels, and against its threshold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.drawing import EDGE, Look, Page, heading, looks, name_of
from analysis.schema import METRICS
from analysis.sheets import PAIR, Key, Sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 40  # markers on one line
Curves = Mapping[tuple[str, ...], pd.DataFrame]


def by_pair(points: pd.DataFrame) -> Curves:
    """PAIR -> its points, seed below seed."""
    return {tuple(map(str, key)): rows for key, rows in points.groupby(PAIR, sort=False)}


def draw_counts(sheet: Sheet, points: pd.DataFrame, rule: str) -> Page | None:
    """Against the number of pruned channels. Seeds are not averaged: their curves have points at different numbers, and a
    mean of 0 and 100 is nobody's ASR."""
    swept = points.groupby(["defense", "defense_settings"])["pruned"].max()
    look = {d: seen for d, seen in looks(sheet.defenses).items() if swept.get(d, 0) > 0}
    below = (
        "One line per seed, a dot per measured point. Large markers: the operating points by "
        f"{rule}. ACC on clean test images, ASR and RA on triggered ones."
    )
    names = {name_of(sheet, d): seen for d, seen in look.items()}
    page = pages(sheet, by_pair(points), look, names, below, "pruned", lambda d, at: at, rule, "pruned channels")
    for ax in page.figure.axes if page else ():
        counting(ax, points["pruned"].max())
    return page


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

    def place(defense: Key, at: pd.Series) -> pd.Series:
        gentle, strong = ends[defense]
        return (at - gentle) / (strong - gentle)

    page = pages(sheet, by_pair(points), look, names, below, "at", place, rule, "threshold")
    for ax in page.figure.axes if page else ():
        ax.set_xlim(-0.04, 1.04)
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["least", "", "", "", "most"] if ax.get_xlabel() else [])
    return page


def span(points: pd.DataFrame) -> tuple[float, float]:
    """The gentlest and the strongest threshold. Some prune more with a higher one, others with a lower."""
    at, pruned = points["at"], points["pruned"]
    rising = float(((at - at.mean()) * (pruned - pruned.mean())).sum()) >= 0
    low, high = float(at.min()), float(at.max())
    return (low, high) if rising else (high, low)


def pages(
    sheet, curves: Curves, look: Mapping[Key, Look], names, below: str, column: str, place, rule: str, under: str
):
    """A panel per attack, with ACC, ASR and RA below each other."""
    attacks = [a for a in sheet.attacks if any((*d, *a) in curves for d in look)]
    if not attacks:
        return None
    page = Page(sheet, below, names, len(attacks), (2.5, 3.6), stacked=3)
    for i, attack in enumerate(attacks):
        axes = page.panel(i)
        for metric, ax in zip(METRICS, axes, strict=True):
            for defense, seen in look.items():
                if (rows := curves.get((*defense, *attack))) is not None:
                    line(ax, rows, place(defense, rows[column]), metric, seen)
                mark(ax, sheet, defense, attack, column, place, metric, rule, seen)
            ax.set_ylim(-4, 104)
            ax.set_yticks([0, 50, 100])
            if i % page.columns == 0:
                ax.set_ylabel(f"{metric.upper()} (%)")
            else:
                ax.tick_params(labelleft=False, length=0)
            ax.tick_params(length=0, labelbottom=ax is axes[-1])
        axes[0].set_title(heading(sheet, attack), fontsize=9)
        axes[-1].set_xlabel(under)
    return page


def line(ax: Axes, rows: pd.DataFrame, x: pd.Series, metric: str, seen: Look) -> None:
    """All seeds as one line with gaps between them."""
    colour, marker, style = seen
    order = np.lexsort((x, rows["seed"]))
    across, y, seeds = x.to_numpy()[order], rows[metric].to_numpy()[order], rows["seed"].to_numpy()[order]
    cuts = np.flatnonzero(np.diff(seeds)) + 1
    many = max(1, len(across) // MOST)
    ax.plot(
        np.insert(across, cuts, np.nan),
        np.insert(y, cuts, np.nan),
        style,
        marker=marker,
        markevery=many,
        color=colour,
        linewidth=0.9,
        markersize=2.2,
        alpha=0.75,
    )


def mark(ax, sheet: Sheet, defense: Key, attack: Key, column: str, place, metric: str, rule: str, seen: Look) -> None:
    """The operating points."""
    rows = [row for row in sheet.cell(defense, attack).rows if row.get(f"{column}_{rule}") is not None]
    if rows:
        x = place(defense, pd.Series([row[f"{column}_{rule}"] for row in rows], dtype=float))
        ax.plot(x, [row[f"{metric}_{rule}"] for row in rows], seen[1], color=seen[0], markersize=6, **EDGE, zorder=3)


def counting(ax: Axes, largest: float) -> None:
    """A logarithmic axis for counts that has a place for 0."""
    ax.set_xscale("symlog", linthresh=1, linscale=0.3)
    steps = (1, 3) if largest < 300 else (1,)  # more labels would touch each other
    ticks = [0, *(n * 10**k for k in range(7) for n in steps if n * 10**k <= largest)]
    ax.set_xticks(ticks, [str(tick) for tick in ticks] if ax.get_xlabel() else [])
    ax.minorticks_off()
    ax.set_xlim(-0.15, largest * 1.15)
