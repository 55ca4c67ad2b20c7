"""Reads the reference folders: entries from their manifests, arrays, networks rebuilt from state dicts, images."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.attacks.base import Trigger
from bench.attacks.patterns import Overlay
from bench.data import Augment, Defender, ImageSet
from bench.metrics import Exam, Metrics
from bench.models import VGG, BasicBlock, Bottleneck, PreActBlock, ResNet, normalised

Arrays = dict[str, np.ndarray]


@cache
def arrays(path: Path) -> Arrays:
    """All arrays of an .npz file, kept for the next test that asks."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def sha256(data: bytes | np.ndarray) -> str:
    return hashlib.sha256(data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()).hexdigest()


# -- attacks -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Entry:
    """One entry of an attack manifest: a file, the parameters it was made with, and what its arrays mean."""

    folder: Path
    index: int

    @cached_property
    def info(self) -> dict[str, Any]:
        return _manifest(self.folder)["entries"][self.index]

    @property
    def id(self) -> str:
        return self.info["id"]

    @property
    def params(self) -> dict[str, Any]:
        return self.info["params"]

    @property
    def attack(self) -> str:
        """The name a bench attack would have: `badnets` of `badnets/blend/cla (CLP and EP/BNP repos)`."""
        return re.split(r"[ /(]", self.info["attack"])[0]

    @property
    def arrays(self) -> Arrays:
        return arrays(self.folder / self.info["file"])

    @property
    def images(self) -> Tensor:
        """The uint8 images [N, C, H, W] that all entries of this folder are about."""
        inputs = next(entry for entry in entries(self.folder) if entry.attack == "inputs")
        return chw(inputs.arrays["x"])

    def __str__(self) -> str:
        return self.id


@dataclass(frozen=True)
class Item:
    """One named array or value inside an entry."""

    entry: Entry
    name: str

    def __str__(self) -> str:
        return self.name


def entries(root: Path) -> list[Entry]:
    return [Entry(f, i) for f in _manifests(root) for i in range(len(_manifest(f).get("entries", ())))]


def triggers(root: Path) -> list[Entry]:
    """Every entry that is about what an attack does to images."""
    return [entry for entry in entries(root) if entry.attack not in ("inputs", "poison", "metrics")]


def poison_rules(root: Path) -> list[Item]:
    """Every stored choice of images; the label arrays are looked at together with their choice."""
    aside = re.compile(r"labels$|_trigger_no$")
    found = [entry for entry in entries(root) if entry.attack == "poison"]
    return [Item(entry, name) for entry in found for name in entry.arrays if not aside.search(name)]


def metric_values(root: Path) -> list[Item]:
    found = [entry for entry in entries(root) if entry.attack == "metrics"]
    return [Item(entry, name) for entry in found for name in entry.params["value_names"]]


# -- defences ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Folder:
    """A folder of defence vectors on one backdoored network."""

    path: Path

    @property
    def manifest(self) -> dict[str, Any]:
        return _manifest(self.path)

    def has(self, *files: str) -> bool:
        return all((self.path / file).is_file() for file in files)

    def arrays(self, file: str) -> Arrays:
        return arrays(self.path / file)

    def json(self, file: str) -> dict[str, Any]:
        return _json(self.path / file)

    def network(self, file: str = "model.npz") -> nn.Module:
        """A fresh copy of the stored network, for images in [0, 1], in eval mode."""
        facts = self.manifest["normalise"]
        return normalised(rebuild(self.arrays(file)), facts["mean"], facts["std"]).eval()

    def defender(self, images: ImageSet) -> Defender:
        """What the defence is given: these images, in no augmented form."""
        model = self.network("model.npz" if self.has("model.npz") else "backdoored_weights.npz")
        classes = [m for m in model.modules() if isinstance(m, nn.Linear)][-1].out_features
        return Defender(images, SHAPE, classes, Augment(), seed=0)

    @property
    def trigger(self) -> Overlay:
        """The trigger that `data.npz` describes."""
        data = self.arrays("data.npz")
        image, mask = (chw(data[f"trigger_{name}"].squeeze(0)).expand(-1, *SHAPE[1:]) for name in ("pattern", "mask"))
        return Overlay(image, mask, float(data["trigger_alpha"]), CLASSES, int(data["target"]), "all2one")

    @property
    def exam(self) -> Exam:
        """The stored test images, clean and triggered (the folders with `x_eval`)."""
        data = self.arrays("data.npz")
        clean, triggered = chw(data["x_eval"])
        y, target = torch.tensor(data["y_eval"]), int(data["target"])
        rest = y != target
        return Exam(ImageSet(clean, y), ImageSet(triggered[rest], y[rest]), torch.full_like(y[rest], target))

    def __str__(self) -> str:
        return self.path.name


