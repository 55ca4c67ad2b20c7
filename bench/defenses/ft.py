"""FT: fine-tune all weights on the defender's clean images.

The baseline of every paper here; settings as in BackdoorBench's defense/ft.py (SGD 0.01, momentum 0.9, weight decay
5e-4, cosine over 100 epochs, batch 256, augmented). Departures: the cosine falls with every
batch, there with every epoch; float32, there mixed precision.
"""

import copy

from bench.defenses.base import Candidate, Defense, Repaired
from bench.training import Plan, fit


class FT(Defense):
    def __init__(self, tune: Plan) -> None:
        self.tune = tune

    def repair(self, model, data):
        model = copy.deepcopy(model)
        fit(model, data.clean, self.tune, seed=data.seed, augment=data.augment, label="fine-tuning")
        return Repaired([Candidate(model)])
