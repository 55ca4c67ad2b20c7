"""Input-aware (Dynamic): a network paints each image a trigger of its own, which means nothing on another image.

Nguyen & Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020, Section 3: the mask network first, then classifier and
pattern network together; reference: VinAIResearch/input-aware-backdoor-attack-release, train.py, networks/models.py.
Departures: the pattern network's gradients are zeroed after each step, as the paper reads; the reference never zeroes
them (zero_grad=false). The second image of a pair is the next in the batch, where the reference has a second loader, and
the mask network sees a batch once, not three times. Equal masks or patterns have no gradient (in the reference: NaN).
All colour images are normalised as CIFAR-10 there (GTSRB there: not at all). With a rate too small for one image a batch,
a batch has one with that probability. Small images have fewer stages. Test images are rounded to uint8. Defaults are the
bench's common training.
"""

import torch
from torch.nn import functional as F

from bench.attacks.base import Attack
from bench.attacks.counts import batch_count, check_rate
from bench.attacks.generators import CIFAR10, EncoderDecoder, Learned, beside, built, frozen, squash
from bench.data import generator


class Painter(Learned):
    def __init__(self, shape, mean, std, generator_seed, **task):
        super().__init__(shape, mean, std, CIFAR10, rounding="nearest", **task)
        self.paint, self.place = (built(generator_seed, EncoderDecoder, shape, layers) for layers in (shape[0], 1))

    def mask(self, unit):
        """Where the trigger of images in [0, 1] lies: [B, 1, H, W]; most values end up close to 0 or 1."""
        return squash(20 * self.run(self.place, unit) - 10)

    def forward(self, x, pattern=None, mask=None):
        """The images with their own triggers, or with a given pattern in [0, 1] where the mask is 1."""
        if pattern is None:
            pattern, mask = self.run(self.paint, x / 255), self.mask(x / 255)
        return x + (255 * pattern - x) * mask


def diversity(images, made):
    """How far two images are apart, over how far what is made of them is: of the differences, the mean over all pairs."""
    far, near = (part.square().mean((1, 2, 3)).clamp_min(1e-30).sqrt() for part in (images, made))
    return (far / (near + 1e-7)).mean()


class InputAware(Attack):
    def __init__(self, shape, num_classes, mask_training, poison_rate: float, lambda_div: float, lambda_norm: float,
                 mask_density: float, paint_lr: float, paint_milestones=(), squared=True, zero_grad=True,
                 mean=None, std=None, generator_seed=0, target=0, labels="all2one"):  # fmt: skip
        super().__init__(shape, num_classes)
        check_rate("attack.poison_rate", poison_rate, most=0.5)  # there are as many cross images
        self.poison_rate, self.mask_training, self.squared = poison_rate, mask_training, squared
        self.lambda_div, self.lambda_norm, self.mask_density = lambda_div, lambda_norm, mask_density
        self.paint_training = paint_lr, paint_milestones, zero_grad
        facts = dict(num_classes=num_classes, target=target, labels=labels)
        self.trigger: Painter = Painter(shape, mean, std, generator_seed, **facts)

    def mask_loss(self, images, one, other):
        """Masks are to be small and to differ; `images` holds the differences of the images."""
        norm, weight = (one - self.mask_density).relu().mean(), self.lambda_div ** (1 + self.squared)
        return self.lambda_norm * norm + weight * diversity(images, one - other)

    def prepare(self, data, lab):
        trigger = self.trigger.to(data.train.x.device)

        def objective(net, x, y):
            mask = trigger.mask(x)
            return self.mask_loss((x - x.roll(-1, 0)) / trigger.std, mask, mask.roll(-1, 0)), None

        lab.fit(trigger.place.requires_grad_(), data.train, plan=self.mask_training, objective=objective, label="mask")
        frozen(trigger.place)

    def inject(self, model, data, lab):
        self.prepare(data, lab)
        trigger, dice, poisoned = self.trigger, generator(lab.seed, "inputaware small batches"), torch.tensor(0)

        def objective(model, x, y):
            """The first images of each (shuffled) batch get their own triggers, as many after them those of others."""
            nonlocal poisoned
            count = min(batch_count(self.poison_rate, len(x), dice), len(x) // 2)
            if not count:
                return F.cross_entropy(logits := model(x), y), logits
            poisoned += count
            pairs = x[:count], x.roll(-1, 0)[count : 2 * count]
            patterns = [trigger.run(trigger.paint, part) for part in pairs]
            marked = trigger(255 * x[: 2 * count], torch.cat(patterns), trigger.mask(torch.cat(pairs))) / 255
            logits = model(torch.cat([marked, x[2 * count :]]))
            loss = F.cross_entropy(logits, torch.cat([trigger.relabel(y[:count]), y[count:]]))
            apart = [(one - other) / trigger.std for one, other in (pairs, patterns)]
            return loss + self.lambda_div * diversity(*apart), logits

        lab.fit(model, data.train, objective=objective, **beside(trigger.paint, *self.paint_training, (dice, poisoned)))
        frozen(trigger.paint)
        return {"poisoned": int(poisoned), "poison_base": "batches", "poison_rate": self.poison_rate}
