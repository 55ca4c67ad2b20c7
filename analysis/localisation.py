"""Do pruners find the backdoor's channels? Their scores against the trigger-activated change (TAC) of every channel."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import channels, command, plots, render
from analysis.bounds import draw_bounds
from analysis.channels import SHARE, Elsewhere, measure, read_channels
from analysis.curves import NAMES
from analysis.drawing import STYLE, slugs
from analysis.index import Index
from analysis.kept import Kept, digest
from analysis.load import Problem, reason
from analysis.render import Entry, Grid, Table
from analysis.runs import Runs
from analysis.schema import AXES
from analysis.sheets import Key, Sheet, label, mean, number, std

MEASURES = {"auroc": "AUROC", "precision": "P@k", "rank": "rank corr."}
NEEDED = [*NAMES, "needs", "backdoor", "where", "folder"]
MODEL = re.compile(r"\w[\w.-]*")


def tac_of(row: Mapping[str, Any]) -> Path:
    """The tac.csv of a cell's backdoored model: found from where the cell lies, for a record must not name places to read."""
    folder = Path(row["folder"])
    if len(folder.absolute().parts) < 6 or not MODEL.fullmatch(str(row.get("backdoor") or "")):
        raise ValueError("it does not say which backdoored model it is about")
    dataset, model, attack = folder.absolute().parts[-5:-2]
    return folder.absolute().parents[4] / "backdoors" / dataset / model / attack / str(row["backdoor"]) / "tac.csv"


def cell(row: Mapping[str, Any], rule: str, share: float, read: Callable[[Path], Any]) -> dict[str, Any]:
    """What `measure` says of one cell, or `what`: why it cannot be measured. `read`: as `read_channels`, for tac.csv."""
    try:
        tac, scores = tac_of(row), Path(row["folder"]) / "scores.csv"
        if not tac.is_file():
            return {"what": "there is no tac.csv beside its model; the next new cell of that model leaves one"}
        return measure(read(tac), read_channels(scores), rule, share)
    except Elsewhere as error:
        return {"what": str(error), "elsewhere": True}
    except (OSError, ValueError, IndexError) as error:
        return {"what": reason(error)}


def measured(runs: Runs, share: float) -> tuple[list[dict[str, Any]], list[Problem]]:
    """For each finished cell that has scores and a trigger, its names with what was measured; and what could not be.

    A cell whose scores are about other layers has `what`.
    """
    rules = {where: own.get("defense.rule._target_", "") for where, own in runs.settings.items()}
    out, wrong = [], []
    read_tac = lru_cache(maxsize=64)(read_channels)  # all defences of one model share it
    with Index(runs.root, f"localisation-{share:g}", (__file__, channels.__file__)) as index:
        for row in records(runs.frame.reindex(columns=NEEDED)):
            scores = f"{row['folder']}/scores.csv"
            if row["attack"] == "none" or not Path(scores).is_file():
                continue
            names: dict[str, Any] = {key: row[key] for a in AXES for key in (a, f"{a}_settings")} | {
                "seed": row["seed"]
            }
            files = [scores, f"{row['folder']}/record.json", f"{row['folder']}/.hydra/config.yaml"]
            with suppress(ValueError):
                files.append(str(tac_of(row)))
            look = partial(cell, row, rules.get(row["where"], ""), share, read_tac)
            made = index.get(row["where"], files, lambda _, look=look: look(), Path())  # type: ignore[misc]
            if "what" in made and not made.get("elsewhere"):
                wrong.append(Problem("other", row["where"], f"not measured: {made['what']}"))
            else:
                out.append(names | {"needs": row["needs"], "where": row["where"]} | made)
    return out, wrong


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


# -- the table ---------------------------------------------------------------------------------------------------------
def used(sheet: Sheet, rows: Sequence[Mapping[str, Any]]) -> dict[tuple[Key, Key], list[Mapping[str, Any]]]:
    """(defence, attack) -> the measured seeds of this sheet whose attack took."""
    took = {(r["attack"], r["attack_settings"], r["seed"]) for r in records(sheet.rows) if r["took"]}
    found: dict[tuple[Key, Key], list[Mapping[str, Any]]] = {}
    for row in rows:
        counts = "what" not in row and (row["attack"], row["attack_settings"], row["seed"]) in took
        if counts and place(row) == (sheet.dataset, sheet.model):
            found.setdefault((of(row, "defense"), of(row, "attack")), []).append(row)
    return found


