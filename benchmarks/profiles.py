"""Where the time of a hot path goes, by torch's profiler: shares of kinds of work, and the operations that take most."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench import machine
from bench.curve import trace
from bench.defenses.anp import ANP
from bench.defenses.clp import CLP
from bench.metrics import Exam, accuracy, evaluate
from bench.plan import Plan
from bench.pruning import MaskBelow, Sweep, ZScore
from bench.training import fit
from benchmarks.clock import Work
from benchmarks.setting import Setting

KINDS = {
    "convolution": ("conv",),
    "batch norm": ("batch_norm",),
    "product": ("mm", "linear", "addmm", "eigh", "linalg"),
    "copy": ("copy_", "clone", "contiguous", "cat", "index", "to_copy", "pad", "gather", "memcpy"),
    "random": ("uniform", "random", "normal_"),
}
"""What an operation counts as, by a part of its name, the first that fits; anything else is elementwise."""


def kind(name: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts)), "elementwise")


def paths(setting: Setting, device: torch.device) -> dict[str, Work]:
    """The hot paths, each with as little around it as can be."""
    size = setting.size
    net = copy.deepcopy(setting.network).to(device).to(memory_format=torch.channels_last)
    data = setting.images(max(size.mix, size.batch)).to(device)
    view = replace(setting.defender(setting.data, len(data)), clean=data)
    exam = setting.exam(size.tested)
    exam = Exam(exam.clean.to(device), exam.triggered.to(device), exam.wanted.to(device))
    short = Exam(exam.clean[torch.arange(size.tested // 8)], exam.triggered[torch.arange(size.tested // 8)],
                 exam.wanted[: size.tested // 8])  # fmt: skip
    step = Plan(iterations=1, batch_size=size.batch, lr=0.01, nesterov=True, weight_decay=5e-4)
    anp = ANP(Plan(iterations=1, batch_size=size.batch, lr=0.2), 0.4, 1, 0.2, rule=MaskBelow(0.2), sweep=Sweep("at", ()),
              zeroes=("weight",))  # fmt: skip
    clp = CLP(rule=ZScore(1000.0), sweep=Sweep("number", tuple(range(100, 1100, 100))), zeroes=("weight", "bias"))
    tuned = copy.deepcopy(net)
    before, select_before = evaluate(net, short), accuracy(net, short.clean)
    fast = replace(step, precision="bf16")
    mixed = lambda: fit(tuned, data, fast, seed=0, augment=setting.data.augment)  # noqa: E731
    return {
        "training step": lambda: fit(tuned, data, step, seed=0, augment=setting.data.augment),
        **({"training step, bf16": mixed} if machine.precision(device.type) == "bf16" else {}),
        "ANP step": lambda: anp.score(net, view),
        "evaluation": lambda: evaluate(net, exam),
        "sweep": lambda: trace(clp.repair(net, view), short, short.clean, before, select_before, None),
    }


def profiles(setting: Setting, device: torch.device) -> list[dict[str, Any]]:
    """One entry per hot path: shares by kind, the five operations that take most, and what bounds it."""
    repeats = min(2, setting.size.repeats)
    return [{"path": name} | summary(work, device, repeats) for name, work in paths(setting, device).items()]


def summary(work: Callable[[], Any], device: torch.device, repeats: int) -> dict[str, Any]:
    work()
    on_gpu = device.type == "cuda"
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # it reports its own starts and stops, and that there is no GPU
    # Kernels go by names of their own; with the CPU's side beside them their time is that of the operation that started them.
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as found:
        for _ in range(repeats):
            work()
    spent = {
        event.key.removeprefix("aten::"): float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)
        for event in found.key_averages()
        if event.device_type == DeviceType.CPU
    }
    whole = sum(spent.values()) or 1.0
    shares = dict.fromkeys([*KINDS, "elementwise"], 0.0)
    for name, time in spent.items():
        shares[kind(name)] += time / whole
    top = sorted(spent, key=lambda name: -spent[name])[:5]
    return {
        "milliseconds": round(whole / 1000 / repeats, 2),
        "shares": {name: round(share, 3) for name, share in shares.items() if share >= 0.005},
        "top": {name: round(spent[name] / whole, 3) for name in top},
        "bound": bound(shares),
    }


def bound(shares: dict[str, float]) -> str:
    """In words, from the shares."""
    arithmetic = shares["convolution"] + shares["product"]
    rest = 1 - arithmetic
    if arithmetic >= 0.7:
        return f"arithmetic: convolutions and products are {arithmetic:.0%}"
    most = max((k for k in shares if k not in ("convolution", "product")), key=lambda k: shares[k])
    return f"arithmetic {arithmetic:.0%}, passes over memory {rest:.0%} (most of it {most}, {shares[most]:.0%})"
