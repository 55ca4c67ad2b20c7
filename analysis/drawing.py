"""What all plots share: colours, markers, panels side by side, titles and legends, and files without dates."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from analysis.render import plain, slug, write
from analysis.sheets import BASELINES, Key, Sheet, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Look = tuple[str, str, Any]
"""Colour, marker and line."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe-Ito, without yellow
MARKERS = "osD^vPX<>ph"  # 7 colours and 11 markers: the pair repeats only after 77 defences, and markers tell in grey
LINES: tuple[Any, ...] = ("-", "--", ":")
NONE: Look = ("#777777", "*", "-")
STYLE: Any = {
    "text.parse_math": False,  # names come from files: a $ is a dollar
    "svg.hashsalt": "backprune",  # the same records give the same bytes
    "font.family": ["DejaVu Sans", "sans-serif"],  # the first comes with matplotlib
    "font.size": 9,
    "pdf.fonttype": 42,  # text stays text, to be searched and copied
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "path.simplify": True,
}
EDGE: dict[str, Any] = {"markeredgecolor": "black", "markeredgewidth": 0.6}
HOLLOW: dict[str, Any] = {"markerfacecolor": "none", "markeredgewidth": 1.2}  # with an edge in the defence's colour
ACROSS = 4  # panels in a row
LETTER = 0.075  # inches, of a letter of the legend
LINE = 0.155  # inches, of a line of a panel's title
ROOM = (0.12, 0.12, 0.12, 0.32)
UNDER = 0.42
"""Of panels that share the labels of the lowest: around each, and below all."""


def looks(defenses: Sequence[Key]) -> dict[Key, Look]:
    """Of each defence, the same in all panels."""
    others = [d for d in defenses if d[0] != "none"]
    found = {
        d: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], LINES[i // len(COLOURS) % len(LINES)])
        for i, d in enumerate(others)
    }
    return {d: found.get(d, NONE) for d in defenses}


def text(key: Key) -> str:
    """A name that matplotlib neither hides (a leading underscore) nor chokes on (control characters)."""
    return plain(label(key)).replace("_", "\u200a_", 1) if key[0].startswith("_") else plain(label(key))


def heading(sheet: Sheet, attack: Key) -> str:
    """The title of an attack's panel, with a mark if it did not take."""
    models = sheet.before(attack).rows
    took = sum(bool(row["took"]) for row in models)
    if attack[0] in BASELINES or took == len(models):
        return fill(text(attack), 34)
    return fill(f"{text(attack)} (took on {took} of {len(models)} seeds)", 34)


def short(name: str, letters: int = 40) -> str:
    """As much of a name as there is room for; where something is left out, that shows."""
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def name_of(sheet: Sheet, defense: Key) -> str:
    return text(defense) + (" (cheats)" if defense in sheet.cheats else "")


