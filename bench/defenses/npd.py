"""NPD (NeurIPS'23): one small linear layer put into the frozen model, trained to filter the trigger out of the features.

Zhu et al., "Neural Polarizer: A Lightweight and Effective Backdoor Defense via Purifying Poisoned Features", Eq. 2-6 and
Algorithm 1; reference: the authors' code in BackdoorBench, defense/npd.py, with its CIFAR-10 settings.
As there, the layer is a 1x1 convolution (at first the identity) and a BatchNorm, whose statistics move in the warm-up only;
the perturbation, in pixels, drives each image to its likeliest wrong class, and stops after a step that takes more than
`enough` of the batch there; the model's other layers stay in eval mode, and images are not augmented.
Departures: the reference knows the layer before which it is put by name, layer4.1.conv1 of PreActResNet18; `layer: null`
is the last but one convolution with a kernel above 1x1, which is that one (or the only one). The true class is out of the
race for the likeliest wrong one, where the reference gives it a logit of -10. There the layer is saved by itself,
beside a model without it; here the result is the model with the layer in it.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from bench.defenses.base import Candidate, Defense, Repaired
from bench.errors import UserError, nearest
from bench.training import Plan, fit


class NPD(Defense):
    def __init__(self, warmup: Plan, polarise: Plan, eps: float, step: float, steps: int, enough: float,
                 weights: tuple[float, ...], layer: str | None = None) -> None:  # fmt: skip
        self.warmup, self.polarise, self.layer = warmup, polarise, layer
        self.eps, self.step, self.steps, self.enough, self.weights = eps, step, steps, enough, tuple(weights)
        if len(self.weights) != 4:
            raise UserError(f"defense.weights={list(weights)} must be four numbers, one for each loss.")

    def repair(self, model, data):
        model = copy.deepcopy(model)
        learning = [weight for weight in model.parameters() if weight.requires_grad]
        plug = insert(model.requires_grad_(False), self.layer)
        settings = {"seed": data.seed, "augment": data.augment, "parameters": list(plug.parameters())}

        def warm(model, x, y):
            plug.train()  # alone: the rest of the model is in eval mode
            logits = model(x)
            return F.cross_entropy(logits, y), logits

        for plan, objective, label in ((self.warmup, warm, "NPD warm-up"), (self.polarise, self.purify, "NPD")):
            fit(model, data.clean, plan, objective=objective, moving_statistics=False, label=label, **settings)
        for weight in learning:  # who trains it further trains all of it
            weight.requires_grad_()
        return Repaired([Candidate(model)])

    def purify(self, model, x, y):
        """Right on clean images; on perturbed ones as before, and neither misled nor taken where they were driven (Eq. 5)."""
        logits = model(x)
        own, target = logits.argmax(1), runner_up(logits, y)
        moved = model(self.attack(model, x, target))
        kept = (1.0001 - moved.softmax(1) + 1e-12).log()
        losses = (F.cross_entropy(logits, y), F.cross_entropy(moved, own),
                  F.nll_loss(kept, runner_up(moved, y)), F.nll_loss(kept, target))  # fmt: skip
        return sum(weight * loss for weight, loss in zip(self.weights, losses, strict=True)), logits

    def attack(self, model, x, target):
        """The images after sign steps towards `target`, within an L2 ball of radius `eps`."""
        delta, hit = torch.zeros_like(x), x.new_zeros(())
        for _ in range(self.steps):
            delta.requires_grad_()
            loss = F.cross_entropy(model((x + delta).clamp(0, 1)), target, reduction="none").clamp(max=80).mean()
            step = self.step * torch.autograd.grad(loss, delta)[0].sign() * (hit <= self.enough)
            delta = (delta - step).detach().renorm(2, 0, self.eps)
            with torch.no_grad():
                hit = (model((x + delta).clamp(0, 1)).argmax(1) == target).float().mean()
        return (x + delta).clamp(0, 1)


def runner_up(logits, y):
    """The likeliest class but the true one."""
    return logits.detach().scatter(1, y[:, None], -torch.inf).argmax(1)


def insert(model, layer):
    """Puts the identity's plug before a convolution, in place, and returns the plug."""
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    wide = [name for name, m in convs.items() if max(m.kernel_size) > 1]
    if not convs:
        raise UserError(f"NPD is put before a convolution, and this {type(model).__name__} has no Conv2d.")
    name = layer or (wide or list(convs))[-2:][0]
    if name not in convs:
        raise UserError(f"defense.layer={name} is no Conv2d of this {type(model).__name__}: {nearest(name, convs)}")
    conv, (parent, _, child) = convs[name], name.rpartition(".")
    mix = nn.Conv2d(conv.in_channels, conv.in_channels, 1, bias=False)
    nn.init.dirac_(mix.weight)
    plug = nn.Sequential(mix, nn.BatchNorm2d(conv.in_channels))
    setattr(model.get_submodule(parent), child, nn.Sequential(plug.to(conv.weight), conv))
    return plug
