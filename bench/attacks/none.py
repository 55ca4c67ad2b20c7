"""No attack: the clean model of the bench, the control for every attack and defence.

Its trigger changes nothing, so "ASR" is how often a clean non-target image is taken for the target anyway.
"""

from bench.attacks.base import Attack, Trigger


class Nothing(Trigger):
    identity = True


class NoAttack(Attack):
    def __init__(self, shape, num_classes, target=0):
        super().__init__(shape, num_classes)
        self.trigger = Nothing(num_classes, target)

    def inject(self, model, data, lab):
        lab.fit(model, data.train)
        return {"poisoned": 0, "poison_base": len(data.train), "poison_rate": 0.0}
