"""Triggers that networks make: the networks, one batch of each attack against a version written by hand, bad settings."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.attacks.base import Lab
from bench.attacks.generators import Autoencoder, EncoderDecoder, UNet, beside, built, frozen, stages
from bench.attacks.inputaware import InputAware, diversity
from bench.attacks.lira import LIRA
from bench.data import Dataset, ImageSet
from bench.errors import UserError

SHAPE, CLASSES = (3, 8, 8), 4


def images(count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *SHAPE), generator=rng, dtype=torch.uint8), torch.arange(count) % CLASSES


def dataset():
    return Dataset(*(ImageSet(*images(20, seed)) for seed in range(3)), CLASSES)


class Spy(nn.Module):
    """A classifier that remembers what it was given."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.seen = nn.Linear(192, CLASSES), []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.linear(x.flatten(1))


def inputaware(shape=SHAPE, **more):
    weights = {"poison_rate": 0.2, "lambda_div": 3.0, "lambda_norm": 100, "mask_density": 0.032, "paint_lr": 0.01}
    return InputAware(shape, CLASSES, None, **weights | more)


def lira(**more):
    weights = {"eps": 0.2, "inject_eps": 0.1, "alpha": 0.3, "generator_lr": 0.01, "generator": "autoencoder"}
    return LIRA(SHAPE, CLASSES, "plan of stage 1", **weights | more)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda shape: EncoderDecoder(shape, 3), 723_273),
        (lambda shape: EncoderDecoder(shape, 1), 722_691),
        (UNet, 7_788_681),
        (Autoencoder, 346_659),
    ],
)
def test_networks_have_the_published_size(make, count):
    assert sum(p.numel() for p in make((3, 32, 32)).parameters()) == count


def test_stages_follow_the_size():
    sides = {8: 1, 15: 1, 16: 2, 28: 2, 31: 2, 32: 3, 64: 3, 224: 3}
    assert {side: stages((1, side, side + 5)) for side in sides} == sides
    assert EncoderDecoder((1, 28, 28), 1).middle[0].in_channels == 32, "the paper's code has 16 and 32 on MNIST"


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (1, 28, 28), (3, 40, 32)], ids=str)
def test_networks_keep_the_size(shape):
    x = torch.rand(2, *shape)
    for net in (EncoderDecoder(shape, 1), UNet(shape), *([Autoencoder(shape)] if shape[1] % 2 == 0 else [])):
        out = frozen(net)(x)
        assert out.shape[2:] == x.shape[2:] and out.abs().max() < 1


def test_first_weights_come_from_the_seed_alone():
    before = torch.get_rng_state()
    one, same, other = (built(seed, EncoderDecoder, SHAPE, 3) for seed in (0, 0, 1))
    assert before.equal(torch.get_rng_state())
    weights = [torch.cat([p.flatten() for p in net.parameters()]) for net in (one, same, other)]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])


