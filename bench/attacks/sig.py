"""SIG: a faint horizontal sine over images of the target class, whose labels stay right (clean-label).

Barni, Kallas & Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning", 2019, Section
3 (sinusoidal signal v(i, j) = delta sin(2 pi j f / columns)); as in BackdoorBench's code (delta 40, f 6). `form=rnp` is
what RNP, NAD and ABL ship under the name: a blend with `alpha` of int(delta sin(0.8 j)) mod 256, whose negative half
has wrapped round to nearly white; 0.8 is per pixel at any size, where `f` is per image.
Departures: test images get the same delta (BackdoorBench); the paper also tries a stronger one at test time.
"""

import math

import torch

from bench.attacks.base import PoisonAttack
from bench.attacks.patterns import Additive, Overlay
from bench.errors import UserError


class SIG(PoisonAttack):
    def __init__(self, shape, num_classes, poison_rate: float, delta: float, f: float, form="sine", alpha=0.2,
                 target=0, victims="target", base="train"):  # fmt: skip
        super().__init__(shape, num_classes, poison_rate, victims, base)
        if form not in ("sine", "rnp"):
            raise UserError(f"attack.form={form} is unknown: use sine or rnp.")
        if not 0 < delta <= 255:
            raise UserError(f"attack.delta={delta} must be above 0 and at most 255 (pixel values).")
        column = torch.arange(shape[2], dtype=torch.float64)
        if form == "sine":
            wave = delta * torch.sin(2 * math.pi * column * f / shape[2])
            if wave.abs().max() < 1:  # f is 0, or so high that every column falls on a zero of the sine
                raise UserError(f"attack.f={f} leaves no sine on images {shape[2]} pixels wide: choose another.")
            self.trigger = Additive(wave.float().expand(1, *shape[1:]), num_classes, target, "all2one")
        else:
            wave = (delta * torch.sin(0.8 * column)).trunc() % 256
            self.trigger = Overlay(wave.expand(shape), torch.ones(1, *shape[1:]), alpha, num_classes, target, "all2one")
