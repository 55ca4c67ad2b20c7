"""RNP (ICML'23): unlearn the clean task, then see which channels its recovery leaves switched off.

Li et al., "Reconstructive Neuron Pruning for Backdoor Defense", Eq. 2-4 and Algorithm 1; reference:
github.com/bboylyg/RNP, main.py. Departures: gradient clipping is left out, because there it runs before the backward
pass and has no effect; if the clean accuracy never falls to `stop_acc` the last weights are used, where the reference
crashes or reads an old file. As there, the stop looks at predictions made during the epoch, both stages use batch
statistics, and masks count with 4 decimals. A network's LayerNorms are masked too, which the reference has not.
"""

import copy

from torch.nn import functional as F

from bench.defenses.base import PruningDefense
from bench.pruning import clamp, gates, mask_scores
from bench.training import Plan, ascent, fit


class RNP(PruningDefense):
    def __init__(self, unlearn: Plan, stop_acc: float, recover: Plan, alpha: float, **pruning) -> None:
        super().__init__(**pruning)
        self.unlearn, self.stop_acc, self.recover, self.alpha = unlearn, stop_acc, recover, alpha

    def score(self, model, data):
        model = copy.deepcopy(model)
        self.forget(model, data)
        return self.remember(model, data)

    def forget(self, model, data):
        """Climbs the clean loss until the training accuracy is at most `stop_acc` (Eq. 2)."""

        return fit(model, data.clean, self.unlearn, seed=data.seed, augment=data.augment, objective=ascent,
                   after_epoch=lambda epoch: epoch.accuracy <= self.stop_acc, label="RNP unlearning")  # fmt: skip

    def remember(self, model, data):
        """Descends `alpha` times the clean loss in the masks alone, clamped to [0, 1] (Eq. 4)."""
        masks = gates(model, "weight", "RNP")

        def descent(model, x, y):
            logits = model(x)
            return self.alpha * F.cross_entropy(logits, y), logits

        fit(model, data.clean, self.recover, seed=data.seed + 1, augment=data.augment, objective=descent,
            parameters=[gate.mask for gate in masks.values()], after_step=lambda: clamp(masks),
            label="RNP recovering")  # fmt: skip
        return mask_scores(masks)
