"""RESULTS.md from the records in results/: claims, findings, which attacks took, tables by every rule, and the ledger.

No number in it is typed by hand: the same records give the same bytes.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from analysis import attacks, claims, command, findings, glance, ledger, localisation, render, tables
from analysis.ranks import LEVEL, ranks
from analysis.render import Table
from analysis.runs import Runs
from analysis.settings import spoken
from analysis.sheets import Sheet, label, number

VARIED = ("attack", "defense", "seed")
HEAD = """# Results

Made by `make results` from the records in [results/](results/README.md), which says for each folder how it was run, by which
command a cell is repeated, and where it departs from the papers. No number here was typed by hand.
"""


def page(folder: Path) -> str:
    """The whole text. Raises ValueError if there is no finished cell."""
    every = [runs for path in sorted(folder.iterdir()) if path.is_dir() and (runs := Runs.of(path)).sheets]
    if not every:
        raise ValueError(f"there is no finished cell in {folder}")
    judged = [[claims.held(sheet, runs.settings) for sheet in runs.sheets] for runs in every]
    parts = [HEAD.strip(), *glance.make(every, judged)]
    for runs, found in zip(every, judged, strict=True):
        parts += section(runs, found)
    return "\n\n".join(parts) + "\n"


def section(runs: Runs, judged: Sequence[claims.Judged]) -> Iterator[str]:
    """One folder of records, and the claims as each of its sheets has them."""
    root, found = runs.root, runs.sheets
    yield f"## {render.md(root.name)}"
    lost = {p.where for p in runs.problems} - set(runs.frame["where"])
    weak = sum(int((~sheet.rows["took"]).sum()) for sheet in found)
    yield (
        f"{len(runs.frame)} finished cells, {weak} of them of attacks that did not take and so in no average; "
        f"{len(lost)} cells that could not be counted. {commits(found)} "
        f"[What was run, and how it departs from the papers](results/README.md#{render.slug(root.name)})."
    )
    if words := again(runs.root, runs.frame["folder"]):
        yield "Any cell again, with its attack, defence and seed filled in:"
        yield "\n".join(f"    {render.plain(command)}" for command in words)
    yield "### Findings"
    tested: list[Table] = []
    for sheet, held in zip(found, judged, strict=True):
        yield f"{render.md(label(sheet.dataset))}, {render.md(label(sheet.model))}:"
        words = [*findings.findings(sheet), *compared(sheet)]
        if held:
            tested.append(claims.table(sheet, held))
        else:
            words.append("No cell here tests any of the published claims (analysis/claims.csv).")
        yield "\n".join(f"- {render.md(text)}" for text in words)
    if tested:
        yield render.markdown(tested, []).strip()
    yield attacks.make(runs)[0].strip()
    yield tables.make(runs, "all")[0]["table.md"].strip()
    if texts := ledger.make(runs, "clean_drop"):
        yield "## " + f"{render.md(root.name)}: reported and measured"
        yield texts["ledger.md"].strip()
    yield from located(runs)


def commits(found: Sequence[Sheet]) -> str:
    names = sorted({str(c) for sheet in found if "commit" in sheet.rows for c in sheet.rows["commit"].dropna()})
    devices = sorted({str(d) for sheet in found if "device" in sheet.rows for d in sheet.rows["device"].dropna()})
    return render.md(f"Commits: {', '.join(names) or 'unknown'}. Devices: {', '.join(devices) or 'unknown'}.")


def again(root: Path, folders: Iterable[str]) -> list[str]:
    """The commands that make cells again, but for what differs from cell to cell; none where none was kept."""
    kept = [spoken(root, Path(folder)) for folder in folders]
    shared = {tuple(word for word in words if word.partition("=")[0] not in VARIED) for words in kept if words}
    blank = [f"{name}={name.upper()}" for name in VARIED]
    return [f"python bench/run.py {shlex.join([*words, *blank])}" for words in sorted(shared)]


def compared(sheet: Sheet) -> Iterator[str]:
    """Whether the data tell the defences apart."""
    if (test := ranks(sheet, "clean_drop")) is None:
        yield "Too few attacks or defences for a test of ranks."
        return
    order = sorted(test.average, key=lambda d: test.average[d])
    told = ", ".join(f"{label(d)} {number(test.average[d])}" for d in order)
    verdict = "the ranks differ" if test.p < LEVEL else "they do not tell the defences apart"
    yield f"Average ranks of DER over {test.attacks} attacks: {told}. Friedman's test: p = {test.p:.2g}, {verdict}."


def located(runs: Runs) -> Iterator[str]:
    """Whether pruners found the backdoor's channels, where scores and TAC were kept."""
    yield f"## {render.md(runs.root.name)}: do pruners find the backdoor's channels?"
    texts, _ = localisation.make(runs)
    text = next((text for name, text in texts.items() if name.endswith(".md")), "")
    yield text.strip() or "The scores of channels were not kept with these records, so this was not measured."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.results", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="where the records are")
    parser.add_argument("--out", type=Path, default=Path("RESULTS.md"), metavar="FILE", help="what is written")
    options = parser.parse_args(arguments)
    try:
        text = page(options.results)
        render.write(options.out, text)
    except ValueError as error:
        return command.refuse(f"{error}.")
    except OSError as error:
        return command.refuse(f"cannot write {options.out} from {options.results}: {error.strerror}.")
    print(f"Written: {options.out} ({len(text.splitlines())} lines).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
