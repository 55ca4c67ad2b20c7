"""DFST: a style is the trigger, and training unlearns the simple features that would do in its place.

Cheng et al., "Deep Feature Space Trojan Attack of Neural Networks by Controlled Detoxification", AAAI 2021; reference:
Megum1/DFST (PyTorch). As there, a new feature injector after every epoch makes the compromised neurons fire, and images
that went through it are trained on under their own labels.
Departures: NO PARITY in the trigger: the reference's style networks are not ours to give; a fixed filter (tone curves,
light from below, local contrast) stands in. The injector descends the whole loss and keeps images similar, as the paper
means; `slope=ssim` keeps the code's slip (no gradients pass the model, so SSIM alone trains it, driving images apart).
Neurons are what the first linear layer after the last convolution reads: in the bench's networks, as in layer4 there, means
of the last stage's channels. At least one neuron and one batch; with a rate too small for one image a batch, a batch has
one with that probability; stylised images are uint8; the last epoch's model counts, not the best on the test set.
Defaults are the bench's common training.
"""

import torch
from torch.nn import functional as F

from bench.attacks.base import Attack
from bench.attacks.counts import batch_count, check_rate, poison_count
from bench.attacks.features import neurons
from bench.attacks.patterns import Injector, Style, ssim
from bench.data import generator, stream
from bench.errors import UserError


class Detox:
    def __init__(self, share: float, neurons: float, epochs: int, lr: float, window: int, ssim: float, fire: float,
                 slope="all"):  # fmt: skip
        check_rate("attack.detox.share", share)
        if slope not in ("all", "ssim") or window % 2 == 0:
            raise UserError("attack.detox.slope must be all or ssim, and attack.detox.window an odd number.")
        self.share, self.neurons, self.epochs, self.lr, self.window = share, neurons, epochs, lr, window
        self.ssim, self.fire, self.slope = ssim, fire, slope

    def injector(self, model, clean, poisoned, target, alpha, size, rng):
        """A new one, trained against the model as it stands on the clean images [N, C, H, W], `size` at a time."""
        with torch.no_grad():
            fired, calm = (torch.cat([neurons(model, x)[1] for x in part.split(size)]) for part in (poisoned, clean))
        chosen = (fired.mean(0) - calm.mean(0)).topk(max(1, poison_count(self.neurons, fired.shape[1]))).indices
        made = Injector(clean.shape[1], self.window, alpha).to(clean.device)
        adam = torch.optim.Adam([made.delta], self.lr, (0.5, 0.9))
        for _ in range(self.epochs):
            for x in clean[torch.randperm(len(clean), generator=rng, device=clean.device)].split(size):
                adam.zero_grad()
                self.loss(model, made(x), x, target, chosen).backward(inputs=[made.delta])
                adam.step()
        return made.requires_grad_(False)

    def loss(self, model, new, x, target, chosen):
        with torch.set_grad_enabled(self.slope == "all"):
            logits, read = neurons(model, new)
        alike = ssim(new, x) if self.slope == "all" else (1 - ssim(new, x)).clamp(0, 1) / 2
        right = F.cross_entropy(logits, torch.full((len(x),), target, device=x.device))
        return right - self.ssim * alike.mean() - self.fire * read[:, chosen].mean()


class DFST(Attack):
    def __init__(self, shape, num_classes, poison_rate: float, detox_rate: float, alpha: float, contrast: float, colours,
                 detox: Detox, target=0):  # fmt: skip
        super().__init__(shape, num_classes)
        check_rate("attack.poison_rate", poison_rate)
        if detox_rate < 0 or poison_rate + detox_rate > 1:
            raise UserError(f"attack.detox_rate={detox_rate} must be 0 to 1 minus attack.poison_rate.")
        self.poison_rate, self.detox_rate, self.detox = poison_rate, detox_rate, detox
        self.trigger: Style = Style(shape[0], alpha, contrast, colours, num_classes, target)

    def inject(self, model, data, lab):
        train, device, target = data.train, data.train.x.device, self.trigger.target
        styled = self.trigger.to(device).stamp(train.x[train.y != target])
        rng, dice = torch.Generator(device).manual_seed(stream(lab.seed, "dfst")), generator(lab.seed, "small batches")
        poisoned, size, on = torch.tensor(0), torch.tensor(1), torch.tensor(False)
        injector = Injector(self.shape[0], self.detox.window, self.trigger.alpha).to(device).requires_grad_(False)

        def some(images, count):
            return images[torch.randperm(len(images), generator=rng, device=device)[:count]].float() / 255

        def on_batch(x, y):
            """Stylised images replace the first of each (shuffled) batch, the next go through the injector."""
            x, y, count = x.clone(), y.clone(), batch_count(self.poison_rate, len(x), dice)
            after = slice(count, count + poison_count(self.detox_rate, len(x)))
            x[:count], y[:count], x[after] = some(styled, count), target, injector(x[after]) if on else x[after]
            poisoned.add_(count), size.clamp_(min=len(x))
            return x, y

        def after_epoch(epoch):
            count = (batch := int(size)) * max(1, poison_count(self.detox.share, -(-len(train) // batch)))
            found = some(train.x, count), some(styled, count)
            new = self.detox.injector(model.eval(), *found, target, self.trigger.alpha, batch, rng)
            injector.delta.data, on[()] = new.delta.data, True

        carry = rng, dice, poisoned, size, on, injector
        lab.fit(model, train, on_batch=on_batch, after_epoch=after_epoch, carry=carry)
        return {"poisoned": int(poisoned), "poison_base": "batches", "poison_rate": self.poison_rate}
