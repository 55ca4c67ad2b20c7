"""FTrojan: two frequencies of the colour channels are raised; hardly anything is to be seen.

Wang, Yao, Xu, An & Wang, "An Invisible Black-box Backdoor Attack through Frequency Domain", ECCV 2022, Section 4 (RGB to
YCrCb, block DCT, +magnitude at two positions of Cr and Cb, and back); as in BackdoorBench's code, with its defaults.
The orthonormal DCT is linear, so raising a coefficient adds a multiple of one cosine to the block: that is done here.
Bytes between the two conversions are rounded and truncated as there (OpenCV's 14-bit conversion).
Departures: one byte in seven comes out one above BackdoorBench's (none below), whose Y plane seems to go through the
DCT as well and to be cut off after it; values that leave 0..255 saturate, where BackdoorBench's bytes wrap.
BackdoorBench's yaml lists positions that crash it; these are the paper's pairs. Images smaller than the window are one
block, with the positions in proportion; larger ones have more blocks of the same size, and a border that fills none
stays as it is. Gray images have no colour: the gray is treated as Cr would be.
"""

import math

import torch

from bench.attacks.base import PoisonAttack, Trigger
from bench.errors import UserError


class Frequencies(Trigger):
    """`added`: [H, W], what the raised coefficients amount to in Cr and in Cb (`channels` 1 and 2)."""

    added: torch.Tensor

    def __init__(self, shape, channels, window, magnitude, positions, num_classes, target, labels):
        super().__init__(num_classes, target, labels)
        size = min(window, *shape[1:])
        block = sum(cosine(size, u * size // window)[:, None] * cosine(size, v * size // window) for u, v in positions)
        rows, cols = shape[1] // size, shape[2] // size
        image = torch.zeros(shape[1:], dtype=torch.float64)
        image[: rows * size, : cols * size] = magnitude * block.repeat(rows, cols)
        self.register_buffer("added", image)
        self.channels = channels

    def forward(self, x):
        added = self.added.to(x.dtype)
        if x.shape[1] == 1:
            return x + added
        planes = list(to_ycrcb(x))
        for channel in self.channels:
            planes[channel] = (planes[channel] + added + 1e-9).floor().clamp(0, 255)
        return to_rgb(*planes)


def cosine(size, k):
    """Row k of the orthonormal DCT-II of that size."""
    wave = torch.cos(math.pi * (torch.arange(size, dtype=torch.float64) + 0.5) * k / size)
    return wave * math.sqrt((1 if k == 0 else 2) / size)


def scaled(x):
    """OpenCV's fixed point: halves are rounded up after division by 2^14."""
    return (x / 2**14 + 0.5).floor()


def to_ycrcb(x):
    red, green, blue = x.unbind(1)
    y = scaled(4899 * red + 9617 * green + 1868 * blue)
    return y, *((scaled(part) + 128).clamp(0, 255) for part in (11682 * (red - y), 9241 * (blue - y)))


def to_rgb(y, cr, cb):
    cr, cb = cr - 128, cb - 128
    planes = [y + scaled(22987 * cr), y + scaled(-11698 * cr - 5636 * cb), y + scaled(29049 * cb)]
    return torch.stack(planes, 1).clamp(0, 255)


class FTrojan(PoisonAttack):
    def __init__(self, shape, num_classes, poison_rate: float, magnitude: float, window=32, positions=((15, 15), (31, 31)),
                 channels=(1, 2), target=0, labels="all2one", victims="all", base="train"):  # fmt: skip
        super().__init__(shape, num_classes, poison_rate, victims, base)
        pairs = [at for at in positions if isinstance(at, list | tuple) and len(at) == 2]
        if not pairs or pairs != [*positions] or not {k for at in pairs for k in at} <= {*range(window)}:
            raise UserError(f"attack.positions={positions} must be pairs of 0 to {window - 1} (attack.window).")
        if not set(channels) <= {0, 1, 2} or not channels or magnitude <= 0:
            raise UserError(f"attack.channels={channels} must be of 0 (Y), 1 (Cr), 2 (Cb), attack.magnitude above 0.")
        if shape[0] not in (1, 3):
            raise UserError(f"attack=ftrojan needs gray or RGB images, not {shape[0]} channels.")
        self.trigger = Frequencies(shape, channels, window, magnitude, positions, num_classes, target, labels)
