"""`python -m bench.store doctor|verify|gc`: is this disk fit for the store, is all on it as it was written, what is rubbish."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bench import files, shelf

DAY = 24 * 3600
ROUNDS = 100


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.store", description=__doc__)
    acts = parser.add_subparsers(dest="act", required=True)
    for name, what in (
        ("doctor", "try on this disk what the store rests on"),
        ("verify", "compare all models and records with the digests they were written with"),
        ("gc", "list what interrupted runs have left, or delete it"),
    ):
        act = acts.add_parser(name, help=what, description=what)
        act.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where the results are (runs)")
        if name == "gc":
            act.add_argument(
                "--delete", action="store_true", help="delete what is listed; without it nothing is touched"
            )
            act.add_argument("--damaged", action="store_true", help="what was set aside as damaged, too")
    asked = parser.parse_args(words)
    if asked.act != "doctor" and not asked.runs.is_dir():
        print(f"error: {asked.runs} is no folder: say where the results are, with --runs DIR.", file=sys.stderr)
        return 1
    if asked.act == "gc":
        return gc(asked.runs, asked.delete, asked.damaged)
    return doctor(asked.runs) if asked.act == "doctor" else verify(asked.runs)


# -- doctor ------------------------------------------------------------------------------------------------------------
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
    code = f"import sys; from bench.upkeep import exclude; print(exclude(sys.argv[1], {ROUNDS}))"
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


# -- verify ------------------------------------------------------------------------------------------------------------
def verify(runs: Path) -> int:
    """Reads every stored model and every record's files; 1 if something is not as it was written."""
    started, size, count, bad = time.perf_counter(), 0, 0, 0
    for path in walk(runs):
        if path.name not in ("card.json", "record.json") or ".damaged-" in str(path):
            continue
        count += 1
        size += sum(file.lstat().st_size for file in path.parent.iterdir() if file.is_file())
        try:
            if path.name == "card.json":
                shelf.verified(path.parent)
            else:
                compare(path)
        except (shelf.Damaged, OSError) as problem:
            bad += 1
            print(f"damaged: {path.parent}: {problem}")
    seconds = max(time.perf_counter() - started, 1e-9)
    print(f"{count} models and records, {size / 1e6:.0f} MB at {size / 1e6 / seconds:.0f} MB/s; {bad} damaged")
    if bad:
        print("What is damaged is set aside and made again by the command that uses it.")
    return int(bad > 0)


def compare(path: Path) -> None:
    """Raises Damaged if a record cannot be read, or a file beside it is not the one it was written with."""
    try:
        record = json.loads(path.read_text())
        named = {name: record.get(f"digest_{name}") for name in ("curve", "scores")}
    except (ValueError, AttributeError) as error:
        raise shelf.Damaged(f"record.json: {error}") from error
    for name, expected in named.items():
        if expected and files.sha256(path.with_name(f"{name}.csv")) != expected:
            raise shelf.Damaged(f"{name}.csv is not the one that the record was written with")


# -- gc ----------------------------------------------------------------------------------------------------------------
def gc(runs: Path, delete: bool, damaged: bool) -> int:
    """Lists (or deletes) what no run needs any more; never follows a link, never leaves the folder."""
    probe = runs / f".tmp-{uuid.uuid4().hex[:16]}"
    try:
        probe.touch()
        now = probe.stat().st_mtime  # of the clock that stamps the others
        probe.unlink()
    except OSError as error:
        print(f"error: cannot write to {runs}: {error.strerror}.", file=sys.stderr)
        return 1
    size, count = 0, 0
    for path, why in sorted(rubbish(runs, now, damaged)):
        held = sum(f.lstat().st_size for f in [path, *path.rglob("*")] if f.is_file())
        size, count = size + held, count + 1
        print(f"{'deleted' if delete else 'would delete'} {path} ({why}, {held / 1e6:.1f} MB)")
        if delete and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
            if path.parent.name == ".sweeps":
                with suppress(OSError):  # other sweeps have notes there
                    path.parent.rmdir()
        elif delete:
            path.unlink(missing_ok=True)
    print(f"{count} of them, {size / 1e6:.1f} MB{'' if delete or not count else '; --delete deletes them'}")
    return 0


def rubbish(runs: Path, now: float, damaged: bool) -> Iterator[tuple[Path, str]]:
    for path in walk(runs):
        name = path.name
        target = path.with_name(name[1:].rpartition(".")[0] or name)
        try:
            old = now - path.lstat().st_mtime > DAY
        except FileNotFoundError:  # it was somebody's, and they are done with it
            continue
        if name.startswith(".tmp-") and old:
            yield path, "half-written and a day old"
        elif name.startswith(".") and name.endswith(".part") and done(target) and free(target):
            yield path, "the start of a training that has ended"
        elif name.startswith(".") and name.endswith((".lock", ".beat")) and old and done(target) and free(target):
            yield path, "of work that is done"
        elif path.parent.name == ".sweeps" and old:
            yield path, "the notes of a sweep that was killed"
        elif ".damaged-" in name and damaged:
            yield path, "set aside as damaged"


def done(target: Path) -> bool:
    return (target / "card.json").is_file() or (target / "record.json").is_file()


def free(target: Path) -> bool:
    """Whether nobody on this machine holds the lock of `target`."""
    path = target.with_name(f".{target.name}.lock")
    if not path.exists():
        return True
    try:
        with FileLock(path, timeout=0):
            return True
    except Timeout:
        return False
    except OSError:  # no locks here: who is at it counts
        return not target.with_name(f".{target.name}.beat").exists()


def walk(runs: Path) -> Iterator[Path]:
    """All files, and those folders that are taken as a whole (temporary, damaged, beginnings, notes); links are not followed."""
    for folder, inner, names in os.walk(runs):
        notes = Path(folder).name == ".sweeps"
        whole = [n for n in inner if notes or n.startswith(".tmp-") or n.endswith(".part") or ".damaged-" in n]
        inner[:] = sorted(set(inner) - set(whole))
        yield from (Path(folder, name) for name in sorted([*whole, *names]))
