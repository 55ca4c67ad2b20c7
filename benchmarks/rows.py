"""What a row of the table is, and the registry of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.clock import Ratio, Times, Work, interleave, load
from benchmarks.setting import Setting


@dataclass(frozen=True)
class Goal:
    """At least so many times as fast as published, of that variant; or at least so much of a `fact` that the check finds."""

    variant: str
    least: float
    fact: str = "ratio"


Findings = str | tuple[str, Mapping[str, float]]
"""What was compared, in a sentence, and numbers that came of it."""


@dataclass
class Row:
    """One comparison. The first variant is the official procedure. `check(results)` raises AssertionError if outputs disagree.

    It returns what was compared, in a sentence. `work`: how much was done, in words; `bound`: what keeps the ratio from growing.
    """

    title: str
    work: str
    variants: Mapping[str, Work]
    check: Callable[[Mapping[str, Any]], Findings]
    goals: tuple[Goal, ...] = ()
    bound: str = ""
    warm_up: bool = True
    repeats: int | None = None
    units: Mapping[str, float] = field(default_factory=dict)  # how many of what one call handles, for rates


NO_BF16 = "bfloat16 left out: this processor only imitates it"

ROWS: dict[str, Callable[[Setting], Row]] = {}


def row(make: Callable[[Setting], Row]) -> Callable[[Setting], Row]:
    """Registers a row under its function's name."""
    ROWS[make.__name__.replace("_", "-")] = make
    return make


def measure(name: str, setting: Setting) -> dict[str, Any]:
    """Runs a row and returns its record. What disagrees is recorded, not raised: the other rows still run."""
    made = ROWS[name](setting)
    before = load()
    times, results = interleave(
        made.variants, made.repeats or setting.size.repeats, made.warm_up, setting.size.patience
    )
    facts: Mapping[str, float] = {}
    try:
        agreed, found = True, made.check(results)
        sentence, facts = (found, {}) if isinstance(found, str) else found
    except AssertionError as error:
        agreed, sentence = False, str(error)
    about = {"name": name, "agrees": agreed, "agreement": sentence, "load": [before, load()]}
    return about | record(made, times, facts)


def record(made: Row, times: Mapping[str, Times], facts: Mapping[str, float]) -> dict[str, Any]:
    """As plain data. A goal whose fact could not be found, because outputs disagree, is missed; one of a variant that this
    machine has no use for is left out.
    """
    first = next(iter(made.variants))
    ratios = {name: Ratio.of(times[first], t) for name, t in times.items() if name != first}
    return {
        "title": made.title,
        "work": made.work,
        "times": {name: t.plain() for name, t in times.items()},
        "rates": {name: {u: float(f"{n / t.median:.4g}") for u, n in made.units.items()} for name, t in times.items()},
        "ratios": {name: ratio.plain() for name, ratio in ratios.items()},
        "facts": {name: float(f"{value:.4g}") for name, value in facts.items()},
        "goals": [
            vars(g) | {"met": (ratios[g.variant].median if g.fact == "ratio" else facts.get(g.fact, 0.0)) >= g.least}
            for g in made.goals
            if g.variant in ratios
        ],
        "bound": made.bound,
    }
