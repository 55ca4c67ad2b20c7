"""LIRA: a network adds faint noise to each image; it is trained against the classifier, and the classifier with it.

Doan, Lao, Zhao & Li, "LIRA: Learnable, Imperceptible and Robust Backdoor Attacks", ICCV 2021, Algorithm 1; reference:
khoadoan106/backdoor_attacks, python/lira_trigger_generation.py (stage 1) and lira_backdoor_injection.py (stage 2).
Departures: triggered and clean images pass through the classifier in one batch; apart, as in the reference (joint=false),
BatchNorm tells them by the batch's statistics, and in eval mode, which the reference never tests in, nothing is left. In
stage 2 the classifier sees triggered images truncated to uint8, as the test images are: noise of `inject_eps` 0.01 is
half a gray level. The generator of stage 1's last epoch is kept; the reference picks one by its accuracies on the test
set. Stage 2 goes on from stage 1, as the paper; the reference's commands start afresh (scratch=true). Gray images get the
same networks, not the reference's own for MNIST; small ones have fewer stages. Defaults: the bench's training in stage 2.
"""

import copy

import torch
from torch.nn import functional as F

from bench.attacks.base import Attack, check_rate
from bench.attacks.generators import IMAGENET, Autoencoder, Learned, UNet, built
from bench.errors import UserError

NETWORKS = {"unet": UNet, "autoencoder": Autoencoder}


class Noise(Learned):
    def __init__(self, net, eps, shape, mean, std, *task):
        super().__init__(shape, mean, std, IMAGENET, *task)
        self.net, self.eps = net, eps

    def forward(self, x, net=None, eps=None):
        """Noise of at most `eps` on normalised images, clipped to what those hold in any channel."""
        noise = self.std * (eps or self.eps) * self.run(net or self.net, x / 255)
        low, high = -self.mean / self.std, (1 - self.mean) / self.std
        return (x + 255 * noise).clamp(*(255 * (self.mean + self.std * edge) for edge in (low.min(), high.max())))


class LIRA(Attack):
    def __init__(self, shape, num_classes, generate, eps: float, inject_eps: float, alpha: float, generator_lr: float,
                 generator="unet", portion=1.0, scratch=False, joint=True, mean=None, std=None, generator_seed=0,
                 target=0, labels="all2one"):  # fmt: skip
        super().__init__(shape, num_classes)
        check_rate("attack.portion", portion)
        if generator not in NETWORKS:
            raise UserError(f"attack.generator={generator} is unknown: use {' or '.join(NETWORKS)}.")
        if not 0 <= alpha < 1:
            raise UserError(f"attack.alpha={alpha} must be at least 0 and below 1.")
        if min(eps, inject_eps) <= 0:
            raise UserError(f"attack.eps={eps} and attack.inject_eps={inject_eps} must be above 0.")
        self.generate, self.eps, self.alpha, self.generator_lr = generate, eps, alpha, generator_lr
        self.portion, self.scratch, self.joint = portion, scratch, joint
        self.poison_rate = portion / (1 + portion)  # of what the classifier sees: every image is there as it is, too
        net = built(generator_seed, NETWORKS[generator], shape)
        self.trigger: Noise = Noise(net, inject_eps, shape, mean, std, num_classes, target, labels)

    def loss(self, model, x, y, triggered):
        """Of the images as they are, and of the first ones with the trigger."""
        passes = [torch.cat([x, triggered])] if self.joint else [x, triggered]
        logits, hit = torch.cat([model(part) for part in passes]).split([len(x), len(triggered)])
        poison = F.cross_entropy(hit, self.trigger.relabel(y[: len(hit)]))
        return self.alpha * F.cross_entropy(logits, y) + (1 - self.alpha) * poison, logits

    def inject(self, model, data, lab):
        trigger, poisoned = self.trigger.to(data.train.x.device), torch.tensor(0)
        student = copy.deepcopy(trigger.net).requires_grad_().train()
        adam = torch.optim.Adam(weights := list(student.parameters()), self.generator_lr)

        def together(model, x, y):
            """A step of the generator towards the target; then one of the classifier, against the last epoch's generator."""
            pixels = 255 * x[: int(self.portion * len(x)) or 1]
            loss = F.cross_entropy(model(trigger(pixels, student, self.eps) / 255), trigger.relabel(y[: len(pixels)]))
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.grad = gradient
            adam.step()
            return self.loss(model, x, y, trigger(pixels, eps=self.eps) / 255)

        def alone(model, x, y):
            nonlocal poisoned
            pixels = (255 * x[: int(self.portion * len(x)) or 1]).round().to(torch.uint8)
            poisoned += len(pixels)
            return self.loss(model, x, y, trigger.stamp(pixels) / 255)

        def hand_over(epoch):
            trigger.net.load_state_dict(student.state_dict())

        first = copy.deepcopy(model) if self.scratch else model
        lab.fit(first, data.train, plan=self.generate, objective=together, after_epoch=hand_over,
                carry=(student, adam, trigger.net), label="generator")  # fmt: skip
        lab.fit(model, data.train, objective=alone, carry=(poisoned,))
        return {"poisoned": int(poisoned), "poison_base": "batches", "poison_rate": self.poison_rate}
