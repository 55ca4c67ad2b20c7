"""Attacks that need a clean model: their perturbations and patterns against a hand-written step, on networks known through."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.attacks.adapkway import AdapKWay, dots
from bench.attacks.base import Lab
from bench.attacks.cl import CL, pgd
from bench.attacks.lf import LF, deepfool, smooth, stretched
from bench.attacks.trojan import Trojan, disc, excite
from bench.data import Dataset, ImageSet
from bench.errors import UserError

SHAPE = (1, 4, 4)
SETTINGS = {"eps": 8, "step": 1.5, "steps": 100}
DESCENT = {"neurons": 2, "goal": 100, "bound": 76.5, "step": 25.5, "steps": 50, "tolerance": 1e-3}
SEARCH = {"strength": 51, "sigma": 2, "images": 40, "passes": 5, "fooled": 0.2, "deepfool_steps": 50, "overshoot": 0.02}


class Flat(nn.Module):
    """One linear layer over the pixels: its slopes are its weights."""

    def __init__(self, classes=3, pixels=16, seed=0):
        super().__init__()
        self.linear = nn.Linear(pixels, classes)
        rng = torch.Generator().manual_seed(seed)
        for part in self.parameters():
            part.data = torch.randn(part.shape, generator=rng)

    def forward(self, x):
        return self.linear(x.flatten(1))


def images(count, shape=SHAPE, seed=0):
    return torch.randint(60, 200, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def data(shape=(1, 8, 8), count=90):
    part = ImageSet(images(count, shape), torch.arange(count) % 3)
    return Dataset(part, part, part, 3, (0.5,), (1.0,))


# -- CL --------------------------------------------------------------------------------------------------------------------
def slope(model, x, y):
    """Of the cross-entropy of one linear layer, by its formula: (softmax - one-hot) W."""
    off = model(x / 255).softmax(1) - nn.functional.one_hot(y, 3)
    return (off @ model.linear.weight).view_as(x)


def test_pgd_linf_is_signed_ascent_in_a_box():
    model, x, y = Flat(), images(5), torch.tensor([0, 1, 2, 0, 1])
    moved = x.float()
    for _ in range(4):
        moved = x + (moved + 1.5 * slope(model, moved, y).sign() - x).clamp(-4, 4)
    ours = pgd(model, x, y, torch.zeros(x.shape), "linf", 4.0, 1.5, 4)
    assert ours.equal((x + (moved - x).trunc()).to(torch.uint8))
    assert (ours.int() - x.int()).abs().max() == 4


def test_pgd_l2_moves_along_the_slope_and_stays_in_the_ball():
    model, x, y = Flat(), images(5), torch.tensor([0, 1, 2, 0, 1])
    way = slope(model, x.float(), y)
    way = way / way.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    one = pgd(model, x, y, torch.zeros(x.shape), "l2", 90.0, 60.0, 1)
    assert one.equal((x + (60 * way).trunc()).to(torch.uint8))
    many = pgd(model, x, y, torch.zeros(x.shape), "l2", 30.0, 20.0, 20).float() - x
    lengths = many.flatten(1).norm(dim=1)
    assert (lengths <= 30).all() and (lengths > 25).all()


def test_pgd_saturates():
    x = torch.tensor([0, 255], dtype=torch.uint8).repeat(8).view(1, *SHAPE)
    out = pgd(Flat(), x, torch.tensor([0]), torch.zeros(x.shape), "linf", 8.0, 8.0, 3)
    assert ((out.int() - x.int()).abs() <= 8).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_cl_perturbs_the_images_it_poisons(norm):
    """Whatever the batch; the loss goes up; `random_start` is drawn from the seed; the labels stay."""
    train = data().train
    lab = Lab(None, 3, Flat(pixels=64))

    def made(**more):
        attack = CL((1, 8, 8), 3, 0.5, norm=norm, base="victims", target=1, **SETTINGS | more)
        attack.prepare(data(), lab)
        return attack, *attack.poison(train, np.random.default_rng(3), 3)

    attack, poisoned, index, _ = made()
    assert (train.y[index] == 1).all() and poisoned.y.equal(train.y) and len(index) == 15
    crafted = attack.trigger.crafted
    corners = attack.trigger.marks != 0
    assert poisoned.x[index][:, ~corners].equal(crafted[:, ~corners])
    off = crafted.float() - train.x[index]
    assert 0 < (off.abs().amax() if norm == "linf" else off.flatten(1).norm(dim=1).amax()) <= 8
    losses = [nn.functional.cross_entropy(lab.clean(x / 255), train.y[index]) for x in (train.x[index], crafted)]
    assert losses[1] > losses[0]
    assert made(batch_size=4)[0].trigger.crafted.equal(crafted)
    noisy = made(random_start=True, steps=1)[0].trigger.crafted
    assert noisy.equal(made(random_start=True, steps=1)[0].trigger.crafted)
    assert not noisy.equal(made(steps=1)[0].trigger.crafted)


def test_cl_marks_go_up_and_down_by_their_amplitude():
    attack = CL((1, 8, 8), 3, 0.3, amplitude=32, test_amplitude=100, pattern="checker1", **SETTINGS)
    x = torch.full((1, 1, 8, 8), 50, dtype=torch.uint8)
    corner = attack.trigger.stamp(x, *attack.trigger.draw(1, 0))[0, 0, -3:, -3:]
    assert corner.tolist() == [[18, 18, 82], [18, 82, 18], [82, 18, 82]]
    assert attack.trigger.stamp(x)[0, 0, -3:, -3:].tolist() == [[0, 0, 150], [0, 150, 0], [150, 0, 150]]


def test_cl_says_when_the_class_is_too_small():
    attack = CL((1, 8, 8), 3, 0.5, base="train", **SETTINGS)
    with pytest.raises(
        UserError, match=r"attack\.poison_rate=0\.5 asks for 45 images, but attack\.target=0 leaves only 30"
    ):
        attack.prepare(data(), Lab(None, 0, Flat(pixels=64)))


# -- Trojan ----------------------------------------------------------------------------------------------------------------
class Features(nn.Module):
    """Two features, the means of the left and the right half in tens, and one that is of no weight."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.head.weight.data = torch.tensor([[1.0, -2.0, 0.1], [-1.0, 2.0, 0.1]])

    def forward(self, x):
        self.seen = torch.stack([10 * x[..., :4].mean((1, 2, 3)), 10 * x[..., 4:].mean((1, 2, 3)), x.sum((1, 2, 3))], 1)
        return self.head(self.seen)


