"""Bad input and odd networks: one sentence, or an answer that makes sense."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bench.data import Augment, Defender, ImageSet
from bench.defenses.bnp import BNP, moments
from bench.defenses.ep import EP, channel_entropy, histogram_entropy, peak
from bench.defenses.fmp import FMP
from bench.defenses.fp import FP
from bench.defenses.ftsam import FTSAM
from bench.errors import UserError
from bench.layers import at_norms
from bench.models import resnet18
from bench.pruning import OneIn, Share, Sweep, ZScore, by_rank, count, prune
from bench.training import Plan

PRUNING = {"rule": ZScore(1.0), "sweep": Sweep("at", ()), "zeroes": ("weight",)}


def images(count=40, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=rng)
    return ImageSet(x, torch.arange(count) % 4)


def defender(**more):
    return Defender(images(), (3, 8, 8), 4, Augment(), seed=0, **more)


def network(dead=None):
    """conv-BN-ReLU-pool-linear; the channel `dead` is the same on every image."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(8, 4)).eval()  # fmt: skip
    if dead is not None:
        model[0].weight.data[dead] = 0
    return model


def test_bnp_with_a_constant_channel():
    """Its score is high but finite, so that the rule still works."""
    scores = BNP(**PRUNING).score(network(dead=3), defender())["1"]
    assert scores.isfinite().all() and scores.argmax() == 3
    assert ZScore(1.0).mask({"1": scores}, 1.0)["1"].nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan])
def test_bnp_names_a_bad_running_variance(value):
    model = network()
    model[1].running_var[2] = value
    with pytest.raises(UserError, match="layer 1 has a running variance"):
        BNP(**PRUNING).score(model, defender())


@pytest.mark.parametrize(
    "defence", [BNP(**PRUNING), EP(0.01, **PRUNING), FMP(8, 0.02, 0.06, **PRUNING)], ids=lambda d: type(d).__name__
)
def test_no_batch_norm(defence):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 4))
    with pytest.raises(UserError, match="no BatchNorm2d"):
        defence.score(model, defender(poisoned=images()))


def test_ep_with_constant_channels():
    """They count as average: the other channels' scores do not change, and no rule prunes them."""
    values = torch.randn(9, 100, generator=torch.Generator().manual_seed(0))
    values[4, 50:] += 1000
    alone, beside = channel_entropy(values, 0.01), channel_entropy(torch.cat([values, torch.full((3, 100), 7.0)]), 0.01)
    assert beside[:9].equal(alone) and alone.argmin() == 4
    torch.testing.assert_close(beside[9:], alone.mean().expand(3))
    assert not ZScore(0.1).mask({"": -beside}, 0.1)[""][9:].any()
    assert channel_entropy(torch.ones(3, 10), 0.01).tolist() == [0, 0, 0]
    assert EP(0.01, **PRUNING).score(network(dead=3), defender(poisoned=images()))["1"].isfinite().all()


@pytest.mark.parametrize("mix", [None, images(1)], ids=["none", "one image"])
def test_ep_without_a_mix(mix):
    with pytest.raises(UserError, match=r"clean\.mix"):
        EP(0.01, **PRUNING).score(network(), defender(poisoned=mix))


