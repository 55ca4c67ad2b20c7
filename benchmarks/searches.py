"""Rows of the mask searches: ANP an iteration and to its end, RNP a whole run with the evaluations as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bench.curve import trace
from bench.data import Defender, generator
from bench.defenses.anp import ANP
from bench.defenses.rnp import RNP
from bench.metrics import Exam, accuracy, evaluate
from bench.plan import Plan
from bench.pruning import MaskBelow, Scores, Sweep
from bench.training import epoch_order, to_unit
from benchmarks.official import images
from benchmarks.official import masks as official
from benchmarks.rows import NO_BF16, Findings, Goal, Row, row
from benchmarks.setting import Setting, pixels

EPS, STEPS, ALPHA = 0.4, 1, 0.2
THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(19))


def batches(data: Defender, plan: Plan, seed: int, epoch: int = 0) -> official.Batches:
    """The batches that `fit` will see in that epoch, in the authors' memory layout."""
    order = epoch_order(len(data.clean), plan, seed, epoch)
    moves = data.augment.draw(len(order), generator(seed, f"augment/{epoch}"))
    padded = data.augment.pad(data.clean.x)
    return [
        (to_unit(data.augment.crop(padded, index, move)).contiguous(), data.clean.y[index])
        for index, move in zip(order.split(plan.batch_size), moves.split(plan.batch_size), strict=True)
    ]


