"""Claims of papers, each with a test, held against finished cells: it holds here, it does not, or it was not tested."""

from __future__ import annotations

import csv
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.operating_point import SENTENCES
from analysis.published import differences
from analysis.render import Entry, Grid, Table, listed
from analysis.sheets import Cell, Sheet, label, mean, number

CLAIMS = Path(__file__).with_name("claims.csv")
TERM = re.compile(r"(asr|ra|acc|acc_drop|der) (<|>) (\d+(?:\.\d+)?)")
COMPARE = {"<": operator.lt, ">": operator.gt}
OF = ("each", "average")
VERDICTS = ("holds", "holds where tested", "in part", "does not hold", "untested")
Term = tuple[str, Callable[[float, float], bool], float]
"""What is looked at, how it is compared, and with which limit."""
Claim = Mapping[str, Any]
Result = Mapping[str, Any]
"""What `judge` says of a claim."""
Judged = Sequence[tuple[Claim, Result]]


def claims(path: Path = CLAIMS) -> Sequence[Claim]:
    """Each with `claim`, `source`, `defense`, `attacks`, `of`, `rule`, `test` and the paper's model, epochs, clean images and
    poison rate. Raises ValueError for one that is not understood.

    A test is one comparison or several with `and`: `asr < 5 and acc_drop < 5`; `of` each attack, or of the average over them.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row["attacks"] = row["attacks"].split()
        row["terms"] = [TERM.fullmatch(term) for term in row["test"].split(" and ")]
        if None in row["terms"] or row["rule"] not in SENTENCES or row["of"] not in OF:
            raise ValueError(f"{path.name}: {row['test']!r} by {row['rule']!r} of {row['of']!r} is no test")
        for name in ("epochs", "clean", "poison_rate"):
            row[name] = float(row[name]) if row[name] else None
    return rows


def values(cell: Cell, name: str, rule: str) -> list[float]:
    """Of each shown seed."""
    if name == "acc_drop":
        return [row["acc_before"] - row[f"acc_{rule}"] for row in cell.shown]
    return cell.column(name, rule)


def value(cell: Cell, name: str, rule: str) -> float:
    return mean(values(cell, name, rule))


def judge(claim: Claim, sheet: Sheet, settings: Mapping[str, Mapping[str, str]]) -> Result:
    """`verdict` (one of VERDICTS), whether each seed `passed`, over how many `attacks`, `numbers` of each, and `departures`.

    By every seed whose attack took; a claim about an average, by the mean over the attacks of the means over these seeds. Of
    several settings the one closest to the paper's is taken.
    """
    passed: list[bool] = []
    means: list[list[float]] = []
    numbers: list[str] = []
    apart: list[str] = []
    untested: list[str] = []
    terms = [(t[1], COMPARE[t[2]], float(t[3])) for t in claim["terms"]]
    for name in claim["attacks"]:
        pairs = [(a, d) for a in sheet.attacks if a[0] == name for d in sheet.defenses if d[0] == claim["defense"]]
        done = [(a, d) for a, d in pairs if sheet.cell(d, a).rows]
        took = [(a, d) for a, d in done if sheet.cell(d, a).counts]
        if not took:
            untested.append(f"{name} ({'did not take' if done else 'not run'})")
            continue
        away = {pair: differences(claim, (sheet, *pair), settings) for pair in took}
        attack, defense = min(took, key=lambda pair: (len(away[pair]), pair))
        found = {term: values(sheet.cell(defense, attack), term, claim["rule"]) for term, _, _ in terms}
        means.append([mean(column) for column in found.values()])
        good = [passes(terms, seed) for seed in zip(*found.values(), strict=True)]
        passed += good
        n = f" ({sum(good)} of {len(good)} seeds)" if len(good) > 1 and claim["of"] == "each" else ""
        numbers.append(f"{label(attack)}: {told(terms, means[-1])}{n}")
        apart += away[attack, defense]
    if claim["of"] == "average" and means:
        total = [mean(column) for column in zip(*means, strict=True)]
        passed = [passes(terms, total)]
        numbers.insert(0, f"average: {told(terms, total)}")
    if not passed:
        verdict = "untested"
    elif all(passed):
        verdict = "holds where tested" if untested else "holds"
    else:
        verdict = "in part" if any(passed) else "does not hold"
    more = [f"not tested: {listed(untested)}"] if untested and passed else []
    return {
        "verdict": verdict,
        "passed": passed,
        "attacks": len(means),
        "numbers": numbers + more,
        "departures": list(dict.fromkeys(apart)),
    }


def tested(claim: Claim) -> str:
    """Its test, in words."""
    over = " on average" if claim["of"] == "average" else ""
    return f"{claim['test']}{over}, by {claim['rule']}"


def passes(terms: Sequence[Term], found: Sequence[float]) -> bool:
    """Whether these values, one for each term, are within its limit."""
    return all(compare(v, limit) for v, (_, compare, limit) in zip(found, terms, strict=True))


def told(terms: Sequence[Term], found: Sequence[float]) -> str:
    return listed(f"{term.replace('_', ' ')} {number(v)}" for v, (term, _, _) in zip(found, terms, strict=True))


def held(sheet: Sheet, settings: Mapping[str, Mapping[str, str]]) -> Judged:
    """Every claim with what these cells say about it; empty if they say nothing about any."""
    found = [(claim, judge(claim, sheet, settings)) for claim in claims()]
    return found if any(result["passed"] for _, result in found) else []


def table(sheet: Sheet, judged: Judged) -> Table:
    """Each claim, its test, and what came out."""
    rows = []
    for claim, found in judged:
        here, apart = listed(found["numbers"], "; "), listed(found["departures"])
        rows.append([claim["claim"], claim["source"], tested(claim), found["verdict"], here, apart])
    counts = {verdict: sum(row[3] == verdict for row in rows) for verdict in VERDICTS}
    return Table(
        f"{label(sheet.dataset)}, {label(sheet.model)}: claims",
        [
            "; ".join(f"{verdict}: {n}" for verdict, n in counts.items()) + ". A claim holds if every seed "
            "whose attack took passes its test; where it is about an average, if the average over the attacks does."
        ],
        Grid(
            [("", ["claim", "source", "test", "verdict", "here", "departures from the source"])],
            [
                [Entry(text, "best" if i == 3 and text.startswith("holds") else "") for i, text in enumerate(row)]
                for row in rows
            ],
            texts=6,
        ),
        [],
        [],
    )