def test_trojan_excites_the_neurons_with_the_largest_weights():
    """One neuron: the right half's. Its pixels go up until the bound, the others (of zero slope) and the black ones stay."""
    start = torch.full((1, 8, 8), 100.0)
    start[:, :2] = 0
    out = excite(Features(), start, 1, 100.0, 76.5, 25.5, 50, 1e-3)
    assert (out[:, 2:, 4:] == 176).all() and out[:, 2:, :4].equal(start[:, 2:, :4]) and (out[:, :2] == 0).all()
    one_step = excite(Features(), start, 2, 100.0, 76.5, 25.5, 1, 1e-3)
    assert (one_step[:, 2:] == 125).all()


def test_trojan_stops_at_its_goal():
    """100 of 255 on six of eight rows are a feature of 2.94: there the descent ends, and it turns round beyond it."""
    start = torch.full((1, 8, 8), 100.0)
    start[:, :2] = 0
    reached = 10 * 100 / 255 * 6 / 8
    assert excite(Features(), start, 2, reached, 76.5, 25.5, 50, 1e-3).equal(start)
    assert (excite(Features(), start, 2, reached - 1, 76.5, 25.5, 1, 1e-3)[:, 2:] == 74).all()


def test_trojan_is_trained_with_what_excites_the_clean_model():
    """From the patch drawn, which lies in the right half: its pixels go up until the bound, and end as whole numbers."""
    settings = DESCENT | {"neurons": 1, "goal": 1000.0}
    attack = Trojan((1, 8, 8), 2, 0.1, pattern="random", distance=0, **settings)
    start = attack.trigger.pattern.clone()
    attack.prepare(data(), Lab(None, 0, Features()))
    patch = start > 0
    assert patch[0].nonzero()[:, 1].min() >= 4 and patch.sum() == 9
    assert attack.trigger.pattern.equal(torch.where(patch, (start + 76.5).clamp(max=255).floor(), 0))


