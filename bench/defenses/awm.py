"""AWM (NeurIPS'22): find a pattern that misleads the network on all images, then fade the weights that respond to it.

Chai & Chen, "One-shot Neural Backdoor Erasing via Adversarial Weight Masking", Algorithm 1 (a universal pattern
of bounded L1 norm, recovered anew each round; soft masks on the weights of convolutions); reference:
github.com/jinghuichen/AWM, main.py and models/maskedconv.py, its defaults (no shrinking steps, no decay of the rate).
As there, the pattern starts at 0 and climbs the loss against the network's own predictions, is not clipped while it is
sought, and is scaled onto the norm once, at the end; images with it are clipped; statistics stay as they are; masks are
clamped to [0, 1] and stay soft: nothing is pruned, the network is left with its weights multiplied by them.
Departures: a round has `steps` steps for the pattern and as many for the masks, where the code takes 5 * (images // batch):
15 at its 500 images and at its 10, as here, but none with fewer images than a batch. With one image per class the code
adds nine random crops of each; here `mask.augment` moves and flips images as in the bench.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from bench.data import generator
from bench.defenses.base import Candidate, Defense, Repaired
from bench.errors import UserError
from bench.pruning import clamp, gates
from bench.training import Plan, fit, to_unit


class AWM(Defense):
    def __init__(self, mask: Plan, steps: int, step: float, norm: float, alpha: float, gamma: float) -> None:
        self.mask, self.steps, self.step, self.norm, self.alpha, self.gamma = mask, steps, step, norm, alpha, gamma
        if steps < 1:
            raise UserError(
                f"defense.steps={steps} must be at least 1: a pattern takes that many steps, then the masks do."
            )

    def repair(self, model, data):
        masked, repaired = copy.deepcopy(model), copy.deepcopy(model)
        convolutions = {name: module for name, module in masked.named_modules() if isinstance(module, nn.Conv2d)}
        if not convolutions:
            raise UserError(f"AWM masks the weights of Conv2d layers, and this {type(model).__name__} has none.")
        masks = gates(masked, "weight", "AWM", convolutions)
        rng, pattern, turn = generator(data.seed, "awm pattern"), None, 0

        def objective(model, x, y):
            nonlocal pattern, turn
            if turn % self.steps == 0:
                pattern = self.recover(model, data, rng)
            turn += 1
            logits = model(x)
            robust = F.cross_entropy(model((x + pattern).clamp(0, 1)), y)
            size = torch.stack([gate.mask.abs().sum() for gate in masks.values()]).sum()
            return self.alpha * F.cross_entropy(logits, y) + (1 - self.alpha) * robust + self.gamma * size, logits

        fit(masked, data.clean, self.mask, seed=data.seed, augment=data.augment, objective=objective,
            parameters=[gate.mask for gate in masks.values()], after_step=lambda: clamp(masks),
            moving_statistics=False, label="AWM masks")  # fmt: skip
        for name, convolution in convolutions.items():
            repaired.get_submodule(name).weight.data.copy_(convolution.weight)
        return Repaired([Candidate(repaired)])

    def recover(self, model, data, rng):
        """The one pattern that, added to all images, most changes the network's predictions (the inner problem)."""
        pattern = torch.zeros(1, *data.shape, device=data.clean.x.device)
        for _ in range(self.steps):
            index = torch.randint(len(data.clean), (self.mask.batch_size,), generator=rng).to(pattern.device)
            x = to_unit(data.clean.x[index])
            with torch.no_grad():
                predicted = model(x).argmax(1)
            pattern.requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(model(x + pattern), predicted), pattern)
            pattern = (pattern + self.step * slope).detach()
        return pattern * (self.norm / pattern.abs().sum().clamp(min=1e-12)).clamp(max=1)