SHAPE = (3, 32, 32)
CLASSES = 1000
"""More than any data set here has: what a trigger does to images does not depend on it."""


def clp(root: Path) -> list[Folder]:
    return _folders(root, "clp.npz", "model.npz", "data.npz")


def clp_units(root: Path) -> list[Folder]:
    return [f for f in _folders(root, "unit.npz") if any(k.startswith("clpnet/") for k in f.arrays("unit.npz"))]


def bnp(root: Path) -> list[Folder]:
    return _folders(root, "bnp.npz", "model.npz", "data.npz")


def ep(root: Path) -> list[Folder]:
    return _folders(root, "ep.npz", "model.npz", "data.npz")


def entropy_units(root: Path) -> list[Folder]:
    return [f for f in _folders(root, "unit.npz") if "entropy_x" in f.arrays("unit.npz")]


def anp(root: Path) -> list[Folder]:
    return _folders(root, "anp_trace.npz", "model.npz", "data.npz")


def anp_curves(root: Path) -> list[Folder]:
    return _folders(root, "anp_prune_curves.npz", "model.npz", "data.npz")


def baselines(root: Path) -> list[Folder]:
    return _folders(root, "baseline.npz", "model.npz", "data.npz")


def rnp(root: Path) -> list[Folder]:
    return _folders(root, "rnp.json", "rnp_masks.npz", "backdoored_weights.npz", "data.npz")


def fmp(root: Path) -> list[Folder]:
    return _folders(root, "fmp.json", "fmp.npz", "backdoored_weights.npz", "data.npz")


KINDS = {
    "entry": entries,
    "trigger_entry": triggers,
    "rule": poison_rules,
    "metric": metric_values,
    "baseline_folder": baselines,
    "clp_folder": clp,
    "clp_unit": clp_units,
    "bnp_folder": bnp,
    "ep_folder": ep,
    "entropy_unit": entropy_units,
    "anp_folder": anp,
    "curve_folder": anp_curves,
    "rnp_folder": rnp,
    "fmp_folder": fmp,
}
"""Argument of a test -> where its cases come from."""


def _folders(root: Path, *files: str) -> list[Folder]:
    return [folder for folder in map(Folder, _manifests(root)) if folder.has(*files)]


def _manifests(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.rglob("manifest.json"))


def _manifest(folder: Path) -> dict[str, Any]:
    return _json(folder / "manifest.json")


@cache
def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


# -- networks ----------------------------------------------------------------------------------------------------------
def rebuild(state: Arrays) -> nn.Module:
    """The bench's network with these layer names and shapes, holding these weights; strict about every name."""
    weights = {name: torch.tensor(value) for name, value in state.items()}
    if any(name.startswith("features.") for name in weights):
        model: nn.Module = _vgg(weights)
    else:
        plain = Bottleneck if "layer1.0.conv3.weight" in weights else BasicBlock
        block = plain if "bn1.weight" in weights else PreActBlock
        stages = [{k.split(".")[1] for k in weights if k.startswith(f"layer{stage}.")} for stage in (1, 2, 3, 4)]
        stem = weights["conv1.weight"]
        model = ResNet(block, [len(s) for s in stages], len(weights["linear.weight"]), stem.shape[1], stem.shape[0])
    model.load_state_dict(weights, strict=True)
    return model


