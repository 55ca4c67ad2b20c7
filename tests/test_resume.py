"""A training that is interrupted anywhere ends as the one that was not, to the last bit."""

import copy
import signal
from functools import cache, partial

import pytest
import torch
from cells import build, choices, composed, shrink
from torch import nn

from bench import resume
from bench.attacks.base import Lab
from bench.data import Dataset
from bench.models import normalised
from bench.plan import Plan
from bench.training import fit

OWN = (
    "wanet",
    "bpp",
    "inputaware",
    "lira",
    "ssba",
    "dfst",
    "awp",
)  # with a training of their own; the others' is `none`'s


class Killed(BaseException):
    """Nothing in the bench catches it."""


@pytest.fixture(scope="module")
def few():
    """96 training images, so that an epoch has three steps."""
    data = build(composed().dataset)
    some = torch.arange(96)
    return Dataset(data.train[some], data.heldout[some], data.test[some], 10, data.mean, data.std, data.augment)


@cache
def settings(name):
    return shrink(composed(f"attack={name}").attack)


def inject(name, data, keep):
    """(what the attack says, weights of the model and of the trigger)"""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(1),
                        nn.Flatten(), nn.Linear(4, 10))  # fmt: skip
    model = normalised(net, data.mean, data.std)
    config = settings(name)
    for plan in (node for node in config.values() if hasattr(node, "keys") and "batch_size" in node):
        plan.batch_size = 32
    if "poison_rate" in config:
        config.poison_rate = 1.0 if name == "awp" else 0.2
    attack = build(config, shape=data.shape, num_classes=10)
    plan = Plan(epochs=2, batch_size=32, lr=0.05, schedule="cosine", weight_decay=1e-3)
    learn = partial(fit, plan=plan, seed=3, augment=data.augment, keep=keep)
    facts = attack.inject(model, data, Lab(learn, 5, copy.deepcopy(model).eval()))
    return facts, model.state_dict() | {f"trigger {k}": v for k, v in attack.trigger.state_dict().items()}


def same(one, other):
    assert one[0] == other[0]
    for name, weight in one[1].items():
        assert weight.equal(other[1][name]), name


@pytest.mark.parametrize("name", ["none", *OWN])
def test_it_goes_on_as_if_nothing_had_been(name, few, tmp_path, monkeypatch):
    """Killed as soon as a state is kept: after each step in turn, until it gets through."""
    never = inject(name, few, None)
    assert OWN and set(OWN) < set(choices("attack"))
    save = resume.Part.save

    def die(part, place):
        save(part, place)
        raise Killed

    monkeypatch.setattr(resume.Part, "save", die)
    kills = 0
    while True:
        keep = resume.Keep(tmp_path, 0, torch.device("cpu"))
        try:
            same(never, inject(name, few, keep))
            break
        except Killed:
            kills += 1
            assert kills < 30
            torch.rand(7)  # what came between leaves no trace
    assert kills >= 6 and keep.interruptions and keep.exact, "it was kept after each of its steps"


def test_damage_is_noticed_and_an_older_state_or_none_is_used(few, tmp_path, caplog):
    keep = resume.Keep(tmp_path, 0, torch.device("cpu"))
    whole = inject("wanet", few, keep)
    (kept,) = tmp_path.iterdir()
    content = bytearray(kept.read_bytes())
    content[-3] ^= 1
    kept.write_bytes(content)
    same(whole, inject("wanet", few, resume.Keep(tmp_path, None, torch.device("cpu"))))
    assert "is damaged" in caplog.text and len(list(tmp_path.glob("*.damaged-*"))) == 1


@pytest.mark.parametrize("blow", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_is_obeyed_at_the_end_of_the_step_with_the_state_kept(blow, few, tmp_path):
    class Told(BaseException):
        pass

    def obey(number, frame):
        raise Told

    steps, before = [], signal.signal(blow, obey)

    def on_batch(x, y):
        steps.append(len(list(tmp_path.iterdir())))
        if len(steps) == 2:
            signal.raise_signal(blow)
        return x, y

    try:
        keep = resume.Keep(tmp_path, None, torch.device("cpu"))
        model = nn.Sequential(nn.Flatten(), nn.Linear(len(few.train.x[0].flatten()), 10))
        with pytest.raises(Told):
            fit(model, few.train, Plan(epochs=3, batch_size=32), seed=0, on_batch=on_batch, keep=keep)
        assert len(steps) == 2 and len(list(tmp_path.iterdir())) == 1
        assert signal.getsignal(blow) is obey
    finally:
        signal.signal(blow, before)


def test_no_signal_is_lost_where_no_step_is_left(few, tmp_path):
    with pytest.raises(KeyboardInterrupt), resume.Part(resume.Keep(tmp_path, None, torch.device("cpu"))):
        signal.raise_signal(signal.SIGINT)
        assert not list(tmp_path.iterdir())
