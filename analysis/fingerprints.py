"""Fingerprints of the code that results come from, so that a changed meaning cannot pass unseen.

A module's fingerprint is blind to comments, docstrings, layout, annotations and the words of errors. fingerprints.json lists, for
each module that shapes a number, the revision it is at and the fingerprints that mean the same under it, the first one
first. A record keeps, for each part it was made with, one fingerprint of all modules which that part rests on; there the
first stands for all that mean the same. So does the card of a stored model, and a record takes up what its models' cards say.

    python -m analysis.fingerprints           what changed; takes up what is new, or was counted up in analysis/revisions.py
    python -m analysis.fingerprints --same    what changed means the same as before: the results are, to the last bit
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from analysis import revisions

ROOT = Path(__file__).parent.parent
LIST = Path(__file__).with_name("fingerprints.json")
SHARED = "bench.scene"
"""What all cells rest on besides their parts: how a model is trained, handed over and examined."""
UNKNOWN = "unknown"
"""In place of a fingerprint: a model's card is older than fingerprints in cards."""
POINT = "analysis.operating_point"
NUMBERLESS = {f"bench.{name}" for name in (
    "archives", "board", "checkpoints", "cli", "companions", "compiling", "config", "doctor", "errors", "faults", "files",
    "machine", "naming", "parts", "pickles", "pieces", "progress", "rebuilt", "repeat", "resume", "shelf", "store", "tracking",
    "trust", "turn", "upkeep",
)}  # fmt: skip
"""Modules that move bytes, say words or guard, and shape no number. All others count, new ones too."""
SILENT = {"annotation", "returns", "type_comment", "type_ignores", "type_params", "kind", "ctx"}


def form(node: Any) -> Any:
    """Plain data that is equal for two pieces of code that compute the same in the same words, whatever Python reads them."""
    if isinstance(node, ast.Raise):
        return "raise"
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if name not in SILENT)
        return [
            type(node).__name__,
            *([name, form(value)] for name, value in fields if value is not None and value != []),
        ]
    if isinstance(node, list):
        return [form(item) for item in node if not is_text(item)]
    return repr(node)


def is_text(node: Any) -> bool:
    """A docstring, or a string that stands behind a definition as one."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@cache
def module(name: str) -> tuple[str, frozenset[str]]:
    """(fingerprint, the bench's modules that it imports). Raises OSError if there is no such module."""
    tree = ast.parse(source(name).read_text(encoding="utf-8"))
    found = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {word.rpartition(".")[0] for word in found}
    own = {word for word in found if word.startswith("bench.") or word == POINT}
    return shortened(form(tree)), frozenset(word for word in own - NUMBERLESS if source(word).is_file())


def source(name: str) -> Path:
    return ROOT.joinpath(*name.split(".")).with_suffix(".py")


def shortened(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def closure(name: str) -> set[str]:
    """The module, and all that it rests on."""
    found, new = set(), {name}
    while new:
        found |= new
        new = {other for one in new for other in module(one)[1]} - found
    return found


@cache
def listed() -> dict[str, list[Any]]:
    """Module -> [its revision, the fingerprints that mean the same under it]."""
    return dict(json.loads(LIST.read_text(encoding="utf-8"))) if LIST.exists() else {}


@cache
def fingerprint(name: str) -> str:
    """Of a part and all that it rests on. Raises OSError if there is no such module."""
    now = {one: module(one)[0] for one in sorted(closure(name))}
    same = {one: listed().get(one, [0])[1:] for one in now}
    return shortened([[one, same[one][0] if mark in same[one] else mark] for one, mark in now.items()])


def stated(config: Mapping[str, Any]) -> str:
    """For a record: `bench.attacks.wanet=1f0c… bench.scene=…`, of all that the config names."""
    names = {name for name in revisions.modules(config) if name.startswith("bench.") and name not in NUMBERLESS}
    return " ".join(f"{name}={fingerprint(name)}" for name in sorted(names | {SHARED}))


def of_model(config: Mapping[str, Any]) -> str:
    """For the card of a stored model: of all that it was made with."""
    return stated({key: config[key] for key in ("dataset", "model", "attack", "train")})


def joined(now: str, cards: Iterable[Mapping[str, Any]]) -> str:
    """For the record of a cell: the code it ran with, and that which the models were made with that it rests on.

    A part of both stands there twice if it changed in between. What made a model whose card does not say so is unknown.
    """
    made = (card["made"].get("fingerprints") or f"{SHARED}={UNKNOWN}" for card in cards)
    return " ".join(sorted({word for said in (now, *made) for word in said.split()}))


def suspect(record: Mapping[str, Any]) -> str | None:
    """Which parts a record was made with that have other code now, at the same revision; None if none are known to."""
    changed = set()
    for word in str(record.get("fingerprints") or "").split():
        name, _, mark = word.partition("=")
        if mark == UNKNOWN or not re.fullmatch(r"bench(\.[a-z0-9_]+)+", name) or not source(name).is_file():
            continue
        if fingerprint(name) != mark:
            changed.add(name)
    return f"the code of {', '.join(sorted(changed))} was another when it ran" if changed else None


# -- the list -----------------------------------------------------------------------------------------------------------
def parts() -> Iterator[str]:
    """The modules that a config can name."""
    for folder in ("attacks", "defenses"):
        yield from (f"bench.{folder}.{path.stem}" for path in (ROOT / "bench" / folder).glob("[a-z]*.py"))
    yield from ("bench.models", "bench.zoo", "bench.datasets", "bench.relearn", SHARED)


def revision(name: str) -> int:
    return revisions.REVISIONS.get(name, 1) if ".attacks." in name or ".defenses." in name else revisions.PROTOCOL


def changed() -> tuple[dict[str, str], dict[str, list[Any]]]:
    """(module -> fingerprint of those that changed unseen, the list as it should be but for those)."""
    unseen, new = {}, {}
    for name in sorted({one for part in parts() for one in closure(part)}):
        mark, entry = module(name)[0], listed().get(name)
        if entry is None or entry[0] != revision(name):
            entry = [revision(name), mark]
        elif mark not in entry[1:]:
            unseen[name] = mark
        new[name] = entry
    return unseen, new


def main(arguments: Sequence[str] | None = None) -> int:
    from analysis import render  # the bench needs none of it

    parser = argparse.ArgumentParser("python -m analysis.fingerprints", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--same", action="store_true", help="all that changed means the same as before")
    options = parser.parse_args(arguments)
    unseen, new = changed()
    for name, mark in unseen.items():
        print(f"{name} changed" + (", and means the same" if options.same else ""))
        new[name] = [*new[name], mark] if options.same else new[name]
    rows = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in new.items()]
    render.write(LIST, "{\n" + ",\n".join(rows) + "\n}\n")
    return 1 if unseen and not options.same else 0


if __name__ == "__main__":
    sys.exit(main())
