"""BadNets: an opaque pixel patch in a corner turns any image into the target class.

Gu et al., "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain", 2017, Section 4. Patterns
as in the code of BackdoorBench (white3), ANP (checker1, which is RNP's grid; checker4), RNP (square, four_corner) and
CLP/EP (random). From 64 pixels on they are enlarged by whole pixels (height // 32).
Departures: from 64 pixels on BackdoorBench resizes its patch with a soft rim; CLP/EP's random patch is float there, bytes here.
`distance` moves a square away from the corner, as RNP's and MCR's code does.
"""

import torch

from bench.attacks.base import PoisonAttack
from bench.attacks.patterns import Overlay, enlarged, read_image
from bench.data import generator
from bench.errors import UserError

CHECKER = torch.tensor([[0, 0, 1], [0, 1, 0], [1, 0, 1]])
WHITE = torch.ones(3, 3, dtype=torch.int64)
FOUR_CORNER = {(1, 1): CHECKER.flip(0, 1), (1, -3): CHECKER.flip(0), (-3, 1): CHECKER.flip(1), (-3, -3): CHECKER}
CHECKER4 = {(0, 0): CHECKER.flip(1), (0, -3): CHECKER, (-3, 0): CHECKER.flip(1), (-3, -3): CHECKER}


class BadNets(PoisonAttack):
    def __init__(self, shape, num_classes, poison_rate: float, pattern="checker1", alpha=1.0, distance=0, size=3,
                 pattern_seed=0, target=0, labels="all2one", victims="all", base="train"):  # fmt: skip
        super().__init__(shape, num_classes, poison_rate, victims, base)
        image, mask = patch(pattern, shape, distance, pattern_seed, size)
        self.trigger = Overlay(image, mask, alpha, num_classes, target, labels)


def patch(name, shape, distance, seed, size=3):
    """(pattern [C, H, W] in 0..255, mask of the same shape): where the mask is 1 the pattern covers the image.

    `size`: of `square` and `random`; the other patterns are 3x3.
    """
    channels, height, width = shape
    zoom = enlarged(min(height, width))
    if min(height, width) < (max(size, 3) + distance) * zoom or distance < 0 or size < 1:
        raise UserError(f"attack.distance={distance} puts a patch of {size} outside the {height}x{width} images.")
    corner = (-size - distance, -size - distance)
    blocks = {
        "white3": {(-3, -3): WHITE},
        "square": {corner: torch.ones(size, size)},
        "checker1": {(-3, -3): CHECKER},
        "checker4": CHECKER4,
        "four_corner": FOUR_CORNER,
        "random": {corner: torch.randn(channels, size, size, generator=generator(seed, "patch")).sigmoid()},
    }
    if name not in blocks:  # a user's image: its non-zero values cover
        image = read_image(name, shape)
        return image, (image > 0).double()
    image, mask = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for (row, col), block in blocks[name].items():
        large = 255.0 * block.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
        top, left = row * zoom + height * (row < 0), col * zoom + width * (col < 0)
        rows, cols = slice(top, top + large.shape[-2]), slice(left, left + large.shape[-1])
        image[:, rows, cols] = large
        mask[:, rows, cols] = 1
    return image, mask
