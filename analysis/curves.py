"""The curves of finished cells: every point that a defence offered, with what was measured there."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import schema
from analysis.index import Index
from analysis.load import Problem, reason
from analysis.operating_point import SENTENCES
from analysis.schema import AXES, read_text

COLUMNS = ("at", "pruned", "acc", "asr", "ra", "select_acc")
NAMES = [name for axis in AXES for name in (axis, f"{axis}_settings")] + ["seed"]
COUNT = 1e9  # a model has fewer channels


def curves(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """The curve.csv of those cells below each other, each row with its cell's names, settings and seed; and problems.

    Columns: `at` (the threshold, in the defence's own unit; NaN where there is none), `pruned` (channels), `acc`, `asr`,
    `ra` (percent; `ra` and `asr` NaN where the record does not know them), `select_acc` (percent, on the defender's own images).
    """
    rows, lengths, problems = every(frame, "curve.csv", read_curve)
    return beside(frame, pd.DataFrame(rows, columns=list(COLUMNS), dtype=float), lengths), problems


def layers(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """How many channels of each layer are pruned at each rule's operating point: the layers.csv of those cells, as `curves`.

    Columns: `layer`, `channels`, and a count for each rule. Cells without the file (no pruner, or an older record) have none.
    """
    rows, lengths, problems = every(frame, "layers.csv", read_layers)
    return beside(frame, pd.DataFrame(rows, columns=["layer", "channels", *SENTENCES]), lengths), problems


def every(frame: pd.DataFrame, name: str, read: Callable[[Path], Any]) -> tuple[list[Any], list[int], list[Problem]]:
    """The rows of all cells' files of that name, how many are each cell's, and what could not be read."""
    problems, rows, lengths = [], [], []
    with Index(root_of(frame), Path(name).stem, (__file__, schema.__file__)) as index:
        for folder, where in zip(frame.get("folder", ()), frame.get("where", ()), strict=True):
            file = f"{folder}/{name}"
            found, wrong = index.get(where, [file], read, Path(file))
            if wrong:
                problems.append(Problem("other", f"{where}/{name}", f"not drawn: {wrong}"))
            rows += found
            lengths.append(len(found))
    return rows, lengths, problems


def beside(frame: pd.DataFrame, numbers: pd.DataFrame, lengths: Sequence[int]) -> pd.DataFrame:
    """The numbers, each with its cell's names."""
    names = frame.reindex(columns=[*NAMES, "where"])
    return pd.concat([numbers, names.loc[names.index.repeat(lengths)].reset_index(drop=True)], axis=1)


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


def read_layers(path: Path) -> tuple[list[list[Any]], str]:
    """Rows of layer, channels and a count per rule (None: no operating point)."""
    columns = ("layer", "channels", *SENTENCES)
    try:
        rows = list(csv.DictReader(read_text(path).splitlines()))
        found: list[list[Any]] = [
            [row["layer"], *(int(row[c]) if row[c] else None for c in columns[1:])] for row in rows
        ]
        if not all(0 <= (n or 0) <= channels <= COUNT for _, channels, *counts in found for n in counts):
            raise ValueError("it holds something else than counts of channels")
    except FileNotFoundError:
        return [], ""
    except KeyError as error:
        return [], f"its column {error} is missing"
    except (OSError, ValueError, TypeError, csv.Error) as error:
        return [], reason(error)
    return found, ""


def number(text: str) -> float | None:
    return float(text) if text else None


def check(points: Iterable[list[Any]]) -> None:
    for at, pruned, acc, *rates in points:
        fits = (at is None or math.isfinite(at)) and pruned is not None and 0 <= pruned <= COUNT
        if not fits or acc is None or not all(rate is None or 0 <= rate <= 100 for rate in (acc, *rates)):
            raise ValueError("it holds something else than counts and percentages")
