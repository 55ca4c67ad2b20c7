"""FC: chosen test images are taken for the base class, whose images were moved onto them in feature space (clean-label).

Shafahi et al., "Poison Frogs! Targeted Clean-Label Poisoning Attacks on Neural Networks", NeurIPS 2018, Algorithm 1,
Section 3 (`training=transfer`: the last layer alone) and Section 4 (`end_to_end`: watermarked bases, some 50 poisons a
target, outliers as targets); step size, beta and step rule as in aks2203/poisoning-benchmark, craft_poisons_fc.py. There is
no trigger, and nothing to scale: ASR and RA are of the chosen images, those of `source_class` that the clean model gets
right with the least confidence.
Departures: several images are targeted at once, by the paper one. As in the paper, poisons are drawn to their watermarked
base; poisoning-benchmark draws them to the bare one, and that with --l2 alone (else it keeps them within 8/255 of it, without
beta), and truncates what it stores, where ours is rounded. Poisons replace their bases, training images, as in
poisoning-benchmark; the paper adds them. No code for the end-to-end training (`tune`) is published; `scratch` is ours.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from bench.attacks.base import PoisonAttack, Trigger
from bench.attacks.features import Features, collide, last_layer
from bench.errors import UserError


class Chosen(Trigger):
    """Nothing is put on an image. `images`: which of the test images are meant; `poisons`: the crafted training images."""

    identity, grows = True, ("images", "poisons")

    def __init__(self, shape, num_classes, target):
        super().__init__(num_classes, target)
        self.register_buffer("images", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("poisons", torch.empty(0, *shape, dtype=torch.uint8))

    def chosen(self, test):
        return torch.isin(torch.arange(len(test), device=test.y.device), self.get_buffer("images").to(test.y.device))


class FC(PoisonAttack):
    needs_clean = True

    def __init__(self, shape, num_classes, tune, poison_rate: float, targets: int, source_class: int, watermark: float,
                 beta: float, lr: float, iterations: int, training="end_to_end", target=0):  # fmt: skip
        super().__init__(shape, num_classes, poison_rate, victims="target")
        if source_class not in {*range(num_classes)} - {target}:
            raise UserError(f"attack.source_class={source_class} must be another class than attack.target={target}.")
        if training not in ("transfer", "end_to_end", "scratch"):
            raise UserError(f"attack.training={training} is unknown: use transfer, end_to_end or scratch.")
        if min(targets, iterations) < 1 or not 0 <= watermark < 1 or min(beta, lr) < 0:
            raise UserError(f"attack.targets={targets} and attack.iterations={iterations} must be at least 1, attack.lr={lr} and "
                            f"attack.beta={beta} not negative, attack.watermark={watermark} in 0..1 (below 1).")  # fmt: skip
        self.tune, self.targets, self.source_class, self.training = tune, targets, source_class, training
        self.watermark, self.beta, self.lr, self.iterations = watermark, beta, lr, iterations
        self.trigger = Chosen(shape, num_classes, target)

    def split(self, labels, rng):
        parts = super().split(labels, rng)
        if len(parts[0]) < self.targets:
            raise UserError(f"attack.poison_rate={self.poison_rate}: fewer poisons than attack.targets={self.targets}.")
        return parts

    def canvas(self, x):
        return self.trigger.poisons

    def prepare(self, data, lab):
        index, _ = self.split(data.train.y.cpu().numpy(), np.random.default_rng(lab.seed))
        features = Features(lab.clean)
        self.trigger.images = images = self.choose(features, data.test)
        goal = data.test.x[images[torch.arange(len(index)) % self.targets]].float() / 255
        base = data.train.x[torch.from_numpy(np.sort(index)).to(goal.device)].float() / 255
        start = self.watermark * goal + (1 - self.watermark) * base
        poisons, self.left = collide(features, start, goal, self.beta, self.lr, self.iterations)
        self.trigger.poisons = (255 * poisons).round().to(torch.uint8)

    @torch.no_grad()
    def choose(self, features, test):
        """Which test images are targeted; those that the network takes for another class anyway would come last."""
        at = (test.y == self.source_class).nonzero().flatten()
        if len(at) < self.targets:
            raise UserError(f"attack.targets={self.targets}, but attack.source_class has only {len(at)} test images.")
        sure = torch.cat([features.model(x.float() / 255).softmax(1) for x in test.x[at].split(256)])
        order = (sure[:, self.source_class] + (sure.argmax(1) != self.source_class)).argsort(stable=True)
        return at[order[: self.targets]].sort().values

    def inject(self, model, data, lab):
        if self.training != "scratch":
            model.load_state_dict(lab.clean.state_dict())
            lab = replace(lab, fit=partial(lab.fit, plan=self.tune))
        if self.training == "transfer":
            lab = replace(lab, fit=partial(lab.fit, parameters=last_layer(model).parameters(), moving_statistics=False))
        return super().inject(model, data, lab) | {"targeted": self.targets, "distance_left": self.left}
