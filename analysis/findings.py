"""What the numbers of a sheet say, in plain words; each sentence is computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from analysis.claims import value
from analysis.curves import read_curve
from analysis.render import listed
from analysis.sheets import BASELINES, Cell, Key, Sheet, label, mean, number

LOW_ASR, LOW_DROP = 5.0, 5.0  # what counts as removed in the findings: percent, points
NAMED = 6  # attacks that a sentence names


def findings(sheet: Sheet, rule: str = "clean_drop") -> Iterator[str]:
    """All of them; operating points by `rule`."""
    attacks = [a for a in sheet.attacks if a[0] not in BASELINES]
    took = [a for a in attacks if sheet.before(a).counts]
    failed = [label(a) for a in attacks if a not in took]
    seeds = f" on at least one of {len(sheet.seeds)} seeds" if len(sheet.seeds) > 1 else ""
    rest = f"; {listed(failed)} did not, which proves nothing about any defence." if failed else "."
    yield f"{len(took)} of {len(attacks)} attacks took{seeds}{rest}" if attacks else "No model here has a known attack."
    for defense in sheet.defenses:
        if defense[0] == "none":
            continue
        groups: dict[str, list[str]] = {"every seed": [], "some seeds": [], "the one seed": [], "no seed": []}
        for attack in took:
            cell = sheet.cell(defense, attack)
            if cell.counts:
                groups[seeds_removed(cell, rule)].append(label(attack))
        parts = shortened(groups)
        if parts:
            yield (
                f"{label(defense)} by {rule} leaves ASR below {LOW_ASR:g} % for fewer than {LOW_DROP:g} points of ACC "
                f"{'; '.join(parts)}."
            )
    yield from at_their_own(sheet, took)
    yield from untouched(sheet, took, rule)
    yield from gaps(sheet, took)
    if (clean := next((a for a in sheet.attacks if a[0] == "none"), None)) is not None:
        cells = {d: sheet.cell(d, clean) for d in sheet.defenses if d[0] != "none"}
        lost = {label(d): value(c, "acc_drop", rule) for d, c in cells.items() if c.rows}
        if lost:
            worst = max(lost, key=lambda name: lost[name])
            yield (
                f"On a clean model, where there is nothing to remove, {rule} costs {number(min(lost.values()))} to "
                f"{number(lost[worst])} points of ACC (most: {worst})."
            )


def shortened(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Each group with its attacks; of many attacks the largest group is only counted."""
    total, largest = sum(map(len, groups.values())), max(groups, key=lambda which: len(groups[which]))
    if total <= NAMED:
        return [f"on {which}: {listed(names)}" for which, names in groups.items() if names]
    parts = [f"on {which}: {listed(names)}" for which, names in groups.items() if names and which != largest]
    return [*parts, f"on {largest}: {f'the other {len(groups[largest])}' if parts else f'all {total}'} attacks"]


def removed(cell: Cell, rule: str) -> list[bool]:
    """On each shown seed."""
    return [row[f"asr_{rule}"] < LOW_ASR and row["acc_before"] - row[f"acc_{rule}"] < LOW_DROP for row in cell.shown]


def seeds_removed(cell: Cell, rule: str) -> str:
    good = removed(cell, rule)
    if not any(good):
        return "no seed"
    return "some seeds" if not all(good) else "every seed" if len(good) > 1 else "the one seed"


def at_their_own(sheet: Sheet, took: Sequence[Key]) -> Iterator[str]:
    """The same bar at the pruners' published numbers, which no image of ours chose either."""
    told = []
    for defense in (d for d in sheet.rivals if d in sheet.pruners and sheet.kind(d) == "pruning"):
        every = {label(a): removed(cell, "fixed") for a in took if (cell := sheet.cell(defense, a)).counts}
        names = [name + f" ({sum(g)} of {len(g)} seeds)" * (len(g) > 1) for name, g in every.items() if any(g)]
        if every:
            told.append(f"{label(defense)} ({len(every)}): {listed(names) or 'none'}")
    if told:
        yield (
            f"At each pruner's published number (fixed) these backdoors, of so many looked at, fall below {LOW_ASR:g} % for "
            f"fewer than {LOW_DROP:g} points: {'; '.join(told)}."
        )


def untouched(sheet: Sheet, took: Sequence[Key], rule: str) -> Iterator[str]:
    """Where the rule let a pruner prune nothing, and what the least that it offers would have done."""
    for defense in sheet.defenses:
        cells = {label(a): cell for a in took if (cell := sheet.cell(defense, a)).counts and defense in sheet.pruners}
        every = [(name, row) for name, cell in cells.items() for row in cell.shown]
        kept = [(name, row) for name, row in every if row[f"pruned_{rule}"] == 0]
        first = [(row, point) for _, row in kept if (point := least(Path(row["folder"], "curve.csv")))]
        if first:
            pruned, acc, asr = zip(*(point for _, point in first), strict=True)
            drops = [row["acc_before"] - value for (row, _), value in zip(first, acc, strict=True)]
            channels = span([row["channels"] for row, _ in first], 0)
            yield (
                f"{label(defense)} by {rule} prunes nothing of {len(kept)} of {len(every)} models "
                f"({listed(dict.fromkeys(name for name, _ in kept))}): the least that it offers is {span(pruned, 0)} of "
                f"{channels} channels at once, for {span(drops)} points of ACC, after which ASR is {span(asr)} %."
            )


def least(curve: Path) -> tuple[float, float, float] | None:
    """How many channels the first point that prunes any prunes, and its ACC and ASR; None if there is none that is known."""
    for _, pruned, acc, asr, *_ in sorted(read_curve(curve)[0], key=lambda point: point[1] or 0.0):
        if pruned and acc is not None and asr is not None:
            return pruned, acc, asr
    return None


def span(values: Sequence[float], digits: int = 1) -> str:
    low, high = number(min(values), digits), number(max(values), digits)
    return low if low == high else f"{low} to {high}"


def gaps(sheet: Sheet, took: Sequence[Key]) -> Iterator[str]:
    """How much the choice of the operating point matters."""
    found = {}
    for defense in sheet.defenses:
        cells = [c for a in took if (c := sheet.cell(defense, a)).counts]
        if cells and defense in sheet.pruners and sheet.kind(defense) == "pruning":
            found[label(defense)] = mean([mean(c.column("asr", "clean_drop")) for c in cells]) - mean(
                [mean(c.column("asr", "oracle")) for c in cells]
            )
    if found:
        worst = max(found, key=lambda name: found[name])
        yield (
            "Had the test set chosen the operating point within the same limit on ACC, average ASR would change by "
            + listed(f"{signed(-gap)} points ({name})" for name, gap in found.items())
            + (f": for {worst} the rule decides more than the method." if found[worst] > 10 else ".")
        )


def signed(value: float) -> str:
    return f"+{number(value)}" if value >= 0.05 else number(value)
