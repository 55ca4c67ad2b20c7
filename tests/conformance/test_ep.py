"""EP: the entropy of given values, features, entropies, pruned sets and pruned models against the authors' code.

A value that crosses a bin's edge moves an entropy: the authors' own code differs by 0.015 between float32 and float64.
"""

import re

import numpy as np
import torch

from bench.data import ImageSet
from bench.defenses.ep import EP, channel_entropy, histogram_entropy
from bench.layers import at_norms
from bench.pruning import Sweep, ZScore
from bench.training import to_unit

from .vectors import chw
from .zscores import check_counts, check_sets, stored, stored_sets

EDGE = 0.03
"""How far an entropy may be off."""


def mix(folder):
    arrays = folder.arrays("ep.npz")
    return ImageSet(chw(arrays["x_mix"]), torch.tensor(arrays["y_mix"]))


def scores(folder, width):
    defence = EP(width, rule=ZScore(3.0), sweep=Sweep("at", ()), zeroes=("weight",))
    data = folder.defender(mix(folder))
    return defence.score(folder.network(), type(data)(**vars(data) | {"poisoned": mix(folder)}))


def test_entropy_of_values(entropy_unit):
    """Standardised rows, and rows that lie on the edges of bins, at every stored width."""
    arrays, found = entropy_unit.arrays("unit.npz"), 0
    for key, expected in arrays.items():
        if name := re.fullmatch(r"(?:(edge)_)?entropy_step([\d.]+)_\w+", key):
            values = torch.tensor(arrays["edge_x" if name[1] else "entropy_x"])
            np.testing.assert_allclose(
                histogram_entropy(values, float(name[2])), expected, rtol=0, atol=1e-5, err_msg=key
            )
            found += 1
    assert found


def test_features(ep_folder):
    """The spatial maxima of the BatchNorms' inputs, for the layers that are stored; and the entropies of the stored ones."""
    arrays = ep_folder.arrays("ep.npz")
    found = at_norms(ep_folder.network(), to_unit(mix(ep_folder).x), lambda x: x.amax((2, 3)).T)
    width, kept = ep_folder.manifest["hyper_parameters"]["ep"]["bin"], stored(arrays, "batch_feats")
    assert kept
    for layer, values in kept.items():
        np.testing.assert_allclose(found[layer], values, rtol=1e-4, atol=1e-4, err_msg=layer)
        entropy = channel_entropy(torch.tensor(values), width)
        np.testing.assert_allclose(entropy, arrays[f"entropy/{layer}"], rtol=0, atol=EDGE, err_msg=layer)


def test_pruned_channels_and_counts(ep_folder):
    """Every channel's entropy; for every k the pruned channels, but for those at the threshold, and ACC, ASR and RA."""
    arrays, width = ep_folder.arrays("ep.npz"), ep_folder.manifest["hyper_parameters"]["ep"]["bin"]
    found, theirs = scores(ep_folder, width), stored(arrays, "entropy")
    assert set(found) == set(theirs)
    for layer, score in found.items():
        np.testing.assert_allclose(-score, theirs[layer], rtol=0, atol=EDGE, err_msg=layer)
    apart = np.concatenate([np.abs(-score.numpy() - theirs[layer]) for layer, score in found.items()])
    assert np.median(apart) < 1e-4  # a value at a bin's edge moves single channels only
    sets = stored_sets(arrays, "pruned_k")
    assert sets
    negative = {layer: -entropy for layer, entropy in theirs.items()}
    for k, channels in sets.items():
        mask = ZScore(k).mask(found, k)
        assert check_sets(mask, channels, negative, k, atol=EDGE) >= 0.5 * sum(map(len, theirs.values()))
        official = {n: torch.tensor(np.isin(np.arange(len(theirs[n])), rows)) for n, rows in channels.items()}
        check_counts(ep_folder, official, arrays[f"counts_k{k:g}"], ("weight",))


def test_wide_bins(ep_folder):
    """BackdoorBench's bins, on the same images."""
    theirs = stored(ep_folder.arrays("ep.npz"), "bdbench_entropy")
    found = scores(ep_folder, 0.1)
    for layer, entropy in theirs.items():
        np.testing.assert_allclose(-found[layer], entropy, rtol=0, atol=EDGE, err_msg=layer)
