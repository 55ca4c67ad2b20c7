"""FP (RAID'18): prune the features that sleep on clean images, where a backdoor may hide, then fine-tune.

Liu, Dolan-Gavitt & Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks", Section 3.3; settings
as in BackdoorBench's defense/fp.py, which prunes inputs of the classifier: the pooled channels of the last stage.
Departures: how far to prune is not searched here but chosen outside, like every pruner's operating point; paper and
BackdoorBench prune until the clean accuracy falls (there on the test set, one step too far, and counting one channel less
than said). So every point of the curve is a model pruned so far and then fine-tuned. Activations are those of the images
as they are, not augmented. The fine-tuning's cosine falls batch by batch (BackdoorBench: epoch by epoch), in float32 (there AMP).
"""

import copy

import torch
from torch import nn

from bench.defenses.base import PruningDefense
from bench.errors import UserError
from bench.training import to_unit


class FP(PruningDefense):
    zeroable = ("weight",)

    @torch.no_grad()
    def score(self, model, data):
        model = copy.deepcopy(model).eval()
        linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        if not linear:
            raise UserError("FP prunes the inputs of the last Linear layer, and this network has none.")
        (name, last), seen = list(linear.items())[-1], []
        last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        model(to_unit(data.clean.x))
        return {name: -seen[-1].mean(0)}

    def cut(self, model, mask, data):
        for name, asleep in mask.items():
            weight = model.get_submodule(name).weight
            weight.data[:, asleep.to(weight.device)] = 0
        return model
