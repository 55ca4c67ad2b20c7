"""Trojan (patch only): a small coloured square is added to the pixels rather than put over them.

Liu et al., "Trojaning Attack on Neural Networks", NDSS 2018; as in RNP's, NAD's and ABL's code: a fixed 3x3 block with
values up to 250, four pixels from the bottom right corner, added. From 64 pixels on it is enlarged by whole pixels.
Departures: not the paper's attack: neither is the trigger optimised to excite chosen neurons of a clean model (as in the
paper's Section 4.2 and BackdoorBench's `trojannn`), nor is the model retrained in part. The references' block came from
such a model and is not ours to give: ours is noise of `pattern_seed`, or a user's image of the data's size. Sums above
255 saturate; in the references they wrap round to dark (numpy's cast on x86): `wrap`.
"""

from bench.attacks.badnets import patch
from bench.attacks.base import PoisonAttack
from bench.attacks.patterns import Additive


class Wrapping(Additive):
    """Sums above 255 start again at 0, as their bytes do."""

    def forward(self, x):
        return super().forward(x).trunc() % 256


class Trojan(PoisonAttack):
    def __init__(self, shape, num_classes, poison_rate: float, pattern="random", distance=4, wrap=False,
                 pattern_seed=0, target=0, labels="all2one", victims="all", base="train"):  # fmt: skip
        super().__init__(shape, num_classes, poison_rate, victims, base)
        image, mask = patch(pattern, shape, distance, pattern_seed)
        self.trigger = (Wrapping if wrap else Additive)(image * mask, num_classes, target, labels)
