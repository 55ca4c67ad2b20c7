"""Networks that make a trigger from an image, for the attacks that train one with the classifier.

At 32x32 they are those of the papers' own code, layer by layer; smaller images get fewer stages, and where a side is odd
the way up restores the size that the way down had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.attacks.base import Trigger
from bench.data import stream
from bench.errors import UserError

N = TypeVar("N", bound=nn.Module)
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Learned(Trigger):
    """A trigger made by networks: they see images normalised by `mean` and `std`, and are frozen unless being trained.

    `usual`: the mean and std that the paper's code has for colour images, used if none are given; gray ones get 0.5 and
    0.5, as MNIST in that code.
    """

    dtype = torch.float32
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        usual: tuple[Sequence[float], Sequence[float]],
        num_classes: int,
        target: int,
        labels: str,
        rounding: str = "truncate",
    ) -> None:
        super().__init__(num_classes, target, labels, rounding)
        fallback = usual if shape[0] == len(usual[0]) else ([0.5] * shape[0],) * 2
        for name, given, default in (("mean", mean, fallback[0]), ("std", std, fallback[1])):
            values = torch.tensor(default if given is None else given, dtype=torch.float32)
            if values.shape != (shape[0],) or (name == "std" and values.min() <= 0):
                positive = "positive " if name == "std" else ""
                raise UserError(
                    f"attack.{name}={given} must be null or one {positive}number for each of {shape[0]} channels."
                )
            self.register_buffer(name, values.view(-1, 1, 1))

    def run(self, net: nn.Module, unit: Tensor) -> Tensor:
        """What the network makes of images in [0, 1], in float32 whatever the classifier is trained in."""
        with torch.autocast(unit.device.type, enabled=False):
            return net((unit.float() - self.mean) / self.std)


def seeded(seed: int, make: Callable[..., N], *settings: Any) -> N:
    """A new network whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(*settings)


def built(seed: int, make: Callable[..., nn.Module], *settings) -> nn.Module:
    """A frozen network whose first weights are drawn from the seed alone."""
    return frozen(seeded(stream(seed, "generator"), make, *settings))


def frozen(net: nn.Module) -> nn.Module:
    """The network as it is used: in eval mode, and laid out in memory as when it is loaded."""
    return net.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)


def beside(
    net: nn.Module, lr: float, milestones: Sequence[int], zero_grad: bool = True, carry: tuple[Any, ...] = ()
) -> dict[str, Any]:
    """Hooks of `fit` that train a network by its own Adam with the classifier's loss: x 0.1 at each milestone (epoch).

    Without `zero_grad` gradients add up over the whole training. `carry`: see `fit`; what else the attack's hooks hold.
    """
    adam = torch.optim.Adam(net.train().requires_grad_().parameters(), lr, (0.5, 0.9))
    schedule = torch.optim.lr_scheduler.MultiStepLR(adam, milestones)

    def after_step() -> None:
        adam.step()
        if zero_grad:
            adam.zero_grad()

    return {
        "after_step": after_step,
        "after_epoch": lambda epoch: schedule.step(),
        "carry": (net, adam, schedule, *carry),
    }


def stages(shape: Sequence[int], most: int = 3) -> int:
    """How often images are halved: at most three times, and never below 4 pixels: 3 at 32x32, 2 at 28x28, 1 at 8x8."""
    side, count = min(shape[-2:]), 0
    while count < most and side >> (count + 1) >= 4:
        count += 1
    return count


def block(inside: int, outside: int, relu: bool = True) -> nn.Sequential:
    """conv3x3-BN(-ReLU), with the slowly moving statistics of the input-aware attack."""
    layers = [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside, momentum=0.05)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class EncoderDecoder(nn.Module):
    """Input-aware attack: two blocks at each size on the way down, one in the middle, two on the way up; no shortcuts.

    32, 64 and 128 channels; from 16 on for images below 32 pixels, as the paper's code has it for MNIST.
    """

    def __init__(self, shape: tuple[int, int, int], outside: int) -> None:
        super().__init__()
        if stages(shape) == 0:
            raise UserError(
                f"attack=inputaware halves the images: {shape[1]}x{shape[2]} pixels are too few, 8x8 the least."
            )
        first = 32 if min(shape[1:]) >= 32 else 16
        widths = [first << stage for stage in range(stages(shape))]
        ins, outs = [shape[0], *widths[:-1]], [outside, *widths[:-1]]
        self.down = nn.ModuleList(nn.Sequential(block(i, w), block(w, w)) for i, w in zip(ins, widths, strict=True))
        self.middle = block(widths[-1], widths[-1])
        self.up = nn.ModuleList(
            nn.Sequential(block(w, w), block(w, o, relu=stage > 0))
            for stage, (w, o) in reversed(list(enumerate(zip(widths, outs, strict=True))))
        )

    def forward(self, x: Tensor) -> Tensor:
        sizes = []
        for part in self.down:
            sizes.append(x.shape[2:])
            x = F.max_pool2d(part(x), 2)
        x = self.middle(x)
        for part, size in zip(self.up, reversed(sizes), strict=True):
            x = part(F.interpolate(x, size, mode="bilinear"))
        return squash(x)


def squash(x: Tensor) -> Tensor:
    """tanh into (0, 1), the ends left out, as the input-aware attack has it."""
    return x.tanh() / (2 + 1e-7) + 0.5


def double(inside: int, outside: int) -> nn.Sequential:
    """Twice conv3x3-BN-ReLU."""
    layers: list[nn.Module] = []
    for width in (inside, outside):
        layers += [nn.Conv2d(width, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """LIRA on CIFAR-10: 64 channels and twice as many at each stage, average pooling, shortcuts, tanh at the end."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        widths = [64 << stage for stage in range(stages(shape) + 1)]
        self.down = nn.ModuleList(double(i, w) for i, w in zip([shape[0], *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(double(w + 2 * w, w) for w in reversed(widths[:-1]))
        self.last = nn.Sequential(nn.Conv2d(64, shape[0], 1), nn.BatchNorm2d(shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for stage, part in enumerate(self.down):
            x = part(F.avg_pool2d(x, 2) if stage else x)
            kept.append(x)
        for part, shortcut in zip(self.up, reversed(kept[:-1]), strict=True):
            x = F.interpolate(x, shortcut.shape[2:], mode="bilinear", align_corners=True)
            x = part(torch.cat([x, shortcut], 1))
        return self.last(x).tanh()


class Autoencoder(nn.Module):
    """LIRA on GTSRB: 16, 32, 64 and 128 channels, each behind a conv4x4 of stride 2, and back; tanh at the end.

    As many of them as halve the image down to 2 pixels or to an odd number.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        count = 0
        while count < 4 and all(side % (2 << count) == 0 and side >> (count + 1) >= 2 for side in shape[1:]):
            count += 1
        if count == 0:
            raise UserError(
                f"attack.generator=autoencoder needs an even height and width, not {shape[1]}x{shape[2]}: use unet."
            )
        widths = [shape[0], *(16 << stage for stage in range(count))]
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            layers += [nn.Conv2d(i, o, 4, stride=2, padding=1), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
        for i, o in zip(widths[:0:-1], widths[-2::-1], strict=True):
            layers += [nn.ConvTranspose2d(i, o, 4, stride=2, padding=1), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers[:-2], nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
