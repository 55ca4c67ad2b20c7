"""FT-SAM (ICCV'23): fine-tuning against the worst small change of the weights, which shrinks the backdoor's large ones.

Zhu et al., "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization", Section 4 (adaptive
perturbation within a ball scaled by |w|); reference: BackdoorBench's defense/ft-sam.py with its CIFAR-10 settings.
As there, rho is constant, the loss has smoothed labels (the mass goes to the other classes only), and the second pass
of a batch leaves the BatchNorm statistics alone.
Departures: one cosine over the whole tuning, where the reference's, meant for epochs but stepped after each batch, swings
up and down.
"""

import copy

import torch
from torch.func import functional_call
from torch.nn import functional as F

from bench.defenses.base import Candidate, Defense, Repaired
from bench.layers import still_statistics
from bench.training import Plan, fit


class FTSAM(Defense):
    def __init__(self, tune: Plan, rho: float, smoothing: float) -> None:
        self.tune, self.rho, self.smoothing = tune, rho, smoothing

    def repair(self, model, data):
        model = copy.deepcopy(model)
        fit(model, data.clean, self.tune, seed=data.seed, augment=data.augment, objective=self.sharp, label="FT-SAM")
        return Repaired([Candidate(model)])

    def sharp(self, model, x, y):
        """The loss at the perturbed weights; its slope there is the step, taken from the weights themselves."""
        weights = {name: w for name, w in model.named_parameters() if w.requires_grad}
        logits = model(x)
        slopes = torch.autograd.grad(self.loss(logits, y), list(weights.values()), materialize_grads=True)
        with still_statistics(model):
            moved = functional_call(model, perturbed(weights, slopes, self.rho), (x,))
        return self.loss(moved, y), logits

    def loss(self, logits, y):
        """Cross-entropy with `smoothing` spread over the other classes; torch spreads over all, the true one among them."""
        classes = logits.shape[1]
        return F.cross_entropy(logits, y, label_smoothing=self.smoothing * classes / (classes - 1))


def perturbed(weights, slopes, rho):
    """w + w^2 g * rho / ||w g||: the steepest way up in a ball whose axes are |w|. Gradients reach w as if it were still."""
    with torch.no_grad():
        size = torch.stack([(w * g).norm() for w, g in zip(weights.values(), slopes, strict=True)]).norm() + 1e-12
        steps = [w.square() * g * (rho / size) for w, g in zip(weights.values(), slopes, strict=True)]
    return {name: w + step for (name, w), step in zip(weights.items(), steps, strict=True)}
