"""One HTML page of all finished cells: every run with its settings and command, the table, the plots, the ledger."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml  # type: ignore[import-untyped]  # comes with omegaconf

from analysis import command, localisation, plots, tables
from analysis.channels import SHARE
from analysis.index import Index
from analysis.load import Problem, load, read
from analysis.operating_point import SENTENCES
from analysis.page import column, columns, page, picture, table
from analysis.render import plain, write
from analysis.schema import AXES, METRICS, read_text
from analysis.sheets import gate, sheets

MANY = 500  # runs
RULED = (*METRICS, "der", "pruned", "at")  # what a record says once for each rule
DIGITS = dict.fromkeys((*METRICS, "der", "seconds", *(f"{metric}_before" for metric in METRICS)), 1) | {"at": 3}
FIRST = (
    "dataset",
    "model",
    "attack",
    "defense",
    "settings",
    "seed",
    "took",
    *(f"{metric}_before" for metric in METRICS),
)
LAST = ("seconds", "peak_memory_mib", "device", "commit")
HEADS = {"acc": "ACC", "asr": "ASR", "ra": "RA", "der": "DER", "defense": "defence", "peak_memory_mib": "MiB"}
HEADS |= {f"{metric}_before": f"{metric.upper()} before" for metric in METRICS}
HIDDEN = {"where", "curve"}
INNER = {
    "schema",
    "folder",
    "overrides",
    *(f"{axis}_settings" for axis in AXES),
}  # columns of the frame that no reader needs


# -- every run ---------------------------------------------------------------------------------------------------------
def runs_table(frame: pd.DataFrame, settings: Mapping[str, Mapping[str, str]], root: Path) -> dict[str, Any]:
    """`settings`: a cell's place under `root` -> its settings, as `defense.rule.at` -> `0.3`."""
    frame = gate(frame)
    rows: dict[str, list[Any]] = {str(name): list(frame[name]) for name in frame}
    apart = zip(*(rows[f"{axis}_settings"] for axis in AXES), strict=True)
    rows["settings"] = ["; ".join(filter(None, own)) for own in apart]
    rules = [rule for rule in SENTENCES if f"acc_{rule}" in rows]
    ruled = {f"{name}_{rule}" for name in (*RULED, "select_acc", "right", "hit", "robust") for rule in rules}
    ruled |= {*RULED, "select_acc", "right", "hit", "robust"}
    found = [of(name, rows[name]) for name in FIRST if any(value != "" for value in rows.get(name, ()))]
    for name in RULED:
        by = {rule: column(name, rows.get(f"{name}_{rule}", [None] * len(frame))) for rule in rules}
        if all("numbers" in own for own in by.values()):
            found.append({"name": name, "head": HEADS.get(name, name), "digits": DIGITS.get(name), "by": by})
    found += [of(name, rows[name]) for name in LAST if name in rows]
    shown = {*FIRST, *LAST, *ruled, *INNER}
    found += [of(name, values, hidden=True) for name, values in rows.items() if name not in shown]
    commands = [command_of(row, root) for row in rows_of(frame)]
    found.append(column("command", [line for line, _ in commands], hidden=True))
    found.append(column("command_is", [kind for _, kind in commands], hidden=True))
    return table(
        "runs",
        "Runs",
        "One row per run; a click shows its command, machine and settings. took: whether the attack took; if not, the row proves "
        "nothing about its defence. at: the threshold, in the defence's own unit.",
        found,
        len(frame),
        rules=sorted(rules, key=lambda rule: rule != "clean_drop"),
        details={"title": ["attack", "defense", "dataset", "model", "seed"], "settings": parts(rows["where"], settings)},
    )  # fmt: skip


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def of(name: str, values: Sequence[Any], **facts: Any) -> dict[str, Any]:
    scalars = [value if value is None or isinstance(value, str | int | float) else str(value) for value in values]
    made = column(name, scalars, **facts)
    return made | {key: value for key, value in (("head", HEADS.get(name)), ("digits", DIGITS.get(name))) if value}