@pytest.mark.parametrize("sizes", [(64, 128, 7), (1, 63)], ids=str)
def test_one_in(sizes):
    """len // at channels of each layer, the highest, ties in the order of the channels."""
    rng = torch.Generator().manual_seed(0)
    scores = {str(n): torch.randint(3, (n,), generator=rng).double() for n in sizes}
    for at in (1, 2, 3, 7, 16, 64, 1000):
        for layer, mask in OneIn(64).mask(scores, at).items():
            order = sorted(range(len(mask)), key=lambda k, s=scores[layer]: (-s[k], k))
            assert mask.nonzero().flatten().tolist() == sorted(order[: len(mask) // at])


def test_share():
    """At most that share of all channels, as many as ties allow; a count of channels gives its share back."""
    scores = {"a": torch.tensor([5.0, 1, 1, 0]), "b": torch.tensor([4.0, 3, 1, -2, -2, -3])}
    counts = {0.0: 0, 0.05: 0, 0.1: 1, 0.3: 3, 0.4: 3, 0.59: 3, 0.6: 6, 0.7: 7, 0.8: 7, 0.9: 9, 1.0: 10}
    for at, number in counts.items():
        mask = Share(0.5).mask(scores, at)
        assert count(mask) == number, at
        if number:
            found, same = by_rank(Share(0.5), scores, number)
            assert found == pytest.approx(number / 10) and all(same[layer].equal(mask[layer]) for layer in scores)


def test_fp_takes_the_sleeping_inputs_of_the_classifier():
    model, data = network(), defender()
    defence = FP(rule=Share(0.25), sweep=Sweep("at", ()), zeroes=("weight",))
    scores = defence.score(model, data)
    active = model[:5](data.clean.x / 255).mean(0)
    mask = Share(0.25).mask(scores, 0.25)
    assert mask["5"].nonzero().flatten().tolist() == sorted(active.argsort()[:2].tolist())
    cut = defence.cut(network(), mask, data)
    assert not cut[5].weight[:, mask["5"]].any() and cut[5].weight[:, ~mask["5"]].equal(model[5].weight[:, ~mask["5"]])
    with pytest.raises(UserError, match="last Linear"):
        defence.score(model[:2], data)


def test_fmp_draws_images_with_their_own_labels():
    """An image's value is its place; none is moved where the data set says so, and the start goes both ways at random."""
    x = torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    drawn = []
    for seed in range(40):
        data = Defender(ImageSet(x, torch.arange(40) % 7), (3, 8, 8), 7, Augment(), seed)
        found, y, signs = FMP(8, 0.02, 0.06, **PRUNING).draw(data)
        places = (found[:, 0, 0, 0] * 255).round().long()
        assert found.shape == signs.shape == (8, 3, 8, 8) and len(places.unique()) == 8
        assert found.equal(x[places] / 255) and y.equal(places % 7)
        assert set(signs.unique().tolist()) == {-1, 1} and signs.mean().abs() < 0.15
        drawn.append(places)
    often = torch.cat(drawn).bincount(minlength=40)
    assert often.min() > 0 and often.max() < 20  # 8 each


def test_fmp_takes_the_convolution_and_its_batch_norm():
    model = network()
    defence = FMP(8, 0.02, 0.06, rule=OneIn(4), sweep=Sweep("at", ()), zeroes=("weight",))
    scores = defence.score(model, defender())
    assert list(scores) == ["0"] and ((scores["0"] >= 0) & (scores["0"] <= 1)).all()
    gone = OneIn(4).mask(scores, 4)["0"]
    cut = defence.cut(network(), {"0": gone}, defender())
    assert int(gone.sum()) == 2
    for before, after in ((model[0].weight, cut[0].weight), (model[1].weight, cut[1].weight)):
        assert not after[gone].any() and after[~gone].equal(before[~gone])
    assert cut[0].bias.equal(model[0].bias) and cut[1].bias.equal(model[1].bias)


def test_fine_tuning_after_pruning():
    """The points are those without it; each is tuned from its own cut, and what is pruned stays so."""
    model, plan = network(), Plan(epochs=2, batch_size=16, lr=0.1, weight_decay=0.1)
    pruning = PRUNING | {"rule": ZScore(1.0), "sweep": Sweep("number", (1, 3))}
    plain, tuned = (list(BNP(**pruning, then=then).repair(model, defender()).candidates) for then in (None, plan))
    assert [c.at for c in plain] == [c.at for c in tuned] and len(tuned) > 2
    for candidate in tuned[1:]:
        gone = candidate.mask["1"]
        cut = prune(model, candidate.mask)
        assert not candidate.model[1].weight[gone].any() and candidate.model[1].weight[~gone].all()
        assert not candidate.model[5].weight.equal(cut[5].weight)


def test_ftsam_steps_along_the_slope_at_the_perturbed_weights():
    """One step of the bench's loop against the method written out by hand; statistics move once a batch."""
    data = defender()
    rho, lr, smoothing = 0.5, 0.1, 0.1
    plan = Plan(epochs=1, batch_size=len(data.clean), lr=lr, momentum=0.0, augment=False)
    (tuned,) = FTSAM(plan, rho, smoothing).repair(network(), data).candidates

    def loss(model):
        wanted = torch.full((len(data.clean), 4), smoothing / 3)
        wanted[torch.arange(len(data.clean)), data.clean.y] = 1 - smoothing
        return -(wanted * model(data.clean.x / 255).log_softmax(1)).sum(1).mean()

    model = network().train()
    before = [w.detach().clone() for w in model.parameters()]
    loss(model).backward()
    statistics = model[1].running_mean.clone()
    slopes = [w.grad.clone() for w in model.parameters()]
    size = torch.cat([(w * g).flatten() for w, g in zip(before, slopes, strict=True)]).norm()
    for w, g in zip(model.parameters(), slopes, strict=True):
        w.data += w.data**2 * g * rho / size
        w.grad = None
    loss(model).backward()
    for found, w, now in zip(tuned.model.parameters(), before, model.parameters(), strict=True):
        torch.testing.assert_close(found.detach(), w - lr * now.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(tuned.model[1].running_mean, statistics)
    assert tuned.model[1].momentum == 0.1


# -- fast forms against plain ones -------------------------------------------------------------------------------------
def plain_entropy(values, width):
    """Every value is looked up among the edges; those on one, and those behind the last, are in no bin."""
    low = values.min()
    edges = low + width * torch.arange(int((values.max() - low) / width) + 1)
    found = []
    for row in values:
        inside = [((row > a) & (row < b)).sum() / len(row) for a, b in pairwise(edges)]
        found.append(-sum(p * p.log() for p in inside if p > 0))
    return torch.tensor([float(entropy) for entropy in found])


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from([0.03, 0.1, 0.5, 3.0]), st.sampled_from(["anywhere", "on edges", "both"])
)
def test_ep_bins_are_found_without_a_search(seed, width, where):
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn(4, 60, generator=rng)
    edges = values.min() + width * torch.randint(0, 6, values.shape, generator=rng)
    if where != "anywhere":
        keep = torch.rand(values.shape, generator=rng) < 0.5 if where == "both" else values == values.min()
        values = torch.where(keep, values, edges)
    torch.testing.assert_close(histogram_entropy(values, width), plain_entropy(values, width), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_peaks_and_moments_are_the_plain_ones(layout):
    x = torch.randn(40, 5, 6, 9, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout) * 3 + 100
    assert peak(x).equal(x.amax((2, 3)).T)
    variance, mean = torch.var_mean(x.double(), (0, 2, 3))
    for found, wanted in zip(moments(x), (mean, variance), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=2e-6, atol=0)
    assert moments(x[:1, :, :1, :1])[1].tolist() == [0.0] * 5


def test_seen_batch_by_batch_as_all_at_once():
    """EP's peaks do not depend on how many images go through the network at a time."""
    torch.manual_seed(0)
    model, x = resnet18(10, 3, width=8), torch.rand(150, 3, 8, 8)
    whole, parts = at_norms(model, x, peak), at_norms(model, x, peak, join=lambda seen: torch.cat(seen, 1))
    assert list(whole) == list(parts) and len(whole) == 20
    for layer, values in whole.items():
        torch.testing.assert_close(parts[layer], values, rtol=1e-5, atol=1e-6)
