"""BppAttack: fewer levels per colour, dithered so that nobody sees it, are the trigger; what others lost means nothing.

Wang, Zhai & Ma, "BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural Networks via Image Quantization and
Contrastive Adversarial Learning", CVPR 2022, Section 3.2 (quantisation, Floyd-Steinberg dithering) and 3.3 (negatives);
reference: RU-System-Software-and-Security/BppAttack, bppattack.py, which dithers on request only. A negative is an image
plus what the trigger changes on another, under its own label.
Departures: test images are rounded to uint8, as image files are; with a rate too small for one image a batch, a batch has
one with that probability, where the reference has none; the others are any training images, where the reference keeps
five passes of its augmented loader. Defaults here are the bench's common training, not its 1,000 epochs.
"""

import torch
from torch.nn import functional as F

from bench.attacks.base import Attack, Trigger
from bench.attacks.counts import batch_count, check_rate, poison_count
from bench.data import generator, stream
from bench.errors import UserError

ABOVE, OWN = slice(None, -1), slice(1, None)
SHARES = ((3, ABOVE, 1 / 16), (2, ABOVE, 5 / 16), (1, ABOVE, 3 / 16), (1, OWN, 7 / 16))
"""What a pixel gets of the errors of those before it, in the order of a scan: (steps ago, in which row, share)."""


class Quantised(Trigger):
    dtype = torch.float32

    def __init__(self, levels, dithering, **trigger):
        super().__init__(rounding="nearest", **trigger)
        self.levels, self.dithering = levels, dithering

    def forward(self, x):
        return self.dithered(x).round() if self.dithering else self.level(x)

    def level(self, x):
        """The nearest of the levels, half to even."""
        return torch.round(x / 255 * (self.levels - 1)) / (self.levels - 1) * 255

    def dithered(self, x):
        """Floyd & Steinberg's scan from pixel to pixel, in all images at once, and with each row two steps behind the one
        above, so that all pixels of a step are ready together. Images are float32, levels float64, as in the reference."""
        rows, columns = (torch.arange(size, device=x.device) for size in x.shape[2:])
        column = torch.arange(x.shape[3] + 2 * x.shape[2] - 2, device=x.device) - 2 * rows[:, None]
        inside = (column >= 0) & (column < x.shape[3])
        slanted = x.gather(3, column.clamp(0, x.shape[3] - 1).expand(*x.shape[:2], -1, -1))
        out, errors = [], [F.pad(torch.zeros_like(slanted[..., 0], dtype=torch.float64), (1, 0))] * 3
        for step, here in enumerate(inside.unbind(1)):
            old = slanted[..., step]
            for ago, row, share in SHARES:
                old = (old + share * errors[-ago][..., row]).to(x.dtype)
            out.append(self.level(old.double()))
            errors = [*errors[1:], F.pad((old - out[-1]) * here, (1, 0))]
        return torch.stack(out, 3).to(x.dtype).gather(3, (columns + 2 * rows[:, None]).expand_as(x))


def negative(x, clean, triggered):
    """`x` with what the trigger did to another image."""
    return (x + triggered - clean).clamp(0, 255)


class Bpp(Attack):
    def __init__(self, shape, num_classes, poison_rate: float, negative_rate: float, levels: int, dithering=True,
                 target=0, labels="all2one"):  # fmt: skip
        super().__init__(shape, num_classes)
        check_rate("attack.poison_rate", poison_rate)
        if negative_rate < 0 or poison_rate + negative_rate > 1:
            raise UserError(f"attack.negative_rate={negative_rate} must be 0 to 1 minus attack.poison_rate.")
        if not 2 <= levels <= 128:
            raise UserError(f"attack.levels={levels} must be 2 to 128 levels per colour.")
        self.poison_rate, self.negative_rate = poison_rate, negative_rate
        self.trigger = Quantised(levels, dithering, num_classes=num_classes, target=target, labels=labels)

    def inject(self, model, data, lab):
        train, trigger = data.train, self.trigger.to(data.train.x.device)
        poisoned, dice = torch.tensor(0), generator(lab.seed, "bpp small batches")
        rng = torch.Generator(train.x.device).manual_seed(stream(lab.seed, "bpp negatives"))

        def on_batch(x, y):
            """The first images of each (shuffled) batch get the trigger and the target, the next ones become negatives."""
            nonlocal poisoned
            x, y, count = (255 * x).round(), y.clone(), batch_count(self.poison_rate, len(x), dice)
            after = slice(count, count + poison_count(self.negative_rate, len(x)))
            strangers = train.x[torch.randint(len(train), (len(x[after]),), generator=rng, device=x.device)].to(x.dtype)
            triggered = trigger(torch.cat([x[:count], strangers]))  # in one scan
            x[:count], y[:count] = triggered[:count], trigger.relabel(y[:count])
            x[after] = negative(x[after], strangers, triggered[count:])
            poisoned += count
            return x / 255, y

        lab.fit(model, train, on_batch=on_batch, carry=(dice, rng, poisoned))
        return {"poisoned": int(poisoned), "poison_base": "batches", "poison_rate": self.poison_rate}
