"""Digests of plain data, and the seal of a record: what it says of itself, so that one changed later is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "digest_record"


def digest(material: Any) -> str:
    """sha256 of plain data as canonical JSON: independent of key order, and 5.0 counts as 5."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if isinstance(value, float) and value.is_integer():
            return int(value)
        return value

    text = json.dumps(plain(material), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def seal_of(record: Mapping[str, Any]) -> str:
    """The digest of all else that is in a record."""
    return digest({key: value for key, value in record.items() if key != SEAL})


def check(record: Mapping[str, Any]) -> None:
    """Raises ValueError for a record that is not as it was written; one of an earlier version has no seal."""
    if SEAL in record and record[SEAL] != seal_of(record):
        raise ValueError("it is not as it was written")
