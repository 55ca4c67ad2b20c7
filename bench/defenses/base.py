"""What a defence is: it takes a backdoored model and what the defender holds, and offers repaired models."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.data import Defender
from bench.errors import UserError
from bench.pruning import Mask, Rule, Scores, Sweep, apply, count
from bench.training import Plan, cross_entropy, fit, sound

NEEDS = ("nothing", "clean", "poisoned", "trigger")


@dataclass(frozen=True)
class Candidate:
    """One repaired model on offer. `at` and `pruned` say where on a pruner's curve it lies; `fixed` marks the paper's point."""

    model: nn.Module
    at: float | None = None
    mask: Mask | None = None
    fixed: bool = True

    @property
    def pruned(self) -> int:
        return count(self.mask) if self.mask else 0


@dataclass(frozen=True)
class Repaired:
    """What a defence returns. Pruners offer a whole curve; its models share memory, so look at each before the next."""

    candidates: Iterable[Candidate]
    scores: Scores | None = None


class Defense(ABC):
    """One published defence. `needs` is its threat model: `nothing`, `clean` images, a `poisoned` mix besides.

    Or the `trigger`: a control that cheats.
    """

    needs: str = "clean"

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if isinstance(cls.needs, str) and cls.needs not in NEEDS:
            raise UserError(f"{cls.__name__}.needs={cls.needs!r} is unknown: use {', '.join(NEEDS)}.")

    def offer(self, model: nn.Module, data: Defender) -> Repaired:
        """`repair`, and a look at what came back. Raises UserError."""
        found = self.repair(model, data)
        if not isinstance(found, Repaired):
            raise UserError(f"{type(self).__name__}.repair returned {type(found).__name__}, and not a Repaired.")
        return found

    @abstractmethod
    def repair(self, model: nn.Module, data: Defender) -> Repaired:
        """Never changes `model`; sees nothing but `data`."""


class PruningDefense(Defense):
    """A defence that scores channels; choosing and applying the cut is the same for all of them.

    `then`: fine-tuning on the clean images after pruning, for methods that prescribe it. Every point of the curve but the
    first, which is the model as it came, is then a model pruned so far and fine-tuned by itself, so a curve costs one
    fine-tuning a point, by `objective`. Weights that the cut set to 0 stay 0, unless `holds` is false. A pruner that needs
    nothing needs clean images then.
    """

    holds: ClassVar[bool] = True
    zeroable: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(self, rule: Rule, sweep: Sweep, zeroes: Iterable[str], then: Plan | None = None) -> None:
        self.rule, self.sweep, self.zeroes, self.then = rule, sweep, tuple(zeroes), then
        if not self.zeroes or not set(self.zeroes) <= set(self.zeroable):
            said = "weight, bias or both" if len(self.zeroable) > 1 else "weight: this defence zeroes nothing else"
            raise UserError(f"defense.zeroes={list(self.zeroes)} must name {said}.")
        if then is not None and self.needs == "nothing":
            self.needs = "clean"

    @abstractmethod
    def score(self, model: nn.Module, data: Defender) -> Scores:
        """The only thing a pruning paper adds: higher = more suspicious. Works on a copy if it has to change the model."""

    def cut(self, model: nn.Module, mask: Mask, data: Defender) -> nn.Module:
        """Switches the masked channels off, in place; for methods that take more away than the layer scored."""
        return apply(model, mask, self.zeroes)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """What fine-tuning after pruning descends; see `bench.training.Objective`."""
        return cross_entropy(model, x, y)

    def repair(self, model: nn.Module, data: Defender) -> Repaired:
        sound(model, type(self).__name__)
        scores = {layer: score.detach().cpu() for layer, score in self.score(model, data).items()}
        layers = dict(model.named_modules())
        for layer, score in scores.items():
            weight = getattr(layers.get(layer), "weight", None)
            if weight is None or score.ndim != 1 or len(score) not in weight.shape[:2]:
                raise UserError(
                    f"{type(self).__name__}: the scores of {layer!r} are {list(score.shape)} numbers, where one per channel of "
                    "a layer with weights is needed."
                )
            if not score.isfinite().all():
                raise UserError(
                    f"{type(self).__name__}: the scores of layer {layer} are not finite; is the model sound?"
                )
        return Repaired(self._candidates(model, scores, data), scores)

    def _candidates(self, model: nn.Module, scores: Scores, data: Defender) -> Iterator[Candidate]:
        # Masks grow along the sweep, so one working copy serves all points: what is zeroed stays zeroed.
        working = copy.deepcopy(model)
        paper = self.rule.mask(scores, self.rule.at)
        last = {layer: torch.zeros_like(mask) for layer, mask in paper.items()}
        yield Candidate(working, None, last, same(last, paper))
        for at, mask in self.sweep.masks(self.rule, scores):
            if not same(mask, last):
                last = mask
                cut = self.cut(working, mask, data)
                yield Candidate(self._tuned(model, cut, data), at, mask, same(mask, paper))

    def _tuned(self, model: nn.Module, cut: nn.Module, data: Defender) -> nn.Module:
        """`cut` fine-tuned, in a copy; what is 0 in it and was not in `model` is held there if `holds`. Without `then`: `cut`."""
        if self.then is None:
            return cut
        tuned = copy.deepcopy(cut)
        dead = [(new == 0) & (old != 0) for new, old in zip(tuned.parameters(), model.parameters(), strict=True)]

        def hold() -> None:
            for parameter, gone in zip(tuned.parameters(), dead, strict=True):
                parameter.data.masked_fill_(gone, 0)

        fit(tuned, data.clean, self.then, seed=data.seed, augment=data.augment, objective=self.objective,
            after_step=hold if self.holds else None, label="fine-tuning")  # fmt: skip
        return tuned


def same(one: Mask, other: Mask) -> bool:
    return all(one[layer].equal(other[layer]) for layer in one)
