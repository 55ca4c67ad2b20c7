"""A sweep around its cells, whatever the launcher: one progress bar, what failed, and how workers share the cores.

A launcher hands results back at its end, or not at all when a worker is killed. So each cell leaves a note in a folder of
the sweep, which the launching process reads; nothing but the bar and the closing lines depends on it.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import shutil
import statistics
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from bench import files, turn
from bench.errors import UserError
from bench.progress import console

MODEL = r"[+~]*(dataset|model|attack|train|experiment|scale|seed)\b"
"""Words of a command line that may change the backdoored model; the others leave it as it is."""


def shared_cores(workers: int) -> int:
    """CPU threads for each of so many workers on this machine, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(1, workers))


def compose_once(sweeper: Any, loader: Any) -> None:
    """Hydra's sweepers compose every cell before the first one starts, so that a typo ends no sweep in the middle. A launcher
    that runs cells in the same process is given what was composed then, instead of having it composed again; and it does
    those last for which it would have to wait. One that runs them side by side begins with cells of different models.
    """
    compose, waiting = loader.load_sweep_config, {}

    def all_of(self: Any, batch: Sequence[Sequence[str]]) -> None:
        here = self.config.hydra.launcher._target_.endswith(".BasicLauncher")
        for words in batch:
            cell = self.hydra_context.config_loader.load_sweep_config(self.config, [*words])
            if here:
                waiting[tuple(words)] = cell
        if not isinstance(self.launcher.launch, partial):
            self.launcher.launch = partial(busy_last if here else models_apart, self.launcher.launch)

    def one(self: Any, master_config: Any, sweep_overrides: list[str]) -> Any:
        found = waiting.pop(tuple(sweep_overrides), None)
        return compose(self, master_config, sweep_overrides) if found is None else found

    sweeper.validate_batch_is_legal, loader.load_sweep_config = all_of, one


def read_once(repository: Any) -> None:
    """Hydra reads all files of a cell's configuration for each cell, a third of the time that composing takes: here each is
    read once, and copied for the others."""
    load, found = repository.load_config, {}

    def copied(self: Any, config_path: str) -> Any:
        key = (*((type(source), source.path) for source in self.sources), config_path)
        if key not in found:
            found[key] = load(self, config_path)
        return copy.deepcopy(found[key])

    repository.load_config = copied


