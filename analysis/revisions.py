"""What results mean now: a change of meaning is counted here, becomes part of every key it touches, and marks what is older."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

PROTOCOL = 1
"""Counts up when a change to the code changes what any stored backdoor or finished cell means."""

REVISIONS: dict[str, int] = {"bench.attacks.refool": 2, "bench.defenses.nad": 2}
"""Module of an attack, a defence, a network or a data set -> revision, where it is not 1: `{"bench.attacks.wanet": 2}`.
Counts up when that one's results mean something else than before; `tests/test_canary.py` fails when its numbers move."""


def modules(node: Any) -> Iterable[str]:
    """The modules that the `_target_`s of a config name, however deep."""
    if isinstance(node, Mapping):
        if isinstance(target := node.get("_target_"), str):
            yield target.rpartition(".")[0]
        for value in node.values():
            yield from modules(value)


def counted_up(node: Any) -> dict[str, Any]:
    """What of it belongs into a key: nothing as long as all it names are at revision 1."""
    found = {name: REVISIONS[name] for name in sorted(set(modules(node))) if REVISIONS.get(name, 1) != 1}
    return {"revisions": found} if found else {}


def stated(config: Mapping[str, Any]) -> str:
    """For a record: `bench.attacks.wanet=1 bench.defenses.clp=1`, and of whatever else the config names."""
    return " ".join(f"{name}={REVISIONS.get(name, 1)}" for name in sorted(set(modules(config))))


def stale(record: Mapping[str, Any]) -> str | None:
    """Why a record no longer means what a new one would; None if it does.

    One that states no protocol or no revisions is from before there were any: all are at 1.
    """
    if (protocol := record.get("protocol", 1)) != PROTOCOL:
        return f"made by protocol {protocol}, this version has {PROTOCOL}: run the cell again"
    made = dict.fromkeys((f"bench.attacks.{record.get('attack')}", f"bench.defenses.{record.get('defense')}"), "1")
    made |= dict(word.rpartition("=")[::2] for word in str(record.get("revisions") or "").split())
    for name, number in made.items():
        if number != str(REVISIONS.get(name, 1)):
            return f"made by revision {number} of {name}, this version has {REVISIONS.get(name, 1)}: run the cell again"
    return None
