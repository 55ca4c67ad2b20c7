"""`make bench-gpu`: fills the GPU half of docs/performance.md in under nine minutes, for a person with a GPU.

    python -m benchmarks.gpu                                       CIFAR-10 by torchvision, fetched if it is not there
    python -m benchmarks.gpu dataset=cifar10_jpeg dataset.root=DIR  another copy, or any other setting of bench/run.py
    python -m benchmarks.gpu --smoke                               minutes become seconds: digits, on any device; writes nothing

Whole cells are run as a user runs them (`bench/run.py -m`), and the times taken from their records. Two seeds are trained in one
process: the first pays for what is made once (kernels, the choice of algorithms), the second is the one that is held against
the goal. What there is no time for, or fails, is left out, and the page says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench import files, machine
from benchmarks import write
from benchmarks.cells import command, records
from benchmarks.clock import load
from benchmarks.profiles import profiles
from benchmarks.rates import operations, rates
from benchmarks.setting import QUICK, Setting, Size
from benchmarks.words import percent, seconds

BUDGET = 530.0  # seconds
EPOCHS = 20
FULL = ("model=resnet18", "train=fast", f"train.epochs={EPOCHS}")
DATA = ("dataset=cifar10", "dataset.download=true")
"""Where no other data set is asked for."""
SMOKE = ("dataset=digits", "train.epochs=1")
DEFENSES = {False: "clp,ep,bnp,rnp,anp,ft", True: "clp,ep,bnp"}
GRID = {False: ("badnets,blend,sig", "none,clp,ep,bnp"), True: ("badnets,blend", "none,clp")}


class Session:
    """The commands of one run, and what is left of its time."""

    def __init__(self, runs: Path, words: tuple[str, ...], budget: float) -> None:
        self.runs, self.words, self.end = runs, words, time.perf_counter() + budget
        self.left_out: list[str] = []
        self.failed: list[str] = []

    def sweep(self, what: str, *words: str) -> float | None:
        """Seconds of the sweep; None if it failed or there was no time for all of it. Finished cells count all the same."""
        left = self.end - time.perf_counter()
        if left < 5:
            self.left_out.append(what)
            return None
        try:
            return command("-m", *self.words, *words, f"runs={self.runs}", "gate.max_drop=null", timeout=left)
        except subprocess.TimeoutExpired:
            self.left_out.append(what)
        except subprocess.CalledProcessError:  # which has said why
            self.failed.append(what)
        return None

    def found(self, **wanted: Any) -> list[dict[str, Any]]:
        """Records whose fields are these."""
        every = [record for _, record in records(self.runs).values()]
        return [r for r in every if all(r[key] == value for key, value in wanted.items())]


def fact(what: str, value: str, goal: str | None = None, met: bool | None = None) -> dict[str, Any]:
    return {"what": what, "value": value, "goal": goal, "met": met}


def training(session: Session, seeds: tuple[int, int], speed: dict[str, Any], per_image: float) -> list[dict[str, Any]]:
    """Cold and warm training of the backdoored model, with what share of the matmul rate that is."""
    session.sweep("training", "attack=badnets", "defense=none", f"seed={seeds[0]},{seeds[1]}")
    facts = []
    for seed, kind in zip(seeds, ("first in its process", "after warm-up"), strict=True):
        for record in session.found(attack="badnets", defense="none", seed=seed):
            spent, acc = record["seconds_backdoor"], record["acc_before"]
            warm = seed == seeds[1]
            facts.append(fact(f"training with a backdoor, {kind}", seconds(spent), "≤ 20 s" if warm else None,
                              spent <= 20 if warm else None))  # fmt: skip
            if warm:
                images = record["poison_base"] * epochs(session.words) / spent
                share = images * per_image / (1e9 * speed["gflops"])
                facts += [fact("its ACC", f"{acc:.2f}", "≥ 94", acc >= 94), fact("its ASR", f"{record['asr_before']:.2f}"),
                          fact("images per second, evaluation and poisoning included", f"{images:.0f}"),
                          fact("share of the matmul rate", percent(share), "≥ 35 %", share >= 0.35)]  # fmt: skip
    return facts


def epochs(words: tuple[str, ...]) -> int:
    return int(next(word.partition("=")[2] for word in reversed(words) if word.startswith("train.epochs=")))


def defending(session: Session, names: str, seed: int) -> list[dict[str, Any]]:
    """Seconds of each defence and of its curve."""
    for name in names.split(","):
        session.sweep(f"defence {name}", "attack=badnets", f"defense={name}", f"seed={seed}")
    facts = []
    for name in names.split(","):
        for r in session.found(attack="badnets", defense=name, seed=seed):
            value = f"{seconds(r['seconds'])} and {seconds(r['seconds_curve'])} for its curve"
            facts.append(fact(f"{name} to its scores", value))
    return facts


def gridded(session: Session, attacks: str, defenses: str, seed: int) -> list[dict[str, Any]]:
    """A small grid, and what twelve by twelve would come to at its rates and those of the defences above."""
    spent = session.sweep("small grid", f"attack={attacks}", f"defense={defenses}", f"seed={seed}")
    cells = session.found(seed=seed)
    if spent is None or not cells:
        return []
    count = len(attacks.split(",")) * len(defenses.split(","))
    facts = [fact(f"grid of {count} cells, whole command; models and cells above are taken over", seconds(spent))]
    trained = {r["backdoor"]: r["seconds_backdoor"] for r in cells}
    each = {r["defense"]: r["seconds"] + r["seconds_curve"] for r in cells if r["defense"] != "none"}
    if each:
        total = 12 * sum(trained.values()) / len(trained) + 144 * sum(each.values()) / len(each)
        facts.append(fact("12 attacks x 12 defences one after the other, estimated from the means above",
                          f"{total / 60:.1f} min", "≤ 30 min", total <= 1800))  # fmt: skip
    return facts


def run(smoke: bool, words: tuple[str, ...], runs: Path) -> dict[str, Any]:
    """All that is measured, as plain data."""
    started, before = time.perf_counter(), load()
    device = machine.device("auto", None)
    setting = Setting(QUICK if smoke else Size(batch=512, tested=4096, mix=2048, patience=30.0))
    measured = rates(setting, device, setting.size.batch, 1 if smoke else 20)
    data = setting.images(8)
    per_image = operations(setting.network, data.x.float() / 255, data.y, True)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the cells below are processes of their own
    session = Session(runs, settings(smoke, words), BUDGET - (time.perf_counter() - started))
    facts = training(session, (2, 3), measured["peak"][machine.precision(device.type)], per_image)
    facts += defending(session, DEFENSES[smoke], 3)
    facts += gridded(session, *GRID[smoke], 3)
    if smoke:  # another network, other data: nothing to hold against a goal
        facts = [fact(f["what"], f["value"]) for f in facts]
    about = machine.environment(device)
    about.pop("peak_memory_mib")
    found = {"machine": about, "date": datetime.now(UTC).date().isoformat(), "facts": facts, "rates": measured}
    if time.perf_counter() < session.end:
        found["profiles"] = profiles(setting, device)
    else:
        session.left_out.append("profiles")
    spent = round(time.perf_counter() - started, 1)
    return found | {
        "left_out": session.left_out,
        "failed": session.failed,
        "seconds": spent,
        "load": [before, load()],
        "words": list(session.words),
    }


def settings(smoke: bool, words: tuple[str, ...]) -> tuple[str, ...]:
    """What every cell is run with: ours, and then what was asked for."""
    other = any(word.startswith("dataset=") for word in words)
    return (SMOKE if smoke else FULL if other else DATA + FULL) + words


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 2 if there is no GPU and `--smoke` was not said."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="The GPU half of docs/performance.md."
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on any device, to see that it runs")
    parser.add_argument(
        "words", nargs="*", metavar="NAME=VALUE", help="settings of bench/run.py, such as dataset.root=DIR"
    )
    asked = parser.parse_args(argv)
    if not asked.smoke and not torch.cuda.is_available():
        print("There is no CUDA GPU here; --smoke runs it at tiny sizes on the CPU.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        found = run(asked.smoke, tuple(asked.words), Path(folder))
    print(write.gpu_half(found))
    if not asked.smoke:
        files.write(write.place("gpu", found["machine"]["device"]), json.dumps(found, indent=1, allow_nan=False) + "\n")
        write.document()
    return 0


if __name__ == "__main__":
    sys.exit(main())
