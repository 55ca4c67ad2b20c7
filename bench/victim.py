"""The models that a cell is about: taken from the store, or trained by their attack and put there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from analysis import fingerprints
from bench import config, machine, shelf, store, tac
from bench.attacks.base import Attack, Backdoor, Lab
from bench.attacks.none import NoAttack
from bench.data import Dataset, stream
from bench.errors import UserError
from bench.foreign import adopt
from bench.metrics import Exam, evaluate, predict
from bench.models import checked, normalised
from bench.repeat import fingerprint
from bench.resume import Keep
from bench.training import Plan, fit

SAMPLES = 8  # test images kept before and after the trigger, to look at


@dataclass(frozen=True)
class Bench:
    """Everything a model is made with but the attack. `network()` builds an untrained one; `settings`: the whole config."""

    data: Dataset
    network: Callable[[], nn.Module]
    plan: Plan
    settings: dict[str, Any]
    names: Mapping[str, Any]
    device: torch.device

    def clean(self) -> store.Clean:
        """The model that nobody attacked: what an attack's accuracy is held against, and what some attacks start from."""
        twin, names = config.clean_twin(self.settings), {**self.names, "attack": "none"}
        attack = NoAttack(self.data.shape, self.data.num_classes)
        folder = store.folder_for(twin["runs"], names, config.backdoor_material(twin, self.data.digest))
        return store.Clean(folder, partial(self._victim, attack, twin, names, None), self.device)

    def victim(self, attack: Attack, clean: store.Clean | None) -> Backdoor:
        """The model with the attack's backdoor. `clean`: see `Lab`."""
        return self._victim(attack, self.settings, self.names, clean)

    def _victim(
        self, attack: Attack, settings: dict[str, Any], names: Mapping[str, Any], clean: store.Clean | None
    ) -> Backdoor:
        data, seed = self.data, settings["seed"]
        material = config.backdoor_material(settings, data.digest)
        folder = store.folder_for(settings["runs"], names, material)
        torch.manual_seed(stream(seed, "init"))
        network = checked(self.network(), data.shape, data.num_classes)
        blank = Backdoor(normalised(network, data.mean, data.std).to(self.device), attack.trigger.to(self.device))

        def train(new: Backdoor) -> dict[str, Any]:
            code = fingerprints.of_model(settings)  # of now: files may change while it trains
            keep = Keep(shelf.part(folder), settings.get("checkpoint"), self.device)
            learn = partial(fit, plan=self.plan, seed=stream(seed, "training"), augment=data.augment, keep=keep)
            if file := config.weights(settings):
                adopt(file, new.model, attack, settings["model"].get("width"))
            lab = Lab(learn, stream(seed, "poison"), clean.model if clean else None)
            facts = {} if file and not attack.elsewhere else attack.inject(new.model, data, lab)
            if not isinstance(facts, Mapping):
                raise UserError(
                    f"{type(attack).__name__}.inject returned {facts!r}, not the facts for the card (a dict)."
                )
            exam = Exam.of(data.test, new.trigger)
            made = {"seconds": keep.seconds, "interruptions": keep.interruptions, "exact": keep.exact}
            made |= machine.environment(self.device) | {"fingerprints": code}
            first = new.trigger.chosen(data.test).nonzero().flatten()[:SAMPLES]
            new.samples = {"original": data.test.x[first], "triggered": exam.triggered.x[:SAMPLES]}
            told = predict(new.model, exam.images)
            if lost := int((told < 0).sum()):
                todo = "lower train.lr, or raise the precision (train.precision=fp32)"
                raise UserError(
                    f"the model's logits are NaN for {lost} of {len(told)} test images, so it is not stored: "
                    f"{f'{file} is damaged' if file else todo}."
                )
            metrics = evaluate(new.model, exam, lambda *_: told)
            card = {"metrics": vars(metrics), "poison": facts, "made": made, "predictions": fingerprint(told)}
            return card | {"from": material}

        made = store.load_or_make(folder, blank, train)
        tac.leave(folder / "tac.csv", made, data.test)
        return made
