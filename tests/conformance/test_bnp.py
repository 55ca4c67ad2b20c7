"""BNP: moments, divergences, pruned sets and pruned models against the authors' code."""

import numpy as np
import torch

from bench.data import ImageSet
from bench.defenses.bnp import BNP, divergence, moments
from bench.layers import at_norms, batch_norms
from bench.pruning import Sweep, ZScore
from bench.training import to_unit

from .vectors import chw
from .zscores import check_counts, check_sets, stored, stored_sets


def images(folder):
    data = folder.arrays("data.npz")
    return ImageSet(chw(data["x_def"]), torch.tensor(data["y_def"]))


def scores(folder):
    defence = BNP(rule=ZScore(3.0), sweep=Sweep("at", ()), zeroes=("weight",))
    return defence.score(folder.network(), folder.defender(images(folder)))


def test_moments(bnp_folder):
    """Mean and variance of every BatchNorm's input over the stored images."""
    arrays = bnp_folder.arrays("bnp.npz")
    found = at_norms(bnp_folder.network(), to_unit(images(bnp_folder).x), moments)
    assert set(found) == set(stored(arrays, "batch_mean"))
    for layer, (mean, variance) in found.items():
        np.testing.assert_allclose(mean, arrays[f"batch_mean/{layer}"], rtol=1e-4, atol=1e-5, err_msg=layer)
        np.testing.assert_allclose(variance, arrays[f"batch_var/{layer}"], rtol=1e-4, atol=1e-6, err_msg=layer)


def test_divergence(bnp_folder):
    """The formula alone, on the stored moments."""
    arrays = bnp_folder.arrays("bnp.npz")
    for layer, bn in batch_norms(bnp_folder.network()).items():
        mean, variance = (torch.tensor(arrays[f"batch_{name}/{layer}"]) for name in ("mean", "var"))
        found = divergence(mean, variance, bn, layer)
        np.testing.assert_allclose(found, arrays[f"measure/{layer}"], rtol=1e-4, atol=2e-6, err_msg=layer)


def test_pruned_channels_and_counts(bnp_folder):
    """Every channel's score; for every k the pruned channels, but for those at the threshold, and ACC, ASR and RA."""
    arrays, found = bnp_folder.arrays("bnp.npz"), scores(bnp_folder)
    theirs = stored(arrays, "measure")
    assert set(found) == set(theirs)
    for layer, score in found.items():
        np.testing.assert_allclose(score, theirs[layer], rtol=1e-3, atol=1e-5, err_msg=layer)
    sets = stored_sets(arrays, "pruned_k")
    assert sets
    for k, channels in sets.items():
        mask = ZScore(k).mask(found, k)
        assert check_sets(mask, channels, theirs, k, rtol=1e-5, atol=1e-5) >= 0.95 * sum(map(len, theirs.values()))
        check_counts(bnp_folder, mask, arrays[f"counts_k{k:g}"], ("weight",))
