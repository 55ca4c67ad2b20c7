"""What a config may name. It chooses among the bench's own parts; it is not a way to run code, read secrets or write anywhere.

Hydra builds whatever a `_target_` names, a logging config or a launcher's options name code as well, and Hydra's own list of
what is forbidden says of itself that it is not a boundary. So here is a list of what is allowed. The command line may
say more: who types it can run anything anyway.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bench.errors import UserError

PARTS = {
    "bench.attacks", "bench.defenses", "bench.models", "bench.zoo", "bench.datasets", "bench.data", "bench.plan",
    "bench.pruning", "bench.training", "bench.tracking", "bench.board", "bench.relearn",
}  # fmt: skip
"""The modules (and packages of method files) whose own classes and functions a config may name."""

HYDRAS = {
    "callbacks": re.compile(r"bench\.sweep\.Watch"),
    "launcher": re.compile(
        r"hydra\._internal\.core_plugins\.basic_launcher\.BasicLauncher|hydra_plugins(\.\w+){2}\.\w+Launcher"
    ),
    "sweeper": re.compile(
        r"hydra\._internal\.core_plugins\.basic_sweeper\.BasicSweeper|hydra_plugins(\.\w+){2}\.\w+Sweeper|optuna\.samplers\.\w+"
    ),
}
"""What Hydra's own node may have built, by its part."""
LOGGING = {
    "logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter",
    "colorlog.ColoredFormatter", "ext://sys.stdout", "ext://sys.stderr",
}  # fmt: skip
"""The classes and objects that Hydra's logging configs are made of."""

SECRET = re.compile(r"(?i)(.*_)?(tokens?|secrets?|passw(or)?ds?|passphrase|credentials?|(api|access|private)?_?key)")
SHELL = ("setup", "additional_parameters", "srun_args", "ray.init.runtime_env")
TYPED = {"allow", "hydra.searchpath", "hydra.job.env_set", "hydra.job.env_copy"}
TYPED |= {f"hydra.launcher.{key}" for key in SHELL}
"""What runs commands, imports packages or sets the environment: only the command line may, no file."""

RESOLVERS = ("oc.env", "oc.create", "oc.decode")
"""What OmegaConf offers besides references: the environment's variables, and new config out of text."""


def check(config: Mapping[str, Any], typed: Sequence[str]) -> None:
    """Raises UserError for what a composed config (plain data, unresolved, with Hydra's own node) must not hold.

    `typed`: the words of the command line.
    """
    allow = allowed(config)
    for path, value in walk(config):
        keys = path.split(".")
        if SECRET.fullmatch(keys[-1]):
            raise UserError(
                f"{path} looks like a secret, and settings are written to results and logs: "
                "keep it out of them (W&B reads WANDB_API_KEY from the environment, or netrc)."
            )
        if path in TYPED and value and not on_command_line(path, typed):
            raise UserError(f"{path} is set in a config file; it is only taken from the command line.")
        if keys[-1] == "_target_":
            known = HYDRAS.get(keys[1]) if keys[0] == "hydra" else None
            fine = bool(known and known.fullmatch(str(value))) if keys[0] == "hydra" else permitted(value, allow)
            if not fine and not named(value, allow):
                refuse(path, value)
        if keys[0] == "hydra" and len(keys) > 1:
            check_hydra(keys, path, value)


def allowed(config: Mapping[str, Any]) -> list[str]:
    """The packages that were allowed by name."""
    allow = config.get("allow") or []
    if not isinstance(allow, str | list | tuple):
        raise UserError(f"allow={allow} must be names of packages: allow=[mypackage].")
    return [allow] if isinstance(allow, str) else list(allow)


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every mapping's entry, at any depth and inside lists."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            here = f"{path}.{key}" if path else str(key)
            yield here, value
            yield from walk(value, here)
    elif isinstance(node, list | tuple):
        for item in node:
            yield from walk(item, path)


def check_hydra(keys: Sequence[str], path: str, value: Any) -> None:
    if keys[1] in ("job_logging", "hydra_logging"):
        if keys[-1] in ("()", "class", "stream") and value not in LOGGING:
            raise UserError(f"{path}={value} is not one of the usual parts of a logging config.")
        if isinstance(value, str) and "://" in value and value not in LOGGING:
            raise UserError(f"{path}={value} is not one of the usual parts of a logging config.")
        if keys[-1] == "filename" and not re.fullmatch(r"\$\{hydra\.runtime\.output_dir\}/[\w.-]+", str(value)):
            raise UserError(
                f"{path}={value}: a log is a file in the cell's own folder, ${{hydra.runtime.output_dir}}/NAME."
            )
    elif keys[1] == "launcher" and isinstance(value, str) and not value.isprintable():
        raise UserError(f"{path} holds a line break: it would add lines to the job's script.")


def on_command_line(path: str, typed: Sequence[str]) -> bool:
    words = [word.lstrip("+~").partition("=")[0].partition("@")[0] for word in typed]
    return any(word == path or word.startswith(f"{path}.") for word in words)


def permitted(target: Any, allow: Sequence[str]) -> bool:
    """Whether a config may have the class or function of that name built, as far as the name tells."""
    if not isinstance(target, str):
        return False
    module, _, name = target.rpartition(".")
    package = module.rpartition(".")[0]
    own = module in PARTS or (package in ("bench.attacks", "bench.defenses"))
    return (own and name.isidentifier() and not name.startswith("_")) or named(target, allow)


def named(target: Any, allow: Sequence[str]) -> bool:
    """Whether it belongs to a package (or module) that was allowed by name."""
    return isinstance(target, str) and "${" not in target and any(target.startswith(f"{name}.") for name in allow)


def own(found: Any, target: str, allow: Sequence[str]) -> bool:
    """Whether what was found under a permitted name was made there, and is not something that the module imported."""
    home = getattr(found, "__module__", None) or ""
    return named(target, allow) or home in PARTS or home.rpartition(".")[0] in ("bench.attacks", "bench.defenses")


def refuse(path: str, target: Any) -> None:
    name = str(target).partition(".")[0]
    hint = "the bench's own parts are in conf/."
    if name.isidentifier() and name != "bench":
        hint = f"if you trust that code, say so on the command line: allow=[{name}]"
    raise UserError(f"{path}={target} is nothing that a config may name: {hint}")


def forbid(register: Callable[..., None]) -> None:
    """Puts `no_resolver` where each of `RESOLVERS` was; `register(name, function, replace=True)` does that to one."""
    for resolver in RESOLVERS:
        register(resolver, no_resolver, replace=True)


def no_resolver(*_: Any) -> None:
    """Stands where `RESOLVERS` were."""
    raise UserError(
        f"{', '.join(RESOLVERS)} are not available in a config: a resolved value would end up in records and logs. "
        "Write it on the command line, where the shell fills in $NAME."
    )
