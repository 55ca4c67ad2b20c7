"""What a cell, a script and an export have in common: the data, the backdoored model, its exam, and one repair of it.

Knows no Hydra: it is handed settings as plain data, and a `build` that makes an object of a node with a `_target_`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from bench import config, curve, machine
from bench.attacks.base import Attack, Backdoor
from bench.attacks.counts import draw_mix
from bench.chosen import Chosen, Keeper
from bench.data import Dataset, Defender, ImageSet, stream
from bench.defenses.base import Defense
from bench.errors import UserError
from bench.metrics import Exam, Metrics, accuracy
from bench.pruning import Scores
from bench.store import Clean
from bench.streaming import place
from bench.victim import Bench

Build = Callable[..., Any]
"""build(node, **more): the object that a plain mapping with a `_target_` describes, built with `more` besides."""


@dataclass(frozen=True)
class Scene:
    """Everything there is before a repair. `settings`: the whole composed config as plain data.

    `before`: the model's metrics as it came. `clean`: the clean model of the same bench, where it was asked for.
    """

    settings: Mapping[str, Any]
    device: torch.device
    data: Dataset
    attack: Attack
    clean: Clean | None
    backdoor: Backdoor
    exam: Exam
    before: Metrics

    def hand(self, defense: Defense) -> tuple[Defender, ImageSet]:
        """What this defence may see, and the images that choose its operating point (which it may not)."""
        defender, select = draw(self.settings, self.data, defense)
        if defense.needs == "poisoned":
            seed = stream(self.settings["seed"], "poison")
            mix = self.attack.mix(self.data.train, self.settings["clean"]["mix"], seed)
            defender = replace(defender, poisoned=mix)
        elif defense.needs == "trigger":  # it cheats, and says so in what it needs
            defender = replace(defender, trigger=self.backdoor.trigger)
        return defender, select


@dataclass(frozen=True)
class Outcome:
    """What came of one repair: the curve, the scores (None: no pruner), and the images that were used.

    `chosen`: the model at the operating point by `selection.rule`, if it was to be kept.
    `select_before`: accuracy on `select` before it, percent. `seconds`: of the repair alone; `total`: with the curve.
    """

    rows: list[dict[str, Any]]
    scores: Scores | None
    defender: Defender
    select: ImageSet
    select_before: float
    seconds: float
    total: float
    chosen: Chosen | None

    @property
    def images(self) -> dict[str, int]:
        """How many images there were, as columns of the record."""
        given = self.defender
        return {"clean_tune": len(given.clean), "clean_select": len(self.select), "mix": len(given.poisoned or ())}


def scene(
    settings: Mapping[str, Any],
    names: Mapping[str, str],
    build: Build,
    defense: Defense | None = None,
    stored: bool = False,
) -> Scene:
    """Loads or trains the backdoor, and the clean model that it is compared with (unless `gate.max_drop` is null).

    `names`: what dataset, model and attack are called. What is wrong for `defense` (None: there is none) is said before
    anything is trained. `stored`: the backdoor is there, so no clean model is wanted. Raises UserError.
    """
    device = machine.device(settings["device"], settings["threads"])
    plan = build(settings["train"])
    data = place(build(settings["dataset"]), device, settings.get("resident", "auto"))
    if defense is not None:
        draw(settings, data, defense)
    task = {"shape": data.shape, "num_classes": data.num_classes}
    file = config.weights(settings)
    attack = build(settings["attack"], **task, **config.asked_for(settings["attack"]["_target_"], {"checkpoint": file}))
    attack.check(data.train)
    if defense is not None:
        possible(defense, attack, settings["selection"]["rule"])

    facts = {"num_classes": data.num_classes, "channels": data.shape[0], "size": data.shape[1]}
    node = config.network(settings)
    network = partial(build, node, **config.asked_for(node["_target_"], facts))
    workshop = Bench(data, network, plan, dict(settings), dict(names) | {"seed": settings["seed"]}, device)
    stored = stored or file is not None  # a stranger's was trained in another way
    compared = settings["gate"]["max_drop"] is not None and not stored
    clean = workshop.clean() if attack.needs_clean and not stored else None
    backdoor = workshop.victim(attack, clean)
    if compared and clean is None:  # after it: many processes with an attack each do not wait for one clean model
        clean = workshop.clean()
    exam, before = Exam.of(data.test, backdoor.trigger), Metrics(**backdoor.card["metrics"])
    return Scene(settings, device, data, attack, clean, backdoor, exam, before)


def possible(defense: Defense, attack: Attack, rule: str) -> None:
    """Raises UserError if the trigger is unknown and this defence, or the rule that chooses its operating point, needs it."""
    if attack.trigger.known:
        return
    if defense.needs in ("poisoned", "trigger"):
        what = "poisoned images" if defense.needs == "poisoned" else "the trigger"
        raise UserError(f"this defence needs {what}, which attack=unknown cannot give: choose another defence.")
    if rule == "oracle":
        raise UserError("selection.rule=oracle goes by ASR, which attack=unknown has none of: use clean_drop or fixed.")


def draw(settings: Mapping[str, Any], data: Dataset, defense: Defense) -> tuple[Defender, ImageSet]:
    """The defender's clean images, and those that choose the operating point. The same each time. Raises UserError."""
    clean, seed = settings["clean"], settings["seed"]
    if defense.needs == "poisoned":  # said here, drawn later
        draw_mix(len(data.train), clean["mix"], seed)
    wanted = {key: clean[key] for key in ("tune", "select", "source", "balance")}
    return data.defender(**wanted, seed=stream(seed, "defender"), needs=defense.needs)


def repair(scene: Scene, defense: Defense, keep: bool = False) -> Outcome:
    """Lets the defence repair the model and looks at every model it offers. The defence sees the model and its own images.

    `keep`: whether to keep the model at the operating point.
    """
    defender, select = scene.hand(defense)
    model = scene.backdoor.model
    select_before = accuracy(model, select)
    torch.manual_seed(stream(scene.settings["seed"], "defense"))
    machine.forget_peak(scene.device)
    started = time.perf_counter()
    repaired = defense.offer(model, defender)
    seconds = time.perf_counter() - started
    selection = scene.settings["selection"]
    keeper = Keeper(selection, select_before, scene.before.acc) if keep else None
    rows = curve.trace(repaired, scene.exam, select, scene.before, select_before, selection["stop"], keeper)
    total = time.perf_counter() - started
    chosen = keeper.chosen if keeper else None
    return Outcome(rows, repaired.scores, defender, select, select_before, seconds, total, chosen)
