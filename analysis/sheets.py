"""Cells and sheets: which finished seeds stand behind each number of a table, and which do not count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from analysis.load import Problem
from analysis.render import Entry
from analysis.schema import METRICS

TOOK_ASR, TOOK_ACC = 80.0, 5.0  # the bench's own gate (conf/config.yaml), for records made before it was in them
PLACES = [name for axis in ("dataset", "model") for name in (axis, f"{axis}_settings")]
PAIR = [name for axis in ("defense", "attack") for name in (axis, f"{axis}_settings")]
CHEATS = "trigger"  # what a record says that its defence needs if it is none
Key = tuple[str, str]
"""A name and the settings that set it apart, such as ("rnp", "selection.max_drop=2")."""


def label(key: Key) -> str:
    return f"{key[0]} ({key[1]})" if key[1] else key[0]


def gate(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds `took`, whether the attack took, where a record does not say so, and `clean_acc`, the clean models' mean ACC.

    A defence against an attack that never worked proves nothing. A model without an attack passes: it is a control.
    """
    control = frame["attack"] == "none"
    models = frame[control].drop_duplicates([*PLACES, "attack_settings", "seed"])
    clean = models.groupby(PLACES)["acc_before"].mean().rename("clean_acc").reset_index()
    frame = frame.drop(columns="clean_acc", errors="ignore").merge(clean, on=PLACES, how="left")
    if "clean_model_acc" in frame:  # that of the model's own seed
        frame["clean_acc"] = frame["clean_model_acc"].astype(float).fillna(frame["clean_acc"])
    near = ~((frame["acc_before"] - frame["clean_acc"]).abs() > TOOK_ACC + 1e-9)
    took = (frame["attack"] == "none") | ((frame["asr_before"] >= TOOK_ASR) & near)
    said = frame["took"] if "took" in frame else pd.Series(None, index=frame.index, dtype=object)
    return frame.assign(took=took.where(said.isna(), said == True))  # noqa: E712 - element by element


@dataclass(frozen=True)
class Cell:
    """One defence against one attack. `rows`: its finished seeds; `lost`: seed -> failed or damaged."""

    rows: pd.DataFrame
    seeds: Sequence[int]
    lost: Mapping[int, str]

    @cached_property
    def counts(self) -> bool:
        return bool(self.rows["took"].any())

    @cached_property
    def shown(self) -> pd.DataFrame:
        """The seeds whose attack took; all of them if it took for none."""
        return self.rows[self.rows["took"]] if self.counts else self.rows

    def column(self, metric: str, rule: str) -> pd.Series:
        """Per shown seed. A row without a defence shows the model as it came."""
        before = metric in METRICS and (self.rows["defense"] == "none").all()
        return self.shown[metric if metric == "seconds" else f"{metric}_{'before' if before else rule}"]

    def mean_std(self, metric: str, rule: str) -> str:
        values = self.column(metric, rule)
        return number(values.mean()) + (f" ± {number(values.std())}" if len(values) > 1 else "")

    def gaps(self) -> str:
        """What is not there: `missing`, `failed`, or how many of each."""
        kinds = [self.lost.get(s, "missing") for s in self.seeds if s not in set(self.rows["seed"])]
        counted = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
        if len(counted) == 1 and not len(self.rows):
            return next(iter(counted))
        return ", ".join(f"{n} {kind}" for kind, n in counted.items() if kind != "missing" or not len(self.rows))

    def entries(self, rule: str, style: str) -> list[Entry]:
        """ACC, ASR and RA."""
        if not len(self.rows):
            return [Entry(self.gaps()), Entry("–"), Entry("–")]
        acc, asr, ra = (self.mean_std(metric, rule) for metric in METRICS)
        off = "" if self.rows["took"].all() else "†"
        counted = f"{len(self.shown)} of {len(self.seeds)} seeds{off}"
        note = f" ({', '.join(filter(None, [counted, self.gaps()]))})" if len(self.shown) < len(self.seeds) else off
        if not self.counts:
            return [Entry(acc + note, "struck"), Entry(asr, "struck"), Entry(ra, "struck")]
        return [Entry(acc + note), Entry(asr, style), Entry(ra)]

    def each_asr(self, rule: str) -> str:
        """Seed by seed: `5.0, 0.0†, failed`."""
        column = "asr_before" if (self.rows["defense"] == "none").all() else f"asr_{rule}"
        done = {row["seed"]: number(row[column]) + ("" if row["took"] else "†") for row in self.rows.to_dict("records")}
        return ", ".join(done.get(seed, self.lost.get(seed, "missing")) for seed in self.seeds)


