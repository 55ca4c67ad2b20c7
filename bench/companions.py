"""What lies beside a model file and belongs to it: its trigger, in whoever's form. Loads nothing heavy."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from bench import files
from bench.errors import UserError

OURS, CARD, ANP = "trigger.safetensors", "card.json", "trigger_info.th"
PICTURES = "bd_test_dataset", "bd_train_dataset"
"""BackdoorBench's triggered images: test and training."""
PICTURE = (".png", ".jpg", ".jpeg")
"""What the pictures in a folder end with."""


def beside(checkpoint: str, name: str) -> Path | None:
    """The file or folder of that name in the checkpoint's folder, if there is one."""
    path = Path(checkpoint).parent / name
    return path if path.exists() else None


@functools.cache
def picture(path: str) -> str | None:
    """The sha256 of a picture, or of all that lie in a folder of them; None: there is none, as the attack will say.

    Read once by a process.
    """
    place = Path(path)
    if place.is_dir():
        images = sorted(p for p in place.iterdir() if p.suffix.lower() in PICTURE)
        return files.digest([(p.name, files.sha256(p)) for p in images if p.is_file()])
    return files.sha256(place) if place.is_file() else None


@functools.cache
def fingerprint(checkpoint: str, alone: bool) -> dict[str, Any]:
    """What stands for a model file in an identity, wherever it lies: its sha256, and those of what belongs to it.

    `alone`: nothing but the file counts (its trigger is not asked for). Read once by a process. Raises UserError.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise UserError(
            f"model.checkpoint={checkpoint} is no file: give the model's .safetensors, .pt, .pth, .th or .tar."
        )
    found: dict[str, Any] = {"sha256": files.sha256(path)}
    for name in () if alone else (OURS, CARD, ANP, *PICTURES):
        if (thing := beside(checkpoint, name)) is None:
            continue
        if thing.is_dir():
            images = sorted(p for p in thing.rglob("*.png") if p.is_file() and not p.is_symlink())
            found[name] = files.digest([(p.relative_to(thing).as_posix(), files.sha256(p)) for p in images])
        else:
            found[name] = files.sha256(thing)
    return found
