"""Published numbers beside the closest of ours: the difference, and what differs between the two that may be why.

`analysis/reported.csv` holds the published ones with their sources. A number with a threshold (`at`) is held against our
curve at that threshold, every other one against our operating point.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import command, render
from analysis.operating_point import SENTENCES
from analysis.render import Entry, Grid, Table, listed
from analysis.runs import Runs
from analysis.schema import METRICS, is_percent
from analysis.sheets import Cell, Key, Sheet, label, mean, number

REPORTED = Path(__file__).with_name("reported.csv")
Settings = Mapping[str, str]


def reported(path: Path = REPORTED) -> list[dict[str, Any]]:
    """The published numbers: names as ours, `printed` as in the source; numbers as floats, None where there is none."""
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        for name in (*METRICS, "at", "poison_rate", "epochs", "clean"):
            row[name] = float(row[name]) if row[name] else None
        if not all(row[metric] is None or is_percent(row[metric]) for metric in METRICS):
            raise ValueError(f"{path.name}: {row['printed']} of {row['paper']} holds no percentage")
    return rows


def compare(root: Path | Runs, rule: str) -> list[dict[str, Any]]:
    """A row for each published number that a finished cell of ours is about: those of `reported`, and

    `dataset_ours`, `model_ours`, `attack_ours`, `defense_ours` (names with settings), `took`, `seeds`, `<metric>_ours` (percent,
    mean over seeds; None if unknown), `<metric>_difference` (ours - published, points), `why` (a list of what differs).
    """
    runs = Runs.of(root)
    if not len(runs.frame):
        return []
    settings, points = runs.settings, runs.curves[0]
    ours = [(s, a, d) for s in runs.sheets for a in s.attacks for d in s.defenses if s.cell(d, a).rows]
    found = []
    for row in reported():
        closest = min(
            (o for o in ours if (o[1][0], o[2][0]) == (row["attack"], row["defense"]) and same_data(row, o, settings)),
            key=lambda o: (len(differences(row, o, settings)), o[1:]),
            default=None,
        )
        if closest:
            found.append(row | beside(row, closest, settings, points, rule))
    return found


def config(sheet: Sheet, attack: Key, defense: Key, settings: Mapping[str, Settings]) -> Settings:
    """The settings of the first seed; the others have the same."""
    return settings.get(sheet.cell(defense, attack).rows[0]["where"], {})


def same_data(row: Mapping[str, Any], ours: tuple[Sheet, Key, Key], settings: Mapping[str, Settings]) -> bool:
    """An image folder is taken for what its path says."""
    name, root = ours[0].dataset[0], config(*ours, settings).get("dataset.root", "")
    return row["dataset"] in (name, name.partition("_")[0]) or (name == "imagefolder" and row["dataset"] in root)


def differences(row: Mapping[str, Any], ours: tuple[Sheet, Key, Key], settings: Mapping[str, Settings]) -> list[str]:
    """What is known to differ between a published number and ours, in words."""
    sheet, own = ours[0], config(*ours, settings)
    why = []
    if "jpeg" in sheet.dataset[0] or "jpeg" in own.get("dataset.root", ""):
        why.append("JPEG pixels")
    if sheet.model[0] != row["model"]:
        why.append(f"{sheet.model[0]} for {row['model']}")
    if (width := own.get("model.width", "64")) != "64":
        why.append(f"width {width} for 64")
    for key, name, what in (
        ("epochs", "train.epochs", "{} epochs for {}"),
        ("clean", "clean.tune", "{} clean images for {}"),
        ("poison_rate", "attack.poison_rate", "poison rate {} for {}"),
    ):
        here, there = own.get(name), row[key]
        if row["defense"] == "none" and key == "clean":
            continue
        if here and there is not None and number_of(here) != there:
            why.append(what.format(here, f"{there:g}"))
    return why


def number_of(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def beside(
    row: Mapping[str, Any],
    ours: tuple[Sheet, Key, Key],
    settings: Mapping[str, Settings],
    points: pd.DataFrame,
    rule: str,
) -> dict[str, Any]:
    """Our side of a row of `compare`."""
    sheet, attack, defense = ours
    cell = sheet.cell(defense, attack)
    values = at_threshold(cell, points, row["at"]) if row["at"] is not None else None
    if values is None:
        values = {metric: cell.column(metric, rule) for metric in METRICS}
    known = {metric: mean(v) if v else None for metric, v in values.items()}
    out: dict[str, Any] = {"dataset_ours": label(sheet.dataset), "model_ours": label(sheet.model)}
    out["max_drop"] = cell.rows[0]["max_drop"]
    out |= {"attack_ours": label(attack), "defense_ours": label(defense), "took": cell.counts}
    out |= {"seeds": len(cell.shown)} | {f"{metric}_ours": value for metric, value in known.items()}
    for metric, value in known.items():
        out[f"{metric}_difference"] = None if value is None or row[metric] is None else value - row[metric]
    why = differences(row, ours, settings)
    if row["at"] is None and row["defense"] != "none":
        why.append(f"operating point by {rule}")
    if not cell.counts:
        why.insert(0, "our attack did not take")
    if row["verified"] != "yes":
        why.append("published number not verified at its source")
    return out | {"why": why}


def at_threshold(cell: Cell, points: pd.DataFrame, at: float) -> dict[str, list[float]] | None:
    """Of the shown seeds, what their curves have at that threshold; None unless every one has such a point."""
    places = {row["where"] for row in cell.shown}
    rows = points[points["where"].isin(places) & ((points["at"] - at).abs() < 1e-6)].drop_duplicates("where")
    return {metric: rows[metric].tolist() for metric in METRICS} if len(rows) == len(places) else None


# -- the table ---------------------------------------------------------------------------------------------------------
def tables(rows: Sequence[Mapping[str, Any]], rule: str) -> Iterator[Table]:
    """One per source."""
    for source in dict.fromkeys((row["paper"], row["table"], row["model"]) for row in rows):
        own = [row for row in rows if (row["paper"], row["table"], row["model"]) == source]
        rule_said = SENTENCES[rule].format(max_drop=own[0]["max_drop"])
        caption = (
            "Ours: mean over seeds; where the source names a threshold, our curve at that threshold, else by "
            f"{rule}: {rule_said}. Differences are ours minus published, in points; struck: our attack did not take."
        )
        pairs = [(name, ("ACC", "ASR")) for name in ("published", "ours", "difference")]
        groups = [("", ("attack", "defence")), *pairs, ("", ("seeds",))]
        sources = listed(dict.fromkeys(row["source"] for row in own), "; ")
        yield Table(
            f"{source[0]}, {source[1]}: {own[0]['dataset']}, {source[2]}",
            [caption],
            Grid(groups, [entries(row) for row in own], texts=2),
            [("What differs", differing(own))],
            [f"Source: {sources}."],
        )


def entries(row: Mapping[str, Any]) -> list[Entry]:
    name = row["defense"] + (f" at {row['at']:g}" if row["at"] is not None else "")
    style = "" if row["took"] else "struck"
    ours = [Entry(shown(row[f"{metric}_ours"]), style) for metric in ("acc", "asr")]
    apart = [Entry(shown(row[f"{metric}_difference"], "+"), style) for metric in ("acc", "asr")]
    published = [Entry(shown(row["acc"])), Entry(shown(row["asr"]))]
    return [Entry(row["attack"]), Entry(name), *published, *ours, *apart, Entry(str(row["seeds"]))]


def shown(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"+{number(value)}" if sign and value >= 0.05 else number(value)


def differing(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Each difference once, with the cells that it is about."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for why in row["why"]:
            found.setdefault(why, []).append(f"{row['attack']}/{row['defense']}")
    every = len({f"{row['attack']}/{row['defense']}" for row in rows})
    lines = [(why, list(dict.fromkeys(cells))) for why, cells in found.items()]
    told = [[Entry(why), Entry("all" if len(cells) == every else listed(cells))] for why, cells in lines]
    return Grid([("", ["what", "of"])], told, texts=2)


# -- the program -------------------------------------------------------------------------------------------------------
def make(root: Path | Runs, rule: str) -> dict[str, str]:
    """File name -> text; none if no published number is about a cell of ours."""
    rows = compare(root, rule)
    if not rows:
        return {}
    flat = [{key: listed(v, "; ") if isinstance(v, list) else v for key, v in row.items()} for row in rows]
    return {"ledger.md": render.markdown(list(tables(rows, rule)), []), "ledger.csv": render.csv_text(flat)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser("ledger", (__doc__ or "").partition("\n")[0], "tables")
    parser.add_argument(
        "--select", choices=list(SENTENCES), default="clean_drop", help="which operating points of ours"
    )
    options = parser.parse_args(arguments)
    runs = Runs.of(options.runs)
    if not len(runs.frame):
        return command.no_cell(options.runs)
    texts = make(runs, options.select)
    if not texts:  # as after the demo: nothing is wrong
        about = listed(sorted({row["dataset"] for row in reported()}))
        print(
            f"No cell in {options.runs} is about a published number: those in {REPORTED.name} are of {about}. Cells that are:"
        )
        print("    python bench/run.py -m experiment=rnp_table1 scale=cpu    (or another of conf/experiment)")
        return 0
    out = options.out or options.runs / "tables"
    try:
        for name, text in texts.items():
            render.write(out / name, text)
    except OSError as error:
        return command.no_room(out, error)
    print(texts["ledger.md"], end="")
    print(f"Also in {out}: {', '.join(texts)}.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
