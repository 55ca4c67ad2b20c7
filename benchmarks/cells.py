"""Whole commands, as a user types them: the 3 x 3 demo cold and warm, what a cell costs besides its work, imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.clock import load
from benchmarks.growth import entry

ROOT = Path(__file__).parent.parent
IMPORTS = "import bench.run"
ALL_IMPORTS = (
    "import bench.run, bench.curve, bench.machine, bench.record, bench.victim, bench.tracking, bench.datasets, "
    "bench.models, bench.attacks.badnets, bench.defenses.anp"
)
DEMO = ("attack=badnets,blend,wanet", "defense=anp,rnp,clp")
SHORT = ("attack=badnets", "defense=clp,none", "train.epochs=1", "gate.max_drop=null")


def command(*words: str, threads: int | None = None, timeout: float | None = None) -> float:
    """Seconds of `python bench/run.py ...`, start to end. Raises CalledProcessError, with what it said, if it fails."""
    more = () if threads is None else (f"threads={threads}",)
    return spent([sys.executable, str(ROOT / "bench/run.py"), *words, *more], timeout)


def spent(words: list[str], timeout: float | None = None) -> float:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    try:
        subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=timeout)
    except subprocess.CalledProcessError as error:
        print(error.stdout, error.stderr, file=sys.stderr)
        raise
    return time.perf_counter() - started


def records(runs: Path) -> dict[str, tuple[float, dict[str, Any]]]:
    """Cell -> (when its record was written, the record)."""
    return {
        str(path.parent.relative_to(runs)): (path.stat().st_mtime, json.loads(path.read_text()))
        for path in sorted(runs.rglob("record.json"))
    }


def where(runs: Path, found: dict[str, tuple[float, dict[str, Any]]]) -> str:
    """What the seconds of these cells went to, as their cards and records have it, and what took most."""
    training = sum(json.loads(path.read_text())["made"]["seconds"] for path in runs.rglob("card.json"))
    by_defense: dict[str, float] = {}
    for _, record in found.values():
        by_defense[record["defense"]] = by_defense.get(record["defense"], 0.0) + record["seconds"]
    curves = sum(record["seconds_curve"] for _, record in found.values())
    repairs = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in by_defense.items())
    return f"training {training:.3g} s, repairs {repairs}, curves {curves:.3g} s"


def cells(quick: bool, threads: int | None) -> dict[str, Any]:
    """Facts of whole commands, with their goals; AssertionError if a warm sweep did any work again."""
    before = load()
    demo, counts = (SHORT, (1, 2)) if quick else (DEMO, (1, 4, 9))
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        cold = command("-m", *demo, f"runs={runs}", threads=threads)
        first = records(runs)
        trained, spread = len(list(runs.rglob("card.json"))), where(runs, first)
        warm = command("-m", *demo, f"runs={runs}", threads=threads)
        assert records(runs) == first, "the warm sweep wrote a record anew"
        assert len(list(runs.rglob("card.json"))) == trained, "the warm sweep trained again"
        lone = [word for word in demo if not word.startswith(("attack=", "defense="))]
        walls = []
        # Cells that only differ in how they are read: no training, no defence, one look at the test set.
        for n in counts:
            drops = ",".join(str(10 * n + i) for i in range(n))
            words = ("attack=badnets", "defense=none", f"selection.max_drop={drops}", f"runs={runs}")
            walls.append(command("-m", *lone, *words, threads=threads))
        added = [record for name, (_, record) in records(runs).items() if name not in first]
    each = (walls[-1] - walls[0]) / (counts[-1] - counts[0])
    looking = sum(record["seconds_curve"] for record in added) / len(added)
    starts = {name: min(spent([sys.executable, "-c", text]) for _ in range(1 if quick else 3))
              for name, text in (("finished", IMPORTS), ("all", ALL_IMPORTS))}  # fmt: skip
    facts = [
        fact(f"{len(first)} cells, cold", cold, None if quick else 25.0,
             f"{trained} models trained (one per attack, and a clean one to compare with), imports included; {spread}"),
        fact("the same, warm", warm, None if quick else 6.0, "all cells finished: nothing is trained or evaluated"),
        fact("one more cell", each, None, "Hydra, data, loading and verifying a model, one evaluation, files; no defence"),
        fact("of that, what is not its evaluation", each - looking, None if quick else 0.3,
             f"the evaluation took {looking:.2g} s"),
        fact("import of all that a cell needs", starts["all"], None if quick else 2.5, "torch is most of it"),
        fact("import of what a finished cell needs", starts["finished"], None, "Hydra is most of it"),
    ]  # fmt: skip
    grown = entry("cells without a defence, whole command", list(counts), walls)
    return {"facts": facts, "growth": grown, "trained": trained, "cells": len(first), "load": [before, load()]}


def fact(what: str, seconds: float, goal: float | None, note: str) -> dict[str, Any]:
    return {
        "what": what,
        "seconds": float(f"{seconds:.3g}"),
        "goal": goal,
        "met": None if goal is None else seconds <= goal,
        "note": note,
    }
