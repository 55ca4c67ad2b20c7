"""FMP (ICLR'24): push each feature map away from its clean value; maps whose push ruins the accuracy carry the trigger.

Huang & Bu, "Adversarial Feature Map Pruning for Backdoor", Section 3 and Algorithm 1 (one-step perturbation, `len // p` maps
of each layer pruned, then fine-tuning); reference: github.com/retsuh-bqw/FMP, defense/fgsm-feature.py.
As there, convolution outputs are pushed, the step is not projected around the clean image, and biases are left.
Departures: images are normalised once (`normalise=twice` as published: perturbed when already normalised, then
normalised again). Ties, which decide much of the cut, go by channel order, not by an unstable sort. With a convolution goes
the BatchNorm that reads it (`pairing=registration_order` as published: the lists of the convolutions in forward order
fall on those in order of registration and on the BatchNorms after these, wrong on pre-activation networks). What is
pruned is held at 0 while fine-tuning, the learning rate falls with every batch, and no test image passes through.
"""

import copy

import torch
from torch import nn

from bench.data import generator
from bench.defenses.base import PruningDefense
from bench.errors import UserError
from bench.layers import batch_norms, check_pairing, conv_bn_pairs
from bench.pruning import apply
from bench.training import to_unit


class FMP(PruningDefense):
    def __init__(self, images: int, alpha: float, eps: float, normalise="once", pairing="dataflow", **pruning) -> None:
        super().__init__(**pruning)
        self.images, self.alpha, self.eps, self.normalise, self.pairing = images, alpha, eps, normalise, pairing
        if normalise not in ("once", "twice"):
            raise UserError(f"defense.normalise={normalise} is unknown: use once or twice.")
        check_pairing(pairing)

    def score(self, model, data):
        batch_norms(model, "FMP")
        model = copy.deepcopy(model).eval().requires_grad_(False)
        x, y, signs = self.draw(data)
        if self.normalise == "twice":
            if not hasattr(model, "pixel_mean"):
                raise UserError(
                    "defense.normalise=twice needs one of the bench's own networks, which normalise: use once."
                )
            x = (x - model.pixel_mean) / model.pixel_std
        start = (x + self.alpha * signs).clamp(0, 1).requires_grad_()
        clean, moved = feature_maps(model, x), feature_maps(model, start)
        return {layer: self.errors(model, clean[layer], moved[layer], start, y) for layer in moved}

    def draw(self, data):
        """A batch of clean images in [0, 1], augmented; its labels; the signs of the one random start of all channels."""
        rng = generator(data.seed, "fmp")
        index = torch.randperm(len(data.clean), generator=rng)[: self.images].to(data.clean.x.device)
        moves = data.augment.draw(len(index), rng).to(index.device)
        x = to_unit(data.augment.crop(data.augment.pad(data.clean.x), index, moves))
        return x, data.clean.y[index], (torch.rand(x.shape, generator=rng) - 0.5).sign().to(x.device)

    def errors(self, model, clean, moved, start, y):
        """Per feature map of a layer: the share of images taken for another class after a step that drives the map away."""
        wrong = []
        for channels in torch.arange(moved.shape[1]).split(16):  # this many batches go through the network at once
            slopes = [
                torch.autograd.grad((moved[:, k] - clean[:, k]).square().mean(), start, retain_graph=True)[0]
                for k in channels
            ]
            with torch.no_grad():
                pushed = torch.cat([(start + self.eps * slope.sign()).clamp(0, 1) for slope in slopes])
                wrong.append((model(pushed).argmax(1).view(len(channels), -1) != y).float().mean(1))
        return torch.cat(wrong)

    def cut(self, model, mask, data):
        names = {conv: name for name, conv in model.named_modules() if isinstance(conv, nn.Conv2d)}
        if self.pairing == "registration_order":
            mask = dict(zip(names.values(), mask.values(), strict=True))
        pairs = conv_bn_pairs(model, data.shape, self.pairing)
        return apply(model, mask | {bn: mask[names[conv]] for bn, conv in pairs.items()}, self.zeroes)


def feature_maps(model, x):
    """What each convolution makes of `x`, by name, in the order they run. Copies: an in-place ReLU may follow."""
    maps, names = {}, {module: name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    hooks = [c.register_forward_hook(lambda c, _, out: maps.update({names[c]: out.clone()})) for c in names]
    model(x)
    for hook in hooks:
        hook.remove()
    return maps
