"""MCR (ICLR'20): walk from the backdoored network to another along a curve of low clean loss; the backdoor is lost on the way.

Zhao et al., "Bridging Mode Connectivity in Loss Landscapes and Adversarial Robustness", Section 3 (path connection: a quadratic
Bezier curve with fixed ends, trained at random points); reference:
github.com/IBM/model-sanitization, backdoor/backdoor-cifar/train.py, curves.py and eval_curve.py, its settings.
As there, the bend starts halfway, each batch draws one t, the loss has half of `decay` times the squared norm of all
weights at t, and the BatchNorm statistics at the t reported are recomputed as averages over the clean images.
Departures: a defender has one backdoored network, not two, so the other end is a copy of it fine-tuned on the clean images, as
in BackdoorBench's defense/mcr.py (its settings for that). The learning rate falls with every batch, not every epoch, the
statistics are those of the images as they are, not augmented, and the clean images are not repeated up to 5000.
Not as in BackdoorBench, which never empties the gradients (so each step takes the sum of all there were, with a learning
rate of 3e-5), and whose statistics are moved towards the clean images for one pass, from those of another t.
"""

import copy

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from bench.data import generator
from bench.defenses.base import Candidate, Defense, Repaired
from bench.errors import UserError
from bench.training import Plan, fit, to_unit


class MCR(Defense):
    def __init__(self, tune: Plan, curve: Plan, t: float, decay: float) -> None:
        self.tune, self.curve, self.t, self.decay = tune, curve, t, decay
        if not 0 <= t <= 1:
            raise UserError(f"defense.t={t} is not on the curve: use a number from 0 (backdoored) to 1 (fine-tuned).")

    def repair(self, model, data):
        tuned, middle = copy.deepcopy(model), copy.deepcopy(model)
        fit(tuned, data.clean, self.tune, seed=data.seed, augment=data.augment, label="MCR end")
        start, end = ({name: w.detach() for name, w in net.named_parameters()} for net in (model, tuned))
        place(middle, {name: (w + end[name]) / 2 for name, w in start.items()})
        rng = generator(data.seed, "mcr t")

        def objective(middle, x, y):
            weights = bezier(torch.rand((), generator=rng).item(), start, dict(middle.named_parameters()), end)
            logits = functional_call(middle, weights, (x,))
            size = torch.stack([w.square().sum() for w in weights.values()]).sum()
            return F.cross_entropy(logits, y) + self.decay / 2 * size, logits

        fit(middle, data.clean, self.curve, seed=data.seed + 1, augment=data.augment,
            objective=objective, label="MCR curve")  # fmt: skip
        place(middle, bezier(self.t, start, dict(middle.named_parameters()), end))
        renew_statistics(middle, to_unit(data.clean.x), self.curve.batch_size)
        return Repaired([Candidate(middle)])


def bezier(t, start, middle, end):
    """The weights at t: (1 - t)^2 start + 2 t (1 - t) middle + t^2 end."""
    return {name: (1 - t) ** 2 * w + 2 * t * (1 - t) * middle[name] + t**2 * end[name] for name, w in start.items()}


@torch.no_grad()
def place(model, weights):
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])


@torch.no_grad()
def renew_statistics(model, x, batch_size):
    """BatchNorm statistics anew: the averages, over about equal batches, of the batches' own; each image counts the same."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta, seen = [norm.momentum for norm in norms], 0
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    for part in x.tensor_split(-(-len(x) // batch_size)):
        seen += len(part)
        for norm in norms:
            norm.momentum = len(part) / seen
        model(part)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
