"""Which channels of a network can be taken out without changing what it answers, found by following its data flow.

torch.fx writes the network down as a graph. Along it goes, for every channel, an id given by the convolution or linear layer
that makes it, and the number that it holds if that is the same at every place of every image. Adding or multiplying two
feature maps ties their channels together. A channel can go when whatever reads it, or a channel tied to it, finds a
number there that it can do without: zero, or one that a layer without zero padding can put into its bias. What is not
understood stays, with all that goes into it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.nn.utils import parametrize

from bench.errors import UserError

ELEMENTWISE = {  # in eval mode
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh,
    nn.Mish, nn.Softplus, nn.Identity, nn.Dropout, nn.Dropout2d, F.relu, F.relu6, F.hardtanh, F.leaky_relu, F.elu, F.silu,
    F.gelu, F.hardswish, F.hardsigmoid, F.mish, torch.relu, torch.sigmoid, torch.tanh,
    "relu", "relu_", "sigmoid", "tanh", "contiguous", "clone",
}  # fmt: skip
POOLING = {nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.AvgPool2d, F.max_pool2d, F.adaptive_max_pool2d,
           F.adaptive_avg_pool2d, F.avg_pool2d}  # fmt: skip
MEAN = {torch.mean, "mean"}
FLATTENING = {nn.Flatten, torch.flatten, "flatten", "view", "reshape"}
CATENATING = {torch.cat, torch.concat}
ADDING = {operator.add, operator.iadd, torch.add, "add", "add_"}
TIMES = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
NORMS = {nn.BatchNorm1d, nn.BatchNorm2d}


@dataclass(frozen=True)
class Channels:
    """Of one feature map [N, C, ...]: each channel's id, and the number that it holds everywhere (NaN: none we know of)."""

    ids: np.ndarray
    value: Tensor


@dataclass
class Flow:
    """What the walk finds: ids of the channels that a layer reads and writes, and the numbers (or NaN) it reads, by layer."""

    read: dict[str, np.ndarray] = field(default_factory=dict)
    written: dict[str, np.ndarray] = field(default_factory=dict)
    numbers: dict[str, Tensor] = field(default_factory=dict)
    ties: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    stay: list[np.ndarray] = field(default_factory=list)
    count: int = 0

    def new(self, value: Tensor) -> Channels:
        self.count += len(value)
        return Channels(np.arange(self.count - len(value), self.count), value)

    def gone(self) -> np.ndarray:
        """id -> bool: it can go, and so can all it is tied to. Every layer keeps at least one channel."""
        from scipy.sparse import coo_array  # a quarter of a second, for those who make a network smaller
        from scipy.sparse.csgraph import connected_components

        none = np.empty(0, int)
        a, b = (np.concatenate([none, *(tie[side] for tie in self.ties)]) for side in (0, 1))
        graph = coo_array((np.ones(len(a)), (a, b)), (self.count, self.count))
        group = connected_components(graph, directed=False)[1]
        free = np.ones(self.count, bool)  # by group
        free[group[np.concatenate([none, *self.stay])]] = False
        for ids in (*self.written.values(), *self.read.values()):
            if free[group[ids]].all():
                free[group[ids[0]]] = False
        return free[group]


@torch.no_grad()
def follow(model: nn.Module, shape: tuple[int, int, int]) -> Flow:
    """Walks the graph of `model`, which must be in eval mode, for images of (channels, height, width).

    Raises UserError if the model cannot be written down as a graph, or if a layer's weights are parametrised.
    """
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise UserError(f"the weights of layer {name} are parametrised, so none of its channels can be taken out.")
    try:
        graph = fx.symbolic_trace(model)
        weight = next(model.parameters())
        ShapeProp(graph).propagate(torch.zeros(2, *shape, device=weight.device, dtype=weight.dtype))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"torch.fx cannot follow the data flow of this {type(model).__name__}: {reason}") from error
    uses = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    flow, found = Flow(), dict[fx.Node, Channels]()
    for node in graph.graph.nodes:
        if _asks_for_the_batch(node):
            continue
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        shared = module is not None and uses.count(node.target) > 1 and any(True for _ in module.parameters())
        hooked = module is not None and bool(module._forward_hooks or module._forward_pre_hooks)
        after = None if shared or hooked else _step(flow, node, module, found)
        if after is None:
            flow.stay += [found[source].ids for source in node.all_input_nodes if source in found]
        elif len(node.users) > 1 and any(_in_place(user, node, model) for user in node.users):
            flow.stay.append(after.ids)  # changed under the eyes of another reader
            found[node] = Channels(after.ids, torch.full_like(after.value, torch.nan))
        else:
            found[node] = after
    return flow


