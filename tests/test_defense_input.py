"""Every defence on input that no paper thinks of: one sentence that says what is wrong, or a result that makes sense."""

import copy
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from cells import build, choices, composed, shrink
from torch import nn

from bench.data import Augment, Defender, ImageSet
from bench.defenses.base import PruningDefense
from bench.defenses.ep import channel_entropy
from bench.errors import UserError
from bench.models import normalised, resnet18, vgg
from bench.training import Plan, fit, sound, to_unit

DEFENSES = choices("defense")
CLASSES = 10


def images(count, classes=CLASSES, seed=0, size=16):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=rng)
    return ImageSet(x, torch.arange(count) % classes)


def stamped(x):
    """A trigger to hold against defences that cheat."""
    return torch.cat([x[:, :, :-2], torch.full_like(x[:, :, -2:], 255)], 2)


class Stamp(nn.Module):
    target = 0

    def stamp(self, x):
        return stamped(x)

    def relabel(self, y):
        return torch.zeros_like(y)

    def counts(self, y):
        return y != 0


def view(name, clean):
    """(the defence, on the quick; what it may see of these clean images)."""
    defence = build(shrink(composed(f"defense={name}")).defense)
    seen = clean[torch.arange(0)] if defence.needs == "nothing" else clean
    data = Defender(seen, (3, *clean.x.shape[2:]), CLASSES, Augment(shift=1), seed=3)
    if defence.needs == "poisoned":
        data = replace(data, poisoned=images(40, seed=1, size=clean.x.shape[-1]))
    elif defence.needs == "trigger":
        data = replace(data, trigger=Stamp())
    return defence, data


@cache
def network(batch_norm=True):
    torch.manual_seed(0)
    if not batch_norm:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                              nn.Flatten(), nn.Linear(8, CLASSES))  # fmt: skip
    else:
        model = vgg([8, "M", 8, 8], CLASSES, 3, conv_bias=False)
        fit(model, images(64), Plan(epochs=1, batch_size=32, lr=0.05), seed=0)
    return normalised(model, (0.5,) * 3, (1.0,) * 3).eval()


def sensible(name, model, clean):
    """Every model offered answers every image with finite numbers, and one of them is the paper's; or a UserError."""
    defence, data = view(name, clean)
    repaired = defence.repair(model, data)
    x, fixed = to_unit(images(20, seed=2, size=clean.x.shape[-1]).x), 0
    for candidate in repaired.candidates:
        with torch.no_grad():
            logits = candidate.model(x)
        assert logits.shape == (20, CLASSES) and logits.isfinite().all()
        fixed += candidate.fixed
    assert fixed == 1


def sentence(error):
    """One or two sentences for a reader, without the words of a traceback."""
    text = str(getattr(error, "value", error))
    assert 20 < len(text) < 400 and text[-1] in ".?" and "Error" not in text and "\n" not in text, text
    return text


@pytest.mark.parametrize("name", DEFENSES)
def test_one_clean_image(name):
    sensible(name, network(), images(1))


@pytest.mark.parametrize("name", DEFENSES)
def test_missing_classes(name):
    """Three of ten classes, and fewer images than classes."""
    sensible(name, network(), images(6, classes=3))


@pytest.mark.parametrize("name", DEFENSES)
def test_one_clean_image_and_one_pixel_to_average_over(name):
    """A network whose last stages have 1x1 maps: BatchNorm cannot learn from a single image, and says so."""
    torch.manual_seed(0)
    model = resnet18(CLASSES, 3, width=4).eval()
    try:
        sensible(name, model, images(1, size=8))
    except UserError as error:
        assert "BatchNorm" in sentence(error) and "clean.tune" in str(error)


@pytest.mark.parametrize("name", DEFENSES)
def test_no_batch_norm(name):
    """A defence that needs BatchNorm says so by name; the others work."""
    try:
        sensible(name, network(batch_norm=False), images(30))
    except UserError as error:
        assert "BatchNorm" in sentence(error)


