"""Rows of the pruners without training: CLP, EP, BNP."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bench.defenses.bnp import BNP
from bench.defenses.clp import CLP
from bench.defenses.ep import EP, channel_entropy
from bench.pruning import Mask, Scores, Sweep, ZScore, prune
from bench.training import to_unit
from benchmarks.official import statistics as official
from benchmarks.rows import Goal, Row, row
from benchmarks.setting import Setting

POINTS = tuple(x / 2 for x in range(20, -1, -1))
"""BackdoorBench's u, 10 to 0."""


def sets(mask: Mask) -> official.Pruned:
    return {layer: pruned.nonzero().flatten().tolist() for layer, pruned in mask.items()}


def as_mask(pruned: official.Pruned, scores: Scores) -> Mask:
    """What the official procedure pruned, as ours writes it."""
    return {
        layer: torch.zeros(len(s), dtype=torch.bool).index_fill_(0, torch.tensor(pruned[layer], dtype=torch.long), 1)
        for layer, s in scores.items()
    }


def total(pruned: official.Pruned) -> int:
    return sum(map(len, pruned.values()))


def same_sets(theirs: official.Pruned, ours: official.Pruned, what: str) -> str:
    assert theirs.keys() == ours.keys(), f"other layers: {sorted(theirs.keys() ^ ours.keys())}"
    differ = sum(len(set(theirs[layer]) ^ set(ours[layer])) for layer in theirs)
    assert not differ, f"{differ} channels differ {what} (official prunes {total(theirs)}, ours {total(ours)})"
    return f"the same {total(ours)} channels {what}"


def at_threshold(theirs: Scores, mine: Scores, k: float, edge: float) -> int:
    """How many channels only one side prunes; AssertionError for one that is farther than `edge` from its layer's threshold."""
    return close_calls(ZScore(k).mask(theirs, k), ZScore(k).mask(mine, k), theirs, k, edge)


def close_calls(one: Mask, other: Mask, scores: Scores, k: float, edge: float) -> int:
    """The same of two masks, by these scores."""
    found = 0
    for layer, score in scores.items():
        differ = one[layer] != other[layer]
        off = (score - (score.mean() + k * score.std())).abs()[differ]
        assert (off <= edge).all(), (
            f"{layer}: pruned by one side only at k = {k:g}, {float(off.max()):.3f} from the threshold"
        )
        found += int(differ.sum())
    return found


def bin_edge(images: int) -> float:
    """By how much an entropy changes when rounding puts two values on the other side of a bin's edge."""
    return 2 * math.log(images) / images


def clp_defense(points: tuple[float, ...] = ()) -> CLP:
    return CLP(rule=ZScore(3.0), sweep=Sweep("at", points), zeroes=("weight", "bias"))


@row
def clp(setting: Setting) -> Row:
    """One call: bounds, the cut at u = 3, a pruned copy."""
    net, view = setting.network, setting.defender(setting.data, 1)
    defense = clp_defense()

    def published() -> official.Pruned:
        return official.clp(copy.deepcopy(net), 3.0)

    def ours() -> tuple[Mask, nn.Module]:
        mask = defense.rule.mask(defense.score(net, view), 3.0)
        return mask, prune(net, mask, defense.zeroes)

    def check(results: Mapping[str, Any]) -> str:
        return same_sets(results["official"], sets(results["ours"][0]), "pruned at u = 3")

    return Row("CLP, one call", f"ResNet-18 width {setting.size.width}", {"official": published, "ours": ours}, check,
               (Goal("ours", 5.0),),
               "Gram matrices in double precision, their eigenvalues, and a copy of the network, which both make")  # fmt: skip


@row
def clp_sweep(setting: Setting) -> Row:
    """BackdoorBench's 21 u: there every one from the start, here one set of bounds."""
    net, view = setting.network, setting.defender(setting.data, 1)
    defense = clp_defense(POINTS)

    def ours() -> Scores:
        repaired = defense.repair(net, view)
        for _ in repaired.candidates:
            pass
        assert repaired.scores is not None
        return repaired.scores

    def check(results: Mapping[str, Any]) -> str:
        scores, close = results["ours"], 0
        for u, theirs in zip(POINTS, results["official"], strict=True):
            one, other = as_mask(theirs, scores), defense.rule.mask(scores, u)
            for layer, score in scores.items():  # there in single precision, so that a bound is known to 1e-6 of itself
                edge = 1e-6 * float(score.max())
                close += close_calls({layer: one[layer]}, {layer: other[layer]}, {layer: score}, u, edge)
        but = f" but for {close} within rounding of the threshold" if close else ""
        return f"the same channels at all {len(POINTS)} u{but}"

    return Row(f"CLP, sweep of {len(POINTS)} u", f"ResNet-18 width {setting.size.width}; every pruned model made",
               {"official": lambda: official.clp_sweep(net, POINTS), "ours": ours}, check, (Goal("ours", 150.0),),
               "one set of bounds, as in the single call, one copy of the network, and a look whether all weights are finite",
               repeats=min(3, setting.size.repeats), warm_up=False)  # fmt: skip


