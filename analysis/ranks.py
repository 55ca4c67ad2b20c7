"""Which defences differ, over the attacks: average ranks, Friedman's test, and Nemenyi's critical difference (Demšar 2006)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.drawing import Page, name_of, short
from analysis.paper import comparable
from analysis.sheets import Key, Sheet, mean

LEVEL = 0.05


@dataclass(frozen=True)
class Ranks:
    """`average`: defence -> mean rank over `attacks` (1 = best); `p`: of Friedman's test; `difference`: at LEVEL, Nemenyi."""

    average: dict[Key, float]
    attacks: int
    p: float
    difference: float

    @property
    def cliques(self) -> list[list[Key]]:
        """Neighbouring defences that the data do not tell apart: the largest groups no wider than the difference."""
        order = sorted(self.average, key=lambda d: self.average[d])
        if self.p >= LEVEL:
            return [order]
        found: list[list[Key]] = []
        for i, first in enumerate(order):
            group = [d for d in order[i:] if self.average[d] - self.average[first] <= self.difference + 1e-9]
            if len(group) > 1 and not (found and found[-1][-1] == group[-1]):
                found.append(group)
        return found


def ranks(sheet: Sheet, rule: str, metric: str = "der") -> Ranks | None:
    """By the mean over seeds of `metric` (higher is better), for the rivals with numbers against the same attacks, the most.

    An attack is a block: its seeds are not independent of each other. None with fewer than 3 defences or 2 attacks.
    """
    cells = {d: {a: sheet.cell(d, a) for a in sheet.attacks} for d in sheet.rivals}
    rivals, attacks = comparable(cells)
    table = [[mean(cells[d][a].column(metric, rule)) for a in attacks] for d in rivals]
    if len(rivals) < 3 or len(attacks) < 2 or any(math.isnan(value) for row in table for value in row):
        return None
    return test(rivals, table)


def test(defenses: Sequence[Key], table: Sequence[Sequence[float]]) -> Ranks:
    """`table`: a row per defence with a number per attack, higher is better.

    p is that of Friedman's statistic among the permutations of the ranks within each attack: of all of them where they are
    few, else of 9,999 by chance. Its chi-square is far off for as few attacks as a sweep has.
    """
    import numpy as np
    from scipy.stats import permutation_test, rankdata, studentized_range

    k, n = len(table), len(table[0])
    by_attack = [rankdata([-row[j] for row in table]) for j in range(n)]
    sums = [float(sum(own[i] for own in by_attack)) for i in range(k)]
    found = permutation_test(
        [np.array([own[i] for own in by_attack]) for i in range(k)],
        lambda *ranks, axis: sum(own.sum(axis) ** 2 for own in ranks),  # Friedman's statistic but for constants
        permutation_type="samples", alternative="greater", vectorized=True, rng=np.random.default_rng(0),
    )  # fmt: skip
    q = float(studentized_range.ppf(1 - LEVEL, k, math.inf)) / math.sqrt(2)
    average = {defense: total / n for defense, total in zip(defenses, sums, strict=True)}
    return Ranks(average, n, float(found.pvalue), q * math.sqrt(k * (k + 1) / (6 * n)))


def draw_ranks(sheet: Sheet, points: pd.DataFrame, rule: str) -> Page | None:
    """A critical-difference diagram: the better to the right; a bar joins what the test does not tell apart."""
    found = ranks(sheet, rule)
    if found is None:
        return None
    k, order = len(found.average), sorted(found.average, key=lambda d: found.average[d])
    verdict = (
        f"Friedman's test: p = {found.p:.2g}"
        + (", so the ranks differ." if found.p < LEVEL else ": no difference shown.")
        + f" A bar joins defences that are no further apart than Nemenyi's critical difference ({found.difference:.2f})"
        + (" at 5 %." if found.p < LEVEL else " at 5 %, or all where Friedman's test shows none.")
    )
    below = f"Average rank of DER over {found.attacks} attacks, at the operating point by {rule}; 1 is best. {verdict}"
    half = math.ceil(k / 2)
    cliques = found.cliques
    tall = 0.55 + 0.13 * len(cliques) + 0.2 * half
    longest = max(len(name_of(sheet, d)) for d in order)
    side = min(3.4, 0.6 + 0.085 * longest)
    page = Page(sheet, below, {}, 1, (4.2, tall), (side, 0.1, side, 0.1), margin=0)
    ax = page.panel(0)
    ax.set_xlim(k, 1)
    ax.set_ylim(tall, 0)  # inches, downwards
    ax.set_axis_off()
    axis = 0.42
    ax.plot([1, k], [axis, axis], color="black", linewidth=1)
    for tick in range(1, k + 1):
        ax.plot([tick, tick], [axis, axis - 0.06], color="black", linewidth=1, clip_on=False)
        ax.text(tick, axis - 0.1, str(tick), ha="center", va="bottom", fontsize=8)
    if found.difference <= k - 1:
        ax.plot([k, k - found.difference], [0.08, 0.08], color="#D55E00", linewidth=2, clip_on=False)
        ax.text(k - found.difference, 0.08, f" CD {found.difference:.2f}", ha="left", va="center", fontsize=8)
    for i, group in enumerate(cliques):
        y = axis + 0.1 + 0.13 * i
        ends = [found.average[group[0]] - 0.04, found.average[group[-1]] + 0.04]
        ax.plot(ends, [y, y], color="#0072B2", linewidth=3.5, solid_capstyle="round", clip_on=False)
    under = axis + 0.1 + 0.13 * len(cliques)
    for i, defense in enumerate(order):
        best = i < half
        y = under + 0.2 * ((i if best else k - 1 - i) + 0.5)
        end = 1 - 0.02 * k if best else k + 0.02 * k
        rank = found.average[defense]
        ax.plot([rank, rank, end], [axis, y, y], color="#444444", linewidth=0.8, clip_on=False, zorder=1)
        name = short(name_of(sheet, defense), 36)
        shown = f"{name} ({rank:.1f})" if best else f"({rank:.1f}) {name}"
        ax.text(end, y, f" {shown} ", ha="left" if best else "right", va="center", fontsize=8, clip_on=False)
    return page
