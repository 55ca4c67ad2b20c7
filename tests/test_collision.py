"""FC: the images are moved as the formula says, and the exam is about the chosen ones."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from cells import build, composed
from torch import nn

from bench.attacks.base import Lab
from bench.attacks.features import Features, collide
from bench.data import Dataset, ImageSet
from bench.errors import UserError
from bench.training import fit


class Flat(nn.Module):
    """Two features that are linear in the pixels, and logits."""

    def __init__(self):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.register_buffer("mix", torch.randn(3 * 8 * 8, 2, generator=rng) / 20)
        self.linear = nn.Linear(2, 4)

    def forward(self, x):
        return self.linear(x.flatten(1) @ self.mix)


def images(count, seed=0):
    x = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return ImageSet(x, torch.arange(count) % 4)


def test_features_are_what_the_last_layer_is_given():
    model, x = Flat(), images(5).x.float() / 255
    assert Features(model)(x).equal(x.flatten(1) @ model.mix)
    assert not model.linear._forward_pre_hooks, "the model it was given must stay as it was"
    with pytest.raises(UserError, match="last Linear"):
        Features(nn.Flatten())


def test_one_iteration_is_a_gradient_step_then_the_pull_then_the_clip():
    """By hand on linear features: slope 2 W (W'x - W'goal)."""
    model, beta, lr = Flat(), 0.7, 0.5
    start, goal = (images(6, seed).x.float() / 255 for seed in (1, 2))
    moved, _ = collide(Features(model), start, goal, beta, lr, 1)
    slope = 2 * ((start - goal).flatten(1) @ model.mix) @ model.mix.T
    wanted = ((start.flatten(1) - lr * slope + lr * beta * start.flatten(1)) / (1 + lr * beta)).clamp(0, 1)
    assert torch.allclose(moved.flatten(1), wanted, atol=1e-6) and not moved.allclose(start, atol=1e-3)


def test_a_step_too_far_is_not_taken_and_the_next_is_a_fifth():
    """Each image for itself, by hand: it stays where it is until a fifth of a fifth of ... a step lowers the objective."""
    model, far = Flat(), 60.0
    start, goal = (images(6, seed).x.float() / 255 for seed in (1, 2))
    slope = (2 * ((start - goal).flatten(1) @ model.mix) @ model.mix.T).view_as(start)

    def distance(x):
        return ((x - goal).flatten(1) @ model.mix).square().sum(1)

    first = torch.full((6,), -1)
    wanted = start.clone()
    for tries in range(6):
        moved = (start - far / 5**tries * slope).clamp(0, 1)
        new = (first < 0) & (distance(moved) <= distance(start))
        first[new], wanted[new] = tries, moved[new]
    assert first.min() > 0 and first.max() > first.min()  # else nothing would be told apart
    for image in range(6):
        one = start[image : image + 1], goal[image : image + 1], 0.0, far
        assert collide(Features(model), *one, int(first[image]))[0].equal(one[0])
    together, _ = collide(Features(model), start, goal, 0.0, far, int(first.min()) + 1)
    early = first == first.min()
    assert torch.allclose(together[early], wanted[early], atol=1e-5) and together[~early].equal(start[~early])


def test_the_least_sure_images_of_the_source_class_are_targeted_and_examined():
    """Right and least sure first; poisons are of the base class, keep their labels, and come back with the trigger."""
    data, model = Dataset(images(64), images(8), images(40, 3), 4), Flat()
    overrides = ("targets=3", "source_class=2", "target=1", "poison_rate=0.1", "iterations=5", "training=scratch")
    config = composed("attack=fc", "~preset@attack", *(f"attack.{o}" for o in overrides)).attack
    plan = replace(build(composed().train), epochs=1)
    attack = build(config, shape=data.shape, num_classes=4)
    lab = Lab(partial(fit, plan=plan, seed=1), 3, model.eval())
    facts = attack.inject(Flat(), data, lab)
    with torch.no_grad():
        sure = model(data.test.x.float() / 255).softmax(1)
    of = (data.test.y == 2).nonzero().flatten().tolist()
    order = sorted(of, key=lambda i: (int(sure[i].argmax()) != 2, float(sure[i, 2])))
    assert attack.trigger.chosen(data.test).nonzero().flatten().tolist() == sorted(order[:3])
    assert attack.trigger.stamp(data.test.x).equal(data.test.x) and facts["targeted"] == 3 and facts["poisoned"] == 6
    fresh = build(config, shape=data.shape, num_classes=4)
    fresh.trigger.load_state_dict(attack.trigger.state_dict())
    assert fresh.trigger.chosen(data.test).equal(attack.trigger.chosen(data.test))
    before, after = fresh.mix(data.train, 64, 3), attack.mix(data.train, 64, 3)
    assert before.x.equal(after.x) and sorted(before.y.tolist()) == sorted(data.train.y.tolist())


def test_transfer_changes_the_last_layer_alone():
    data, model = Dataset(images(64), images(8), images(40, 3), 4), Flat().eval()
    config = composed("attack=fc", "~preset@attack", "attack.training=transfer", "attack.targets=1", "attack.poison_rate=0.1",
                      "attack.source_class=2", "attack.iterations=2", "attack.tune.lr=0.1").attack  # fmt: skip
    attack, victim = build(config, shape=data.shape, num_classes=4), Flat()
    victim.mix.zero_()  # overwritten by the clean model's
    attack.inject(victim, data, Lab(partial(fit, plan=None, seed=1), 3, model))
    assert victim.mix.equal(model.mix) and not victim.linear.weight.equal(model.linear.weight)


def small(**settings):
    words = {"targets": 3, "source_class": 2, "target": 1, "poison_rate": 0.1, "iterations": 1} | settings
    config = composed("attack=fc", "~preset@attack", *(f"attack.{key}={value}" for key, value in words.items())).attack
    return build(config, shape=(3, 8, 8), num_classes=4)


def test_a_base_starts_with_a_watermark_of_its_target():
    """Where no step is taken, a poison is what it starts from: mostly its base, the targets by turns shining through."""
    data, attack = Dataset(images(64), images(8), images(40, 3), 4), small(lr=0.0, watermark=0.25)
    attack.prepare(data, Lab(None, 3, Flat().eval()))
    targets = data.test.x[attack.trigger.images].float()
    poisoned, index, _ = attack.poison(data.train, np.random.default_rng(3))
    assert len(index) == 6 and (data.train.y[index] == 1).all() and poisoned.y.equal(data.train.y)
    for turn, place in enumerate(index.tolist()):
        wanted = 0.25 * targets[turn % 3] + 0.75 * data.train.x[place].float()
        assert (poisoned.x[place].float() - wanted).abs().max() <= 0.51


@pytest.mark.parametrize("training", ["transfer", "end_to_end", "scratch"])
def test_where_the_victims_training_begins(training):
    data, clean, victim, seen = Dataset(images(64), images(8), images(40, 3), 4), Flat().eval(), Flat(), []
    attack = small(training=training)
    own = victim.linear.weight.detach().clone()

    def fit(model, data, plan="the bench's", moving_statistics=True, parameters=None):
        trained = None if parameters is None else list(parameters)
        seen.append((model.linear.weight.detach().clone(), plan, moving_statistics, trained))

    attack.inject(victim, data, Lab(fit, 3, clean))
    ((weight, plan, moving, trained),) = seen
    assert weight.equal(own if training == "scratch" else clean.linear.weight) and not own.equal(clean.linear.weight)
    assert plan == "the bench's" if training == "scratch" else plan is attack.tune
    assert moving == (training != "transfer")
    assert (trained is None) == (training != "transfer")
    assert trained is None or [id(w) for w in trained] == [id(w) for w in victim.linear.parameters()]
