"""What the tests of CLP, EP and BNP share: sets of channels cut at mean + number * std of a layer, and what they do."""

import re

import numpy as np

from bench.metrics import evaluate
from bench.pruning import prune

from .vectors import counts


def stored(arrays, prefix):
    """The arrays under `prefix`/, by layer."""
    return {key.removeprefix(f"{prefix}/"): value for key, value in arrays.items() if key.startswith(f"{prefix}/")}


def stored_sets(arrays, prefix):
    """number -> BN name -> the indices pruned there, for every number in the file."""
    sets = {}
    for key, indices in arrays.items():
        if found := re.fullmatch(rf"{prefix}([\d.]+)/(.+)", key):
            sets.setdefault(float(found.group(1)), {})[found.group(2)] = indices
    return sets


def check_sets(mask, sets, scores, number, rtol=0.0, atol=0.0):
    """The same channels, but for those whose stored score is that close to the threshold; says how many were compared."""
    assert set(mask) == set(sets)
    compared = 0
    for layer, pruned in mask.items():
        score = scores[layer].astype(np.float64)
        threshold = score.mean() + number * score.std(ddof=1)
        clear = np.abs(score - threshold) > atol + rtol * np.abs(threshold)
        theirs = np.isin(np.arange(len(score)), sets[layer])
        np.testing.assert_array_equal(pruned.numpy()[clear], theirs[clear], err_msg=f"{layer} at {number}")
        compared += int(clear.sum())
    return compared


def check_counts(folder, sets, expected, zeroes):
    """ACC, ASR and RA, to 2 images, of the network without these channels."""
    exam = folder.exam
    assert (len(exam.clean), len(exam.triggered)) == tuple(expected[3:5])
    found = counts(evaluate(prune(folder.network(), sets, zeroes), exam))
    np.testing.assert_allclose(found, expected[:3], rtol=0, atol=2)
