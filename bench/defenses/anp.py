"""ANP (NeurIPS'21): channels that collapse to the target when their weights are perturbed get a mask near 0.

Wu & Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", Eq. 3-5 and Algorithm 1;
reference: github.com/csdongxian/ANP_backdoor, optimize_mask_cifar.py and models/anp_batchnorm.py.
Departures: none in the numbers. As there, the noise is not projected (it may reach twice `eps`), all passes use batch
statistics, biases are perturbed but not masked, and masks count with 4 decimals. The weights are frozen, which changes
no mask and saves their gradients. A network's LayerNorms are perturbed and masked too, which the paper has not; so does
BackdoorBench (its anp_layernorm.py).
"""

import copy

import torch
from torch.nn import functional as F

from bench.data import generator
from bench.defenses.base import PruningDefense
from bench.pruning import clamp, gates, mask_scores
from bench.training import Plan, fit


class ANP(PruningDefense):
    def __init__(self, mask: Plan, eps: float, steps: int, alpha: float, **pruning) -> None:
        super().__init__(**pruning)
        self.mask, self.eps, self.steps, self.alpha = mask, eps, steps, alpha

    def score(self, model, data):
        model = copy.deepcopy(model)
        weights, biases = gates(model, "weight", "ANP"), gates(model, "bias", "ANP")
        masks = [gate.mask for gate in weights.values()]
        every = [gates[layer] for layer in weights for gates in (weights, biases) if layer in gates]
        for gate in biases.values():
            gate.mask.requires_grad_(False)
        rng = generator(data.seed, "anp noise")

        def objective(model, x, y):
            self.perturb(model, x, y, every, rng)
            robust = F.cross_entropy(model(x), y)
            for gate in every:
                gate.noise = None
            logits = model(x)
            return self.alpha * F.cross_entropy(logits, y) + (1 - self.alpha) * robust, logits

        fit(model, data.clean, self.mask, seed=data.seed, augment=data.augment, objective=objective,
            parameters=masks, after_step=lambda: clamp(weights), label="ANP masks")  # fmt: skip
        return mask_scores(weights)

    def perturb(self, model, x, y, gates, rng):
        """Random noise in [-eps, eps], then `steps` sign steps that climb the loss (Eq. 4)."""
        for gate in gates:
            noise = torch.empty(gate.mask.shape).uniform_(-self.eps, self.eps, generator=rng)
            gate.noise = noise.to(gate.mask.device).requires_grad_()
        for _ in range(self.steps):
            slopes = torch.autograd.grad(F.cross_entropy(model(x), y), [gate.noise for gate in gates])
            for gate, slope in zip(gates, slopes, strict=True):
                gate.noise = (gate.noise + self.eps / self.steps * slope.sign()).detach().requires_grad_()
        for gate in gates:
            gate.noise = gate.noise.detach()
