"""Plots of the operating points: ACC against ASR with its Pareto front, a heat map, and cost against DER."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.canvas import Canvas, Scale, percent
from analysis.drawing import EDGE, Page, heading, looks, name_of, text
from analysis.paper import took
from analysis.sheets import BASELINES, Cell, Key, Sheet, mean, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

READABLE = 24  # more numbers side by side cannot be read


# -- trade-off ---------------------------------------------------------------------------------------------------------
def draw_tradeoff(sheet: Sheet, points: pd.DataFrame, rule: str) -> Page | None:
    """A panel per attack: one marker per cell, ACC after the defence against ASR after it. Good is the upper left."""
    look = looks(sheet.defenses)
    attacks = [a for a in sheet.attacks if any(sheet.cell(d, a).column("asr", rule) for d in look)]
    if not attacks:
        return None
    hollow = "" if sheet.rows["took"].all() else " Hollow: the attack did not take."
    below = (
        f"One marker per seed, at the operating point by {rule}; good is the upper left. Grey steps: the Pareto front of the "
        f"means over seeds, without what cheats.{hollow}"
    )
    page = Page(sheet, below, {name_of(sheet, d): s for d, s in look.items()}, len(attacks), (2.5, 2.4), line=False)
    canvas, found = Canvas(page, look), {}
    for attack in attacks:
        for defense in look:
            suffix = "before" if defense[0] == "none" else rule
            rows = sheet.cell(defense, attack).rows
            found[defense, attack] = [(row[f"asr_{suffix}"], row[f"acc_{suffix}"], row["took"]) for row in rows]
    drawn = [acc for rows in found.values() for _, acc, _ in rows]
    room = 0.08 * (max(drawn) - min(drawn)) + 0.5  # a marker at the rim stays whole
    x, y = percent(20), around(min(drawn) - room, min(max(drawn) + room, 101.5))
    for i, attack in enumerate(attacks):
        words = {"title": heading(sheet, attack), "below": "ASR (%)", "left": "ACC (%)"}
        panel = canvas.panel(i, 0, x, y, words, last=True)
        for defense in look:
            for whole in (True, False):
                dots = [(asr, acc) for asr, acc, took_it in found[defense, attack] if took_it == whole]
                panel.mark(defense, [asr for asr, _ in dots], [acc for _, acc in dots], whole)
        steps = front(sheet, attack, rule)
        if attack[0] not in BASELINES and len(steps) > 1:
            panel.front(steps)
    return canvas.finish()


def around(low: float, high: float) -> Scale:
    """With at most 8 ticks at round numbers."""
    step = next(s for k in range(-3, 4) for s in (10.0**k, 2 * 10.0**k, 5 * 10.0**k) if (high - low) / s <= 8)
    ticks = [round(step * n, 6) for n in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]
    return Scale(low, high, {tick: f"{tick:g}" for tick in ticks})


def front(sheet: Sheet, attack: Key, rule: str) -> list[tuple[float, float]]:
    """The Pareto front of the defences' means, without what cheats."""
    cells = [sheet.cell(d, attack) for d in sheet.defenses if d not in sheet.cheats]
    means = [(mean(c.column("asr", rule)), mean(c.column("acc", rule))) for c in cells if c.counts]
    return pareto([point for point in means if not np.isnan(point).any()])


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (ASR, ACC) that no other beats in both, by rising ASR."""
    best: list[tuple[float, float]] = []
    for asr, acc in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if not best or acc > best[-1][1]:
            best.append((asr, acc))
    return best


# -- heat map ----------------------------------------------------------------------------------------------------------
def draw_heatmap(sheet: Sheet, points: pd.DataFrame, rule: str) -> Page | None:
    """Attacks by defences: ASR after, and the ACC that it cost."""
    attacks, defenses = sheet.attacks, sheet.defenses
    wide, tall = max(2.0, 0.42 * len(defenses)), max(0.8, 0.3 * len(attacks))
    longest = max(len(text(a)) for a in attacks), max(len(name_of(sheet, d)) for d in defenses)
    room = (0.3 + 0.08 * min(longest[0], 40), 0.25 + 0.08 * min(longest[1], 40), 0.75, 0.4)
    below = (
        f"Means over seeds, at the operating point by {rule}. Hatched: no number; in brackets: the attack did not take."
    )
    page = Page(sheet, below, {}, 2, (wide, tall), room, margin=0, across=2 if wide < 6 else 1)
    titles = ("ASR after (%)", "ACC lost (points)")
    for i, (title, largest) in enumerate(zip(titles, (100.0, None), strict=True)):
        ax = page.panel(i)
        values = np.array([[value(sheet.cell(d, a), a, rule, i) for d in defenses] for a in attacks], dtype=float)
        gone = [[not sheet.cell(d, a).counts for d in defenses] for a in attacks]
        names = ([name_of(sheet, d)[:40] for d in defenses], [text(a)[:40] for a in attacks])
        squares(ax, values, gone, names, largest)
        ax.set_title(title, fontsize=9)
    return page


def value(cell: Cell, attack: Key, rule: str, which: int) -> float:
    if which == 0:
        return mean(cell.column("asr", rule))
    return mean(cell.values("acc_before")) - mean(cell.column("acc", rule))


def squares(ax: Axes, values: Any, gone: Any, names: tuple[list[str], list[str]], largest: float | None) -> None:
    """One square per number, dark = high; hatched where there is none."""
    from matplotlib.patches import Rectangle

    low = 0.0 if largest else float(min(0.0, np.nanmin(values, initial=0.0)))
    high = largest or float(max(1.0, np.nanmax(values, initial=1.0)))
    image = ax.imshow(values, cmap="cividis_r", vmin=low, vmax=high, aspect="auto")
    for row, column in zip(*np.nonzero(np.isnan(values)), strict=True):
        corner = (column - 0.5, row - 0.5)
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="////", edgecolor="#999999", linewidth=0))
    if max(values.shape) <= READABLE:
        for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True):
            dark = (values[row, column] - low) / (high - low) > 0.55
            shown = number(values[row, column])
            shown = f"({shown})" if gone[row][column] else shown
            size = 6.5 if len(shown) < 6 else 5.5
            ax.text(column, row, shown, ha="center", va="center", fontsize=size, color="white" if dark else "black")
    ax.set_xticks(range(values.shape[1]), names[0], rotation=90, fontsize=8)
    ax.set_yticks(range(values.shape[0]), names[1], fontsize=8)
    ax.tick_params(length=0)
    ax.grid(False)
    bar = ax.inset_axes((1.02, 0, 0.025, 1))
    ax.figure.colorbar(image, cax=bar).outline.set_visible(False)
    bar.tick_params(labelsize=7, length=2)
    bar.grid(False)


# -- cost --------------------------------------------------------------------------------------------------------------
def draw_cost(sheet: Sheet, points: pd.DataFrame, rule: str) -> Page | None:
    """What a defence costs against what it brings: seconds against DER."""
    least, look = 1e-3, {d: s for d, s in looks(sheet.defenses).items() if d[0] != "none"}
    dots = {}
    for defense in look:
        cells = took({a: sheet.cell(defense, a) for a in sheet.attacks})
        if cells:
            each = [(max(least, mean(c.values("seconds"))), mean(c.column("der", rule))) for c in cells]
            dots[defense] = each
    if not dots:
        return None
    below = (
        f"Small: one attack, mean over seeds; large: mean over the attacks that took, at the operating point by {rule}. "
        f"Seconds of the defence alone, {least:g} at least. DER 50: nothing gained."
    )
    names = {name_of(sheet, d): look[d] for d in dots}
    page = Page(sheet, below, names, 1, (4.6, 2.9), line=False)
    ax = page.panel(0)
    ax.axhline(50, color="#888888", linewidth=1.0, linestyle=":")
    for defense, each in dots.items():
        colour, marker, _ = look[defense]
        ax.plot(*zip(*each, strict=True), marker, color=colour, markersize=3.5, alpha=0.6, linestyle="")
        middle = [mean(values) for values in zip(*each, strict=True)]
        ax.plot(*middle, marker, color=colour, markersize=9, **EDGE, zorder=3)
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    decades = [10.0**k for k in range(-3, 7) if low <= 10.0**k <= high]
    ax.set_xticks(decades, [f"{decade:g}" for decade in decades])
    ax.minorticks_off()
    ax.set_xlabel("seconds")
    ax.set_ylabel("DER (%)")
    return page


# -- layers ------------------------------------------------------------------------------------------------------------
def draw_layers(sheet: Sheet, pruned: pd.DataFrame, rule: str) -> Page | None:
    """Where in the network a defence prunes: the share of each layer's channels, a panel per attack."""
    if not len(pruned):
        return None
    pruned = pruned.assign(share=100 * pruned[rule].astype(float) / pruned["channels"].astype(float))
    pruned = pruned[pruned["share"].notna()]
    if not len(pruned):
        return None
    layers = list(dict.fromkeys(pruned["layer"]))
    keys = ["attack", "attack_settings", "defense", "defense_settings", "layer"]
    shares: dict[Any, float] = pruned.groupby(keys, sort=False)["share"].mean().to_dict()
    there = {key[2:4] for key in shares}
    defenses = [d for d in sheet.defenses if d in there]
    attacks = [a for a in sheet.attacks if any(key[:2] == a for key in shares)]
    longest = max(len(name_of(sheet, d)) for d in defenses), max(map(len, layers))
    room = (0.3 + 0.08 * min(longest[0], 40), 0.2 + 0.07 * min(longest[1], 40), 0.6, 0.35)
    size = (max(2.2, 0.16 * len(layers)), max(0.7, 0.22 * len(defenses)))
    below = (
        f"Share of each layer's channels pruned at the operating point by {rule}, percent, mean over seeds; input left."
    )
    page = Page(
        sheet, below, {}, len(attacks), size, room, margin=0, across=max(1, int(14 / (size[0] + room[0] + room[2])))
    )
    for i, attack in enumerate(attacks):
        ax = page.panel(i)
        values = np.array(
            [[shares.get((*attack, *d, layer), np.nan) for layer in layers] for d in defenses], dtype=float
        )
        names = ([text((layer, ""))[:40] for layer in layers], [name_of(sheet, d)[:40] for d in defenses])
        squares_plain(ax, values, names)
        ax.set_title(heading(sheet, attack), fontsize=9)
    return page


def squares_plain(ax: Axes, values: Any, names: tuple[list[str], list[str]]) -> None:
    """As `squares`, on the scale of this panel and without numbers."""
    image = ax.imshow(values, cmap="cividis_r", vmin=0, vmax=max(1.0, float(np.nanmax(values))), aspect="auto")
    ax.set_xticks(range(values.shape[1]), names[0], rotation=90, fontsize=6)
    ax.set_yticks(range(values.shape[0]), names[1], fontsize=8)
    ax.tick_params(length=0)
    ax.grid(False)
    bar = ax.inset_axes((1.02, 0, 0.03, 1))
    ax.figure.colorbar(image, cax=bar).outline.set_visible(False)
    bar.tick_params(labelsize=7, length=2)
    bar.grid(False)
