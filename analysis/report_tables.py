"""The tables of the report page, as its script takes them: runs, means over seeds, backdoor channels, ledger, problems."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.channels import SHARE
from analysis.load import Problem
from analysis.operating_point import SENTENCES
from analysis.page import column, columns, table
from analysis.render import plain
from analysis.schema import AXES, METRICS
from analysis.sheets import BASELINES, gate

Rows = Sequence[Mapping[str, Any]]
Spec = dict[str, Any]
"""A table as the page's script takes it."""

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
INNER = {
    "schema",
    "folder",
    "overrides",
    *(f"{axis}_settings" for axis in AXES),
}  # columns of the frame that no reader needs


# -- every run ---------------------------------------------------------------------------------------------------------
def runs_table(frame: pd.DataFrame, settings: Mapping[str, Mapping[str, str]]) -> Spec:
    """`settings`: a cell's place -> its settings, as `defense.rule.at` -> `0.3`."""
    frame = gate(frame)
    frame["took"] = frame["took"].astype(object).where(~frame["attack"].isin(BASELINES), None)
    rows: dict[str, list[Any]] = {str(name): frame[name].to_numpy(dtype=object).tolist() for name in frame}
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
    commands = [command_of(row) for row in rows_of(frame[[*AXES, "seed", "overrides"]])]
    found.append(column("command", [line for line, _ in commands], hidden=True))
    found.append(column("command_is", [kind for _, kind in commands], hidden=True))
    return table(
        "runs",
        "Runs",
        "One row per run; a click shows its command, machine and settings. took: whether the attack took, if one is known; if "
        "not, the row proves nothing about its defence. at: the threshold, in the defence's own unit.",
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
    own = [tuple(settings.get(where, {}).items()) for where in places]
    variants = dict.fromkeys(own)  # as many as there are different cells, seeds left aside
    names = dict.fromkeys(key.partition(".")[0] for variant in variants for key, _ in variant)
    found = []
    for name in names:
        blocks: dict[tuple[tuple[str, str], ...], int] = {}
        code = {}
        for variant in variants:
            block = tuple(pair for pair in variant if pair[0].partition(".")[0] == name)
            code[variant] = blocks.setdefault(block, len(blocks))
        shown = [[[plain(key), plain(value)] for key, value in block] for block in blocks]
        found.append({"blocks": shown, "codes": [code[variant] for variant in own]})
    return found


def command_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """How to make a run again, and whether that was written down (by Hydra) or is put together from the record."""
    words = row.get("overrides")
    if words:
        return f"python bench/run.py {shlex.join(words)}", "Command"
    names = [f"{axis}={row[axis]}" for axis in AXES] + [f"seed={row['seed']}"]
    return f"python bench/run.py {shlex.join(names)}", "Command (none was kept: from the names; see the settings)"


# -- the others --------------------------------------------------------------------------------------------------------
def means_table(rows: Rows, max_drops: Iterable[float]) -> Spec:
    """`rows`: of `tables.tidy`, for every rule. The numbers first, what is missing behind them."""
    numbers = dict.fromkeys(key for row in rows for key in row if key.endswith(("_mean", "_std")))
    after = [key for key in numbers if "_before_" not in key]
    first = ("rule", *AXES, "settings", "took", "n", *after, *numbers)
    heads = {"defense": "defence"}
    for key in numbers:
        name, _, what = key.rpartition("_")
        metric, _, when = name.partition("_")
        shown = f"{metric.upper()} {when}".strip() if metric in (*METRICS, "der") else name
        heads[key] = shown if what == "mean" else f"{shown} ±"
    drop = " or ".join(f"{value:g}" for value in sorted(set(max_drops)))
    said = "; ".join(f"{rule}: {sentence.replace('{max_drop:g}', drop)}" for rule, sentence in SENTENCES.items())
    note = f"Over the seeds whose attack took. Operating points: {said}."
    made = columns(rows, first, head=heads, digits=dict.fromkeys(numbers, 1))
    return table("means", "Means over seeds", note, made, len(rows))


def channels_table(rows: Rows) -> Spec:
    """`rows`: of `localisation.measured`."""
    note = (
        f"Scores against the trigger-activated change of each channel; the backdoor's channels are the {100 * SHARE:g} % where "
        "it is largest in relation to their layer. auroc: 0.5 is chance. precision: among the first k pruned, k being their "
        "number. rank: Spearman's correlation."
    )
    shown = [{key: value for key, value in row.items() if key not in ("where", "curve")} for row in rows]
    digits = dict.fromkeys(("auroc", "precision", "rank"), 2)
    first = (*AXES, "seed", *digits)
    return table("channels", "Backdoor channels", note, columns(shown, first, digits=digits, head=HEADS), len(rows))


def ledger_table(rows: Rows, select: str) -> Spec:
    """`rows`: of `ledger.compare`. Published beside ours and the difference, then why, then the rest."""
    note = (
        f"Published numbers and the closest of ours, by {select} unless the source names a threshold or chose on test data "
        "(then by oracle); difference: ours minus published, in points. why: what is known to differ. took: no, if our attack "
        "did not take."
    )
    flat = [{key: "; ".join(map(str, v)) if isinstance(v, list) else v for key, v in row.items()} for row in rows]
    numbers = [f"{metric}{suffix}" for metric in METRICS for suffix in ("", "_ours", "_difference")]
    heads = {name: f"{name.partition('_')[0].upper()} {name.partition('_')[2] or 'published'}" for name in numbers}
    first = ("paper", "table", "attack", "defense", *numbers, "took", "why")
    made = columns(flat, first, head=heads | {"defense": "defence"}, digits=dict.fromkeys(numbers, 1))
    return table("ledger", "Reported and measured", note, made, len(rows))


def problems_table(problems: Sequence[Problem]) -> Spec:
    rows = [{"kind": p.kind, "where": p.where, "what": p.what} for p in problems]
    return table("problems", "Problems", "What is under the results and is no finished cell.", columns(rows), len(rows))