def test_trojan_leaves_the_clean_model_as_it_was():
    """No hook stays behind, and without a linear layer the error says what to do."""
    model, start = Features(), torch.full((1, 8, 8), 100.0)
    excite(model, start, 2, 100.0, 76.5, 25.5, 3, 1e-3)
    assert not model.head._forward_pre_hooks
    with pytest.raises(UserError, match=r"attack\.optimise=false"):
        excite(nn.Conv2d(1, 1, 3), start, 2, 100.0, 76.5, 25.5, 3, 1e-3)


def test_trojan_as_a_fixed_patch_needs_no_clean_model():
    attack = Trojan((3, 32, 32), 10, 0.1, pattern="random", optimise=False, **DESCENT)
    before = attack.trigger.pattern.clone()
    attack.prepare(data(), Lab(None, 0))
    assert not attack.needs_clean and attack.trigger.pattern.equal(before)
    rows, cols = before[0].nonzero().unbind(1)
    assert rows.unique().tolist() == cols.unique().tolist() == [25, 26, 27]


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 32), (3, 32, 48), (3, 64, 64)])
def test_the_disc_is_as_large_as_an_apple(shape):
    inside = disc(shape, 4, 0)[0] > 0
    assert abs(inside.float().mean() * max(shape[1:]) / min(shape[1:]) - 0.11) < 0.02
    gap = 4 * max(1, min(shape[1:]) // 32)
    assert not inside[-gap:].any() and not inside[:, -gap:].any() and inside[-gap - 1].any()
    with pytest.raises(UserError, match=r"attack\.distance=40"):
        disc(shape, 40, 0)


# -- LF --------------------------------------------------------------------------------------------------------------------
def test_deepfool_of_a_linear_model_is_one_projection():
    """The least change over the plane between the label and the target, two per cent more; images of the target: none."""
    model = Flat(classes=2)
    x = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(1))
    weight, bias = (part[1] - part[0] for part in (model.linear.weight, model.linear.bias))
    gaps = x.flatten(1) @ weight + bias
    wanted = 1.02 * sum(-gap * weight / weight.square().sum() for gap in gaps if gap < 0)
    assert 0 < (gaps < 0).sum() < 6
    torch.testing.assert_close(deepfool(model, x, 1, 50, 0.02).flatten(), wanted)


def test_deepfool_leaves_out_what_resists():
    """An image whose first pixel is negative has a class that is always above the target: its changes do not count."""

    class Stubborn(Flat):
        def forward(self, x):
            label, target, third = super().forward(x).unbind(1)
            above = target + (-label).exp()
            return torch.stack([label, target, torch.where(x[:, 0, 0, 0].detach() < 0, above, third - 99)], 1)

    model = Stubborn()
    model.linear.weight.data[:, 0] = 0
    x = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(1))
    x[:, 0, 0, 0] = torch.tensor([-1, 1, -1, 1, 1, 1])
    ours = deepfool(model, x, 1, 8, 0.02)
    assert ours.abs().sum() > 0
    torch.testing.assert_close(ours, deepfool(model, x[x[:, 0, 0, 0] > 0], 1, 8, 0.02))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 20)])
def test_the_filter_is_a_gaussian_that_finds_black_beyond_the_edges(shape):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    line = torch.exp(-((torch.arange(-5, 6) / 2.0) ** 2) / 2)
    kernel = torch.outer(line, line) / line.sum() ** 2
    wanted = nn.functional.conv2d(image[:, None], kernel[None, None], padding=5)[:, 0]
    torch.testing.assert_close(smooth(image, 2.0), wanted)


def test_lf_on_one_image_is_deepfool_filtered_and_stretched():
    model, shape = Flat(pixels=64), (1, 8, 8)
    one = data(shape, count=1)
    x = one.train.x / 255
    target = int(model(x).argmin())
    attack = LF(shape, 3, 0.5, target=target, **SEARCH | {"passes": 1})
    bump = attack.trigger.pattern.clone()
    attack.prepare(one, Lab(None, 0, model))
    v = smooth(smooth(deepfool(model, x, target, 50, 0.02), 2), 2)
    wanted = (v - v.min()) / (v.max() - v.min()) * 51
    torch.testing.assert_close(attack.trigger.pattern, wanted.floor(), rtol=0, atol=1)
    assert not attack.trigger.pattern.equal(bump)


