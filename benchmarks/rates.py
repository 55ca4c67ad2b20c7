"""Images per second of training and evaluation, and what share of the device's own matmul rate that is (MFU).

The rate of the device is the best that any matmul-shaped kernel reaches here: products of several sizes, and convolutions,
which are products too and on some CPUs come from a better library (oneDNN) than `torch.mm` does (MKL). Measured against
`torch.mm` alone, a training step can come out above 100 %. All are timed in turn, at the same thread count and in the same
precision; each counts with its best time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench import machine
from bench.data import ImageSet
from bench.metrics import predict
from bench.plan import Plan
from bench.training import fit, to_unit
from benchmarks.clock import Work, interleave
from benchmarks.setting import Setting

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}  # the second where the device computes in it


def products(dtype: torch.dtype, device: torch.device, quick: bool) -> dict[str, tuple[float, Work]]:
    """Matmul-shaped kernels: name -> (floating-point operations, the call)."""
    found: dict[str, tuple[float, Work]] = {}
    sizes = (256,) if quick else (1024, 2048) if device.type == "cpu" else (4096, 8192)
    for n in sizes:
        a, b = (torch.randn(n, n, dtype=dtype, device=device) for _ in range(2))
        found[f"product of {n}x{n}"] = 2.0 * n**3, partial(torch.matmul, a, b)
    images, channels = (4, 32) if quick else (32, 256) if device.type == "cpu" else (512, 256)
    x = torch.randn(images, channels, 32, 32, dtype=dtype, device=device).to(memory_format=torch.channels_last)
    for k in (1, 3):
        w = torch.randn(channels, channels, k, k, dtype=dtype, device=device).to(memory_format=torch.channels_last)
        work = 2.0 * images * 32 * 32 * channels**2 * k * k
        found[f"{k}x{k} convolution of {channels} channels"] = work, partial(F.conv2d, x, w, padding=k // 2)
    return found


def operations(net: nn.Module, x: torch.Tensor, y: torch.Tensor, train: bool) -> float:
    """Floating-point operations of convolutions and products in one step on this batch, per image; a multiply-add is two."""
    net = copy.deepcopy(net).train(train)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
        logits = net(x)
        if train:
            F.cross_entropy(logits, y).backward()
    return counter.get_total_flops() / len(x)


def rates(setting: Setting, device: torch.device, batch: int, steps: int = 1) -> dict[str, Any]:
    """Training by `fit` and evaluation by `predict`, in `PRECISIONS`: img/s, operations per image, share of the matmul rate."""
    data = setting.images(max(512, batch)).to(device)
    net = copy.deepcopy(setting.network).to(device).to(memory_format=torch.channels_last)
    x, y = to_unit(data.x[:8]), data.y[:8]
    per_image = {"train": operations(net, x, y, True), "eval": operations(net, x, y, False)}
    tested = data.x[: batch if setting.size.small else 512]
    counts = {"train": batch * steps, "eval": len(tested)}

    variants: dict[str, Work] = {}
    kernels: dict[str, dict[str, float]] = {}
    for precision in dict.fromkeys(("fp32", machine.precision(device.type))):
        dtype = PRECISIONS[precision]
        variants[f"train {precision}"] = training(net, data, batch, steps, precision, setting)
        variants[f"eval {precision}"] = evaluating(net, tested, dtype, device)
        made = products(dtype, device, setting.size.small)
        kernels[precision] = {f"{precision} {name}": work for name, (work, _) in made.items()}
        variants |= {f"{precision} {name}": repeated(call, setting) for name, (_, call) in made.items()}
    times, _ = interleave(variants, min(4, setting.size.repeats), patience=2 * setting.size.patience, device=device)

    found: dict[str, Any] = {"batch": batch, "peak": {}, "paths": []}
    for precision in kernels:
        repeats = inner(setting)
        speed = {name: repeats * work / times[name].best() for name, work in kernels[precision].items()}
        fastest = max(speed, key=lambda name: speed[name])
        top = speed[fastest]
        found["peak"][precision] = {
            "gflops": round(top / 1e9, 1),
            "by": fastest.removeprefix(f"{precision} "),
            "all": {name.removeprefix(f"{precision} "): round(value / 1e9, 1) for name, value in speed.items()},
        }
        for path, count in counts.items():
            t = times[f"{path} {precision}"]
            per_second = count / t.best()
            found["paths"].append({
                "path": path, "precision": precision, "img_per_s": float(f"{per_second:.4g}"),
                "median_img_per_s": float(f"{count / t.median:.4g}"), "gflop_per_image": round(per_image[path] / 1e9, 4),
                "mfu": round(per_second * per_image[path] / top, 4), "peak_mib": t.peak_mib,
            })  # fmt: skip
    return found


def inner(setting: Setting) -> int:
    """How often a kernel runs at a time: long enough to be timed."""
    return 1 if setting.size.small else 4


def repeated(call: Work, setting: Setting) -> Work:
    def work() -> None:
        for _ in range(inner(setting)):
            call()

    return work


def training(
    net: nn.Module, data: ImageSet, batch: int, steps: int, precision: str, setting: Setting
) -> Callable[[], Any]:
    plan = Plan(iterations=steps, batch_size=batch, lr=0.01, nesterov=True, weight_decay=5e-4, precision=precision)
    tuned = copy.deepcopy(net)
    return lambda: fit(tuned, data, plan, seed=0, augment=setting.data.augment)


def evaluating(net: nn.Module, x: torch.Tensor, dtype: torch.dtype, device: torch.device) -> Callable[[], Any]:
    def work() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return predict(net, x)

    return work
