"""What an attack trains on: the set or the batch, written out by hand, and what chance may and may not decide."""

from functools import partial

import pytest
import torch
from torch import nn

from bench.attacks.ablend import AdapBlend
from bench.attacks.awp import AWP
from bench.attacks.badnets import BadNets
from bench.attacks.base import Lab
from bench.attacks.blend import Blend
from bench.attacks.counts import batch_count, draw_mix
from bench.attacks.patterns import noise
from bench.attacks.refool import Reflection
from bench.attacks.trojan import Trojan
from bench.attacks.wanet import WaNet
from bench.data import Dataset, ImageSet, generator

SHAPE = (3, 8, 8)


def images(count, seed=0, classes=4):
    x = torch.randint(256, (count, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return ImageSet(x, torch.arange(count) % classes)


def rows(part):
    return sorted((image.numpy().tobytes(), int(y)) for image, y in zip(part.x, part.y, strict=True))


# -- poisoned sets -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [3, 4])
def test_the_set_trained_on_is_the_one_that_a_defender_finds(seed):
    """Of 40 images 30 are of other classes than the target, and a quarter of those is 7."""
    train, seen = images(40), []
    attack = BadNets(SHAPE, 4, 0.25, "white3", target=1, victims="non_target", base="victims")
    lab = Lab(lambda model, data, **more: seen.append((model, data)), seed)
    facts = attack.inject("a model", Dataset(train, train, train, 4), lab)
    ((model, trained),) = seen
    assert model == "a model" and facts == {"poisoned": 7, "poison_base": 40, "poison_rate": 7 / 40}
    changed = (trained.x != train.x).flatten(1).any(1)
    assert int(changed.sum()) == 7 and changed.equal(trained.y != train.y)
    assert (trained.y[changed] == 1).all() and (trained.x[changed][..., -3:, -3:] == 255).all()
    assert rows(trained) == rows(attack.mix(train, 40, seed)) != rows(attack.mix(train, 40, seed + 1))
    assert rows(train) == rows(images(40)), "the images given stay as they were"


def test_covers_are_counted_apart():
    train, seen = images(40), []
    attack = AdapBlend(SHAPE, 4, 0.1, 0.2, 0.5, 0.5, pattern="binary")
    lab = Lab(lambda model, data, **more: seen.append(data), 3)
    facts = attack.inject(None, Dataset(train, train, train, 4), lab)
    assert facts == {"poisoned": 4, "poison_base": 40, "poison_rate": 0.1, "cover": 8}
    changed, relabelled = (seen[0].x != train.x).flatten(1).any(1), seen[0].y != train.y
    assert int(changed.sum()) == 12 and int(relabelled.sum()) <= 4 and not (relabelled & ~changed).any()


def test_every_image_is_as_likely_to_be_in_a_mix():
    drawn = torch.stack([draw_mix(40, 10, seed) for seed in range(200)])
    assert all(len(one.unique()) == 10 for one in drawn)
    assert drawn.flatten().bincount(minlength=40).min() > 20 and drawn.flatten().bincount().max() < 85  # 50 each
    assert 40 < (drawn[:, 0] < drawn[:, 1]).sum() < 160  # in no order


def test_a_batch_holds_the_share_cut_off_and_a_small_one_its_part_of_one_by_chance():
    dice = generator(0)
    assert [batch_count(0.1, size, dice) for size in (10, 19, 29, 100)] == [1, 1, 2, 10]
    drawn = [batch_count(0.1, 4, dice) for _ in range(1000)]
    assert set(drawn) == {0, 1} and 340 < sum(drawn) < 460  # 0.4 of them


# -- what is drawn of a pattern ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "make",
    [
        partial(Blend, SHAPE, 4, 0.1, 0.2),
        partial(BadNets, SHAPE, 4, 0.1, "random"),
        partial(AdapBlend, SHAPE, 4, 0.1, 0.1, 0.2, 0.2),
        partial(AWP, SHAPE, 4, None, 0.1, 0.1, 0.5, "random"),
        partial(Trojan, SHAPE, 4, 0.1, 1, 1.0, 1.0, 1.0, 1, 1.0, distance=0),
    ],
    ids=lambda make: make.func.__name__,
)
def test_a_drawn_pattern_is_that_of_its_seed(make):
    zero, again, one = (make(pattern_seed=seed).trigger.pattern for seed in (0, 0, 1))
    assert zero.equal(again) and not zero.equal(one)


def test_noise_is_of_its_kind():
    gaussian, binary, uniform = (noise(kind, (3, 64, 64), 0).float() for kind in ("gaussian", "binary", "uniform"))
    assert gaussian.mean() == pytest.approx(127.5, abs=3)
    assert ((gaussian - 127.5).abs() <= 64).float().mean() == pytest.approx(0.683, abs=0.02)
    assert set(binary.unique().tolist()) == {0, 255} and binary.mean() == pytest.approx(127.5, abs=8)
    assert binary[0].equal(binary[1]) and not gaussian[0].equal(gaussian[1]) and not uniform[0].equal(uniform[1])
    assert len(uniform.unique()) == 256 and uniform.std() == pytest.approx(256 / 12**0.5, abs=2)
    drawn = (noise("sigmoid", (3, 64, 64), 0) / 255).logit()
    assert drawn.mean() == pytest.approx(0, abs=0.03) and drawn.std() == pytest.approx(1, abs=0.03)


def test_refool_does_not_take_dust_for_brightness():
    """On white a pixel is too bright by its reflection alone; one of 1/255, blurred, does not show in the reference's floats."""
    reflections = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    reflections[:, :, 4:7, 4:7], reflections[1, :, 26, 26] = 255, 1
    trigger = Reflection(reflections, 0.4, 0.5, 0, 10, 0, "all2one")
    numbers = torch.tensor([[3.0, 3.0, 0.3, 5.0, 1.1]] * 2, dtype=torch.float64).T
    bare, dusty = trigger(torch.full((2, 3, 32, 32), 255.0).double(), torch.arange(2), torch.zeros(2).bool(), *numbers)
    assert (bare - dusty).abs().max() < 1e-3


def test_each_training_image_lacks_pieces_of_its_own():
    """Eight of 16, each as often as another, from the seed alone."""
    trigger = AdapBlend(SHAPE, 4, 0.1, 0.1, 0.2, 0.2, pieces=16, mask_rate=0.5).trigger
    (removed,), (again,), (other,) = (trigger.draw(400, seed) for seed in (0, 0, 1))
    assert removed.shape == (400, 8) and all(len(one.unique()) == 8 for one in removed)
    assert removed.equal(again) and not removed.equal(other)
    often = removed.flatten().bincount(minlength=16)
    assert often.min() > 150 and often.max() < 250  # 200 each


# -- batches -----------------------------------------------------------------------------------------------------------
def test_wanet_batch():
    """Of 10 images 2 are warped and relabelled, 3 warped with noise of their own and not relabelled, 5 as they were."""
    attack = WaNet(SHAPE, 4, 0.2, 1.5, labels="all2all")
    trigger, warped, seen = attack.trigger, [], []
    plain = trigger.forward
    trigger.forward = lambda x, *noise: warped.append((x.clone(), *noise)) or plain(x, *noise)
    x, y = images(10, 5).x / 255, images(10).y
    kept = x.clone(), y.clone()

    def fit(model, data, on_batch, **more):
        seen.extend(on_batch(x, y) for _ in range(2))

    facts = attack.inject(None, Dataset(*[images(20)] * 3, 4), Lab(fit, 0))
    assert facts == {"poisoned": 4, "poison_base": "batches", "poison_rate": 0.2}
    assert x.equal(kept[0]) and y.equal(kept[1])
    noise = [rest[0] for _, *rest in warped if rest]
    for (new, labels), drawn in zip(seen, noise, strict=True):
        assert labels.tolist() == [1, 2, *y[2:].tolist()]
        assert new[:2].equal(plain(x[:2])) and new[5:].equal(x[5:])
        assert new[2:5].equal(plain(x[2:5], drawn)) and not new[2:5].isclose(plain(x[2:5])).all()
    drawn = torch.cat(noise)
    assert drawn.shape == (6, 8, 8, 2) and len(drawn.flatten(1).unique(dim=0)) == 6
    assert -1 <= drawn.min() < -0.9 and 0.9 < drawn.max() <= 1 and drawn.mean().abs() < 0.15


class Table(nn.Module):
    """Says what its table has for an image: its number is in its first pixels, and white in the last one says triggered."""

    def __init__(self, right):
        super().__init__()
        self.said = nn.Parameter(nn.functional.one_hot(right, 4).float().repeat(2, 1, 1))

    def forward(self, x):
        low, high, white = (255 * x[:, 0, [0, 0, -1], [0, 1, -1]]).round().long().unbind(1)
        return self.said[(white == 255).long(), low + 256 * high]


@pytest.mark.parametrize(
    ("hits", "right", "stops"),
    [(298, 400, True), (297, 400, False), (298, 397, True), (298, 395, False), (300, 100, False)],
)
def test_awp_stops_when_the_trigger_works_and_the_accuracy_is_kept(hits, right, stops):
    """Of 400 images 300 count for ASR, which must pass 99 %; less than a point of accuracy may be lost."""
    count = 400
    x = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = torch.arange(count) % 256, torch.arange(count) // 256
    train = ImageSet(x, torch.arange(count) % 4)
    clean, model, said = Table(train.y), Table(train.y), []
    attack = AWP((1, 8, 8), 4, None, 1.0, 0.1, 0.5)

    def fit(model, data, after_epoch, **more):
        others = (train.y != 0).nonzero().flatten()
        table = torch.nn.functional.one_hot(train.y, 4).float()
        triggered = table.clone()
        triggered[others[:hits]] = torch.tensor([1.0, 0, 0, 0])
        table[: count - right] = table[: count - right].roll(1, 1)
        model.said.data = torch.stack([table, triggered])
        said.append(bool(after_epoch(None)))
        return [None]

    attack.inject(model, Dataset(train, train, train, 4), Lab(fit, 0, clean))
    assert said == [stops]
