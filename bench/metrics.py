"""ACC, ASR and RA, each as a count, from one pass over clean and triggered test images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.attacks.base import Trigger
from bench.data import ImageSet
from bench.errors import UserError
from bench.training import to_unit


@dataclass(frozen=True)
class Exam:
    """The test set, its triggered images (only those that count: not of the wanted class), and the wanted classes."""

    clean: ImageSet
    triggered: ImageSet
    wanted: Tensor

    @classmethod
    def of(cls, test: ImageSet, trigger: Trigger) -> Exam:
        wanted = trigger.relabel(test.y)
        index = trigger.chosen(test).nonzero().flatten()
        if len(index) == 0:
            raise UserError("the test set has no image that counts for this attack, so ASR cannot be measured.")
        return cls(test, ImageSet(trigger.stamp(test.x[index]), test.y[index]), wanted[index])


@dataclass(frozen=True)
class Metrics:
    """Counts and, from them, percentages.

    ACC: clean images classified right. ASR: triggered images, non-target ones only, classified as the attacker wants.
    RA: the same images classified as their TRUE class. ASR + RA <= 100.
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
    def asr(self) -> float:
        return 100 * self.hit / self.triggered

    @property
    def ra(self) -> float:
        return 100 * self.robust / self.triggered


def evaluate(model: nn.Module, exam: Exam) -> Metrics:
    both = predict(model, torch.cat([exam.clean.x, exam.triggered.x]))
    clean, triggered = both[: len(exam.clean)], both[len(exam.clean) :]
    counts = torch.stack(
        [
            (clean == exam.clean.y).sum(),
            (triggered == exam.wanted).sum(),
            (triggered == exam.triggered.y).sum(),
        ]
    ).tolist()
    return Metrics(len(exam.clean), counts[0], len(exam.triggered), counts[1], counts[2])


def accuracy(model: nn.Module, images: ImageSet) -> float:
    """Percent of the images classified right."""
    return 100 * int((predict(model, images.x) == images.y).sum()) / len(images)


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch_size: int = 512) -> Tensor:
    """Classes of uint8 images [N, C, H, W], in eval mode and fp32: int64 [N]."""
    model.eval()
    parts = [
        model(to_unit(part).contiguous(memory_format=torch.channels_last)).argmax(1) for part in x.split(batch_size)
    ]
    return torch.cat(parts)


def der(before: Metrics, after: Metrics) -> float:
    """Defence effectiveness rating, percent: (max(0, drop of ASR) - max(0, drop of ACC) + 100) / 2 (Zhu et al., ICCV'23).

    50 = nothing changed. BackdoorBench's general function adds the ACC drop; its paper, and this, subtract it.
    """
    return (max(0.0, before.asr - after.asr) - max(0.0, before.acc - after.acc) + 100) / 2