def _step(flow: Flow, node: fx.Node, module: nn.Module | None, found: Mapping[fx.Node, Channels]) -> Channels | None:
    """The channels of what a node puts out; None if this is no place where we can tell."""
    size = _size(node)
    if node.op not in ("call_module", "call_function", "call_method") or len(size) not in (2, 4):
        return None
    kind: Any = node.target if module is None else type(module)
    if kind in CATENATING:
        parts = [found[part] for part in node.args[0] if part in found]  # type: ignore[union-attr, index]
        if len(parts) != len(node.args[0]) or _option(node, 1, "dim", 0) not in (1, 1 - len(size)):  # type: ignore[arg-type]
            return None
        return Channels(np.concatenate([p.ids for p in parts]), torch.cat([p.value for p in parts]))
    first = node.args[0] if node.args else None
    x = found.get(first) if isinstance(first, fx.Node) else None
    if isinstance(module, nn.Conv2d | nn.Linear) and kind in (nn.Conv2d, nn.Linear):
        return _layer(flow, str(node.target), module, x, _size(first))
    if x is None:
        return None
    before = _size(first)
    if kind in NORMS:
        flow.written[str(node.target)] = x.ids
        return _norm(module, x)  # type: ignore[arg-type]
    if kind in ELEMENTWISE or _idle(node):
        return Channels(x.ids, _elementwise(node, module, x.value))
    if kind in POOLING:
        padded = kind is F.avg_pool2d or (isinstance(module, nn.AvgPool2d) and module.padding not in (0, (0, 0)))
        return Channels(x.ids, _at_the_border(x.value) if padded else x.value)
    if kind in MEAN:
        dims = _option(node, 1, "dim", ())
        over = {dim % 4 for dim in ([dims] if isinstance(dims, int) else dims)}
        return x if len(before) == 4 and over == {2, 3} else None
    if kind in FLATTENING:
        return _flat(node, module, x, before, size)
    if kind in ADDING | TIMES and not node.kwargs and len(node.args) == 2:
        return _both(flow, kind in ADDING, x, node.args[1], found, before)
    return None


def _layer(
    flow: Flow, name: str, layer: nn.Conv2d | nn.Linear, x: Channels | None, size: tuple[int, ...]
) -> Channels | None:
    """A convolution or linear layer: it makes channels of its own, and notes which of those it reads it can do without."""
    weight = layer.weight.double()
    places = weight.reshape(*weight.shape[:2], -1)
    total, used = places.sum(2), (places != 0).any(2)
    bias = torch.zeros_like(total[:, 0]) if layer.bias is None else layer.bias.double()
    conv = isinstance(layer, nn.Conv2d)
    padded = conv and layer.padding_mode == "zeros" and layer.padding not in (0, (0, 0), "valid")
    value = torch.full((size[1],), torch.nan, dtype=total.dtype, device=total.device) if x is None else x.value
    value = _at_the_border(value) if padded else value
    if conv and layer.groups == layer.in_channels == layer.out_channels:  # depthwise: the channels remain who they are
        if x is None:
            return None
        flow.written[name] = x.ids
        known = total[:, 0] * value.nan_to_num() + bias
        return Channels(x.ids, known.where(~used[:, 0] | ~value.isnan(), torch.nan))
    if (conv and layer.groups != 1) or (not conv and len(size) != 2):
        return None
    if x is not None:
        flow.read[name], flow.numbers[name] = x.ids, value
        flow.stay.append(x.ids[(value.isnan() & used.any(0)).cpu().numpy()])
    unknown = (used & value.isnan()).any(1)
    made = flow.new((total @ value.nan_to_num() + bias).where(~unknown, torch.nan))
    flow.written[name] = made.ids
    return made


