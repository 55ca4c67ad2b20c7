"""Repairs that train a network or its masks, each against its method written out by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.data import Augment, Defender, ImageSet
from bench.defenses.nad import NAD, attention, stages
from bench.errors import UserError
from bench.models import preactresnet18, resnet18
from bench.training import Plan, fit

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
    ],
    ids=["resnet", "preact", "small images", "plain"],
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
    """The student's first step goes down Eq. 2; it runs once a batch, and keeps no hook."""
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