def test_networks_run_in_float32_whatever_the_classifier_does():
    trigger, x = inputaware().trigger, images(2)[0] / 255
    plain = trigger.run(trigger.paint, x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = trigger.run(trigger.paint, x)
    assert mixed.dtype == torch.float32 and mixed.equal(plain)


@pytest.mark.parametrize("zero_grad", [True, False])
def test_gradients_are_zeroed_unless_told_not_to(zero_grad):
    net = nn.Linear(1, 1, bias=False)
    hooks = beside(net, 0.01, [1], zero_grad)
    for _ in range(2):
        (3 * net.weight).sum().backward()
        hooks["after_step"]()
    (3 * net.weight).sum().backward()
    assert net.weight.grad.item() == (3 if zero_grad else 9)


def test_the_networks_own_learning_rate_falls_after_its_milestone():
    net = nn.Linear(1, 1, bias=False)
    hooks, steps = beside(net, 0.01, [2]), []
    for _ in range(4):
        before = net.weight.item()
        net.weight.sum().backward()
        hooks["after_step"]()
        assert not hooks["after_epoch"](None), "a true value would end the training"
        steps.append(before - net.weight.item())
    assert steps == pytest.approx([0.01, 0.01, 0.001, 0.001], rel=1e-3)


def test_diversity():
    """By hand; two equal masks must not make the gradient NaN, as the square root of 0 would."""
    made = torch.zeros(2, 1, 2, 2)
    made[0] = 0.5
    made.requires_grad_()
    value = diversity(torch.full((2, 3, 2, 2), 2.0), made)
    assert value.item() == pytest.approx((2 / 0.5 + 2 / 1e-7) / 2)
    value.backward()
    assert made.grad.isfinite().all() and (made.grad[0] < 0).all()


def test_inputaware_batch():
    """Of 10 images the first 2 get their own trigger, the next 2 that of the image after them and keep their labels."""
    attack = inputaware(target=3)
    trigger, spy, batch = attack.trigger, Spy(), {}
    x, y = images(10, 7)
    x = x / 255

    def fit(model, data, objective=None, after_step=None, **rest):
        if model is spy:
            batch["loss"], logits = objective(spy, x, y)
            assert len(logits) == 10 and trigger.paint.training and not trigger.place.training
            batch["loss"].backward()
            after_step()

    state = {name: value.clone() for name, value in trigger.state_dict().items()}
    facts = attack.inject(spy, dataset(), Lab(fit, 0))
    assert facts == {"poisoned": 2, "poison_base": "batches", "poison_rate": 0.2}
    assert not trigger.paint.training and not any(p.requires_grad for p in trigger.parameters())
    moved = {name.split(".")[0] for name, value in trigger.state_dict().items() if not value.equal(state[name])}
    assert moved == {"paint"}

    trigger.load_state_dict(state)
    trigger.paint.train()
    with torch.no_grad():
        patterns = [trigger.run(trigger.paint, x[part]) for part in ([0, 1], [3, 4])]
        made = torch.cat(patterns)
        bent = x[:4] + (made - x[:4]) * trigger.mask(x[[0, 1, 3, 4]])
        torch.testing.assert_close(spy.seen[0], torch.cat([bent, x[4:]]))
        spread = torch.tensor([0.247, 0.243, 0.261]).view(3, 1, 1)
        far, near = ((((a - b) / spread) ** 2).mean((1, 2, 3)).sqrt() for a, b in ((x[[0, 1]], x[[3, 4]]), patterns))
        wanted = torch.tensor([3, 3, *y[2:]])
        fresh = Spy()
        loss = F.cross_entropy(fresh(spy.seen[0]), wanted) + 3 * (far / (near + 1e-7)).mean()
    assert batch["loss"].item() == pytest.approx(loss.item(), rel=1e-4)


def test_the_mask_network_learns_from_pairs_of_neighbours():
    """By hand: how small the masks are, and how far those of an image and the next, the last one's being the first, are apart."""
    attack, x, losses = inputaware(target=3), images(6, 7)[0] / 255, []

    def fit(model, data, plan=None, objective=None, label=None):
        assert model is attack.trigger.place and all(w.requires_grad for w in model.parameters())
        losses.append(objective(model, x, None))

    attack.prepare(dataset(), Lab(fit, 0))
    ((loss, none),) = losses
    assert none is None and not attack.trigger.place.training
    assert not any(w.requires_grad for w in attack.trigger.parameters())
    with torch.no_grad():
        masks = attack.trigger.mask(x)
        spread = torch.tensor([0.247, 0.243, 0.261]).view(3, 1, 1)
        ratios = []
        for i in range(6):
            far, near = (x[i] - x[(i + 1) % 6]) / spread, masks[i] - masks[(i + 1) % 6]
            ratios.append(far.square().mean().sqrt() / (near.square().mean().sqrt() + 1e-7))
        small = (masks - 0.032).clamp(min=0).mean()
    assert loss.item() == pytest.approx((100 * small + 9 * sum(ratios) / 6).item(), rel=1e-3)


def test_mask_loss():
    one, other, apart = torch.full((1, 1, 2, 2), 0.132), torch.full((1, 1, 2, 2), 0.032), torch.ones(1, 3, 2, 2)
    for squared, weight in ((True, 9), (False, 3)):
        value = inputaware(squared=squared).mask_loss(apart, one, other).item()
        assert value == pytest.approx(100 * 0.1 + weight * 1 / 0.1, rel=1e-4)


def test_lira_noise_is_bounded_and_clipped():
    """At most eps on normalised images; what leaves the range of all channels together is clipped."""
    trigger = lira().trigger
    for constant, edge in ((50.0, 255), (-50.0, 0)):
        with torch.no_grad():
            trigger.net.layers[-2].weight.zero_()
            trigger.net.layers[-2].bias.fill_(constant)  # tanh(50) is 1
        x = images(4)[0].float()
        out, step = trigger(x), constant / 50 * 0.1 * 255 * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        low = 255 * (torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1) - 0.485 / 0.229 * abs(step) / 25.5)
        high = 255 * (torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1) + 0.594 / 0.225 * abs(step) / 25.5)
        torch.testing.assert_close(out, (x + step).maximum(low).minimum(high))
        assert ((out - x).abs() <= step.abs() + 1e-4).all() and trigger.stamp(x.byte()).float().sub(
            edge
        ).abs().min() == 0