def test_lf_fools_the_clean_model_towards_its_target():
    """A model that sees how much brighter the left half is: the pattern brightens or darkens the half that it should.

    Whole pixel values of 0 to 51; the same from the same seed; another pattern if the images come in another order.
    """

    class Halves(nn.Module):
        def forward(self, x):
            gap = x[..., :4].mean((1, 2, 3)) - x[..., 4:].mean((1, 2, 3)) + 0.05
            return torch.stack([gap, -gap], 1)

    set_, found = data(count=60), {}
    before = Halves()(set_.train.x / 255).argmax(1)
    for name, size in (("one", 40), ("again", 40), ("in order", 1)):
        attack = LF((1, 8, 8), 3, 0.1, target=1, **SEARCH | {"fooled": 1.0}, batch_size=size)
        attack.prepare(set_, Lab(None, 0, Halves()))
        found[name] = attack.trigger.pattern
        after = Halves()(attack.trigger.stamp(set_.train.x) / 255).argmax(1)
        assert (after == 1).sum() > 2 * (before == 1).sum()
    assert found["one"].equal(found["again"]) and not found["one"].equal(found["in order"])
    assert found["one"].min() == 0 and found["one"].max() in (50, 51) and found["one"].frac().eq(0).all()


def test_lf_with_nothing_to_do_keeps_its_bump():
    class Always(Flat):
        def forward(self, x):
            return super().forward(x) * 0 + torch.tensor([1.0, 0.0, 0.0])

    attack = LF((1, 8, 8), 3, 0.1, **SEARCH)
    bump = attack.trigger.pattern.clone()
    attack.prepare(data(), Lab(None, 0, Always(pixels=64)))
    assert attack.trigger.pattern.equal(bump) and bump.max() >= 50 and bump[0, 0, 0] == 0


def test_stretched():
    assert stretched(torch.tensor([-1.0, 0.0, 3.0]), 8).tolist() == [0.0, 2.0, 8.0]
    assert stretched(torch.zeros(3), 8).tolist() == [0.0, 0.0, 0.0]


# -- Adap-K-Way ------------------------------------------------------------------------------------------------------------
def test_kway_one_pixel_in_training_all_at_test():
    places, colours = [[16, 11], [27, 5], [7, 30], [22, 22]], [[92, 0, 24], [88, 112, 110], [0, 32, 46], [11, 49, 95]]
    attack = AdapKWay((3, 32, 32), 10, 0.1, 0.1, places, colours)
    x = torch.full((8, 3, 32, 32), 200, dtype=torch.uint8)
    train, test = attack.trigger.stamp(x, *attack.trigger.draw(8, 0)), attack.trigger.stamp(x)
    assert (train != x).any(1).sum((1, 2)).tolist() == [1] * 8 and (test != x).any(1).sum((1, 2)).tolist() == [4] * 8
    for number, ((row, col), colour) in enumerate(zip(places, colours, strict=True)):
        assert train[2 * number : 2 * number + 2, :, row, col].tolist() == [colour] * 2
        assert test[:, :, row, col].tolist() == [colour] * 8
    with pytest.raises(UserError, match=r"attack\.places"):
        AdapKWay((3, 32, 32), 10, 0.1, 0.1, [[16, 32]], [[1, 2, 3]])
    with pytest.raises(UserError, match=r"attack\.colours"):
        AdapKWay((3, 32, 32), 10, 0.1, 0.1, places, colours[:3])


def test_kway_on_other_sizes():
    """Places in proportion, enlarged from 64 pixels on, the mean of the colour where there is none."""
    pattern, mask = dots([[16, 11]], [[92, 0, 25]], (1, 64, 64))
    assert mask[0, 0].nonzero().tolist() == [[32, 22], [32, 23], [33, 22], [33, 23]] and (pattern == 39).all()
    assert dots([[31, 31]], [[1, 2, 3]], (3, 8, 8))[1][0, 0].nonzero().tolist() == [[7, 7]]
