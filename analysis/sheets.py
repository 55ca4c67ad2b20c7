"""Cells and sheets: which finished seeds stand behind each number of a table, and which do not count."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from analysis.load import Problem
from analysis.render import Entry
from analysis.schema import METRICS, UNKNOWN
from analysis.settings import by_hand

TOOK_ASR, TOOK_ACC = 80.0, 5.0  # the bench's own gate (conf/config.yaml), for records made before it was in them
PLACES = [name for axis in ("dataset", "model") for name in (axis, f"{axis}_settings")]
PAIR = [name for axis in ("defense", "attack") for name in (axis, f"{axis}_settings")]
CHEATS = "trigger"  # what a record says that its defence needs if it is none
BASELINES = ("none", UNKNOWN)
"""Attacks that are none: a clean model, as a control, and a stranger's model whose trigger nobody knows. In no average."""
CONTROLS = ("random", "magnitude")
"""Defences that nobody would use: what the others must beat."""
KINDS = ("", "repair", "pruning", "not finished", "controls")
"""The groups of rows, in their order."""
Key = tuple[str, str]
"""A name and the settings that set it apart, such as ("rnp", "selection.max_drop=2")."""


def label(key: Key) -> str:
    return f"{key[0]} ({key[1]})" if key[1] else key[0]


def pairs(rows: pd.DataFrame, axis: str) -> list[Key]:
    """Of each row."""
    return list(
        zip(rows[axis].to_numpy(), rows[f"{axis}_settings"].to_numpy(), strict=True)
    )  # a Series is slow to walk