@dataclass(frozen=True)
class Sheet:
    """All cells of one data set and model."""

    dataset: Key
    model: Key
    rows: pd.DataFrame
    lost: Sequence[Problem]

    def keys(self, axis: str) -> list[Key]:
        found = set(zip(self.rows[axis], self.rows[f"{axis}_settings"], strict=True))
        return sorted(found | {(p.cell[axis], p.cell[f"{axis}_settings"]) for p in self.lost})

    @cached_property
    def attacks(self) -> list[Key]:
        return sorted(self.keys("attack"), key=lambda key: key[0] == "none")

    @cached_property
    def cheats(self) -> set[Key]:
        """Defences that see the trigger: controls that no defence can be ranked against."""
        rows = self.rows[self.rows["needs"] == CHEATS]
        return set(zip(rows["defense"], rows["defense_settings"], strict=True))

    @cached_property
    def defenses(self) -> list[Key]:
        order, cheats = {"none": 0, "ft": 1, "random": 3}, self.cheats
        return sorted(self.keys("defense"), key=lambda key: 4 if key in cheats else order.get(key[0], 2))

    @cached_property
    def seeds(self) -> list[int]:
        return sorted({int(seed) for seed in self.rows["seed"]} | {p.cell["seed"] for p in self.lost})

    @cached_property
    def weak(self) -> pd.DataFrame:
        """The models whose attack did not take: a row for each."""
        return self.rows[~self.rows["took"]].drop_duplicates(["attack", "attack_settings", "seed"])

    @cached_property
    def cells(self) -> dict[tuple[Key, Key], Cell]:
        """Every pair of a defence and an attack, done or not."""
        groups = {key: rows for key, rows in self.rows.groupby(PAIR, sort=False)}
        lost: dict[tuple[str, ...], dict[int, str]] = {}
        for p in self.lost:
            lost.setdefault(tuple(p.cell[name] for name in PAIR), {})[p.cell["seed"]] = p.kind
        nothing = self.rows.iloc[:0]
        pairs = [(d, a) for d in self.defenses for a in self.attacks]
        return {(d, a): Cell(groups.get((*d, *a), nothing), self.seeds, lost.get((*d, *a), {})) for d, a in pairs}

    def cell(self, defense: Key, attack: Key) -> Cell:
        return self.cells[defense, attack]

    def styles(self, attack: Key, rule: str) -> dict[Key, str]:
        """Lowest and second lowest ASR among the defences with the most seeds, compared as printed.

        Not by the rule oracle, and none that cheats.
        """
        cells = {d: self.cell(d, attack) for d in self.defenses if d[0] != "none" and d not in self.cheats}
        cells = {d: cell for d, cell in cells.items() if cell.counts}
        if rule == "oracle" or attack[0] == "none" or not cells:
            return {}
        most = max(len(cell.shown) for cell in cells.values())
        asr = {d: round(c.column("asr", rule).mean(), 1) for d, c in cells.items() if len(c.shown) == most}
        ranks = dict(zip(sorted(set(asr.values())), ("best", "second"), strict=False))
        return {d: ranks.get(value, "") for d, value in asr.items()}


def number(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"  # + 0.0: no -0.0


def sheets(frame: pd.DataFrame, problems: Sequence[Problem]) -> Iterator[Sheet]:
    frame = gate(frame)
    for _, rows in frame.groupby(PLACES):
        place = {name: str(rows[name].iloc[0]) for name in PLACES}
        dataset, dataset_settings, model, model_settings = place.values()
        lost = [p for p in problems if place.items() <= p.cell.items()]
        yield Sheet((dataset, dataset_settings), (model, model_settings), rows, lost)