def table(sheet: Sheet, rows: Sequence[Mapping[str, Any]], share: float) -> Table | None:
    """Defences as rows; per attack that took for some seed, and on average, the three measures. None without a number."""
    cells = used(sheet, rows)
    every_row = [row for part in cells.values() for row in part]
    elsewhere = sorted(
        {label(of(r, "defense")) for r in rows if "what" in r and place(r) == (sheet.dataset, sheet.model)}
    )
    attacks = [key for key in sheet.attacks if any(a == key for _, a in cells)]
    defenses = [key for key in sheet.defenses if any(d == key for d, _ in cells)]
    if not cells:
        return None
    none: list[Mapping[str, Any]] = []
    marks = {a: styles({d: cells[d, a] for d in sheet.rivals if (d, a) in cells}) for a in attacks}
    body = []
    for defense in defenses:
        entries = [e for a in attacks for e in triple(cells.get((defense, a), none), marks[a].get(defense, ""))]
        every = [cells[defense, a] for a in attacks if (defense, a) in cells]
        means = [mean([mean(of_all) for part in every if (of_all := numbers(part, name))]) for name in MEASURES]
        body.append([Entry(label(defense)), *entries, *(Entry(text(value)) for value in means), Entry(str(len(every)))])
    groups = [
        ("", ["defence"]),
        *((label(a), list(MEASURES.values())) for a in attacks),
        ("average", list(MEASURES.values())),
        ("", ["attacks"]),
    ]
    counts = sorted({(r["k"], r["channels"]) for r in every_row})
    notes = [legend(sheet, counts)]
    if elsewhere:
        notes.append(
            f"Left out, because their scores are about other layers (convolutions) than TAC: {', '.join(elsewhere)}."
        )
    few = [r for r in every_row if r["scored"] < r["channels"]]
    partly = sorted({f"{label(of(r, 'defense'))} ({r['scored']} of {r['channels']})" for r in few})
    if partly:
        notes.append(f"Scored only some channels, the others count as pruned last: {', '.join(partly)}.")
    caption = [
        f"Backdoor channels: the {100 * share:g} % of all channels whose trigger-activated change (TAC), relative to their "
        f"layer, is largest ({'; '.join(f'{k} of {n}' for k, n in counts)}).",
        "Mean ± standard deviation over seeds whose attack took. By chance the AUROC of one model would scatter around 0.50 by "
        f"{' or '.join(dict.fromkeys(number(scatter(k, n), 2) for k, n in counts))}.",
    ]  # fmt: skip
    title = f"{label(sheet.dataset)}, {label(sheet.model)}: do pruners find the backdoor's channels?"
    return Table(title, caption, Grid(groups, body, texts=1), [], notes)


def scatter(k: int, n: int) -> float:
    """The standard deviation of the AUROC of scores that know nothing, with k of n channels to be found (Mann-Whitney)."""
    return math.sqrt((n + 1) / (12 * k * (n - k))) if 0 < k < n else math.nan


def legend(sheet: Sheet, counts: Sequence[tuple[int, int]]) -> str:
    """`counts`: how many channels of how many are the backdoor's."""
    chance = " or ".join(dict.fromkeys(f"{k / n:.2g}" for k, n in counts))
    said = (
        f"AUROC: of the scores in the order in which the defence prunes; 0.5 is chance, below it backdoor channels are spared. "
        f"P@k: the share of backdoor channels among the first k pruned, k being their number; chance is {chance}. "
        "rank corr.: Spearman's, over all channels. In bold the highest AUROC of each attack, in italics the second, "
        "among defences with the most seeds and without settings given by hand."
    )
    cheats = [label(d) for d in sheet.defenses if d in sheet.cheats]
    return said + (
        f" {', '.join(cheats)} sees the trigger, on other images than TAC is measured on: the bound." if cheats else ""
    )


def place(row: Mapping[str, Any]) -> tuple[Key, Key]:
    return of(row, "dataset"), of(row, "model")


def of(row: Mapping[str, Any], axis: str) -> Key:
    return row[axis], row[f"{axis}_settings"]


def numbers(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows if row[name] is not None]


