"""Many panels of lines and markers drawn as one: an artist per defence instead of one per panel, defence and metric.

matplotlib takes milliseconds for each of its axes, ticks and lines; a sweep has thousands of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.drawing import EDGE, Look, Page
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
        self.ax = self.page.figure.add_axes((0, 0, 1, 1))
        self.ax.set_xlim(0, self.page.width)
        self.ax.set_ylim(0, self.page.height)
        self.ax.set_axis_off()

    def panel(self, place: int, stacked: int, x: Scale, y: Scale, words: Mapping[str, str], last: bool) -> Panel:
        """`words`: title, left, below. Labels of the ticks stand left of the first column and below the `last` of a stack."""
        x0, y0, wide, tall = box = self.page.boxes(place)[stacked]
        along, up = x0 + wide * x(list(x.ticks)), y0 + tall * y(list(y.ticks))
        self.grid += [[(a, y0), (a, y0 + tall)] for a in along] + [[(x0, b), (x0 + wide, b)] for b in up]
        self.sides.append([(x0, y0 + tall), (x0, y0), (x0 + wide, y0)])
        small: dict[str, Any] = {"fontsize": 8}
        if last:
            for a, text in zip(along, x.ticks.values(), strict=True):
                self.ax.text(a, y0 - 0.05, text, ha="center", va="top", **small)
        if place % self.page.columns == 0:
            for b, text in zip(up, y.ticks.values(), strict=True):
                self.ax.text(x0 - 0.05, b, text, ha="right", va="center", **small)
            self.ax.text(x0 - 0.42, y0 + tall / 2, words.get("left", ""), ha="center", va="center", rotation=90)
        self.ax.text(x0 + wide / 2, y0 + tall + 0.06, words.get("title", ""), ha="center", va="bottom")
        self.ax.text(x0 + wide / 2, y0 - 0.22, words.get("below", ""), ha="center", va="top")
        return Panel(self, box, x, y)

    def finish(self) -> Page:
        from matplotlib.collections import LineCollection

        self.ax.add_collection(LineCollection(self.grid, colors="#e5e5e5", linewidths=0.6, zorder=0.5))
        self.ax.add_collection(LineCollection(self.fronts, colors="#888888", linewidths=1.4, zorder=1))
        step = 1 + sum(found.shape[1] for every in self.dots.values() for found in every) // MOST
        for defense, (colour, marker, style) in self.looks.items():
            for place, (xy, how) in enumerate(((self.lines, style), (self.dots, ""))):
                if xy.get(defense):
                    x, y = np.concatenate(xy[defense], axis=1)[:, :: step if place else 1]
                    dot = marker if place else ""
                    self.ax.plot(
                        x, y, marker=dot, linestyle=how, color=colour, linewidth=0.9, markersize=2.2, alpha=0.75
                    )
            for took in (True, False):
                if found := self.marks.get((defense, took)):
                    x, y = np.concatenate(found, axis=1)
                    inside = colour if took else "none"
                    self.ax.plot(x, y, marker, color=colour, markerfacecolor=inside, markersize=6, **EDGE, zorder=3)
        self.ax.add_collection(LineCollection(self.sides, colors="black", linewidths=0.8, zorder=2.5))
        return self.page


@dataclass(frozen=True)
class Panel:
    canvas: Canvas
    box: tuple[float, float, float, float]
    x: Scale
    y: Scale

    def points(self, x: Any, y: Any) -> Any:
        """Two rows: where the values are on the page; NaN outside of the panel."""
        x0, y0, wide, tall = self.box
        a, b = self.x(x), self.y(y)
        inside = (a > -SLACK) & (a < 1 + SLACK) & (b > -SLACK) & (b < 1 + SLACK)
        return np.where(inside, np.stack([x0 + wide * a, y0 + tall * b]), np.nan)

    def lines(self, defense: Key, x: Any, y: Any, seeds: Any) -> None:
        """One line per seed, and dots on it."""
        order = np.lexsort((x, seeds))
        found = self.points(np.asarray(x)[order], np.asarray(y)[order])
        cuts = np.flatnonzero(np.diff(np.asarray(seeds)[order])) + 1
        gap = np.full((2, 1), np.nan)
        self.canvas.lines.setdefault(defense, []).extend([np.insert(found, cuts, np.nan, axis=1), gap])
        self.canvas.dots.setdefault(defense, []).append(found)

    def mark(self, defense: Key, x: Sequence[Any], y: Sequence[Any], took: bool = True) -> None:
        """Large markers; hollow where the attack did not take."""
        found = self.points(np.array(x, dtype=float), np.array(y, dtype=float))
        if found.shape[1]:
            self.canvas.marks.setdefault((defense, took), []).append(found)

    def front(self, steps: Sequence[tuple[float, float]]) -> None:
        """Steps from each point to the right and up to the next."""
        x, y = np.array(steps, dtype=float).T
        self.canvas.fronts.append(self.points(np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]).T)
