"""One HTML page of all finished cells: every run with its settings and command, the means, the plots, the ledger."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from analysis import command, ledger, localisation, plots, settings, tables
from analysis.channels import SHARE
from analysis.index import WORTH, Index
from analysis.load import Problem
from analysis.operating_point import SENTENCES
from analysis.page import page, picture
from analysis.render import plain, write
from analysis.report_tables import (
    Rows,
    channels_table,
    ledger_table,
    means_table,
    problems_table,
    runs_table,
)
from analysis.runs import Runs
from analysis.settings import overrides
from analysis.sheets import BASELINES


# -- the page ----------------------------------------------------------------------------------------------------------
def make(root: Path | Runs, select: str) -> tuple[str, list[Problem]]:
    """The page's text (empty if there is no finished cell), and the problems met on the way."""
    runs = Runs.of(root)
    frame = runs.frame
    if not len(frame):
        return "", runs.problems
    with Index(runs.root, "commands", (__file__, settings.__file__)) as index:
        files = (f"{folder}/.hydra/overrides.yaml" for folder in frame["folder"])
        kept = [index.get(w, [f], overrides, Path(f)) for w, f in zip(frame["where"], files, strict=True)]
    measured, wrong = localisation.measured(runs, SHARE)
    measured = [row for row in measured if "what" not in row]
    pictures, unread = drawn(runs, select, measured)
    problems = [*runs.problems, *wrong, *unread]
    rules = sorted(SENTENCES, key=lambda rule: rule != select)
    means = [row for rule in rules for sheet in runs.sheets for row in tables.tidy(sheet, rule)]
    parts = [runs_table(frame.assign(overrides=kept), runs.settings), means_table(means, frame["max_drop"])]
    parts += [channels_table(measured)] if measured else []
    published = ledger.compare(runs, select)
    parts += [ledger_table(published, select)] if published else []
    parts += [problems_table(problems)] if problems else []
    facts = [
        f"{len(frame):,} finished runs of {kinds(frame['defense'])} defences against {kinds(frame['attack'])} attacks "
        f"(data sets: {frame['dataset'].nunique()}); problems: {len(problems):,}.",
        "ACC: clean accuracy on the test set. ASR: triggered images of other classes taken for the target. RA: the same "
        "images taken for their own class. All in percent.",
    ]  # fmt: skip
    return page("BackPrune report", facts, parts, pictures), problems


def kinds(names: Iterable[str]) -> int:
    """How many attacks or defences these are: a clean model, a stranger's and one left as it is are none."""
    return len({*names} - {*BASELINES})


def drawn(runs: Runs, select: str, measured: Rows) -> tuple[list[dict[str, str]], list[Problem]]:
    """All plots as pictures; those of a large sweep stay in a hidden folder under the runs, for the next report."""
    with ExitStack() as stack:
        folder = runs.root / f".pictures-{select}"
        if len(runs.frame) < WORTH or folder.is_symlink() or not os.access(runs.root, os.W_OK):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        names, _, unread = plots.draw(runs, select, folder, kinds=("svg",))
        bounds, more = localisation.draw(runs, measured, folder, kinds=("svg",)) if measured else ([], [])
        kept = {*names, *bounds}
        for path in folder.glob("*.svg"):
            if path.name not in kept:  # of an earlier report
                path.unlink()
        pictures = [picture(Path(name).stem, (folder / name).read_bytes(), "svg+xml") for name in sorted(kept)]
    return pictures, [*unread, *more]


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
