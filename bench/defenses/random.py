"""Prunes channels at random: the control every pruning paper needs."""

import torch

from bench.data import generator
from bench.defenses.base import PruningDefense
from bench.layers import channel_norms


class Random(PruningDefense):
    needs = "nothing"

    def score(self, model, data):
        rng = generator(data.seed, "random")
        layers = channel_norms(model, "random")
        return {layer: torch.rand(len(norm.weight), generator=rng) for layer, norm in layers.items()}
