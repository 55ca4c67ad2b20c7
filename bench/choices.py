"""What may be chosen: what would be passed over in silence, or cancelled by something else that was said, is refused.

A group that may be left out is `optional` in conf/config.yaml, and of an optional one Hydra skips what it does not find: that is
how a preset is looked up, and it must not happen to a person's `experiment=rnp_tabel1`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.errors import UserError, nearest

OPTIONAL = ("then", "check", "experiment", "scale")
"""Groups of which nothing need be chosen; `none`, `null` and `~` all say so, in a sweep too (`then=none,ft`)."""

LOOKED_UP = ("preset", "experiment", "scale")
"""Groups whose files for one attack or defence are looked up by its name: preset@defense, experiment@_global_, ..."""

TRAINS = {"experiment": ("none",), "scale": ("none", "full")}
"""Groups that say how to train, but for these choices."""

Options = Callable[[str], Sequence[str]]
"""The choices of a group; none where there is no such group."""


def compose(make: Callable[[list[str]], Any], words: Iterable[str], options: Options) -> Any:
    """What `make` composes of these words, with Hydra's own node. Raises UserError for a choice that there is not."""
    said = spelt(words, options)
    cfg = make(said)
    runtime = cfg.hydra.runtime
    places = [
        Path(source.path) for source in runtime.config_sources if source.schema == "file"
    ]  # hydra.searchpath's too
    check(runtime.choices, places, {word.partition("=")[0].lstrip("+") for word in said})
    return cfg


def spelt(words: Iterable[str], options: Options) -> list[str]:
    """The words of a command line with `none` where nothing is to be chosen. Raises UserError for what cannot be chosen."""
    found = []
    for word in words:
        name, said, choice = word.partition("=")
        group = name.lstrip("+~")
        if said and group.partition("@")[0] in LOOKED_UP and "@" in group:
            raise UserError(f"{word} cannot be chosen: it is looked up by name; ~{group} leaves it out.")
        if group == "experiment" and ("," in choice or "(" in choice):
            raise UserError(f"{word}: one experiment per command, as each has attacks, defences and seeds of its own.")
        if group in OPTIONAL and (choice == "null" or (name.startswith("~") and not said)):
            word = f"{group}=none"
        elif choice == "null" and (known := options(group)):
            raise UserError(f"{word} is no choice: {nearest(choice, known)}")
        found.append(word)
    return found


def check(chosen: Mapping[str, Any], places: Sequence[Path], said: Iterable[str]) -> None:
    """Raises UserError for an optional group's choice that it has not, and for a training that another choice would undo.

    `chosen`: group -> choice, as composed. `places`: the folders of configs. `said`: the names on the command line.
    """
    for group in OPTIONAL:
        choice = chosen.get(group)
        if choice not in (None, "none") and not any((place / group / f"{choice}.yaml").is_file() for place in places):
            known = {path.stem for place in places for path in (place / group).glob("*.yaml")}
            raise UserError(f"{group}={choice} does not exist: {nearest(str(choice), known)}")
    for group, without in TRAINS.items():
        if "train" in said and (choice := chosen.get(group)) not in (None, *without):
            raise UserError(
                f"train={chosen.get('train')} would be overwritten by {group}={choice}, which says how to train: leave one of "
                "them out, or give single settings, such as train.epochs=50."
            )
