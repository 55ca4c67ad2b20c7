"""Bad input and odd networks: one sentence, or an answer that makes sense."""

import pytest
import torch
from torch import nn

from bench.data import Augment, Defender, ImageSet
from bench.defenses.bnp import BNP
from bench.defenses.ep import EP, channel_entropy
from bench.errors import UserError
from bench.pruning import Sweep, ZScore

PRUNING = {"rule": ZScore(1.0), "sweep": Sweep("at", ()), "zeroes": ("weight",)}


def images(count=40, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=rng)
    return ImageSet(x, torch.arange(count) % 4)


def defender(**more):
    return Defender(images(), (3, 8, 8), 4, Augment(), seed=0, **more)


def network(dead=None):
    """conv-BN-ReLU-pool-linear; the channel `dead` is the same on every image."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(8, 4)).eval()  # fmt: skip
    if dead is not None:
        model[0].weight.data[dead] = 0
    return model


def test_bnp_with_a_constant_channel():
    """Its score is high but finite, so that the rule still works."""
    scores = BNP(**PRUNING).score(network(dead=3), defender())["1"]
    assert scores.isfinite().all() and scores.argmax() == 3
    assert ZScore(1.0).mask({"1": scores}, 1.0)["1"].nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan])
def test_bnp_names_a_bad_running_variance(value):
    model = network()
    model[1].running_var[2] = value
    with pytest.raises(UserError, match="layer 1 has a running variance"):
        BNP(**PRUNING).score(model, defender())


@pytest.mark.parametrize("defence", [BNP(**PRUNING), EP(0.01, **PRUNING)], ids=lambda d: type(d).__name__)
def test_no_batch_norm(defence):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 4))
    with pytest.raises(UserError, match="no BatchNorm2d"):
        defence.score(model, defender(poisoned=images()))


def test_ep_with_constant_channels():
    """They count as average: the other channels' scores, and what the rule makes of them, do not change."""
    values = torch.randn(9, 100, generator=torch.Generator().manual_seed(0))
    values[4, 50:] += 1000
    alone, beside = channel_entropy(values, 0.01), channel_entropy(torch.cat([values, torch.full((3, 100), 7.0)]), 0.01)
    assert beside[:9].equal(alone) and alone.argmin() == 4
    torch.testing.assert_close(beside[9:], alone.mean().expand(3))
    assert not ZScore(0.1).mask({"": -beside}, 0.1)[""][9:].any()
    assert channel_entropy(torch.ones(3, 10), 0.01).tolist() == [0, 0, 0]
    assert EP(0.01, **PRUNING).score(network(dead=3), defender(poisoned=images()))["1"].isfinite().all()


@pytest.mark.parametrize("mix", [None, images(1)], ids=["none", "one image"])
def test_ep_without_a_mix(mix):
    with pytest.raises(UserError, match=r"clean\.mix"):
        EP(0.01, **PRUNING).score(network(), defender(poisoned=mix))