@row
def ep_entropy(setting: Setting) -> Row:
    """The entropy stage alone, from the spatial maxima of all layers."""
    net, view = setting.network, setting.defender(setting.data, setting.size.mix, poisoned=True)
    assert view.poisoned is not None
    features = official.inputs_of_norms(net, to_unit(view.poisoned.x))
    peaks = {name: x.amax((2, 3)).T.contiguous() for name, x in features.items()}
    del features

    def published() -> Scores:
        return {
            name: official.entropy((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True), 0.01)
            for name, x in peaks.items()
        }

    def ours() -> Scores:
        return {name: channel_entropy(x, 0.01) for name, x in peaks.items()}

    def check(results: Mapping[str, Any]) -> str:
        theirs = {layer: -s for layer, s in results["official"].items()}
        mine = {layer: -s for layer, s in results["ours"].items()}
        gap = max(float((theirs[layer] - mine[layer]).abs().max()) for layer in mine)
        edge = bin_edge(setting.size.mix)
        assert gap <= edge, f"an entropy differs by {gap:.3f}"
        close = [at_threshold(theirs, mine, k, edge) for k in (1.0, 2.0, 3.0)]
        but = f" but for {', '.join(map(str, close))} that lie at the threshold" if any(close) else ""
        return f"the same channels at k = 1, 2, 3{but}; entropies within {gap:.4f} (a value at a bin's edge)"

    return Row("EP, entropies", f"ResNet-18 width {setting.size.width}, {setting.size.mix} images, bins of 0.01",
               {"official": published, "ours": ours}, check, (Goal("ours", 150.0),),
               "ten passes over all values, a scatter of them, and a logarithm for each bin",
               repeats=min(3, setting.size.repeats), warm_up=setting.size.small)  # fmt: skip


@row
def ep(setting: Setting) -> Row:
    """The whole defence, forward included, to a pruned copy."""
    net, view = setting.network, setting.defender(setting.data, setting.size.mix, poisoned=True)
    assert view.poisoned is not None
    x = to_unit(view.poisoned.x)
    defense = EP(0.01, rule=ZScore(3.0), sweep=Sweep("at", ()), zeroes=("weight",))

    def ours() -> tuple[Mask, nn.Module]:
        mask = defense.rule.mask(defense.score(net, view), 3.0)
        return mask, prune(net, mask, defense.zeroes)

    def check(results: Mapping[str, Any]) -> str:
        theirs, (mask, _), scores = results["official"], results["ours"], defense.score(net, view)
        close = close_calls(as_mask(theirs, scores), mask, scores, 3.0, bin_edge(len(x)))
        but = f" but for {close} at the threshold" if close else ""
        return f"the same channels pruned at k = 3{but}: {total(theirs)} and {total(sets(mask))}"

    return Row("EP, whole call", f"ResNet-18 width {setting.size.width}, {setting.size.mix} images",
               {"official": lambda: official.ep(copy.deepcopy(net), x, 3.0), "ours": ours}, check, (Goal("ours", 3.0),),
               "the forward pass, which both sides need", repeats=min(3, setting.size.repeats),
               units={"img/s": len(x)})  # fmt: skip


@row
def bnp(setting: Setting) -> Row:
    """The whole defence; no goal: it is one forward pass on both sides."""
    net, view = setting.network, setting.defender(setting.data, setting.size.mix)
    x = to_unit(view.clean.x)
    defense = BNP(rule=ZScore(3.0), sweep=Sweep("at", ()), zeroes=("weight",))

    def ours() -> tuple[Mask, nn.Module]:
        mask = defense.rule.mask(defense.score(net, view), 3.0)
        return mask, prune(net, mask, defense.zeroes)

    def check(results: Mapping[str, Any]) -> str:
        return same_sets(results["official"], sets(results["ours"][0]), "pruned at k = 3")

    return Row("BNP, whole call", f"ResNet-18 width {setting.size.width}, {setting.size.mix} images",
               {"official": lambda: official.bnp(copy.deepcopy(net), x, 3.0), "ours": ours}, check, (),
               "the forward pass, which both sides need", repeats=min(3, setting.size.repeats),
               units={"img/s": len(x)})  # fmt: skip
