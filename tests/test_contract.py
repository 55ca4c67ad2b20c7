"""Every attack and every defence there is a config for, through one contract, on the embedded data."""

import copy
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from cells import NARROW, ROOT, attacks, build, choices, composed, shrink

from bench import store
from bench.attacks.base import Backdoor, Lab, PoisonAttack
from bench.data import Defender, ImageSet, stream
from bench.errors import UserError
from bench.metrics import Exam, evaluate
from bench.models import normalised
from bench.streaming import place
from bench.training import fit, to_unit

ATTACKS, DEFENSES = attacks(), choices("defense")
PRUNERS = [name for name in DEFENSES if "\nrule:" in (ROOT / "conf" / "defense" / f"{name}.yaml").read_text()]
FIRST = (NARROW,)
SECOND = ("model=preactresnet18", "model.width=4")  # BatchNorms here read sums and pools, not only convolutions


@pytest.fixture(scope="module")
def digits():
    """With 500 images to train on."""
    data = build(composed().dataset)
    return replace(data, train=data.train[torch.arange(500)])


def blank(data, attack, seed=0, network=FIRST):
    torch.manual_seed(seed)
    model = build(composed(*network).model, num_classes=data.num_classes, channels=data.shape[0])
    return Backdoor(normalised(model, data.mean, data.std), attack.trigger)


@pytest.fixture(scope="module")
def lab(digits):
    """What an attacker works with, on the quick: two epochs, and a clean model of two."""
    plan = build(shrink(composed()).train)
    lab = Lab(partial(fit, plan=plan, seed=1, augment=digits.augment), 5)
    clean = blank(digits, attack_of("none", digits)).model
    lab.fit(clean, digits.train)
    return replace(lab, clean=clean)


def attack_of(name, data, *overrides):
    config = shrink(composed(f"attack={name}", *overrides).attack)
    return build(config, shape=data.shape, num_classes=data.num_classes)


@pytest.fixture(scope="module")
def trained(request, digits, lab):
    """A BadNets model after two epochs: enough for every defence to have something to look at."""
    attack = attack_of("badnets", digits)
    backdoor = blank(digits, attack, network=request.param)
    attack.inject(backdoor.model, digits, lab)
    return backdoor


SHAPES = [(1, 8, 8), (3, 16, 16), (3, 32, 32), (3, 64, 64), (1, 28, 28), (3, 224, 224), (1, 224, 224)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ATTACKS)
def test_trigger(name, shape):
    """uint8 in, uint8 out, same shape; the same every time, however many images at a time; it changes every image, or none
    where it says that the image itself is the trigger; the wanted class exists."""
    config = composed(f"attack={name}", "dataset=cifar10").attack
    first, second = (build(config, shape=shape, num_classes=10).trigger for _ in range(2))
    count = 7 if shape[1] < 100 else 3
    x = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    out = first.stamp(x)
    assert out.shape == x.shape and out.dtype == torch.uint8
    assert out.equal(second.stamp(x)) and x.equal(kept)
    changed = (out != x).flatten(1).any(1)
    assert not changed.any() if name == "none" or first.identity else changed.all()
    second.at_once = 2 * x[0].numel()  # two images at a time: chunks of large images are this small on purpose
    assert (second.stamp(x).int() - out.int()).abs().max() <= (0 if second.dtype == torch.float64 else 1)
    labels = first.relabel(torch.arange(10))
    assert labels.min() >= 0 and labels.max() < 10


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name, digits, lab, tmp_path):
    """Trains, is stored, comes back the same; the exam holds non-target images only; the same seed gives the same model,
    whether the training images lie on the device or are streamed; the clean model it was given stays as it was."""
    clean = copy.deepcopy(lab.clean.state_dict())
    made = []
    for resident in (True, False):
        attack = attack_of(name, digits)
        backdoor = blank(digits, attack)
        made.append((backdoor, attack.inject(backdoor.model, place(digits, torch.device("cpu"), resident), lab)))
    (one, facts), (two, again) = made
    assert facts == again
    for a, b in zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True):
        assert a.equal(b)
    assert facts["poisoned"] > 0 or name == "none"
    assert {"poison_base", "poison_rate"} <= facts.keys()
    built = attack_of(name, digits).trigger.state_dict()
    same = all(built[key].equal(value) for key, value in one.trigger.state_dict().items())
    assert attack_of(name, digits).learned or same, "a trigger that is not `learned` is what the settings make it"
    assert all(value.equal(clean[key]) for key, value in lab.clean.state_dict().items())

    exam = Exam.of(digits.test, one.trigger)
    assert (exam.wanted != exam.triggered.y).all() and len(exam.triggered) < len(exam.clean)
    result = evaluate(one.model, exam)
    assert 0 <= result.asr + result.ra <= 100

    card = {"metrics": vars(result)}
    loaded = store.load_or_make(tmp_path / "it", one, lambda new: card)
    fresh = store.load_or_make(tmp_path / "it", blank(digits, attack_of(name, digits), seed=9), None)
    assert fresh.card["metrics"] == vars(result)
    assert fresh.trigger.stamp(digits.test.x).equal(loaded.trigger.stamp(digits.test.x))
    x = to_unit(digits.test.x[:32])
    assert torch.equal(fresh.model(x), loaded.model(x))


