"""Plots of all finished cells, each as PNG, PDF and SVG: curves, trade-offs, heat map, layers, cost, ranks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace  # a copy without what was cached
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

from analysis import command
from analysis.curves import NAMES
from analysis.drawing import STYLE, Page, slugs
from analysis.kept import Kept, digest
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
) -> tuple[list[str], int, list[Problem]]:
    """The plots named in `only`, a file for each data set and network; their files, how many of them lay there already and were
    kept, and problems met on the way.

    A plot that there is nothing for is left out. A large sweep is drawn in several processes.
    """
    none: tuple[pd.DataFrame, list[Problem]] = (pd.DataFrame(), [])
    points, unread = runs.curves if {"curves", "thresholds"} & set(only) else none
    pruned, more = runs.layers if "layers" in only else none
    kept, jobs, sources = Kept(out), [], {}
    for sheet, slug in zip(runs.sheets, slugs(runs.sheets), strict=True):
        along, within = of(points, sheet), of(pruned, sheet)
        rows = {"curves": along, "thresholds": along, "layers": within}
        lines, layers = (digest(own.drop(columns=NAMES, errors="ignore")) for own in (along, within))
        digests = {"curves": lines, "thresholds": lines, "layers": layers}
        tried = sorted(sheet.tried)  # from other files than the records
        base = digest(sheet.dataset, sheet.model, sheet.rows, sheet.lost, tried, rule)
        todo = {}
        for name in only:
            sources[name + slug] = source = digest(base, name, digests.get(name))
            if stale := kept.stale(name + slug, kinds, source):
                todo[name] = stale
        if todo:
            jobs.append(
                (replace(sheet), slug, {name: rows.get(name, pd.DataFrame()) for name in todo}, rule, out, todo)
            )
    workers = min(len(jobs), cores(), WORKERS)
    if len(runs.frame) < MANY or workers < 2:
        made = [draw_sheet(*job) for job in jobs]
    else:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            made = list(pool.map(draw_sheet, *zip(*jobs, strict=True)))
    new = 0
    for job, there in zip(jobs, made, strict=True):
        for name, stale in job[-1].items():
            kept.note(name + job[1], stale, sources[name + job[1]], name in there)
            new += len(stale) if name in there else 0
    if jobs:
        kept.save()
    names = [name for stem in sources for name in kept.names(stem, kinds)]
    return names, len(names) - new, [*unread, *more]


def draw_sheet(
    sheet: Sheet, slug: str, rows: Mapping[str, pd.DataFrame], rule: str, out: Path, todo: Mapping[str, Sequence[str]]
) -> list[str]:
    """Plots of one data set and network. `rows`, `todo`: plot -> what it is drawn from, and as which kinds of file.

    Returns those that there was something to draw for.
    """
    import matplotlib as mpl

    there = []
    with mpl.rc_context(STYLE):
        for name, kinds in todo.items():
            if page := PLOTS[name](sheet, rows[name], rule):
                page.save(out, name + slug, kinds)
                there.append(name)
    return there


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
        names, kept, unread = draw(runs, options.select, out, options.only, options.kinds)
    except OSError as error:
        return command.no_room(out, error)
    for problem in [*runs.problems, *unread]:
        print(plain(str(problem)), file=sys.stderr)
    same = f" {kept} of them were there already, drawn from the same records." if kept else ""
    print(f"In {out}: {', '.join(names) or 'nothing to draw'}.{same}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
