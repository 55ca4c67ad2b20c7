"""Repairs that train a network or its masks, each against its method written out by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from bench.data import Augment, Defender, ImageSet, generator
from bench.defenses.awm import AWM
from bench.defenses.mcr import MCR, bezier, renew_statistics
from bench.defenses.nad import NAD, attention, stages
from bench.defenses.rnp import RNP
from bench.errors import UserError
from bench.models import preactresnet18, resnet18, wideresnet
from bench.plan import SCHEDULES
from bench.pruning import MaskBelow, Sweep
from bench.training import Plan, epoch_order, fit

STEP = Plan(epochs=1, batch_size=24, lr=0.1, momentum=0.0, augment=False)


def defender(count=24, size=8):
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=rng)
    return Defender(ImageSet(x, torch.arange(count) % 4), (3, size, size), 4, Augment(), seed=0)


def network():
    """conv-BN-ReLU, pooled to half the size, conv-BN-ReLU, pooled, linear; its statistics are not the fresh ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
                          nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(6, 4))  # fmt: skip
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(16, 3, 8, 8))
    return model.eval()


def pixels(data):
    return data.clean.x / 255


@pytest.mark.parametrize(
    ("net", "size", "layers"),
    [
        (lambda: resnet18(10, 3, width=4), 32, ["layer1", "layer2", "layer3", "layer4"]),
        (lambda: preactresnet18(10, 3, width=4), 32, ["layer1", "layer2", "layer3", "layer4"]),
        (lambda: resnet18(10, 3, width=4), 8, ["layer1", "layer2", "layer3"]),  # layer4 makes maps of one pixel
        (network, 8, ["2", "6"]),
        (lambda: wideresnet(10, 3, 10, 1), 32, ["blocks.0", "blocks.1", "blocks"]),  # block1-3
    ],
    ids=["resnet", "preact", "small images", "plain", "wrn"],
)
def test_nad_finds_the_last_layer_of_each_resolution(net, size, layers):
    assert stages(net(), defender(2, size)) == layers


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2", "vgg11_bn"])
def test_nad_on_torchvision_nets(name):
    """All resolutions of the network, falling; not VGG's last pool, which makes 7x7 of 2x2."""
    import torchvision

    model, seen = getattr(torchvision.models, name)(), {}
    found = stages(model, defender(1, 64))
    for layer in found:
        model.get_submodule(layer).register_forward_hook(lambda m, i, out, n=layer: seen.update({n: out.shape[2]}))
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64))
    assert [seen[layer] for layer in found] == [s for s in (64, 32, 16, 8, 4, 2) if s in seen.values()]
    assert {16, 8, 4, 2} <= set(seen.values())


