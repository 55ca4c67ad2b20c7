"""What a network sees in an image, and images made to look alike to it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from bench.errors import UserError


def last_layer(model: nn.Module) -> nn.Linear:
    """The linear layer that makes the logits: the last one registered."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise UserError(
            "this attack works on what a network hands to its last Linear layer, and this one has none; "
            "trojan does without by attack.optimise=false."
        )
    return layers[-1]


def neurons(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, and what the first linear layer after the last convolution reads: [B, features].

    Behind global average pooling, these are the means of the last stage's channels.
    """
    called: list[tuple[nn.Module, Tensor]] = []
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [m.register_forward_pre_hook(lambda m, inputs: called.append((m, inputs[0]))) for m in layers]
    logits = model(x)
    for hook in hooks:
        hook.remove()
    last = max((at for at, (m, _) in enumerate(called) if isinstance(m, nn.Conv2d)), default=-1)
    if last + 1 == len(called):
        raise UserError(f"attack: this {type(model).__name__} has no linear layer after its convolutions to look at.")
    return logits, called[last + 1][1].flatten(1)


class Features(nn.Module):
    """Images in [0, 1] -> what the last layer of a copy of `model` is given, [B, F]."""

    seen: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        last_layer(self.model).register_forward_pre_hook(lambda layer, inputs: setattr(self, "seen", inputs[0]))

    def forward(self, x: Tensor) -> Tensor:
        self.model(x)
        return self.seen.flatten(1)


def collide(
    features: nn.Module, start: Tensor, goal: Tensor, beta: float, lr: float, iterations: int
) -> tuple[Tensor, float]:
    """Images near `start` with the features of `goal` (both [B, C, H, W] in [0, 1]); what is left of the distance, mean.

    Each descends ||f(x) - f(goal)||^2 + beta ||x - start||^2 by forward-backward splitting (Poison Frogs, Algorithm 1): a
    gradient step on the first term, the second in closed form, then the clip. A step that raises the objective is not
    taken, and that image's next one is a fifth of it.
    """
    chunk = max(1, 2**20 // start.shape[1:].numel())  # a network keeps its activations for all of them
    parts = [
        _collide(features, *part, beta, lr, iterations)
        for part in zip(start.split(chunk), goal.split(chunk), strict=True)
    ]
    return torch.cat([x for x, _ in parts]), torch.cat([left for _, left in parts]).mean().item()


def _collide(
    features: nn.Module, start: Tensor, goal: Tensor, beta: float, lr: float, iterations: int
) -> tuple[Tensor, Tensor]:
    aim = features(goal).detach()
    at, slope, candidate = start, torch.zeros_like(start), start
    rate = torch.full_like(start[:, :1, :1, :1], lr)
    best = rate + torch.inf
    for _ in range(iterations + 1):  # the first only looks at the start
        candidate = candidate.detach().requires_grad_()
        distance = (features(candidate) - aim).square().sum(1)
        steepest = torch.autograd.grad(distance.sum(), candidate)[0]
        value = (distance + beta * (candidate - start).square().sum((1, 2, 3))).detach().view_as(best)
        lower = value <= best
        best, rate = torch.minimum(value, best), torch.where(lower, rate, rate / 5)
        at, slope = torch.where(lower, candidate.detach(), at), torch.where(lower, steepest, slope)
        candidate = ((at - rate * slope + rate * beta * start) / (1 + rate * beta)).clamp(0, 1)
    return at, (features(at) - aim).norm(dim=1) / (features(start) - aim).norm(dim=1).clamp(min=1e-12)


@torch.no_grad()
def share(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of uint8 images that `model` (in eval mode) takes for `y`."""
    hits = sum(
        (model(part.float() / 255).argmax(1) == of).sum() for part, of in zip(x.split(512), y.split(512), strict=True)
    )
    return int(hits) / max(len(y), 1)