def parts(places: Sequence[str], settings: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """The settings part by part (attack, defense, ...), each different one once: a sweep's cells share nearly all."""
    names = list(dict.fromkeys(key.partition(".")[0] for where in places for key in settings.get(where, {})))
    found = []
    for name in names:
        blocks: dict[tuple[tuple[str, str], ...], int] = {}
        codes = []
        for where in places:
            own = ((k, plain(v)) for k, v in settings.get(where, {}).items() if k.partition(".")[0] == name)
            codes.append(blocks.setdefault(tuple(own), len(blocks)))
        found.append({"blocks": [list(map(list, block)) for block in blocks], "codes": codes})
    return found


def command_of(row: Mapping[str, Any], root: Path) -> tuple[str, str]:
    """How to make a run again, and whether that was written down (by Hydra) or is put together from the record."""
    words = row.get("overrides")
    if words:
        return f"python bench/run.py {shlex.join(words)}", "Command"
    names = [f"{axis}={row[axis]}" for axis in AXES] + [f"seed={row['seed']}"]
    return f"python bench/run.py {shlex.join(names)}", "Command (none was kept: from the names; see the settings)"


def overrides(path: Path) -> list[str]:
    """What was said on the command line, as Hydra keeps it; nothing if it cannot be read."""
    try:
        found = yaml.safe_load(read_text(path, 1 << 14))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return []
    return [word for word in found if isinstance(word, str)] if isinstance(found, list) else []


# -- the page ----------------------------------------------------------------------------------------------------------
def make(root: Path, select: str) -> tuple[str, list[Problem]]:
    """The page's text (empty if there is no finished cell), and the problems met on the way."""
    frame, problems = load(root)
    if not len(frame):
        return "", problems
    settings = {row["where"]: row["settings"] for row in read(root)[0]}
    with Index(root, "commands", (__file__,)) as index:
        files = (f"{folder}/.hydra/overrides.yaml" for folder in frame["folder"])
        kept = [index.get(w, [f], overrides, Path(f)) for w, f in zip(frame["where"], files, strict=True)]
    runs = runs_table(frame.assign(overrides=kept), settings, root)
    found = list(sheets(frame, problems))
    rows = [row for sheet in found for rule in SENTENCES for row in tables.tidy(sheet, rule)]
    _, measured, problems = localisation.measured(root, SHARE)
    pictures, unread = drawn(frame, problems, select, [row for row in measured if "what" not in row])
    problems = [*problems, *unread]
    said = [{"kind": p.kind, "where": p.where, "what": p.what} for p in problems]
    parts = [
        runs,
        table(
            "table", "Means over seeds", "; ".join(f"{r}: {s}" for r, s in sentences(frame)), columns(rows), len(rows)
        ),
    ]
    if found_channels := [{k: v for k, v in row.items() if k not in HIDDEN} for row in measured if "what" not in row]:
        note = (
            f"Scores against the trigger-activated change of each channel; the backdoor's channels are the {SHARE:.0%} where it "
            "is largest in relation to their layer. precision: among the first k pruned, k being their number. rank: Spearman's."
        )
        shown = columns(found_channels, digits=dict.fromkeys(("auroc", "precision", "rank"), 2), head=HEADS)
        parts.append(table("localisation", "Backdoor channels", note, shown, len(found_channels)))
    if said:
        parts.append(
            table(
                "problems", "Problems", "What is under the results and is no finished cell.", columns(said), len(said)
            )
        )
    facts = [
        f"{len(frame):,} finished runs of {frame['defense'].nunique()} defences against {frame['attack'].nunique()} attacks "
        f"(data sets: {frame['dataset'].nunique()}); problems: {len(problems):,}.",
        "ACC: clean accuracy on the test set. ASR: triggered images of other classes taken for the target. RA: the same "
        "images taken for their own class. All in percent.",
    ]  # fmt: skip
    return page("BackPrune report", facts, parts, pictures), problems


def means(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The numbers first, what is missing behind them."""
    numbers = dict.fromkeys(key for row in rows for key in row if key.endswith(("_mean", "_std")))
    names = (*AXES, "settings", "rule", "took", "n")
    heads = {key: key.replace("_mean", "").replace("_std", " ±") for key in numbers} | {"defense": "defence"}
    for metric in (*METRICS, "der"):
        heads = {
            key: head.replace(metric, metric.upper(), 1) if head.startswith(metric) else head
            for key, head in heads.items()
        }
    heads = {key: head.replace("_before", " before") for key, head in heads.items()}
    return columns(rows, [*names, *numbers], head=heads, digits=dict.fromkeys(numbers, 1))


def sentences(frame: pd.DataFrame) -> list[tuple[str, str]]:
    drop = " or ".join(f"{value:g}" for value in sorted(set(frame["max_drop"])))
    return [(rule, sentence.replace("{max_drop:g}", drop)) for rule, sentence in SENTENCES.items()]


def drawn(
    frame: pd.DataFrame, problems: Sequence[Problem], select: str, rows: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, str]], list[Problem]]:
    """All plots as pictures. `rows`: what localisation has measured. A large sweep's are PNG: as SVG they are slow to show."""
    kind = "svg" if len(frame) <= MANY else "png"
    with tempfile.TemporaryDirectory() as folder:
        _, unread = plots.draw(frame, problems, select, Path(folder), kinds=(kind,))
        if rows:
            unread = [
                *unread,
                *localisation.draw(frame, list(sheets(frame, problems)), rows, Path(folder), kinds=(kind,)),
            ]
        paths = sorted(Path(folder).glob(f"*.{kind}"))
        return [picture(p.stem, p.read_bytes(), "svg+xml" if kind == "svg" else "png") for p in paths], unread


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser(
        "report",
        "Writes report.html: one page without any other file, with a table of all runs to sort and filter, every run's settings, "
        "command and machine, the means over seeds, and the plots.",
        "report",
    )  # fmt: skip
    parser.add_argument(
        "--select", choices=list(SENTENCES), default="clean_drop", help="which operating points the plots mark"
    )
    options = parser.parse_args(arguments)
    text, problems = make(options.runs, options.select)
    for problem in problems:
        print(plain(str(problem)), file=sys.stderr)
    if not text:
        return command.no_cell(options.runs)
    out = options.out or options.runs / "report"
    try:
        write(out / "report.html", text)
    except OSError as error:
        return command.no_room(out, error)
    print(f"In {out}: report.html ({len(text.encode()) / 1e6:.1f} MB).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