def text(value: float) -> str:
    return "–" if value != value else number(value, 2)


def triple(rows: Sequence[Mapping[str, Any]], style: str) -> Iterator[Entry]:
    for name in MEASURES:
        values = numbers(rows, name)
        spread = f" ± {number(std(values), 2)}" if len(values) > 1 else ""
        yield Entry(text(mean(values)) + spread, style if name == "auroc" else "")


def styles(cells: Mapping[Key, Sequence[Mapping[str, Any]]]) -> dict[Key, str]:
    """Highest and second highest AUROC among those with the most seeds, compared as printed."""
    found = {d: values for d, rows in cells.items() if (values := numbers(rows, "auroc"))}
    most = max(map(len, found.values()), default=0)
    shown = {d: number(mean(values), 2) for d, values in found.items() if len(values) == most}
    marks = dict(zip(sorted(set(shown.values()), key=float, reverse=True), ("best", "second"), strict=False))
    return {d: marks.get(value, "") for d, value in shown.items()}


# -- the program -------------------------------------------------------------------------------------------------------
def make(root: Path | Runs, share: float = SHARE, out: Path | None = None) -> tuple[dict[str, str], list[Problem]]:
    """File name -> text, and the problems; and the pictures in `out`, where it is given. Nothing where nothing is measured."""
    runs = Runs.of(root)
    if not len(runs.frame):
        return {}, runs.problems
    rows, wrong = measured(runs, share)
    problems = [*runs.problems, *wrong]
    made = [t for sheet in runs.sheets if (t := table(sheet, rows, share))]
    if not made:
        return {}, problems
    if out:
        problems = [*problems, *draw(runs, rows, out)[1]]
    hidden = {"what", "elsewhere", "curve"}
    kept = [{k: v for k, v in row.items() if k not in hidden} for row in rows if "what" not in row]
    return {"localisation.md": render.markdown(made, []), "localisation.csv": render.csv_text(kept)}, problems


def draw(
    runs: Runs, rows: Sequence[Mapping[str, Any]], out: Path, kinds: Sequence[str] = plots.KINDS
) -> tuple[list[str], list[Problem]]:
    """A figure for each data set and network; the files, and what could not be read on the way."""
    import matplotlib as mpl

    drawn = {row["where"] for row in rows if "what" not in row}
    points, unread = runs.curves
    points = points[points["where"].isin(drawn)]
    kept, names = Kept(out), []
    with mpl.rc_context(STYLE):
        for sheet, slug in zip(runs.sheets, slugs(runs.sheets), strict=True):
            own, curves, name = used(sheet, rows), plots.of(points, sheet), f"localisation{slug}"
            source = digest(sheet.dataset, sheet.model, sheet.rows, sheet.lost, own, curves.drop(columns=NAMES))
            if stale := kept.stale(name, kinds, source):
                if page := draw_bounds(sheet, own, curves):
                    page.save(out, name, stale)
                kept.note(name, stale, source, page is not None)
            names += kept.names(name, kinds)
    kept.save()
    return names, [problem for problem in unread if problem.where.rpartition("/")[0] in drawn]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser(
        "localisation",
        "Holds every pruner's scores against the trigger-activated change of each channel; writes a table, a CSV and a plot.",
        "localisation",
    )
    parser.add_argument(
        "--share", type=float, default=SHARE, help="of all channels that count as the backdoor's (0.01)"
    )
    command.document(parser)
    options = parser.parse_args(arguments)
    if not 0 < options.share < 1:
        return command.refuse(f"--share {options.share:g} must lie between 0 and 1, such as 0.01.")
    out = options.out or options.runs / "localisation"
    try:
        texts, problems = make(options.runs, options.share, out)
        for name, content in texts.items():
            render.write(out / name, content)
    except OSError as error:
        return command.no_room(out, error)
    for problem in problems:
        print(render.plain(str(problem)), file=sys.stderr)
    if not texts:
        return command.refuse(
            f"There is no pruner's cell with scores and a tac.csv beside its model in {options.runs}."
        )
    print(texts["localisation.md"], end="")
    print(f"Also in {out}: {', '.join(texts)}, and plots.", file=sys.stderr)
    return command.put_into(options.into, "localisation", texts["localisation.md"]) if options.into else 0


if __name__ == "__main__":
    sys.exit(main())
