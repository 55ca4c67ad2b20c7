"""Published numbers beside the closest of ours: the difference, and what differs between the two that may be why.

`analysis/reported.csv` holds the published ones with their sources. A number with a threshold (`at`) is held against our
curve at that threshold, one whose source chose it by a rule that we have (`rule`) against our operating point by that
rule, every other one against the operating point that is asked for. `apart` says what its source is known to do otherwise.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import command, render
from analysis.operating_point import SENTENCES
from analysis.published import REPORTED, differences, number_of, reported, same_data
from analysis.render import Entry, Grid, Table, listed
from analysis.runs import Runs
from analysis.schema import METRICS
from analysis.settings import Settings
from analysis.sheets import Cell, Key, Sheet, label, mean, number


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
    pairs = []
    for row in reported():
        about = [o for o in ours if (o[1][0], o[2][0]) == (row["attack"], row["defense"])]
        pairs.append((row, [o for o in about if same_data(row, o, settings)]))
    found = []
    for row, about in pairs:
        if about:
            # Where several are equally close, one network serves for as much of a published table as there is.
            shared = Counter(id(o[0]) for other, same in pairs if origin(other) == origin(row) for o in same)
            closest = min(about, key=partial(distance, row, settings, shared))
            found.append(row | beside(row, closest, settings, points, rule))
    return found


def origin(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The table that a published number stands in."""
    return row["paper"], row["table"], row["model"]


def distance(
    row: Mapping[str, Any], settings: Mapping[str, Settings], shared: Counter[int], ours: tuple[Sheet, Key, Key]
) -> tuple[Any, ...]:
    """What is least for the cell of ours that a published number is held against: one whose attack took comes first."""
    sheet, attack, defense = ours
    cell = sheet.cell(defense, attack)
    apart = len(differences(row, ours, settings))
    return not cell.counts, apart, -shared[id(sheet)], -len(cell.shown), attack, defense


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
    own, unknown = row["rule"] or rule, ""
    values: Mapping[str, list[float]] = {metric: cell.column(metric, own) for metric in METRICS}
    if row["at"] is not None:
        values, unknown = at_threshold(cell, points, row["at"], settings)
    known = {metric: mean(v) if v else None for metric, v in values.items()}
    out: dict[str, Any] = {"dataset_ours": label(sheet.dataset), "model_ours": label(sheet.model)}
    out["max_drop"] = cell.rows[0]["max_drop"]
    out |= {"attack_ours": label(attack), "defense_ours": label(defense), "took": cell.counts}
    out |= {"seeds": len(cell.shown)} | {f"{metric}_ours": value for metric, value in known.items()}
    for metric, value in known.items():
        out[f"{metric}_difference"] = None if value is None or row[metric] is None else value - row[metric]
    why = differences(row, ours, settings)
    if unknown:
        why.append(unknown)
    if row["at"] is None and defense in sheet.pruners:
        why.append(f"operating point by {own}" + (", as theirs" if row["rule"] else ""))
    if row["apart"]:
        why.append(row["apart"])
    if not cell.counts:
        why.insert(0, "our attack did not take")
    if row["verified"] != "yes":
        why.append("published number not verified at its source")
    return out | {"why": why}


def at_threshold(
    cell: Cell, points: pd.DataFrame, at: float, settings: Mapping[str, Settings]
) -> tuple[dict[str, list[float]], str]:
    """What the curves of the shown seeds have at that threshold; or nothing, and why."""
    found = []
    for row in cell.shown:
        point, unknown = point_at(row, points[points["where"] == row["where"]], at, settings.get(row["where"], {}))
        if point is None:
            return {metric: [] for metric in METRICS}, unknown
        found.append(point)
    return {metric: [float(p[metric]) for p in found if p[metric] == p[metric]] for metric in METRICS}, ""


def point_at(
    record: Mapping[str, Any], curve: pd.DataFrame, at: float, settings: Settings
) -> tuple[pd.Series | None, str]:
    """The row of a curve (from few to many pruned channels) that a threshold amounts to; or None, and why there is none.

    A curve has no row of its own for a threshold that prunes what the one before it prunes, nor for those after the one
    that lost too much (`selection.stop`).
    """
    own = curve[(curve["at"] - at).abs() < 1e-6]
    if len(own):
        return own.iloc[0], ""
    looked_at = [number_of(text) for text in settings.get("defense.sweep.points", "").strip("[]").split(",")]
    if settings.get("defense.sweep.by") != "at" or not any(abs(point - at) < 1e-6 for point in looked_at):
        return None, "our curve has no such threshold"
    measured = curve["at"].dropna().tolist()
    ends = measured if len(set(measured)) > 1 else looked_at
    before = curve[curve["at"].isna() | ((curve["at"] < at) if ends[-1] > ends[0] else (curve["at"] > at))]
    if not len(before):
        return None, "our curve has no such threshold"
    stop, last = number_of(settings.get("selection.stop")), before.iloc[-1]
    start = record.get("select_acc_before")
    if not math.isnan(stop) and not (start is not None and last["select_acc"] >= start - stop):
        return None, f"our curve ended before such a threshold, {stop:g} points of ACC lost"
    return last, ""


# -- the table ---------------------------------------------------------------------------------------------------------
def tables(rows: Sequence[Mapping[str, Any]], rule: str) -> Iterator[Table]:
    """One per source."""
    for source in dict.fromkeys(map(origin, rows)):
        own = [row for row in rows if origin(row) == source]
        rule_said = SENTENCES[rule].format(max_drop=own[0]["max_drop"])
        caption = (
            "Ours: mean over seeds; where the source names a threshold, our curve at that threshold; where it is known to "
            f"have chosen on test data, by oracle; else by {rule}: {rule_said}. Differences are ours minus published, in points; "
            "struck: our attack did not take."
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
    return [Entry(row["attack_ours"]), Entry(name), *published, *ours, *apart, Entry(str(row["seeds"]))]


def shown(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"+{number(value)}" if sign and value >= 0.05 else number(value)


def differing(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Each difference once, with the cells that it is about."""
    found: dict[str, list[str]] = {}
    several = len({row["model_ours"] for row in rows}) > 1
    for row in rows:
        for why in [*([f"ours is {row['model_ours']}"] if several else []), *row["why"]]:
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