@pytest.mark.parametrize("name", sorted(set(DEFENSES) - {"none"}))
def test_a_running_variance_that_is_not_a_number(name):
    model = copy.deepcopy(network())
    model.features[1].running_var[2] = torch.nan
    with pytest.raises(UserError) as error:
        sensible(name, model, images(30))
    assert "features.1" in sentence(error)


@pytest.mark.parametrize("name", ["clp", "bnp"])
def test_no_running_statistics(name):
    model = copy.deepcopy(network())
    bn = model.features[1]
    bn.running_mean = bn.running_var = None
    with pytest.raises(UserError, match=r"features\.1 keeps no running statistics"):
        sensible(name, model, images(30))


def test_published_normalisation_needs_a_network_that_normalises():
    defence, data = view("fmp", images(30))
    defence.normalise = "twice"
    with pytest.raises(UserError, match=r"defense\.normalise=twice"):
        defence.repair(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten()), data)


def test_entropies_in_double_precision():
    """Of a network in float64, as the others take it."""
    values = torch.rand(6, 40, generator=torch.Generator().manual_seed(0))
    assert channel_entropy(values.double(), 0.1).dtype == torch.float64
    torch.testing.assert_close(channel_entropy(values.double(), 0.1), channel_entropy(values, 0.1).double())


@pytest.mark.parametrize("count", [5, 31, 32, 33])
def test_drop_last_never_leaves_nothing(count):
    """A set that does not fill a batch is a batch of its own."""
    model = copy.deepcopy(network())
    before = model.classifier.weight.detach().clone()
    history = fit(model, images(count), Plan(batch_size=32, drop_last=True), seed=0)
    assert len(history) == 1 and not model.classifier.weight.equal(before)


def test_a_last_batch_of_one_image():
    torch.manual_seed(0)
    plan = Plan(batch_size=8, lr=0.01)
    fit(resnet18(CLASSES, 3, width=4), images(18, size=8), plan, seed=0)
    with pytest.raises(UserError, match=r"a batch of 1 image .*BatchNorm.*clean\.tune") as error:
        fit(resnet18(CLASSES, 3, width=4), images(17, size=8), plan, seed=0, label="fine-tuning")
    sentence(error)
    fit(resnet18(CLASSES, 3, width=4), images(17, size=8), plan, seed=0, moving_statistics=False)


def test_an_error_of_ones_own_is_not_explained_away():
    def objective(model, x, y):
        raise ValueError("another matter")

    with pytest.raises(ValueError, match="another matter"):
        fit(copy.deepcopy(network()), images(8), Plan(), seed=0, objective=objective)


def test_a_model_is_sound_if_every_number_is_finite():
    """Even if their sum is not; and one that is not is named."""
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    net[0].weight.data.fill_(3e38)
    sound(net, "x")
    net[1].running_var[2] = -torch.inf
    with pytest.raises(UserError, match="running_var is not finite"):
        sound(net, "x")


@pytest.mark.parametrize("name", DEFENSES)
def test_how_a_repair_looks_at_its_images(name, monkeypatch):
    """A model in train mode is scored or repaired as one in eval mode; what trains does so on the clean images, moved as the
    data set says; and what trains twice (RNP, NAD, MCR) in another order."""
    clean, trainings, seeds, made = images(20), [], [], []

    def noted(model, images, *args, **more):
        trainings.append((images, more))
        return fit(model, images, *args, **more)

    for module in [m for place, m in sys.modules.items() if place.startswith("bench.defenses.") and hasattr(m, "fit")]:
        monkeypatch.setattr(module, "fit", noted)
    for mode in (False, True):
        defence, data = view(name, clean)
        model = copy.deepcopy(network()).train(mode)
        if isinstance(defence, PruningDefense):
            made.append(defence.score(model, data))
        else:
            (candidate,) = defence.repair(model, data).candidates
            made.append(candidate.model.state_dict())
        assert all(images is data.clean and more["augment"] is data.augment for images, more in trainings)
        seeds.append([more["seed"] for _, more in trainings])
        trainings.clear()
    evaluating, training = made
    assert all(value.equal(training[key]) for key, value in evaluating.items())
    assert seeds[0] == seeds[1]
    if name in ("rnp", "nad", "mcr"):
        assert len(set(seeds[0])) == len(seeds[0]) == 2
