"""How well a pruner's scores find the channels that carry the backdoor: one number per question, for one cell.

Truth is the trigger-activated change (TAC; Zheng et al., CLP, ECCV 2022) of each channel, which bench leaves as tac.csv beside a
backdoored model. Feature maps of different sizes have changes of different sizes, so it is taken relative to its layer:
(TAC - mean) / standard deviation. Backdoor channels are the `share` of all channels where that is largest.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from analysis.schema import read_text

SHARE = 0.01
LIMIT = 1 << 24  # bytes; a network of 30,000 channels has 1.5 MiB
POINTS = 60  # of a curve, at most
Layers = Mapping[str, np.ndarray]
"""Layer -> one number per channel."""


class Elsewhere(ValueError):
    """The scores are about other layers than the truth."""


def read_channels(path: Path) -> dict[str, np.ndarray]:
    """A CSV of layer, channel and a number, the channels of each layer in order from 0. Raises OSError, ValueError."""
    rows = list(csv.reader(io.StringIO(read_text(path, LIMIT))))[1:]
    found: dict[str, np.ndarray] = {}
    for layer, group in groupby(rows, itemgetter(slice(1))):
        own = list(group)
        if (
            any(len(row) != 3 for row in own)
            or [row[1] for row in own] != [*map(str, range(len(own)))]
            or layer[0] in found
        ):
            raise ValueError(f"{path.name} has a row out of order, of {str(layer)[:60]}")
        found[layer[0]] = np.array([float(row[2]) for row in own])
    if not found:
        raise ValueError(f"{path.name} is empty")
    return found


def standard(values: np.ndarray) -> np.ndarray:
    """Relative to the layer; all 0 in a layer without spread, whose standard deviation may be a rounding error."""
    spread = values.std(ddof=1) if np.ptp(values) > 0 else 0.0
    return (values - values.mean()) / spread if spread > 0 and math.isfinite(spread) else np.zeros(len(values))


def order(scores: Layers, rule: str) -> dict[str, np.ndarray]:
    """Higher is pruned earlier, over all layers: some rules (the class named in the settings) compare within layers."""
    name = rule.rpartition(".")[2]
    if name == "ZScore":
        return {layer: standard(values) for layer, values in scores.items()}
    if name == "OneIn":
        from scipy.stats import rankdata

        return {
            layer: rankdata(values, nan_policy="omit") / np.count_nonzero(~np.isnan(values))
            for layer, values in scores.items()
        }
    return dict(scores)


def truth(tac: Layers, share: float = SHARE) -> tuple[np.ndarray, np.ndarray]:
    """Over all layers, one after the other: the relative TAC, and whether a channel is one of the backdoor's.

    Raises ValueError for a TAC that tells no channels apart: some would be the backdoor's by their place in the file.
    """
    for layer, values in tac.items():
        if not np.isfinite(values).all():
            raise ValueError(f"the TAC of layer {layer[:60]!r} has a number that is not finite")
    relative = np.concatenate([standard(values) for values in tac.values()])
    if not relative.any():
        raise ValueError("the TAC is the same for all channels of each layer")
    count = max(1, round(share * len(relative)))
    wanted = np.zeros(len(relative), dtype=bool)
    wanted[np.argsort(-relative, kind="stable")[:count]] = True
    return relative, wanted


def ranked(tac: Layers, scores: Layers, rule: str) -> np.ndarray:
    """What `order` gives to each channel of the truth; -inf where there is no score, which is never pruned.

    Raises Elsewhere where no layer is scored, ValueError where a layer has another number of channels.
    """
    if not tac.keys() & scores.keys():
        raise Elsewhere(f"its scores name other layers, such as {next(iter(scores))[:60]!r}")
    levels = order(scores, rule)
    for layer in tac.keys() & levels.keys():
        if len(levels[layer]) != len(tac[layer]):
            raise ValueError(f"layer {layer[:60]!r} has {len(levels[layer])} scores and {len(tac[layer])} channels")
    parts = [levels.get(layer, np.full(len(values), -np.inf)) for layer, values in tac.items()]
    return np.nan_to_num(np.concatenate(parts), nan=-np.inf, posinf=np.inf, neginf=-np.inf)


def found(level: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[n + 1]: how many backdoor channels are among the first 0, 1, ..., n pruned; of tied channels, as by chance."""
    _, group, sizes = np.unique(-level, return_inverse=True, return_counts=True)
    per_group = np.bincount(group, weights=wanted) / sizes
    return np.concatenate([[0.0], np.cumsum(np.repeat(per_group, sizes))])


def measure(tac: Layers, scores: Layers, rule: str, share: float = SHARE) -> dict[str, Any]:
    """`auroc` of the scores against the backdoor channels (0.5: chance), `precision` among the first k pruned, k being the
    number of backdoor channels, and `rank`: Spearman's correlation with the relative TAC (None where all scores are alike).
    `curve`: at growing counts of pruned channels, the share of backdoor channels among them.
    """
    from scipy.stats import rankdata  # half a second, for those who measure

    relative, wanted = truth(tac, share)
    level = ranked(tac, scores, rule)
    ranks, true_ranks = rankdata(level), rankdata(relative)
    k, n = int(wanted.sum()), len(wanted)
    share_found = found(level, wanted) / k
    counts = np.unique(np.geomspace(1, n, POINTS).round().astype(int))
    told = np.ptp(ranks) > 0 and np.ptp(true_ranks) > 0
    return {
        # Mann and Whitney's U over its largest value: the area under the ROC curve
        "auroc": float((ranks[wanted].sum() - k * (k + 1) / 2) / (k * (n - k))) if 0 < k < n else None,
        "precision": float(share_found[k]),
        "rank": float(np.corrcoef(ranks, true_ranks)[0, 1]) if told else None,
        "k": k,
        "channels": n,
        "scored": int(np.isfinite(level).sum()),
        "curve": [[0, 0.0], *([int(n), round(float(share_found[n]), 4)] for n in counts)],
    }