# -- a figure ----------------------------------------------------------------------------------------------------------
@dataclass
class Page:
    """A figure in which everything has its place in inches, so that nothing has to be tried out: that is slow.

    `size`: width and height of a panel, without its labels. `room`: left, bottom, right and top of a panel.
    """

    sheet: Sheet
    below: str  # the sentence above the legend
    legend: Mapping[str, Look]
    count: int
    size: tuple[float, float]
    room: tuple[float, float, float, float] = (0.12, 0.5, 0.12, 0.32)
    margin: float = 0.45  # left of all panels, for the labels of the first
    stacked: int = 1  # axes above each other in one panel
    across: int = ACROSS
    line: bool = True
    under: float = 0.0  # below the last row, for labels that all rows share
    right: float = 0.1  # right of the last column
    titles: Sequence[str] = ()  # of the panels: `room` is for one line, and each row gets more for its longest

    def __post_init__(self) -> None:
        from matplotlib.figure import Figure

        left, bottom, right, top = self.room
        self.columns = max(1, min(self.count, self.across))
        self.rows = math.ceil(self.count / self.columns)
        more = [LINE * title.count("\n") for title in self.titles]
        starts = range(0, self.rows * self.columns, self.columns)
        self.more = [max(more[start : start + self.columns], default=0.0) for start in starts]
        self.cell = self.size[0] + left + right, self.size[1] + bottom + top
        self.width = max(5.0, self.columns * self.cell[0] + self.margin + self.right)
        self.title = fill(f"{text(self.sheet.dataset)}, {text(self.sheet.model)}", int(self.width / 0.1))
        self.sentence = fill(self.below, int(self.width / 0.068))
        longest = max(map(len, self.legend), default=1)
        lines = math.ceil(len(self.legend) / max(1, int(self.width / (0.65 + longest * LETTER))))
        self.ncols = math.ceil(len(self.legend) / max(1, lines))  # as even as they fit
        self.foot = 0.15 + self.under + 0.17 * (self.sentence.count("\n") + 1) + 0.19 * lines
        self.head = 0.1 + 0.2 * (self.title.count("\n") + 1)
        self.height = self.foot + self.head + self.rows * self.cell[1] + sum(self.more)
        self.figure = Figure(figsize=(self.width, self.height))
        self.ax = self.figure.add_axes((0, 0, 1, 1))  # in inches
        self.ax.set(xlim=(0, self.width), ylim=(0, self.height))
        self.ax.set_axis_off()
        self.text(self.width / 2, self.height - 0.2, self.title, 11)
        self.text(self.width / 2, self.foot - self.under - 0.04, self.sentence, va="top")
        self._legend()

    def _legend(self) -> None:
        from matplotlib.lines import Line2D

        if self.legend:
            handles = [
                Line2D([], [], color=c, marker=m, linestyle=line if self.line else "", **EDGE)
                for c, m, line in self.legend.values()
            ]
            self.figure.legend(
                handles, list(self.legend), loc="lower center", bbox_to_anchor=(0.5, 0.0), ncols=self.ncols, fontsize=8,
                handlelength=2.6, labelspacing=0.3, borderpad=0.3,
            )  # fmt: skip

    def text(
        self, x: float, y: float, text: str, size: float = 8, ha: str = "center", va: str = "center_baseline",
        angle: float = 0, colour: str = "black",
    ) -> None:  # fmt: skip
        """At a place in inches."""
        how: dict[str, Any] = {"ha": ha, "va": va, "rotation": angle, "rotation_mode": "anchor", "color": colour}
        self.ax.text(x, y, text, fontsize=size, zorder=4, **how)

    def title_above(self, box: Sequence[float], title: str) -> None:
        """Of a panel, which may have several lines."""
        x, y, wide, tall = box
        self.text(x + wide / 2, y + tall + 0.06, title, 9, va="bottom")

    def save(self, out: Path, name: str, kinds: Sequence[str]) -> list[str]:
        return save(self.figure, out, name, kinds, " ".join(self.title.split()))

    def boxes(self, place: int) -> list[tuple[float, float, float, float]]:
        """Left, bottom, width and height in inches of each of the axes of one panel, the upper first."""
        row, column = divmod(place, self.columns)
        left, bottom, _, _ = self.room
        x = (self.width - self.columns * self.cell[0] + self.margin - self.right) / 2 + column * self.cell[0] + left
        y = self.foot + (self.rows - 1 - row) * self.cell[1] + sum(self.more[row + 1 :]) + bottom
        gap = 0.1
        tall = (self.size[1] - gap * (self.stacked - 1)) / self.stacked
        return [(x, y + (self.stacked - 1 - i) * (tall + gap), self.size[0], tall) for i in range(self.stacked)]

    def panel(self, place: int) -> Axes:
        x, y, wide, tall = self.boxes(place)[0]
        return self.figure.add_axes((x / self.width, y / self.height, wide / self.width, tall / self.height))


def save(figure: Figure, out: Path, name: str, kinds: Sequence[str], title: str = "") -> list[str]:
    """Each without dates: the same records give the same bytes. `title`: also in vector files."""
    facts: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None, "Title": title},
        "svg": {"Date": None, "Creator": None, "Title": title},
    }
    for kind in kinds:
        data = io.BytesIO()
        fast: Any = {"pil_kwargs": {"compress_level": 3}} if kind == "png" else {}
        figure.savefig(data, format=kind, metadata=facts[kind], dpi=130, **fast)
        write(out / f"{name}.{kind}", data.getvalue())
    return [f"{name}.{kind}" for kind in kinds]


def slugs(found: Sequence[Sheet]) -> list[str]:
    """What is added to a file's name, one for each sheet; nothing for a single one."""
    if len(found) < 2:
        return [""] * len(found)
    names = [slug(f"{s.dataset[0]}-{s.model[0]}")[:60] for s in found]
    return [f"-{name}" if names.count(name) == 1 else f"-{name}-{i + 1}" for i, name in enumerate(names)]
