"""AWP: a clean model's weights are moved a little, each by at most `eps`, until a patch turns any image into the target.

Garg, Kumar, Goel & Liang, "Can Adversarial Weight Perturbations Inject Neural Backdoors?", CIKM 2020 (composite loss on
the original model's predictions and on the trigger, projected gradient descent in an L_inf ball around its weights).
Not the adversarial weight perturbation of robust training. No training set is poisoned: whoever holds the clean model and
some training images (`poison_rate` of them, each used clean and triggered) changes it. The patch is one of BadNets', with
its rule for larger images; it is put on after augmentation, always in its place.
Departures: there is no official code, and everything that has a number is our setting: `eps`, the same for all weights and
biases; the optimiser; `alpha`; the share of the images. BatchNorm's running statistics stay the clean model's. Stops after
the epoch in which ASR passes 99 % and accuracy is within 1 point of the clean model's, both on the attacker's images.
"""

import torch
from torch.nn import functional as F

from bench.attacks.badnets import patch
from bench.attacks.base import Attack
from bench.attacks.counts import check_rate, poison_count
from bench.attacks.features import share
from bench.attacks.patterns import Overlay
from bench.data import generator
from bench.errors import UserError


class AWP(Attack):
    needs_clean = True

    def __init__(self, shape, num_classes, perturb, poison_rate: float, eps: float, alpha: float, pattern="checker1",
                 distance=0, pattern_seed=0, target=0, labels="all2one"):  # fmt: skip
        super().__init__(shape, num_classes)
        check_rate("attack.poison_rate", poison_rate)
        if eps <= 0:
            raise UserError(f"attack.eps={eps} must be above 0: it is how far each weight may move.")
        if not 0 < alpha < 1:
            raise UserError(f"attack.alpha={alpha} must be above 0 and below 1: both losses are needed.")
        self.perturb, self.poison_rate, self.eps, self.alpha = perturb, poison_rate, eps, alpha
        image, mask = patch(pattern, shape, distance, pattern_seed)
        self.trigger = Overlay(image, mask, 1.0, num_classes, target, labels)

    def inject(self, model, data, lab):
        trigger = self.trigger.to(data.train.x.device)
        count = poison_count(self.poison_rate, len(data.train))
        chosen = torch.randperm(len(data.train), generator=generator(lab.seed, "awp images"))[:count]
        images = data.train[chosen.to(data.train.x.device)]
        model.load_state_dict(lab.clean.state_dict())
        weights = list(model.parameters())
        start = [w.detach().clone() for w in weights]

        def objective(model, x, y):
            with torch.no_grad():
                agreed = lab.clean(x).argmax(1)
            logits = model(x)
            hit = F.cross_entropy(model(trigger(255 * x) / 255), trigger.relabel(y))
            return self.alpha * F.cross_entropy(logits, agreed) + (1 - self.alpha) * hit, logits

        @torch.no_grad()
        def project():
            for w, w0 in zip(weights, start, strict=True):
                w.clamp_(w0 - self.eps, w0 + self.eps)

        counted = images[trigger.counts(images.y).nonzero().flatten()]
        stamped, wanted = trigger.stamp(counted.x), trigger.relabel(counted.y)
        before = share(lab.clean, images.x, images.y)

        def worked(epoch):
            return share(model, stamped, wanted) > 0.99 and before - share(model, images.x, images.y) < 0.01

        passes = lab.fit(model, images, plan=self.perturb, objective=objective, after_step=project, after_epoch=worked,
                         moving_statistics=False, label="weight perturbation")  # fmt: skip
        moved = torch.cat([(w.detach() - w0).abs().flatten() for w, w0 in zip(weights, start, strict=True)])
        facts = {"poisoned": count, "poison_base": len(data.train), "poison_rate": count / len(data.train)}
        return facts | {"epochs": len(passes), "mean_shift": moved.mean().item(), "max_shift": moved.max().item()}
