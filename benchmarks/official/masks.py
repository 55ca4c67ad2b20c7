"""The mask searches as published: ANP and RNP. All weights keep their gradients; every epoch is followed by an evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batches = Sequence[tuple[Tensor, Tensor]]
"""Images in [0, 1] and labels, drawn beforehand: the loader's time is left out, in the authors' favour."""
Masks = dict[str, Tensor]
Look = Callable[[nn.Module], tuple[int, int]]
"""Evaluates a network: (clean images right, triggered images that hit)."""


class MaskedNorm(nn.BatchNorm2d):
    """BatchNorm whose weight is multiplied by mask + noise and whose bias by 1 + noise; noise counts when it is switched on."""

    def __init__(self, like: nn.BatchNorm2d) -> None:
        super().__init__(like.num_features, like.eps, like.momentum)
        self.load_state_dict(like.state_dict())
        self.neuron_mask = nn.Parameter(torch.ones_like(self.weight))
        self.neuron_noise = nn.Parameter(torch.zeros_like(self.weight))
        self.neuron_noise_bias = nn.Parameter(torch.zeros_like(self.weight))
        self.noisy = False

    def forward(self, input: Tensor) -> Tensor:
        share = self.neuron_mask + self.neuron_noise if self.noisy else self.neuron_mask
        bias = self.bias * (1 + self.neuron_noise_bias) if self.noisy else self.bias
        mean, variance = self.running_mean, self.running_var
        return F.batch_norm(
            input, mean, variance, self.weight * share, bias, self.training, self.momentum or 0.0, self.eps
        )


def masked(net: nn.Module) -> dict[str, MaskedNorm]:
    """Replaces every BatchNorm2d of the network, in place."""
    found = {}
    for name, layer in list(net.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            parent, _, last = name.rpartition(".")
            found[name] = MaskedNorm(layer)
            setattr(net.get_submodule(parent), last, found[name])
    return found


def clip(layers: Iterable[MaskedNorm]) -> None:
    with torch.no_grad():
        for layer in layers:
            layer.neuron_mask.clamp_(0, 1)


def anp(
    net: nn.Module, batches: Batches, rng: torch.Generator, lr: float, eps: float, steps: int, alpha: float
) -> Masks:
    """Adversarial neuron pruning's search. `rng` draws the noise, a layer's weights before its biases."""
    net = copy.deepcopy(net)
    layers = masked(net)
    noises = [p for layer in layers.values() for p in (layer.neuron_noise, layer.neuron_noise_bias)]
    optimizer = torch.optim.SGD([layer.neuron_mask for layer in layers.values()], lr=lr, momentum=0.9)
    climber = torch.optim.SGD(noises, lr=eps / steps)
    loss = nn.CrossEntropyLoss()
    net.train()
    for x, y in batches:
        with torch.no_grad():
            for noise in noises:
                noise.copy_(torch.empty(noise.shape).uniform_(-eps, eps, generator=rng))
        switch(layers, True)
        for _ in range(steps):
            climber.zero_grad()
            (-loss(net(x), y)).backward()
            for noise in noises:
                assert noise.grad is not None
                noise.grad.sign_()
            climber.step()
        optimizer.zero_grad()
        robust = loss(net(x), y)
        switch(layers, False)
        natural = loss(net(x), y)
        (alpha * natural + (1 - alpha) * robust).backward()
        optimizer.step()
        clip(layers.values())
    return {name: layer.neuron_mask.detach() for name, layer in layers.items()}


def switch(layers: dict[str, MaskedNorm], noisy: bool) -> None:
    for layer in layers.values():
        layer.noisy = noisy


@dataclass
class Run:
    """What RNP's script leaves: masks, and (clean right, triggered hit) at each threshold; how often it evaluated."""

    masks: Masks
    curve: list[tuple[int, int]]
    evaluations: int


def rnp(
    net: nn.Module, unlearn: Sequence[Batches], recover: Sequence[Batches], look: Look, points: Sequence[float],
    lr: float = 0.01, mask_lr: float = 0.2, alpha: float = 0.2, stop: float = 0.2,
) -> Run:  # fmt: skip
    """Reconstructive neuron pruning: unlearn, recover, prune. `unlearn`, `recover`: the batches of each epoch at most."""
    loss, looks = nn.CrossEntropyLoss(), 0
    forgetful = copy.deepcopy(net)
    optimizer = torch.optim.SGD(forgetful.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 20], gamma=0.1)
    for epoch in unlearn:
        forgetful.train()
        right = total = 0
        for x, y in epoch:
            optimizer.zero_grad()
            logits = forgetful(x)
            right += (logits.argmax(1) == y).sum().item()
            total += len(y)
            (-loss(logits, y)).backward()
            optimizer.step()
        scheduler.step()
        look(forgetful)
        looks += 1
        if right / total <= stop:
            break

    layers = masked(forgetful)
    chooser = torch.optim.SGD([layer.neuron_mask for layer in layers.values()], lr=mask_lr, momentum=0.9)
    for epoch in recover:
        forgetful.train()
        for x, y in epoch:
            chooser.zero_grad()
            (alpha * loss(forgetful(x), y)).backward()
            chooser.step()
            clip(layers.values())
        look(forgetful)
        looks += 1
    masks = {name: layer.neuron_mask.detach().clone() for name, layer in layers.items()}
    curve = prune_by_threshold(copy.deepcopy(net), masks, look, points)
    return Run(masks, curve, looks + len(curve))


def prune_by_threshold(net: nn.Module, masks: Masks, look: Look, points: Sequence[float]) -> list[tuple[int, int]]:
    """One neuron after the other, each by loading the whole state again; masks have the 4 decimals of the text file.

    The first entry is the network as it came.
    """
    neurons = [(name, i, float(f"{v:.4f}")) for name, mask in masks.items() for i, v in enumerate(mask.tolist())]
    neurons.sort(key=lambda neuron: neuron[2])
    curve, done = [look(net)], 0
    for point in points:
        while done < len(neurons) and neurons[done][2] <= point + 1e-9:
            name, channel, _ = neurons[done]
            state = net.state_dict()
            state[f"{name}.weight"][channel] = 0.0
            net.load_state_dict(state)
            done += 1
        curve.append(look(net))
    return curve
