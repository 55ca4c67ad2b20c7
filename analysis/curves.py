"""The curves of finished cells: every point that a defence offered, with what was measured there."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import schema
from analysis.index import Index
from analysis.load import Problem, reason
from analysis.schema import AXES, read_text

COLUMNS = ("at", "pruned", "acc", "asr", "ra")
NAMES = [name for axis in AXES for name in (axis, f"{axis}_settings")] + ["seed", "where"]
COUNT = 1e9  # a model has fewer channels


def curves(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """The curve.csv of those cells below each other, each row with its cell's names, settings and seed; and problems.

    Columns: `at` (the threshold, in the defence's own unit; NaN where there is none), `pruned` (channels), `acc`, `asr`,
    `ra` (percent; `ra` and `asr` NaN where the record does not know them).
    """
    problems, points, lengths = [], [], []
    with Index(root_of(frame), "curves", (__file__, schema.__file__)) as index:
        for folder, where in zip(frame.get("folder", ()), frame.get("where", ()), strict=True):
            file = f"{folder}/curve.csv"
            found, wrong = index.get(where, [file], read_curve, Path(file))
            if wrong:
                problems.append(Problem("other", f"{where}/curve.csv", f"not drawn: {wrong}"))
            points += found
            lengths.append(len(found))
    numbers = pd.DataFrame(points, columns=list(COLUMNS), dtype=float)
    names = frame.reindex(columns=NAMES)
    return pd.concat([numbers, names.loc[names.index.repeat(lengths)].reset_index(drop=True)], axis=1), problems


def root_of(frame: pd.DataFrame) -> Path:
    """The folder that the cells of a frame were found under."""
    if not len(frame):
        return Path()
    first = frame.iloc[0]
    return Path(first["folder"]).joinpath(*[".."] * len(Path(first["where"]).parts))


def read_curve(path: Path) -> tuple[list[list[float | None]], str]:
    """Rows of COLUMNS, None where nothing is known, and why there are none if there are none."""
    try:
        rows = csv.reader(read_text(path).splitlines())
        header = next(rows, [])
        if missing := [column for column in COLUMNS if column not in header]:
            raise ValueError(f"its column {missing[0]} is missing")
        places = [header.index(column) for column in COLUMNS]
        points = [[number(row[place]) for place in places] for row in rows]
        check(points)
    except (OSError, ValueError, IndexError, csv.Error) as error:
        return [], reason(error)
    return points, ""


def number(text: str) -> float | None:
    return float(text) if text else None


def check(points: Iterable[list[Any]]) -> None:
    for at, pruned, acc, *rates in points:
        fits = (at is None or math.isfinite(at)) and pruned is not None and 0 <= pruned <= COUNT
        if not fits or acc is None or not all(rate is None or 0 <= rate <= 100 for rate in (acc, *rates)):
            raise ValueError("it holds something else than counts and percentages")
