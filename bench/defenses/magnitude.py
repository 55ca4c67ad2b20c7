"""Magnitude: prunes the channels with the smallest BatchNorm weights, as for compression. A control: it knows no backdoor.

Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, Section 3 (scaling factors,
one threshold for the whole network). Departures: the network is not trained for sparse weights; nothing is fine-tuned.
"""

import torch

from bench.defenses.base import PruningDefense
from bench.pruning import batch_norms


class Magnitude(PruningDefense):
    needs = "nothing"

    def score(self, model, data):
        sizes = {layer: bn.weight.detach().abs() for layer, bn in batch_norms(model, "magnitude").items()}
        every = torch.cat(list(sizes.values())).sort().values
        # The share of all channels with a larger weight: a number that means the same on every network.
        return {layer: 1 - torch.searchsorted(every, w, right=True).double() / len(every) for layer, w in sizes.items()}
