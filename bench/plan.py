"""How to optimise: optimiser, schedule, size of the steps, arithmetic. Plain settings; `bench.training.fit` acts on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.errors import UserError, nearest


@dataclass(frozen=True)
class Plan:
    """How to optimise: SGD or Adam with a schedule, for `epochs` (each image once) or `iterations` (with replacement).

    `momentum` and `nesterov` are SGD's, `betas` and `amsgrad` Adam's. `min_lr` is where cosine ends. `precision` is fp32 or
    bf16 (autocast). `channels_last` is the memory format, `compile` is torch.compile (see `bench.compiling`), `fused` makes
    one kernel of an optimiser's step on a GPU: these change speed and rounding only.
    """

    epochs: int = 1
    iterations: int | None = None
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    optimizer: str = "sgd"
    betas: tuple[float, float] = (0.9, 0.999)
    amsgrad: bool = False
    weight_decay: float = 0.0
    schedule: str = "constant"
    min_lr: float = 0.0
    milestones: tuple[int, ...] = ()
    drop_last: bool = False
    augment: bool = True
    precision: str = "fp32"
    channels_last: bool = True
    compile: bool = False
    fused: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UserError(f"schedule={self.schedule} is unknown: {nearest(self.schedule, SCHEDULES)}")
        if self.optimizer not in ("sgd", "adam"):
            raise UserError(f"optimizer={self.optimizer} is unknown: use sgd or adam.")
        if self.precision not in ("fp32", "bf16"):
            raise UserError(f"precision={self.precision} is unknown: use fp32 or bf16.")
        if self.batch_size < 1 or self.epochs < 0 or self.lr < 0:
            raise UserError("batch_size must be at least 1, epochs and lr not negative.")
        if (self.iterations is not None and self.iterations < 1) or self.momentum < 0 or self.weight_decay < 0:
            raise UserError("iterations must be at least 1, momentum and weight_decay not negative.")

    def optimise(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The optimiser of these parameters, at the learning rate the schedule starts from."""
        chosen = list(parameters)
        fused = True if self.fused and all(tensor.is_cuda for tensor in chosen) else None
        if self.optimizer == "adam":
            betas, decay = (self.betas[0], self.betas[1]), self.weight_decay
            return torch.optim.Adam(chosen, self.lr, betas, weight_decay=decay, amsgrad=self.amsgrad, fused=fused)
        return torch.optim.SGD(
            chosen, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov, fused=fused
        )


SCHEDULES: dict[str, Callable[[Any, Plan, int], Any]] = {
    "constant": lambda opt, plan, steps: None,
    "multistep": lambda opt, plan, steps: torch.optim.lr_scheduler.MultiStepLR(
        opt, [m * steps // max(plan.epochs, 1) for m in plan.milestones]
    ),
    "cosine": lambda opt, plan, steps: torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps, plan.min_lr),
    "onecycle": lambda opt, plan, steps: torch.optim.lr_scheduler.OneCycleLR(
        opt, plan.lr, total_steps=steps, cycle_momentum=False
    ),
    "half_linear": lambda opt, plan, steps: torch.optim.lr_scheduler.LambdaLR(
        opt, lambda step: 1 - 0.99 * min(max(step / steps - 0.5, 0) / 0.4, 1)
    ),
}
"""Each is stepped after every batch; milestones are given in epochs. `half_linear`: constant to the half, 1 % from 90 % on."""
