"""I-BAU (ICLR'22): unlearn the worst universal perturbation, knowing that it will move as the weights do.

Zeng et al., "Adversarial Unlearning of Backdoors via Implicit Hypergradient", Eq. 1-3 and Algorithm 1; reference:
github.com/YiZeng623/I-BAU, defense.py and hypergrad.py, and BackdoorBench's defense/i-bau.py with its CIFAR-10 settings.
As there, a round is one pass of the perturbation (it flees the model's own predictions, is neither projected nor clipped)
and one of the weights; the inner loss that the hypergradient knows is that of the first batch and of the true labels; all
passes are in eval mode, so BatchNorm's statistics stay as they are.
Departures: at least one image of a batch carries the perturbation (there int(share * batch), so none in a batch below
100). Batches are drawn anew in each round, where the reference's outer pass keeps those of the first. Images are not
augmented, as in the authors' code (BackdoorBench augments them). The fixed-point iteration is run to the end, without
the authors' test for a change below 1e-10. They hand it the perturbation as a tensor where a list is meant, which then
stands for the list of its one image: it gives the same numbers, and here it is simply one tensor. `space` is where
the perturbation lives: `normalised` as in BackdoorBench, `pixels` as in the authors' code, whose model takes those. A network
that does not normalise by the bench's own hook (`pixel_std`) has one space only, that of its pixels.
"""

import copy

import torch
from torch.nn import functional as F

from bench.data import generator
from bench.defenses.base import Candidate, Defense, Repaired
from bench.errors import UserError
from bench.training import Plan, fit, to_unit


class IBAU(Defense):
    def __init__(self, unlearn: Plan, lr: float, decay: float, share: float, steps: int, rate: float,
                 space="normalised") -> None:  # fmt: skip
        self.unlearn, self.lr, self.decay, self.share = unlearn, lr, decay, share
        self.steps, self.rate, self.space = steps, rate, space
        if not 0 < share <= 1:
            raise UserError(f"defense.share={share} must be above 0 and at most 1.")
        if steps < 1:
            raise UserError(f"defense.steps={steps} must be at least 1.")
        if space not in ("normalised", "pixels"):
            raise UserError(f"defense.space={space} is unknown: use normalised or pixels.")

    def repair(self, model, data):
        model = copy.deepcopy(model).eval()
        self.unit = getattr(model, "pixel_std", 1.0) if self.space == "normalised" else 1.0
        rng = generator(data.seed, "ibau")
        first: list[torch.Tensor] = []
        current: list[torch.Tensor] = []

        def objective(model, x, y):
            first[:] = first or [x, y]
            current[:] = current or [self.worst(model, data.clean, rng)]
            (delta,) = current
            logits = model(x + self.unit * delta * self.carriers(x))
            inner = self.inner(model, first[0], first[1], delta)
            return with_hypergradient(F.cross_entropy(logits, y), inner, delta, self.steps, self.rate), logits

        fit(model, data.clean, self.unlearn, seed=data.seed, augment=data.augment, objective=objective,
            after_epoch=lambda _: current.clear(), moving_statistics=False, label="I-BAU")  # fmt: skip
        return Repaired([Candidate(model)])

    def carriers(self, x):
        """1 for the images of a batch that carry the perturbation, else 0; batches are shuffled, so the first ones do."""
        return (torch.arange(len(x), device=x.device) < max(int(len(x) * self.share), 1)).view(-1, 1, 1, 1)

    def inner(self, model, x, y, delta):
        """What the perturbation descends: it takes all images out of class `y`, at little size (Eq. 2)."""
        return self.decay * delta.square().sum() - F.cross_entropy(model(x + self.unit * delta), y)

    def worst(self, model, clean, rng):
        """The perturbation of all images, from 0, after one pass of gradient descent."""
        delta = torch.zeros(clean.x.shape[1:], device=clean.x.device, requires_grad=True)
        for index in torch.randperm(len(clean), generator=rng).to(clean.x.device).split(self.unlearn.batch_size):
            x = to_unit(clean.x[index])
            own = model(x).argmax(1)
            (slope,) = torch.autograd.grad(self.inner(model, x, own, delta), delta)
            delta = (delta - self.lr * slope).detach().requires_grad_()
        return delta


def with_hypergradient(outer, inner, delta, steps, rate):
    """The outer loss; its slope in the weights counts that `delta`, where the inner loss is least, moves with them.

    The implicit part is v d(next)/d(weights), `next` being `delta` after one step down the inner loss, and v the limit of
    v <- v d(next)/d(delta) + d(outer)/d(delta), after so many steps from 0.
    """
    (direct,) = torch.autograd.grad(outer, delta, retain_graph=True)
    (slope,) = torch.autograd.grad(inner, delta, create_graph=True)
    moved, v = delta - rate * slope, torch.zeros_like(delta)
    for _ in range(steps):
        v = torch.autograd.grad(moved, delta, v, retain_graph=True)[0] + direct
    implicit = (moved * v).sum()
    return outer + implicit - implicit.detach()
