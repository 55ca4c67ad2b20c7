"""Scores, rules, masks and pairing, each against a plain reading of its definition."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bench.defenses.clp import lipschitz
from bench.errors import UserError
from bench.layers import conv_bn_pairs
from bench.models import preactresnet18, resnet18, vgg
from bench.pruning import MaskBelow, Sweep, Threshold, ZScore, apply, by_rank, count, gates, prune

layer = st.lists(st.integers(-50, 50), min_size=1, max_size=12).map(lambda v: torch.tensor(v, dtype=torch.float64) / 10)
layers = st.dictionaries(st.sampled_from("abc"), layer, min_size=1)


@given(layers, st.floats(-6, 6), st.floats(-6, 6))
def test_rules_prune_more_the_further_they_go(scores, one, two):
    for rule in (Threshold(0), ZScore(0)):
        few, many = rule.mask(scores, max(one, two)), rule.mask(scores, min(one, two))
        assert all((many[k] | ~few[k]).all() for k in scores)


@given(layers, st.integers(1, 40))
def test_ranks_hold_the_highest_and_their_ties(scores, number):
    at, mask = by_rank(Threshold(0), scores, number)
    flat = torch.cat(list(scores.values()))
    chosen = torch.cat(list(mask.values()))
    assert chosen.sum() >= min(number, len(flat))
    assert flat[chosen].min() == at and (chosen.all() or flat[~chosen].max() < at)
    assert all(m.equal(n) for m, n in zip(mask.values(), Threshold(0).mask(scores, at).values(), strict=True))


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=30), st.integers(0, 19))
def test_mask_below_is_the_published_threshold(values, step):
    """4-decimal masks against arange's dusty thresholds: prune where mask <= t."""
    masks = torch.tensor(values, dtype=torch.float64) / 10_000
    t = step * 0.05
    pruned = MaskBelow(0.2).mask({"l": 1 - masks}, t)["l"]
    assert pruned.tolist() == [round(m, 4) <= t + 1e-12 for m in masks.tolist()]


def test_z_scores_by_hand():
    scores = {"l": torch.tensor([1.0, 1.0, 1.0, 1.0, 6.0]), "flat": torch.ones(4), "one": torch.tensor([9.0])}
    level = (6 - 2) / scores["l"].std()
    assert ZScore(0).mask(scores, float(level) - 1e-6)["l"].tolist() == [False] * 4 + [True]
    assert count(ZScore(0).mask(scores, float(level) + 1e-6)) == 0
    unjudged = {k: scores[k] for k in ("flat", "one")}
    assert count(ZScore(0).mask(unjudged, -5.0)) == 0
    at, mask = by_rank(ZScore(3.0), unjudged, 2)
    assert at == 3.0 and count(mask) == 0, "a layer without spread has no outliers to rank"
    assert count(by_rank(ZScore(3.0), scores, 99)[1]) == 5


def test_z_scores_are_strict():
    """Scores of -1, 0 and 1 have the standard deviation 1: at 1 nothing is an outlier yet, and a little below 1 one is."""
    scores = {"l": torch.tensor([-1.0, 0.0, 1.0]) * 5 + 7}
    assert count(ZScore(0).mask(scores, 1.0)) == 0
    assert ZScore(0).mask(scores, 0.999)["l"].tolist() == [False, False, True]


