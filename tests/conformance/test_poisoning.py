"""Which images the peers' code poisons, and the metrics it reports."""

import random
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from bench.attacks.ablend import AdapBlend
from bench.attacks.adappatch import AdapPatch
from bench.attacks.badnets import BadNets
from bench.attacks.base import Trigger
from bench.attacks.tact import TaCT
from bench.data import ImageSet
from bench.metrics import Exam, Metrics, der, evaluate


# -- which images are poisoned -----------------------------------------------------------------------------------------
class Numpy:
    """`np.random.seed`, then `permutation` or `choice` without replacement, which is its head."""

    def __init__(self, seed):
        self.seed = seed

    def permutation(self, n):
        return np.random.RandomState(self.seed).permutation(n)


class Python:
    """`random.seed`, then shuffled lists."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def permutation(self, n):
        order = list(range(n))
        self.random.shuffle(order)
        return order


class TopK(Numpy):
    """`torch.manual_seed`, then the largest of normal draws."""

    def permutation(self, n):
        return torch.randn(n, generator=torch.Generator().manual_seed(self.seed)).argsort(descending=True).numpy()


class NumpyThenFilter(Numpy):
    """`np.random.permutation` of the whole set, of which only the candidates are kept."""

    def __init__(self, seed, candidates, total):
        self.seed, self.candidates, self.total = seed, candidates, total

    def permutation(self, n):
        order = super().permutation(self.total)
        return np.searchsorted(self.candidates, order[np.isin(order, self.candidates)])


RULES = {
    "bb_all2one": (Numpy, "all", "train", "all2one"),
    "bb_all2all": (Numpy, "all", "train", "all2all"),
    "bb_cleanlabel": (Numpy, "target", "train", "all2one"),
    "anp_all2one": (Numpy, "non_target", "victims", "all2one"),
    "rnp_all2one": (Numpy, "all", "train", "all2one"),
    "rnp_all2all": (Numpy, "all", "train", "all2all"),
    "rnp_cleanLabel": (NumpyThenFilter, "target", "victims", "all2one"),
    "bt_badnet": (Python, "all", "train", "all2one"),
    "bt_sig": (Python, "target", "train", "all2one"),
    "madry_cleanlabel": (NumpyThenFilter, "target", "victims", "all2one"),
    "clp_badnets": (TopK, "all", "train", "all2one"),
    "clp_cla": (TopK, "target", "train", "all2one"),
    "backdoorbox_poisoned": (Python, "all", "train", "all2one"),
}
"""Start of a stored choice's name -> the authors' generator, and our `victims`, `base` and `labels`."""

COVERED = {
    "bt_ablend": partial(AdapBlend, alpha=0.1, test_alpha=0.1),
    "bt_apatch": partial(AdapPatch, opacities=[0.1] * 4),
    "bt_tact": partial(TaCT, source_class=1, cover_classes=[5, 7]),
}
"""Start of a stored choice's name -> our attack with covers; what it does to images plays no part."""


def stated_rates(entry, base, rounds):
    """The rates that the manifest states, in words or numbers; some peers round rate times `base`, and we cut it."""
    words, rate = entry.params["notes"], float(entry.params["rate"])
    rates = [
        rate,
        *(rate / int(k) for k in re.findall(r"rate/(\d+)", words)),
        *map(float, re.findall(r"\d*\.\d+", words)),
    ]
    return [round(r * base) / base if rounds else r for r in rates]


def test_poisoned_images(rule):
    """Our choice with the authors' generator is their choice; at a rate the manifest states; with their new labels."""
    entry, name, stored = rule.entry, rule.name, rule.entry.arrays[rule.name]
    target = int(re.search(r"target class (\d+)", entry.info["meaning"]["labels"]).group(1))
    labels = entry.arrays["labels"]
    if name == "bb_test_all2one":
        assert exam_rows(labels, target, "all2one") == stored.tolist()
        return
    if name == "rnp_cleantest_all2one_len":  # [clean, triggered, clean all2all, clean of a clean-label attack]
        assert len(exam_rows(labels, target, "all2one")) == stored[1], "triggered test images"
        assert len(exam_rows(labels, target, "all2all")) == len(labels) == stored[2], "all2all keeps every image"
        return
    start = next((start for start in COVERED if name.startswith(start)), None)
    if start is not None:
        check_covered(entry, name, stored, start, target)
        return
    start = next((start for start in RULES if name.startswith(start)), None)
    assert start, f"{name} is a choice that this test does not know"
    generator, victims, base, relabel = RULES[start]
    candidates = {"all": labels >= 0, "target": labels == target, "non_target": labels != target}[victims]
    candidates = np.flatnonzero(candidates)
    seed = entry.params.get(f"{start.split('_')[0]}_seed", entry.params["seed"])
    more = (candidates, len(labels)) if generator is NumpyThenFilter else ()
    size = len(labels) if base == "train" else len(candidates)
    if start == "rnp_cleanLabel":  # this peer states a share of the whole set and keeps the target's images of it
        rates = [len(stored) / size]
    else:
        rates = stated_rates(entry, size, rounds=start.startswith(("bb_", "madry")))
    classes = int(labels.max()) + 1

    choices = {}
    for rate in (rate for rate in rates if 0 < rate <= 1 and 1 <= rate * size <= len(candidates)):
        attack = BadNets((1, 3, 3), classes, rate, target=target, labels=relabel, victims=victims, base=base)
        choices[rate] = attack.split(labels, generator(seed, *more))[0]
    fitting = [rate for rate, chosen in choices.items() if len(chosen) == len(stored)]
    assert fitting, f"no stated rate gives {len(stored)} images: {[(r, len(c)) for r, c in choices.items()]}"
    chosen = choices[fitting[0]]
    in_draw_order = not (np.diff(stored) > 0).all()
    np.testing.assert_array_equal(chosen if in_draw_order else np.sort(chosen), stored)

    after = entry.arrays.get(f"{start}_labels")
    if after is not None:
        attack = BadNets((1, 3, 3), classes, fitting[0], target=target, labels=relabel, victims=victims, base=base)
        train = ImageSet(torch.zeros(len(labels), 1, 3, 3, dtype=torch.uint8), torch.tensor(labels))
        poisoned, index, _ = attack.poison(train, generator(seed, *more))
        np.testing.assert_array_equal(np.sort(index.numpy()), np.sort(stored))
        np.testing.assert_array_equal(poisoned.y.numpy(), after)


