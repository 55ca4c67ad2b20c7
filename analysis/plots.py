"""Plots of all finished cells, each as PNG, PDF and SVG: curves, trade-offs, heat map, layers, cost, ranks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace  # a copy without what was cached
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

from analysis import command
from analysis.drawing import STYLE, Page, slugs
from analysis.lines import draw_counts, draw_thresholds
from analysis.load import Problem
from analysis.operating_point import SENTENCES
from analysis.ranks import draw_ranks
from analysis.render import plain
from analysis.runs import Runs
from analysis.sheets import PLACES, Sheet
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
MANY = 1000  # cells, from which on starting other processes pays
WORKERS = 3  # each holds 0.2 GiB


def draw(
    runs: Runs, rule: str, out: Path, only: Sequence[str] = tuple(PLOTS), kinds: Sequence[str] = KINDS
) -> tuple[list[str], list[Problem]]:
    """The plots named in `only`, a file for each data set and network; the files written, and problems met on the way.

    A plot that there is nothing for is left out. A large sweep is drawn in several processes.
    """
    none: tuple[pd.DataFrame, list[Problem]] = (pd.DataFrame(), [])
    points, unread = runs.curves if {"curves", "thresholds"} & set(only) else none
    pruned, more = runs.layers if "layers" in only else none
    jobs = [
        (replace(sheet), slug, of(points, sheet), of(pruned, sheet), rule, out, only, kinds)
        for sheet, slug in zip(runs.sheets, slugs(runs.sheets), strict=True)
    ]
    workers = min(len(jobs), cores(), WORKERS)
    if len(runs.frame) < MANY or workers < 2:
        names = [name for job in jobs for name in draw_sheet(*job)]
    else:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            names = [name for part in pool.map(draw_sheet, *zip(*jobs, strict=True)) for name in part]
    return names, [*unread, *more]


def draw_sheet(
    sheet: Sheet, slug: str, points: pd.DataFrame, pruned: pd.DataFrame, rule: str, out: Path, only: Sequence[str],
    kinds: Sequence[str],
) -> list[str]:  # fmt: skip
    """The plots of one data set and network; the files written."""
    import matplotlib as mpl

    names: list[str] = []
    with mpl.rc_context(STYLE):
        for name in only:
            if page := PLOTS[name](sheet, pruned if name == "layers" else points, rule):
                names += page.save(out, f"{name}{slug}", kinds)
    return names


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    runs = Runs.of(options.runs)
    if not len(runs.frame):
        return command.no_cell(options.runs)
    out = options.out or options.runs / "plots"
    try:
        names, unread = draw(runs, options.select, out, options.only, options.kinds)
    except OSError as error:
        return command.no_room(out, error)
    for problem in [*runs.problems, *unread]:
        print(plain(str(problem)), file=sys.stderr)
    print(f"In {out}: {', '.join(names) or 'nothing to draw'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
