"""The pruners on wirings that the bench's own networks do not have: concatenations, depthwise convolutions, squeeze-excite."""

from dataclasses import replace

import pytest
import torch
from cells import ROOT, build, choices, composed, shrink
from torch import nn

from bench.attacks.patterns import Overlay
from bench.data import Augment, Defender, ImageSet
from bench.training import to_unit

PRUNERS = [name for name in choices("defense") if "\nrule:" in (ROOT / "conf" / "defense" / f"{name}.yaml").read_text()]


@pytest.fixture(scope="module")
def data():
    rng = torch.Generator().manual_seed(0)
    images = ImageSet(torch.randint(256, (24, 3, 32, 32), dtype=torch.uint8, generator=rng), torch.arange(24) % 4)
    return Defender(images, (3, 32, 32), 4, Augment(1), seed=0, poisoned=images)


@pytest.fixture(scope="module")
def nets(data):
    """Tiny ones, in torchvision's own code, with statistics of their own."""
    from torchvision.models import DenseNet, EfficientNet
    from torchvision.models.efficientnet import MBConvConfig

    torch.manual_seed(0)
    blocks = [MBConvConfig(1, 3, 1, 32, 16, 1, 0.25, 0.5), MBConvConfig(6, 3, 2, 16, 24, 1, 0.25, 0.5)]
    nets = {
        "densenet": DenseNet(4, (2, 2, 2), 8, num_classes=4),
        "efficientnet": EfficientNet(blocks, 0, num_classes=4),
    }
    for net in nets.values():
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.normal_(norm.weight, 1, 0.1)
        for _ in range(3):
            net.train()(to_unit(data.clean.x))
        net.eval()
    return nets


@pytest.mark.parametrize("net", ["densenet", "efficientnet"])
@pytest.mark.parametrize("name", PRUNERS)
def test_pruners_run(name, net, nets, data):
    """A finite score for each channel; pruned ones answer to nothing (TSBD takes part of them), and what is left is a network."""
    config = shrink(composed(f"defense={name}").defense)
    if "images" in config:
        config.images = 4
    if "then" in config:
        config.then = None
    defense, model = build(config), nets[net]
    if defense.needs != "poisoned":
        data = replace(data, poisoned=None)
    if defense.needs == "trigger":
        data = replace(
            data, trigger=Overlay(torch.full((3, 32, 32), 255), torch.full((1, 32, 32), 0.5), 1.0, 4, 0, "all2one")
        )
    repaired = defense.repair(model, data)
    assert repaired.scores and all(score.isfinite().all() for score in repaired.scores.values())
    x, points, zeroed = to_unit(data.clean.x[:4]), 0, 0
    with torch.no_grad():
        before = model(x)
        for candidate in repaired.candidates:
            points += 1
            out = candidate.model(x)
            assert out.isfinite().all()
            assert candidate.pruned or out.equal(before)
            for layer, pruned in candidate.mask.items():
                module = candidate.model.get_submodule(layer)
                gone = module.weight[:, pruned] if isinstance(module, nn.Linear) else module.weight[pruned]
                if name == "tsbd":
                    kept = module.weight[~pruned]
                    zeroed += int((gone == 0).sum())
                    assert kept.equal(model.get_submodule(layer).weight[~pruned])
                else:
                    assert not gone.any()
    assert points > 1 and not out.equal(before) and (zeroed > 0) == (name == "tsbd")
