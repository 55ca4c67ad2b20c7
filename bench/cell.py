"""A cell's folder before and after the work: is it done, and if it failed, why. Loads nothing heavy."""

from __future__ import annotations

import functools
import json
import logging
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from analysis import schema, sealing
from bench import faults, files
from bench.cli import one_cell, sentence
from bench.errors import UserError

log = logging.getLogger(__name__)

SCHEMA = 1
TABLES = ("curve", "scores", "layers")
"""The CSV files beside a record, whose digests are in it."""


def read(folder: Path, mine: bool = False, beside: Sequence[str] = ()) -> dict[str, Any] | None:
    """The record of a finished cell, or None; also None if one of the files wanted `beside` it is missing.

    A damaged one counts as none; whose `turn` it is sets it aside.
    """
    path = folder / "record.json"
    try:
        if not all((folder / name).exists() for name in beside):
            return None
        found = parsed(path)
        if found["schema"] != SCHEMA:
            raise ValueError(f"its schema is {found['schema']}, this version writes {SCHEMA}")
        if not one_cell(found).isprintable():
            raise ValueError("a name in it is not printable")
        return found
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if mine:
            log.warning(
                "%s is damaged (%s); it is set aside as %s, the cell runs again.",
                path,
                error,
                files.set_aside(path).name,
            )
        return None


def parsed(path: Path) -> dict[str, Any]:
    """A record.json that is as it was written, whatever it says. Raises OSError, ValueError, RecursionError."""
    found = json.loads(schema.read_text(path, schema.RECORD_LIMIT))
    if not isinstance(found, dict):
        raise ValueError("it is no mapping")
    sealing.check(found)
    return found


def finished(folder: Path, beside: Sequence[str], dataset: Mapping[str, Any], own: str) -> dict[str, Any] | None:
    """As `read`. Raises UserError if the cell was run on other images than lie there now, or if its id is not its `own`.

    Only what their stamp does not answer is looked into, and it is not asked where images are gone or none was recorded.
    """
    found = read(folder, beside=beside)
    if found and found.get("id", own) != own:
        raise UserError(
            f"{folder} holds another cell ({found['attack']} / {found['defense']} / seed {found['seed']}): let the bench "
            "name the folders, and say with runs=DIR where they are to be."
        )
    if found is None or (then := found.get("images_stamp")) is None:
        return found
    if stamp(dataset).get("images_stamp") in (then, None) or digest_of(json.dumps(dataset)) == found["data"]:
        return found
    raise UserError(
        f"dataset.root={dataset['root']} holds other images than this cell was run on: put them into a folder of their own, "
        f"or delete {folder} to run it again."
    )


def stamp(dataset: Mapping[str, Any]) -> dict[str, str]:
    """A record's column that tells a folder of images from a changed one; of other data sets none: they do not change."""
    if dataset.get("_target_") != "bench.datasets.imagefolder" or not dataset.get("root"):
        return {}
    found = stamped(*(str(dataset.get(key, key)) for key in ("root", "train", "test")))
    return {"images_stamp": found} if found else {}


@functools.cache
def stamped(root: str, *parts: str) -> str | None:
    """A digest of the names, sizes and times of the files in these folders, or of the archive that holds them; None: no file.

    Asked of a disk once by a process.
    """
    walks = [os.walk(f"{root}/{part}", followlinks=True) for part in parts]
    inside = (f"{at}/{name}" for walk in walks for at, _, names in walk for name in names)
    facts = []
    for place in [root] if Path(root).is_file() else inside:
        with suppress(OSError):  # a link to nowhere is no image
            status = os.stat(place)  # noqa: PTH116  # there may be a million
            facts.append((place[len(root) :], status.st_size, status.st_mtime_ns))
    return files.digest(sorted(facts)) if facts else None


@functools.cache
def digest_of(dataset: str) -> str:
    """The digest of a data set, given as JSON."""
    from bench.parts import make  # seconds, that a finished cell seldom needs

    return str(make(json.loads(dataset)).digest)


def finish(folder: Path, beside: Mapping[str, str], record: Mapping[str, Any]) -> bool:
    """Writes the files `beside` the record, by name, and then the record, whole and with their digests: the cell is done.

    False: there was a record already, of a process that the lock did not keep out. It stays, and so does what is beside it.
    """
    faults.hit("record.write")
    path = folder / "record.json"
    files.write_all(folder, beside, unless=path)
    above = folder.absolute().parents[:5]  # Hydra made the folder, and those above it up to `runs`
    files.settle(*(parent for parent in above if os.access(parent, os.R_OK)))
    found = {f"digest_{name}": folder / f"{name}.csv" for name in TABLES}
    digests = {name: files.sha256(place) for name, place in found.items() if place.exists()}
    whole = {**record, **digests}
    whole[sealing.SEAL] = sealing.seal_of(whole)
    return files.publish(path, json.dumps(whole, indent=1, allow_nan=False) + "\n")


@contextmanager
def failures(folder: Path, retry: str = "failed") -> Iterator[None]:
    """Says in one sentence what goes wrong in the block, and keeps the traceback and it as error.txt until the cell succeeds.

    With retry=never the block is not entered where there is one: UserError with what it said.
    """
    path = folder / "error.txt"
    if retry == "never" and path.exists():
        last = schema.read_text(path).strip().splitlines()[-1:] or ["it did not say why"]
        raise UserError(f"failed before, and retry=never: {last[0]}")
    try:
        yield
    except Exception as error:
        error.reported = sentence(error)  # type: ignore[attr-defined]
        log.error("failed: %s (traceback in %s)", error.reported, path)  # type: ignore[attr-defined]
        with suppress(OSError):  # the disk may be full; the sentence above is what counts
            files.write(path, f"{traceback.format_exc()}\n{error.reported}\n")  # type: ignore[attr-defined]
        raise
    path.unlink(missing_ok=True)
