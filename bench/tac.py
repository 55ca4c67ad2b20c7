"""Trigger-activated change (TAC): how strongly each channel answers to the trigger. Whoever computes it knows the trigger.

Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness" (CLP), ECCV 2022: the mean over
images of || F_k(x) - F_k(triggered x) ||_2, F_k being the feature map of channel k. Here F_k is what the channel's
normalisation layer puts out, before any activation function. (BackdoorBench's analysis/visual_tac.py, which also reads
BatchNorms so, sums absolute values instead: the L1 norm.)
"""

from __future__ import annotations

import copy
import csv
import io
import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from bench import files
from bench.attacks.base import Backdoor
from bench.data import ImageSet
from bench.layers import by_channel, channel_norms, has_channel_norms
from bench.training import to_unit

log = logging.getLogger(__name__)

IMAGES = 1000
"""Test images that the change is averaged over, at most: evenly spaced among those that count for ASR."""


def leave(path: Path, backdoor: Backdoor, test: ImageSet) -> None:
    """Writes the CSV `path` (layer, channel, tac) unless it is there; it is never replaced.

    Nothing is written where there is nothing to compare: no trigger, or no layer with a weight per channel.
    """
    if path.exists() or not has_channel_norms(backdoor.model):
        return
    index = backdoor.trigger.chosen(test).nonzero().flatten()
    index = index[:: max(1, -(-len(index) // IMAGES))]
    clean, triggered = test.x[index], backdoor.trigger.on(test, index)[0]
    if triggered.equal(clean):
        return
    change: dict[str, Tensor] = {}
    for one, other in zip(
        clean.split(256), triggered.split(256), strict=True
    ):  # as floats they take four times the room
        for name, part in trigger_activated_change(backdoor.model, to_unit(one), to_unit(other)).items():
            change[name] = change.get(name, 0) + part.double() * len(one) / len(index)
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(("layer", "channel", "tac"))
    rows.writerows((layer, i, value) for layer, values in change.items() for i, value in enumerate(values.tolist()))
    try:
        files.publish(path, out.getvalue())
    except OSError as error:  # a shelf of models may be there to be read only, and no result hangs on this
        log.warning("%s was not written: %s.", path, error.strerror)


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
