"""Blend: a fixed image mixed faintly into the whole picture is the trigger.

Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", 2017, Section 3.3 (blended
injection); as in ANP's and BackdoorBench's code. The pattern is noise drawn from `pattern_seed`, or a user's image
of the data's size; at any size the noise is drawn pixel by pixel.
Departures: the references ship pattern files (Hello Kitty, a noise image) that are not ours to give.
"""

import torch

from bench.attacks.base import PoisonAttack
from bench.attacks.patterns import Overlay, picture


class Blend(PoisonAttack):
    def __init__(self, shape, num_classes, poison_rate: float, alpha: float, pattern="gaussian",
                 pattern_seed=0, target=0, labels="all2one", victims="all", base="train"):  # fmt: skip
        super().__init__(shape, num_classes, poison_rate, victims, base)
        image = picture(pattern, shape, pattern_seed)
        self.trigger = Overlay(image, torch.ones(1, *shape[1:]), alpha, num_classes, target, labels)
