"""CLP: Lipschitz scores, pairs, pruned sets and pruned models against the authors' code."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from bench.data import ImageSet
from bench.defenses.clp import CLP
from bench.layers import conv_bn_pairs
from bench.metrics import evaluate
from bench.models import ResNet
from bench.pruning import Sweep, ZScore, prune

from .vectors import SHAPE, counts
from .zscores import check_sets, stored_sets

NO_IMAGES = ImageSet(torch.empty(0, *SHAPE, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))


def defence(pairing, u=3.0):
    return CLP(pairing, rule=ZScore(u), sweep=Sweep("at", (u,)), zeroes=("weight", "bias"))


def wired(model):
    """BN name -> name of the conv whose output it reads, written down by hand for the networks of the vectors."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if not isinstance(model, ResNet):
        return {name: f"features.{int(name.split('.')[1]) - 1}" for name in names}
    if not model.preact:
        return {n: n.replace("bn", "conv") if "bn" in n else n.replace("shortcut.1", "shortcut.0") for n in names}
    return {
        n: "conv1" if n == "layer1.0.bn1" else n.replace("bn2", "conv1")
        for n in names
        if n == "layer1.0.bn1" or n.endswith("bn2")
    }


def test_pairs(clp_folder):
    """`registration_order` pairs every BN as the official code does; `dataflow` pairs it with the conv it reads."""
    model = clp_folder.network()
    convs = {module: name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    pairs = {
        pairing: {bn: convs[conv] for bn, conv in conv_bn_pairs(model, SHAPE, pairing).items()}
        for pairing in ("registration_order", "dataflow")
    }
    official = clp_folder.manifest["bn_to_conv_used_by_official_CLP"]
    assert pairs["registration_order"] == official
    assert pairs["dataflow"] == wired(model)
    if not getattr(model, "preact", False):
        assert pairs["dataflow"] == official


@pytest.mark.parametrize("pairing", ["registration_order", "dataflow"])
def test_scores(clp_folder, pairing):
    """Every channel's score, for every BN that is paired as in the official code."""
    stored = {k.removeprefix("score/"): v for k, v in clp_folder.arrays("clp.npz").items() if k.startswith("score/")}
    model, official = clp_folder.network(), clp_folder.manifest["bn_to_conv_used_by_official_CLP"]
    alike = official if pairing == "registration_order" else dict(wired(model).items() & official.items())
    scores = defence(pairing).score(model, clp_folder.defender(NO_IMAGES))
    assert alike and set(official) == set(stored)
    for layer in alike:
        np.testing.assert_allclose(scores[layer].numpy(), stored[layer], rtol=1e-5, err_msg=layer)


def test_pruned_channels_and_counts(clp_folder):
    """For every u in the file: the pruned channels, and ACC, ASR and RA of the pruned model to 2 images."""
    arrays, model, exam = clp_folder.arrays("clp.npz"), clp_folder.network(), clp_folder.exam
    scores = defence("registration_order").score(model, clp_folder.defender(NO_IMAGES))
    stored = {layer: arrays[f"score/{layer}"] for layer in scores}
    sets = stored_sets(arrays, "pruned_u")
    assert sets
    evaluated = {}
    for u, theirs in sets.items():
        rule = ZScore(u)
        mask = rule.mask(scores, u)
        total = sum(len(score) for score in scores.values())
        assert check_sets(mask, theirs, stored, u, rtol=1e-5) >= 0.99 * total
        key = tuple(int(pruned.sum()) for pruned in mask.values())
        if key not in evaluated:
            evaluated[key] = evaluate(prune(model, mask, ("weight", "bias")), exam)
        expected = arrays[f"counts_u{u:g}"]
        assert (len(exam.clean), len(exam.triggered)) == tuple(expected[3:5])
        np.testing.assert_allclose(counts(evaluated[key]), expected[:3], rtol=0, atol=2, err_msg=f"u={u}")


def clpnet(arrays):
    """The tiny network of unit.npz: convs of any kind, BN, and ReLU where an index has no tensors."""
    state = {k.removeprefix("clpnet/"): torch.tensor(v) for k, v in arrays.items() if k.startswith("clpnet/")}
    layers, channels = [], 3
    for index in range(max(int(k.split(".")[0]) for k in state) + 1):
        weight = state.get(f"{index}.weight")
        if weight is None:
            layers.append(nn.ReLU())
        elif weight.ndim == 1:
            layers.append(nn.BatchNorm2d(len(weight)))
        else:
            bias, groups, size = f"{index}.bias" in state, channels // weight.shape[1], weight.shape[2]
            layers.append(nn.Conv2d(channels, len(weight), size, padding=size // 2, groups=groups, bias=bias))
            channels = len(weight)
    model = nn.Sequential(*layers).eval()
    model.load_state_dict(state, strict=True)
    return model


def test_unit_network(clp_unit):
    """Depthwise, 1x1 and 5x5 convs, biases, gammas of both signs, a ReLU before a BN: scores, sets and tensors after."""
    arrays = clp_unit.arrays("unit.npz")
    model = clpnet(arrays)
    stored = {k.split("/")[1]: v for k, v in arrays.items() if k.startswith("clpnet_score/")}
    data = clp_unit.defender(NO_IMAGES)
    scores = defence("registration_order").score(model, data)
    assert set(scores) == set(stored)
    for layer, score in scores.items():
        np.testing.assert_allclose(score.numpy(), stored[layer], rtol=1e-5, err_msg=layer)

    directly = [str(i) for i in range(1, len(model)) if isinstance(model[i - 1], nn.Conv2d) and str(i) in scores]
    by_dataflow = defence("dataflow").score(model, data)
    assert list(by_dataflow) == directly and all(by_dataflow[layer].equal(scores[layer]) for layer in directly)

    sets = stored_sets(arrays, "clpnet_pruned_u")
    assert sets
    for u, theirs in sets.items():
        check_sets(ZScore(u).mask(scores, u), theirs, stored, u, rtol=1e-5)
    for key, tensor in arrays.items():
        if found := re.fullmatch(r"clpnet_after_u([\d.]+)/(.+)", key):
            u = float(found.group(1))
            pruned = prune(model, ZScore(u).mask(scores, u), ("weight", "bias"))
            assert np.array_equal(pruned.state_dict()[found.group(2)].numpy(), tensor), key
