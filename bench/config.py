"""Reads a composed config (plain dicts): refuses what it does not know, says what identifies a cell and a backdoor."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

from analysis.operating_point import SENTENCES
from analysis.revisions import counted_up
from bench import PROTOCOL, trust
from bench.companions import fingerprint, picture
from bench.errors import UserError, nearest
from bench.files import digest

KNOWN: dict[str, dict[str, type | None]] = {
    "": dict.fromkeys(
        (
            "attack",
            "dataset",
            "model",
            "defense",
            "train",
            "tracker",
            "clean",
            "gate",
            "selection",
            "device",
            "resident",
            "allow",
            "check",
        )
    )
    | {
        "seed": int,
        "threads": int,
        "workers": int,
        "retry": str,
        "runs": str,
        "checkpoint": float,
        "make_dense": bool,
        "save": bool,
    },
    "clean": {"tune": int, "select": int, "mix": int, "source": str, "balance": str},
    "gate": {"min_asr": float, "max_drop": float},
    "selection": {"rule": str, "max_drop": float, "stop": float},
}
"""The settings of the nodes that are not built from a class, with their types; others are checked against the class."""

FILLED_IN = {"attack": {"shape", "num_classes", "checkpoint"}, "model": {"num_classes", "channels", "size"}}
"""What run.py passes to attacks and models itself, from the data set."""

BESIDES: dict[str, dict[str, type | None]] = {"model": {"checkpoint": str}}
"""Settings of a node that are not for its class: `model.checkpoint`, a file with the network's weights."""

HOW = {"device", "resident", "threads", "workers", "retry", "allow", "tracker", "runs", "checkpoint", "save"}
"""How and where a cell runs: recorded, but part of no identity."""

LATER: dict[str, Any] = {"make_dense": False}
"""Settings that stored cells are older than. At these defaults they are no part of the identity, as if they were not there."""

CARRIED_OUT = {"compile", "fused"}
"""How a `Plan` is carried out, wherever there is one: as `HOW`."""

WHERE = {"root", "cache", "download"}
"""Where a data set lies. The data's own digest stands for it in a backdoor's key."""

DEFAULT = {"cache": "runs/cache", "download": False}
"""What an identity says of these settings of a data set, whatever they are: they change nothing in the images."""

WORDS: dict[type, str] = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}


def check(config: dict[str, Any], path: str = "", allow: Sequence[str] = ()) -> None:
    """Raises UserError for the first setting that nothing would read, that is not of its type, or that is not ours to run."""
    if not path:
        trust.check(config, ["allow"])  # where `allow` came from was asked when the config was composed
        allow = trust.allowed(config)
    target = config.get("_target_")
    if target is not None and not (trust.permitted(target, allow) and trust.own(_find(target, path), target, allow)):
        trust.refuse(f"{path}._target_", target)
    known = KNOWN.get(path) if target is None else takes(target, path) | {"_target_": str} | BESIDES.get(path, {})
    for key, value in config.items():
        here = f"{path}.{key}" if path else str(key)
        if known is not None and key not in known:
            hint = nearest(str(key), known.keys() - {"_target_"})
            raise UserError(f"{here} is not a setting of {path or 'the bench'}: {hint}")
        kind = known.get(key) if known else None
        if kind is not None and value is not None and not _fits(value, kind):
            raise UserError(f"{here}={value} must be {WORDS[kind]}.")
        if here == "selection.rule" and value not in SENTENCES:
            raise UserError(f"selection.rule={value} is unknown: {nearest(str(value), SENTENCES)}")
        if here == "retry" and value not in ("failed", "never"):
            raise UserError(f"retry={value} is unknown: failed (cells that failed are tried again) or never.")
        for node in _nodes(value):
            check(node, here, allow)


def settle(config: dict[str, Any], put: Callable[[str, str], None]) -> None:
    """Puts what holds on this machine where `precision` is auto, since numbers depend on it; each is handed to `put` as well.

    Not when a sweep is composed, but when a cell is named: its job may run elsewhere.
    """
    for path, value in list(trust.walk(config)):
        *above, key = path.split(".")
        if (key, value) == ("precision", "auto"):
            from bench import machine  # seconds, that a finished cell without such a setting does not need

            node = reduce(getitem, above, config)
            node[key] = machine.precision(config["device"])
            put(path, node[key])


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """The nodes below: the value itself, or those in a list."""
    if isinstance(value, dict):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _nodes(item)


def check_workers(workers: int, launcher: str) -> None:
    """Raises UserError where `workers` would be read by nobody."""
    if workers < 1:
        raise UserError(f"workers={workers}: there must be at least one.")
    if launcher == "basic" and workers > 1:
        raise UserError(f"workers={workers} needs a launcher: launcher=joblib (or submitit_local, ray).")


