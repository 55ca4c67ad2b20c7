"""EP (NeurIPS'22): on a mix of clean and triggered images, a backdoor channel's activations form two clumps: low entropy.

Zheng et al., "Pre-activation Distributions Expose Backdoor Neurons", Section 4 (entropy-based pruning: differential
entropy of standardised pre-activations); reference: github.com/RJ-T/NIPS2022_EP_BNP, defense.py, `EP`, `batch_entropy_2`.
As there, a channel's value on an image is the spatial maximum of its BatchNorm's input, all channels of a layer share bins
`width` wide from the layer's least value on, bins are open intervals, and the last, incomplete one is left out.
Departures: images are not augmented. A channel that has one value on all images stops the reference; here it is given the
mean entropy of its layer, since it tells no image from another: it is not pruned, and narrows the spread that others go by.
BackdoorBench's defense/ep.py has bins of 0.1, zeroes the bias too, and draws other images for each threshold.
"""

from functools import partial

import torch
from torch.nn import functional as F

from bench.defenses.base import PruningDefense
from bench.errors import UserError
from bench.layers import at_norms
from bench.training import to_unit


class EP(PruningDefense):
    needs = "poisoned"

    def __init__(self, width: float, **pruning) -> None:
        super().__init__(**pruning)
        self.width = width
        if not width > 0:
            raise UserError(f"defense.width={width} must be above 0.")

    def score(self, model, data):
        if data.poisoned is None or len(data.poisoned) < 2:
            raise UserError(
                "EP looks at a mix of clean and poisoned images and was given none: set clean.mix to 2 or more."
            )
        peaks = at_norms(model, to_unit(data.poisoned.x), peak, "EP", join=partial(torch.cat, dim=1))
        return {layer: -channel_entropy(values, self.width) for layer, values in peaks.items()}


def peak(x):
    """Each channel's spatial maximum: [images, channels, H, W] -> [channels, images]. Pooling is 10x faster than `amax`."""
    return F.max_pool2d(x, x.shape[2:]).flatten(1).T.contiguous()


def channel_entropy(values, width):
    """[channels, images] -> entropy of each channel's standardised values; 0 where a layer has no channel that varies."""
    varies = values.amax(1) > values.amin(1)
    entropy = torch.zeros(len(values), dtype=values.dtype, device=values.device)
    if varies.any():
        rows = values[varies]
        entropy[varies] = histogram_entropy((rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True), width)
        entropy[~varies] = entropy[varies].mean()
    return entropy


def histogram_entropy(values, width):
    """Per row -sum p ln p, p being the share of its values inside each bin; values on a bin's edge are in none."""
    low, last = values.min(), int((values.max() - values.min()) / width)
    return torch.cat([_entropy(rows, low, last, width) for rows in values.split(64)])  # a few rows stay in the cache


def _entropy(values, low, last, width):
    # Rounding may put a value off by one bin, so that each is held against the edges themselves.
    bins = (values - low).div_(width).floor_()
    bins -= (low + width * bins > values).to(bins.dtype)
    bins += (low + width * (bins + 1) <= values).to(bins.dtype)
    inside = (low + width * bins < values) & (bins < last)
    bins = torch.where(inside, bins, last).long()  # the last count is of what is on an edge, or behind the last one
    counts = torch.zeros(len(values), last + 1, dtype=values.dtype, device=values.device)
    shares = counts.scatter_add_(1, bins, torch.ones_like(values))[:, :last] / values.shape[1]
    return -torch.xlogy(shares, shares).sum(1)
