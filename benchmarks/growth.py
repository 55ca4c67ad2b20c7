"""How time grows with images, channels and points of a sweep: measured at a few sizes, and the power that fits best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from bench.curve import trace
from bench.defenses.clp import CLP
from bench.metrics import Exam, accuracy, evaluate, predict
from bench.models import normalised, resnet18
from bench.pruning import Sweep, ZScore
from benchmarks.clock import Work, interleave
from benchmarks.setting import MEAN, STD, Setting


def power(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log(time) over log(size), by least squares: 1 is proportional, below 1 there is a fixed part."""
    xs, ys = [math.log(s) for s in sizes], [math.log(t) for t in seconds]
    middle, mean = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((x - middle) * (y - mean) for x, y in zip(xs, ys, strict=True))
    return above / sum((x - middle) ** 2 for x in xs)


def images(setting: Setting) -> dict[int, Work]:
    """Evaluation of so many images by the large network."""
    top = setting.size.tested
    x = setting.images(top).x
    return {n: partial(predict, setting.network, x[:n]) for n in (top // 8, top // 4, top // 2, top)}


def channels(setting: Setting) -> dict[int, Work]:
    """CLP's bounds of a ResNet-18 with so many channels behind BatchNorm in all."""
    found: dict[int, Work] = {}
    view = setting.defender(setting.data, 1)
    defense = CLP(rule=ZScore(3.0), sweep=Sweep("at", ()), zeroes=("weight", "bias"))
    for width in (8, 16) if setting.size.small else (16, 32, 64, 128):
        net = normalised(resnet18(10, 3, width), MEAN, STD)
        total = sum(m.num_features for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))
        found[total] = partial(defense.score, net, view)
    return found


def points(setting: Setting) -> dict[int, Work]:
    """A whole curve with so many different masks, every one of them evaluated, on the demo's network."""
    net, data = setting.small_network, setting.small_data
    exam, select = Exam.of(data.test, setting.small_trigger), data.heldout[torch.arange(100)]
    view = setting.defender(data, 1)
    before, select_before = evaluate(net, exam), accuracy(net, select)

    def work(n: int) -> Work:
        numbers = tuple(round(200 * (i + 1) / n) for i in range(n))
        defense = CLP(rule=ZScore(1000.0), sweep=Sweep("number", numbers), zeroes=("weight", "bias"))
        return lambda: trace(defense.repair(net, view), exam, select, before, select_before, None)

    return {n: work(n) for n in ((1, 2) if setting.size.small else (2, 5, 10, 20))}


AXES: dict[str, Callable[[Setting], dict[int, Work]]] = {
    "images, evaluation": images,
    "channels, CLP's bounds": channels,
    "points of a sweep, curve": points,
}


def growth(setting: Setting) -> list[dict[str, Any]]:
    """One entry per axis: sizes, best seconds of each, and the power."""
    found = []
    for axis, make in AXES.items():
        works = make(setting)
        named = {str(size): work for size, work in works.items()}
        times, _ = interleave(named, min(3, setting.size.repeats), patience=setting.size.patience)
        seconds = [times[str(size)].best() for size in works]
        found.append(entry(axis, list(works), seconds))
    return found


def entry(axis: str, sizes: list[int], seconds: list[float]) -> dict[str, Any]:
    rounded = [float(f"{s:.4g}") for s in seconds]
    return {"axis": axis, "sizes": sizes, "seconds": rounded, "power": round(power(sizes, seconds), 2)}