def _fits(value: Any, kind: type) -> bool:
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, kind)


def _find(target: str, path: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{path}._target_={target} cannot be imported: {error}") from error
    return found


def takes(target: str, path: str) -> dict[str, type | None]:
    """The settings that the class or function `target` takes, with their types where they are plain ones.

    `**kwargs` are followed up to the base classes. Raises UserError if the target cannot be imported.
    """
    found = _find(target, path)
    settings: dict[str, type | None] = {}
    for part in inspect.getmro(found) if inspect.isclass(found) else (found,):
        if inspect.isclass(part) and "__init__" not in vars(part):
            continue
        parameters = inspect.signature(part).parameters
        for parameter in parameters.values():
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                settings[parameter.name] = settings.get(parameter.name) or _kind(parameter)
        if all(p.kind != p.VAR_KEYWORD for p in parameters.values()):
            break
    return {name: kind for name, kind in settings.items() if name not in FILLED_IN.get(path, ())}


def asked_for(target: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Those of the facts about the data that a network's own signature names."""
    names = takes(target, "")
    return {name: value for name, value in facts.items() if name in names}


def _kind(parameter: inspect.Parameter) -> type | None:
    """int, float, str or bool, from the annotation (`int | None` counts as int) or else from the default value."""
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return type(parameter.default) if type(parameter.default) in WORDS else None
    word = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return {kind.__name__: kind for kind in WORDS}.get(word.partition("|")[0].strip())


def run_id(config: dict[str, Any]) -> str:
    """The identity of a cell: everything in the composed config except how and where it runs."""
    dataset = {key: DEFAULT.get(key, value) for key, value in config["dataset"].items()}
    config = config | {"dataset": dataset, "model": model_material(config)}
    material = {key: value for key, value in config.items() if key not in HOW and LATER.get(key, ...) != value}
    return digest({"protocol": PROTOCOL} | _lasting(material) | counted_up(material) | pictures(config))[:8]


def _lasting(node: dict[str, Any]) -> dict[str, Any]:
    """The node without what says how a `Plan` is carried out."""
    left = CARRIED_OUT if node.get("_target_") == "bench.training.Plan" else set()
    return {k: _lasting(v) if isinstance(v, dict) else v for k, v in node.items() if k not in left}


def weights(config: Mapping[str, Any]) -> str | None:
    """The file whose weights the network gets; None: it is trained here."""
    file = config["model"].get("checkpoint")
    return None if file is None else str(file)


def saves(config: Mapping[str, Any]) -> bool:
    """Whether the purified weights are written: as `save` says, else for a stranger's model, which is there to be purified, and
    beside the dense network."""
    save = config.get("save")
    return bool(stranger(config) or config.get("make_dense") if save is None else save)


def stranger(config: Mapping[str, Any]) -> bool:
    """Whether nobody knows the trigger (attack=unknown)."""
    return str(config["attack"].get("_target_", "")).endswith(".Unknown")


def network(config: Mapping[str, Any]) -> dict[str, Any]:
    """The network alone, without the file whose weights it may get."""
    return {key: value for key, value in config["model"].items() if key != "checkpoint"}


def model_material(config: Mapping[str, Any]) -> dict[str, Any]:
    """The network in an identity: with what is in a checkpoint, not where it lies; without one as if there were no such key."""
    file = weights(config)
    return network(config) | ({"checkpoint": fingerprint(file, alone=stranger(config))} if file else {})


def pictures(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is in the picture, or the folder of them, that the attack's settings name; nothing where none does.

    Beside the path, which a card's reader needs. A pattern's name is a bare word, whatever lies in this folder.
    """
    named = {key: str(config["attack"].get(key) or "") for key in ("pattern", "folder")}
    prints = {k: picture(path) for k, path in named.items() if path and not (k == "pattern" and path.isidentifier())}
    found = {key: mark for key, mark in prints.items() if mark}
    return {"pictures": found} if found else {}


def clean_twin(config: dict[str, Any]) -> dict[str, Any]:
    """The same config without an attack, as `attack=none` composes it."""
    return config | {"model": network(config), "attack": {"_target_": "bench.attacks.none.NoAttack", "target": 0}}


def backdoor_material(config: dict[str, Any], data_digest: str) -> dict[str, Any]:
    """What shapes a backdoored model: data, network, attack and training. Not the defence, not the paths."""
    dataset = {key: value for key, value in config["dataset"].items() if key not in WHERE}
    config = config | {"model": model_material(config)}
    parts = {"dataset": dataset} | {key: config[key] for key in ("model", "attack", "train")}
    return {"data": data_digest} | _lasting(parts) | counted_up(parts) | pictures(config)
