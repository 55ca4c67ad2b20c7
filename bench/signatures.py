"""What a class or a function takes, as its signature says it: the settings of a node with a `_target_`, their types."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

from bench.errors import UserError

FILLED_IN = {"attack": {"shape", "num_classes", "checkpoint"}, "model": {"num_classes", "channels", "size"}}
"""What run.py passes to attacks and models itself, from the data set."""

WORDS: dict[type, str] = {
    int: "a whole number", float: "a number", str: "a word", bool: "true or false", list: "a list, as in [1,2]",
}  # fmt: skip
LISTS = ("Sequence", "list", "tuple")


def find(target: str, path: str) -> Any:
    """The class or function of that name. Raises UserError if it cannot be imported."""
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
    kinds = {name: [_kind(one) for one in found] for name, found in _parameters(target, path).items()}
    return {
        name: next(filter(None, found), None) for name, found in kinds.items() if name not in FILLED_IN.get(path, ())
    }


def nullable(target: str, path: str) -> set[str]:
    """Those of them that may be null: by their default or annotation, or because the signature says nothing of either."""
    return {name for name, found in _parameters(target, path).items() if any(map(_null, found))}


def _parameters(target: str, path: str) -> dict[str, list[inspect.Parameter]]:
    """Name -> the class's or function's own parameter, and those of base classes that `**kwargs` lead to."""
    found = find(target, path)
    settings: dict[str, list[inspect.Parameter]] = {}
    for part in inspect.getmro(found) if inspect.isclass(found) else (found,):
        if inspect.isclass(part) and "__init__" not in vars(part):
            continue
        parameters = inspect.signature(part).parameters
        for parameter in parameters.values():
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                settings.setdefault(parameter.name, []).append(parameter)
        if all(p.kind != p.VAR_KEYWORD for p in parameters.values()):
            break
    return settings


def _kind(parameter: inspect.Parameter) -> type | None:
    """int, float, str, bool or list, from the annotation (`int | None` counts as int) or else from the default value."""
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return type(parameter.default) if type(parameter.default) in WORDS else None
    word = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    word = word.partition("|")[0].partition("[")[0].strip()
    return {kind.__name__: kind for kind in WORDS}.get("list" if word in LISTS else word)


def _null(parameter: inspect.Parameter) -> bool:
    annotation, default = parameter.annotation, parameter.default
    if annotation is parameter.empty:
        return default is parameter.empty or default is None
    return default is None or bool(re.search(r"\b(None|Optional|Any|object)\b", str(annotation)))
