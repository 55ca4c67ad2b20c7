"""The folders of a sweep -> one frame of finished cells and a list of everything that is not one.

The files are the contract: nothing of bench/ is imported, and nothing in them is trusted. JSON is read strictly, sizes
are capped, and a record that cannot be read is named and left out, never counted and never fatal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import schema, sealing, settings
from analysis.index import Index
from analysis.revisions import stale
from analysis.schema import AXES, NEEDED, by_trigger, read_record
from analysis.settings import read_settings, set_apart

if TYPE_CHECKING:
    import pandas as pd

MADE = {"tables", "plots", "gallery", "report", "dashboards", "localisation"}
SKIP = {"backdoors", "cache"} | MADE  # under the root: no cells
CODE = (__file__, schema.__file__, sealing.__file__, settings.__file__)


@dataclass(frozen=True)
class Problem:
    """Something under the root that is not a finished cell: `kind` is failed, damaged, stale or other."""

    kind: str
    where: str  # relative to the root
    what: str
    cell: dict[str, Any] = field(default_factory=dict)  # names, settings and seed, where they are known

    def __str__(self) -> str:
        name = f"{self.cell['attack']} / {self.cell['defense']} / seed {self.cell['seed']}, " if self.cell else ""
        return f"{self.kind}: {name}{self.where}: {self.what}" if self.kind != "other" else f"{self.where}: {self.what}"


def load(root: str | Path) -> tuple[pd.DataFrame, list[Problem]]:
    """All finished cells, one row each, and the problems, both in a fixed order.

    Columns: those of record.json, `folder`, and for each axis `<axis>_settings`: what sets it apart from cells of the
    same name, such as `selection.max_drop=2`; empty where nothing does.
    """
    return gather(root)[:2]


def gather(root: str | Path) -> tuple[pd.DataFrame, list[Problem], dict[str, settings.Settings]]:
    """As `load`, and the settings of every cell by its place (`where`)."""
    import pandas as pd  # half a second, which analysis.status does without

    rows, problems = read(Path(root))
    placed = [row for row in rows if "seed" in row]
    problems += [Problem(row["kind"], row["where"], row["what"]) for row in rows if "seed" not in row]
    for axis in AXES:
        set_apart(placed, axis)
    done: dict[tuple[Any, ...], dict[str, Any]] = {}
    keys = [name for axis in AXES for name in (axis, f"{axis}_settings")] + ["seed"]
    for row in placed:
        cell = {key: row[key] for key in keys}
        if row["kind"] != "done":
            problems.append(Problem(row["kind"], row["where"], row["what"], cell))
        elif (first := done.setdefault(tuple(cell.values()), row)) is not row:
            problems.append(Problem("other", row["where"], f"not counted: same settings and seed as {first['where']}"))
    ordered = [done[key] for key in sorted(done)]
    frame = pd.DataFrame([{k: v for k, v in row.items() if k not in ("settings", "kind", "what")} for row in ordered])
    for name in frame.columns.intersection([key for key in NEEDED if by_trigger(key)]):
        frame[name] = pd.to_numeric(frame[name])  # where no trigger is known, a column of nothing but null
    known = {row["where"]: row["settings"] for row in rows}
    return frame, sorted(problems, key=lambda p: (p.where, p.kind, p.what)), known


def read(root: Path) -> tuple[list[dict[str, Any]], list[Problem]]:
    """A row for every folder in which a cell finished or failed: its record, or its names where they are known.

    Besides: `kind` (done, failed, damaged or stale), `what` went wrong, `folder`, `where` (relative to the root) and `settings`.
    """
    rows, problems = [], []
    with Index(root, "cells", CODE) as index:
        for folder in cells(root):
            where = os.path.relpath(folder, root).replace(os.sep, "/")
            files = [f"{folder}/{name}" for name in ("record.json", "error.txt", ".hydra/config.yaml")]
            found, unknown = index.get(where, files, read_cell, Path(folder))
            if unknown:
                problems.append(Problem("other", where, f"its settings are unknown ({unknown})"))
            if found["kind"] == "done" and (why := stale(found)):
                found = found | {"kind": "stale", "what": why}
            elif found["kind"] != "done":
                found = named_by(Path(folder)) | found
            # last: a record must not name files to read
            rows.append(found | {"folder": folder, "where": where})
    return rows, problems


def read_cell(folder: Path) -> tuple[dict[str, Any], str]:
    """The row of one folder, and why its settings are unknown if they are."""
    known, unknown = {}, ""
    try:
        known = read_settings(folder / ".hydra" / "config.yaml")
    except (OSError, ValueError, RecursionError) as error:
        unknown = reason(error)
    row: dict[str, Any] = {"kind": "done", "what": ""}
    try:
        row = read_record(folder / "record.json") | row
    except FileNotFoundError:
        row |= {"kind": "failed", "what": last_line(folder / "error.txt")}
    except (OSError, ValueError, RecursionError) as error:
        row |= {"kind": "damaged", "what": f"record.json is not counted: {reason(error)}"}
    return row | {"settings": known}, unknown


def cells(root: Path) -> Iterator[str]:
    """Folders in which a cell finished or failed, in a fixed order."""
    for folder, inner, names in os.walk(root):
        top = Path(folder) == root
        inner[:] = sorted(n for n in inner if not n.startswith(".") and n != "wandb" and not (top and n in SKIP))
        if "record.json" in names or "error.txt" in names:
            yield folder


def named_by(folder: Path) -> dict[str, Any]:
    """The names in .../<dataset>/<model>/<attack>/<defense>/s<seed>-<id>, of a cell that has no record to say so."""
    *names, last = folder.absolute().parts[-5:]
    seed = last.removeprefix("s").rpartition("-")[0]
    if len(names) < 4 or not last.startswith("s") or not seed.lstrip("-").isdecimal():
        return {}
    return dict(zip(AXES, names, strict=True)) | {"seed": int(seed)}


# -- read ---------------------------------------------------------------------------------------------------------------
def last_line(path: Path) -> str:
    """What a traceback ends with; only the end of a long file is read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError as error:
        return reason(error)
    return lines[-1].strip()[:300] if lines else "no reason given"


def reason(error: Exception) -> str:
    """One line without the path, so that the same sweep elsewhere reads the same."""
    text = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
    return " ".join(text.split())[:200]
