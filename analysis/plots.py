"""Plots of all finished cells: ACC and ASR along each pruner's curve, and ACC against ASR at the operating points."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis import command
from analysis.curves import curves
from analysis.load import Problem, load
from analysis.operating_point import SENTENCES
from analysis.render import plain, write
from analysis.sheets import PLACES, Key, Sheet, label, sheets

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe-Ito, without yellow
MARKERS = "osD^vPX<>ph"  # 7 colours and 11 markers: the pair repeats only after 77 defences, and markers tell in grey
NONE = ("#777777", "*")
STYLE: Any = {
    "text.parse_math": False,  # names come from files: a $ is a dollar
    "svg.hashsalt": "backprune",  # the same records give the same bytes
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
EDGE: dict[str, Any] = {"markeredgecolor": "black", "markeredgewidth": 0.6}


def looks(defenses: Sequence[Key]) -> dict[Key, tuple[str, str]]:
    """Colour and marker of each defence, the same in all panels."""
    others = [d for d in defenses if d[0] != "none"]
    found = {d: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, d in enumerate(others)}
    return {d: found.get(d, NONE) for d in defenses}


def text(key: Key) -> str:
    """A name that matplotlib neither hides (a leading underscore) nor chokes on (control characters)."""
    return plain(label(key)).replace("_", "\u200a_", 1) if key[0].startswith("_") else plain(label(key))


def of(rows: pd.DataFrame, axis: str, key: Key) -> pd.DataFrame:
    return rows[(rows[axis] == key[0]) & (rows[f"{axis}_settings"] == key[1])]


# -- curves ------------------------------------------------------------------------------------------------------------
def draw_curves(part: SubFigure, sheet: Sheet, points: pd.DataFrame, rule: str) -> None:
    """A column of panels per attack: ACC above, ASR below, against the number of pruned channels; a line per seed.

    Seeds are not averaged: their curves have points at different numbers, and a mean of 0 and 100 is nobody's ASR.
    """
    look = {d: seen for d, seen in looks(sheet.defenses).items() if of(points, "defense", d)["pruned"].max() > 0}
    attacks = [a for a in sheet.attacks if len(of(points, "attack", a))]
    axes = part.subplots(2, len(attacks), sharex=True, sharey=True, squeeze=False)
    for column, attack in enumerate(attacks):
        for defense, (colour, marker) in look.items():
            lines = of(of(points, "attack", attack), "defense", defense)
            chosen = of(of(sheet.rows, "attack", attack), "defense", defense)
            for ax, metric, style in zip(axes[:, column], ("acc", "asr"), ("-", "--"), strict=True):
                for _, line in lines.groupby("seed"):
                    ax.plot(
                        line["pruned"],
                        line[metric],
                        style + marker,
                        color=colour,
                        linewidth=0.9,
                        markersize=2.2,
                        alpha=0.75,
                    )
                at = chosen[f"pruned_{rule}"], chosen[f"{metric}_{rule}"]
                ax.plot(*at, marker, color=colour, markersize=6.5, **EDGE, zorder=3)
        axes[0][column].set_title(fill(text(attack), 40), fontsize=9)
        axes[1][column].set_xlabel("pruned channels")
    for ax, metric in zip(axes[:, 0], ("ACC", "ASR"), strict=True):
        ax.set_ylabel(f"{metric} (%)")
        ax.set_ylim(-3, 103)
    counting(axes[0][0], points["pruned"].max())
    below = f"One line per seed, a dot per measured point: ACC solid, ASR dashed. Large markers: operating points by {rule}."
    frame(part, sheet, below, look, line="-")


def counting(ax: Axes, largest: float) -> None:
    """A logarithmic axis for counts that has a place for 0."""
    ax.set_xscale("symlog", linthresh=1, linscale=0.3)
    steps = (1, 3) if largest < 1000 else (1,)  # more labels would touch each other
    ticks = [0, *(n * 10**k for k in range(7) for n in steps if n * 10**k <= largest)]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set_xlim(-0.15, largest * 1.15)


# -- trade-off ---------------------------------------------------------------------------------------------------------
def draw_tradeoff(part: SubFigure, sheet: Sheet, points: pd.DataFrame, rule: str) -> None:
    """A panel per attack: one marker per cell, ACC after the defence against ASR after it. Good is the upper left."""
    look = looks(sheet.defenses)
    axes = part.subplots(1, len(sheet.attacks), sharex=True, sharey=True, squeeze=False)[0]
    for ax, attack in zip(axes, sheet.attacks, strict=True):
        for defense, (colour, marker) in look.items():
            cell = sheet.cell(defense, attack)
            suffix = "before" if defense[0] == "none" else rule
            for took, inside in ((True, colour), (False, "none")):
                rows = [row for row in cell.rows if row["took"] == took]
                at = [row[f"asr_{suffix}"] for row in rows], [row[f"acc_{suffix}"] for row in rows]
                ax.plot(*at, marker, color=colour, markerfacecolor=inside, markersize=7, alpha=0.7, **EDGE)
        ax.set_title(fill(text(attack), 40), fontsize=9)
        ax.set_xlabel("ASR (%)")
        ax.set_xlim(-3, 103)
    axes[0].set_ylabel("ACC (%)")
    drawn = [value for ax in axes for line in ax.get_lines() for value in line.get_ydata()]
    room = 0.08 * (max(drawn) - min(drawn)) + 0.5  # a marker at the rim stays whole
    axes[0].set_ylim(min(drawn) - room, min(max(drawn) + room, 101.5))
    hollow = "" if sheet.rows["took"].all() else " Hollow: the attack did not take."
    below = f"One marker per seed, at the operating point by {rule}; good is the upper left.{hollow}"
    frame(part, sheet, below, look, line="")


# -- both --------------------------------------------------------------------------------------------------------------
def frame(part: SubFigure, sheet: Sheet, below: str, look: Mapping[Key, tuple[str, str]], line: Any) -> None:
    """Title above; a sentence and the legend below."""
    from matplotlib.lines import Line2D

    inches = part.bbox.width / part.figure.dpi
    part.suptitle(fill(f"{text(sheet.dataset)}, {text(sheet.model)}", int(inches * 10)), fontsize=11)
    handles = [Line2D([], [], color=c, marker=m, linestyle=line, **EDGE) for c, m in look.values()]
    names = [text(defense) + (" (cheats)" if defense in sheet.cheats else "") for defense in look]
    columns = int(inches * 11 / (max(map(len, names), default=1) + 7))  # 11 letters of the legend are about an inch
    legend = part.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=max(1, min(len(names), columns)),
        title=fill(below, int(inches * 15)),
        title_fontproperties={"size": 8},
    )
    legend.get_title().set_multialignment("center")


def save(figure: Figure, out: Path, name: str, kinds: Sequence[str] = ("png", "pdf", "svg")) -> list[str]:
    """Each without dates."""
    empty: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        "svg": {"Date": None, "Creator": None},
    }
    for kind in kinds:
        data = io.BytesIO()
        figure.savefig(data, format=kind, metadata=empty[kind], dpi=150)
        write(out / f"{name}.{kind}", data.getvalue())
    return [f"{name}.{kind}" for kind in kinds]


def draw(frame: pd.DataFrame, problems: Sequence[Problem], rule: str, out: Path) -> tuple[list[str], list[Problem]]:
    """Both figures, with the data sets and models below each other; the files written, and problems met on the way."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    points, unread = curves(frame)
    found = list(sheets(frame, problems))
    own = [points[(points[PLACES] == list(sheet.dataset + sheet.model)).all(axis=1)] for sheet in found]
    names = []
    with mpl.rc_context(STYLE):
        for name, panel, height, wanted in (
            ("curves", draw_curves, 5.2, [p["pruned"].max() > 0 for p in own]),
            ("tradeoff", draw_tradeoff, 3.8, [True] * len(found)),
        ):
            drawn = [(s, p) for s, p, w in zip(found, own, wanted, strict=True) if w]
            if not drawn:
                continue
            width = max(5.5, 0.4 + 3.0 * max(len(sheet.attacks) for sheet, _ in drawn))
            figure = Figure(figsize=(width, height * len(drawn)), layout="constrained")
            parts = figure.subfigures(len(drawn), 1, squeeze=False)[:, 0]
            for part, (sheet, points) in zip(parts, drawn, strict=True):
                panel(part, sheet, points, rule)
            names += save(figure, out, name)
    return names, unread


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser(
        "plots",
        "Draws curves and tradeoff, each as PNG, PDF and SVG, of all finished cells.",
        "plots",
    )
    parser.add_argument(
        "--select", choices=list(SENTENCES), default="clean_drop", help="which operating points to mark"
    )
    options = parser.parse_args(arguments)
    cells, problems = load(options.runs)
    if not len(cells):
        return command.no_cell(options.runs)
    out = options.out or options.runs / "plots"
    try:
        names, unread = draw(cells, problems, options.select, out)
    except OSError as error:
        return command.no_room(out, error)
    for problem in [*problems, *unread]:
        print(plain(str(problem)), file=sys.stderr)
    print(f"In {out}: {', '.join(names)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
