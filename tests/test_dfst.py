"""DFST: its style, its measures, which neurons it picks, what it trains the injector for, and what it does to a batch."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.attacks.base import Lab
from bench.attacks.dfst import DFST, Detox
from bench.attacks.features import neurons
from bench.attacks.patterns import Injector, Style, ssim
from bench.data import Dataset, ImageSet
from bench.errors import UserError
from bench.models import preactresnet18, resnet18, vgg

COLOURS = [[0.2, 0.1, 0.3], [1.0, 0.8, 0.4], [0.5, 1.0, 2.0], [0.3, 0.0, 0.1]]


def detox(**settings):
    return Detox(
        **{"share": 0.5, "neurons": 0.3, "epochs": 5, "lr": 0.05, "window": 5, "ssim": 0.1, "fire": 0.3} | settings
    )


def images(count=12, size=8):
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(256, (count, 3, size, size), generator=rng, dtype=torch.uint8)
    return ImageSet(x, torch.arange(count) % 4)


def network():
    torch.manual_seed(0)
    return vgg([8, "M", 10], 4, 3, False).eval()


def test_the_style_at_one_pixel():
    style = Style(3, 0.6, 0.5, COLOURS, num_classes=4, target=0)
    x = images().x.double()
    row, col = 3, 4
    for channel, (black, white, gamma, light) in enumerate(zip(*COLOURS, strict=True)):
        around = x[0, channel, row - 2 : row + 3, col - 2 : col + 3].mean()
        sharp = ((x[0, channel, row, col] * 1.5 - 0.5 * around) / 255).clamp(0, 1)
        styled = (black + (white - black) * sharp**gamma + light * row / 7).clamp(0, 1)
        wanted = 0.4 * x[0, channel, row, col] + 0.6 * 255 * styled
        assert style(x)[0, channel, row, col].item() == pytest.approx(wanted.item(), abs=1e-3)


def test_grey_images_get_the_mean_of_the_colours():
    grey, colour = (
        Style(c, 0.6, 0.5, [[v] * 3 for v in (0.2, 0.9, 1.5, 0.1)], num_classes=4, target=0) for c in (1, 3)
    )
    x = torch.rand(2, 1, 8, 8) * 255
    torch.testing.assert_close(grey(x).expand(-1, 3, -1, -1), colour(x.expand(-1, 3, -1, -1)))
    assert Style(1, 0.6, 0.5, COLOURS, num_classes=4, target=0).colours[0].item() == pytest.approx(0.2)


def test_ssim_against_its_definition():
    x, y = (torch.rand(1, 1, 6, 7, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (0, 1))
    line = torch.exp(-(torch.arange(-2, 3, dtype=torch.float64) ** 2) / (2 * 1.5**2))
    weight = line[:, None] * line / line.sum() ** 2
    found = ssim(x, y)
    for row, col in product(range(6), range(7)):
        a, b = (F.pad(image, (2, 2, 2, 2))[0, 0, row : row + 5, col : col + 5] for image in (x, y))
        ma, mb = (weight * a).sum(), (weight * b).sum()
        va, vb, both = (weight * a * a).sum() - ma**2, (weight * b * b).sum() - mb**2, (weight * a * b).sum() - ma * mb
        wanted = (2 * ma * mb + 1e-4) * (2 * both + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
        assert found[0, 0, row, col].item() == pytest.approx(wanted.item(), abs=1e-10)
    torch.testing.assert_close(ssim(x, x), torch.ones_like(x))


@pytest.mark.parametrize("build", [resnet18, preactresnet18, None], ids=["resnet18", "preactresnet18", "vgg"])
def test_neurons_are_the_pooled_channels_of_the_last_stage(build):
    model = build(4, 3, width=4) if build else vgg([8, "M", 10], 4, 3, False)
    model.eval()
    x, seen = torch.rand(2, 3, 16, 16), []
    (model.features if build is None else model.layer4).register_forward_hook(
        lambda m, i, o: seen.append(o.mean((2, 3)))
    )
    with torch.no_grad():
        logits, read = neurons(model, x)
        assert logits.equal(model(x)) and read.equal(seen[0])
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_network_that_ends_in_a_convolution_is_refused():
    with pytest.raises(UserError, match="no linear layer"):
        neurons(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("slope", ["all", "ssim"])
def test_the_loss_and_where_its_slope_comes_from(slope):
    """The code's own version has the same cross-entropy and neurons, without a slope, and the other sign of SSIM."""
    model, x, chosen = network(), images().x[:6] / 255, torch.tensor([1, 5])
    injector = Injector(3, 5, 0.6)
    injector.delta.data += 0.1
    loss = detox(slope=slope).loss(model, injector(x), x, 2, chosen)
    new = injector(x)
    logits, read = neurons(model, new)
    right, fire = F.cross_entropy(logits, torch.full((6,), 2)), (read[:, 1].mean() + read[:, 5].mean()) / 2
    alike = ssim(new, x).mean() if slope == "all" else ((1 - ssim(new, x)).clamp(0, 1) / 2).mean()
    torch.testing.assert_close(loss, right - 0.1 * alike - 0.3 * fire)
    known = right - 0.1 * alike - 0.3 * fire if slope == "all" else -0.1 * alike
    slopes = [torch.autograd.grad(part, injector.delta)[0] for part in (loss, known)]
    torch.testing.assert_close(*slopes)