@pytest.fixture(scope="module")
def prepared(digits, lab):
    """An attack when it is about to poison, by name."""

    @cache
    def ready(name):
        attack = attack_of(name, digits)
        attack.prepare(digits, lab)
        return attack

    return ready


@pytest.mark.parametrize("name", ATTACKS)
def test_poisoned_set(name, digits, lab, prepared):
    """Static attacks: as many poisoned images as the rate says, of the right classes, relabelled; covers keep their labels;
    all others are untouched."""
    attack = prepared(name)
    if not isinstance(attack, PoisonAttack):
        pytest.skip("poisons batches, not a set")
    train, trigger = digits.train, attack.trigger
    poisoned, index, cover = attack.poison(train, np.random.default_rng(lab.seed), lab.seed)
    base = len(train) if attack.base == "train" else int((train.y == trigger.target).sum())
    assert len(index) == int(attack.poison_rate * base + 1e-9) == len(index.unique())
    assert len(cover) == int(attack.cover_rate * len(train) + 1e-9)
    assert len(torch.cat([index, cover]).unique()) == len(index) + len(cover)
    if attack.victims != "all":
        assert ((train.y[index] == trigger.target) == (attack.victims == "target")).all()
    assert poisoned.y[index].equal(trigger.relabel(train.y[index]))
    for part, what, under in (
        (index, "poison", attack.canvas(train.x[index])),
        (cover, "cover", train.x[cover]),
    ):
        assert poisoned.x[part].equal(trigger.stamp(under, *trigger.draw(len(part), stream(lab.seed, what))))
    assert poisoned.y[cover].equal(train.y[cover])
    rest = torch.ones(len(train), dtype=torch.bool)
    rest[torch.cat([index, cover])] = False
    assert poisoned.x[rest].equal(train.x[rest]) and poisoned.y[rest].equal(train.y[rest])


