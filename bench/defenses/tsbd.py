"""TSBD (NeurIPS'24): the weights that move most when clean images are unlearnt carry the backdoor; zero them, then repair.

Lin et al., "Unveiling and Mitigating Backdoor Vulnerabilities based on Unlearning Weight Changes and Backdoor Activeness";
reference: github.com/linweiii/TSBD, tsbd.py. Stage 1: climb the clean loss; a neuron's weight change (NWC) is the sum of
|change| over a convolution channel's sub-weights; of the n channels with the largest NWC, all layers together, the share m of
sub-weights that changed most is set to 0. Stage 2: fine-tune, zeroed sub-weights too, with a penalty on the gradient norm:
the step is (1 - alpha) g + alpha g', g' being the gradient r along g. As there, r is taken for each tensor by itself, and
convolutions of shortcuts are left alone.
Departures: images are shuffled and drawn without replacement anew each epoch, there always in the same order. Whether to stop
unlearning is seen on the images as they are, not augmented. NWC is not rounded to 4 decimals. BatchNorm remembers the
statistics of each batch before its step, there after it. A tensor with no gradient at all stays, there it becomes NaN.
Channels tied at the cut go together or stay.
"""

import copy

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from bench.defenses.base import PruningDefense
from bench.errors import UserError
from bench.layers import still_statistics
from bench.training import Plan, ascent, fit, to_unit


class TSBD(PruningDefense):
    holds = False
    zeroable = ("weight",)

    def __init__(self, unlearn: Plan, stop_acc: float, share: float, radius: float, alpha: float, **pruning) -> None:
        super().__init__(**pruning)
        self.unlearn, self.stop_acc, self.share, self.radius, self.alpha = unlearn, stop_acc, share, radius, alpha
        if not 0 < share <= 1:
            raise UserError(f"defense.share={share} must be above 0 and at most 1.")

    def score(self, model, data):
        self.before = {name: conv.weight.detach().clone() for name, conv in convolutions(model).items()}
        model = copy.deepcopy(model)
        self.forget(model, data)
        convs = convolutions(model)
        self.change = {name: (convs[name].weight.detach() - weight).abs() for name, weight in self.before.items()}
        return {name: change.flatten(1).sum(1) for name, change in self.change.items()}

    def forget(self, model, data):
        """Climbs the clean loss until the clean accuracy is at most `stop_acc`."""

        @torch.no_grad()
        def gone(_):
            model.eval()
            found = torch.cat([model(to_unit(x)).argmax(1) for x in data.clean.x.split(256)])
            return float((found == data.clean.y).float().mean()) <= self.stop_acc

        return fit(model, data.clean, self.unlearn, seed=data.seed, augment=data.augment, objective=ascent,
                   after_epoch=gone, label="TSBD unlearning")  # fmt: skip

    def cut(self, model, mask, data):
        """From the weights as they came: what a smaller cut took away may stay in a larger one."""
        mask = {name: pruned.to(self.change[name].device) for name, pruned in mask.items()}
        moved = torch.cat([self.change[name][pruned].flatten() for name, pruned in mask.items()])
        least = moved.topk(max(1, int(self.share * len(moved)))).values[-1]
        for name, pruned in mask.items():
            gone = pruned.view(-1, 1, 1, 1) & (self.change[name] >= least)
            model.get_submodule(name).weight.data.copy_(self.before[name].masked_fill(gone, 0))
        return model

    def objective(self, model, x, y):
        weights = {name: w for name, w in model.named_parameters() if w.requires_grad}
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        slopes = torch.autograd.grad(loss, list(weights.values()), retain_graph=True, materialize_grads=True)
        steps = [self.radius * slope / (slope.norm() + 1e-12) for slope in slopes]
        away = {name: w + step for (name, w), step in zip(weights.items(), steps, strict=True)}
        with still_statistics(model):
            far = F.cross_entropy(functional_call(model, away, (x,)), y)
        return (1 - self.alpha) * loss + self.alpha * far, logits


def convolutions(model):
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    found = {name: conv for name, conv in found.items() if "shortcut" not in name and "downsample" not in name}
    if not found:
        raise UserError(f"TSBD needs convolutions, and this {type(model).__name__} has none outside shortcuts.")
    return found