def number(value: float, digits: int = 1) -> str:
    if math.isnan(value):
        return "unknown"
    return f"{float(np.round(value, digits)) + 0.0:.{digits}f}"  # + 0.0: no -0.0


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def std(values: Sequence[float]) -> float:
    """With n - 1; NaN for fewer than two."""
    middle = mean(values)
    return math.sqrt(sum((v - middle) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else math.nan


def gate(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds `took`, whether the attack took, where a record does not say so, and `clean_acc`, the ACC of the clean model of the
    same seed, or the mean over seeds where that one has none.

    A defence against an attack that never worked proves nothing. A model without an attack passes: it is a control.
    """
    control = frame["attack"] == "none"
    models = frame[control].drop_duplicates([*PLACES, "attack_settings", "seed"])
    frame = frame.drop(columns="clean_acc", errors="ignore")
    for name, by in (("clean_acc", [*PLACES, "seed"]), ("clean_mean", PLACES)):
        clean = models.groupby(by)["acc_before"].mean().rename(name).reset_index()
        frame = frame.merge(clean, on=by, how="left")
    frame["clean_acc"] = frame["clean_acc"].fillna(frame.pop("clean_mean"))
    if "clean_model_acc" in frame:
        frame["clean_acc"] = frame["clean_model_acc"].astype(float).fillna(frame["clean_acc"])
    near = ~((frame["acc_before"] - frame["clean_acc"]).abs() > TOOK_ACC + 1e-9)
    said = frame["took"] if "took" in frame else pd.Series(None, index=frame.index, dtype=object)
    took = ((frame["asr_before"] >= TOOK_ASR) & near).where(said.isna(), said == True)  # noqa: E712 - element by element
    return frame.assign(took=took | frame["attack"].isin(BASELINES))


@dataclass(frozen=True)
class Cell:
    """One defence against one attack. `rows`: the records of its finished seeds; `lost`: seed -> failed or damaged."""

    rows: Sequence[Mapping[str, Any]]
    seeds: Sequence[int]
    lost: Mapping[int, str]

    @cached_property
    def counts(self) -> bool:
        return any(row["took"] for row in self.rows)

    @cached_property
    def shown(self) -> Sequence[Mapping[str, Any]]:
        """The seeds whose attack took; all of them if it took for none."""
        return [row for row in self.rows if row["took"]] if self.counts else self.rows

    @cached_property
    def gone(self) -> list[int]:
        """Seeds that others have and this cell has not."""
        done = {row["seed"] for row in self.rows}
        return [seed for seed in self.seeds if seed not in done]

    def column(self, metric: str, rule: str) -> list[float]:
        """Per shown seed, those that are known. A row without a defence shows the model as it came."""
        before = metric in METRICS and all(row["defense"] == "none" for row in self.rows)
        return self.values(f"{metric}_{'before' if before else rule}")

    def values(self, name: str) -> list[float]:
        """A column of the record per shown seed, those that are known."""
        found = (row.get(name) for row in self.shown)
        return [float(v) for v in found if v is not None and v == v]

    def mean_std(self, metric: str, rule: str) -> str:
        values = self.column(metric, rule)
        return number(mean(values)) + (f" ± {number(std(values))}" if len(values) > 1 else "")

    def gaps(self) -> str:
        """What is not there: `missing`, `failed`, or how many of each."""
        kinds = [self.lost.get(seed, "missing") for seed in self.gone]
        counted = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
        if len(counted) == 1 and not self.rows:
            return next(iter(counted))
        return ", ".join(f"{n} {kind}" for kind, n in counted.items() if kind != "missing" or not self.rows)

    def entries(self, rule: str, style: str) -> list[Entry]:
        """ACC, ASR and RA."""
        if not self.rows:
            return [Entry(self.gaps()), Entry("–"), Entry("–")]
        acc, asr, ra = (self.mean_std(metric, rule) for metric in METRICS)
        off = "" if all(row["took"] for row in self.rows) else "†"
        counted = f"{len(self.shown)} of {len(self.seeds)} seeds{off}"
        note = f" ({', '.join(filter(None, [counted, self.gaps()]))})" if len(self.shown) < len(self.seeds) else off
        if not self.counts:
            return [Entry(acc + note, "struck"), Entry(asr, "struck"), Entry(ra, "struck")]
        return [Entry(acc + note), Entry(asr, style), Entry(ra)]

    def each_asr(self, rule: str) -> str:
        """Seed by seed: `5.0, 0.0†, failed`."""
        column = "asr_before" if all(row["defense"] == "none" for row in self.rows) else f"asr_{rule}"
        done = {row["seed"]: number(row[column]) + ("" if row["took"] else "†") for row in self.rows}
        return ", ".join(done.get(seed, self.lost.get(seed, "missing")) for seed in self.seeds)


@dataclass(frozen=True)
class Sheet:
    """All cells of one data set and model."""

    dataset: Key
    model: Key
    rows: pd.DataFrame
    lost: Sequence[Problem]

    @cached_property
    def keys(self) -> dict[str, list[Key]]:
        """By axis (attack, defense): all there are, by name."""
        lost = {axis: {(p.cell[axis], p.cell[f"{axis}_settings"]) for p in self.lost} for axis in ("attack", "defense")}
        return {axis: sorted({*pairs(self.rows, axis), *more}) for axis, more in lost.items()}

    @cached_property
    def attacks(self) -> list[Key]:
        return sorted(self.keys["attack"], key=lambda key: (key[0] in BASELINES, key))

    @cached_property
    def cheats(self) -> set[Key]:
        """Defences that see the trigger: controls that no defence can be ranked against."""
        rows = self.rows[self.rows["needs"] == CHEATS]
        return set(pairs(rows, "defense"))

    @cached_property
    def tried(self) -> set[Key]:
        """Defences with settings of their own given by hand, where the same defence is there without any: no rivals of others."""
        firsts = self.rows.drop_duplicates(["defense", "defense_settings"])
        names = list(firsts["defense"])
        several = (
            (d, f) for d, f in zip(pairs(firsts, "defense"), firsts["folder"], strict=True) if names.count(d[0]) > 1
        )
        hand = {defense: bool(by_hand(folder)) for defense, folder in several}
        return {d for d in hand if hand[d] and any(o[0] == d[0] and not hand[o] for o in hand)}

    @cached_property
    def rivals(self) -> list[Key]:
        """The defences that can be held against each other."""
        return [d for d in self.defenses if d[0] != "none" and d not in self.cheats and d not in self.tried]

    @cached_property
    def pruners(self) -> set[Key]:
        """Defences that had channels to choose from."""
        if "channels" not in self.rows:
            return set()
        rows = self.rows[self.rows["channels"].notna()]
        return set(zip(rows["defense"], rows["defense_settings"], strict=True))

    def kind(self, defense: Key) -> str:
        """One of KINDS."""
        if defense[0] == "none":
            return ""
        if defense in self.cheats or defense[0] in CONTROLS:
            return "controls"
        if not any(self.cell(defense, attack).rows for attack in self.attacks):
            return "not finished"
        return "pruning" if defense in self.pruners else "repair"

    @cached_property
    def defenses(self) -> list[Key]:
        """By kind; plain fine-tuning first and what cheats last, as the papers have them."""
        return sorted(
            self.keys["defense"],
            key=lambda key: (KINDS.index(self.kind(key)), key in self.cheats, key[0] != "ft", key),
        )

    @cached_property
    def seeds(self) -> list[int]:
        return sorted({int(seed) for seed in self.rows["seed"]} | {p.cell["seed"] for p in self.lost})

    @cached_property
    def weak(self) -> pd.DataFrame:
        """The models whose attack did not take: a row for each."""
        return self.rows[~self.rows["took"]].drop_duplicates(["attack", "attack_settings", "seed"])

    @cached_property
    def cells(self) -> dict[tuple[str, ...], Cell]:
        """By PAIR: those that have a finished, failed or damaged seed."""
        done: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        lost: dict[tuple[str, ...], dict[int, str]] = {}
        for row in self.rows.to_dict("records"):
            done.setdefault(tuple(row[name] for name in PAIR), []).append(row)  # type: ignore[arg-type]
        for problem in self.lost:
            cell = problem.cell
            lost.setdefault(tuple(cell[name] for name in PAIR), {})[cell["seed"]] = problem.kind
        return {key: Cell(done.get(key, []), self.seeds, lost.get(key, {})) for key in done | lost}

    def cell(self, defense: Key, attack: Key) -> Cell:
        return self.cells.get((*defense, *attack)) or Cell([], self.seeds, {})

    def before(self, attack: Key) -> Cell:
        """The model as it came, from the records of any defence."""
        rows: dict[int, Mapping[str, Any]] = {}
        for defense in self.keys["defense"]:
            for row in self.cell(defense, attack).rows:
                rows.setdefault(row["seed"], {**row, "defense": "none"})
        return Cell([rows[seed] for seed in sorted(rows)], self.seeds, {})

    def styles(self, attack: Key, rule: str) -> dict[Key, str]:
        """Lowest and second lowest ASR among the rivals with the most seeds, compared as printed. Not by the rule oracle."""
        cells = {d: self.cell(d, attack) for d in self.rivals}
        cells = {d: cell for d, cell in cells.items() if cell.counts}
        if rule == "oracle" or attack[0] in BASELINES or not cells:
            return {}
        most = max(len(cell.shown) for cell in cells.values())
        return ranked({d: mean(c.column("asr", rule)) for d, c in cells.items() if len(c.shown) == most})


def ranked(values: Mapping[Key, float]) -> dict[Key, str]:
    """The lowest are `best`, the next `second`, compared as printed."""
    printed = {key: float(np.round(value, 1)) for key, value in values.items()}
    marks = dict(zip(sorted(set(printed.values())), ("best", "second"), strict=False))
    return {key: marks.get(value, "") for key, value in printed.items()}


def sheets(frame: pd.DataFrame, problems: Sequence[Problem]) -> Iterator[Sheet]:
    """One for each data set and model, in a fixed order."""
    frame = gate(frame)
    for _, rows in frame.groupby(PLACES):
        place = {name: str(rows[name].iloc[0]) for name in PLACES}
        dataset, dataset_settings, model, model_settings = place.values()
        lost = [p for p in problems if place.items() <= p.cell.items()]
        yield Sheet((dataset, dataset_settings), (model, model_settings), rows, lost)
