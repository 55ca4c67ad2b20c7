"""Plots of all finished cells, each as PNG, PDF and SVG: curves, trade-offs, heat map, layers, cost, ranks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from analysis import command
from analysis.curves import curves, layers
from analysis.drawing import STYLE, Page, save, slugs
from analysis.lines import draw_counts, draw_thresholds
from analysis.load import Problem, load
from analysis.operating_point import SENTENCES
from analysis.ranks import draw_ranks
from analysis.render import plain
from analysis.sheets import PLACES, Sheet, sheets
from analysis.spots import draw_cost, draw_heatmap, draw_layers, draw_tradeoff

PLOTS: dict[str, Callable[[Sheet, pd.DataFrame, str], Page | None]] = {
    "curves": draw_counts,
    "thresholds": draw_thresholds,
    "tradeoff": draw_tradeoff,
    "heatmap": draw_heatmap,
    "layers": draw_layers,
    "cost": draw_cost,
    "ranks": draw_ranks,
}
KINDS = ("png", "pdf", "svg")


def draw(
    frame: pd.DataFrame,
    problems: Sequence[Problem],
    rule: str,
    out: Path,
    only: Sequence[str] = tuple(PLOTS),
    kinds: Sequence[str] = KINDS,
) -> tuple[list[str], list[Problem]]:
    """The plots named in `only`, a file for each data set and network; the files written, and problems met on the way.

    A plot that there is nothing for is left out.
    """
    import matplotlib as mpl

    points, unread = curves(frame) if {"curves", "thresholds"} & set(only) else (pd.DataFrame(), [])
    pruned, more = layers(frame) if "layers" in only else (pd.DataFrame(), [])
    found = list(sheets(frame, problems))
    names = []
    with mpl.rc_context(STYLE):
        for sheet, slug in zip(found, slugs(found), strict=True):
            for name in only:
                page = PLOTS[name](sheet, of(pruned if name == "layers" else points, sheet), rule)
                if page:
                    names += save(page.figure, out, f"{name}{slug}", kinds)
    return names, [*unread, *more]


def of(rows: pd.DataFrame, sheet: Sheet) -> pd.DataFrame:
    """Those of one sheet."""
    for name, wanted in zip(PLACES, sheet.dataset + sheet.model, strict=True):
        rows = rows[rows[name] == wanted] if len(rows) else rows
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser("plots", __doc__ or "", "plots")
    parser.add_argument(
        "--select", choices=list(SENTENCES), default="clean_drop", help="which operating points to mark"
    )
    parser.add_argument("--only", nargs="+", choices=list(PLOTS), default=list(PLOTS), help="which plots (all)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="which files (all)")
    options = parser.parse_args(arguments)
    cells, problems = load(options.runs)
    if not len(cells):
        return command.no_cell(options.runs)
    out = options.out or options.runs / "plots"
    try:
        names, unread = draw(cells, problems, options.select, out, options.only, options.kinds)
    except OSError as error:
        return command.no_room(out, error)
    for problem in [*problems, *unread]:
        print(plain(str(problem)), file=sys.stderr)
    print(f"In {out}: {', '.join(names) or 'nothing to draw'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
