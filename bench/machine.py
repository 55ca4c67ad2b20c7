"""The machine: which device to use, and what of it and of the software may explain a difference between two results."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from bench import __version__
from bench.errors import UserError


def device(name: str, threads: int | None) -> torch.device:
    """The device to use; `auto` takes an NVIDIA or AMD GPU if there is one, `spread` the least used. Sets the CPU threads.

    On a GPU it also keeps convolutions in fp32 from being rounded to TF32 and has cuDNN take algorithms that repeat: the same
    settings give the same numbers. Apple's GPUs have no float64, which triggers are placed in, and are taken only if named.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if name == "spread" and torch.cuda.is_available():
        name = f"cuda:{own_card(tuple(card_names()))}"
    if name in ("auto", "spread"):
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} cannot be used here: {str(error).splitlines()[0]}") from error
    if found.type == "cuda":
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    return found


def precision(name: str) -> str:
    """What a network is trained in fastest on `device(name)`: bf16 where it computes in it, else fp32.

    A processor without such instructions imitates them, ten times slower than fp32 (measured on one with AVX2 alone); which
    it has is only known on Linux. Apple's GPUs count as fp32: not tried.
    """
    if name != "cpu" and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if {"avx512_bf16", "amx_bf16", "bf16"} & flags() else "fp32"


def flags() -> set[str]:
    """The names of the CPU's instruction sets (x86's flags, ARM's features); none where the system does not tell."""
    return set(cpuinfo("flags", "Features").split())


def cpuinfo(*names: str) -> str:
    """What Linux says of the first CPU under the first of these names that it has; empty elsewhere."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(names):
                return line.partition(":")[2].strip()
    return ""


def card_names() -> list[str]:
    """What tells the visible GPUs from each other and from those of another process's CUDA_VISIBLE_DEVICES."""
    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]


@cache  # the lock lives as long as the process, and so does its choice
def _held(folder: Path, cards: tuple[str, ...]) -> tuple[int, FileLock]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for turn in count():  # every card once before one is used twice: more processes than cards share them evenly
        for index, card in enumerate(cards):
            lock = FileLock(folder / f"{card}.{turn}.lock")
            with suppress(Timeout):
                lock.acquire(blocking=False)
                return index, lock
    raise AssertionError("count() does not end")


def own_card(cards: tuple[str, ...], folder: Path | None = None) -> int:
    """The index of the card with the fewest processes of ours on it. It is kept, by a lock, until this process ends."""
    return _held(folder or Path(tempfile.gettempdir()) / f"backprune-{user()}" / "cards", cards)[0]


def user() -> str:
    """Who runs this; a number where it has no name, as in a container (docker --user)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def cores() -> int:
    """The CPU cores that this process may use: fewer than the machine has in a container or under a scheduler."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(device: torch.device) -> dict[str, Any]:
    """What is part of no identity but may explain a difference."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else processor(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "peak_memory_mib": torch.cuda.max_memory_allocated(device) // 2**20 if on_gpu else resident(),
        "version": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def forget_peak(device: torch.device) -> None:
    """Lets `peak_memory_mib` count from here on: a sweep runs many cells in one process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # only Linux has it; elsewhere the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def resident() -> int | None:
    """The most memory that this process has held, MiB; None where the system does not tell (Windows)."""
    with suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) // 1024
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if platform.system() == "Linux" else 2**20)


@cache
def processor() -> str:
    """The CPU's name as the system gives it."""
    return cpuinfo("model name") or platform.processor() or platform.machine()


@cache
def commit() -> str:
    """The commit of the code, with `+` if files differ from it; outside a git checkout BACKPRUNE_COMMIT, or `unknown`."""
    here = Path(__file__).parent
    try:
        run = [
            subprocess.run(
                ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True
            ).stdout
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "-uno"])
        ]
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("BACKPRUNE_COMMIT", "unknown")
    return run[0].strip() + ("+" if run[1].strip() else "")
