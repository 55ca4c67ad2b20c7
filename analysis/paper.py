"""One table of a sheet as a paper has it: defences against attacks, averages, costs, what did not count and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from analysis.operating_point import SENTENCES
from analysis.render import Entry, Grid, Table, listed
from analysis.schema import METRICS, UNKNOWN, relearn_name
from analysis.sheets import (
    BASELINES,
    CHEATS,
    KINDS,
    Cell,
    Key,
    Sheet,
    label,
    mean,
    number,
    ranked,
)

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
TRIPLE = ("ACC", "ASR", "RA")
BEFORE: Key = ("before", "")
"""The first row where nobody ran the defence none."""


def table(sheet: Sheet, rule: str, gap: bool, by: str = "defenses") -> Table:
    """`gap`: with the column that says how much lower the ASR would be had the test set chosen the operating point.

    `by`: what the rows are, defenses or attacks.
    """
    styles = {attack: sheet.styles(attack, rule) for attack in sheet.attacks}
    defenses = sheet.defenses if any(d[0] == "none" for d in sheet.defenses) else [BEFORE, *sheet.defenses]
    cells = {d: {a: sheet.before(a) if d == BEFORE else sheet.cell(d, a) for a in sheet.attacks} for d in defenses}
    entries = {(d, a): cells[d][a].entries(rule, styles[a].get(d, "")) for d in defenses for a in sheet.attacks}
    means = averages(sheet, cells, rule)
    columns = costs(sheet, cells, rule, gap)
    name = Grid([("", ["defence"])], [[Entry(label(d))] for d in defenses], texts=1, heads=heads(sheet, defenses))
    if by == "defenses":
        rows = [
            [Entry(label(d)), sees(sheet, d), *(e for a in sheet.attacks for e in entries[d, a]), *means[d]]
            + [column(d) for column in columns.values()]
            for d in defenses
        ]
        groups = [("", ["defence", "sees"]), *((label(attack), TRIPLE) for attack in sheet.attacks)]
        groups += [("average", TRIPLE), ("", list(columns))]
        grid = Grid(groups, rows, texts=2, heads=name.heads)
        more = []
    else:
        rows = [[Entry(label(a)), *(e for d in defenses for e in entries[d, a])] for a in sheet.attacks]
        rows.append([Entry("average"), *(e for d in defenses for e in means[d])])
        grid = Grid([("", ["attack"]), *((label(d), TRIPLE) for d in defenses)], rows, 1, {len(rows) - 1: ""})
        rows = [[Entry(label(d)), sees(sheet, d), *(column(d) for column in columns.values())] for d in defenses]
        more = [("Over the attacks", Grid([("", ["defence", "sees", *columns])], rows, 2, name.heads))]
    seeds = [[Entry(label(d)), *(Entry(cells[d][a].each_asr(rule)) for a in sheet.attacks)] for d in defenses]
    each = Grid(
        [("", ["defence"]), *(("", [label(a)]) for a in sheet.attacks)], seeds, 1 + len(sheet.attacks), name.heads
    )
    return Table(
        f"{label(sheet.dataset)}, {label(sheet.model)}: {rule}",
        list(caption(sheet, rule)),
        grid,
        [*more, (f"ASR per seed ({listed(sheet.seeds)})", each)],
        [" ".join(legend(sheet, rule, columns)), *notes(sheet)],
    )


def heads(sheet: Sheet, defenses: Sequence[Key]) -> dict[int, str]:
    """Row -> the kind of defence that begins there; nothing where all are of one kind."""
    kinds = ["" if d == BEFORE else sheet.kind(d) for d in defenses]
    first = {kind: kinds.index(kind) for kind in KINDS if kind and kind in kinds}
    return {row: kind for kind, row in first.items()} if len(first) > 1 else {}


def sees(sheet: Sheet, defense: Key) -> Entry:
    rows = [row for attack in sheet.attacks for row in sheet.cell(defense, attack).rows]
    return Entry(next((SEES.get(row["needs"], row["needs"]) for row in rows), "–"))


# -- over the attacks --------------------------------------------------------------------------------------------------
def took(cells: Mapping[Key, Cell]) -> dict[Key, Cell]:
    """Those that an average is taken over, by attack."""
    return {attack: cell for attack, cell in cells.items() if attack[0] not in BASELINES and cell.counts}


def comparable(cells: Mapping[Key, Mapping[Key, Cell]]) -> tuple[list[Key], tuple[Key, ...]]:
    """Those defences that have numbers of the same seeds of the same attacks, the most of them; and these attacks."""
    own = {d: tuple((a, tuple(r["seed"] for r in c.shown)) for a, c in took(row).items()) for d, row in cells.items()}
    sets = Counter(own.values())
    most = max(sets, key=lambda found: (len(found), sum(len(s) for _, s in found), sets[found], found), default=())
    return [d for d, found in own.items() if found == most], tuple(attack for attack, _ in most)


def average(cells: Mapping[Key, Cell], metric: str, rule: str) -> float:
    """Over the attacks that took, of the mean over seeds; NaN if there is none."""
    return mean([mean(cell.column(metric, rule)) for cell in took(cells).values()])


def averages(sheet: Sheet, cells: Mapping[Key, Mapping[Key, Cell]], rule: str) -> dict[Key, list[Entry]]:
    """ACC, ASR, RA; the lowest ASR is marked among the rivals that the most attacks, and the same ones, count for."""
    rivals, attacks = comparable({d: cells[d] for d in sheet.rivals})
    comparing = len(attacks) > 1 and rule != "oracle"
    marks = ranked({d: average(cells[d], "asr", rule) for d in rivals}) if comparing else {}
    return {
        d: [
            Entry(number(average(own, metric, rule)), marks.get(d, "") if metric == "asr" else "")
            if took(own)
            else Entry("–")
            for metric in METRICS
        ]
        for d, own in cells.items()
    }


def costs(
    sheet: Sheet, cells: Mapping[Key, Mapping[Key, Cell]], rule: str, gap: bool
) -> dict[str, Callable[[Key], Entry]]:
    """The columns after the averages: name -> the entry of a defence."""

    def shown(value: float, digits: int = 1) -> Entry:
        return Entry(number(value, digits) if value == value else "–")

    def over(name: str) -> Callable[[Key], Entry]:
        """Over the attacks that took, of the mean over seeds, where known."""
        return lambda d: shown(mean([mean(known) for c in took(cells[d]).values() if (known := c.values(name))]))

    def every(name: str, digits: int = 1) -> Callable[[Key], Entry]:
        """Over all finished cells."""
        rows = {d: [row for cell in own.values() for row in cell.rows] for d, own in cells.items() if d != BEFORE}
        return lambda d: shown(mean([float(row[name]) for row in rows.get(d, ()) if row[name] == row[name]]), digits)

    def counted(d: Key) -> Entry:
        return Entry(f"{len(took(cells[d]))} of {sum(a[0] not in BASELINES for a in sheet.attacks)}")

    columns: dict[str, Callable[[Key], Entry]] = {"attacks": counted}
    columns["DER"] = lambda d: Entry("–") if d == BEFORE else over(f"der_{rule}")(d)
    if gap:
        columns["oracle gap"] = lambda d: (
            Entry("–")
            if d == BEFORE
            else shown(average(cells[d], "asr", "clean_drop") - average(cells[d], "asr", "oracle"))
        )
    for name in sheet.rows.columns:
        if (text := relearn_name(name)).endswith("ASR") and sheet.rows[name].notna().any():
            columns[text] = over(name)
    columns["seconds"] = every("seconds")
    if "peak_memory_mib" in sheet.rows and sheet.rows["peak_memory_mib"].notna().any():
        columns["MiB"] = every("peak_memory_mib", 0)
    return columns


# -- in words ----------------------------------------------------------------------------------------------------------
def caption(sheet: Sheet, rule: str) -> Iterator[str]:
    rows, seeds = sheet.rows, sheet.seeds
    chosen = dict.fromkeys(SENTENCES[rule].format(max_drop=drop) for drop in sorted(set(rows["max_drop"])))
    yield f"Operating point by {rule}: {'; or '.join(chosen)}."
    many = f"{len(seeds)} seeds ({listed(seeds)}): mean ± standard deviation (n - 1)."
    yield many if len(seeds) > 1 else f"1 seed ({seeds[0]}), so no spread."
    clean, triggered = (listed(sorted(set(rows[key].dropna().astype(int))), " or ") for key in ("clean", "triggered"))
    rest = (
        f"ASR and RA on {triggered} triggered ones of other classes than the target"
        if triggered
        else "ASR and RA unknown"
    )
    yield f"ACC on {clean} clean test images, {rest}."
    if sheet.dataset[0] == "digits":
        yield from DIGITS


def legend(sheet: Sheet, rule: str, columns: Mapping[str, Any]) -> Iterator[str]:
    none = any(defense[0] == "none" for defense in sheet.defenses)
    yield f"Row {'none' if none else BEFORE[0]}: the model before any defence."
    names = {attack[0] for attack in sheet.attacks}
    if "none" in names:
        yield "Column none: a model without a backdoor, as a control; in no average."
    if UNKNOWN in names:
        yield f"Column {UNKNOWN}: models whose trigger nobody knows, so that ASR and RA are unknown; in no average."
    yield "Sees: what the defence itself looks at, before the rule chooses."
    if cheats := [label(defense) for defense in sheet.defenses if defense in sheet.cheats]:
        yield f"Cheats: {listed(cheats)} sees the true trigger; a control and no defence, so it is never marked lowest."
    if tried := [label(defense) for defense in sheet.defenses if defense in sheet.tried]:
        yield f"By hand: {listed(tried)} has settings given on the command line, not the preset's own; never marked or ranked."
    yield "Average and DER: over the attacks that took."
    if rule != "oracle":
        yield "Lowest ASR per attack in bold, second lowest in italics."
    if "oracle gap" in columns:
        yield "Oracle gap: average ASR by clean_drop minus that by oracle; below 0 where the oracle had to keep more ACC."
    if any(column.startswith("relearn") for column in columns):
        yield "Relearn: after fine-tuning the repaired model on that many poisoned images, or on clean ones only."
    yield "Seconds: the defence alone, without evaluation."
    if "MiB" in columns:
        yield "MiB: the most memory held until its curve was evaluated, of the GPU where it ran on one, else of the process."


def notes(sheet: Sheet) -> Iterator[str]:
    weak = sheet.weak
    if len(weak):
        which = []
        for row in weak.to_dict("records"):
            name = label((row["attack"], row["attack_settings"]))
            clean = row["clean_acc"]
            than = f", clean model {number(clean)}" if clean == clean else ""
            which.append(
                f"{name} seed {row['seed']} (ASR {number(row['asr_before'])}, ACC {number(row['acc_before'])}{than})"
            )
        yield (
            "† The attack did not take (by its gate: too little ASR, or an ACC too far from a clean model's), so it counts in "
            f"no average: {listed(which)}."
        )
    for problem in sheet.lost:
        yield str(problem)
