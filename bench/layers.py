"""What a network is made of, for methods that look at its layers: which there are, what feeds them, what reaches them."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from bench.errors import UserError

T = TypeVar("T")
Norm = nn.BatchNorm2d | nn.LayerNorm


def batch_norms(model: nn.Module, method: str = "this method") -> dict[str, nn.BatchNorm2d]:
    """The BatchNorm2d layers with a weight, by name, in the order of `named_modules()`. Raises UserError if there are none."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and m.affine}
    if not found:
        raise UserError(
            f"{method} works on BatchNorm2d layers (not on LayerNorm), and this {type(model).__name__} has no BatchNorm2d."
        )
    return found


def channel_norms(model: nn.Module, method: str = "this method") -> dict[str, Norm]:
    """The layers with one weight per channel, BatchNorm2d and LayerNorm, by name, in the order of `named_modules()`.

    LayerNorm over more than one axis has a weight per place, not per channel, and is left out. Raises UserError if there
    are none.
    """
    found = {name: m for name, m in model.named_modules() if _by_channel(m)}
    if not found:
        raise UserError(
            f"{method} works on BatchNorm2d and LayerNorm layers with a weight per channel, and this "
            f"{type(model).__name__} has no BatchNorm2d and no such LayerNorm."
        )
    return found


def has_channel_norms(model: nn.Module) -> bool:
    return any(_by_channel(module) for module in model.modules())


def _by_channel(module: nn.Module) -> TypeGuard[Norm]:
    return isinstance(module, nn.BatchNorm2d | nn.LayerNorm) and module.weight is not None and module.weight.ndim == 1


def by_channel(layer: Norm, x: Tensor) -> Tensor:
    """What such a layer reads or writes, as [images, places, channels].

    Channels come second in a BatchNorm2d and in the subclasses of LayerNorm that networks have for feature maps (such as
    torchvision's LayerNorm2d), and last in a LayerNorm.
    """
    second = type(layer) is not nn.LayerNorm and x.ndim == 4 and x.shape[1] == len(layer.weight)
    return (x.movedim(1, -1) if second else x).flatten(1, -2) if x.ndim > 2 else x[:, None]


def running_variance(bn: nn.BatchNorm2d, layer: str, method: str) -> Tensor:
    """[channels], all positive. Raises UserError if one is zero, negative or NaN."""
    variance = bn.running_var
    if variance is None:
        raise UserError(
            f"{method}: layer {layer} keeps no running statistics (track_running_stats=False), which it needs."
        )
    if not (variance > 0).all():
        raise UserError(
            f"{method}: layer {layer} has a running variance that is not positive; was the model ever trained?"
        )
    return variance


def check_pairing(pairing: str) -> None:
    """Raises UserError for one that there is not."""
    if pairing not in ("dataflow", "registration_order"):
        raise UserError(f"pairing={pairing} is unknown: use dataflow or registration_order.")


def conv_bn_pairs(model: nn.Module, shape: tuple[int, int, int], pairing: str = "dataflow") -> dict[str, nn.Conv2d]:
    """Which convolution feeds each BatchNorm2d: BN name -> Conv2d. BN layers fed by anything else are left out.

    `dataflow` follows an image through the network and pairs a BN with the conv whose very output it reads: right for
    pre-activation, dense and any other wiring. `registration_order` is the published shortcut, "the conv registered
    last before this BN", which mis-pairs pre-activation networks.

    `shape`: (channels, height, width) of one image, used by `dataflow` only.
    """
    check_pairing(pairing)
    if pairing == "registration_order":
        pairs, conv = {}, None
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                conv = module
            elif isinstance(module, nn.BatchNorm2d) and module.affine and conv is not None:
                if len(module.weight) != conv.out_channels:
                    raise UserError(
                        f"pairing=registration_order holds layer {name} of {len(module.weight)} channels against a convolution "
                        f"of {conv.out_channels}, so it has no meaning on this network: use pairing=dataflow."
                    )
                pairs[name] = conv
        return pairs
    names = {module: name for name, module in batch_norms(model, "pairing").items()}
    # Outputs are kept alive, so no two share an id; the version tells an output changed in place (ReLU) from an untouched one.
    written: list[tuple[Tensor, int, nn.Conv2d]] = []
    read: dict[str, nn.Conv2d] = {}

    def after_conv(module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        written.append((output, output._version, module))

    def before_norm(module: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        for output, version, conv in written:
            if output is inputs[0] and output._version == version:
                read[names[module]] = conv

    hooks = [m.register_forward_hook(after_conv) for m in model.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(before_norm) for m in names]
    modes = [(module, module.training) for module in model.modules()]
    weight = next(model.parameters())
    try:
        with torch.no_grad():
            try:  # a batch of no images takes the same way and costs nothing
                model.eval()(torch.zeros(0, *shape, device=weight.device, dtype=weight.dtype))
            except Exception:  # whatever a network's own code says of none
                written.clear()
                read.clear()
                model(torch.zeros(1, *shape, device=weight.device, dtype=weight.dtype))
    finally:
        for module, training in modes:
            module.training = training
        for hook in hooks:
            hook.remove()
    return {name: read[name] for name in names.values() if name in read}


@torch.no_grad()
def at_norms(
    model: nn.Module,
    x: Tensor,
    look: Callable[[Tensor], T],
    method: str = "this method",
    join: Callable[[list[T]], T] | None = None,
) -> dict[str, T]:
    """One pass of the images `x` (in [0, 1]) in eval mode: BN name -> what `look` makes of that layer's input.

    All images at once, or, if `join` makes one of what was seen of several batches, a batch at a time, which is faster.
    In the order of `named_modules()`. Layers that the pass does not reach are left out. The inputs are not kept.
    """
    model, seen = copy.deepcopy(model).eval(), defaultdict(list)
    layers = batch_norms(model, method)
    for name, bn in layers.items():
        bn.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(look(inputs[0])))
    for part in x.split(64 if join else len(x)):
        model(part.contiguous(memory_format=torch.channels_last))
    return {name: join(seen[name]) if join else seen[name][-1] for name in layers if name in seen}


@contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Batch statistics are used but not remembered."""
    layers = [(m, m.momentum) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for layer, _ in layers:
        layer.momentum = 0.0
    yield
    for layer, momentum in layers:
        layer.momentum = momentum
