"""Which attacks took: a table of the backdoored models themselves, before any defence, from the records of finished cells."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from analysis import command, render
from analysis.load import Problem
from analysis.render import Entry, Grid, Table, listed
from analysis.runs import Runs
from analysis.sheets import BASELINES, Sheet, label, number

COLUMNS = ["attack", "took", "poisoned", "ASR per seed", "ACC", "clean model's ACC", "ASR", "RA", "seconds"]


def table(sheet: Sheet) -> Table:
    rows = [row(label(attack), models(sheet, attack)) for attack in sheet.attacks]
    return Table(
        f"{label(sheet.dataset)}, {label(sheet.model)}: the attacks",
        list(caption(sheet)),
        Grid([("", COLUMNS)], [r for r in rows if r], texts=4),
        [],
        list(legend(sheet)),
    )


def models(sheet: Sheet, attack: tuple[str, str]) -> pd.DataFrame:
    """One row per seed: all cells of a seed are about the same model."""
    wanted = (sheet.rows["attack"] == attack[0]) & (sheet.rows["attack_settings"] == attack[1])
    return sheet.rows[wanted].drop_duplicates("seed").sort_values("seed")


def row(name: str, rows: pd.DataFrame) -> list[Entry]:
    if not len(rows):
        return []
    took, control = int(rows["took"].sum()), rows["attack"].isin(BASELINES).all()
    said = f"{took} of {len(rows)}" if not control else "control" if rows.iloc[0]["attack"] == "none" else "unknown"
    style = "" if control or took else "struck"
    return [
        Entry(name),
        Entry(said),
        Entry(poisoned(rows.iloc[0])),
        Entry(listed(map(number, rows["asr_before"])), style),
        *(Entry(spread(rows[column])) for column in ("acc_before", "clean_acc", "asr_before", "ra_before")),
        Entry(spread(rows["seconds_backdoor"], 0) if "seconds_backdoor" in rows else "–"),
    ]


def poisoned(first: pd.Series) -> str:
    """`109 of 1097 (10 %)`, and the covers; draws of a training-controlled attack are a share of each batch."""
    if not {"poisoned", "poison_base", "poison_rate"} <= set(first.dropna().index):
        return "–"
    share = f"{100 * first['poison_rate']:.3g} %"
    if isinstance(first["poison_base"], str):
        return f"{share} of {first['poison_base']}"
    cover = first.get("cover")
    more = f", {int(cover)} covers" if cover is not None and cover == cover else ""
    return f"{int(first['poisoned'])} of {int(first['poison_base'])} ({share}{more})"


def spread(values: pd.Series, digits: int = 1) -> str:
    values = values.dropna().astype(float)
    if not len(values):
        return "–"
    return number(values.mean(), digits) + (f" ± {number(values.std(), digits)}" if len(values) > 1 else "")


def caption(sheet: Sheet) -> Iterator[str]:
    yield f"Backdoored models before any defence; seeds {listed(sheet.seeds)}: mean ± standard deviation (n - 1)."
    yield "ACC on the clean test images, ASR and RA on triggered ones of other classes than the target."
    if "seconds_backdoor" in sheet.rows:
        yield f"Seconds: training the model, trigger included; the defences ran on {machines(sheet.rows)}."


def machines(rows: pd.DataFrame) -> str:
    """On what the cells were run, as far as their records say; a model may have been trained elsewhere."""
    known = rows.reindex(columns=["device", "threads"]).drop_duplicates()
    said = {
        device
        + (f" ({threads:.0f} thread{'s' * (threads != 1)})" if threads == threads and threads is not None else "")
        for device, threads in known.itertuples(index=False)
        if isinstance(device, str)
    }
    return listed(sorted(said), " or ") or "machines that are not known"


def legend(sheet: Sheet) -> Iterator[str]:
    yield (
        "Took: on how many seeds the model has enough ASR, and an ACC near that of a clean model of the same seed (the gate "
        "in conf/config.yaml)."
    )
    for one in sheet.weak.to_dict("records"):
        name = label((one["attack"], one["attack_settings"]))
        yield (
            f"{name} seed {one['seed']} did not take: ASR {number(one['asr_before'])}, ACC {number(one['acc_before'])} "
            f"(clean model {number(one['clean_acc'])})."
        )


def make(root: Path | Runs) -> tuple[str, list[Problem]]:
    """The Markdown text, empty if there is no finished cell, and the problems."""
    runs = Runs.of(root)
    found = [table(sheet) for sheet in runs.sheets]
    return (render.markdown(found, [str(p) for p in runs.problems]) if found else ""), runs.problems


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser(
        "attacks", "Prints a table of the backdoored models: ASR, ACC, seconds, and whether the attack took.", "tables"
    )
    command.document(parser)
    options = parser.parse_args(arguments)
    text, problems = make(options.runs)
    for problem in problems:
        print(render.plain(str(problem)), file=sys.stderr)
    if not text:
        return command.no_cell(options.runs)
    out = options.out or options.runs / "tables"
    try:
        render.write(out / "attacks.md", text)
    except OSError as error:
        return command.no_room(out, error)
    print(text, end="")
    return command.put_into(options.into, "attacks", text) if options.into else 0


if __name__ == "__main__":
    sys.exit(main())
