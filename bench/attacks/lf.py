"""LF (low frequency): one smooth pattern, found on a clean model, is added to the whole picture.

Zeng, Park, Mao & Jia, "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective", ICCV 2021, Section 5 and
Algorithm 1: a universal perturbation, summed up from targeted DeepFool steps on clean images and low-pass filtered
after each; as in the authors' and BackdoorBench's code (Gaussian of 6 pixels, values stretched to 0..0.2).
DeepFool sees logits and it ends when five passes change little (BackdoorBench); the best pattern is kept (authors).
Departures: DeepFool runs on `batch_size` images at once: they all meet the same pattern, which then takes their summed
perturbations and is filtered and stretched once; batch_size=1 is the references' order. The target is the attack's own:
the authors' code moves on to the class that most images went to. The references' filter has an even number of taps,
which moves the pattern by half a pixel each time; ours is odd. Where no image needs perturbing it stays a smooth bump.
"""

import torch

from bench.attacks.base import PoisonAttack
from bench.attacks.patterns import Additive
from bench.data import generator
from bench.errors import UserError


def smooth(image, sigma):
    """[C, H, W] through a Gaussian that reaches 2.5 sigma on each side; beyond the edges it finds 0."""
    reach = int(2.5 * sigma)
    whole = torch.exp(-((torch.arange(-reach, reach + 1) / sigma) ** 2) / 2).sum()
    steps = [torch.arange(size)[:, None] - torch.arange(size) for size in image.shape[1:]]
    rows, cols = (torch.exp(-((s / sigma) ** 2) / 2) * (s.abs() <= reach) / whole for s in steps)
    return rows.to(image) @ image @ cols.to(image).mT


def stretched(image, top):
    return (image - image.min()) / (image.max() - image.min()).clamp(min=1e-12) * top


def deepfool(model, x, target, steps, overshoot):
    """The sum over images [B, C, H, W] of the least changes that make each the target; those that resist have no say."""
    total, label, rows = torch.zeros_like(x), None, torch.arange(len(x), device=x.device)
    for _ in range(steps):
        moved = (x[rows] + (1 + overshoot) * total[rows]).requires_grad_()
        logits = model(moved)
        label = logits.argmax(1) if label is None else label
        gap = logits[:, target] - logits.gather(1, label[rows, None])[:, 0]
        (slope,) = torch.autograd.grad(gap.sum(), moved)
        left = logits.argmax(1) != target
        rows, gap, slope = rows[left], gap.detach()[left], slope[left]
        if not len(rows):
            break
        total[rows] += slope * (gap.abs() / slope.flatten(1).square().sum(1).clamp(min=1e-12))[:, None, None, None]
    total[rows] = 0
    return (1 + overshoot) * total.sum(0)


class LF(PoisonAttack):
    needs_clean = True

    def __init__(self, shape, num_classes, poison_rate: float, strength: float, sigma: float, images: int, passes: int,
                 fooled: float, deepfool_steps: int, overshoot: float, batch_size=100, target=0, labels="all2one",
                 victims="all", base="train"):  # fmt: skip
        super().__init__(shape, num_classes, poison_rate, victims, base)
        if not 1 <= strength <= 255 or sigma <= 0:
            raise UserError("attack.strength must be in 1..255 (pixel values), attack.sigma above 0 (pixels).")
        if min(images, passes, deepfool_steps, batch_size) < 1:
            raise UserError("attack.images, .passes, .deepfool_steps and .batch_size must be at least 1.")
        self.strength, self.sigma, self.fooled = strength, sigma, fooled
        self.images, self.passes, self.batch_size = images, passes, batch_size
        self.least = {"steps": deepfool_steps, "overshoot": overshoot}
        bump = stretched(smooth(torch.ones(shape), sigma), strength)
        self.trigger = Additive(bump.floor(), num_classes, target, labels)

    def prepare(self, data, lab):
        rng, pool = generator(lab.seed, "lf"), data.train.x
        x = pool[torch.randperm(len(pool), generator=rng)[: self.images].to(pool.device)].float() / 255
        v, best, shares = torch.zeros_like(x[0]), torch.zeros_like(x[0]), [0.0]
        with torch.no_grad():
            before = lab.clean(x).argmax(1)
        while len(shares) <= self.passes and max(shares) < self.fooled:
            for batch in torch.randperm(len(x), generator=rng).to(x.device).split(self.batch_size):
                start = x[batch][~fooled(lab.clean, x[batch] + v, before[batch])] + v
                dr = deepfool(lab.clean, start, self.trigger.target, **self.least)
                v = stretched(smooth(v + smooth(dr, self.sigma), self.sigma), self.strength / 255)
            shares.append(float(fooled(lab.clean, x + v, before).float().mean()))
            best = v if shares[-1] == max(shares) else best
            if len(shares) > 5 and max(shares[-5:]) - min(shares[-5:]) < 0.01:
                break
        if best.any():
            self.trigger.pattern = (best * 255).floor().to(self.trigger.get_buffer("pattern"))


@torch.no_grad()
def fooled(model, x, before):
    return model(x).argmax(1) != before
