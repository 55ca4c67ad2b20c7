"""Going on from the first layer that changed gives the very answers of whole passes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import DenseNet

from bench import metrics, prefix
from bench.data import ImageSet
from bench.layers import channel_norms
from bench.metrics import Exam
from bench.models import normalised, preactresnet18, resnet18, vgg
from bench.prefix import Prefixes, Steps
from bench.zoo import small, torchvision, vit


class Inplace(nn.Module):
    """Writes into a feature map that was alive before a later layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn1, self.bn2, self.linear = (
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.BatchNorm2d(8),
            nn.Linear(8, 10),
        )

    def forward(self, x):
        x = self.bn1(self.conv(x))
        side = self.bn2(F.relu(x))
        return self.linear(x.add_(side).mean((2, 3)))


class Choosy(Inplace):
    """Does what fx cannot write down."""

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class Hidden(Inplace):
    """Reads a number that is no parameter: a graph has it as it was when it was drawn."""

    def forward(self, x):
        return super().forward(x) * (1 if len(self.__dict__.setdefault("seen", [])) else self.seen.append(1) or -1)


NETS = {
    "vgg": lambda: vgg([8, "M", 8, 8], 10, 3),
    "resnet18": lambda: resnet18(10, 3, width=8),
    "preactresnet18": lambda: preactresnet18(10, 3, width=8),
    "mobilenet": lambda: torchvision("mobilenet_v3_small", 10, 3, 16, {"width_mult": 0.3}),
    "densenet": lambda: small(DenseNet(4, (2, 2, 2, 2), 8, num_classes=10), 3, 16),
    "vit": lambda: vit(10, 3, 16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=16),
    "inplace": Inplace,
}


def network(make):
    torch.manual_seed(0)
    return normalised(make(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)).to(memory_format=torch.channels_last).eval()


def images(count):
    return torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


def logits(monkeypatch):
    """Lets `predict` and `Prefixes` give logits, not classes: a change of the last bit would show."""
    for module in (metrics, prefix):
        monkeypatch.setattr(module, "classes", lambda x: x)


def test_a_model_that_answers_nan_hits_nothing(caplog):
    """argmax would take the first class of all, and an attack on class 0 would have an ASR of 100."""
    model, x = network(NETS["vgg"]), images(30)
    told = metrics.predict(model, x)
    assert ((told >= 0) & (told < 10)).all()
    prefixes = Prefixes()
    prefixes.of(model)
    predict = prefixes.of(model)
    assert predict(model, x).equal(told)
    with torch.no_grad():
        model.classifier.weight[3, 0] = torch.nan
    assert predict(model, x).equal(metrics.predict(model, x))
    found = metrics.evaluate(model, Exam(ImageSet(x, told), ImageSet(x, told), torch.zeros_like(told)), predict)
    assert (found.right, found.hit, found.robust) == (0, 0, 0)
    assert "60 of 60 test images have logits that are NaN" in caplog.text


def test_a_model_in_train_mode_answers_as_in_eval_mode():
    """BatchNorm's running statistics count, not those of the images that happen to be looked at together."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(768, 10)), images(30)
    with torch.no_grad():
        other, wanted = copy.deepcopy(model)(x / 255).argmax(1), model.eval()(x / 255).argmax(1)
    assert not wanted.equal(other)
    assert metrics.predict(model.train(), x).equal(wanted)
    assert metrics.accuracy(model.train(), ImageSet(x, wanted)) == 100


@pytest.mark.parametrize("limit", [0, 200_000, 2**30], ids=["none", "some", "all"])
@pytest.mark.parametrize("name", NETS)
def test_the_same_answers_to_the_last_bit(name, limit, monkeypatch):
    logits(monkeypatch)
    monkeypatch.setattr(metrics.batches, "__defaults__", (16,))
    model, rng = network(NETS[name]), torch.Generator().manual_seed(1)
    prefixes, sets = Prefixes(limit), (images(40), images(7))
    norms = list(channel_norms(model).values())
    prefixes.of(model)
    for step in range(7):
        predict = prefixes.of(model)
        for x in sets:
            assert predict(model, x).equal(metrics.predict(model, x)), step
        assert prefixes.steps.sound
        layer = norms[int(torch.randint(len(norms), (), generator=rng))]
        with torch.no_grad():
            layer.weight[int(torch.randint(len(layer.weight), (), generator=rng))] = 0
    with torch.no_grad():
        next(model.parameters())[0] += 1  # the stem
        model.pixel_mean += 0.1
    assert predict(model, sets[0]).equal(metrics.predict(model, sets[0]))
    assert sum(kept(look) for look in prefixes.looks.values()) <= limit


def kept(look):
    """The bytes that a look really holds."""
    memory = [
        value.untyped_storage()
        for batch in look.kept
        for alive in batch.values()
        for value in alive.values()
        if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter)
    ]
    return sum({part.data_ptr(): part.nbytes() for part in memory}.values())


def test_only_what_comes_after_the_change_is_computed():
    model, x, calls = network(NETS["resnet18"]), images(20), []
    prefixes = Prefixes()
    prefixes.of(model)
    predict = prefixes.of(model)
    predict(model, x)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    predict(model, x)
    assert not calls, "nothing changed"
    with torch.no_grad():
        model.layer4[1].bn1.weight[0] = 0
    predict(model, x)
    assert calls == ["layer4.1.bn1", "layer4.1.conv2", "layer4.1.bn2", "linear"]


@pytest.mark.parametrize("make", [Choosy, Hidden])
def test_whole_passes_where_steps_cannot_be_trusted(make):
    model, x = network(make), images(9)
    prefixes = Prefixes()
    prefixes.of(model)
    assert prefixes.of(model)(model, x).equal(metrics.predict(model, x)) and not prefixes.steps.sound


def test_a_pass_broken_off_leaves_nothing_to_go_on_from(monkeypatch):
    logits(monkeypatch)
    model, x = network(NETS["vgg"]), images(20)
    monkeypatch.setattr(metrics.batches, "__defaults__", (8,))
    prefixes = Prefixes()
    prefixes.of(model)
    predict = prefixes.of(model)
    predict(model, x)
    walk, walked = Steps.walk, []

    def twice(*args):
        walked.append(0)
        if len(walked) == 2:
            raise KeyboardInterrupt
        return walk(*args)

    was = model.features[1].weight.detach().clone()
    model.features[1].weight.data.zero_()
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(Steps, "walk", twice)
        predict(model, x)
    model.features[1].weight.data.copy_(was)  # as before, but what is kept of the first batch is not
    model.features[5].weight.data[0] = 0
    assert predict(model, x).equal(metrics.predict(model, x))


def test_a_model_met_once_is_looked_at_plainly():
    prefixes, models = Prefixes(), [network(NETS["vgg"]) for _ in range(2)]
    assert prefixes.of(models[0]) is metrics.predict and prefixes.of(models[1]) is metrics.predict
    assert prefixes.of(models[1]) is not metrics.predict and prefixes.of(models[0]) is metrics.predict
