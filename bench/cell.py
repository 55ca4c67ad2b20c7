"""A cell's folder before and after the work: is it done, and if it failed, why. Loads nothing heavy."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench import files
from bench.cli import sentence
from bench.errors import UserError

log = logging.getLogger(__name__)

SCHEMA = 1


def read(folder: Path) -> dict[str, Any] | None:
    """The record of a finished cell, or None. Raises UserError if the file is damaged (it is set aside)."""
    path = folder / "record.json"
    try:
        found = json.loads(path.read_text())
        if found["schema"] != SCHEMA:
            raise ValueError(f"its schema is {found['schema']}, this version writes {SCHEMA}")
        return dict(found)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        aside = files.set_aside(path)
        raise UserError(
            f"{path} is damaged ({error}); it was moved to {aside.name}. Run the same command again."
        ) from error


@contextmanager
def failures(folder: Path) -> Iterator[None]:
    """Says in one sentence what goes wrong in the block, and keeps the traceback as error.txt until the cell succeeds."""
    path = folder / "error.txt"
    try:
        yield
    except Exception as error:
        log.error("failed: %s (traceback in %s)", sentence(error), path)
        error.reported = True  # type: ignore[attr-defined]
        with suppress(OSError):  # the disk may be full; the sentence above is what counts
            files.write(path, traceback.format_exc())
        raise
    path.unlink(missing_ok=True)
