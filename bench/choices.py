"""What may be chosen: a choice that is no file is refused, also where Hydra itself would pass over it in silence.

A group that may be left out is `optional` in conf/config.yaml, and of an optional one Hydra skips what it does not find: that is
how a preset is looked up, and it must not happen to a person's `experiment=rnp_tabel1`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.errors import UserError, nearest

OPTIONAL = ("then", "check", "experiment", "scale")
"""Groups of which nothing need be chosen; `none` and `null` both say so, in a sweep too (`then=none,ft`)."""

Options = Callable[[str], Sequence[str]]
"""The choices of a group; none where there is no such group."""


def compose(make: Callable[[list[str]], Any], words: Iterable[str], options: Options) -> Any:
    """What `make` composes of these words, with Hydra's own node. Raises UserError for a choice that there is not."""
    cfg = make(spelt(words, options))
    check(cfg.hydra.runtime.choices, options)
    return cfg


def spelt(words: Iterable[str], options: Options) -> list[str]:
    """The words of a command line with `none` for the `null` of an optional group. Raises UserError for that of another."""
    found = []
    for word in words:
        group, _, choice = word.partition("=")
        if choice == "null" and group in OPTIONAL:
            word = f"{group}=none"
        elif choice == "null" and (known := options(group)):
            raise UserError(f"{word} is no choice: {nearest(choice, known)}")
        found.append(word)
    return found


def check(chosen: Mapping[str, Any], options: Options) -> None:
    """Raises UserError if an optional group's choice is none that it has. `chosen`: group -> choice, as composed."""
    for group in OPTIONAL:
        choice = chosen.get(group)
        if choice not in (None, "none") and choice not in (known := options(group)):
            raise UserError(f"{group}={choice} does not exist: {nearest(str(choice), known)}")