def flat(masks: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([mask.double() for mask in masks.values()])


def of_scores(scores: Scores) -> Tensor:
    return flat({name: 1 - score for name, score in scores.items()}).round(decimals=4)


def spearman(one: Tensor, other: Tensor) -> float:
    """Rank correlation, ties at their mean rank; 1 if nothing varies in either."""
    ranks = torch.stack([ranked(one), ranked(other)])
    return 1.0 if bool((ranks.std(1) == 0).all()) else float(torch.corrcoef(ranks)[0, 1])


def ranked(values: Tensor) -> Tensor:
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[place].double()


def search(setting: Setting, title: str, net: nn.Module, view: Defender, plan: Plan, goals: tuple[Goal, ...]) -> Row:
    """ANP's mask search: official, ours exact (the authors' memory layout), ours, and ours in bfloat16."""
    drawn = batches(view, plan, view.seed)
    plans = {
        "ours exact": replace(plan, channels_last=False),
        "ours": plan,
    }
    if setting.bf16:
        plans["ours bf16"] = replace(plan, precision="bf16")

    def published() -> Tensor:
        rng = generator(view.seed, "anp noise")
        return flat(official.anp(net, drawn, rng, plan.lr, EPS, STEPS, ALPHA)).round(decimals=4)

    def ours(plan: Plan) -> Tensor:
        rule, sweep = MaskBelow(0.2), Sweep("at", THRESHOLDS)
        defense = ANP(plan, EPS, STEPS, ALPHA, rule=rule, sweep=sweep, zeroes=("weight",))
        return of_scores(defense.score(net, view))

    def check(results: Mapping[str, Any]) -> Findings:
        theirs = results["official"]
        gap = {name: float((found - theirs).abs().max()) for name, found in results.items()}
        alike = {f"spearman {name}": spearman(theirs, found) for name, found in results.items() if name != "official"}
        assert gap["ours exact"] == 0, f"a mask differs by {gap['ours exact']:.4f} in the authors' own memory layout"
        words = f"masks bit-equal in the authors' layout; a mask differs by up to {gap['ours']:.2g} in ours"
        words += f" (Spearman {alike['spearman ours']:.3f})"
        if "ours bf16" not in gap:
            return f"{words}; {NO_BF16}", alike
        return words + f", by {gap['ours bf16']:.2g} in bfloat16 ({alike['spearman ours bf16']:.3f})", alike

    variants: dict[str, Any] = {"official": published}
    variants |= {name: lambda plan=plan: ours(plan) for name, plan in plans.items()}
    count = plan.iterations or 0
    return Row(title, f"{count} iterations of {plan.batch_size} images", variants, check, goals,
               "of the nine passes of convolutions there (three forward, three by input, three by weight) nobody needs those by "
               "weight: 1.5x at most in fp32, less what BatchNorm and ReLU take on both sides",
               repeats=min(3, setting.size.repeats), units={"iterations/s": count})  # fmt: skip


def counts(curve: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """(right, hit) at each of THRESHOLDS. A curve has no row for one that prunes what the last did."""
    return [
        next((line["right"], line["hit"]) for line in reversed(curve) if line["at"] is None or line["at"] <= at + 1e-9)
        for at in THRESHOLDS
    ]


@row
def anp(setting: Setting) -> Row:
    plan = Plan(iterations=setting.size.iterations, batch_size=setting.size.batch, lr=0.2)
    view = setting.defender(setting.data, max(setting.size.mix, setting.size.batch))
    goals = (Goal("ours exact", 1.45), Goal("ours bf16", 4.0))
    return search(setting, f"ANP, iteration, ResNet-18 width {setting.size.width}", setting.network, view, plan, goals)


@row
def anp_masks(setting: Setting) -> Row:
    """The search as the demo does it, to its end."""
    plan = Plan(iterations=setting.size.search, batch_size=64, lr=0.2)
    view = setting.defender(setting.small_data, 100)
    goals = (Goal("ours bf16", 0.99, "spearman ours bf16"),)
    made = search(setting, "ANP, whole search, the demo's network", setting.small_network, view, plan, goals)
    bound = (
        "rounding: a sign step is as long for a tiny gradient, so fp32 in another memory layout already ranks otherwise"
    )
    return replace(made, repeats=1, warm_up=False, bound=bound)


@row
def rnp(setting: Setting) -> Row:
    """A quarter of the published images everywhere (125 of 500, 2,500 of 10,000), in batches of 32 instead of 128."""
    size, net = setting.size, setting.small_network
    data = setting.small_test
    view = setting.defender(data, size.tune)
    test = data.test[data.test.y != 0]  # as there, both test sets drop the target class
    exam = Exam.of(test, setting.small_trigger)
    select = data.heldout[torch.arange(100)]
    unlearn = Plan(size.unlearned, batch_size=32, lr=0.01, weight_decay=5e-4, schedule="multistep", milestones=(10, 20))
    recover = Plan(size.recovered, batch_size=32, lr=0.2)
    first = [batches(view, unlearn, view.seed, epoch) for epoch in range(unlearn.epochs)]
    then = [batches(view, recover, view.seed + 1, epoch) for epoch in range(recover.epochs)]
    means = images.transform(data.mean, data.std)
    clean = images.Pictures(pixels(test.x), test.y.tolist(), test.y.tolist(), means)
    triggered = images.Pictures(pixels(exam.triggered.x), exam.wanted.tolist(), exam.triggered.y.tolist(), means)

    def look(net: nn.Module) -> tuple[int, int]:
        plain = Normalless(net)
        return (
            images.hits(plain, images.loader(clean, size.batch))[0],
            images.hits(plain, images.loader(triggered, size.batch))[0],
        )

    def published() -> official.Run:
        return official.rnp(net, first, then, look, THRESHOLDS)

    def ours(layout: bool) -> tuple[Scores, list[dict[str, Any]]]:
        plans = [replace(plan, channels_last=layout) for plan in (unlearn, recover)]
        rule, sweep = MaskBelow(0.3), Sweep("at", THRESHOLDS)
        defense = RNP(plans[0], 0.2, plans[1], 0.2, rule=rule, sweep=sweep, zeroes=("weight",))
        before, repaired = evaluate(net, exam), defense.repair(net, view)
        assert repaired.scores is not None
        return repaired.scores, trace(repaired, exam, select, before, accuracy(net, select), None)

    def check(results: Mapping[str, Any]) -> Findings:
        run, (scores, curve) = results["official"], results["ours exact"]
        gap = float((flat(run.masks).round(decimals=4) - of_scores(scores)).abs().max())
        assert gap == 0, f"a mask differs by {gap:.4f} in the authors' own memory layout"
        theirs = run.curve[1:]  # the first is of the network as it came
        off = [at for at, one, other in zip(THRESHOLDS, theirs, counts(curve), strict=True) if one != other]
        assert not off, f"counts at thresholds {off} differ"
        alike = spearman(of_scores(scores), of_scores(results["ours"][0]))
        same = sum(one == other for one, other in zip(theirs, counts(results["ours"][1]), strict=True))
        return (
            f"masks bit-equal and the same counts at all {len(THRESHOLDS)} thresholds in the authors' layout; in ours Spearman "
            f"{alike:.3f} and the same counts at {same}; {run.evaluations} evaluations there, {len(curve)} different models here"
        ), {"spearman ours": alike}

    work = f"{size.tune} images to learn from, {len(test)} clean and as many triggered to evaluate, the demo's network"
    return Row("RNP, whole run with its evaluations", work,
               {"official": published, "ours exact": lambda: ours(False), "ours": lambda: ours(True)}, check,
               (Goal("ours", 10.0),), "training itself, and an evaluation of every different model of the curve",
               warm_up=False, repeats=min(2, size.repeats))  # fmt: skip


class Normalless(nn.Module):
    """The network for images that are normalised already: its own normalisation is passed by, as at the authors'."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net.forward(x)  # not called, so that no hook runs