@pytest.mark.parametrize("scratch", [True, False])
def test_lira_batch(scratch):
    """Stage 1: the student moves, the trigger follows at the end of the epoch. Stage 2: uint8 images at inject_eps."""
    attack = lira(target=2, portion=0.5, scratch=scratch)
    trigger, spy, stage = attack.trigger, Spy(), []
    pixels, y = images(10, 7)
    x = pixels / 255
    start = {name: value.clone() for name, value in trigger.state_dict().items()}

    def fit(model, data, objective=None, plan=None, after_epoch=None, **rest):
        assert (model is spy) == (plan is None or not scratch)
        before = [v.clone() for v in trigger.state_dict().values()]
        model.seen.clear()
        loss, logits = objective(model, x, y)
        assert all(a.equal(b) for a, b in zip(before, trigger.state_dict().values(), strict=True))
        if after_epoch:
            assert not after_epoch(None)
        stage.append((plan, loss.item(), len(logits), list(model.seen)))

    facts = attack.inject(spy, dataset(), Lab(fit, 0))
    assert facts["poisoned"] == 5 and facts["poison_rate"] == pytest.approx(1 / 3)
    (plan, loss, rows, (attacked, both)), (none, final, _, (last,)) = stage
    assert plan == "plan of stage 1" and none is None and rows == 10
    moved = [name for name, value in trigger.state_dict().items() if not value.equal(start[name])]
    assert moved and all(name.startswith("net.") for name in moved)
    assert any("running" in name for name in moved), "the student is trained in train mode"

    assert len(attacked) == 5 and not attacked.equal(x[:5])
    torch.testing.assert_close(last, torch.cat([x, trigger.stamp(pixels[:5]) / 255]))
    trigger.load_state_dict(start)
    torch.testing.assert_close(both, torch.cat([x, trigger(255 * x[:5], eps=0.2) / 255]))
    for given, value in ((both, loss), (last, final)):
        logits = Spy()(given)
        parts = F.cross_entropy(logits[:10], y), F.cross_entropy(logits[10:], torch.full((5,), 2))
        assert value == pytest.approx((0.3 * parts[0] + 0.7 * parts[1]).item(), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda: inputaware(poison_rate=0.6), "attack.poison_rate=0.6"),
        (lambda: inputaware((3, 6, 6)), "6x6 pixels are too few"),
        (lambda: inputaware(mean=[0.5]), "attack.mean"),
        (lambda: inputaware(std=[1.0, 0.0, 1.0]), "attack.std"),
        (lambda: lira(portion=0.0), "attack.portion=0.0"),
        (lambda: lira(generator="gan"), "attack.generator=gan"),
        (lambda: lira(alpha=1.0), "attack.alpha=1.0"),
        (lambda: lira(inject_eps=0.0), "inject_eps=0.0"),
        (lambda: LIRA((3, 9, 8), 4, None, 0.1, 0.1, 0.5, 0.1, generator="autoencoder"), "attack.generator=autoencoder"),
    ],
)
def test_bad_settings_are_named(make, setting):
    with pytest.raises(UserError, match=setting.replace(".", r"\.")):
        make()
