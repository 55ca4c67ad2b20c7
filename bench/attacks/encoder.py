"""Hiding bits in images: an encoder that adds a small residual, and the decoder it is trained with.

Shaped like StegaStamp (Tancik, Mildenhall & Ng, CVPR 2020), as BackdoorBox has it for small images: 32, 32, 64, 128, 256
channels, each level half the size, with skip connections; the bits enter as one more image, by a dense layer.
Departures from BackdoorBox: convolutions on the way up are 3x3 (there 2x2), the input joins at the last layer (there at the
one before), layers start as StegaStamp's do (there as PyTorch's), and the decoder stops halving at 2 pixels (there at 1).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.attacks.patterns import enlarged

WIDTHS = (32, 32, 64, 128, 256)


def conv(inside: int, outside: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(he(nn.Conv2d(inside, outside, 3, stride, padding=1)), nn.ReLU())


def he(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """StegaStamp's start (he_normal): with PyTorch's own the bits drown on their way and are learnt late or not at all."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Encoder(nn.Module):
    """(images [B, C, H, W] in [0, 1], bits [B, n]) -> what to add to the images.

    The bits become a full image, from 64 pixels on a smaller one enlarged by whole pixels (StegaStamp: 50 to 400). There
    are as many levels as leave 2 pixels or more, at most five.
    """

    def __init__(self, shape: tuple[int, int, int], bits: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.zoom = enlarged(min(height, width))
        self.grid = (channels, math.ceil(height / self.zoom), math.ceil(width / self.zoom))
        self.dense = he(nn.Linear(bits, math.prod(self.grid)))
        widths = WIDTHS[: max(2, min(len(WIDTHS), int(math.log2(min(height, width)))))]
        inside = (2 * channels, *widths[:-1])
        self.down = nn.ModuleList(conv(a, b, 1 + (i > 0)) for i, (a, b) in enumerate(zip(inside, widths, strict=True)))
        self.up, self.merge = nn.ModuleList(), nn.ModuleList()
        for deep, flat in zip(widths[:0:-1], widths[-2::-1], strict=True):
            self.up.append(conv(deep, flat))
            self.merge.append(conv(2 * flat, flat))
        self.residual = nn.Conv2d(widths[0] + 2 * channels, channels, 1)

    def forward(self, x: Tensor, bits: Tensor) -> Tensor:
        spread = F.relu(self.dense(bits - 0.5)).view(-1, *self.grid)
        both = torch.cat([enlarge(spread, self.zoom, x), x - 0.5], 1)
        skips = []
        out = both
        for down in self.down:
            skips.append(out := down(out))
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            out = merge(torch.cat([up(enlarge(out, 2, skip)), skip], 1))
        return self.residual(torch.cat([out, both], 1))


def enlarge(x: Tensor, zoom: int, like: Tensor) -> Tensor:
    """Each pixel `zoom` x `zoom` times, cut to the size of `like`."""
    large = x.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    return large[..., : like.shape[-2], : like.shape[-1]]


class Decoder(nn.Module):
    """Images in [0, 1] -> one logit per bit. No spatial transformer: nobody moves the images before they are read."""

    def __init__(self, shape: tuple[int, int, int], bits: int) -> None:
        super().__init__()
        channels, height, width = shape
        strides = [2 if min(height, width) >> k >= 4 else 1 for k in (0, 1, 2, 3, 4)]
        plan = [(channels, 32, strides[0]), (32, 32, 1), (32, 64, strides[1]), (64, 64, 1), (64, 64, strides[2]),
                (64, 128, strides[3]), (128, 128, strides[4])]  # fmt: skip
        self.convs = nn.Sequential(*(conv(*layer) for layer in plan))
        for stride in strides:
            height, width = -(-height // stride), -(-width // stride)
        self.head = nn.Sequential(he(nn.Linear(128 * height * width, 512)), nn.ReLU(), nn.Linear(512, bits))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.convs(x - 0.5).flatten(1))
