"""Keeps the model at the operating point while the curve is looked at: a defence's candidates share memory, so there is
no going back to one afterwards, and running the defence again need not give the same weights on a GPU."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from analysis.operating_point import choose
from bench.defenses.base import Candidate
from bench.pruning import Mask


@dataclass(frozen=True)
class Chosen:
    """The very model that was measured, in memory of its own; its row of the curve; what was pruned (None: no pruner)."""

    model: nn.Module
    row: Mapping[str, Any]
    mask: Mask | None


@dataclass
class Keeper:
    """Handed to `bench.curve.trace`, and asked for `chosen` afterwards: what `selection.rule` takes of the whole curve.

    `selection`: the settings `rule` and `max_drop`; `select_before`, `acc_before`: accuracy before the defence on the held-back
    clean images and on the test set, percent. Costs a copy of the model at each point that is better than those before.
    """

    selection: Mapping[str, Any]
    select_before: float
    acc_before: float
    chosen: Chosen | None = field(default=None, init=False)

    def __call__(self, rows: Sequence[Mapping[str, Any]], candidate: Candidate) -> None:
        """`rows`: the curve so far, the candidate's row last. A rule that takes a row of the whole takes it here already."""
        rule = self.selection["rule"]
        if len(rows) > 1 and rule == "fixed" and not any(row["fixed"] for row in rows):
            return  # the paper's own point is still to come
        drop = self.selection["max_drop"]
        place = choose(rows, rule, select_before=self.select_before, acc_before=self.acc_before, max_drop=drop)
        if place == len(rows) - 1:
            mask = candidate.mask and {layer: gone.clone() for layer, gone in candidate.mask.items()}
            self.chosen = Chosen(copy.deepcopy(candidate.model), rows[-1], mask)
