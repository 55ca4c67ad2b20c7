"""What a record.json must hold to be counted. Nothing in it is trusted: JSON is read strictly, and sizes are capped."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from analysis import sealing
from analysis.operating_point import SENTENCES

SCHEMA = 1
LIMIT = 1 << 20  # bytes
RECORD_LIMIT = 1 << 16  # a real record has 4,000, and 10,000 are held in memory
AXES = ("dataset", "model", "attack", "defense")
METRICS = ("acc", "asr", "ra")
UNKNOWN = "unknown"
"""The attack of a stranger's model: its trigger is unknown, so its ASR, RA and DER are null."""
RELEARN = re.compile(r"relearn_(acc|asr|ra)_k?(\w+)")


def read_text(path: Path, limit: int = LIMIT) -> str:
    """A file of somebody's, of at most `limit` bytes. Raises OSError, ValueError; a pipe or a device is not waited for."""
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:  # noqa: PTH123
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path.name} is no ordinary file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path.name} is larger than {limit >> 10} KiB")
    return data.decode("utf-8")


def read_record(path: Path) -> dict[str, Any]:
    """One record.json with all that the tables need. Raises ValueError for anything else."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number")

    record = json.loads(read_text(path, RECORD_LIMIT), parse_constant=refuse)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA}")
    unknown = record.get("attack") == UNKNOWN
    for key, fits in NEEDED.items():
        if key not in record:
            raise ValueError(f"{key} is missing")
        if not fits(record[key]) and not (unknown and record[key] is None and by_trigger(key)):
            raise ValueError(f"{key} is {str(record[key])[:40]!r}")
    for key, value in record.items():
        check = is_percent if relearn_name(key) else OPTIONAL.get(key)
        if check is not None and value is not None and not check(value):
            raise ValueError(f"{key} is {str(value)[:40]!r}")
    sealing.check(record)
    return record


def by_trigger(key: str) -> bool:
    """Whether nobody can know this column without the trigger; the rule oracle goes by ASR."""
    return key.startswith(("asr_", "ra_", "der_", "triggered")) or key.endswith("_oracle")


def relearn_name(key: str) -> str:
    """`relearn_asr_k10` -> `relearn 10 ASR`; nothing for any other column."""
    if not (found := RELEARN.fullmatch(key)):
        return ""
    metric, what = found.groups()
    return f"relearn {what} {metric.upper()}"


def is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def is_amount(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def is_percent(value: Any) -> bool:
    return is_amount(value) and value <= 100


def needed() -> Iterator[tuple[str, Callable[[Any], bool]]]:
    yield from dict.fromkeys((*AXES, "id", "needs"), is_name).items()
    yield from dict.fromkeys(("seed", "clean", "triggered"), is_count).items()
    yield from dict.fromkeys(("max_drop", "seconds"), is_amount).items()
    yield from dict.fromkeys((f"{metric}_before" for metric in METRICS), is_percent).items()
    for rule in SENTENCES:
        yield from dict.fromkeys((f"{metric}_{rule}" for metric in (*METRICS, "der")), is_percent).items()
        yield f"pruned_{rule}", is_count


NEEDED = dict(needed())
"""The columns that tables and plots read, and what each must be."""

OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "took": lambda value: isinstance(value, bool),
    "clean_model_acc": is_percent,
    "seconds_backdoor": is_amount,
    "poison_rate": is_amount,
    "poison_base": lambda value: is_name(value) or is_count(value),
    "poisoned": is_count,
    "cover": is_count,
    "device": is_name,
    "threads": is_count,
    "channels": is_count,
    "peak_memory_mib": is_amount,
} | {f"at_{rule}": is_number for rule in SENTENCES}
"""Columns that a record may lack (or hold null for), as one of an earlier version of the bench does."""
