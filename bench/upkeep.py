"""`python -m bench.store doctor|verify|gc`: is this disk fit for the store, is all on it as it was written, what is rubbish."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bench import cell, files, shelf
from bench.doctor import doctor

DAY = 24 * 3600


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
        elif name == "verify":
            act.add_argument(
                "--aside", action="store_true", help="rename what is damaged, so that the next run makes it again"
            )
    asked = parser.parse_args(words)
    if asked.act != "doctor" and not asked.runs.is_dir():
        print(f"error: {asked.runs} is no folder: say where the results are, with --runs DIR.", file=sys.stderr)
        return 1
    if asked.act == "gc":
        return gc(asked.runs, asked.delete, asked.damaged)
    return doctor(asked.runs) if asked.act == "doctor" else verify(asked.runs, asked.aside)


# -- verify ------------------------------------------------------------------------------------------------------------
def verify(runs: Path, aside: bool = False) -> int:
    """Reads every stored model, every record and the files with it; 1 if something is not as it was written.

    `aside`: what is damaged is renamed, and with a record's file the record, so that the command which made it does so again.
    """
    started, size, count, bad = time.perf_counter(), 0, 0, 0
    for path in walk(runs):
        if path.name not in ("card.json", "record.json") or ".damaged-" in str(path):
            continue
        count += 1
        size += sum(file.lstat().st_size for file in path.parent.iterdir() if file.is_file())
        found = model(path.parent) if path.name == "card.json" else record(path.parent)
        bad += bool(found)
        for _, problem in found:
            print(f"damaged: {path.parent}: {problem}")
        if found and aside:
            set_aside(path.parent, {name for names, _ in found for name in names})
    seconds = max(time.perf_counter() - started, 1e-9)
    print(f"{count} models and records, {size / 1e6:.0f} MB at {size / 1e6 / seconds:.0f} MB/s; {bad} damaged")
    if bad and not aside:
        print(
            "A damaged model, or record.json, is set aside and made again by the command that uses it. For the other files "
            "beside a record (or for all, now) give --aside; then run the cell's command again."
        )
    return int(bad > 0)


Found = list[tuple[set[str], str]]
"""What is damaged in a folder: each time what must go so that it is made again ("" is the folder), and what is wrong."""


def model(folder: Path) -> Found:
    try:
        shelf.verified(folder)
    except (shelf.Damaged, OSError) as problem:
        return [({""}, str(problem))]
    return []


def record(folder: Path) -> Found:
    """A record, the tables that it was written with, and the weights of the repaired model, which have digests of their own."""
    found: Found = []
    try:
        said = cell.parsed(folder / "record.json")
    except (OSError, ValueError, RecursionError) as error:
        return [({"record.json"}, f"record.json: {error}")]
    named = {name: said.get(f"digest_{name}") for name in cell.TABLES}
    for file in (
        f"{name}.csv" for name, expected in named.items() if expected and not same(folder / f"{name}.csv", expected)
    ):
        found.append(({"record.json", file}, f"{file} is not the one that the record was written with"))
    if (folder / "purified.json").exists():
        try:
            digests = shelf.card(folder, "purified.json")["sha256"]
        except (shelf.Damaged, OSError) as problem:
            return [*found, ({"purified.json", "purified.safetensors"}, f"purified.json: {problem}")]
        for file, expected in digests.items():
            within = Path(file).parts and not Path(file).is_absolute() and ".." not in Path(file).parts
            if within and not same(folder / file, expected):
                gone = {file.partition("/")[0], "purified.safetensors"}
                found.append((gone, f"{file} is not the one that was written with purified.json"))
    return found


def same(path: Path, expected: str) -> bool:
    try:
        return files.sha256(shelf.ordinary(path)) == expected
    except (shelf.Damaged, OSError):
        return False


def set_aside(folder: Path, names: set[str]) -> None:
    if not free(folder):
        print(f"left as it is: {folder}: somebody is at it")
        return
    for path in sorted({folder / name for name in names}):
        if os.path.lexists(path):
            print(f"set aside as {files.set_aside(path)}")


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
