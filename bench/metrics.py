"""ACC, ASR and RA, each as a count, from one pass over clean and triggered test images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from bench.attacks.base import Trigger
from bench.data import ImageSet
from bench.errors import UserError
from bench.training import to_unit

log = logging.getLogger(__name__)

Predict = Callable[[nn.Module, Tensor], Tensor]
"""(model, uint8 images [N, C, H, W]) -> classes, int64 [N], as `classes` tells them."""


@dataclass(frozen=True)
class Exam:
    """The test set, its triggered images (only those that count: not of the wanted class), and the wanted classes."""

    clean: ImageSet
    triggered: ImageSet
    wanted: Tensor

    @classmethod
    def of(cls, test: ImageSet, trigger: Trigger) -> Exam:
        index = trigger.chosen(test).nonzero().flatten()
        if len(index) == 0 and trigger.known:
            raise UserError("the test set has no image that counts for this attack, so ASR cannot be measured.")
        triggered, wanted = trigger.on(test, index)
        return cls(test, ImageSet(triggered, test.y[index]), wanted)

    @cached_property
    def images(self) -> Tensor:
        """Clean, then triggered: they go through a model in one pass."""
        return torch.cat([self.clean.x, self.triggered.x])


@dataclass(frozen=True)
class Metrics:
    """Counts and, from them, percentages.

    ACC: clean images classified right. ASR: triggered images, non-target ones only, classified as the attacker wants.
    RA: the same images classified as their TRUE class. ASR + RA <= 100. Both are None where there are no triggered images,
    because nobody knows the trigger.
    """

    clean: int
    right: int
    triggered: int
    hit: int
    robust: int

    @property
    def acc(self) -> float:
        return 100 * self.right / self.clean

    @property
    def asr(self) -> float | None:
        return 100 * self.hit / self.triggered if self.triggered else None

    @property
    def ra(self) -> float | None:
        return 100 * self.robust / self.triggered if self.triggered else None


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Classes of uint8 images [N, C, H, W], in eval mode and fp32: int64 [N]."""
    model.eval()
    return torch.cat([classes(model(part)) for part in batches(x)])


def classes(logits: Tensor) -> Tensor:
    """The class of the largest of each row of logits [N, classes]; -1, which is no class, where one is NaN.

    `argmax` takes the first NaN for the largest: a model whose weights have run away would say class 0 to everything, which is
    the attacker's in most papers, and so have an ASR of 100.
    """
    return logits.argmax(1).where(~logits.isnan().any(1), -1)


def batches(x: Tensor, size: int | None = None) -> Iterator[Tensor]:
    """uint8 images as a model takes them: float32 in [0, 1], channels last, `size` at a time (None: as suits the device)."""
    for part in x.split(size or (512 if x.is_cuda else 64)):  # on a CPU, larger tensors are mapped anew, page by page
        yield to_unit(part).contiguous(memory_format=torch.channels_last)


def evaluate(model: nn.Module, exam: Exam, predict: Predict = predict) -> Metrics:
    """`predict`: what tells the model's classes; see `bench.prefix`. Images without one count as wrong, and the log says so."""
    both = predict(model, exam.images)
    clean, triggered = both[: len(exam.clean)], both[len(exam.clean) :]
    counts = torch.stack(
        [
            (clean == exam.clean.y).sum(),
            (triggered == exam.wanted).sum(),
            (triggered == exam.triggered.y).sum(),
            (both < 0).sum(),
        ]
    ).tolist()
    if counts[3]:
        log.warning("%d of %d test images have logits that are NaN: they count as wrong.", counts[3], len(both))
    return Metrics(len(exam.clean), counts[0], len(exam.triggered), counts[1], counts[2])


def accuracy(model: nn.Module, images: ImageSet, predict: Predict = predict) -> float:
    """Percent of the images classified right. `predict`: see `evaluate`."""
    return 100 * int((predict(model, images.x) == images.y).sum()) / len(images)


def der(before: Metrics, after: Metrics) -> float | None:
    """Defence effectiveness rating, percent: (max(0, drop of ASR) - max(0, drop of ACC) + 100) / 2 (Zhu et al., ICCV'23).

    50 = nothing changed. BackdoorBench's general function adds the ACC drop; its paper, and this, subtract it.
    None where ASR is unknown.
    """
    if before.asr is None or after.asr is None:
        return None
    return (max(0.0, before.asr - after.asr) - max(0.0, before.acc - after.acc) + 100) / 2
