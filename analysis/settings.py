"""The settings of a cell from its composed config, and what sets cells of one name apart."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # comes with omegaconf

from analysis.schema import AXES, read_text

CONFIG_LIMIT = 1 << 16  # YAML is slow to read
PARTS = {"dataset": "dataset", "model": "model", "train": "model", "attack": "attack"}
"""Which axis of a table a part of the config belongs to; every other part is the defence's."""
HOW = {"seed", "device", "resident", "threads", "workers", "retry", "allow", "tracker", "runs", "checkpoint", "save"}
"""What two cells with the same settings may differ in."""
CARRIED_OUT = {"compile", "fused"}
"""The same, in whatever part of the config."""
WHERE = {"dataset.cache", "dataset.download"}
"""The same, of a data set: where its images are kept and how they got there. Its `root` may hold other images."""
LATER = (("model.checkpoint", None), ("make_dense", False))
"""Settings that cells of an earlier version lack, with the value that means the same."""
PART = re.compile(r"(?m)^(?=[A-Za-z_]+:)")

Settings = Mapping[str, str]


# -- read --------------------------------------------------------------------------------------------------------------
def read_settings(path: Path) -> dict[str, str]:
    """The composed config as `defense.rule.at` -> `0.3`, without seed, device and places. Raises OSError, ValueError."""
    return {key: value for part in split(read_text(path, CONFIG_LIMIT)) for key, value in part.items()}


def split(text: str) -> Iterator[dict[str, str]]:
    """Part by part, each with a cell's own words read once: a sweep's configs are made of the same few parts."""
    parts = [part for part in PART.split(text) if part.strip()]
    try:
        yield from [read_part(part) for part in parts]
    except (ValueError, RecursionError):
        if len(parts) < 2:
            raise
        yield read_part(text)  # not a plain list of parts: as a whole, or not at all


@functools.lru_cache(maxsize=4096)
def read_part(text: str) -> dict[str, str]:
    return dict(flatten({key: value for key, value in mapping(text).items() if key not in HOW}))


def mapping(text: str) -> dict[Any, Any]:
    """A mapping in somebody's YAML. Raises ValueError; RecursionError where it is nested deeper than any of the bench's."""
    try:
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ValueError("YAML aliases, which no config of the bench has")
        config = yaml.safe_load(text)  # not the C loader: deep nesting crashes it
    except yaml.YAMLError as error:
        raise ValueError(error) from error
    if not isinstance(config, dict):
        raise ValueError("no mapping")
    return config


def flatten(node: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        here = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict):
            yield from flatten(value, here)
        else:
            if (here, value) not in LATER and key not in CARRIED_OUT and here not in WHERE:
                yield here, as_text(value)


def as_text(value: Any) -> str:
    """As on the command line; 5.0 and 5 read the same, as they do in a cell's id."""
    if isinstance(value, list):
        return "[" + ",".join(map(as_text, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)


def overrides(path: Path) -> list[str]:
    """What was said on the command line, as Hydra keeps it; nothing if it cannot be read."""
    try:
        found = yaml.safe_load(read_text(path, 1 << 14))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return []
    return [word for word in found if isinstance(word, str)] if isinstance(found, list) else []


def spoken(root: Path, folder: Path) -> list[str]:
    """The words that a cell was started with, and those that `again.yaml` in `root` says it needs besides by now.

    `again.yaml`: patterns of folders below `root` -> lists of words. Raises ValueError if it is anything else.
    """
    words = overrides(folder / ".hydra" / "overrides.yaml")
    path, name = root / "again.yaml", folder.relative_to(root).as_posix()
    if not words or not path.exists():
        return words
    try:
        more = [word for cells, added in yaml.safe_load(path.read_text(encoding="utf-8")).items()
                for word in added if fnmatch(name, cells)]  # fmt: skip
        said = {word.partition("=")[0] for word in words}
        return words + [word for word in more if word.partition("=")[0] not in said]
    except (ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not a mapping of patterns to lists of words ({error})") from error


def by_hand(folder: str, parts: tuple[str, ...] = ("defense",)) -> list[str]:
    """Those settings of a cell's defence (or of other parts) that were given on its command line, in place of the preset's
    own: `defense.recover.lr=0.02`."""
    words = (word.lstrip("+") for word in overrides(Path(folder, ".hydra", "overrides.yaml")))
    return sorted(word for word in words if word.startswith(tuple(f"{part}." for part in parts)))


# -- compare -----------------------------------------------------------------------------------------------------------
def set_apart(rows: Iterable[dict[str, Any]], axis: str) -> None:
    """Writes `<axis>_settings` into each row: where cells of one name differ in settings, the settings that differ.

    Without this, two settings of a defence would be averaged as if they were seeds of one.
    """
    outer = AXES[: AXES.index(axis)] if axis != "defense" else AXES[:2]  # a defence is compared across attacks
    names = [name for outside in outer for name in (outside, f"{outside}_settings")]
    groups: dict[tuple[str, ...], list[tuple[dict[str, Any], tuple[tuple[str, str], ...]]]] = {}
    for row in rows:
        own = own_settings(tuple(row["settings"].items()), axis)
        groups.setdefault((*(row[name] for name in names), row[axis]), []).append((row, own))
    for members in groups.values():
        variants = sorted({own for _, own in members})
        labels = dict(zip(variants, name_variants([dict(v) for v in variants]), strict=True))
        for row, own in members:
            row[f"{axis}_settings"] = labels[own]


@functools.lru_cache(maxsize=65536)
def own_settings(settings: tuple[tuple[str, str], ...], axis: str) -> tuple[tuple[str, str], ...]:
    """Those of one axis, in a fixed order."""
    return tuple(sorted((k, v) for k, v in settings if PARTS.get(k.partition(".")[0], "defense") == axis))


def fold(variants: list[dict[str, str]]) -> list[dict[str, str]]:
    """A node that some lack and all others have alike, such as `defense.then`, becomes one setting: `set`."""
    for node in sorted({key.rpartition(".")[0] for variant in variants for key in variant} - {""}):
        parts = [{k: v for k, v in variant.items() if k.startswith(f"{node}.")} for variant in variants]
        if {} in parts and all(part in ({}, max(parts, key=len)) for part in parts):
            whole = zip(variants, parts, strict=True)
            variants = [{k: v for k, v in a.items() if k not in b} | ({node: "set"} if b else {}) for a, b in whole]
    return variants


def name_variants(variants: list[dict[str, str]]) -> list[str]:
    """One label for each: nothing for a single one, the settings that differ if these are few and short, else a hash."""
    if len(variants) == 1:
        return [""]
    variants = fold(variants)
    known = [v for v in variants if v]
    differ = sorted(key for key in {k for v in known for k in v} if len({v.get(key) for v in known}) > 1)
    labels = [", ".join(f"{key}={v.get(key, 'unset')}" for key in differ) for v in variants]
    if len(differ) > 3 or max(map(len, labels)) > 80:
        labels = [
            f"settings {hashlib.sha256(json.dumps(v, sort_keys=True).encode()).hexdigest()[:8]}" for v in variants
        ]
    return [label if v or not known else "settings unknown" for v, label in zip(variants, labels, strict=True)]
