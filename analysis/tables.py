"""Tables of all finished cells: ACC, ASR and RA per defence and attack, as Markdown (also on stdout), CSV and LaTeX."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import command, render
from analysis.load import Problem, load
from analysis.operating_point import SENTENCES
from analysis.render import Entry, Grid, Table
from analysis.schema import AXES, METRICS
from analysis.sheets import CHEATS, TOOK_ACC, TOOK_ASR, Cell, Key, Sheet, label, number, sheets

SEES = {
    "nothing": "nothing",
    "clean": "clean images",
    "poisoned": "clean and poisoned images",
    CHEATS: "trigger (cheats)",
}
DIGITS = (
    "On digits the network, the attacks and the defences' settings were chosen by test ASR on seeds 0, 1, 10 and 11; "
    "tables should use other seeds, and the operating point of each row by the rule above.",
    "This table is for trying the bench, not for ranking defences: outcomes there are nearly all-or-nothing, "
    "so look at the single seeds below the table.",
)


# -- the table for people ----------------------------------------------------------------------------------------------
def table(sheet: Sheet, rule: str, gap: bool) -> Table:
    """`gap`: with the column that says how much lower the ASR would be had the test set chosen the operating point."""
    styles = {attack: sheet.styles(attack, rule) for attack in sheet.attacks}
    rows = []
    for defense in sheet.defenses:
        cells = {attack: sheet.cell(defense, attack) for attack in sheet.attacks}
        done = pd.concat([cell.rows for cell in cells.values()])
        sees = next((SEES.get(needs, needs) for needs in done["needs"]), "–")
        entries = [e for a, cell in cells.items() for e in cell.entries(rule, styles[a].get(defense, ""))]
        rows.append([Entry(label(defense)), Entry(sees), *entries, *over_attacks(cells, rule, gap), seconds(done)])
    triple = ["ACC", "ASR", "RA"]
    groups = [("", ["defence", "sees"]), *((label(attack), triple) for attack in sheet.attacks), ("average", triple)]
    groups += [("", ["attacks", "DER", *(["oracle gap"] if gap else []), "seconds"])]
    seeds = [
        [Entry(label(d)), *(Entry(sheet.cell(d, attack).each_asr(rule)) for attack in sheet.attacks)]
        for d in sheet.defenses
    ]
    return Table(
        f"{label(sheet.dataset)}, {label(sheet.model)}: {rule}",
        list(caption(sheet, rule)),
        Grid(groups, rows, texts=2),
        f"ASR per seed ({listed(sheet.seeds)})",
        Grid([("", ["defence", *map(label, sheet.attacks)])], seeds, texts=1 + len(sheet.attacks)),
        [" ".join(legend(sheet, rule, gap)), *notes(sheet)],
    )


def over_attacks(cells: Mapping[Key, Cell], rule: str, gap: bool) -> list[Entry]:
    """Mean ACC, ASR, RA over the attacks that took, of how many these are, DER and oracle gap."""
    attacks = [cell for attack, cell in cells.items() if attack[0] != "none"]
    took = [cell for cell in attacks if cell.counts]

    def mean(metric: str, rule: str) -> float:
        return sum(cell.column(metric, rule).mean() for cell in took) / len(took)

    if not took:
        return [Entry("–")] * 3 + [Entry(f"0 of {len(attacks)}")] + [Entry("–")] * (2 if gap else 1)
    values = [Entry(number(mean(metric, rule))) for metric in METRICS]
    values += [Entry(f"{len(took)} of {len(attacks)}"), Entry(number(mean("der", rule)))]
    return values + ([Entry(number(mean("asr", "clean_drop") - mean("asr", "oracle")))] if gap else [])


def seconds(done: pd.DataFrame) -> Entry:
    return Entry(number(done["seconds"].mean()) if len(done) else "–")


def caption(sheet: Sheet, rule: str) -> Iterator[str]:
    rows, seeds = sheet.rows, sheet.seeds
    chosen = dict.fromkeys(SENTENCES[rule].format(max_drop=drop) for drop in sorted(set(rows["max_drop"])))
    yield f"Operating point by {rule}: {'; or '.join(chosen)}."
    many = f"{len(seeds)} seeds ({listed(seeds)}): mean ± standard deviation (n - 1)."
    yield many if len(seeds) > 1 else f"1 seed ({seeds[0]}), so no spread."
    clean, triggered = (listed(sorted(set(rows[key])), " or ") for key in ("clean", "triggered"))
    yield f"ACC on {clean} clean test images, ASR and RA on {triggered} triggered ones of other classes than the target."
    if sheet.dataset[0] == "digits":
        yield from DIGITS


def legend(sheet: Sheet, rule: str, gap: bool) -> Iterator[str]:
    yield "Row none: the model before any defence."
    if any(attack[0] == "none" for attack in sheet.attacks):
        yield "Column none: a model without a backdoor, as a control; in no average."
    yield "Sees: what the defence itself looks at, before the rule chooses."
    if cheats := [label(defense) for defense in sheet.defenses if defense in sheet.cheats]:
        yield f"Cheats: {listed(cheats)} sees the true trigger; a control and no defence, so it is never marked lowest."
    yield "Average and DER: over the attacks that took."
    if rule != "oracle":
        yield "Lowest ASR per attack in bold, second lowest in italics."
    if gap:
        yield "Oracle gap: average ASR by clean_drop minus that by oracle; below 0 where the oracle had to keep more ACC."
    yield "Seconds: the defence alone, without evaluation."


def listed(values: Iterable[Any], by: str = ", ") -> str:
    return by.join(map(str, values))


def notes(sheet: Sheet) -> Iterator[str]:
    weak = sheet.weak
    if len(weak):
        clean = weak["clean_acc"].iloc[0]
        near = (
            f"ACC within {TOOK_ACC:g} of the clean models' {clean:.1f}"
            if clean == clean
            else "no clean model to compare"
        )
        which = []
        for row in weak.to_dict("records"):
            name = label((row["attack"], row["attack_settings"]))
            which.append(f"{name} seed {row['seed']} (ASR {row['asr_before']:.1f}, ACC {row['acc_before']:.1f})")
        yield f"† The attack did not take (needed: ASR of {TOOK_ASR:g}, {near}), so it counts in no average: {listed(which)}."
    for problem in sheet.lost:
        yield str(problem)


# -- the table for programs --------------------------------------------------------------------------------------------
def tidy(sheet: Sheet, rule: str) -> Iterator[dict[str, Any]]:
    """One row per attack and defence, with the numbers behind the table; those of an attack that did not take too."""
    for attack in sheet.attacks:
        for defense in sheet.defenses:
            cell = sheet.cell(defense, attack)
            rows, keys = cell.rows, dict(zip(AXES, (sheet.dataset, sheet.model, attack, defense), strict=True))
            row: dict[str, Any] = {axis: key[0] for axis, key in keys.items()}
            row |= {"settings": "; ".join(key[1] for key in keys.values() if key[1]), "rule": rule}
            needs = next(iter(rows["needs"]), "")
            row |= {"sees": SEES[CHEATS] if needs == CHEATS else needs, "max_drop": next(iter(rows["max_drop"]), None)}
            row |= {"took": "control" if attack[0] == "none" else "yes" if cell.counts else "no" if len(rows) else ""}
            row |= {"n": len(cell.shown), "seeds": listed(cell.shown["seed"], " ")}
            row["not_taken"] = listed(rows["seed"][~rows["took"]], " ")
            for kind in ("missing", "failed", "damaged"):
                without = [s for s in cell.seeds if s not in set(rows["seed"])]
                row[kind] = listed([s for s in without if cell.lost.get(s, "missing") == kind], " ")
            for metric in (*METRICS, "der", "seconds"):
                values = cell.column(metric, rule).astype(float)
                row[f"{metric}_mean"] = values.mean() if len(values) else None
                row[f"{metric}_std"] = values.std() if len(values) > 1 else None
            yield row


# -- the program -------------------------------------------------------------------------------------------------------
def make(root: Path, select: str) -> tuple[dict[str, str], list[Problem]]:
    """File name -> text for everything under `root`, and the problems. No texts if there is no finished cell."""
    frame, problems = load(root)
    if not len(frame):
        return {}, problems
    rules = list(SENTENCES) if select == "all" else [select]
    found = list(sheets(frame, problems))
    placed = {problem for sheet in found for problem in map(str, sheet.lost)}
    tables = [table(sheet, rule, gap=select == "all") for sheet in found for rule in rules]
    texts = {"table.md": render.markdown(tables, [str(p) for p in problems if str(p) not in placed])}
    texts["table.csv"] = render.csv_text([row for sheet in found for rule in rules for row in tidy(sheet, rule)])
    return texts | {"table.tex": render.latex(tables)}, problems


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser(
        "tables",
        "Prints the tables of all finished cells as Markdown and writes table.md, table.csv and table.tex.",
        "tables",
    )
    parser.add_argument(
        "--select",
        choices=[*SENTENCES, "all"],
        default="clean_drop",
        help="which point of each defence's curve counts: fixed = the paper's own number; clean_drop = the largest pruning "
        "that keeps the accuracy on the defender's own images (default); oracle = the lowest test ASR, no "
        "result; all = one table each, with the gap between the last two",
    )
    command.document(parser)
    options = parser.parse_args(arguments)
    texts, problems = make(options.runs, options.select)
    for problem in problems:
        print(render.plain(str(problem)), file=sys.stderr)
    if not texts:
        return command.no_cell(options.runs)
    out = options.out or options.runs / "tables"
    try:
        for name, text in texts.items():
            render.write(out / name, text)
    except OSError as error:
        return command.no_room(out, error)
    print(texts["table.md"], end="")
    print(f"Also in {out}: {', '.join(texts)}.", file=sys.stderr)
    return command.put_into(options.into, "tables", texts["table.md"]) if options.into else 0


if __name__ == "__main__":
    sys.exit(main())
