"""Every network there is a config for: takes small images of any channels, learns, is attacked and pruned; a user's own too."""

import copy
from functools import partial

import pytest
import torch
from cells import build, choices, composed
from hydra.errors import InstantiationException
from torch import nn
from torch.nn import functional as F

from bench import config
from bench.attacks.base import Backdoor, Lab
from bench.data import Augment, Dataset, ImageSet
from bench.errors import UserError
from bench.models import checked, normalised
from bench.pruning import count
from bench.training import Plan, fit
from bench.zoo import small

REDUCED = {  # as small as the architecture goes, so that all of them take seconds
    "resnet18": "width=4", "resnet34": "width=4", "resnet50": "width=4", "preactresnet18": "width=4",
    "wideresnet": "depth=10 width=1", "vgg16_bn": "layers=[4,M,4,M,4,M,8,M,8]", "vgg19_bn": "layers=[4,4,M,4,M,4,M,8,M,8]",
    "mobilenetv2": "options={width_mult:0.1}", "mobilenetv3_large": "options={width_mult:0.1}",
    "vit_b_16": "num_layers=2 num_heads=2 hidden_dim=16 mlp_dim=32",
    "torchvision": "name=shufflenet_v2_x0_5", "timm": "name=resnet10t",
}  # fmt: skip
HEAVY = {"convnext_tiny", "efficientnet_b3", "densenet121", "densenet161"}  # no option makes them smaller


def network(name: str, channels: int, size: int, classes: int = 4) -> nn.Module:
    words = [f"model.{word}" for word in REDUCED.get(name, "").split()]
    node = composed("dataset=cifar10", f"model={name}", *words).model
    facts = {"num_classes": classes, "channels": channels, "size": size}
    return checked(build(node, **config.asked_for(node._target_, facts)), (channels, size, size), classes)


def toy(channels: int, size: int) -> Dataset:
    rng = torch.Generator().manual_seed(0)
    parts = [
        ImageSet(torch.randint(256, (n, channels, size, size), dtype=torch.uint8, generator=rng), torch.arange(n) % 4)
        for n in (16, 16, 16)
    ]
    return Dataset(*parts, 4, (0.5,) * channels, (0.25,) * channels, Augment())


@pytest.mark.parametrize("name", sorted(set(choices("model")) - HEAVY))
def test_network(name):
    """One attack, one backward pass that reaches every parameter, one prune, on grey and on colour images."""
    if name == "timm":
        pytest.importorskip("timm")
    for channels, size in ((3, 32), (1, 16)):
        data = toy(channels, size)
        torch.manual_seed(0)
        model = normalised(network(name, channels, size), data.mean, data.std)
        x = data.train.x.float() / 255
        F.cross_entropy(model(x), data.train.y).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    node = composed("dataset=cifar10", "attack=badnets", "defense=magnitude")
    attack = build(node.attack, shape=data.shape, num_classes=4, poison_rate=0.5)
    backdoor = Backdoor(model, attack.trigger)
    # three steps: a ViT's head starts at 0, and what lies before it learns from the second one on
    attack.inject(model, data, Lab(partial(fit, plan=Plan(epochs=3, batch_size=16, lr=0.01), seed=0), 0))
    before = copy.deepcopy(backdoor.model.state_dict())
    repaired = build(node.defense).repair(model, data.defender(4, 4, 0, "nothing")[0])
    assert len({c.pruned for c in repaired.candidates}) > 2
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", sorted(HEAVY))
def test_large_network(name):
    """At full width, on four grey images: forward, backward, a triggered batch to train on, and one prune."""
    data = toy(1, 32)
    model = network(name, 1, 32)
    attack = build(composed("dataset=cifar10", "attack=badnets").attack, shape=data.shape, num_classes=4)
    x, y = attack.trigger.stamp(data.train.x[:4]), attack.trigger.relabel(data.train.y[:4])
    optimiser = torch.optim.SGD(model.parameters(), 0.01)
    F.cross_entropy(model(x.float() / 255), y).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimiser.step()
    defense = build(composed("dataset=cifar10", "defense=magnitude").defense)
    scores = defense.score(model, data.defender(4, 4, 0, "nothing")[0])
    mask = defense.rule.mask(scores, defense.rule.at)
    with torch.no_grad():
        before = model.eval()(x.float() / 255)
        after = defense.cut(model, mask, None)(x.float() / 255)
    assert count(mask) > 0 and after.shape == (4, 4) and after.isfinite().all() and not after.equal(before)


def test_what_small_changes():
    """Overlapping stems lose their stride below 64 pixels and not from there on; patches shrink; channels follow."""
    from torchvision import models

    def stem(size, make, channels=3):
        made = small(make(weights=None), channels, size)
        return made, next(m for m in made.modules() if isinstance(m, nn.Conv2d))

    for size, stride, pooled in ((32, 1, False), (64, 2, True), (224, 2, True)):
        for make, pool in ((models.resnet18, "maxpool"), (models.densenet121, "features.pool0")):
            model, conv = stem(size, make)
            assert conv.stride == (stride, stride) and conv.kernel_size == (7, 7)
            assert isinstance(model.get_submodule(pool), nn.MaxPool2d) == pooled
    for size, patch in ((16, 1), (32, 2), (64, 4), (224, 4)):
        _, conv = stem(size, models.convnext_tiny)
        assert conv.kernel_size == conv.stride == (patch, patch)
    model, conv = stem(224, models.resnet18, 1)
    assert conv.in_channels == 1 and model(torch.rand(1, 1, 224, 224)).shape == (1, 1000)


class Mine(nn.Module):
    """A user's own: it asks for the classes only."""

    def __init__(self, num_classes, hidden=5):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(hidden), nn.ReLU(), nn.Linear(hidden, num_classes))

    def forward(self, x):
        return self.net(x)


def test_a_users_own_network_needs_one_node():
    facts = {"num_classes": 7, "channels": 3, "size": 8}
    node = {"_target_": f"{__name__}.Mine", "hidden": 3}
    config.check(node, "model", allow=[__name__])
    with pytest.raises(UserError, match=rf"allow=\[{__name__}\]"):
        config.check(node, "model")
    assert config.asked_for(node["_target_"], facts) == {"num_classes": 7}
    with pytest.raises(UserError, match=r"model\.hiden is not a setting.*hidden"):
        config.check({"_target_": f"{__name__}.Mine", "hiden": 3}, "model", allow=[__name__])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: build({"_target_": "bench.zoo.torchvision", "name": "resnet81",
                                                          "num_classes": 4, "channels": 3, "size": 32}), "did you mean"),
        (lambda: build({"_target_": "bench.zoo.torchvision", "name": "resnet18", "num_classes": 4, "channels": 3,
                        "size": 32, "options": {"depth": 3}}), r"model\.options=.* do not make a resnet18"),
        (lambda: build({"_target_": "bench.models.wideresnet", "num_classes": 4, "channels": 3, "depth": 18}), "depth"),
        (lambda: checked(nn.Linear(5, 4), (3, 8, 8), 4), "cannot take images of 3x8x8"),
        (lambda: checked(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), (3, 8, 8), 4), "not one for each of 4"),
    ],
)  # fmt: skip
def test_a_bad_network_is_one_sentence(make, words):
    with pytest.raises((UserError, InstantiationException), match=words):  # Hydra wraps what a constructor says
        make()
