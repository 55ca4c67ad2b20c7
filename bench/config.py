"""Reads a composed config (plain dicts): refuses what it does not know, and says what identifies a cell and a backdoor."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch

from bench import PROTOCOL
from bench.errors import UserError, nearest
from bench.files import digest

KNOWN = {
    "": {"attack", "dataset", "model", "defense", "train", "tracker", "clean", "selection", "seed", "device", "threads",
         "runs"},
    "clean": {"tune", "select"},
    "selection": {"rule", "max_drop", "stop"},
}  # fmt: skip
"""The keys of the nodes that are not built from a class; all others are checked against their class's signature."""

FILLED_IN = {"shape", "num_classes", "channels"}
"""What run.py passes to attacks and models itself, from the data set."""

HOW = {"device", "threads", "tracker", "runs"}
"""How and where a cell runs: recorded, but part of no identity."""

WHERE = {"root", "cache", "download", "workers"}
"""Where a data set lies. The data's own digest stands for it in a backdoor's key."""


def check(config: dict[str, Any], path: str = "") -> None:
    """Raises UserError for the first key that nothing would read, with the nearest right one."""
    target = config.get("_target_")
    known = KNOWN.get(path) if target is None else parameters(target, path) | {"_target_"}
    for key, value in config.items():
        here = f"{path}.{key}" if path else str(key)
        if known is not None and key not in known:
            raise UserError(f"{here} is not a setting of {path or 'the bench'}: {nearest(str(key), known - {'_target_'})}")
        if isinstance(value, dict):
            check(value, here)


def parameters(target: str, path: str) -> set[str]:
    """The names that the class or function `target` takes; `**kwargs` are followed up to the base classes."""
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{path}._target_={target} cannot be imported: {error}") from error
    takes: set[str] = set()
    for part in inspect.getmro(found) if inspect.isclass(found) else (found,):
        if inspect.isclass(part) and "__init__" not in vars(part):
            continue
        signature = inspect.signature(part)
        takes |= {n for n, p in signature.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if all(p.kind != p.VAR_KEYWORD for p in signature.parameters.values()):
            break
    return takes - FILLED_IN


def device(name: str, threads: int | None) -> torch.device:
    """The device to use; `auto` takes a GPU if there is one. Sets the number of CPU threads."""
    if threads is not None:
        torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} cannot be used here: {str(error).splitlines()[0]}") from error
    return found


def run_id(config: dict[str, Any]) -> str:
    """The identity of a cell: everything in the composed config except how and where it runs."""
    return digest({"protocol": PROTOCOL} | {k: v for k, v in config.items() if k not in HOW and k != "hydra"})[:8]


def backdoor_material(config: dict[str, Any], data_digest: str) -> dict[str, Any]:
    """What shapes a backdoored model: data, network, attack and training. Not the defence, not the paths."""
    dataset = {key: value for key, value in config["dataset"].items() if key not in WHERE}
    return {"data": data_digest, "dataset": dataset} | {key: config[key] for key in ("model", "attack", "train")}
