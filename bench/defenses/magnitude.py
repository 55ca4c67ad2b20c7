"""Magnitude: prunes the channels with the smallest normalisation weights, as for compression. A control: it knows no backdoor.

Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, Section 3 (scaling factors,
one threshold for the whole network). Departures: the network is not trained for sparse weights; nothing is fine-tuned.
The weights of LayerNorms count like those of BatchNorms, which the paper knows only.
"""

from bench.defenses.base import PruningDefense
from bench.layers import channel_norms


class Magnitude(PruningDefense):
    needs = "nothing"

    def score(self, model, data):
        return {layer: -norm.weight.abs() for layer, norm in channel_norms(model, "magnitude").items()}