@settings(max_examples=20)
@given(layers, st.sampled_from(["at", "number"]), st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_sweeps_grow_and_hold_the_papers_point(scores, by, points):
    rule = Threshold(at=1.0)
    masks = [mask for _, mask in Sweep(by, tuple(points)).masks(rule, scores)]
    sizes = [count(mask) for mask in masks]
    assert sizes == sorted(sizes)
    assert any(all(m[k].equal(rule.mask(scores, 1.0)[k]) for k in m) for m in masks)


NETS = {
    "resnet18": lambda: resnet18(10, 3, width=16),
    "preactresnet18": lambda: preactresnet18(10, 3, width=16),
    "vgg": lambda: vgg([16, "M", 32, 32], 10, 3),
}


def test_pairing_follows_the_data():
    """Plain nets: every BN and its conv. Pre-activation: only the BN that really reads a conv's output."""
    for name in ("resnet18", "vgg"):
        net = NETS[name]()
        assert conv_bn_pairs(net, (3, 32, 32)) == conv_bn_pairs(net, (3, 32, 32), "registration_order")
    net = NETS["preactresnet18"]()
    pairs = conv_bn_pairs(net, (3, 32, 32))
    assert pairs == {"layer1.0.bn1": net.conv1} | {
        f"layer{s}.{b}.bn2": getattr(net, f"layer{s}")[b].conv1 for s in (1, 2, 3, 4) for b in (0, 1)
    }
    wrong = conv_bn_pairs(net, (3, 32, 32), "registration_order")
    assert wrong["layer2.1.bn1"] is net.layer2[0].shortcut[0]


def test_the_published_pairing_is_refused_where_it_pairs_other_sizes():
    import torchvision

    with pytest.raises(UserError, match=r"features\.norm0|denseblock1.*pairing=dataflow"):
        conv_bn_pairs(torchvision.models.densenet121(), (3, 32, 32), "registration_order")


@pytest.mark.parametrize(
    ("name", "bns"),
    [("densenet121", 121), ("mobilenet_v2", 52), ("efficientnet_b0", 49), ("vgg11_bn", 8), ("resnet18", 20)],
)
def test_pairing_on_torchvision_nets(name, bns):
    """Each pair is a conv whose output reaches that BN unchanged: muting the conv's channel 0 mutes the BN's input there."""
    import torchvision

    net = getattr(torchvision.models, name)().eval()
    pairs = conv_bn_pairs(net, (3, 64, 64))
    assert len([m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]) == bns
    assert len(pairs) == {"densenet121": 59}.get(name, bns)  # DenseNet's other BNs read concatenations
    inputs = {}
    hooks = [
        net.get_submodule(bn).register_forward_pre_hook(
            lambda m, i, bn=bn: inputs.__setitem__(bn, i[0][:, 0].abs().max())
        )
        for bn in pairs
    ]
    for bn, conv in pairs.items():
        assert conv.out_channels == net.get_submodule(bn).num_features
        with torch.no_grad():
            conv.weight[0] = 0
    net(torch.randn(1, 3, 64, 64))
    assert all(value == 0 for value in inputs.values()) and len(inputs) == len(pairs)
    for hook in hooks:
        hook.remove()


def test_pairing_where_no_image_is_too_few():
    """A network whose code cannot take a batch of none is shown one image."""

    class Picky(nn.Sequential):
        def forward(self, x):
            return super().forward(x.view(len(x), -1, 8, 8))

    net = Picky(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(RuntimeError):
        net(torch.zeros(0, 3, 8, 8))
    assert conv_bn_pairs(net, (3, 8, 8)) == {"1": net[0]}


def test_an_in_place_relu_breaks_a_pair():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4))
    assert conv_bn_pairs(net, (3, 8, 8)) == {}


def test_prune_copies_and_zeroes_what_it_is_told():
    net = NETS["vgg"]()
    with torch.no_grad():
        net.features[1].bias += 1
    mask = {"features.1": torch.arange(16) % 2 == 0}
    pruned = prune(net, mask, ("weight",))
    assert net.features[1].weight.all() and (pruned.features[1].weight != 0).tolist() == [False, True] * 8
    assert pruned.features[1].bias.all()
    assert not apply(pruned, mask, ("bias",)).features[1].bias[::2].any()


def test_gates_are_the_published_masked_batchnorm():
    """Weight times (mask + noise), bias times (1 + noise), in train mode: outputs and gradients as written out by hand."""
    torch.manual_seed(0)
    bn = nn.BatchNorm2d(5)
    nn.init.normal_(bn.weight)
    nn.init.normal_(bn.bias)
    net = nn.Sequential(copy.deepcopy(bn))
    weight, bias = gates(net, "weight")["0"], gates(net, "bias")["0"]
    x, noise = torch.randn(4, 5, 3, 3), torch.randn(5) * 0.1
    mask = torch.rand(5, requires_grad=True)
    weight.mask.data = mask.detach().clone()
    weight.noise, bias.noise = noise, -noise
    out = net(x)
    by_hand = F.batch_norm(x, None, None, bn.weight * (mask + noise), bn.bias * (1 - noise), training=True)
    assert torch.equal(out, by_hand)
    out.square().sum().backward()
    by_hand.square().sum().backward()
    assert torch.equal(weight.mask.grad, mask.grad)
    assert not any(p.requires_grad for name, p in net.named_parameters() if "mask" not in name)


@pytest.mark.parametrize(("inside", "size"), [(3, 3), (16, 3), (64, 1), (2, 5)])
def test_lipschitz_is_the_largest_singular_value(inside, size):
    """The fast path (Gram matrix) against one SVD per channel."""
    torch.manual_seed(1)
    bn = nn.BatchNorm2d(6)
    nn.init.normal_(bn.weight)
    bn.running_var.uniform_(0.1, 2)
    kernel = torch.randn(6, inside, size, size)
    slow = [
        torch.linalg.svdvals((k.flatten(1) * (bn.weight[i] / bn.running_var[i].sqrt()).abs()).detach())[0]
        for i, k in enumerate(kernel)
    ]
    assert torch.allclose(lipschitz(kernel, bn, "x"), torch.stack(slow), rtol=1e-6)
    bn.running_var[2] = 0
    with pytest.raises(UserError, match="layer x"):
        lipschitz(kernel, bn, "x")
