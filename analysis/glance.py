"""The first table of RESULTS.md: every claim, and what each folder's cells say of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from analysis import claims, render
from analysis.render import Entry, Grid
from analysis.runs import Runs
from analysis.sheets import Sheet, label


def make(every: Sequence[Runs], judged: Sequence[Sequence[claims.Judged]]) -> Iterator[str]:
    """Its parts, as Markdown; nothing if no claim was tested anywhere. `judged`: of each folder, of each of its sheets."""
    columns = [
        (runs.root.name, sheet, found)
        for runs, sheets in zip(every, judged, strict=True)
        for sheet, found in zip(runs.sheets, sheets, strict=True)
        if found
    ]
    if not columns:
        return
    yield "## At a glance"
    yield (
        "Whether each claim holds on the backdoored models that took, and on how many of them; – where none tests it. The "
        "folders below have the numbers, where each claim is from, and what departs from its source."
    )
    groups = [("", ["claim", "test"]), *((name, [headed(sheet)]) for name, sheet, _ in columns)]
    rows = [
        [Entry(claim["claim"]), Entry(claims.tested(claim)), *(entry(*found[i]) for _, _, found in columns)]
        for i, (claim, _) in enumerate(columns[0][2])
    ]
    yield render.md_grid(Grid(groups, rows, texts=2 + len(columns)))


def headed(sheet: Sheet) -> str:
    """The model, and how many seeds."""
    return f"{label(sheet.model)}, {len(sheet.seeds)} seed{'s' * (len(sheet.seeds) > 1)}"


def entry(claim: claims.Claim, result: claims.Result) -> Entry:
    """The verdict, and on how many models the test was passed, or over how many attacks the average is."""
    verdict, passed = result["verdict"], result["passed"]
    if not passed:
        return Entry("–")
    average = f"average of {result['attacks']}"
    over = average if claim["of"] == "average" else f"{sum(passed)} of {len(passed)}"
    return Entry(f"{verdict}: {over}", "best" if verdict.startswith("holds") else "")
