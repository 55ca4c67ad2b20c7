"""Rows of the data path: poisoning, loading, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.attacks.badnets import BadNets
from bench.attacks.blend import Blend
from bench.attacks.patterns import Additive, Overlay
from bench.attacks.sig import SIG
from bench.data import generator
from bench.metrics import evaluate
from bench.training import to_unit
from benchmarks.official import images as official
from benchmarks.rows import NO_BF16, Findings, Goal, Row, row
from benchmarks.setting import MEAN, STD, Setting, bare, pixels


def poisoning(
    setting: Setting, name: str, trigger: Any, change: Callable[[Any], official.Array], goal: float, bound: str
) -> Row:
    x = setting.images(setting.size.poisoned).x
    arrays = pixels(x)

    def check(results: Mapping[str, Any]) -> str:
        gap = np.abs(results["official"].astype(int) - pixels(results["ours"]).astype(int))
        share = float((gap > 0).mean())
        assert gap.max() <= 1 and share < 1e-3, f"pixels differ by up to {gap.max()}, on {share:.1%} of them"
        return "pixels identical" if share == 0 else f"pixels differ by 1 on {share:.4%} of them"

    return Row(f"Poisoning, {name}", f"{len(x)} images", {"official": lambda: official.poisoned(arrays, change),
               "ours": lambda: trigger.stamp(x)}, check, (Goal("ours", goal),), bound, units={"img/s": len(x)})  # fmt: skip


@row
def poison_badnets(setting: Setting) -> Row:
    trigger = BadNets(setting.data.shape, 10, 0.1).trigger
    assert isinstance(trigger, Overlay)
    pattern, mask = (t.permute(1, 2, 0).numpy().astype(np.uint8) for t in (trigger.pattern, trigger.mask))
    return poisoning(setting, "BadNets", trigger, lambda image: official.badnets(image, pattern, mask), 15.0,
                     "passes over the pixels in memory")  # fmt: skip


@row
def poison_blend(setting: Setting) -> Row:
    trigger = Blend(setting.data.shape, 10, 0.1, 0.2).trigger
    assert isinstance(trigger, Overlay)
    pattern = trigger.pattern.permute(1, 2, 0).numpy()
    return poisoning(setting, "Blend", trigger, lambda image: official.blend(image, pattern, 0.2), 2.0,
                     "passes over the pixels, in double precision for the published pixels")  # fmt: skip


@row
def poison_sig(setting: Setting) -> Row:
    trigger = SIG(setting.data.shape, 10, 0.1, 40, 6).trigger
    assert isinstance(trigger, Additive)
    return poisoning(setting, "SIG", trigger, lambda image: official.sig(image, 40, 6), 15.0,
                     "passes over the pixels in memory")  # fmt: skip


def normalise(x: Tensor) -> Tensor:
    """What the network does first, and the official loader last."""
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


@row
def load_train(setting: Setting) -> Row:
    """An epoch of batches, shuffled, cropped, flipped and normalised; no network."""
    data, batch = setting.images(setting.size.loaded), setting.size.batch
    augment, count = setting.data.augment, setting.size.loaded
    pictures = official.Pictures(pixels(data.x), data.y.tolist(), data.y.tolist(),
                                 official.transform(MEAN, STD, setting.size.pixels, pad=augment.shift))  # fmt: skip

    def published() -> tuple[float, int]:
        torch.manual_seed(0)
        found = [(x.sum().item(), len(x)) for x, _, _ in official.loader(pictures, batch, shuffle=True)]
        return sum(s for s, _ in found), sum(n for _, n in found)

    def ours() -> tuple[float, int]:
        padded, total = augment.pad(data.x), 0.0
        rng = generator(0, "benchmark")
        order, moves = torch.randperm(count, generator=rng), augment.draw(count, rng)
        for index, move in zip(order.split(batch), moves.split(batch), strict=True):
            total += normalise(to_unit(augment.crop(padded, index, move))).sum().item()
        return total, count

    def check(results: Mapping[str, Any]) -> str:
        (theirs, n), (mine, m) = results["official"], results["ours"]
        scale = 3 * n * setting.size.pixels**2
        assert n == m, f"{n} images against {m}"
        assert abs(theirs - mine) / scale < n**-0.5, f"mean pixel {theirs / scale:.4f} against {mine / scale:.4f}"
        return f"{n} images on both sides, mean pixel value {theirs / scale:.3f} and {mine / scale:.3f} (other draws)"

    return Row("Loading, train", f"{count} images, crop and flip, batches of {batch}",
               {"official": published, "ours": ours}, check, (Goal("ours", 5.0),), "one gather and one pass in memory",
               units={"img/s": count})  # fmt: skip


@row
def load_test(setting: Setting) -> Row:
    """All batches in order, normalised; no network."""
    data, count = setting.images(setting.size.loaded), setting.size.loaded
    pictures = official.Pictures(pixels(data.x), data.y.tolist(), data.y.tolist(), official.transform(MEAN, STD))

    def published() -> Tensor:
        return torch.cat([x.sum((1, 2, 3)) for x, _, _ in official.loader(pictures, setting.size.batch)])

    def ours() -> Tensor:
        return torch.cat([normalise(to_unit(x)).sum((1, 2, 3)) for x in data.x.split(512)])

    def check(results: Mapping[str, Any]) -> str:
        gap = float((results["official"] - results["ours"]).abs().max() / (3 * setting.size.pixels**2))
        assert gap < 1e-5, f"an image's mean differs by {gap}"
        return f"means of all {count} images equal to {gap:.0e}"

    return Row("Loading, test", f"{count} images", {"official": published, "ours": ours}, check,
               (Goal("ours", 5.0),), "passes over the pixels in memory", units={"img/s": count})  # fmt: skip


@row
def evaluation(setting: Setting) -> Row:
    """Clean and triggered test images to ACC, ASR and RA, with what is around it in the authors' code and here."""
    exam, net = setting.exam(setting.size.tested), setting.network
    ours_net = bare(net).to(memory_format=torch.channels_last)
    ours_net._forward_pre_hooks.update(net._forward_pre_hooks)
    plain = bare(net)
    means = official.transform(MEAN, STD)
    labels = exam.clean.y.tolist()
    clean = official.Pictures(pixels(exam.clean.x), labels, labels, means)
    files = official.as_png(pixels(exam.triggered.x))
    triggered = official.Pictures(files, exam.wanted.tolist(), exam.triggered.y.tolist(), means)
    batch, count = setting.size.batch, len(exam.clean) + len(exam.triggered)

    def published() -> tuple[int, int, int]:
        right, _, _ = official.hits(plain, official.loader(clean, batch))
        hit, robust, _ = official.hits(plain, official.loader(triggered, batch))
        return right, hit, robust

    def ours() -> tuple[int, int, int]:
        found = evaluate(ours_net, exam)
        return found.right, found.hit, found.robust

    def fast() -> tuple[int, int, int]:
        with torch.autocast("cpu", torch.bfloat16):
            return ours()

    def check(results: Mapping[str, Any]) -> Findings:
        theirs, mine, low = results["official"], results["ours fp32"], results.get("ours bf16")
        assert theirs == mine, f"right, hit, robust are {theirs} officially and {mine} here"
        # Counts of a weakly trained network say little: so the logits of some images as well, in units of their own spread.
        official_logits, own, rounded = looked_at()
        gap, scale = float((own - official_logits).abs().max()), float(official_logits.std())
        assert gap < 1e-3 * scale, f"logits differ by {gap:.2g}, and scatter by {scale:.2g}"
        words = f"fp32: the same counts {mine}, logits within {gap / scale:.0e} of their spread"
        if low is None:
            return f"{words}; {NO_BF16}"
        sizes = (len(exam.clean), len(exam.triggered), len(exam.triggered))
        off = max(100 * abs(a - b) / n for a, b, n in zip(theirs, low, sizes, strict=True))
        assert off <= 5, f"bf16 moves a metric by {off:.2f} points"
        apart = float((rounded - official_logits).abs().max()) / scale
        alike = int((rounded.argmax(1) == official_logits.argmax(1)).sum())
        words += f"; bf16 moves a metric by up to {off:.2f} points, logits by {apart:.2g} of their spread, and takes "
        return words + f"{alike} of {len(rounded)} images for the same class", {"points ours bf16": off}

    @torch.no_grad()
    def looked_at() -> list[Tensor]:
        """Logits of clean and triggered images: officially, ours, and ours in bfloat16 where that is measured."""
        x = torch.cat([exam.clean.x[:32], exam.triggered.x[:32]])
        unit = to_unit(x).contiguous(memory_format=torch.channels_last)
        found = [plain.eval()(normalise(to_unit(x))), ours_net.eval()(unit)]
        with torch.autocast("cpu", torch.bfloat16, enabled=setting.bf16):
            return [*found, ours_net(unit).float()]

    return Row("Evaluation", f"{count} images, ResNet-18 width {setting.size.width}",
               {"official": published, "ours fp32": ours} | ({"ours bf16": fast} if setting.bf16 else {}), check,
               (Goal("ours fp32", 1.3), Goal("ours bf16", 3.0)),
               "the forward pass: on a CPU loading is a small part of it", repeats=min(3, setting.size.repeats),
               units={"img/s": count})  # fmt: skip
