"""CLP (ECCV'22): channels with an outlying Lipschitz bound carry the trigger. Needs no data at all.

Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness", Eq. 12-14 (upper bound of a channel's Lipschitz
constant) and Algorithm 1; reference: github.com/rkteddy/channel-Lipschitzness-based-pruning, defense.py.
Departures: a BatchNorm is paired with the convolution whose output it reads (`pairing=dataflow`), not with the one
registered before it, which is wrong on pre-activation networks (`pairing=registration_order` gives the published pairs).
A BatchNorm that no convolution feeds is not pruned. A layer with a non-positive running variance is refused by name,
where the reference crashes in its SVD. Largest singular values come from the Gram matrix: equal to 1e-6, 6-10x faster.
"""

import torch

from bench.defenses.base import PruningDefense
from bench.errors import UserError
from bench.layers import batch_norms, check_pairing, conv_bn_pairs, running_variance

BLOCK = 1 << 16  # weights that become doubles at once: so they stay in the cache, for the same bits


class CLP(PruningDefense):
    needs = "nothing"

    def __init__(self, pairing="dataflow", **pruning):
        super().__init__(**pruning)
        self.pairing = pairing
        check_pairing(pairing)

    def score(self, model, data):
        layers = batch_norms(model, "CLP")
        pairs = conv_bn_pairs(model, data.shape, self.pairing)
        if not pairs:
            raise UserError("CLP needs convolutions followed directly by a BatchNorm2d; this network has none.")
        return {name: lipschitz(conv.weight.detach(), layers[name], name) for name, conv in pairs.items()}


def lipschitz(weight, bn, name):
    """Per output channel: the largest singular value of the kernel seen as [C_in, kh * kw], times |gamma| / sqrt(var)."""
    variance = running_variance(bn, name, "CLP")
    kernels = weight.flatten(2) if weight[0, 0].numel() > weight.shape[1] else weight.flatten(2).mT
    gram = torch.cat([(k := part.double()) @ k.mT for part in kernels.split(max(1, BLOCK // weight[0].numel()))])
    sigma = torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0).sqrt()
    return (sigma * (bn.weight / variance.sqrt()).abs().detach()).float()
