"""SAU (NeurIPS'23): unlearn the adversarial examples that fool the model now and as it came into the same class.

Wei et al., "Shared Adversarial Unlearning: Mitigating Backdoor Attacks by Unlearning Shared Adversarial Examples", Eq. 8-11
and Algorithm 1; reference: the authors' code in BackdoorBench, defense/sau.py, with its CIFAR-10 settings.
As there, each image has its own perturbation, in pixels and not clipped to [0, 1], from the corner +eps by sign steps;
what may be shared is any image that the model as it came, but neither its label nor its own clean prediction, puts
into that class when perturbed; images are not augmented, and all passes are in eval mode, so BatchNorm's statistics
stay as they are. The loss of plain adversarial training, of weight 0 there, is left out.
Departures: none in the numbers. The reference stops its steps when all images of a batch are shared; nothing has a
slope then, so the steps here go on and stay where they are.
"""

import copy

import torch
from torch.nn import functional as F

from bench.defenses.base import Candidate, Defense, Repaired
from bench.errors import UserError
from bench.training import Plan, fit


class SAU(Defense):
    def __init__(self, unlearn: Plan, eps: float, step: float, steps: int, fool: float, share: float,
                 weight: float) -> None:  # fmt: skip
        self.unlearn, self.eps, self.step, self.steps = unlearn, eps, step, steps
        self.fool, self.share, self.weight = fool, share, weight
        if eps < 0 or steps < 0:
            raise UserError(f"defense.eps={eps} and defense.steps={steps} must not be negative.")

    def repair(self, model, data):
        model = copy.deepcopy(model).eval()
        first = copy.deepcopy(model).requires_grad_(False)  # the model as it came

        def objective(model, x, y):
            moved = x + self.attack(model, first, x, y)
            logits = model(x)
            with torch.no_grad():
                own, into = first(x).argmax(1), first(moved).argmax(1)
            unlearned = away(model(moved), into, (into != y) & (into != own))
            return F.cross_entropy(logits, y) + self.weight * unlearned, logits

        fit(model, data.clean, self.unlearn, seed=data.seed, augment=data.augment, objective=objective,
            moving_statistics=False, label="SAU")  # fmt: skip
        return Repaired([Candidate(model)])

    def attack(self, model, first, x, y):
        """Perturbations within `eps` that fool both models, and into the same class (Eq. 10)."""
        with torch.no_grad():
            own, own_first = model(x).argmax(1), first(x).argmax(1)
        delta = torch.full_like(x, self.eps)
        for _ in range(self.steps):
            delta.requires_grad_()
            loss = self.sharing(model(x + delta), first(x + delta), y, own, own_first)
            delta = (delta - self.step * torch.autograd.grad(loss, delta)[0].sign()).clamp(-self.eps, self.eps).detach()
        return delta

    def sharing(self, logits, logits_first, y, own, own_first):
        """Low when both are fooled (images that are already count no more) and agree (those fooled alike no more)."""
        into, into_first = logits.argmax(1), logits_first.argmax(1)
        right = F.cross_entropy(logits, y, reduction="none") * (into == own)
        right_first = F.cross_entropy(logits_first, y, reduction="none") * (into_first == own_first)
        shared = (into != own) & (into_first != own_first) & (into == into_first)
        apart = jensen_shannon(logits.softmax(1), logits_first.softmax(1)) * ~shared
        return self.share * apart.mean() - self.fool * (right + right_first).mean() / 2


def jensen_shannon(p, q):
    p, q = p.clamp(min=1e-8), q.clamp(min=1e-8)
    middle = ((p + q) / 2).log()
    return (p * (p.log() - middle) + q * (q.log() - middle)).sum(1) / 2


def away(logits, into, counts):
    """-log(1 - p) of the class `into`, over the images that count, as a mean over all (Eq. 9).

    Half of it from the other classes' probabilities, half from the class's own, which are cut off at different ends.
    """
    p = logits.softmax(1)
    there = F.one_hot(into, p.shape[1])
    rest, own = (p * (1 - there)).sum(1).clamp(max=0.999), (p * there).sum(1).clamp(min=0.001)
    return -((1e-6 + rest).log() + (1 + 1e-6 - own).log())[counts].sum() / (2 * len(p))
