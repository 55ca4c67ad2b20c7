"""The cells that a sweep asks for, from its overrides, without composing a single config."""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from analysis.schema import AXES
from analysis.settings import HOW

ASIDE = HOW - {"seed"} | {"launcher", "workers", "checkpoint", "retry"}
"""What changes no cell."""
WRITTEN = re.compile(r"(choice|range|glob)\((.*)\)", re.DOTALL)
Cell = Mapping[str, str]
"""Override -> value, of one cell."""


def expand(overrides: Iterable[str], conf: Path) -> list[dict[str, str]]:
    """One mapping for each cell of the sweep, in its order. `conf`: the folder of configs, which `glob(*)` chooses from.

    Raises ValueError for an override that is not understood.
    """
    axes: dict[str, list[str]] = {}
    for override in overrides:
        key, is_set, value = override.partition("=")
        if not is_set:
            if not key.startswith("~"):
                raise ValueError(f"{override!r} is no override: write name=value")
            axes[key] = [""]
            continue
        key = key.lstrip("+")
        if key.partition(".")[0] not in ASIDE and not key.startswith("hydra"):
            axes[key] = values(value, conf / key.partition("@")[0])
    return [dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*axes.values())]


def values(text: str, folder: Path) -> list[str]:
    """`a,b`, `choice(a,b)`, `range(2,5)` or `glob(*)` one by one; anything else as it is."""
    found = WRITTEN.fullmatch(text.strip())
    if not found:
        return [bare(part) for part in split(text)]
    kind, inside = found.groups()
    if kind == "choice":
        return [bare(part) for part in split(inside)]
    if kind == "range":
        try:
            return [str(i) for i in range(*(int(part) for part in inside.split(",")))]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{text} is not understood: {error}") from error
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if not names:
        raise ValueError(f"{text}: there is no config in {folder}; say --conf DIR")
    wanted, unwanted = patterns(inside, text)
    return [name for name in names if matches(name, wanted) and not matches(name, unwanted)]


def patterns(inside: str, text: str) -> tuple[list[str], list[str]]:
    """What a `glob(pattern or [patterns], exclude=...)` takes and what not. Raises ValueError for another one."""
    found: dict[str, list[str]] = {"include": [], "exclude": []}
    parts = [*split(inside)]
    for place, part in zip(("include", "exclude"), parts, strict=False):
        name, said, value = part.strip().partition("=")
        name, value = (name, value) if said else (place, name)
        if name not in found or len(parts) > 2:
            raise ValueError(f"{text} is not understood: write glob(pattern,exclude=[names]), or the names one by one")
        value = value.strip()
        found[name] += [bare(one) for one in split(value[1:-1] if value[:1] == "[" else value)]
    return found["include"], found["exclude"]


def matches(name: str, wanted: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)


def split(text: str) -> Iterator[str]:
    """At the commas that are in no brackets and no quotes."""
    depth, quote, part = 0, "", ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c == "," and depth == 0:
            yield part
            part = ""
            continue
        depth += (c in "[{(") - (c in "]})") if not quote else 0
        part += c
    yield part


def bare(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def fits(cell: Cell, names: Mapping[str, str], settings: Mapping[str, str], typed: Cell | None) -> bool:
    """Whether a folder holds that cell. `names`: its axes and seed; `typed`: its own overrides, if they are known.

    What was typed differently but means the same is taken for another cell: running it again is then a matter of an instant.
    """
    if any(cell[key] != str(names[key]) for key in (*AXES, "seed") if key in cell):
        return False
    rest = {key: value for key, value in cell.items() if key not in (*AXES, "seed")}
    if typed is not None:
        if any(key in typed and key not in cell for key in (*AXES, "seed")):
            return False  # where nothing is said, the default is asked for; what was said may be another
        return rest == {key: value for key, value in typed.items() if key not in (*AXES, "seed")}
    return all(settings.get(key, value) == value for key, value in rest.items())


def command(missing: Iterable[Cell]) -> str:
    """One sweep that has all those cells in it, and others only where they are finished or wanted anyway."""
    axes: dict[str, dict[str, None]] = {}
    for cell in missing:
        for key, value in cell.items():
            axes.setdefault(key, {})[value] = None
    words = [key if key.startswith("~") else f"{key}={','.join(map(quoted, found))}" for key, found in axes.items()]
    return " ".join(
        ["python bench/run.py -m", *(f"'{word}'" if re.search(r"[^\w.,=/@+-]", word) else word for word in words)]
    )


def quoted(value: str) -> str:
    return f'"{value}"' if "," in value and value[:1] not in "[{" else value