def test_nad_step_by_hand():
    """The student's first step goes down both losses; it runs once a batch, and keeps no hook."""
    data, betas = defender(), [30, 70]
    teach = Plan(epochs=1, batch_size=12, lr=0.05, augment=False)
    (student,) = (c.model for c in NAD(teach, STEP, betas).repair(network(), data).candidates)

    teacher, model, x = network(), network().train(), pixels(data)
    fit(teacher, data.clean, teach, seed=data.seed)
    loss = F.cross_entropy(model(x), data.clean.y)
    statistics = model[1].running_mean.clone()
    for beta, depth in zip(betas, (3, 7), strict=True):
        ours, theirs = ((net[:depth](x) ** 2).sum(1).flatten(1) for net in (model, teacher))
        gap = ours / ours.norm(dim=1, keepdim=True) - (theirs / theirs.norm(dim=1, keepdim=True)).detach()
        loss = loss + beta * gap.square().mean()
    loss.backward()
    for w, now in zip(model.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(now.detach(), w.detach() - STEP.lr * w.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(student[1].running_mean, statistics)
    assert not any(module._forward_hooks for module in student.modules())


def test_nad_with_named_layers():
    """Naming the layers that the rule finds changes nothing; fewer stages than betas take the last betas."""

    def weights(**more):
        (student,) = (c.model for c in NAD(STEP, STEP, **more).repair(network(), defender()).candidates)
        return torch.cat([w.detach().flatten() for w in student.parameters()])

    found = weights(betas=[1, 20])
    assert found.equal(weights(betas=[1, 20], layers=["2", "6"])) and found.equal(weights(betas=[7, 1, 20]))
    assert not found.equal(weights(betas=[1, 20], layers=["0", "4"]))
    assert not found.equal(weights(betas=[20, 1]))


def test_nad_refuses_in_a_sentence():
    for more, said in (({"betas": []}, "betas"), ({"betas": [1], "layers": ["2", "6"]}, "names 2 layers")):
        with pytest.raises(UserError, match=said):
            NAD(STEP, STEP, **more)
    with pytest.raises(UserError, match="names stem, which"):
        NAD(STEP, STEP, [1], layers=["stem"]).repair(network(), defender())
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with pytest.raises(UserError, match="larger than one pixel"):
        NAD(STEP, STEP, [1]).repair(flat, defender())


def test_attention_is_of_norm_one_and_blind_to_scale():
    maps = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = attention(maps, 2.0)
    torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.ones(5))
    torch.testing.assert_close(found, attention(-3 * maps, 2.0))


# -- MCR ---------------------------------------------------------------------------------------------------------------
def test_bezier_by_hand():
    start, middle, end = ({"w": torch.tensor([v])} for v in (1.0, 10.0, 100.0))
    for t, value in ((0, 1), (1, 100), (0.5, 30.25), (0.1, 0.81 + 1.8 + 1)):
        torch.testing.assert_close(bezier(t, start, middle, end)["w"], torch.tensor([float(value)]))


def mended(t, curve=STEP, decay=0.0, data=None, **more):
    tune = Plan(epochs=3, batch_size=12, lr=0.05, augment=False)
    (found,) = (c.model for c in MCR(tune, curve, t, decay, **more).repair(network(), data or defender()).candidates)
    tuned = network()
    fit(tuned, defender().clean, tune, seed=0)
    return found, tuned


def test_mcr_ends_are_the_backdoored_and_the_tuned_network():
    for t, end in ((0, network()), (1, mended(0)[1])):
        found, _ = mended(t)
        for w, wanted in zip(found.parameters(), end.parameters(), strict=True):
            assert w.equal(wanted)
        assert found[1].momentum == 0.1 and not found.training and not found[1].training


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_mcr_step_by_hand(decay):
    """Two batches, each at its own t: the bend goes down the slope of the loss there, from halfway, and only it moves."""
    data, plan = defender(), Plan(epochs=2, batch_size=24, lr=0.1, momentum=0.0, augment=False)
    found, tuned = mended(0.5, plan, decay)
    rng, x, y = generator(0, "mcr t"), pixels(data), data.clean.y
    ends = [[w.detach() for w in net.parameters()] for net in (network(), tuned)]
    bend = [(a + b) / 2 for a, b in zip(*ends, strict=True)]
    for _ in range(2):
        t, model = float(torch.rand((), generator=rng)), network().train()
        for w, a, m, b in zip(model.parameters(), ends[0], bend, ends[1], strict=True):
            w.data = (1 - t) ** 2 * a + 2 * t * (1 - t) * m + t**2 * b
        weight = sum((w**2).sum() for w in model.parameters())
        (F.cross_entropy(model(x), y) + decay / 2 * weight).backward()
        bend = [m - plan.lr * 2 * t * (1 - t) * w.grad for m, w in zip(bend, model.parameters(), strict=True)]
    for w, a, m, b in zip(found.parameters(), ends[0], bend, ends[1], strict=True):
        torch.testing.assert_close(w.detach(), (a + 2 * m + b) / 4, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [7, 24, 100])
def test_statistics_are_renewed(size):
    """Whatever was there before: the average of the batches' statistics, by their size; nothing else of the model moves."""
    model, x = network(), pixels(defender())
    model.append(nn.Dropout(0.5))
    before = copy.deepcopy(model)
    renew_statistics(model, x, size)
    parts = x.tensor_split(-(-24 // size))
    for layer, depth in ((model[1], 1), (model[5], 5)):
        inputs = []
        with torch.no_grad():
            for part in parts:  # deeper layers see what batch statistics make of the batch
                for module in before[:depth]:
                    still = isinstance(module, nn.BatchNorm2d)
                    part = F.batch_norm(part, None, None, module.weight, module.bias, True) if still else module(part)
                inputs.append(part)
        shares = torch.tensor([len(part) / 24 for part in parts])
        means = torch.stack([part.mean((0, 2, 3)) for part in inputs])
        spreads = torch.stack([part.var((0, 2, 3)) for part in inputs])
        torch.testing.assert_close(layer.running_mean, shares @ means, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.running_var, shares @ spreads, rtol=1e-4, atol=1e-5)
    assert all(w.equal(old) for w, old in zip(model.parameters(), before.parameters(), strict=True))


def test_mcr_refuses_a_point_off_the_curve():
    for t in (-0.1, 1.5):
        with pytest.raises(UserError, match=r"defense\.t="):
            MCR(STEP, STEP, t, 0.0)


def test_the_half_linear_schedule():
    """IBM's: constant to the half, then linear, and a hundredth from 90 % on."""
    weight, rates = nn.Parameter(torch.zeros(1)), []
    optimizer = Plan(lr=2.0, schedule="half_linear").optimise([weight])
    scheduler = SCHEDULES["half_linear"](optimizer, Plan(), 10)
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([2.0] * 6 + [2 * (1 - 0.99 / 4 * k) for k in (1, 2, 3)] + [0.02])


# -- RNP ---------------------------------------------------------------------------------------------------------------
def test_rnp_unlearns_until_the_accuracy_is_at_most_the_limit():
    """As the reference; seen with a learning rate of 0, at which the accuracy stays what it is."""
    plan = Plan(epochs=3, batch_size=24, lr=0.0, augment=False)

    def accuracies(limit):
        pruning = {"rule": MaskBelow(0.2), "sweep": Sweep("at", ()), "zeroes": ["weight"]}
        return [epoch.accuracy for epoch in RNP(plan, limit, plan, 0.2, **pruning).forget(network(), defender())]

    first, *more = accuracies(-1.0)
    assert more == [first, first] and 0 < first < 1
    assert accuracies(first) == [first] and accuracies(first - 1e-6) == [first] * 3


# -- AWM ---------------------------------------------------------------------------------------------------------------
def awm(model, **more):
    settings = {"steps": 2, "step": 3.0, "norm": 5.0, "alpha": 0.7, "gamma": 0.0} | more
    (found,) = (c.model for c in AWM(**settings).repair(model, defender()).candidates)
    return found


def test_awm_by_hand():
    """Two rounds of two steps: the pattern climbs from 0 and is scaled to its norm, the masks go down the loss and stay in
    [0, 1]; the statistics are the running ones throughout, and only convolution weights end up changed."""
    gamma, plan = 0.001, Plan(iterations=4, batch_size=16, lr=130.0, momentum=0.0, augment=False)
    found, model, data = awm(network(), mask=plan, gamma=gamma), network(), defender()
    kept = [model[k].weight.detach().clone() for k in (0, 4)]
    masks = [torch.ones_like(w, requires_grad=True) for w in kept]
    rng, order, low = generator(0, "awm pattern"), epoch_order(24, plan, 0, 0).view(4, 16), 1.0

    def logits(x):
        weights = {f"{k}.weight": w * m for k, w, m in zip((0, 4), kept, masks, strict=True)}
        return functional_call(model, weights, (x,))

    for turn in range(4):
        if turn % 2 == 0:
            delta = torch.zeros(1, 3, 8, 8)
            for _ in range(2):
                x = pixels(data)[torch.randint(24, (16,), generator=rng)]
                delta.requires_grad_()
                slope = torch.autograd.grad(F.cross_entropy(logits(x + delta), logits(x).argmax(1)), delta)[0]
                delta = (delta + 3.0 * slope).detach()
            delta = delta * min(1, 5.0 / float(delta.abs().sum()))
        x, y = pixels(data)[order[turn]], data.clean.y[order[turn]]
        loss = 0.7 * F.cross_entropy(logits(x), y) + 0.3 * F.cross_entropy(logits((x + delta).clamp(0, 1)), y)
        loss = loss + gamma * sum(m.abs().sum() for m in masks)
        slopes = torch.autograd.grad(loss, masks)
        masks = [(m - 130 * s).clamp(0, 1).detach().requires_grad_() for m, s in zip(masks, slopes, strict=True)]
        low = min(low, *(m.min().item() for m in masks))
    assert low == 0.0, "the clamp must have something to do here"
    for k, w, m in zip((0, 4), kept, masks, strict=True):
        torch.testing.assert_close(found[k].weight.detach(), (w * m).detach(), rtol=1e-4, atol=1e-6)
    state = network().state_dict()
    assert list(found.state_dict()) == list(state) and type(found[0]) is nn.Conv2d
    assert all(v.equal(state[key]) for key, v in found.state_dict().items() if key not in ("0.weight", "4.weight"))
    assert all(w.requires_grad and w.is_leaf for w in found.parameters())


@pytest.mark.parametrize("norm", [0.5, 1e6])
def test_awm_bounds_the_pattern(norm):
    defence = AWM(mask=Plan(batch_size=8), steps=3, step=3.0, norm=norm, alpha=0.9, gamma=0.0)
    pattern = defence.recover(network(), defender(), generator(0))
    size = float(pattern.abs().sum())
    assert size == pytest.approx(0.5) if norm == 0.5 else 0.5 < size < 1e6


def test_awm_with_fewer_images_than_a_batch():
    """Batches are drawn with replacement, so that one image a class will do."""
    found = awm(network(), mask=Plan(iterations=2, batch_size=100, lr=0.1, augment=False))
    assert not found[0].weight.equal(network()[0].weight)


def test_awm_refuses_in_a_sentence():
    with pytest.raises(UserError, match=r"defense\.steps=0"):
        awm(network(), mask=STEP, steps=0)
    with pytest.raises(UserError, match="Conv2d"):
        awm(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), mask=STEP)