def _norm(bn: nn.BatchNorm2d, x: Channels) -> Channels | None:
    if bn.running_var is None or bn.running_mean is None:
        return None
    one, zero = torch.ones_like(x.value), torch.zeros_like(x.value)
    weight, bias = one if bn.weight is None else bn.weight.double(), zero if bn.bias is None else bn.bias.double()
    scale = weight / (bn.running_var.double() + bn.eps).sqrt()
    return Channels(x.ids, bias.where(weight == 0, scale * (x.value - bn.running_mean.double()) + bias))


def _elementwise(node: fx.Node, module: nn.Module | None, value: Tensor) -> Tensor:
    """What the operation makes of the numbers themselves."""
    places = value.clone()[None, :, None, None]
    if module is not None:
        return module(places).flatten()
    run = getattr(torch.Tensor, node.target) if node.op == "call_method" else node.target  # type: ignore[arg-type]
    return run(places, *node.args[1:], **node.kwargs).flatten()  # type: ignore[operator]


def _at_the_border(value: Tensor) -> Tensor:
    """A number other than 0 is no longer the same everywhere once zeros are put around it."""
    return value.where(value == 0, torch.nan)


def _flat(
    node: fx.Node, module: nn.Module | None, x: Channels, before: tuple[int, ...], after: tuple[int, ...]
) -> Channels | None:
    plain: bool
    if isinstance(module, nn.Flatten):
        plain = bool(module.start_dim == 1)
    elif node.target in ("view", "reshape"):  # a number of features written into the code is not to be moved
        plain = node.args[2:] == (-1,)
    else:
        plain = bool(_option(node, 1, "start_dim", 0) == 1)
    if not plain or len(after) != 2 or after[1] % before[1]:
        return None
    each = after[1] // before[1]
    return Channels(x.ids.repeat(each), x.value.repeat_interleave(each))


def _both(
    flow: Flow, adding: bool, x: Channels, other: Any, found: Mapping[fx.Node, Channels], size: tuple[int, ...]
) -> Channels | None:
    """The sum or product of two feature maps, or of one and a number."""
    if isinstance(other, int | float):
        return Channels(x.ids, x.value + other if adding else x.value * other)
    y = found.get(other)
    if y is None or len(y.ids) != len(x.ids) or len(_size(other)) != len(size):
        return None
    flow.ties.append((x.ids, y.ids))
    if adding:
        return Channels(x.ids, x.value + y.value)
    return Channels(x.ids, (x.value * y.value).where((x.value != 0) & (y.value != 0), 0.0))


def _size(node: Any) -> tuple[int, ...]:
    """The size of the tensor that a node puts out; () if it puts out anything else."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return tuple(getattr(meta, "shape", ()))


def _option(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _idle(node: fx.Node) -> bool:
    """Dropout as a function (torch's, or torchvision's of whole branches), switched off as it is in eval mode."""
    place = {"dropout": 2, "stochastic_depth": 3}.get(getattr(node.target, "__name__", ""))
    return node.op == "call_function" and place is not None and _option(node, place, "training", True) is False


def _in_place(user: fx.Node, source: fx.Node, model: nn.Module) -> bool:
    """Whether `user` writes into what `source` put out."""
    if not user.args or user.args[0] is not source:
        return False
    if user.op == "call_module":
        return bool(getattr(model.get_submodule(str(user.target)), "inplace", False))
    word = user.target if isinstance(user.target, str) else user.target.__name__
    return word.endswith("_") or word in ("iadd", "imul") or _option(user, 1, "inplace", False) is True


def _asks_for_the_batch(node: fx.Node) -> bool:
    """x.size(0), or x.shape of which only [0] is used: says nothing about channels."""
    if node.target == "size" and node.op == "call_method":
        return node.args[1:] == (0,)
    is_shape = node.op == "call_function" and node.target is getattr and node.args[1] == "shape"
    return bool(is_shape) and all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)
