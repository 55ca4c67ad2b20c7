"""Plot: how many of the backdoor's channels a pruner has found, and what ASR is left, with the oracle's curve as the bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.canvas import Canvas, counting, percent
from analysis.drawing import Look, Page, heading, looks, name_of
from analysis.sheets import PAIR, Key, Sheet

BOUND: Look = ("#000000", "", "-")  # of a defence that sees the trigger
Rows = Sequence[Mapping[str, Any]]


def draw_bounds(sheet: Sheet, measured: Mapping[tuple[Key, Key], Rows], points: pd.DataFrame) -> Page | None:
    """A panel per attack against the number of pruned channels: above, the share of backdoor channels among them, as a mean
    over seeds; below, ASR, a line per seed. `measured`: (defence, attack) -> what `channels.measure` says of each seed.
    """
    defenses = [d for d in sheet.defenses if any(key[0] == d for key in measured)]
    attacks = [a for a in sheet.attacks if any(key[1] == a for key in measured)]
    if not attacks:
        return None
    seen = {d: BOUND if d in sheet.cheats else look for d, look in looks(defenses).items()}
    chance: Look = ("#777777", "", ":")
    below = (
        "Above: the share of the backdoor's channels among the first that a defence prunes, mean over seeds whose attack took; "
        "dotted: pruning by chance. Below: the ASR that is left, a line per seed. "
    ) + ("Black: the bound, by a control that sees the trigger." if sheet.cheats & set(defenses) else "")
    titles = [heading(sheet, a) for a in attacks]
    page = Page(
        sheet,
        below,
        {name_of(sheet, d): seen[d] for d in defenses} | {"chance": chance},
        len(attacks),
        (2.9, 3.6),
        stacked=2,
        titles=titles,
    )
    canvas = Canvas(page, seen)
    curves: Mapping[Any, pd.DataFrame] = dict(iter(points.groupby(PAIR, sort=False))) if len(points) else {}
    largest = max(row["channels"] for rows in measured.values() for row in rows)
    x = counting(largest)
    for i, (attack, title) in enumerate(zip(attacks, titles, strict=True)):
        above = canvas.panel(i, 0, x, percent(), {"left": "found (%)", "title": title}, last=False)
        under = canvas.panel(i, 1, x, percent(), {"left": "ASR (%)", "below": "pruned channels"}, last=True)
        every = np.unique(np.geomspace(1, largest, 60).astype(int))
        canvas.ax.plot(*above.points(every, 100 * every / largest), color=chance[0], linestyle=chance[2], linewidth=0.9)
        for defense in defenses:
            colour, marker, style = seen[defense]
            wide = 1.8 if defense in sheet.cheats else 1.0
            if rows := measured.get((defense, attack)):
                counts, shares = mean_curve(rows)
                drawn = above.points(counts, 100 * shares)
                canvas.ax.plot(*drawn, style, color=colour, linewidth=wide, zorder=2 if wide > 1 else 3)
                ends = np.linspace(0, len(counts) - 1, 8).astype(int)
                canvas.ax.plot(*drawn[:, ends], linestyle="", marker=marker, color=colour, markersize=3)
            if (found := curves.get((*defense, *attack))) is not None:
                under.lines(defense, found["pruned"], found["asr"], found["seed"])
    return canvas.finish()


def mean_curve(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Over seeds, of curves that may have been kept at different counts: counts and shares."""
    x = np.unique(np.concatenate([[count for count, _ in row["curve"]] for row in rows]))
    curves = [np.array(row["curve"], dtype=float) for row in rows]
    return x, np.mean([np.interp(x, curve[:, 0], curve[:, 1]) for curve in curves], axis=0)
