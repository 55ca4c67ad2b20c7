"""CLP (ECCV'22): channels with an outlying Lipschitz bound carry the trigger. Needs no data at all.

Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness", Eq. 12-14 (upper bound of a channel's Lipschitz
constant) and Algorithm 1; reference: github.com/rkteddy/channel-Lipschitzness-based-pruning, defense.py.
Departures: a BatchNorm is paired with the convolution whose output it reads (`pairing=dataflow`), not with the one
registered before it, which is wrong on pre-activation networks (`pairing=registration_order` gives the published pairs).
A BatchNorm that no convolution feeds is not pruned. A layer with a non-positive running variance is refused by name,
where the reference crashes in its SVD. Largest singular values come from the Gram matrix: equal to 1e-6, 6-10x faster.
"""

from concurrent.futures import ThreadPoolExecutor

import torch

from bench.defenses.base import PruningDefense
from bench.errors import UserError
from bench.layers import batch_norms, conv_bn_pairs, running_variance


class CLP(PruningDefense):
    needs = "nothing"

    def __init__(self, pairing="dataflow", **pruning):
        super().__init__(**pruning)
        self.pairing = pairing

    def score(self, model, data):
        layers = batch_norms(model, "CLP")
        pairs = conv_bn_pairs(model, data.shape, self.pairing)
        if not pairs:
            raise UserError("CLP needs convolutions followed directly by a BatchNorm2d; this network has none.")
        norms = spectral_norms([conv.weight.detach() for conv in pairs.values()])
        return {name: lipschitz(norm, layers[name], name) for name, norm in zip(pairs, norms, strict=True)}


def lipschitz(norm, bn, name):
    """Per output channel: the spectral norm of its kernel times |gamma| / sqrt(var)."""
    variance = running_variance(bn, name, "CLP")
    return (norm * (bn.weight / variance.sqrt()).abs().detach()).float()


def spectral_norms(weights):
    """Of each weight, per output channel: the largest singular value of the kernel seen as [C_in, kh * kw], float64."""
    squares = [gram(weight.flatten(2).double()) for weight in weights]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # on a CPU eigvalsh by itself stays on one core
        return list(pool.map(lambda square: torch.linalg.eigvalsh(square)[:, -1].clamp(min=0).sqrt(), squares))


def gram(kernel):
    """[n, a, b] -> the products of its rows or of its columns, whichever are fewer: [n, min(a, b), min(a, b)]."""
    small = kernel if kernel.shape[1] < kernel.shape[2] else kernel.mT
    return small @ small.mT
