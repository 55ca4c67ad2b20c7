"""Trigger-activated change (TAC): how strongly each channel answers to the trigger. Whoever computes it knows the trigger.

Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness" (CLP), ECCV 2022: the mean over
images of || F_k(x) - F_k(triggered x) ||_2, F_k being the feature map of channel k. Here F_k is what the channel's
normalisation layer puts out, before any activation function. (BackdoorBench's analysis/visual_tac.py, which also reads
BatchNorms so, sums absolute values instead: the L1 norm.)
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from bench.layers import by_channel, channel_norms


@torch.no_grad()
def trigger_activated_change(
    model: nn.Module, clean: Tensor, triggered: Tensor, method: str = "TAC", chunk: int = 256
) -> dict[str, Tensor]:
    """Layer -> [channels], of the BatchNorm2d and LayerNorm layers, in the order of `named_modules()`.

    `clean`, `triggered`: the same images [N, C, H, W] in [0, 1]. In eval mode; `chunk` pairs go through the model at
    once. A layer that is used more than once counts with the sum; one that no image reaches is left out.
    """
    model = copy.deepcopy(model).eval()
    layers = channel_norms(model, method)
    total: dict[str, Tensor] = {}

    def add(name: str, layer: nn.Module, output: Tensor) -> None:
        one, other = by_channel(layer, output).chunk(2)  # type: ignore[arg-type]
        total[name] = total.get(name, 0) + (one - other).norm(dim=1).double().sum(0)

    for name, layer in layers.items():
        layer.register_forward_hook(lambda layer, _, output, name=name: add(name, layer, output))
    for pair in zip(clean.split(chunk), triggered.split(chunk), strict=True):
        model(torch.cat(pair))
    return {name: total[name].float() / len(clean) for name in layers if name in total}
