"""The pruners without training, as published: CLP (one SVD per channel), EP (a pass per layer and bin), BNP."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

Pruned = dict[str, list[int]]
"""BN layer -> its pruned channels."""


def statistic(buffer: Tensor | None) -> Tensor:
    """A running mean or variance, which every network here has."""
    assert buffer is not None
    return buffer


def clp(net: nn.Module, u: float, pairs: dict[str, nn.Conv2d] | None = None) -> Pruned:
    """Channel Lipschitzness pruning, in place: a layer's bound by one SVD per channel, above mean + u std gamma = beta = 0.

    A BN goes with the convolution registered last before it, or, on networks wired otherwise, with that of `pairs`.
    """
    pruned: Pruned = {}
    conv = None
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d):
            conv = layer
        elif isinstance(layer, nn.BatchNorm2d) and conv is not None:
            weight = (pairs or {}).get(name, conv).weight.detach()
            std = statistic(layer.running_var).sqrt()
            bounds = []
            for channel in range(weight.shape[0]):
                kernel = weight[channel].reshape(weight.shape[1], -1)
                scaled = kernel * (layer.weight[channel].detach() / std[channel]).abs()
                bounds.append(torch.linalg.svd(scaled.cpu(), full_matrices=False).S.max())
            values = torch.stack(bounds)
            index = torch.where(values > values.mean() + u * values.std())[0]
            with torch.no_grad():
                layer.weight[index] = 0
                layer.bias[index] = 0
            pruned[name] = index.tolist()
    return pruned


def clp_sweep(net: nn.Module, points: Iterable[float]) -> list[Pruned]:
    """The whole procedure anew on a fresh copy for every u, as BackdoorBench sweeps."""
    return [clp(copy.deepcopy(net), u) for u in points]


def entropy(values: Tensor, width: float) -> Tensor:
    """[channels, images] standardised -> entropy per channel: a pass over all values for every bin, edges excluded."""
    low, bins = values.min(), int((values.max() - values.min()) / width)
    total = torch.zeros(len(values))
    for number in range(bins):
        inside = (values > low + number * width) * (values < low + (number + 1) * width)
        share = inside.sum(-1) / values.shape[-1]
        total += torch.where(share > 0, -share * share.log(), torch.zeros_like(share))
    return total


def inputs_of_norms(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The inputs of all BN layers on one batch, all kept whole until they are used."""
    kept: dict[str, Tensor] = {}
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output, name=name: kept.update({name: inputs[0]}))
        for name, layer in layers.items()
    ]
    net.eval()
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return kept


def ep(net: nn.Module, x: Tensor, k: float, width: float = 0.01) -> Pruned:
    """Entropy pruning, in place: channels whose spatial maxima have an entropy below the layer's mean - k std lose gamma."""
    pruned: Pruned = {}
    features = inputs_of_norms(net, x)
    for name, layer in net.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            peaks = features[name].flatten(2).max(-1).values.permute(1, 0).contiguous()
            values = (peaks - peaks.mean(1, keepdim=True)) / peaks.std(1, keepdim=True)
            found = entropy(values, width)
            index = torch.where(found < found.mean() - k * found.std())[0]
            with torch.no_grad():
                layer.weight[index] = 0
            pruned[name] = index.tolist()
    return pruned


def bnp(net: nn.Module, x: Tensor, k: float) -> Pruned:
    """BN statistics pruning, in place: divergence of the batch's statistics from the running ones above mean + k std."""
    pruned: Pruned = {}
    features = inputs_of_norms(net, x)
    for name, layer in net.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            variance = features[name].var((0, 2, 3))
            mean = features[name].mean((0, 2, 3))
            kept, known = statistic(layer.running_mean), statistic(layer.running_var)
            found = (known / variance).sqrt().log() + (variance + (mean - kept) ** 2) / (2 * known) - 0.5
            index = torch.where(found > found.mean() + k * found.std())[0]
            with torch.no_grad():
                layer.weight[index] = 0
            pruned[name] = index.tolist()
    return pruned
