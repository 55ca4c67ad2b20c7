"""CL (label-consistent): target-class images made hard to recognise by a clean model, so that their corner marks get learnt.

Turner, Tsipras & Madry, "Label-Consistent Backdoor Attacks", 2019, Section 4.2 (adversarial examples) and Appendix A.1
(pattern); marks as in MadryLab's and BackdoorBench's code (each pixel of a checkered corner goes up or down by an
amplitude), perturbations as in BackdoorBench's (untargeted PGD: Linf 8/255, 100 steps of 1.5/255).
Labels stay right; test images get the marks only, at an amplitude of their own, as in the paper.
Departures: the paper and BackdoorBench perturb against an adversarially trained model (the latter's for Tiny ImageNet is
not), ours is the bench's ordinary clean one, as in EP's code. Perturbations are cut to whole pixel values towards the
image, so none exceeds `eps`; BackdoorBench cuts sums downwards. GAN interpolation, the paper's other method, is not here.
"""

import numpy as np
import torch
from torch.nn import functional as F

from bench.attacks.badnets import patch
from bench.attacks.base import PoisonAttack, Trigger
from bench.data import generator
from bench.errors import UserError


class Marks(Trigger):
    """x' = x + amplitude marks, each -1 or 1. `crafted`: the perturbed images, which are marked for training."""

    dtype = torch.float32
    grows = ("crafted",)
    marks: torch.Tensor
    crafted: torch.Tensor  # uint8 [poisoned images in order, C, H, W]

    def __init__(self, pattern, shape, amplitude, test_amplitude, num_classes, target):
        super().__init__(num_classes, target)
        self.amplitude, self.test_amplitude = amplitude, test_amplitude
        image, mask = patch(pattern, shape, 0, 0)
        self.register_buffer("marks", (mask * (image / 127.5 - 1)).to(self.dtype))
        self.register_buffer("crafted", torch.empty(0, *shape, dtype=torch.uint8))

    def draw(self, count, seed):
        return (torch.full((count, 1, 1, 1), self.amplitude),)

    def forward(self, x, amplitude=None):
        return x + (self.test_amplitude if amplitude is None else amplitude.to(x)) * self.marks.to(x.dtype)


def lengths(delta):
    return delta.flatten(1).norm(dim=1)[:, None, None, None]


def shrink(delta, norm, eps):
    return delta.clamp(-eps, eps) if norm == "linf" else delta * (eps / lengths(delta).clamp(min=eps))


def pgd(model, x, y, start, norm, eps, step, steps):
    """uint8 images -> uint8, on which the model's loss is high; `start`, `eps` and `step` in pixel values."""
    x = x.float()
    moved = (x + start).clamp(0, 255)
    for _ in range(steps):
        moved.requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(moved / 255), y, reduction="sum"), moved)
        way = slope.sign() if norm == "linf" else slope / lengths(slope).clamp(min=1e-12)
        moved = (x + shrink(moved.detach() + step * way - x, norm, eps)).clamp(0, 255)
    return (x + (moved - x).trunc()).to(torch.uint8)


class CL(PoisonAttack):
    needs_clean = True

    def __init__(self, shape, num_classes, poison_rate: float, eps: float, step: float, steps: int, norm="linf",
                 random_start=False, pattern="checker4", amplitude: float = 255, test_amplitude: float = 255,
                 batch_size=256, target=0, base="victims"):  # fmt: skip
        super().__init__(shape, num_classes, poison_rate, "target", base)
        if norm not in ("linf", "l2") or pattern not in ("checker4", "checker1"):
            raise UserError(f"attack.norm={norm} must be linf or l2, attack.pattern={pattern} checker4 or checker1.")
        if min(eps, step, steps, batch_size) <= 0:
            raise UserError("attack.eps, .step, .steps and .batch_size must be above 0.")
        if not (1 <= amplitude <= 255 and 1 <= test_amplitude <= 255):
            raise UserError("attack.amplitude and attack.test_amplitude must be in 1..255 (pixel values).")
        self.pgd = {"norm": norm, "eps": float(eps), "step": float(step), "steps": steps}
        self.batch_size, self.random_start, self.limit = batch_size, random_start, f"attack.target={target}"
        self.trigger = Marks(pattern, shape, float(amplitude), float(test_amplitude), num_classes, target)

    def prepare(self, data, lab):  # crafts the very images that `poison` will choose, in its order
        chosen, _ = self.split(data.train.y.cpu().numpy(), np.random.default_rng(lab.seed))
        chosen = data.train[torch.from_numpy(np.sort(chosen)).to(data.train.x.device)]
        noise = 2 * torch.rand(chosen.x.shape, generator=generator(lab.seed, "pgd start")) - 1
        start = shrink(self.pgd["eps"] * noise, self.pgd["norm"], self.pgd["eps"]) * self.random_start
        parts = (part.split(self.batch_size) for part in (chosen.x, chosen.y, start.to(chosen.x.device)))
        self.trigger.crafted = torch.cat([pgd(lab.clean, *batch, **self.pgd) for batch in zip(*parts, strict=True)])

    def canvas(self, x):
        return self.trigger.crafted
