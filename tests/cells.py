"""Composes the real config, as the command line would, and shrinks it so that tests take milliseconds."""

import copy
import re
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl, ConfigRepository
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from bench import sweep
from bench.attacks.base import Lab
from bench.metrics import Exam, evaluate
from bench.models import normalised, vgg
from bench.plan import Plan
from bench.training import fit

ROOT = Path(__file__).parent.parent
NARROW = "model.layers=[8,8,M,16,16,M,16]"
"""The digits' own network with a quarter of the channels, on the command line: a training takes a fifth of the time."""
build = partial(instantiate, _convert_="all")
sweep.read_once(ConfigRepository)


def choices(group: str) -> list[str]:
    """All configs of a group: a new file is tested without touching any test."""
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def attacks() -> list[str]:
    """Those that train: the others are about a model from elsewhere."""
    return [name for name in choices("attack") if name not in ("imported", "unknown")]


def composed(*overrides: str) -> DictConfig:
    """The settings that these words make on the command line, to change at will.

    What only changes a value (`attack.alpha=2`) is put, as Hydra does it, into a copy of what the other words make: composing
    takes forty times as long.
    """
    values = [word for word in overrides if re.match(r"[+\w]+\.[\w.]+=", word)]
    config = copy.deepcopy(_composed(tuple(word for word in overrides if word not in values)))
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), config)
    return config


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", list(overrides))
    with open_dict(config.model) as model:  # it is no setting of a network
        del model["checkpoint"]
    return config


def shrink(node):
    """The same config with at most 2 epochs and 5 iterations wherever something is optimised."""
    for key, value in OmegaConf.to_container(node).items() if OmegaConf.is_dict(node) else ():
        if key == "epochs" and value > 2:
            node[key] = 2
        elif key == "iterations" and value is not None and value > 5:
            node[key] = 5
        elif isinstance(value, dict):
            shrink(node[key])
    return node


def lesson(dataset: str, data) -> None:
    """What any data set must be good for: a model that learns BadNets from it for an epoch, is examined, and pruned."""
    torch.manual_seed(0)
    config = composed(f"dataset={dataset}", "attack=badnets", "defense=magnitude")
    attack = build(config.attack, shape=data.shape, num_classes=data.num_classes, poison_rate=0.5)
    model = normalised(vgg([4, "M", 8], data.num_classes, data.shape[0]), data.mean, data.std)
    before = model.classifier.weight.clone()
    augment = replace(data.augment, shift=min(data.augment.shift, 4))
    learn = partial(fit, plan=Plan(epochs=1, batch_size=8, lr=0.1), seed=0, augment=augment)
    attack.inject(model, data, Lab(learn, 0))
    assert model.classifier.weight.isfinite().all() and not model.classifier.weight.equal(before)
    found = evaluate(model, Exam.of(data.test, attack.trigger))
    assert found.clean == len(data.test) > found.triggered > 0
    view = data.defender(2, 2, 0, "nothing")[0]
    repaired = build(config.defense).repair(model, view)
    assert len({candidate.pruned for candidate in repaired.candidates}) > 2
