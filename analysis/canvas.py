"""Many panels of lines, markers and squares drawn as one: an artist per defence instead of one per panel, defence and metric.

matplotlib takes milliseconds for each of its axes, ticks and lines; a sweep has thousands of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.drawing import EDGE, HOLLOW, Look, Page
from analysis.sheets import Key

MOST = 6000  # dots on the lines of a page: where there are more, they hide each other
SLACK = 0.06  # how far outside of its panel a marker may be


@dataclass(frozen=True)
class Scale:
    """From values to 0..1 along a side of a panel. `ticks`: value -> its label. `counts`: logarithmic, with a place for 0."""

    low: float
    high: float
    ticks: Mapping[float, str]
    counts: bool = False

    def bend(self, values: Any) -> Any:
        values = np.asarray(values, dtype=float)
        if not self.counts:
            return values
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(values < 1, 0.3 * values, 0.3 + np.log10(np.maximum(values, 1)))

    def __call__(self, values: Any) -> Any:
        low, high = self.bend(self.low), self.bend(self.high)
        return (self.bend(values) - low) / (high - low)


def percent(step: int = 50) -> Scale:
    return Scale(-4, 104, {v: str(v) for v in range(0, 101, step)})


def counting(largest: float) -> Scale:
    """For numbers of channels."""
    steps = (1, 3) if largest < 300 else (1,)  # more labels would touch each other
    ticks = [0, *(n * 10**k for k in range(7) for n in steps if n * 10**k <= largest)]
    return Scale(-0.3, max(1.0, largest) * 1.15, {tick: str(tick) for tick in ticks}, counts=True)


def around(low: float, high: float) -> Scale:
    """With at most 8 ticks at round numbers."""
    step = next(s for k in range(-3, 4) for s in (10.0**k, 2 * 10.0**k, 5 * 10.0**k) if (high - low) / s <= 8)
    ticks = [round(step * n, 6) for n in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]
    return Scale(low, high, {tick: f"{tick:g}" for tick in ticks})


# -- the page ----------------------------------------------------------------------------------------------------------
@dataclass
class Canvas:
    """Everything in inches from the lower left of the page. Add panels, then lines and marks to them, then `finish`."""

    page: Page
    looks: Mapping[Key, Look]
    lines: dict[Key, list[Any]] = field(default_factory=dict)
    dots: dict[Key, list[Any]] = field(default_factory=dict)
    marks: dict[tuple[Key, bool], list[Any]] = field(default_factory=dict)
    fronts: list[Any] = field(default_factory=list)
    grid: list[Any] = field(default_factory=list)
    sides: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ax, self.text = self.page.ax, self.page.text

    def panel(self, place: int, stacked: int, x: Scale, y: Scale, words: Mapping[str, str], last: bool) -> Panel:
        """`words`: title, left, below. Labels stand left of the first column, and below the `last` axes of a stack that has no
        other below it."""
        x0, y0, wide, tall = box = self.page.boxes(place)[stacked]
        along, up = x0 + wide * x(list(x.ticks)), y0 + tall * y(list(y.ticks))
        self.grid += [[(a, y0), (a, y0 + tall)] for a in along] + [[(x0, b), (x0 + wide, b)] for b in up]
        self.sides.append([(x0, y0 + tall), (x0, y0), (x0 + wide, y0)])
        if last and place + self.page.columns >= self.page.count:
            for a, text in zip(along, x.ticks.values(), strict=True):
                self.text(a, y0 - 0.06, text, va="top")
            self.text(x0 + wide / 2, y0 - 0.24, words.get("below", ""), 9, va="top")
        if place % self.page.columns == 0:
            for b, text in zip(up, y.ticks.values(), strict=True):
                self.text(x0 - 0.06, b, text, ha="right")
            self.text(x0 - 0.42, y0 + tall / 2, words.get("left", ""), 9, angle=90)
        if title := words.get("title", ""):
            self.page.title_above(box, title)
        return Panel(self, box, x, y)

    def squares(self, box: Sequence[float], values: Any, colours: Any, empty: str = "") -> None:
        """A square for each of `values` [rows, columns] in the box, the first row above. `colours`: numbers -> RGBA. NaN is
        white, with the hatching `empty`."""
        from matplotlib.collections import PolyCollection

        x0, y0, wide, tall = box
        rows, columns = values.shape
        i, j = (part.ravel() for part in np.indices(values.shape))
        left, low = x0 + wide * j / columns, y0 + tall * (rows - 1 - i) / rows
        right, high = left + wide / columns, low + tall / rows
        corners = np.stack([np.stack(pair, -1) for pair in ((left, low), (right, low), (right, high), (left, high))], 1)
        known = ~np.isnan(values.ravel())
        made = colours(values.ravel()[known])
        self.ax.add_collection(
            PolyCollection(corners[known], facecolors=made, edgecolors=made, linewidths=0.2), autolim=False
        )
        if empty and not known.all():
            bare = PolyCollection(corners[~known], facecolors="none", edgecolors="#999999", linewidths=0, hatch=empty)
            self.ax.add_collection(bare, autolim=False)

    def bar(self, box: Sequence[float], colours: Any, scale: Scale) -> None:
        """What the colours mean, from below; `colours` as for `squares`, of values along `scale`."""
        x0, y0, wide, tall = box
        self.squares(box, np.linspace(scale.high, scale.low, 100)[:, None], colours)
        for value, text in scale.ticks.items():
            self.text(x0 + wide + 0.05, y0 + tall * float(scale(value)), text, 7, ha="left")

    def finish(self) -> Page:
        from matplotlib.collections import LineCollection

        self.ax.add_collection(LineCollection(self.grid, colors="#e5e5e5", linewidths=0.6, zorder=0.5), autolim=False)
        self.ax.add_collection(LineCollection(self.fronts, colors="#888888", linewidths=1.4, zorder=1), autolim=False)
        dotted = sum(found.shape[1] for every in self.dots.values() for found in every) <= MOST
        for defense, (colour, marker, style) in self.looks.items():
            for of_all, how, dot in ((self.lines, style, ""), (self.dots if dotted else {}, "", marker)):
                if of_all.get(defense):
                    x, y = np.concatenate(of_all[defense], axis=1)
                    self.ax.plot(
                        x, y, marker=dot, linestyle=how, color=colour, linewidth=0.9, markersize=2.2, alpha=0.75,
                        scalex=False, scaley=False,
                    )  # fmt: skip
            for took in (True, False):
                if found := self.marks.get((defense, took)):
                    x, y = np.concatenate(found, axis=1)
                    edge = EDGE if took else HOLLOW | {"markeredgecolor": colour}
                    self.ax.plot(
                        x, y, marker, color=colour, markersize=6, **edge, zorder=3, scalex=False, scaley=False
                    )  # fmt: skip
        self.ax.add_collection(LineCollection(self.sides, colors="black", linewidths=0.8, zorder=2.5), autolim=False)
        return self.page


@dataclass(frozen=True)
class Panel:
    canvas: Canvas
    box: tuple[float, float, float, float]
    x: Scale
    y: Scale

    def points(self, x: Any, y: Any) -> Any:
        """Two rows: where the values are on the page; NaN outside of the panel."""
        return points([self], np.zeros(np.shape(x), dtype=int), x, y)

    def lines(self, defense: Key, x: Any, y: Any, seeds: Any) -> None:
        """One line per seed, and dots on it."""
        lines([self], defense, np.zeros(len(x), dtype=int), x, y, seeds)

    def front(self, steps: Sequence[tuple[float, float]]) -> None:
        """Steps from each point to the right and up to the next."""
        x, y = np.array(steps, dtype=float).T
        self.canvas.fronts.append(self.points(np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]).T)


# -- on many panels at once: they share their scales, and `which` says for each value whose it is --------------------------
def points(panels: Sequence[Panel], which: Any, x: Any, y: Any) -> Any:
    """As `Panel.points`."""
    x0, y0, wide, tall = np.array([panel.box for panel in panels])[which].T
    a, b = panels[0].x(x), panels[0].y(y)
    inside = (a > -SLACK) & (a < 1 + SLACK) & (b > -SLACK) & (b < 1 + SLACK)
    return np.where(inside, np.stack([x0 + wide * a, y0 + tall * b]), np.nan)


def lines(panels: Sequence[Panel], defense: Key, which: Any, x: Any, y: Any, seeds: Any) -> None:
    """As `Panel.lines`."""
    x, y, seeds = np.asarray(x, dtype=float), np.asarray(y, dtype=float), np.asarray(seeds)
    order = np.lexsort((x, seeds, which))
    found = points(panels, which[order], x[order], y[order])
    cuts = np.flatnonzero((np.diff(seeds[order]) != 0) | (np.diff(which[order]) != 0)) + 1
    gap = np.full((2, 1), np.nan)
    canvas = panels[0].canvas
    canvas.lines.setdefault(defense, []).extend([np.insert(found, cuts, np.nan, axis=1), gap])
    canvas.dots.setdefault(defense, []).append(found)


def mark(panels: Sequence[Panel], defense: Key, which: Any, x: Any, y: Any, took: Any = True) -> None:
    """Large markers; hollow where the attack did not take."""
    took = np.broadcast_to(np.asarray(took, dtype=bool), np.shape(x))
    for kind in (True, False):
        of_kind = took == kind
        if of_kind.any():
            found = points(panels, np.asarray(which)[of_kind], np.asarray(x)[of_kind], np.asarray(y)[of_kind])
            panels[0].canvas.marks.setdefault((defense, kind), []).append(found)
