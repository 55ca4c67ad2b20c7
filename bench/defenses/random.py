"""Prunes channels at random: the control every pruning paper needs."""

import torch

from bench.data import generator
from bench.defenses.base import PruningDefense
from bench.layers import batch_norms


class Random(PruningDefense):
    needs = "nothing"

    def score(self, model, data):
        rng = generator(data.seed, "random")
        layers = batch_norms(model, "random")
        return {layer: torch.rand(bn.num_features, generator=rng) for layer, bn in layers.items()}
