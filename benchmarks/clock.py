"""Times variants of the same work in turn (A B A B ...), so that what disturbs the machine disturbs them alike."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from bench import machine

Work = Callable[[], Any]
CPU = torch.device("cpu")


@dataclass
class Times:
    """Of one variant: seconds on the wall and of CPU time per repeat, and the memory its first call took above what was there.

    `wall` counts a GPU's work to its end. `peak_mib` is None where the system does not tell.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak_mib: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.wall)

    def best(self) -> float:
        return min(self.wall)

    def plain(self) -> dict[str, Any]:
        return {"wall": rounded(self.wall), "cpu": rounded(self.cpu), "peak_mib": self.peak_mib}


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the first variant: median and range over the repeats, each against its own neighbour."""

    median: float
    low: float
    high: float
    cpu: float  # the same of CPU time: less disturbed by other processes, blind to waiting

    @classmethod
    def of(cls, base: Times, other: Times) -> Ratio:
        wall = [a / b for a, b in zip(base.wall, other.wall, strict=True)]
        cpu = [a / max(b, 1e-9) for a, b in zip(base.cpu, other.cpu, strict=True)]
        return cls(statistics.median(wall), min(wall), max(wall), statistics.median(cpu))

    def plain(self) -> dict[str, float]:
        return {key: float(f"{value:.4g}") for key, value in vars(self).items()}


def rounded(values: list[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def interleave(
    variants: Mapping[str, Work], repeats: int, warm_up: bool = True, patience: float = 60.0, device: torch.device = CPU
) -> tuple[dict[str, Times], dict[str, Any]]:
    """Runs all variants in turn, `repeats` times after one unmeasured round; returns times and what the last call returned.

    After `patience` seconds no further round is begun (the first is always finished). Without `warm_up` the first round
    counts: for work that takes minutes and has nothing to warm. Memory is taken from the very first call of each.
    """
    times = {name: Times() for name in variants}
    results: dict[str, Any] = {}
    started = time.perf_counter()
    for turn in range(repeats + warm_up):
        if turn > warm_up and time.perf_counter() - started > patience:
            break
        for name, work in variants.items():
            gc.collect()
            with peak(times[name], device) if turn == 0 else nullcontext():
                finish(device)
                wall, cpu = time.perf_counter(), time.process_time()
                results[name] = work()
                finish(device)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn >= warm_up:
                times[name].wall.append(wall)
                times[name].cpu.append(cpu)
    return times, results


@contextmanager
def peak(times: Times, device: torch.device) -> Iterator[None]:
    """Fills in `peak_mib`: the most memory of the device held in the block, less what was held before it."""
    on_gpu = device.type == "cuda"
    machine.forget_peak(device)
    before = torch.cuda.memory_allocated(device) // 2**20 if on_gpu else machine.resident()
    yield
    after = torch.cuda.max_memory_allocated(device) // 2**20 if on_gpu else machine.resident()
    times.peak_mib = None if before is None or after is None else after - before


def finish(device: torch.device) -> None:
    """Waits for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def load() -> float | None:
    """The machine's load average over the last minute; None where the system has none (Windows)."""
    with suppress(OSError, AttributeError):
        return round(os.getloadavg()[0], 2)
    return None
