"""What the rows work on: how large, which network, which images. No download: scikit-learn's digits, enlarged."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench import machine
from bench.attacks.badnets import BadNets
from bench.attacks.base import Trigger
from bench.data import Augment, Dataset, Defender, ImageSet, generator
from bench.datasets import digits
from bench.metrics import Exam
from bench.models import normalised, resnet18, vgg
from bench.plan import Plan
from bench.training import fit

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True)
class Size:
    """How much of everything. The default is what the papers have, so far as two cores do it in minutes."""

    name: str = "full"
    width: int = 64
    pixels: int = 32
    mix: int = 500  # images of EP, BNP
    batch: int = 128  # of training and mask search
    iterations: int = 1  # of ANP, timed at once
    search: int = 120  # iterations of the masks that are compared at the end (on the small network)
    tested: int = 512  # clean test images of the evaluation row
    poisoned: int = 1800
    loaded: int = 5000
    tune: int = 125  # RNP: a quarter of the paper's images, and of its test set
    examined: int = 2500
    unlearned: int = 21  # epochs at most
    recovered: int = 20
    trained: int = (
        8  # iterations that the large network is trained for, so that its statistics are not the initial ones
    )
    repeats: int = 5
    patience: float = 25.0  # seconds after which a row begins no further repeat

    @property
    def small(self) -> bool:
        return self.name != "full"


QUICK = Size("quick", width=16, iterations=2, pixels=16, mix=64, batch=32, search=3, tested=96, poisoned=64, loaded=128, tune=64,
             examined=80, unlearned=3, recovered=5, trained=4, repeats=1, patience=3.0)  # fmt: skip
"""What a test can afford; says nothing of speed."""


class Setting:
    """Networks and images of one size, each made when first asked for. `threads`: what torch has been told."""

    def __init__(self, size: Size) -> None:
        self.size = size

    @cached_property
    def data(self) -> Dataset:
        """Digits at `pixels` x `pixels`, RGB, cropped and flipped in training as CIFAR-10 is.

        On a noisy ground: where much of an image is black, a channel's maximum is the same on all, and EP's own code stops.
        """
        found = digits(self.size.pixels, 200, 500, 0, Augment(shift=4, flip=True), MEAN, STD)
        rng = generator(0, "benchmark ground")

        def noisy(images: ImageSet) -> ImageSet:
            ground = torch.randint(100, images.x.shape, generator=rng, dtype=torch.uint8)
            return ImageSet(images.x.maximum(ground), images.y)

        return replace(found, train=noisy(found.train), heldout=noisy(found.heldout), test=noisy(found.test))

    @cached_property
    def bf16(self) -> bool:
        """Whether this CPU computes in bfloat16. One that imitates it would take ten times as long for those variants."""
        return machine.precision("cpu") == "bf16"

    def images(self, count: int) -> ImageSet:
        """`count` images of the training part, repeated if there are fewer."""
        index = torch.arange(count) % len(self.data.train)
        return self.data.train[index]

    @cached_property
    def trigger(self) -> Trigger:
        """BadNets' 3x3 patch."""
        return BadNets(self.data.shape, 10, 0.1).trigger

    def exam(self, count: int) -> Exam:
        index = torch.arange(count) % len(self.data.test)
        return Exam.of(self.data.test[index], self.trigger)

    @cached_property
    def network(self) -> nn.Module:
        """ResNet-18 of that width with a weakly trained backdoor: real statistics, and nothing to be said of quality."""
        torch.manual_seed(0)
        net = normalised(resnet18(10, 3, self.size.width), MEAN, STD)
        poisoned = BadNets(self.data.shape, 10, 0.1).poison(self.data.train, _rng(), 0)[0]
        plan = Plan(
            iterations=self.size.trained,
            batch_size=64,
            lr=0.05,
            schedule="onecycle",
            precision=machine.precision("cpu"),
        )
        fit(net, poisoned, plan, seed=0)
        return net.to(memory_format=torch.contiguous_format)

    @cached_property
    def small_data(self) -> Dataset:
        """The demo's own: digits at 16x16."""
        return digits(16, 200, 500, 0, Augment(shift=1), (0.5,) * 3, (1.0,) * 3)

    @cached_property
    def small_network(self) -> nn.Module:
        """The demo's network with BadNets in it, trained as the demo trains it."""
        torch.manual_seed(0)
        net = normalised(vgg([32, 32, "M", 64, 64, "M", 64], 10, 3, conv_bias=False), (0.5,) * 3, (1.0,) * 3)
        poisoned = BadNets(self.small_data.shape, 10, 0.1).poison(self.small_data.train, _rng(), 0)[0]
        epochs = 2 if self.size.small else 12
        plan = Plan(
            epochs, batch_size=64, lr=0.1, nesterov=True, weight_decay=1e-3, schedule="onecycle", drop_last=True
        )
        fit(net, poisoned, plan, seed=0, augment=self.small_data.augment)
        return net.to(memory_format=torch.contiguous_format)

    @cached_property
    def small_trigger(self) -> Trigger:
        return BadNets(self.small_data.shape, 10, 0.1).trigger

    @cached_property
    def small_test(self) -> Dataset:
        """The demo's data with a test set as large as asked for: the digits, shifted by up to a pixel."""
        test, count = self.small_data.test, self.size.examined
        index = torch.arange(count) % len(test)
        augment = self.small_data.augment
        moves = augment.draw(count, generator(0, "benchmark"))
        moved = augment.crop(augment.pad(test.x), index, moves).contiguous()
        data = self.small_data
        return Dataset(data.train, data.heldout, ImageSet(moved, test.y[index]), 10, data.mean, data.std, augment)

    def defender(self, data: Dataset, count: int, poisoned: bool = False) -> Defender:
        """`count` clean images (training ones, so that there are enough), or as many of a poisoned mix besides."""
        index = torch.arange(count) % len(data.train)
        view = Defender(data.train[index], data.shape, 10, data.augment, 0)
        if not poisoned:
            return view
        mixed = BadNets(data.shape, 10, 0.1).poison(data.train, _rng(), 0)[0][index]
        return Defender(view.clean, data.shape, 10, data.augment, 0, mixed)


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def bare(net: nn.Module) -> nn.Module:
    """A copy that takes normalised images, as the authors' networks do."""
    net = copy.deepcopy(net)
    net._forward_pre_hooks.clear()
    return net


def pixels(x: Tensor) -> NDArray[np.uint8]:
    """uint8 [N, C, H, W] -> numpy [N, H, W, C]."""
    return x.permute(0, 2, 3, 1).contiguous().numpy()
