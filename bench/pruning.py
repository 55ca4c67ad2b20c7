"""The plan all pruners share: scores -> rule -> mask -> pruned model. Higher score = more suspicious = pruned first."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bench.errors import UserError
from bench.layers import channel_norms

Scores = dict[str, Tensor]
"""Layer name -> one number per channel, in the order of `named_modules()`; higher = more suspicious."""
Mask = dict[str, Tensor]
"""Layer name -> bool per channel, True = pruned."""


# -- choose the cut ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Rule:
    """Turns scores into a mask at a number `at` given in the paper's own unit; `at` here is the paper's operating point.

    A rule says two things: `levels`, what each channel's score amounts to in that unit, and `inside`, which levels are
    pruned at a number. Everything else follows: sweeps over numbers, and sweeps over the count of pruned channels.
    """

    at: float

    def levels(self, scores: Scores) -> Scores:
        """Per channel, on a scale where higher is pruned earlier."""
        return scores

    def cut(self, at: float) -> float:
        """The level from which channels are pruned at the number `at`."""
        return at

    def number(self, level: float) -> float:
        """The inverse of `cut`: the number at which a channel of this level is just pruned."""
        return level

    def inside(self, level: Tensor, cut: float) -> Tensor:
        return level >= cut - 1e-9  # decimal steps such as 0.15 carry binary dust

    def mask(self, scores: Scores, at: float) -> Mask:
        return self.at_levels(self.levels(scores), at)

    def at_levels(self, levels: Scores, at: float) -> Mask:
        """The mask at a number, of levels that are known already."""
        return {layer: self.inside(level, self.cut(at)) for layer, level in levels.items()}


class Threshold(Rule):
    """Prunes every channel with score >= `at`."""


class MaskBelow(Rule):
    """For learned masks, score = 1 - mask: prunes mask <= `at` (ANP, RNP: "pruning by threshold")."""

    def cut(self, at: float) -> float:
        return 1 - at

    def number(self, level: float) -> float:
        return 1 - level


class ZScore(Rule):
    """Prunes, within each layer, scores above mean + `at` * std (n - 1; strict). A layer without spread loses nothing."""

    def levels(self, scores: Scores) -> Scores:
        spread = {layer: s.double() for layer, s in scores.items()}
        none = torch.tensor(-torch.inf, dtype=torch.float64)
        return {
            layer: torch.nan_to_num((s - s.mean()) / s.std(), nan=-torch.inf) if len(s) > 1 else none.expand_as(s)
            for layer, s in spread.items()
        }

    def inside(self, level: Tensor, cut: float) -> Tensor:
        return level > cut


class OneIn(Rule):
    """Prunes, within each layer, one channel in `at`: the `len // at` highest scores, ties in the order of the channels.

    So a channel is pruned up to the number len / rank, rank 1 being the highest score.
    """

    def levels(self, scores: Scores) -> Scores:
        order = {layer: s.argsort(descending=True, stable=True) for layer, s in scores.items()}
        return {layer: len(highest) / (1.0 + highest.argsort().double()) for layer, highest in order.items()}


class Share(Rule):
    """Prunes the share `at` of all channels: the highest scores over all layers. Tied channels go together or stay."""

    def levels(self, scores: Scores) -> Scores:
        every = torch.cat(list(scores.values())).sort().values
        return {layer: torch.searchsorted(every, s).double() / len(every) - 1 for layer, s in scores.items()}

    def cut(self, at: float) -> float:
        return -at

    def number(self, level: float) -> float:
        return -level


def by_rank(rule: Rule, scores: Scores, count: int) -> tuple[float, Mask]:
    """The mask of the `count` highest levels over all layers, channels tied with the last one included; and its number.

    Levels of minus infinity (layers that a rule cannot judge) are never pruned.
    """
    levels = rule.levels(scores)
    flat = torch.cat([level.flatten() for level in levels.values()])
    flat = flat[flat.isfinite()].sort(descending=True).values
    if len(flat) == 0:
        return rule.at, {layer: torch.zeros_like(level, dtype=torch.bool) for layer, level in levels.items()}
    last = flat[min(count, len(flat)) - 1]
    return rule.number(float(last)), {layer: level >= last for layer, level in levels.items()}


# -- apply the cut -----------------------------------------------------------------------------------------------------
def apply(model: nn.Module, mask: Mask, zeroes: Iterable[str]) -> nn.Module:
    """Zeroes, in place, the named tensors of the masked channels (first axis), and returns the model."""
    for layer, pruned in mask.items():
        module = model.get_submodule(layer)
        for name in zeroes:
            tensor = getattr(module, name)
            if tensor is not None:  # a LayerNorm may have no bias
                with torch.no_grad():
                    tensor.masked_fill_(pruned.to(tensor.device).view(-1, *[1] * (tensor.ndim - 1)), 0)
    return model


def prune(model: nn.Module, mask: Mask, zeroes: Iterable[str] = ("weight",)) -> nn.Module:
    """A copy with the masked channels switched off: their `zeroes` tensors are 0. The model given is not touched."""
    return apply(copy.deepcopy(model), mask, zeroes)


def count(mask: Mask) -> int:
    return sum(int(pruned.sum()) for pruned in mask.values())


# -- soft masks --------------------------------------------------------------------------------------------------------
class Gate(nn.Module):
    """A parametrisation `w -> w * (mask + noise)`, one factor per element; noise is None when it is switched off."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.ones_like(like))
        self.noise: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (self.mask if self.noise is None else self.mask + self.noise)


