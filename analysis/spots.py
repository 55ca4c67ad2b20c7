"""Plots of the operating points: ACC against ASR with its Pareto front, a heat map, and cost against DER."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from analysis.canvas import Canvas, Scale, around, mark, percent
from analysis.drawing import ACROSS, EDGE, ROOM, UNDER, Page, heading, looks, name_of, short, text
from analysis.paper import took
from analysis.render import plain
from analysis.sheets import BASELINES, Cell, Key, Sheet, mean, number

READABLE = 24  # more numbers side by side cannot be read
CROWD = 60  # markers in a panel: more hide each other
Box = Sequence[float]
"""Left, bottom, width and height in inches."""


# -- trade-off ---------------------------------------------------------------------------------------------------------
def draw_tradeoff(sheet: Sheet, points: pd.DataFrame, rule: str) -> Page | None:
    """A panel per attack: one marker per cell, ACC after the defence against ASR after it. Good is the upper left."""
    look = looks(sheet.defenses)
    attacks = [a for a in sheet.attacks if any(sheet.cell(d, a).column("asr", rule) for d in look)]
    if not attacks:
        return None
    found = {(d, i): spots(sheet.cell(d, a), d, rule) for d in look for i, a in enumerate(attacks)}
    crowded = max(sum(len(found[d, i]) for d in look) for i in range(len(attacks))) > CROWD
    if crowded:
        found = {key: middle(of_cell) for key, of_cell in found.items()}
    hollow = "" if sheet.rows["took"].all() else " Hollow: the attack did not take."
    below = (
        f"One marker per {'defence, the mean over seeds' if crowded else 'seed'}, at the operating point by {rule}; good is the "
        f"upper left. Grey steps: the Pareto front of the means over seeds, without what cheats.{hollow}"
    )
    names = {name_of(sheet, d): s for d, s in look.items()}
    titles = [heading(sheet, a) for a in attacks]
    page = Page(sheet, below, names, len(attacks), (2.5, 2.4), ROOM, line=False, under=UNDER, titles=titles)
    canvas = Canvas(page, look)
    drawn = [acc for of_cell in found.values() for _, acc, _ in of_cell]
    room = 0.08 * (max(drawn) - min(drawn)) + 0.5  # a marker at the rim stays whole
    x, y = percent(20), around(min(drawn) - room, min(max(drawn) + room, 101.5))
    words = {"below": "ASR (%)", "left": "ACC (%)"}
    panels = [canvas.panel(i, 0, x, y, words | {"title": title}, last=True) for i, title in enumerate(titles)]
    for defense in look:
        own = [(i, *spot) for i in range(len(attacks)) for spot in found[defense, i]]
        if own:
            which, asr, acc, took_it = (np.array(part) for part in zip(*own, strict=True))
            mark(panels, defense, which, asr.astype(float), acc.astype(float), took_it)
    for panel, attack in zip(panels, attacks, strict=True):
        steps = front(sheet, attack, rule)
        if attack[0] not in BASELINES and len(steps) > 1:
            panel.front(steps)
    return canvas.finish()


Spot = tuple[Any, Any, bool]
"""ASR, ACC, and whether the attack took."""


def spots(cell: Cell, defense: Key, rule: str) -> list[Spot]:
    """One per seed."""
    suffix = "before" if defense[0] == "none" else rule
    return [(row[f"asr_{suffix}"], row[f"acc_{suffix}"], row["took"]) for row in cell.rows]


def middle(found: list[Spot]) -> list[Spot]:
    """The mean over the seeds whose attack took; of all of them if it took for none."""
    counted = [spot for spot in found if spot[2]] or found
    known = [(asr, acc) for asr, acc, _ in counted if asr is not None and asr == asr]
    return [(*(mean(part) for part in zip(*known, strict=True)), counted[0][2])] if known else []  # type: ignore[list-item]


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
    names = [short(name_of(sheet, d)) for d in defenses], [short(text(a)) for a in attacks]
    longest = [max(map(len, of_axis)) for of_axis in names]
    room = (0.3 + 0.08 * longest[1], 0.25 + 0.08 * longest[0], 0.75, 0.4)
    below = (
        f"Means over seeds, at the operating point by {rule}. Hatched: no number; in brackets: the attack did not take."
    )
    page = Page(sheet, below, {}, 2, (wide, tall), room, margin=0, across=2 if wide < 6 else 1)
    canvas = Canvas(page, {})
    for i, (title, largest) in enumerate(zip(("ASR after (%)", "ACC lost (points)"), (100.0, None), strict=True)):
        values = np.array([[value(sheet.cell(d, a), a, rule, i) for d in defenses] for a in attacks], dtype=float)
        gone = [[not sheet.cell(d, a).counts for d in defenses] for a in attacks]
        low = 0.0 if largest else float(min(0.0, np.nanmin(values, initial=0.0)))
        scale = around(low, largest or float(max(1.0, np.nanmax(values, initial=1.0))))
        box = page.boxes(i)[0]
        canvas.squares(box, values, partial(shade, scale=scale), empty="////")
        if max(values.shape) <= READABLE:
            numbered(canvas, box, values, gone, scale)
        named(canvas, box, names, title)
        canvas.bar((box[0] + 1.02 * box[2], box[1], 0.025 * box[2], box[3]), partial(shade, scale=scale), scale)
    return canvas.finish()


def value(cell: Cell, attack: Key, rule: str, which: int) -> float:
    if which == 0:
        return mean(cell.column("asr", rule))
    return mean(cell.values("acc_before")) - mean(cell.column("acc", rule))


def shade(values: Any, scale: Scale, power: float = 1.0) -> Any:
    """RGBA, dark = high."""
    from matplotlib import colormaps

    return colormaps["cividis_r"](np.clip(scale(values), 0, 1) ** power)


def numbered(canvas: Canvas, box: Box, values: Any, gone: Any, scale: Scale) -> None:
    """A number in each square, in brackets where it is `gone`."""
    x0, y0, wide, tall = box
    rows, columns = values.shape
    for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True):
        shown = number(values[row, column])
        shown = f"({shown})" if gone[row][column] else shown
        size, dark = 6.5 if len(shown) < 6 else 5.5, scale(values[row, column]) > 0.55
        x, y = x0 + wide * (column + 0.5) / columns, y0 + tall * (rows - row - 0.5) / rows
        canvas.text(x, y, shown, size, colour="white" if dark else "black")


def named(
    canvas: Canvas, box: Box, names: tuple[Sequence[str], Sequence[str]], title: str, size: float = 8, side: bool = True,
    foot: bool = True,
) -> None:  # fmt: skip
    """The names of the columns below the squares (if `foot`) and of the rows left of them (if `side`), and a title above."""
    x0, y0, wide, tall = box
    for i, name in enumerate(names[0] if foot else ()):
        canvas.text(x0 + wide * (i + 0.5) / len(names[0]), y0 - 0.06, name, size, ha="right", angle=90)
    for i, name in enumerate(names[1] if side else ()):
        canvas.text(x0 - 0.06, y0 + tall * (len(names[1]) - i - 0.5) / len(names[1]), name, 8, ha="right")
    canvas.page.title_above(box, title)


# -- cost --------------------------------------------------------------------------------------------------------------
def draw_cost(sheet: Sheet, points: pd.DataFrame, rule: str) -> Page | None:
    """What a defence costs against what it brings: seconds against DER."""
    least, look = 1e-3, {d: s for d, s in looks(sheet.defenses).items() if d[0] != "none"}
    dots = {}
    for defense in look:
        cells = took({a: sheet.cell(defense, a) for a in sheet.attacks})
        if cells:
            each = [(max(least, mean(c.values("seconds"))), mean(c.column("der", rule))) for c in cells.values()]
            dots[defense] = each
    if not dots:
        return None
    below = (
        f"Small: one attack, mean over seeds; large: mean over the attacks that took, at the operating point by {rule}. "
        f"Seconds of the defence alone, {least:g} at least. DER 50: nothing gained."
    )
    names = {name_of(sheet, d): look[d] for d in dots}
    page = Page(sheet, below, names, 1, (4.6, 2.9), ROOM, line=False, under=UNDER)
    canvas = Canvas(page, look)
    every = [spot for each in dots.values() for spot in each]
    seconds, der = zip(*every, strict=True)
    low, high = math.log10(min(seconds)) - 0.15, math.log10(max(seconds)) + 0.15
    decades = {float(k): f"{10.0**k:g}" for k in range(math.ceil(low), math.floor(high) + 1)}
    edge = min(*der, 50.0) - 3, max(*der, 50.0) + 3
    words = {"below": "seconds", "left": "DER (%)"}
    panel = canvas.panel(0, 0, Scale(low, high, decades), around(*edge), words, last=True)
    page.ax.plot(*panel.points([low, high], [50, 50]), color="#888888", linewidth=1.0, linestyle=":")
    for defense, each in dots.items():
        colour, marker, _ = look[defense]
        times, gains = (list(part) for part in zip(*each, strict=True))
        small, large = panel.points(np.log10(times), gains), panel.points([math.log10(mean(times))], [mean(gains)])
        page.ax.plot(*small, marker, color=colour, markersize=3.5, alpha=0.6, linestyle="")
        page.ax.plot(*large, marker, color=colour, markersize=9, **EDGE, zorder=3)
    return canvas.finish()


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
    there, on = {key[2:4] for key in shares}, {key[:2] for key in shares}
    defenses = [d for d in sheet.defenses if d in there]
    attacks = [a for a in sheet.attacks if a in on]
    names = [short(plain(layer)) for layer in layers], [short(name_of(sheet, d)) for d in defenses]
    size = (max(2.2, 0.13 * len(layers)), max(0.7, 0.2 * len(defenses)))
    side, foot = 0.2 + 0.075 * max(map(len, names[1])), 0.2 + 0.06 * max(map(len, names[0]))
    most = max(1.0, *shares.values())
    below = (
        f"Share of each layer's channels pruned at the operating point by {rule}, percent, mean over seeds; input left. The "
        "colours grow with the square root. White: no number."
    )
    across = max(1, min(ACROSS, int((14 - side) / (size[0] + 0.15))))
    titles = [heading(sheet, a) for a in attacks]
    page = Page(
        sheet, below, {}, len(attacks), size, (0.0, 0.08, 0.15, 0.28), margin=side, across=across, under=foot, right=0.6,
        titles=titles,
    )  # fmt: skip
    canvas = Canvas(page, {})
    scale = Scale(0, most, {v: str(v) for v in (0, 1, 5, 10, 20, 30, 50, 70, 100) if v <= most})
    for i, attack in enumerate(attacks):
        values = [[shares.get((*attack, *d, layer), np.nan) for layer in layers] for d in defenses]
        box = page.boxes(i)[0]
        canvas.squares(box, np.array(values, dtype=float), partial(shade, scale=scale, power=0.5))
        first, lowest = i % page.columns == 0, i + page.columns >= page.count
        named(canvas, box, names, titles[i], 6, side=first, foot=lowest)
    x, y, wide, tall = page.boxes(page.columns - 1)[0]
    root = Scale(0, math.sqrt(most), {math.sqrt(v): str(v) for v in scale.ticks})
    canvas.bar((x + wide + 0.12, y, 0.1, tall), partial(shade, scale=root), root)
    return canvas.finish()
