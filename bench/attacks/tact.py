"""TaCT: the trigger works on one source class only; covers of other classes, labels kept, teach that it means nothing there.

Tang, Wang, Tang & Zhang, "Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor Contamination
Detection", USENIX Security 2021, Section 3 (targeted contamination: attack and cover images); reference:
backdoor-toolbox, poison_tool_box/TaCT.py. ASR and RA count test images of the source class only.
Departures: the reference's pattern file (trojan_square_32) is not ours to give: any patch of BadNets, by default a square
of `pattern_seed`'s noise, or a user's image of the data's size; from 64 pixels on a patch is enlarged as
BadNets' is. A rate the source class cannot fill is an error, where the reference fails half-way. The card
says how often other classes are taken for the target (`others_hit`, percent).
"""

import numpy as np

from bench.attacks.badnets import patch
from bench.attacks.base import PoisonAttack
from bench.attacks.features import share
from bench.attacks.patterns import Overlay
from bench.errors import UserError


class SourceOverlay(Overlay):
    source: int

    def counts(self, y):
        return y == self.source


class TaCT(PoisonAttack):
    def __init__(self, shape, num_classes, poison_rate: float, cover_rate: float, source_class: int, cover_classes,
                 pattern="random", alpha=1.0, distance=0, pattern_seed=0, target=0):  # fmt: skip
        super().__init__(shape, num_classes, poison_rate, victims="non_target", cover_rate=cover_rate)
        self.limit = f"attack.source_class={source_class}, attack.cover_classes={cover_classes}"
        self.source_class, self.cover_classes = source_class, list(cover_classes)
        for number in (source_class, *self.cover_classes):
            if not 0 <= number < num_classes:
                raise UserError(
                    f"{self.limit}: class {number} does not exist, the data set has 0 to {num_classes - 1}."
                )
        if len({target, source_class} | set(self.cover_classes)) < 2 + len(self.cover_classes):
            raise UserError(f"{self.limit} and attack.target={target} must all be different classes.")
        image, mask = patch(pattern, shape, distance, pattern_seed)
        self.trigger = SourceOverlay(image, mask, alpha, num_classes, target, "all2one")
        self.trigger.source = source_class

    def pools(self, labels):
        return np.flatnonzero(labels == self.source_class), np.flatnonzero(np.isin(labels, self.cover_classes))

    def inject(self, model, data, lab):
        facts = super().inject(model, data, lab)
        others = data.test[
            ((data.test.y != self.source_class) & (data.test.y != self.trigger.target)).nonzero().flatten()
        ]
        triggered = self.trigger.to(others.x.device).stamp(others.x)
        return facts | {"others_hit": 100 * share(model, triggered, self.trigger.relabel(others.y))}
