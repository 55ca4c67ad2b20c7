"""The physically smaller network: channels that pruning left without effect are taken out, and it answers as before.

On disk it is a folder: model.safetensors, and layers.json, which says for each layer that shrank which of its channels are
left. docs/api.md shows how to build it again, with `load` or in plain PyTorch.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as pack
from torch import Tensor, nn

from bench.errors import UserError
from bench.files import new_folder
from bench.flow import follow


@torch.no_grad()
def dense(model: nn.Module, shape: tuple[int, int, int]) -> tuple[nn.Module, dict[str, Any]]:
    """(a smaller copy of the model, in eval mode; what became of it), for images of (channels, height, width).

    The second: `channels` made by convolutions and linear layers and `parameters`, both as [before, after], and `layers`:
    name -> {"in": [...], "out": [...], "bias": ...}, the channels left (null: all) and whether the layer has a bias now.
    Logits are the same up to rounding. Raises UserError for a model whose data flow cannot be followed.
    """
    small = copy.deepcopy(model).eval()
    flow = follow(small, shape)
    gone, layers = flow.gone(), {}
    for name, layer in small.named_modules():
        ids = {"in": flow.read.get(name), "out": flow.written.get(name)}
        left = {
            side: None if i is None or not gone[i].any() else (~gone[i]).nonzero()[0].tolist()
            for side, i in ids.items()
        }
        if left["in"] is not None:
            _fold(layer, flow.numbers[name], gone[ids["in"]].nonzero()[0].tolist())
        if left["in"] is not None or left["out"] is not None:
            layers[name] = {**left, "bias": getattr(layer, "bias", None) is not None}
            _cut(layer, left["in"], left["out"])
    return small, {
        "channels": [flow.count, int((~gone).sum())],
        "parameters": [sum(p.numel() for p in net.parameters()) for net in (model, small)],
        "layers": layers,
    }


def _fold(layer: Any, numbers: Tensor, gone: list[int]) -> None:
    """Puts what the input channels `gone` always add to the layer's output into its bias."""
    weight = layer.weight.double()
    added = weight.reshape(*weight.shape[:2], -1).sum(2)[:, gone] @ numbers.nan_to_num()[gone]
    if added.any():
        before = 0 if layer.bias is None else layer.bias.double()
        layer.bias = nn.Parameter((added + before).to(layer.weight.dtype))


def _cut(layer: Any, inside: Sequence[int] | None, outside: Sequence[int] | None) -> None:
    """Leaves a BatchNorm, a convolution or a linear layer only these input and output channels, in place (None: all)."""
    for name, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if tensor.ndim > 0 and outside is not None:
            tensor = tensor[list(outside)]
        if tensor.ndim > 1 and inside is not None:
            tensor = tensor[:, list(inside)]
        setattr(layer, name, nn.Parameter(tensor.clone()) if name in layer._parameters else tensor.clone())
    if outside is not None:
        for word in ("out_channels", "out_features", "num_features"):
            if hasattr(layer, word):
                setattr(layer, word, len(outside))
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:  # depthwise
            layer.in_channels = layer.groups = len(outside)
    if inside is not None:
        setattr(layer, "in_features" if isinstance(layer, nn.Linear) else "in_channels", len(inside))


def fits(model: nn.Module, shape: tuple[int, int, int], wanted: bool) -> None:
    """Raises UserError, if a dense form is wanted, for a model whose data flow cannot be followed."""
    if wanted:
        follow(model.eval(), shape)


def leave(folder: Path, model: nn.Module, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Writes the dense form of the model, in place of one of an earlier run of this cell, and returns columns of the record.

    `dense_channels` and `dense_parameters`, and the same with `_before`.
    """
    small, facts = dense(model, shape)
    shutil.rmtree(folder, ignore_errors=True)
    save(folder, small, facts)
    return {
        f"dense_{name}{when}": count
        for name in ("channels", "parameters")
        for when, count in zip(("_before", ""), facts[name], strict=True)
    }


def save(folder: Path, small: nn.Module, facts: dict[str, Any]) -> None:
    """Writes what `dense` returned, all of it or nothing. Raises OSError, also if the folder is there."""
    with new_folder(folder) as new:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in small.state_dict().items()}
        (new / "model.safetensors").write_bytes(pack(tensors))
        (new / "layers.json").write_text(json.dumps(facts, indent=1) + "\n")


@torch.no_grad()
def load(folder: str | Path, model: nn.Module) -> nn.Module:
    """Makes of `model`, the network before it shrank (its weights do not matter), the one stored in `folder`; in eval mode.

    In place. Raises UserError if what is stored there does not fit it.
    """
    folder = Path(folder)
    try:
        for name, left in json.loads((folder / "layers.json").read_text())["layers"].items():
            layer: Any = model.get_submodule(name)
            if left["bias"] and layer.bias is None:
                layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
            _cut(layer, left["in"], left["out"])
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        RuntimeError,
        SafetensorError,
    ) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{folder} does not hold a dense form of this {type(model).__name__}: {reason}") from error
    return model.eval()
