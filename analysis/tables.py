"""Tables of all finished cells: ACC, ASR and RA per defence and attack, as Markdown (also on stdout), CSV and LaTeX."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis import command, render, terminal
from analysis.load import Problem
from analysis.operating_point import SENTENCES
from analysis.paper import SEES, table
from analysis.render import Table, listed
from analysis.runs import Runs
from analysis.schema import AXES, METRICS, UNKNOWN, relearn_name
from analysis.sheets import CHEATS, Sheet, mean, std

TOOK = {"none": "control", UNKNOWN: UNKNOWN}


# -- the table for programs --------------------------------------------------------------------------------------------
def tidy(sheet: Sheet, rule: str) -> Iterator[dict[str, Any]]:
    """One row per attack and defence, with the numbers behind the table; those of an attack that did not take too."""
    relearned = [name for name in sheet.rows.columns if relearn_name(name)]
    for attack in sheet.attacks:
        for defense in sheet.defenses:
            cell = sheet.cell(defense, attack)
            first = next(iter(cell.rows), {})
            keys = dict(zip(AXES, (sheet.dataset, sheet.model, attack, defense), strict=True))
            row: dict[str, Any] = {axis: key[0] for axis, key in keys.items()}
            row |= {"settings": "; ".join(key[1] for key in keys.values() if key[1]), "rule": rule}
            needs = first.get("needs", "")
            row |= {"sees": SEES[CHEATS] if needs == CHEATS else needs, "max_drop": first.get("max_drop")}
            row["took"] = TOOK.get(attack[0]) or ("yes" if cell.counts else "no" if cell.rows else "")
            row |= {"n": len(cell.shown), "seeds": listed((r["seed"] for r in cell.shown), " ")}
            row["not_taken"] = listed((r["seed"] for r in cell.rows if not r["took"]), " ")
            for kind in ("missing", "failed", "damaged"):
                row[kind] = listed([s for s in cell.gone if cell.lost.get(s, "missing") == kind], " ")
            columns = {f"{metric}_before": cell.values(f"{metric}_before") for metric in METRICS}
            columns |= {metric: cell.column(metric, rule) for metric in METRICS}
            columns |= {f: cell.values(f"{f}_{rule}") for f in ("der", "pruned")}
            columns |= {name: cell.values(name) for name in ("seconds", "peak_memory_mib", *relearned)}
            for name, values in columns.items():
                row[f"{name}_mean"] = mean(values) if values else None
                row[f"{name}_std"] = std(values) if len(values) > 1 else None
            yield row


# -- the program -------------------------------------------------------------------------------------------------------
def make(root: Path | Runs, select: str, by: str = "defenses") -> tuple[dict[str, str], list[Problem]]:
    """File name -> text for everything under `root`, and the problems. No texts if there is no finished cell."""
    texts, _, problems = build(root, select, by)
    return texts, problems


def build(root: Path | Runs, select: str, by: str) -> tuple[dict[str, str], list[Table], list[Problem]]:
    """As `make`, and the tables themselves."""
    runs = Runs.of(root)
    found, problems = runs.sheets, runs.problems
    if not found:
        return {}, [], problems
    rules = list(SENTENCES) if select == "all" else [select]
    placed = {problem for sheet in found for problem in map(str, sheet.lost)}
    tables = [table(sheet, rule, select == "all", by) for sheet in found for rule in rules]
    texts = {"table.md": render.markdown(tables, [str(p) for p in problems if str(p) not in placed])}
    texts["table.csv"] = render.csv_text([row for sheet in found for rule in rules for row in tidy(sheet, rule)])
    return texts | {"table.tex": render.latex(tables)}, tables, problems


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
    parser.add_argument(
        "--rows", choices=["defenses", "attacks"], default="defenses", help="what the rows are; the others are columns"
    )
    parser.add_argument(
        "--show",
        choices=["markdown", "terminal"],
        help="what is printed: the Markdown text, or a view with colours, split to fit the width "
        "(default: terminal if that is where it goes, else markdown)",
    )
    command.document(parser)
    options = parser.parse_args(arguments)
    texts, tables, problems = build(options.runs, options.select, options.rows)
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
    if (options.show or ("terminal" if sys.stdout.isatty() else "markdown")) == "terminal":
        terminal.show(tables, Console())
    else:
        print(texts["table.md"], end="")
    print(f"Also in {out}: {', '.join(texts)}.", file=sys.stderr)
    return command.put_into(options.into, "tables", texts["table.md"]) if options.into else 0


if __name__ == "__main__":
    sys.exit(main())
