"""Networks that paint triggers: filled by the formula that the manifest gives, since nobody published their weights."""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from torch import Tensor, nn

from .vectors import Entry


def fill(net: nn.Module, entry: Entry, name: str) -> nn.Module:
    """Gives `net` the weights of `params.weights`; its parameters must be those listed under `architecture`, in order."""
    listed = entry.info["architecture"][name]
    transposed = {id(m.weight) for m in net.modules() if isinstance(m, nn.ConvTranspose2d)}
    ours = list(net.parameters())
    assert [list(p.shape) for p in ours] == [shape for _, shape in listed["parameters"]], name
    assert sum(p.numel() for p in ours) == listed["count"], name
    numbers = r"sin\(([\d.]+)\*j\+([\d.]+)\*i\).*1-d weight: 1\+([\d.]+)\*s.*bias: ([\d.]+)\*s"
    along, across, scale, offset = map(float, re.search(numbers, entry.params["weights"]).groups())
    for i, (parameter, (label, shape)) in enumerate(zip(ours, listed["parameters"], strict=True)):
        s = np.sin(along * np.arange(parameter.numel()) + across * i)
        if len(shape) >= 2:
            fan = math.prod([shape[0], *shape[2:]] if id(parameter) in transposed else shape[1:])
            value = s * math.sqrt(2 / fan)
        else:
            value = 1 + scale * s if label.endswith("weight") else offset * s
        parameter.data.copy_(torch.tensor(value).view(shape))
    return net


def unit(trigger, normalised: np.ndarray) -> Tensor:
    """Images in [0, 1] of those that the peer's networks see."""
    return torch.tensor(normalised) * trigger.std + trigger.mean


def statistics(entry: Entry) -> dict[str, list[float] | None]:
    """How the peer normalises: the code of the input-aware attack leaves GTSRB as it is."""
    plain = entry.params.get("dataset") == "gtsrb"
    return {"mean": [0.0] * 3, "std": [1.0] * 3} if plain else {"mean": None, "std": None}
