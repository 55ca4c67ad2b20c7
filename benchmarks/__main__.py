"""`make bench`: every row, the rates, the growth and the profiles, into a table, a JSON file and docs/performance.md.

python -m benchmarks                        all of it, under ten minutes on two quiet cores
python -m benchmarks --only clp,evaluation  some rows; nothing is written unless --out says where
python -m benchmarks --quick                tiny sizes: says whether outputs agree, and nothing of speed
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.errors import UserError, nearest
from bench.files import write
from benchmarks import data_path, defenses, searches  # noqa: F401 - importing registers their rows
from benchmarks.clock import load
from benchmarks.rows import ROWS, measure
from benchmarks.setting import QUICK, Setting, Size

JSON = Path("results/performance/cpu.json")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks", description="Ours against the official procedures.")
    found.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs and agrees")
    found.add_argument("--only", metavar="ROW,…", help=f"some rows: {', '.join(ROWS)}")
    found.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: as many as torch takes)")
    found.add_argument("--out", type=Path, metavar="FILE", help=f"where the JSON goes ({JSON}, if all is run in full)")
    return found


def chosen(only: str | None) -> list[str]:
    """The rows asked for. Raises UserError for one that is not there."""
    names = only.split(",") if only else list(ROWS)
    for name in names:
        if name not in ROWS:
            raise UserError(f"--only {name} is no row: {nearest(name, ROWS)}")
    return names


def environment() -> dict[str, Any]:
    """The machine, by its processor's name only, and the software."""
    found = machine.environment(torch.device("cpu"))
    found.pop("peak_memory_mib")
    return found | {"cores": torch.get_num_threads(), "mkldnn": torch.backends.mkldnn.is_available()}


def run(names: list[str], setting: Setting, say: Console) -> dict[str, Any]:
    """All that is measured, as plain data."""
    started, before = time.perf_counter(), load()
    rows = []
    for name in names:
        found = measure(name, setting)
        say.print(line(found), highlight=False)
        rows.append(found)
    return {
        "machine": environment(),
        "size": vars(setting.size),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - started, 1),
        "load": [before, load()],
        "rows": rows,
    }


def line(found: dict[str, Any]) -> str:
    """One row, while the others still run."""
    ratios = ", ".join(f"{n} {r['median']:.3g}x" for n, r in found["ratios"].items())
    return f"{found['name']}: {ratios}; {'' if found['agrees'] else 'DISAGREES: '}{found['agreement']}"


def table(rows: list[dict[str, Any]]) -> Table:
    """Ratios with their spread, goals, and whether outputs agree."""
    found = Table("what", "official", "variant", "time", "ratio", "spread", "by CPU time", "goal", "outputs")
    for row in rows:
        first = next(iter(row["times"]))
        for name, ratio in row["ratios"].items():
            goal = next((g for g in row["goals"] if g["variant"] == name), None)
            met = "" if goal is None else aim(goal)
            found.add_row(row["title"], seconds(row["times"][first]["wall"]), name, seconds(row["times"][name]["wall"]),
                          f"{ratio['median']:.3g}x", f"{ratio['low']:.3g}–{ratio['high']:.3g}", f"{ratio['cpu']:.3g}x", met,
                          "agree" if row["agrees"] else "DISAGREE")  # fmt: skip
    return found


def aim(goal: dict[str, Any]) -> str:
    """A goal, and whether it was met."""
    what = f">= {goal['least']:g}x" if goal["fact"] == "ratio" else f"{goal['fact']} >= {goal['least']:g}"
    return f"{what} {'met' if goal['met'] else 'MISSED'}"


def seconds(values: list[float]) -> str:
    middle = sorted(values)[len(values) // 2]
    return f"{middle:.2f} s" if middle >= 1 else f"{1000 * middle:.3g} ms"


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 if outputs of any row disagree. Speed is reported, never judged."""
    asked = parser().parse_args(argv)
    say = Console()
    try:
        names = chosen(asked.only)
        machine.device("cpu", asked.threads)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    found = run(names, Setting(QUICK if asked.quick else Size()), say)
    say.print(table(found["rows"]))
    out = asked.out or (None if asked.quick or asked.only else JSON)
    if out:
        write(out, json.dumps(found, indent=1, allow_nan=False) + "\n")
    return int(not all(row["agrees"] for row in found["rows"]))


if __name__ == "__main__":
    sys.exit(main())
