"""Magnitude: prunes the channels with the smallest BatchNorm weights, as for compression. A control: it knows no backdoor.

Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, Section 3 (scaling factors,
one threshold for the whole network). Departures: the network is not trained for sparse weights; nothing is fine-tuned.
"""

from bench.defenses.base import PruningDefense
from bench.layers import batch_norms


class Magnitude(PruningDefense):
    needs = "nothing"

    def score(self, model, data):
        return {layer: -bn.weight.abs() for layer, bn in batch_norms(model, "magnitude").items()}
