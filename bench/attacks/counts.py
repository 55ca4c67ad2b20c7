"""Numbers of images that attacks draw or are asked for, checked."""

import math

import torch
from torch import Tensor

from bench.data import generator
from bench.errors import UserError


def draw_mix(count: int, size: int, seed: int) -> Tensor:
    """`size` of 0..count-1, in random order."""
    if not 0 < (size or 0) <= count:
        raise UserError(f"clean.mix={size} must be at least 1 and at most {count}, the number of training images.")
    return torch.randperm(count, generator=generator(seed, "mix"))[:size]


def check_rate(name: str, rate: float, most: float = 1) -> None:
    if not isinstance(rate, int | float) or not 0 < rate <= most:
        raise UserError(f"{name}={rate} must be a number above 0 and at most {most}.")


def poison_count(rate: float, base: int) -> int:
    """int(rate * base) as the references have it, without the dust of products such as 0.29 * 100."""
    return math.floor(rate * base + 1e-9)


def batch_count(rate: float, size: int, dice: torch.Generator) -> int:
    """int(rate * size) images of a batch; where that is none, one with the probability rate * size, as BackdoorBench."""
    return poison_count(rate, size) or int(torch.rand(1, generator=dice).item() < rate * size)
