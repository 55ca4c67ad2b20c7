"""Networks with LayerNorm: a small ConvNeXt and a small vision transformer through the pruners that only need a weight."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig, ConvNeXt, LayerNorm2d
from torchvision.models.vision_transformer import VisionTransformer

from bench.attacks.base import Trigger
from bench.data import Augment, Defender, ImageSet
from bench.defenses.anp import ANP
from bench.defenses.bnp import BNP
from bench.defenses.clp import CLP
from bench.defenses.ep import EP
from bench.defenses.fmp import FMP
from bench.defenses.magnitude import Magnitude
from bench.defenses.oracle import Oracle
from bench.defenses.random import Random
from bench.defenses.rnp import RNP
from bench.errors import UserError
from bench.layers import batch_norms, by_channel, channel_norms
from bench.models import resnet18
from bench.pruning import Share, Sweep, apply, gates, prune
from bench.training import Plan

PRUNING = {"rule": Share(0.1), "sweep": Sweep("number", (1, 5, 20)), "zeroes": ["weight", "bias"]}
PLAN = Plan(iterations=3, batch_size=8, lr=0.1)
PRUNERS = {
    "anp": ANP(PLAN, 0.4, 1, 0.2, **PRUNING),
    "rnp": RNP(Plan(epochs=2, batch_size=8, lr=0.01), 0.2, PLAN, 0.2, **PRUNING),
    "magnitude": Magnitude(**PRUNING),
    "random": Random(**PRUNING),
    "oracle": Oracle(**PRUNING),
}


class Invert(Trigger):
    def forward(self, x):
        return 255 - x


def convnext(**more):
    torch.manual_seed(0)
    model = ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=4, layer_scale=1.0, **more)
    return shaken(model)


def transformer():
    torch.manual_seed(0)
    return shaken(VisionTransformer(16, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=4))


def shaken(model):
    """No two weights alike, and a head that does not start at 0 as the transformer's does."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


NETWORKS = {"convnext": convnext, "transformer": transformer}


def images(count=12):
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8, generator=rng)
    return ImageSet(x, torch.arange(count) % 4)


def defender():
    return Defender(images(), (3, 16, 16), 4, Augment(), 0, poisoned=images(), trigger=Invert(4))


def test_which_layers():
    """In the order of the modules; of a network that only has BatchNorm the very same as before."""
    kinds = [type(layer) for layer in channel_norms(convnext()).values()]
    assert kinds == [LayerNorm2d, nn.LayerNorm, LayerNorm2d, nn.LayerNorm, LayerNorm2d]
    assert list(channel_norms(transformer()))[-3:] == [
        "encoder.layers.encoder_layer_1.ln_1",
        "encoder.layers.encoder_layer_1.ln_2",
        "encoder.ln",
    ]
    network = resnet18(10, 3, 4)
    assert list(channel_norms(network).items()) == list(batch_norms(network).items())
    mixed = nn.Sequential(nn.LayerNorm(8), nn.BatchNorm2d(3), nn.LayerNorm([3, 8, 8]), nn.LayerNorm(8, False, False))
    assert list(channel_norms(mixed)) == ["0", "1"]  # not the one with a weight per pixel, nor the one without


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_channels_are_found_in_what_a_layer_puts_out(network):
    """With weight and bias of one channel at 0, that channel is 0 in all places of all images, and no other is."""
    model, seen = network(), {}
    for name, layer in channel_norms(model).items():
        layer.register_forward_hook(lambda layer, _, out, name=name: seen.update({name: by_channel(layer, out)}))
        mask = {name: torch.arange(len(layer.weight)) == 5}
        apply(model, mask, ["weight", "bias"])
    model(torch.rand(3, 3, 16, 16))
    assert list(seen) == list(channel_norms(model))
    for name, layer in channel_norms(model).items():
        assert seen[name].shape[0] == 3 and seen[name].shape[2] == len(layer.weight)
        silent = (seen[name] == 0).all((0, 1))
        assert silent.nonzero().tolist() == [[5]]


@pytest.mark.parametrize("kind", [nn.LayerNorm, LayerNorm2d], ids=lambda kind: kind.__name__)
def test_gates_are_mask_and_noise_on_a_layer_norm(kind):
    """weight * (mask + noise), bias * (1 + noise), as BackdoorBench's noisy LayerNorms."""
    model = nn.Sequential(kind(6))
    layer = model[0]
    layer.weight.data.normal_()
    layer.bias.data.normal_()
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    x = torch.randn(2, 6, 4, 4) if kind is LayerNorm2d else torch.randn(2, 7, 6)
    on_weight, on_bias = gates(model, "weight")["0"], gates(model, "bias")["0"]
    on_weight.mask.data.uniform_()
    on_weight.noise, on_bias.noise = torch.randn(6), torch.randn(6)
    last = x.permute(0, 2, 3, 1) if kind is LayerNorm2d else x
    wanted = F.layer_norm(
        last, (6,), weight * (on_weight.mask + on_weight.noise), bias * (1 + on_bias.noise), layer.eps
    )
    wanted = wanted.permute(0, 3, 1, 2) if kind is LayerNorm2d else wanted
    torch.testing.assert_close(model(x), wanted)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("name", PRUNERS)
def test_pruners(name, network):
    """Scores for every channel, telling them apart; the model given stays; pruned models differ."""
    model, x = network(), torch.rand(4, 3, 16, 16)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    repaired = PRUNERS[name].repair(model, defender())
    layers = channel_norms(model)
    assert {layer: len(score) for layer, score in repaired.scores.items()} == {
        layer: len(norm.weight) for layer, norm in layers.items()
    }
    assert all(len(score.unique()) > 1 for score in repaired.scores.values())
    with torch.no_grad():
        whole, seen = model(x), [(candidate.pruned, candidate.model(x)) for candidate in repaired.candidates]
    assert [count for count, _ in seen][:2] == [0, 1]
    assert seen[0][1].equal(whole) and all(not out.equal(whole) for _, out in seen[1:])
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


def test_layer_norms_without_bias():
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 6), nn.LayerNorm(6, bias=False), nn.Linear(6, 4)).eval()
    scores = PRUNERS["anp"].score(model, defender())
    assert list(scores) == ["2"] and len(scores["2"].unique()) > 1
    pruned = prune(model, {"2": torch.arange(6) == 1}, ["weight", "bias"])
    assert (pruned[2].weight == 0).nonzero().tolist() == [[1]]


@pytest.mark.parametrize(
    "defence",
    [CLP(**PRUNING), BNP(**PRUNING), EP(0.01, **PRUNING), FMP(8, 0.02, 0.06, **PRUNING)],
    ids=lambda d: type(d).__name__,
)
def test_the_others_say_which_layers_they_need(defence):
    name = type(defence).__name__
    with pytest.raises(UserError, match=rf"^{name} works on BatchNorm2d layers \(not on LayerNorm\)"):
        defence.score(transformer(), defender())


@pytest.mark.parametrize("name", PRUNERS)
def test_no_norm_at_all(name):
    with pytest.raises(UserError, match="works on BatchNorm2d and LayerNorm layers"):
        PRUNERS[name].score(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), defender())
