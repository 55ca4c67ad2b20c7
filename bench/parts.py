"""Builds what plain settings describe, out of the bench's own parts and nothing else.

For settings that come from a file: a finished cell's, or a model's card. They are data, and may be somebody else's, so they can
name no class or function but those that this package defines. (What is typed goes through Hydra in `bench.run`.)
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

from bench.errors import UserError

PLACES = (
    r"bench\.(attacks|defenses|datasets|data|models|zoo|plan|training|pruning)(\.[a-z0-9_]+)*\.[A-Za-z][A-Za-z0-9_]*"
)


def make(node: Mapping[str, Any], **more: Any) -> Any:
    """The object that a node with a `_target_` describes, with `more` settings besides. Raises UserError."""
    target = own(node.get("_target_"))
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"_target_={target} does not exist in this version of the bench.") from error
    if not callable(found) or not str(getattr(found, "__module__", "")).startswith("bench."):
        raise UserError(
            f"_target_={target} is none of the bench's own parts, and settings from a file may name no others."
        )
    settings = {key: _plain(value) for key, value in node.items() if key != "_target_"}
    try:
        return found(**(settings | more))
    except TypeError as error:
        raise UserError(f"{target} does not take these settings: {error}") from error


def own(target: Any) -> str:
    """The `_target_`, if it stands where the bench's own parts do; nothing is imported. Raises UserError."""
    if not isinstance(target, str) or not re.fullmatch(PLACES, target):
        raise UserError(
            f"_target_={target} is none of the bench's own parts, and settings from a file may name no others."
        )
    return target


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return make(value) if "_target_" in value else {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