def _vgg(weights: dict[str, Tensor]) -> VGG:
    """Three slots of `features` belong to each conv (itself, BN, ReLU); every slot left over is a pooling layer.

    Poolings after the last conv leave no gap: there are as many as shrink the map to what the classifier reads of each
    channel, one pixel or, where it is flattened, more.
    """
    convs = {int(k.split(".")[1]): v for k, v in weights.items() if k.startswith("features.") and v.ndim == 4}
    layers: list[int | str] = []
    slot = 0
    for index in sorted(convs):
        layers += ["M"] * (index - slot) + [len(convs[index])]
        slot = index + 3
    classes, read = weights["classifier.weight"].shape
    side = math.isqrt(read // len(convs[max(convs)]))
    layers += ["M"] * ((SHAPE[1] // side).bit_length() - 1 - layers.count("M"))
    first = min(convs)
    kind = VGG if side == 1 else Flattening
    model = kind(layers, classes, convs[first].shape[1], conv_bias=f"features.{first}.bias" in weights)
    model.classifier = nn.Linear(read, classes)
    return model


class Flattening(VGG):
    """The classifier reads every pixel of the last map."""

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


# -- images ------------------------------------------------------------------------------------------------------------
def chw(images: np.ndarray) -> Tensor:
    """[..., H, W, C] -> [..., C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, -3)))


def undiff(planar: np.ndarray) -> Tensor:
    """Planar images [C, N, H, W] of horizontal byte differences -> uint8 [N, C, H, W]."""
    return torch.from_numpy(np.cumsum(planar.swapaxes(0, 1), axis=3, dtype=np.uint8))


@cache
def rnp_images(folder: Folder) -> tuple[ImageSet, ImageSet]:
    """(the defender's images, the test images) of a folder of RNP vectors."""
    data = folder.arrays("data.npz")
    sets = [(undiff(data[f"{n}_x_diff"]), torch.tensor(data[f"{n}_y"].astype(np.int64))) for n in ("defence", "test")]
    return ImageSet(*sets[0]), ImageSet(*sets[1])


@cache
def rnp_exam(folder: Folder) -> Exam:
    """The test images, and their triggered form as the manifest describes it, known to be right by its sha256."""
    _, test = rnp_images(folder)
    target = int(folder.manifest["target"])
    wanted_digest = folder.manifest["sha256_arrays"]["triggered_nontarget_x"]
    for trigger in _described(folder, target):
        exam = Exam.of(test, trigger)
        if sha256(exam.triggered.x.permute(0, 2, 3, 1).numpy()) == wanted_digest:
            return exam
    pytest.fail(f"manifest.trigger of {folder} describes no trigger with the stored sha256: extend vectors._described.")


def _described(folder: Folder, target: int) -> Iterator[Trigger]:
    """Every reading of `manifest.trigger`: a block of pixels written there, or a pattern stored beside the images."""
    facts = folder.manifest["trigger"]
    patterns: list[tuple[Tensor, Tensor]] = []
    for value in facts.values():
        block = np.array(value) if isinstance(value, list) else np.empty(0)
        if block.ndim >= 2:
            pattern, mask = torch.zeros(SHAPE), torch.zeros(SHAPE)
            rows, cols = (slice(*map(int, str(facts.get(k, "0:32")).split(":"))) for k in ("rows", "cols"))
            pattern[:, rows, cols] = chw(block) if block.ndim == 3 else torch.tensor(block).float()
            mask[:, rows, cols] = 1
            patterns.append((pattern.double(), mask.double()))
    for name, value in folder.arrays("data.npz").items():
        image = value.squeeze()
        if re.search("trigger|pattern|blend|noise", name) and image.ndim in (2, 3) and "mask" not in name:
            image = np.cumsum(image, axis=-1, dtype=np.uint8) if name.endswith("_diff") else image
            layouts = [torch.tensor(image)] if image.shape[-1] != 3 else [chw(image)]
            patterns += [(p.double().expand(SHAPE), torch.ones(SHAPE)) for p in layouts if p.shape[-2:] == SHAPE[1:]]
    for seed in map(int, re.findall(r"(?:seed|RandomState|default_rng)\D{0,4}(\d+)", json.dumps(facts))):
        for draw, dtype in itertools.product(("randint", "integers"), (np.int64, np.uint8)):
            rng = np.random.RandomState(seed) if draw == "randint" else np.random.default_rng(seed)
            image = getattr(rng, draw)(0, 256, (*SHAPE[1:], 3), dtype=dtype)
            patterns.append((chw(image).double(), torch.ones(SHAPE)))
    alphas = [float(a) for a in re.findall(r"\d*\.\d+", json.dumps(facts)) if 0 < float(a) < 1]
    for (pattern, mask), alpha in itertools.product(patterns, [*alphas, 1.0]):
        for kind, rounding in itertools.product((torch.float64, torch.float32), ("truncate", "nearest")):
            trigger = Overlay(pattern, mask, alpha, CLASSES, target, "all2one")
            trigger.dtype, trigger.rounding = kind, rounding
            yield trigger


# -- results -----------------------------------------------------------------------------------------------------------
def counts(metrics: Metrics) -> np.ndarray:
    """(right, hit, robust): the counts of ACC, ASR and RA in the order the vectors store them."""
    return np.array([metrics.right, metrics.hit, metrics.robust])


def per_layer(flat: np.ndarray, names: list[str], sizes: list[int]) -> dict[str, Tensor]:
    """A vector over all channels, cut into layers."""
    return dict(zip(names, torch.tensor(flat).split([int(s) for s in sizes]), strict=True))


def spread(total: int, points: int) -> list[int]:
    """`points` of the indices 0..total-1, evenly spread, both ends among them."""
    return sorted({round(i) for i in np.linspace(0, total - 1, points)})