def busy_last(launch: Callable[..., list[Any]], cells: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
    """Launches cells one after the other; those whose model another process is making come last, and are waited for then."""
    turn.patient = False
    try:
        results = [*launch(cells, initial_job_idx=initial_job_idx)]
    finally:
        turn.patient = True
    later = [i for i, result in enumerate(results) if put_off(result)]
    again = launch([cells[i] for i in later], initial_job_idx=initial_job_idx) if later else []
    for i, result in zip(later, again, strict=True):
        results[i] = result
    return results


def models_apart(launch: Callable[..., list[Any]], cells: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
    """Launches a first cell of each model, then a second one of each, and so on: workers then train models side by side,
    where they would wait for one. Results are handed back in the order of `cells`.
    """
    seen: Counter[frozenset[str]] = Counter()
    turns = []
    for words in cells:
        model = frozenset(word for word in words if re.match(MODEL, word))
        turns.append(seen[model])
        seen[model] += 1
    order = sorted(range(len(cells)), key=turns.__getitem__)
    results = dict(zip(order, launch([cells[i] for i in order], initial_job_idx=initial_job_idx), strict=True))
    return [results[i] for i in range(len(cells))]


def put_off(result: Any) -> bool:
    """Whether a job's result says that its cell was left for later."""
    return result.status.name == "COMPLETED" and result.return_value["state"] == "put off"


class Watch:
    """What Hydra calls (conf/config.yaml, hydra.callbacks): in the launching process at the ends of a sweep, in a worker at
    those of a cell. `cells`: how many the sweep has; None if its sweeper does not say.
    """

    def __init__(self, cells: int | None = None) -> None:
        if cells == 0:
            raise UserError("this sweep has no cell in it: a glob() or range() of its takes nothing.")
        self.cells = cells
        self.notes: Path | None = None
        self.started = 0.0

    def on_run_start(self, config: Any, **_: Any) -> None:
        """One cell has its own progress bars."""

    def on_run_end(self, config: Any, **_: Any) -> None:
        """Nothing to close."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        self.notes = Path(str(config.hydra.sweep.dir)).absolute() / ".sweeps" / uuid.uuid4().hex[:12]
        Sweep.now = Sweep(self.notes, self.cells)

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        """run.py closes the sweep, since Hydra does not come here when it was interrupted."""

    def on_job_start(self, config: Any, **_: Any) -> None:
        self.started = time.monotonic()

    def on_job_end(self, config: Any, job_return: Any, **_: Any) -> None:
        if self.notes and job_return.status.name == "COMPLETED" and not put_off(job_return):
            note = job_return.return_value | {"seconds": time.monotonic() - self.started}
            files.write(
                self.notes / f"{config.hydra.job.num}-{uuid.uuid4().hex[:8]}.json", json.dumps(note), sync=False
            )


class Sweep:
    """The sweep as the launching process sees it."""

    now: Sweep | None = None

    def __init__(self, notes: Path, cells: int | None) -> None:
        self.notes, self.cells, self.began = notes, cells, time.monotonic()
        self._over = Event()
        self._bar = Thread(target=self._show, daemon=True) if console.is_terminal and sys.stdout.isatty() else None
        if self._bar:
            self._bar.start()

    def outcomes(self) -> list[dict[str, Any]]:
        """What the cells noted so far: state (done, passed or failed), name, folder, seconds, and why it failed."""
        return list(read_notes(self.notes))

    def _show(self) -> None:
        columns = (TextColumn("sweep"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=self.cells, left="")
            while not self._over.wait(0.5):
                found = self.outcomes()
                bar.update(task, completed=len(found), left=state(found, self.cells, time.monotonic() - self.began))

    def close(self) -> list[dict[str, Any]]:
        """Ends the bar, removes the notes, and returns them."""
        self._over.set()
        if self._bar:
            self._bar.join()
        found = self.outcomes()
        shutil.rmtree(self.notes, ignore_errors=True)
        with suppress(OSError):  # another sweep may be under way
            self.notes.parent.rmdir()
        return found


def read_notes(folder: Path) -> Iterator[dict[str, Any]]:
    with suppress(OSError):
        for path in sorted(folder.glob("*.json")):
            with suppress(OSError, ValueError):  # gone, or on a share not all there yet
                yield json.loads(path.read_text())


def state(found: Sequence[dict[str, Any]], cells: int | None, elapsed: float) -> str:
    """What stands beside the bar: failures, and how long the rest may take."""
    failed = sum(note["state"] == "failed" for note in found)
    parts = [f"{failed} failed"] if failed else []
    worked = [note["seconds"] for note in found if note["state"] == "done"]
    if cells and worked and (left := cells - len(found)) > 0:
        least, most = remaining(worked, left, elapsed)
        low, high = duration(least), duration(most)
        parts.append(f"{high} left" if low == high else f"up to {high} left" if least < 1 else f"{low} to {high} left")
    return ", ".join(parts)


def remaining(worked: Sequence[float], left: int, elapsed: float) -> tuple[float, float]:
    """Between how many seconds `left` more cells may take, if they are like those that `worked` (seconds of each).

    Mean and two standard deviations of such a sum (more while few have run: close to Student's factor), with the error of
    the mean itself, over how many ran side by side so far. Cells that were finished before are not among them.
    """
    mean = statistics.fmean(worked)
    spread = statistics.stdev(worked) if len(worked) > 1 else mean
    wide = (2 + 4 / len(worked)) * spread * math.sqrt(left + left**2 / len(worked))
    side_by_side = max(sum(worked) / elapsed, 1e-9) if elapsed > 0 else 1.0
    return max(0.0, mean * left - wide) / side_by_side, (mean * left + wide) / side_by_side


def duration(seconds: float) -> str:
    for limit, size, unit in ((100, 1, "s"), (6000, 60, "min"), (360000, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
