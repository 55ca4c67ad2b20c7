"""Folders that are made once, verified whenever they are used, and made again if they are damaged. Loads nothing heavy.

Such a folder holds files and a card.json with the sha256 of each; the card comes with the folder, by one rename.
"""

from __future__ import annotations

import json
import logging
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench import faults, files
from bench.errors import UserError
from bench.turn import turn

log = logging.getLogger(__name__)

Card = dict[str, Any]


class Damaged(Exception):
    """What is wrong with a folder, in words that go on after `is damaged: `."""


def obtain(folder: Path, doing: str, make: Callable[[], Card], fill: Callable[[Path], None]) -> Card:
    """The card of what lies in `folder`, verified. If there is nothing, `make()` and then `fill(new folder)` make it.

    One process makes it, others wait for it (see `bench.turn`). What is damaged is set aside, named, and made anew; raises
    UserError if that is damaged too.
    """
    if found := usable(folder):
        return found
    with turn(folder, doing):
        if found := usable(folder):
            return found
        if folder.exists():
            log.warning("%s is damaged (%s); it is set aside as %s and made again.", folder, *aside(folder))
        made = make()
        faults.hit("shelf.made")
        try:
            with files.new_folder(folder) as new:
                fill(new)
                faults.hit("shelf.filled")
                made["sha256"] = {path.name: files.sha256(path) for path in sorted(new.iterdir())}
                files.write(new / "card.json", files.sealed(made))
        except OSError:
            if not usable(folder):  # else somebody, where the lock does not reach, was faster
                raise
        faults.hit("shelf.published")
        shutil.rmtree(part(folder), ignore_errors=True)
    try:
        return verified(folder)
    except Damaged as problem:
        raise UserError(f"{folder} is damaged right after it was written ({problem}): check this disk.") from problem


def part(folder: Path) -> Path:
    """Where whatever makes `folder` keeps how far it got; removed once the folder is there."""
    return folder.with_name(f".{folder.name}.part")


def stated(folder: Path) -> Card | None:
    """The card alone, if it is as it was written and what it names is there; the files' bytes are not looked at."""
    with suppress(Damaged):
        found = card(folder) if folder.exists() else None
        return found if found and all((folder / name).exists() for name in found["sha256"]) else None
    return None


def usable(folder: Path) -> Card | None:
    try:
        return verified(folder) if folder.exists() else None
    except Damaged:
        return None


def aside(folder: Path) -> tuple[str, str]:
    """(what is wrong with it, where it is now)."""
    try:
        verified(folder)
    except Damaged as problem:
        return str(problem), files.set_aside(folder).name
    raise AssertionError("only what is damaged is set aside")


def verified(folder: Path) -> Card:
    """The card, after every file was compared with it. Raises Damaged; PermissionError says nothing about the content.

    A pipe or a device is not waited for.
    """
    found = card(folder)
    with damages():
        for name, expected in found["sha256"].items():
            if Path(name).name != name or files.sha256(ordinary(folder / name)) != expected:
                raise Damaged(f"the sha256 of {name} is not the one on its card")
    return found


def card(folder: Path, name: str = "card.json") -> Card:
    """The card alone, which has a digest of its own. Raises Damaged, PermissionError."""
    with damages():
        found = json.loads(ordinary(folder / name).read_text())
        named = dict(found["sha256"])
        if named.pop("card") != files.digest(found | {"sha256": named}):
            raise Damaged("its card was changed")
        return dict(found | {"sha256": named})


def ordinary(path: Path) -> Path:
    """The path, if it is a file with an end. Raises Damaged, FileNotFoundError."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise Damaged(f"{path.name} is no ordinary file")
    return path


@contextmanager
def damages() -> Iterator[None]:
    """What reading may raise, as Damaged."""
    try:
        yield
    except PermissionError:
        raise
    except FileNotFoundError as error:
        raise Damaged(f"{Path(error.filename).name} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(str(error)) from error