def gates(
    model: nn.Module, tensor: str = "weight", method: str = "this method", layers: Mapping[str, nn.Module] | None = None
) -> dict[str, Gate]:
    """Puts a gate on that tensor of the layers (default: every BatchNorm2d and LayerNorm) that have it, and freezes the
    model's own parameters.

    In place. Freezing changes no number: the optimiser only ever sees the gates' masks.
    """
    for module in model.modules():
        if not isinstance(module, Gate):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
    found = {}
    for name, module in (channel_norms(model, method) if layers is None else layers).items():
        if getattr(module, tensor) is not None:
            found[name] = Gate(getattr(module, tensor))
            parametrize.register_parametrization(module, tensor, found[name])
    return found


def clamp(gates: dict[str, Gate]) -> None:
    """Masks back into [0, 1], after an optimiser's step; its momentum is left as it is."""
    for gate in gates.values():
        gate.mask.data.clamp_(0, 1)


def mask_scores(gates: dict[str, Gate]) -> Scores:
    """1 - mask, with the 4 decimals that the published mask files keep and their thresholds see."""
    return {layer: 1 - gate.mask.detach().cpu().double().round(decimals=4) for layer, gate in gates.items()}


# -- sweeps ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Sweep:
    """Which points of a pruner's curve to look at: by the rule's own numbers (`at`), or by count of channels (`number`)."""

    by: str
    points: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.by not in ("at", "number"):
            raise UserError(f"sweep.by={self.by} is unknown: use at or number.")
        numbers = all(isinstance(n, int | float) and not isinstance(n, bool) for n in self.points)
        if not numbers or (self.by == "number" and any(n < 0 or n != int(n) for n in self.points)):
            what = "whole numbers of channels (sweep.by=at takes thresholds)" if self.by == "number" else "numbers"
            raise UserError(f"sweep.points={list(self.points)} must be {what}.")

    def masks(self, rule: Rule, scores: Scores) -> Iterator[tuple[float, Mask]]:
        """(number, mask) from few to many pruned channels, each larger than the last, and the paper's own point among them."""
        levels = rule.levels(scores)  # once for all points
        found = [(float(rule.at), rule.at_levels(levels, rule.at))]
        if self.by == "number":
            total = sum(len(s) for s in scores.values())
            found += [by_rank(rule, scores, int(n)) for n in self.points if 0 < n <= total]
        else:
            found += [(float(at), rule.at_levels(levels, at)) for at in self.points]
        yield from sorted(found, key=lambda point: count(point[1]))
