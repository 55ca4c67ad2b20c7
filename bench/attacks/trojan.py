"""Trojan: a small pattern that excites chosen neurons of a clean model is added to the pixels.

Liu et al., "Trojaning Attack on Neural Networks", NDSS 2018, Section IV.A and Algorithm 1 (neurons with the strongest
connections, trigger by gradient descent inside a mask); as in BackdoorBench's `trojannn`: signed gradients, a bounded
change, the inputs of the last linear layer. `optimise=false` adds the start itself; with pattern=random that is the fixed
3x3 block of RNP's, NAD's and ABL's code, from 64 pixels on enlarged by whole pixels.
Departures: the start is noise in a disc as large as BackdoorBench's picture of an apple, which is not ours to give (nor
is the block of RNP, which came from such a model), or any patch of badnets, or a user's image of the data's size. The
clean model sees the pattern normalised like any image; BackdoorBench leaves that out. A descent that reaches its goal
ends before its step, not after. As in BackdoorBench the victim is trained from scratch on poisoned data; the paper
retrains the late layers of the clean model on reverse-engineered inputs. Sums above 255 saturate; in the references
they wrap round to dark (numpy's cast on x86): `wrap`.
"""

import torch

from bench.attacks.badnets import patch
from bench.attacks.base import PoisonAttack
from bench.attacks.features import last_layer
from bench.attacks.patterns import Additive, enlarged, noise
from bench.errors import UserError


class Wrapping(Additive):
    """Sums above 255 start again at 0, as their bytes do."""

    def forward(self, x):
        return super().forward(x).trunc() % 256


def disc(shape, distance, seed):
    """Noise in a disc, `distance` pixels from the bottom and the right, on black: [C, H, W] in 0..255."""
    height, width = shape[1:]
    size = 3 * min(height, width) / 8
    away = distance * enlarged(min(height, width)) + size / 2
    if distance < 0 or away + size / 2 > min(height, width):
        raise UserError(f"attack.distance={distance} puts the pattern outside the {height}x{width} images.")
    rows, cols = (torch.arange(side) + 0.5 - (side - away) for side in (height, width))
    return noise("uniform", shape, seed).clamp(min=1) * (rows[:, None] ** 2 + cols**2 <= (size / 2) ** 2)


def excite(model, start, neurons, goal, bound, step, steps, tolerance):
    """Moves the non-black values of `start` [C, H, W] so that these inputs of the model's last linear layer reach `goal`."""
    last = last_layer(model)
    picked = last.weight.detach().abs().sum(0).argsort(descending=True, stable=True)[:neurons]
    seen, moved = [], start
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        for _ in range(steps):
            moved = moved.detach().requires_grad_()
            model(moved[None] / 255)
            cost = ((seen.pop()[..., picked] - goal) ** 2).sum()
            if cost < tolerance:
                break
            change = moved - step * torch.autograd.grad(cost, moved)[0].sign() - start
            moved = ((start + change.clamp(-bound, bound)) * (start > 0)).clamp(0, 255)
    finally:
        hook.remove()
    return moved.detach().floor()


class Trojan(PoisonAttack):
    def __init__(self, shape, num_classes, poison_rate: float, neurons: int, goal: float, bound: float, step: float, steps: int,
                 tolerance: float, pattern="disc", optimise=True, distance=4, wrap=False, pattern_seed=0, target=0,
                 labels="all2one", victims="all", base="train"):  # fmt: skip
        super().__init__(shape, num_classes, poison_rate, victims, base)
        if neurons < 1 or steps < 1 or bound <= 0 or step <= 0:
            raise UserError("attack.neurons and attack.steps must be at least 1, attack.bound and attack.step above 0.")
        self.needs_clean = optimise
        self.descent = {"neurons": neurons, "goal": goal, "bound": bound, "step": step, "steps": steps,
                        "tolerance": tolerance}  # fmt: skip
        if pattern == "disc":
            start = disc(shape, distance, pattern_seed).double()
        else:
            image, mask = patch(pattern, shape, distance, pattern_seed)
            start = image * mask
        self.trigger = (Wrapping if wrap else Additive)(start, num_classes, target, labels)

    @property
    def learned(self):
        return self.needs_clean

    def prepare(self, data, lab):
        if self.needs_clean:
            start = self.trigger.pattern.to(data.train.x.device).float()
            self.trigger.pattern = excite(lab.clean, start, **self.descent).to(self.trigger.pattern)
