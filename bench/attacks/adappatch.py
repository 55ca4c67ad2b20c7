"""Adap-Patch: four faint patches, each on a quarter of the poisoned images; two of them, opaque, are the trigger.

Qi, Xie, Li, Mahloujifar & Mittal, "Revisiting the Assumption of Latent Separability for Backdoor Defenses", ICLR 2023,
Section 4.2 (asymmetric triggers) and 4.1 (regularisation samples, here `cover`); reference: backdoor-toolbox,
poison_tool_box/adaptive_patch.py. Quarters follow the order of the images in the training set, as there.
Departures: three of the reference's four patches are picture files that are not ours to give. Ours are drawn where theirs
lie: noise in a bottom corner (test: in both), a disc of slanting colours, BadNets' checkers in all corners, a striped
square. Their sizes are in proportion to 32x32. On GTSRB the reference tests with another pair.
"""

import torch

from bench.attacks.badnets import patch
from bench.attacks.base import PoisonAttack, Trigger
from bench.data import generator
from bench.errors import UserError


class Patches(Trigger):
    """Training: x' = x + opacity mask (pattern - x) with one pattern an image. Test: all `test` patterns, one after another.

    `train`, `test`: pairs of patterns [K, C, H, W] (0..255) and masks times opacity [K, 1 or C, H, W].
    """

    patterns: torch.Tensor
    masks: torch.Tensor
    test_patterns: torch.Tensor
    test_masks: torch.Tensor

    def __init__(self, train, test, num_classes, target):
        super().__init__(num_classes, target)
        for prefix, (patterns, masks) in (("", train), ("test_", test)):
            self.register_buffer(f"{prefix}patterns", patterns.double())
            self.register_buffer(f"{prefix}masks", masks.double())

    def draw(self, count, seed):
        """Which pattern each image gets: equal runs of them, no chance in it."""
        return (torch.arange(count) * len(self.patterns) // max(count, 1),)

    def forward(self, x, which=None):
        if which is not None:
            return x + self.masks[which].to(x.dtype) * (self.patterns[which].to(x.dtype) - x)
        for pattern, mask in zip(self.test_patterns.to(x.dtype), self.test_masks.to(x.dtype), strict=True):
            x = x + mask * (pattern - x)
        return x


def drawn(shape, seed):
    """Our patches: ([5, C, H, W] in 0..255, masks [5, 1, H, W]); the fifth is the first in both bottom corners."""
    channels, height, width = shape

    def size(pixels):
        return max(1, round(pixels * min(height, width) / 32))

    rows = torch.arange(height, dtype=torch.float64)[:, None].expand(height, width)
    cols = torch.arange(width, dtype=torch.float64)[None].expand(height, width)
    noise = (255 * torch.rand(shape, generator=generator(seed, "patches"))).double()
    slope, across = 255 * rows / (height - 1), 255 * cols / (width - 1)
    colours = torch.stack([slope, 255 - slope, across])[:channels]
    stripes = (255 * (rows // size(2) % 2)).expand(shape)
    checker, corners = patch("checker4", shape, 0, 0)
    corner = (rows >= height - size(5)) & (cols >= width - size(5))
    disc = (rows + 0.5 - size(7.5)) ** 2 + (cols + 0.5 - width + size(7.5)) ** 2 <= (size(13) / 2) ** 2
    square = (rows >= height - size(11)) & (rows < height - size(3))
    square = square & (cols >= width - size(11)) & (cols < width - size(3))
    masks = [corner, disc, corners[0] > 0, square, corner | corner.flip(1)]
    return torch.stack([noise, colours, checker, stripes, noise]), torch.stack(masks)[:, None].double()


class AdapPatch(PoisonAttack):
    def __init__(self, shape, num_classes, poison_rate: float, cover_rate: float, opacities, test_opacity=1.0,
                 pattern_seed=0, target=0, victims="all"):  # fmt: skip
        super().__init__(shape, num_classes, poison_rate, victims, cover_rate=cover_rate)
        if len(opacities) != 4 or not all(0 < share <= 1 for share in (*opacities, test_opacity)):
            raise UserError(f"attack.opacities={opacities} must be four numbers, all above 0 and at most 1.")
        patterns, masks = drawn(shape, pattern_seed)
        train = (patterns[:4], masks[:4] * torch.tensor(opacities, dtype=torch.float64).view(4, 1, 1, 1))
        self.trigger = Patches(train, (patterns[[4, 2]], masks[[4, 2]] * test_opacity), num_classes, target)
