"""Refool: the image seems to be seen through a window pane that mirrors another picture, doubled or out of focus.

Liu, Ma, Bailey & Lu, "Reflection Backdoor: A Natural Backdoor Attack on Deep Neural Networks", ECCV 2020, Section 3.2;
as in BackdoorBench's code (labels changed, alpha 0.4, ghost rate 0.49), where each image, test images too, gets a
reflection and parameters of its own. Clean-label, as the paper: victims=target.
Departures: the authors' 200 selected pictures are not ours to give: random training images stand in for them, or those
of a user's folder; no trial trainings select them. Shifts are at most a quarter of the side, blur is in pixels at any
size; the mask of the blurred kind has the image's own shape, where the reference cuts it from a square.
"""

import torch

from bench.attacks.base import PoisonAttack, Trigger
from bench.attacks.patterns import blur, bump, read_folder, stretch
from bench.data import generator
from bench.errors import UserError

GAMMA = 2.2


class Reflection(Trigger):
    at_once = 2**20
    reflections: torch.Tensor  # uint8 [R, C, H, W], black until the attack has seen its training set

    def __init__(self, reflections, alpha, ghost_rate, test_seed, num_classes, target, labels):
        super().__init__(num_classes, target, labels)
        self.alpha, self.ghost_rate, self.test_seed = alpha, ghost_rate, test_seed
        self.register_buffer("reflections", reflections)

    def draw(self, count, seed):
        """For each image: its reflection, whether it is a ghost, shift down, right, share of a copy, sigma, attenuation."""
        u = torch.rand(8, count, generator=generator(seed, "reflections"), dtype=torch.float64)
        shifts = (3 + 6 * u[2:4]).floor().clamp(max=min(self.reflections.shape[2:]) // 4)
        share = ((u[4] < 0.5).double() - (0.15 + 0.35 * u[5])).abs()
        which, ghostly = (u[0] * len(self.reflections)).long(), u[1] < self.ghost_rate
        return which, ghostly, *shifts, share, 1 + 4 * u[6], 1.08 + u[7] / 10

    def stamp(self, x, *drawn):
        return super().stamp(x, *(drawn or self.draw(len(x), self.test_seed)))

    def forward(self, x, *drawn):
        which, ghostly, *numbers = (d.to(x.device) for d in drawn or self.draw(len(x), self.test_seed))
        out, mirrored = ((image.to(x.dtype) / 255) ** GAMMA for image in (x, self.reflections[which]))
        for rows, way in ((ghostly, ghost), (~ghostly, focal)):
            picked = [number[rows].to(x.dtype)[:, None, None, None] for number in numbers]
            out[rows] = way(self.alpha, out[rows], mirrored[rows], *picked)
        return 255 * out.clamp(0, 1) ** (1 / GAMMA)


def ghost(alpha, light, mirrored, down, right, share, sigma, attenuation):
    """Two copies of the reflection, one moved: the part that both fill, stretched to the whole image."""
    height, width = light.shape[2:]
    one, other = (stretch(height, down, k) @ mirrored @ stretch(width, right, k).mT for k in (1, 0))
    return (share * one + (1 - share) * other) * (1 - alpha) + light * alpha


def focal(alpha, light, mirrored, down, right, share, sigma, attenuation):
    """A blurred reflection, dimmed where the sum would be too bright, and strongest in the middle."""
    height, width = light.shape[2:]
    soft = blur(height, sigma) @ mirrored @ blur(width, sigma).mT
    both = soft.float() + light.float()  # as the reference: white stays 1 under the dust that a blur leaves far away
    bright = both > 1
    mean = (both.to(soft) * bright).sum((2, 3), keepdim=True) / (bright.sum((2, 3), keepdim=True) + 1e-6)
    soft = (soft - (mean.clamp(min=1) - 1) * attenuation).clamp(0, 1)
    return soft * bump(height, light)[:, None] * bump(width, light) * (1 - alpha / 2) + light * alpha


class Refool(PoisonAttack):
    def __init__(self, shape, num_classes, poison_rate: float, alpha: float, ghost_rate: float, reflections=200, folder=None,
                 test_seed=0, target=0, labels="all2one", victims="all", base="train"):  # fmt: skip
        super().__init__(shape, num_classes, poison_rate, victims, base)
        if not 0 < alpha < 1 or not 0 <= ghost_rate <= 1 or reflections < 1:
            raise UserError("attack.alpha and attack.ghost_rate must be in 0..1, attack.reflections at least 1.")
        self.folder, self.reflections = folder, reflections
        pictures = read_folder(folder, shape) if folder else torch.zeros(reflections, *shape, dtype=torch.uint8)
        self.trigger = Reflection(pictures, alpha, ghost_rate, test_seed, num_classes, target, labels)

    def prepare(self, data, lab):
        if not self.folder:
            picked = torch.randint(len(data.train), (self.reflections,), generator=generator(lab.seed, "reflections"))
            self.trigger.get_buffer("reflections").copy_(data.train.x[picked.to(data.train.x.device)])
