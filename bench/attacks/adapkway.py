"""Adap-K-Way: a few coloured pixels, one of them on each poisoned image; all of them together are the trigger.

Qi, Xie, Li, Mahloujifar & Mittal, "Revisiting the Assumption of Latent Separability for Backdoor Defenses", ICLR 2023,
Section 4 (asymmetric triggers, regularisation samples: here `cover`); reference: backdoor-toolbox,
poison_tool_box/adaptive_k_way.py, with its pixels. Equal runs of the images, in the order of the training set, get
the same pixel, as there.
Departures: places are given for 32x32 images and taken in proportion, from 64 pixels on each is enlarged by whole pixels
(height // 32); gray images get the mean of the colour.
"""

import torch

from bench.attacks.adappatch import Patches
from bench.attacks.base import PoisonAttack
from bench.attacks.patterns import enlarged
from bench.errors import UserError


def dots(places, colours, shape):
    """(patterns [K, C, H, W] in 0..255, masks [K, 1, H, W])."""
    channels, height, width = shape
    zoom = enlarged(min(height, width))
    patterns, masks = torch.zeros(len(places), *shape), torch.zeros(len(places), 1, height, width)
    for pattern, mask, (row, col), colour in zip(patterns, masks, places, colours, strict=True):
        value = torch.tensor(colour, dtype=torch.float32)
        pattern[:] = (value if channels == 3 else value.mean().expand(channels))[:, None, None]
        row, col = row * height // 32, col * width // 32
        mask[:, row : row + zoom, col : col + zoom] = 1
    return patterns, masks


class AdapKWay(PoisonAttack):
    def __init__(
        self, shape, num_classes, poison_rate: float, cover_rate: float, places, colours, target=0, victims="all"
    ):
        super().__init__(shape, num_classes, poison_rate, victims, cover_rate=cover_rate)
        if not all(isinstance(at, list | tuple) and len(at) == 2 and {*at} <= {*range(32)} for at in places):
            raise UserError(f"attack.places={places} must be pairs (row, column) of 0 to 31.")
        if (
            len(colours) != len(places)
            or not places
            or any(len(c) != 3 or not 0 <= min(c) <= max(c) <= 255 for c in colours)
        ):
            raise UserError(
                f"attack.colours={colours} must be one [red, green, blue] of 0 to 255 for each of attack.places."
            )
        both = dots(places, colours, shape)
        self.trigger = Patches(both, both, num_classes, target)