def check_covered(entry, name, stored, start, target):
    """As above, for a choice of poisoned images and covers, whose two rates the manifest states as `start .03/.06`."""
    labels = entry.arrays["labels"]
    rates = map(float, re.search(rf"{start} ([\d.]+)/([\d.]+)", entry.params["notes"]).groups())
    attack = COVERED[start]((1, 8, 8), int(labels.max()) + 1, *rates, target=target)
    train = ImageSet(torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), torch.tensor(labels))
    poisoned, *chosen = attack.poison(train, Python(entry.params["seed"]))
    np.testing.assert_array_equal(chosen[name.endswith("cover")].numpy(), stored)
    after = entry.arrays.get(f"{start}_labels")
    if after is not None:
        np.testing.assert_array_equal(poisoned.y.numpy(), after)
    numbers = entry.arrays.get(f"{name}_trigger_no")
    if numbers is not None:
        np.testing.assert_array_equal(attack.trigger.draw(len(stored), 0)[0].numpy(), numbers)


def exam_rows(labels, target, relabel):
    """The test images that our exam triggers."""
    x = torch.arange(len(labels), dtype=torch.int32).view(torch.uint8).view(-1, 1, 2, 2)  # each image spells its row
    trigger = Untouched(int(labels.max()) + 1, target, relabel)
    triggered = Exam.of(ImageSet(x, torch.tensor(labels)), trigger).triggered.x
    return triggered.reshape(-1, 4).view(torch.int32).flatten().tolist()


class Untouched(Trigger):
    def stamp(self, x, chunk=4096):
        return x.contiguous()


# -- metrics -----------------------------------------------------------------------------------------------------------
class Marked(Trigger):
    """Marks a triggered image in its last pixel."""

    def forward(self, x):
        x = x.clone()
        x[..., -1, -1] = 255
        return x


class Oracle(nn.Module):
    """Gives the stored predictions: an image spells its row, and whether it is triggered."""

    def __init__(self, clean, triggered, classes):
        super().__init__()
        self.table = torch.eye(classes)[torch.tensor(np.stack([clean, triggered]))]

    def forward(self, x):
        low, high, _, mark = (x.flatten(1) * 255).round().long().unbind(1)
        return self.table[(mark > 0).long(), low + 256 * high]


def test_metric(metric):
    """`Exam` and `evaluate` on the stored predictions give the peers' ACC, ASR and RA, and `der` their DER."""
    entry, a = metric.entry, metric.entry.arrays
    classes = int(max(a[k].max() for k in ("y", "pred_clean", "pred_bd"))) + 1
    x = torch.arange(len(a["y"]), dtype=torch.int32).view(torch.uint8).view(-1, 1, 2, 2)
    exam = Exam.of(ImageSet(x, torch.tensor(a["y"])), Marked(classes, entry.params["target"]))
    after = evaluate(Oracle(a["pred_clean"], a["pred_bd"], classes), exam)
    before = {key: round(share * 10**6) for key, share in entry.params["bd_baseline"].items()}
    before = Metrics(10**6, before["acc"], 10**6, before["asr"], before["ra"])
    ours = {"ACC_all": after.acc, "ASR_bb_nontarget": after.asr, "RA_bb_nontarget": after.ra, "DER": der(before, after)}
    name = next((name for name in ours if metric.name.startswith(name)), None)
    if name is None:
        pytest.skip(f"not applicable: {metric.name} is not a metric of the bench")
    stored = float(a["values"][entry.params["value_names"].index(metric.name)])
    assert ours[name] / 100 == pytest.approx(stored, abs=1e-9)
