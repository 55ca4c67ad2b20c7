"""Reads a composed config (plain dicts): refuses what it does not know, says what identifies a cell and a backdoor."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

from analysis.operating_point import SENTENCES
from analysis.revisions import counted_up
from bench import PROTOCOL, trust
from bench.companions import fingerprint, picture
from bench.errors import UserError, nearest
from bench.files import digest
from bench.signatures import WORDS, find, nullable, takes

NODES = ("attack", "dataset", "model", "defense", "train", "tracker", "clean", "gate", "selection")
"""What a config must hold, each several settings."""

KNOWN: dict[str, dict[str, type | None]] = {
    "": dict.fromkeys((*NODES, "resident", "allow", "check"))
    | {
        "seed": int,
        "device": str,
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

NULL = {"threads", "save", "checkpoint", "check", "allow", "selection.stop", "gate.max_drop", "model.checkpoint"}
"""Those of them that may be null; what a class takes may be null where its signature says so."""

LEAST = {"threads": 1} | dict.fromkeys(
    ("seed", "checkpoint", "dataset.split_seed", "dataset.augment.shift", "gate.max_drop", "gate.min_asr", "clean.mix",
     "selection.max_drop", "selection.stop"), 0
)  # fmt: skip
DEVICE = re.compile(r"auto|spread|cpu|mps|cuda(:\d+)?")

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


def check(config: dict[str, Any], path: str = "", allow: Sequence[str] = ()) -> None:
    """Raises UserError for a setting that nothing would read, that is not of its type or range, or that is not ours to run."""
    if not path:
        trust.check(config, ["allow"])  # where `allow` came from was asked when the config was composed
        allow = trust.allowed(config)
        check_nameable(config)
    target = config.get("_target_")
    if target is not None and not (trust.permitted(target, allow) and trust.own(find(target, path), target, allow)):
        trust.refuse(f"{path}._target_", target)
    if target is not None:
        known = takes(target, path) | {"_target_": str} | BESIDES.get(path, {})
        _check_entries(config, path, known, nullable(target, path))
    elif path in KNOWN:
        _check_entries(config, path, KNOWN[path])
    for key, value in config.items():
        for node in _nodes(value):
            check(node, f"{path}.{key}" if path else str(key), allow)


def check_composed(config: Mapping[str, Any], typed: Sequence[str]) -> None:
    """Raises UserError for what a composed config (see `trust.check`) must not hold, before a cell is named by it."""
    trust.check(config, typed)
    check_nameable(config)


def check_nameable(config: Mapping[str, Any]) -> None:
    """Raises UserError for what keeps a cell from being named, or from having a folder. `config` may be unresolved."""
    for node in NODES:
        value = config.get(node)
        if not isinstance(value, Mapping) and not str(value).startswith("${"):
            said = "null" if value is None else value
            raise UserError(
                f"{node}={said} must be settings, as conf/ has them: change those, such as {node}.NAME=VALUE."
            )
    if (
        isinstance(workers := config.get("workers"), int) and workers < 1
    ):  # launchers read it before any cell is looked at
        raise UserError(f"workers={workers}: there must be at least one.")
    runs = config.get("runs")
    if not (isinstance(runs, str) and runs.strip()):
        raise UserError(f"runs={'null' if runs is None else runs} must be a folder, the one that results go to.")
    for path, value in trust.walk({key: value for key, value in config.items() if key != "hydra"}):
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{path}={value} must be finite.")


def check_own(config: Mapping[str, Any]) -> None:
    """As `check`, but only the bench's own settings: nothing is imported, so a finished cell can be asked as well."""
    for path, known in KNOWN.items():
        _check_entries(config[path] if path else config, path, known)


def _check_entries(
    config: Mapping[str, Any], path: str, known: Mapping[str, type | None], null: Container[str] = ()
) -> None:
    """The settings of one node. `null`: which of them may be null, besides those in `NULL`."""
    if path in KNOWN and path and (missing := sorted(known.keys() - config.keys())):
        raise UserError(
            f"{path}.{missing[0]} is missing: ~ leaves out what may be chosen, and a setting needs a value."
        )
    for key, value in config.items():
        here = f"{path}.{key}" if path else str(key)
        if key not in known:
            hint = nearest(str(key), known.keys() - {"_target_"})
            raise UserError(f"{here} is not a setting of {path or 'the bench'}: {hint}")
        kind = known[key]
        if value is None:
            if key not in null and here not in NULL:
                raise UserError(f"{here}=null must be {WORDS[kind] if kind else 'given a value'}.")
            continue
        if kind is not None and not _fits(value, kind):
            raise UserError(f"{here}={value} must be {WORDS[kind]}.")
        if here == "model.checkpoint" and not value.strip():
            raise UserError("model.checkpoint is empty: name the file with the weights, or leave it out.")
        if here in LEAST and value < LEAST[here]:
            raise UserError(f"{here}={value} must be at least {LEAST[here]}.")
        if here == "selection.rule" and value not in SENTENCES:
            raise UserError(f"selection.rule={value} is unknown: {nearest(str(value), SENTENCES)}")
        if here == "retry" and value not in ("failed", "never"):
            raise UserError(f"retry={value} is unknown: failed (cells that failed are tried again) or never.")
        if here == "device" and not DEVICE.fullmatch(value):
            raise UserError(f"device={value} cannot be used here: there is auto, cpu, cuda, cuda:1, mps and spread.")


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
    if launcher == "basic" and workers > 1:
        raise UserError(f"workers={workers} needs a launcher: launcher=joblib (or submitit_local, ray).")
    if launcher == "submitit_slurm" and workers > 1:
        raise UserError(f"workers={workers} is not read by Slurm: say hydra.launcher.array_parallelism={workers}.")


def _fits(value: Any, kind: type) -> bool:
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, kind)


def asked_for(target: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Those of the facts about the data that a network's own signature names."""
    names = takes(target, "")
    return {name: value for name, value in facts.items() if name in names}


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
