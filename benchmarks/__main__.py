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
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench import files, machine
from bench.errors import UserError, nearest
from benchmarks import data_path, defenses, searches, write  # noqa: F401 - importing the first three registers their rows
from benchmarks.cells import cells
from benchmarks.clock import load
from benchmarks.growth import growth
from benchmarks.profiles import profiles
from benchmarks.rates import rates
from benchmarks.rows import ROWS, measure
from benchmarks.setting import QUICK, Setting, Size

CPU = torch.device("cpu")
NAME = machine.processor() + ("" if machine.precision("cpu") == "bf16" else ", without bfloat16")
"""Some processors go by one name with and without it, and are no match for each other."""
HOME = write.place("cpu", NAME)
PARTS: dict[str, Callable[[Setting], Any]] = {
    "rates": lambda setting: rates(setting, CPU, setting.size.batch),
    "growth": growth,
    "profiles": lambda setting: profiles(setting, CPU),
    "cells": lambda setting: cells(setting.size.small, torch.get_num_threads()),
}
"""What is measured beside the rows."""


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks", description="Ours against the official procedures.")
    found.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs and agrees")
    found.add_argument("--only", metavar="ROW,…", help=f"some of {', '.join([*ROWS, *PARTS])}")
    found.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: as many as torch takes)")
    found.add_argument("--out", type=Path, metavar="FILE", help=f"where the JSON goes ({HOME}, if all is run in full)")
    return found


def chosen(only: str | None) -> list[str]:
    """The rows and parts asked for. Raises UserError for one that is not there."""
    names = only.split(",") if only else [*ROWS, *PARTS]
    for name in names:
        if name not in ROWS and name not in PARTS:
            raise UserError(f"--only {name} is nothing to measure: {nearest(name, [*ROWS, *PARTS])}")
    return names


def environment() -> dict[str, Any]:
    """The machine, by its processor's name only, and the software."""
    found = machine.environment(CPU)
    found.pop("peak_memory_mib")
    return found | {"device": NAME, "cores": torch.get_num_threads(), "mkldnn": torch.backends.mkldnn.is_available()}


def run(names: list[str], setting: Setting, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All that is measured, as plain data; what there is so far is handed to `keep` after each part."""
    started, before = time.perf_counter(), load()
    about = {"machine": environment(), "size": vars(setting.size), "date": datetime.now(UTC).date().isoformat()}
    found: dict[str, Any] = {"rows": []}
    for name in names:
        if name in ROWS:
            found["rows"].append(measure(name, setting))
            print(line(found["rows"][-1]), flush=True)
        else:
            found[name] = PARTS[name](setting)
            print(f"{name}: measured", flush=True)
        found |= about | {"seconds": round(time.perf_counter() - started, 1), "load": [before, load()]}
        keep(found)
    return found


def line(found: dict[str, Any]) -> str:
    """One row, while the others still run."""
    ratios = ", ".join(f"{n} {r['median']:.3g}x" for n, r in found["ratios"].items())
    return f"{found['name']}: {ratios}; {'' if found['agrees'] else 'DISAGREES: '}{found['agreement']}"


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 if outputs of any row disagree. Speed is reported, never judged."""
    asked = parser().parse_args(argv)
    try:
        names = chosen(asked.only)
        machine.device("cpu", asked.threads)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore", category=FutureWarning)
    whole = not asked.quick and not asked.only
    out = asked.out or (HOME if whole else None)

    def keep(found: dict[str, Any]) -> None:
        if out:
            files.write(out, json.dumps(found, indent=1, allow_nan=False) + "\n")

    found = run(names, Setting(QUICK if asked.quick else Size()), keep)
    for table in write.tables(found):
        print(f"\n{write.grid(table)}")
    if whole and not asked.out:
        write.document()
    return int(not all(row["agrees"] for row in found["rows"]))


if __name__ == "__main__":
    sys.exit(main())
