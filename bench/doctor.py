"""Is this disk fit for the store: what it rests on is tried."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from bench import files

ROUNDS = 100


def doctor(runs: Path) -> int:
    """Prints a line for each thing that was tried; 1 if one of them makes the store unsafe here."""
    unsafe = 0
    try:
        files.make_folder(runs)
        room = runs / f".tmp-doctor-{uuid.uuid4().hex[:8]}"
        room.mkdir()
    except OSError as error:
        print(f"BAD   cannot write to {runs}: {error.strerror}. Tables can still be made of what is there.")
        return 1
    try:
        print(f"      {runs} is on {mount(runs)}, {shutil.disk_usage(runs).free / 2**30:.1f} GiB free")
        for good, bad, fine in trials(room):
            unsafe |= fine is False
            print(f"ok    {good}" if fine else f"{'NOTE ' if fine is None else 'BAD  '} {bad}")
    finally:
        shutil.rmtree(room, ignore_errors=True)
    return int(unsafe)


def trials(room: Path) -> Iterator[tuple[str, str, bool | None]]:
    """(what to say if it works, if it does not, whether it does; None: it does not, and the store is safe all the same)."""
    started = time.perf_counter()
    once = [files.publish(room / "once", text) for text in ("first", "second")]
    each = 1000 * (time.perf_counter() - started) / 2
    kept = once == [True, False] and (room / "once").read_text() == "first"
    yield (
        f"a result is never replaced; {each:.0f} ms to write one so that it lasts",
        "a second result replaces a first",
        kept,
    )
    try:
        os.link(room / "once", room / "link")
        linked: bool | None = True
    except OSError:
        linked = None
    yield (
        "hard links",
        "no hard links: two processes that finish one cell at the same instant keep the later record",
        linked,
    )
    (room / "full").mkdir()
    (room / "full/file").touch()
    (room / "other").mkdir()
    try:
        (room / "other").rename(room / "full")
        whole = False
    except OSError:
        whole = True
    yield "a model is never replaced", "renaming a folder replaces a full one", whole
    overlaps = sum(contend(room))
    yield (
        f"locks: {2 * ROUNDS} turns of two processes, none at once",
        f"locks do not work here ({overlaps} of {2 * ROUNDS} turns overlapped): work may be done twice; results stay whole",
        True if overlaps == 0 else None,
    )


def contend(room: Path) -> list[int]:
    """Two processes take turns; how often each found the other inside."""
    code = f"import sys; from bench.doctor import exclude; print(exclude(sys.argv[1], {ROUNDS}))"
    words = [sys.executable, "-c", code, str(room.absolute())]
    root = Path(__file__).parent.parent
    quiet = subprocess.DEVNULL  # where there are no locks each says so in a traceback
    pair = [subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, stderr=quiet, text=True) for _ in range(2)]
    return [int(process.communicate(timeout=300)[0] or ROUNDS) for process in pair]


def exclude(folder: str, rounds: int) -> int:
    """Takes turns with whoever does the same in this folder, and counts how often somebody else was inside."""
    inside, overlaps = Path(folder, "inside"), 0
    for _ in range(rounds):
        with FileLock(Path(folder, "lock"), poll_interval=0.001):
            try:
                inside.touch(exist_ok=False)
                inside.unlink()
            except (FileExistsError, FileNotFoundError):
                overlaps += 1
    return overlaps


def mount(path: Path) -> str:
    """The file system's type as Linux names it."""
    try:
        lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "an unknown file system"
    here = path.resolve()
    fits = [(len(where), kind) for _, where, kind, *_ in lines if here.is_relative_to(where)]
    return max(fits)[1] if fits else "an unknown file system"