@pytest.mark.parametrize("name", ATTACKS)
def test_mix(name, digits, lab, prepared):
    """Training images without repetition, the same for the same seed; static attacks: a sample of the set trained on."""
    attack, size = prepared(name), 300
    mix, again = (attack.mix(digits.train, size, lab.seed) for _ in range(2))
    assert mix.x.equal(again.x) and mix.y.equal(again.y) and len(mix) == size

    def rows(part):
        return [(image.numpy().tobytes(), int(y)) for image, y in zip(part.x, part.y, strict=True)]

    found, before = rows(mix), set(rows(digits.train))
    untouched = [row for row in found if row in before]  # two images may look the same once a trigger is on them
    assert len(set(untouched)) == len(untouched)
    share = attack.poison_rate
    if isinstance(attack, PoisonAttack):
        whole, *touched = attack.poison(digits.train, np.random.default_rng(lab.seed), lab.seed)
        assert set(found) <= set(rows(whole))
        share = sum(map(len, touched)) / len(whole)
    poisoned = size - len(untouched)
    assert abs(poisoned - share * size) < 3 * (share * size) ** 0.5 + 1
    for bad in (0, len(digits.train) + 1):
        with pytest.raises(UserError, match=r"clean\.mix"):
            attack.mix(digits.train, bad, lab.seed)


@pytest.mark.parametrize(
    ("name", "trained"),
    [pytest.param(name, FIRST, id=name) for name in DEFENSES]
    + [pytest.param(name, SECOND, id=f"{name}-preactresnet18") for name in PRUNERS],
    indirect=["trained"],
    scope="module",
)
def test_defense(name, digits, trained):
    """Leaves the model alone; the same seed gives the same models; pruners prune the most suspicious first, ever more."""
    config = shrink(composed(f"defense={name}"))
    model, seen = trained.model, []
    for _ in range(2):
        defense = build(config.defense)
        data, select = digits.defender(100, 100, 7, defense.needs)
        if defense.needs == "poisoned":
            data = replace(data, poisoned=attack_of("badnets", digits).mix(digits.train, 100, 0))
        elif defense.needs == "trigger":
            data = replace(data, trigger=trained.trigger)
        assert isinstance(data, Defender) and len(data.clean) == (0 if defense.needs == "nothing" else 100)
        before = copy.deepcopy(model.state_dict())
        repaired = defense.repair(model, data)
        x = to_unit(select.x)
        rows = []
        for candidate in repaired.candidates:
            with torch.no_grad():
                rows.append((candidate.at, candidate.pruned, candidate.fixed, candidate.mask, candidate.model(x)))
            assert all(weight.requires_grad for weight in candidate.model.parameters()), "nothing is left frozen"
        for key, value in model.state_dict().items():
            assert value.equal(before[key]), f"{name} changed {key} of the model it was given"
        seen.append((rows, repaired.scores))
    (rows, scores), (again, _) = seen
    assert len(rows) == len(again)
    assert all(a[4].equal(b[4]) for a, b in zip(rows, again, strict=True))
    assert sum(fixed for _, _, fixed, _, _ in rows) == 1
    if scores is None:
        return
    with torch.no_grad():
        assert rows[0][1] == 0 and rows[0][4].equal(model(x)), "pruning nothing must change nothing"
    for small, large in pairwise(rows):
        assert small[1] < large[1]
        assert all((large[3][layer] | ~mask).all() for layer, mask in small[3].items()), "masks must grow"
    levels = torch.cat(list(defense.rule.levels(scores).values()))
    levels = levels[levels.isfinite()].unique()
    numbers = [defense.rule.number(float(levels[len(levels) * part // 4])) for part in (1, 2, 3)]
    masks = [mask for _, _, _, mask, _ in rows] + [defense.rule.mask(scores, at) for at in numbers]
    split = [(scores[layer][p], scores[layer][~p]) for m in masks for layer, p in m.items() if p.any() and not p.all()]
    assert split and all(pruned.min() >= kept.max() for pruned, kept in split), "the most suspicious go first"


def test_defender_and_train_and_test_are_apart():
    """No image is in two parts, and what tunes a defence is not what chooses its operating point."""
    digits = build(composed().dataset)

    def rows(part: ImageSet) -> set[bytes]:
        return {image.numpy().tobytes() for image in part.x}

    data, select = digits.defender(100, 100, 0, "clean")
    parts = [rows(digits.train), rows(digits.test), rows(data.clean), rows(select)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 1797
