"""The folders of a sweep -> one frame of finished cells and a list of everything that is not one.

The files are the contract: nothing of bench/ is imported, and nothing in them is trusted. JSON is read strictly, sizes
are capped, and a record that cannot be read is named and left out, never counted and never fatal.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml  # type: ignore[import-untyped]  # comes with omegaconf

from analysis.schema import AXES, read_record, read_text

CONFIG_LIMIT = 1 << 16  # YAML is slow to read
SKIP = {"backdoors", "cache", "tables", "plots", "gallery"}  # under the root: no cells
PARTS = {"dataset": "dataset", "model": "model", "train": "model", "attack": "attack"}
"""Which axis of a table a part of the config belongs to; every other part is the defence's."""
HOW = {"seed", "device", "threads", "tracker", "runs"}
"""What two cells with the same settings may differ in."""


@dataclass(frozen=True)
class Problem:
    """Something under the root that is not a finished cell: `kind` is failed, damaged or other."""

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
    root = Path(root)
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for folder in cells(root):
        where = folder.relative_to(root).as_posix()
        try:
            settings = read_settings(folder / ".hydra" / "config.yaml")
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            settings = {}
            problems.append(Problem("other", where, f"its settings are unknown ({reason(error)})"))
        row: dict[str, Any] = {"kind": "done", "what": ""}
        try:
            row = read_record(folder / "record.json") | row
        except FileNotFoundError:
            row = named_by(folder) | {"kind": "failed", "what": last_line(folder / "error.txt")}
        except (OSError, ValueError, RecursionError) as error:
            row = named_by(folder) | {"kind": "damaged", "what": f"record.json is not counted: {reason(error)}"}
        # last: a record must not name files to read
        row |= {"folder": str(folder), "where": where, "settings": settings}
        rows.append(row)
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
    return frame, sorted(problems, key=lambda p: (p.where, p.kind, p.what))


def cells(root: Path) -> Iterator[Path]:
    """Folders in which a cell finished or failed, in a fixed order."""
    for folder, inner, names in os.walk(root):
        top = Path(folder) == root
        inner[:] = sorted(n for n in inner if not n.startswith(".") and n != "wandb" and not (top and n in SKIP))
        if {"record.json", "error.txt"} & set(names):
            yield Path(folder)


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


# -- settings ----------------------------------------------------------------------------------------------------------
def read_settings(path: Path) -> dict[str, str]:
    """The composed config as `defense.rule.at` -> `0.3`, without seed, device and places."""
    text = read_text(path, CONFIG_LIMIT)
    if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
        raise ValueError("YAML aliases, which no config of the bench has")
    config = yaml.safe_load(text)  # not the C loader: deep nesting crashes it
    if not isinstance(config, dict):
        raise ValueError("no mapping")
    return dict(flatten({key: value for key, value in config.items() if key not in HOW}))


def flatten(node: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        here = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict):
            yield from flatten(value, here)
        else:
            yield here, as_text(value)


def as_text(value: Any) -> str:
    """As on the command line; 5.0 and 5 read the same, as they do in a cell's id."""
    if isinstance(value, list):
        return "[" + ",".join(map(as_text, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)


def set_apart(rows: Iterable[dict[str, Any]], axis: str) -> None:
    """Writes `<axis>_settings` into each row: where cells of one name differ in settings, the settings that differ.

    Without this, two settings of a defence would be averaged as if they were seeds of one.
    """
    outer = AXES[: AXES.index(axis)] if axis != "defense" else AXES[:2]  # a defence is compared across attacks
    groups: dict[tuple[str, ...], list[tuple[dict[str, Any], dict[str, str]]]] = {}
    for row in rows:
        own = {k: v for k, v in row["settings"].items() if PARTS.get(k.partition(".")[0], "defense") == axis}
        key = tuple(row[name] for outside in outer for name in (outside, f"{outside}_settings"))
        groups.setdefault((*key, row[axis]), []).append((row, own))
    for members in groups.values():
        variants = sorted({tuple(sorted(own.items())) for _, own in members})
        labels = dict(zip(variants, name_variants([dict(v) for v in variants]), strict=True))
        for row, own in members:
            row[f"{axis}_settings"] = labels[tuple(sorted(own.items()))]


def fold(variants: list[dict[str, str]]) -> list[dict[str, str]]:
    """A node that some lack and all others have alike, such as `defense.then`, becomes one setting: `set`."""
    for node in sorted({key.rpartition(".")[0] for variant in variants for key in variant} - {""}):
        parts = [{k: v for k, v in variant.items() if k.startswith(f"{node}.")} for variant in variants]
        if {} in parts and all(part in ({}, max(parts, key=len)) for part in parts):
            whole = zip(variants, parts, strict=True)
            variants = [{k: v for k, v in a.items() if k not in b} | ({node: "set"} if b else {}) for a, b in whole]
    return variants


def name_variants(variants: list[dict[str, str]]) -> list[str]:
    """One label for each: nothing for a single one, the settings that differ if these are few and short, else a hash."""
    variants = fold(variants)
    known = [v for v in variants if v]
    differ = sorted(key for key in {k for v in known for k in v} if len({v.get(key) for v in known}) > 1)
    labels = [", ".join(f"{key}={v.get(key, 'unset')}" for key in differ) for v in variants]
    if len(differ) > 3 or max(map(len, labels)) > 80:
        labels = [
            f"settings {hashlib.sha256(json.dumps(v, sort_keys=True).encode()).hexdigest()[:8]}" for v in variants
        ]
    return [label if v or not known else "settings unknown" for v, label in zip(variants, labels, strict=True)]


# -- curves ------------------------------------------------------------------------------------------------------------
def curves(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """The curve.csv of those cells below each other, each row with its cell's names, settings and seed; and problems."""
    names = [name for axis in AXES for name in (axis, f"{axis}_settings")] + ["seed", "where"]
    parts, problems = [], []
    for row in frame.to_dict("records"):
        try:
            curve = pd.read_csv(io.StringIO(read_text(Path(row["folder"]) / "curve.csv")))
            numbers = curve[["pruned", "acc", "asr"]].astype(float)
            if not ((numbers >= 0) & (numbers <= [1e9, 100, 100])).to_numpy().all():
                raise ValueError("it holds something else than counts and percentages")
        except (OSError, ValueError, KeyError) as error:
            problems.append(Problem("other", f"{row['where']}/curve.csv", f"not drawn: {reason(error)}"))
            continue
        parts.append(numbers.assign(**{name: row[name] for name in names}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["pruned", *names]), problems
