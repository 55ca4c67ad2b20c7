"""Puts weights into a network by their names: the bench's own, or what other projects call the same layers. Never by position."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bench.errors import UserError

WRAPPERS = ("module.", "_orig_mod.")
"""What nn.DataParallel and torch.compile put before every name."""
BESIDES = "num_batches_tracked"
"""Counters that files of old torch lack; nothing in the bench reads them."""
ALIASES = (
    # EP's and CLP's ResNet, where a stem and a branch are numbered lists
    (r"^conv1\.0\.", "conv1."),
    (r"^conv1\.1\.", "bn1."),
    (r"^conv([2-5])_x\.", lambda found: f"layer{int(found[1]) - 1}."),
    (r"\bresidual_function\.([036])\.", lambda found: f"conv{int(found[1]) // 3 + 1}."),
    (r"\bresidual_function\.([147])\.", lambda found: f"bn{int(found[1]) // 3 + 1}."),
    # torchvision's and others' words
    (r"\bdownsample\.", "shortcut."),
    (r"\bconvShortcut\.", "shortcut.0."),
    (r"^(fc|classifier)\.(?=weight$|bias$)", "linear."),
)
"""The same layer in other words; looked up on both sides, so it does not matter which are the network's."""


def pour(weights: Mapping[str, Tensor], network: nn.Module, file: str, width: int | None = None) -> None:
    """Copies the weights into the network, in place.

    `file`: what to call the source. `width`: the network's own setting of that name, if it has one, for a hint. Raises
    UserError if a layer is missing, left over, or of another shape, and then changes nothing.
    """
    own: dict[str, Tensor] = network.state_dict()
    renamed = fitted(list(weights), list(own))
    given = {renamed[name]: tensor for name, tensor in weights.items() if renamed.get(name)}
    missing = [name for name in own if name not in given and not name.endswith(BESIDES)]
    extra = [name for name in weights if renamed.get(name) not in own and not name.endswith(BESIDES)]
    if missing or extra:
        raise UserError(
            f"{file} is of another network than this {type(network).__name__}: {_some('it lacks', missing)}"
            f"{' and ' if missing and extra else ''}{_some('it has', extra)}; choose the model=... it was made with."
        )
    for name, tensor in given.items():
        if name in own and tensor.shape != own[name].shape:
            raise UserError(f"{file} does not fit: {_shapes(name, tensor, own, width)}")
        if not tensor.is_floating_point() and own.get(name, tensor).is_floating_point():
            raise UserError(f"{file} holds {name} as {tensor.dtype}, not as floating point numbers.")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{file} holds values in {name} that are not finite.")
        if name.endswith("running_var") and (tensor < 0).any():
            raise UserError(f"{file} holds values in {name} below 0, which no variance is.")
    with torch.no_grad():
        for name, tensor in given.items():
            if name in own:
                own[name].copy_(tensor)


def fitted(names: list[str], own: list[str]) -> dict[str, str]:
    """What each name in a file is called in the network; names that it does not have are left out."""
    plain = {name: name for name in names}
    for wrapper in WRAPPERS * 2:
        if all(short.startswith(wrapper) for short in plain.values()):
            plain = {name: short.removeprefix(wrapper) for name, short in plain.items()}
    known = set(own)
    if set(plain.values()) >= {name for name in own if not name.endswith(BESIDES)}:
        return {name: short for name, short in plain.items() if short in known}
    counted = groups(list(plain.values()))
    ours: dict[str, list[str]] = {}
    theirs: dict[str, list[str]] = {}
    for name in own:
        ours.setdefault(common(name), []).append(name)
    for name, short in plain.items():
        theirs.setdefault(common(counted.get(short, short)), []).append(name)
    return {  # a word that would stand for two layers stands for none
        names[0]: ours[word][0] for word, names in theirs.items() if len(names) == 1 and len(ours.get(word, ())) == 1
    }


def common(name: str) -> str:
    for pattern, word in ALIASES:
        name = re.sub(pattern, word, name)
    return name


def groups(names: list[str]) -> dict[str, str]:
    """The blocks of a WideResNet counted through, where a file counts them in each of the three groups."""
    found = {name: match for name in names if (match := re.match(r"block([123])\.layer\.(\d+)\.", name))}
    each = 1 + max((int(match[2]) for match in found.values()), default=0)
    return {
        name: f"blocks.{(int(match[1]) - 1) * each + int(match[2])}.{name[match.end() :]}"
        for name, match in found.items()
    }


def _some(what: str, names: list[str]) -> str:
    return f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}" if names else ""


def _shapes(name: str, tensor: Tensor, own: Mapping[str, Tensor], width: int | None) -> str:
    file, ours = ("x".join(map(str, t.shape)) or "one number" for t in (tensor, own[name]))
    said = f"{name} is {file} in the file and {ours} in the network"
    weights = [n for n, t in own.items() if t.ndim > 1]
    if name == weights[0] and tensor.ndim == 4 and tensor.shape[1] != own[name].shape[1]:
        return f"{said}: it takes images of {tensor.shape[1]} channels; choose the data set it was made for."
    if name.rpartition(".")[0] == weights[-1].rpartition(".")[0] and tensor.shape[1:] == own[name].shape[1:]:
        return f"{said}: it tells {tensor.shape[0]} classes apart; choose the data set it was made for."
    if width is not None and name == weights[0] and tensor.shape[1:] == own[name].shape[1:]:
        return f"{said}: set model.width={width * tensor.shape[0] // own[name].shape[0]}."
    return f"{said}: set the model's width, layers or options as they were, or choose another model."
