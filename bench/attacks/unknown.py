"""A suspicious model from elsewhere: whether it has a backdoor, and with which trigger, nobody knows.

ACC is measured; ASR and RA are unknown, and are said to be, never 0. Departures: none, it is no attack.
"""

import torch

from bench.attacks.base import Attack, Trigger
from bench.errors import UserError


class Secret(Trigger):
    """On no image, as far as anybody knows."""

    known = False

    def counts(self, y):
        return torch.zeros_like(y, dtype=torch.bool)


class Unknown(Attack):
    elsewhere = True

    def __init__(self, shape, num_classes, checkpoint=None):
        super().__init__(shape, num_classes)
        if checkpoint is None:
            raise UserError("attack=unknown is about a model from elsewhere: give model.checkpoint=FILE.")
        self.trigger = Secret(num_classes)

    def inject(self, model, data, lab):
        return {}
