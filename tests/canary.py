"""Every attack and every defence on a toy, in numbers that must not move. `python tests/canary.py` writes canary.json anew.

Do that only when numbers are meant to move, and count the method up in analysis/revisions.py if what it finds on real data
then means something else. Each number's tolerance (relative) is ten times what rounding moves it by, and 1e-4 at least: the most
that it differs when PyTorch computes with fewer of the processor's instructions, or when the last bit of each weight that the
network starts from is another.
"""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from pathlib import Path

import torch
from cells import ROOT, attacks, build, choices, composed, shrink

from bench.attacks.base import Lab
from bench.data import Dataset, stream
from bench.metrics import predict
from bench.models import normalised
from bench.plan import Plan
from bench.training import fit, to_unit

FILE = Path(__file__).with_name("canary.json")
METHODS = [*(f"attack/{name}" for name in attacks()), *(f"defense/{name}" for name in choices("defense"))]
PLAN = Plan(epochs=2, batch_size=32, lr=0.02)
LEAST = 1e-4
NUDGE = "CANARY_NUDGE"  # a seed for those last bits
TWINS: tuple[dict[str, str], ...] = (
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    *({NUDGE: str(seed)} for seed in (1, 2, 3)),
)


@cache
def settings(*overrides):
    return shrink(composed(*overrides))


@cache
def toy() -> Dataset:
    """96 images to train on, 100 held out, 64 to test with, 16x16 pixels."""
    data = build(settings().dataset)
    parts = (data.train, 96), (data.heldout, 100), (data.test, 64)
    return Dataset(*(part[torch.arange(count)] for part, count in parts), 10, data.mean, data.std, data.augment)


def network():
    torch.manual_seed(0)
    model = normalised(build(settings().model, num_classes=10, channels=3), toy().mean, toy().std)
    if seed := os.environ.get(NUDGE):
        rng = torch.Generator().manual_seed(int(seed))
        with torch.no_grad():
            for weight in model.parameters():
                away = torch.randint(2, weight.shape, generator=rng) * 2.0 - 1
                weight.copy_(torch.nextafter(weight, away * torch.inf))
    return model


@cache
def clean():
    model = network()
    fit(model, toy().train, PLAN, seed=0)
    return model


def of_attack(name: str) -> dict[str, float]:
    config = copy.deepcopy(settings(f"attack={name}").attack)
    if "poison_rate" in config:
        config.poison_rate = {"awp": 1.0, "fc": 0.1, "tact": 0.1}.get(name, 0.2)
    for node in (config, *(node for node in config.values() if hasattr(node, "keys"))):
        if "batch_size" in node:
            node.batch_size = 32
    small = {"targets": 1, "images": 20, "passes": 1}  # of fc and lf
    for key in config.keys() & small.keys():
        config[key] = small[key]
    attack, model = build(config, shape=toy().shape, num_classes=10), network()
    attack.check(toy().train)
    fresh = (
        attack.trigger.stamp(toy().test.x).float().sub(toy().test.x).abs().mean().item()
    )  # before anything is learnt
    facts = attack.inject(model, toy(), Lab(partial(fit, plan=PLAN, seed=3, augment=toy().augment), 5, clean()))
    stamped = attack.trigger.stamp(toy().test.x).float()
    where = torch.arange(stamped[0].numel()).view(stamped[0].shape) % 97  # a pattern elsewhere is another number
    return {
        "poisoned": facts["poisoned"],
        "fresh": fresh,
        "trigger": (stamped - toy().test.x).abs().mean().item(),
        "placed": ((stamped - toy().test.x) * where).mean().item(),
        **outputs(model),
    }


def of_defense(name: str) -> dict[str, float]:
    defense = build(settings(f"defense={name}").defense)
    defender, _ = toy().defender(50, 50, 7, needs=defense.needs)
    attack = build(settings("attack=badnets", "attack.poison_rate=0.2").attack, shape=toy().shape, num_classes=10)
    if defense.needs == "poisoned":
        defender = replace(defender, poisoned=attack.mix(toy().train, 40, stream(0, "poison")))
    elif defense.needs == "trigger":
        defender = replace(defender, trigger=attack.trigger)
    torch.manual_seed(0)
    repaired = defense.repair(clean(), defender)
    found = {}
    if repaired.scores is not None:
        rows = torch.cat([score.double().flatten() for score in repaired.scores.values()])
        found = {"scores": rows.abs().mean().item(), "ranked": (rows * torch.arange(len(rows))).mean().item()}
    for i, candidate in enumerate(islice(repaired.candidates, 3)):
        found |= {f"{key} {i}": value for key, value in outputs(candidate.model).items()}
        found[f"pruned {i}"] = candidate.pruned
    return found


@torch.no_grad()
def outputs(model) -> dict[str, float]:
    predict(model, toy().test.x)
    logits = model(to_unit(toy().test.x))
    return {"logits": logits.abs().mean().item(), "first": logits[:, 0].mean().item()}


def numbers(method: str) -> dict[str, float]:
    """On one thread."""
    threads, kind_name = torch.get_num_threads(), method.split("/")
    torch.set_num_threads(1)
    try:
        return (of_attack if kind_name[0] == "attack" else of_defense)(kind_name[1])
    finally:
        torch.set_num_threads(threads)


def moved(one: float, other: float) -> float:
    """How far apart two values of a number are, relative to it."""
    return abs(one - other) / max(abs(one), 1e-2)


def main() -> None:
    if "--print" in sys.argv:
        print(json.dumps({method: numbers(method) for method in METHODS}))
        return
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    found = {method: numbers(method) for method in METHODS}
    others = [
        json.loads(subprocess.check_output([sys.executable, __file__, "--print"], env=os.environ | path | twin))
        for twin in TWINS
    ]
    rows = {}
    for method, values in found.items():
        far = {key: max(moved(value, other[method][key]) for other in others) for key, value in values.items()}
        rows[method] = {
            key: {"is": value, "within": float(f"{max(LEAST, 10 * far[key]):.1g}")} for key, value in values.items()
        }
    FILE.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
