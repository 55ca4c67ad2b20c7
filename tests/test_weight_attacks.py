"""AWP: what moves, how far, and what it starts from."""

from functools import partial

import torch
from cells import build, composed
from torch.nn import functional as F

from bench.attacks.base import Lab
from bench.data import Dataset, ImageSet
from bench.models import normalised
from bench.training import fit


def world(count=64):
    """Random images of a small task, and a network nobody attacked."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=rng)
    images = ImageSet(x, torch.arange(count) % 4)
    data = Dataset(images, images, images, 4)
    torch.manual_seed(0)
    config = composed("model=vgg5").model
    return data, [normalised(build(config, num_classes=4, channels=3), data.mean, data.std).eval() for _ in range(2)]


def attacked(*overrides):
    data, (clean, model) = world()
    config = composed("attack=awp", "~preset@attack", *(f"attack.{o}" for o in overrides)).attack
    lab = Lab(partial(fit, plan=None, seed=1, augment=None), 3, clean)
    attack = build(config, shape=data.shape, num_classes=4)
    return data, clean, model, attack, attack.inject(model, data, lab)


def test_one_step_is_plain_gradient_descent_on_both_losses_then_projection():
    """Against the formula written out by hand, with SGD and a ball small enough to matter for some of the weights."""
    eps, lr, alpha = 1e-3, 100.0, 0.3
    data, clean, model, attack, facts = attacked(
        f"eps={eps}",
        f"alpha={alpha}",
        "poison_rate=1.0",
        "perturb.epochs=1",
        f"perturb.lr={lr}",
        "perturb.optimizer=sgd",
    )
    x, y = data.train.x.float() / 255, data.train.y
    stamped = attack.trigger.stamp(data.train.x).float() / 255
    loss = alpha * F.cross_entropy(clean(x), clean(x).argmax(1))
    loss = loss + (1 - alpha) * F.cross_entropy(clean(stamped), torch.zeros_like(y))
    slopes = torch.autograd.grad(loss, list(clean.parameters()))
    steps = [(-lr * slope).clamp(-eps, eps) for slope in slopes]
    for w, w0, step in zip(model.parameters(), clean.parameters(), steps, strict=True):
        assert torch.allclose(w, w0 + step, atol=2e-6)
    moved = torch.cat([step.abs().flatten() for step in steps])
    assert 0.05 < (moved == eps).float().mean() < 0.95  # else the projection was not tested
    assert abs(facts["mean_shift"] - moved.mean().item()) < 1e-6 and abs(facts["max_shift"] - eps) < 1e-6


def test_statistics_stay_and_nothing_leaves_the_ball():
    _, clean, model, _, facts = attacked("eps=0.002", "perturb.epochs=3", "perturb.batch_size=16", "poison_rate=0.5")
    for (name, now), before in zip(model.named_buffers(), clean.buffers(), strict=True):
        assert now.equal(before), name
    moved = max(
        float((w - w0).detach().abs().max()) for w, w0 in zip(model.parameters(), clean.parameters(), strict=True)
    )
    assert 0 < moved <= 0.002 + 1e-6 and facts["poisoned"] == 32 and facts["epochs"] == 3


def test_it_stops_as_soon_as_it_works():
    """A huge ball and a fast optimiser: the images are learnt by heart long before the last epoch."""
    _, _, _, _, facts = attacked(
        "eps=1.0", "perturb.epochs=60", "perturb.lr=3e-3", "perturb.batch_size=32", "poison_rate=1.0"
    )
    assert facts["epochs"] < 60