def test_the_injector_makes_the_compromised_neurons_fire_and_leaves_the_model_alone():
    """The neurons are those that fire most at the poisoned images; training for them alone raises them."""
    model, clean = network(), images().x / 255
    before = {name: value.clone() for name, value in model.state_dict().items()}
    styled = Style(3, 0.6, 0.5, COLOURS, num_classes=4, target=0).stamp(images().x) / 255
    chosen = []

    class Watched(Detox):
        def loss(self, model, new, x, target, neurons):
            chosen.append(neurons)
            return super().loss(model, new, x, target, neurons)

    made = Watched(0.5, 0.3, 5, 0.05, 5, 0.0, 100.0).injector(model, clean, styled, 2, 0.6, 6, torch.Generator())
    assert not made.delta.requires_grad and len(chosen) == 10
    with torch.no_grad():
        plain, poisoned, detoxed = (neurons(model, x)[1].mean(0) for x in (clean, styled, made(clean)))
    assert sorted(chosen[0].tolist()) == sorted((poisoned - plain).argsort()[-3:].tolist())
    assert detoxed[chosen[0]].mean() > plain[chosen[0]].mean()
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_batch():
    """First stylised images of other classes, with the target's label; then detoxified ones under their own; then the rest."""
    train = images(40)
    attack = DFST((3, 8, 8), 4, 0.2, 0.3, 0.6, 0.5, COLOURS, detox(epochs=2), target=2)
    seen = []

    def fit(model, data, on_batch, after_epoch, **rest):
        for _ in range(2):
            seen.append(on_batch(data.x[:20] / 255, data.y[:20]))
            assert after_epoch(None) is None

    facts = attack.inject(network(), Dataset(train, train, train, 4), Lab(fit, 5))
    assert facts["poisoned"] == 8
    others = train.x[train.y != 2]
    for x, y in seen:
        assert (y[:4] == 2).all() and y[4:].equal(train.y[4:20])
        for image in x[:4]:
            assert ((attack.trigger.stamp(others) / 255 - image).abs().amax((1, 2, 3)) < 1e-6).sum() == 1
        assert x[10:].equal(train.x[10:20] / 255)
    (first, _), (second, _) = seen
    assert first[4:10].equal(train.x[4:10] / 255), "there is no injector before the first epoch ends"
    moved = (second[4:10] - first[4:10]).abs()
    assert moved.amax((1, 2, 3)).min() > 0 and second.min() >= 0 and second.max() <= 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("detox_rate", 0.9), ("poison_rate", 0), ("alpha", 1.5), ("colours", [[0.1] * 3]), ("contrast", -1)],
)
def test_settings_that_make_no_sense(name, value):
    settings = {"poison_rate": 0.2, "detox_rate": 0.2, "alpha": 0.6, "contrast": 0.5, "colours": COLOURS}
    with pytest.raises(UserError, match=f"attack.{name}"):
        DFST((3, 8, 8), 4, **settings | {name: value}, detox=detox())


@pytest.mark.parametrize(("name", "value"), [("share", 0), ("slope", "up"), ("window", 4)])
def test_settings_of_the_detoxification_that_make_no_sense(name, value):
    with pytest.raises(UserError, match=f"attack.detox.{name}"):
        detox(**{name: value})
