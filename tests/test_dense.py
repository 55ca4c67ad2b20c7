"""The smaller network answers as the pruned one does, and is as small as the data flow allows."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.models import DenseNet

from bench import dense, models, zoo
from bench.errors import UserError

SMALL = {  # networks of every kind of wiring, as small as they come
    "vgg": lambda: models.vgg([8, "M", 16, "M", 8], 5, 3, conv_bias=False),
    "resnet18": lambda: models.resnet18(5, 3, width=4),
    "resnet50": lambda: models.resnet50(5, 3, width=4),
    "preactresnet18": lambda: models.preactresnet18(5, 3, width=4),
    "wideresnet": lambda: models.wideresnet(5, 3, depth=10, width=1),
    "mobilenetv2": lambda: zoo.torchvision("mobilenet_v2", 5, 3, 32, {"width_mult": 0.25}),
    "mobilenetv3_small": lambda: zoo.torchvision("mobilenet_v3_small", 5, 3, 32, {"width_mult": 0.25}),
    "densenet": lambda: DenseNet(4, (2, 2), 8, num_classes=5),
}


def network(name: str, seed: int = 0) -> nn.Module:
    """In double precision and eval mode, with statistics and biases as after a training."""
    torch.manual_seed(seed)
    model = SMALL[name]().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, 0, 0.5)
    return models.normalised(model, [0.5] * 3, [0.25] * 3).double()


@torch.no_grad()
def prune(model: nn.Module, share: float, zeroes: tuple[str, ...], seed: int = 0) -> None:
    rng = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm) and module.weight is not None:
            gone = torch.rand(module.weight.shape, generator=rng) < share
            for name in zeroes:
                getattr(module, name)[gone] = 0


def images(seed: int = 0, size: int = 32) -> torch.Tensor:
    return torch.rand(3, 3, size, size, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def same(one: nn.Module, other: nn.Module, x: torch.Tensor) -> bool:
    return torch.allclose(one(x), other(x), rtol=1e-9, atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(sorted(SMALL)),
    st.sampled_from([("weight",), ("weight", "bias")]),
    st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    st.integers(0, 2**20),
)
def test_it_answers_as_before_and_is_smaller(name, zeroes, share, seed):
    model = network(name, seed)
    prune(model, share, zeroes, seed)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small, facts = dense.dense(model, (3, 32, 32))
    assert same(model, small, images(seed))
    assert all(value.equal(before[key]) for key, value in model.state_dict().items()), "the model itself is not touched"
    fewer = facts["channels"][1] < facts["channels"][0]
    assert fewer == (facts["parameters"][1] < facts["parameters"][0]) == bool(facts["layers"])
    if zeroes == ("weight", "bias"):
        assert fewer == (share > 0)


def test_a_chain_loses_all_that_was_pruned():
    """In a VGG every channel stands alone. Behind a layer that has none left nothing varies, and one in each will do."""
    model = network("vgg")
    prune(model, 0.4, ("weight", "bias"))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for left in ([int((norm.weight != 0).sum()) for norm in norms], [int((norms[0].weight != 0).sum()), 1, 1]):
        small, facts = dense.dense(model, (3, 32, 32))
        assert [m.num_features for m in small.modules() if isinstance(m, nn.BatchNorm2d)] == left
        assert facts["channels"] == [32 + 5, sum(left) + 5] and same(model, small, images())
        norms[1].weight.data.zero_()
        norms[1].bias.data.zero_()


def test_channels_tied_by_an_addition_go_together_or_not_at_all():
    model = network("resnet18")
    inner, outer, stem = model.layer1[0].bn1, (model.layer1[0].bn2, model.layer1[1].bn2), model.bn1
    for norm in (inner, *outer):
        norm.weight.data[1] = norm.bias.data[1] = 0
    small, _ = dense.dense(model, (3, 32, 32))
    assert (
        small.layer1[0].bn1.num_features == 3 and small.layer1[0].bn2.num_features == 4 and same(model, small, images())
    )
    stem.weight.data[1] = stem.bias.data[1] = 0
    small, _ = dense.dense(model, (3, 32, 32))
    assert small.bn1.num_features == small.layer1[0].bn2.num_features == 3 and same(model, small, images())
    assert small.layer2[0].conv1.in_channels == small.layer2[0].shortcut[0].in_channels == 3


class Chain(nn.Module):
    """conv-BN-ReLU and what `reader` makes of it."""

    def __init__(self, reader: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn, self.reader = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), reader

    def forward(self, x):
        return self.reader(F.relu(self.bn(self.conv(x))))


def head(*first: nn.Module) -> nn.Module:
    return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


class Dims(nn.Module):
    """Asks for the batch only, or writes down the number of features."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features, self.linear = features, nn.Linear(4 * 36, 2)

    def forward(self, x):
        return self.linear(x.view(x.size(0), -1) if self.features == -1 else x.view(-1, self.features))


class Spy(nn.Module):
    """Reads a feature map that another reader changes in place: `late` finds 0 where `bn` put out -1."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.relu, self.early, self.late = nn.BatchNorm2d(4), nn.ReLU(inplace=True), conv(), conv()
        self.bn.weight.data[1], self.bn.bias.data[1] = 0, -1

    def forward(self, x):
        y = self.bn(x)
        return (self.early(self.relu(y)) + self.late(y)).mean((2, 3))


def conv(**options) -> nn.Module:
    return nn.Conv2d(4, 4, 3, bias=False, **options)


@pytest.mark.parametrize(
    ("reader", "bias", "left"),
    [
        (head(), 2.0, 3),  # goes into the bias of the linear layer
        (head(conv()), 2.0, 3),  # and into one that a convolution did not have before
        (head(conv(padding=1)), 2.0, 4),  # but zeros around a constant make it vary
        (head(conv(padding=1)), 0.0, 3),
        (head(conv(padding=1)), -2.0, 3),  # which ReLU makes 0
        (head(conv(padding=1, padding_mode="reflect")), 2.0, 3),
        (head(nn.AvgPool2d(3, padding=1)), 2.0, 4),
        (head(nn.Conv2d(4, 4, 3, groups=4, padding=1)), 0.0, 3),  # depthwise: its bias still counts
        (head(nn.Conv2d(4, 4, 3, groups=2)), 0.0, 4),  # in groups: not understood
        (head(nn.GroupNorm(2, 4)), 0.0, 4),
        (head(nn.Sigmoid()), 0.0, 3),
        (Dims(-1), 2.0, 3),
        (Dims(144), 0.0, 4),
        (Spy(), 0.0, 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_a_channel_that_holds_a_constant_goes_where_that_is_exact(reader, bias, left):
    torch.manual_seed(0)
    model = Chain(reader).double().eval()
    model.bn.weight.data[1], model.bn.bias.data[1] = 0, bias
    small, _ = dense.dense(model, (3, 8, 8))
    assert small.bn.num_features == small.conv.out_channels == left and same(model, small, images(size=8))


def test_a_layer_used_twice_stays_whole():
    class Twice(Chain):
        def forward(self, x):
            x = F.relu(self.bn(self.conv(x)))
            return self.reader(F.relu(self.bn(self.again(x))))

    model = Twice(head())
    model.again = nn.Conv2d(4, 4, 1)
    model = model.double().eval()
    model.bn.weight.data[1] = model.bn.bias.data[1] = 0
    small, facts = dense.dense(model, (3, 8, 8))
    assert not facts["layers"] and same(model, small, images(size=8))


def test_what_cannot_be_followed_is_one_sentence():
    class Moody(Chain):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    with pytest.raises(UserError, match=r"torch\.fx cannot follow the data flow of this Moody"):
        dense.dense(Moody(head()).eval(), (3, 8, 8))
    gated = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    with pytest.raises(UserError, match="layer 0 are parametrised"):
        dense.dense(nn.Sequential(gated, head()).eval(), (3, 8, 8))


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2", "densenet"])
def test_it_is_built_again_from_disk(name, tmp_path):
    model = network(name)
    prune(model, 0.5, ("weight", "bias"))
    small, facts = dense.dense(model, (3, 32, 32))
    dense.save(tmp_path / "dense", small, facts)
    again = dense.load(tmp_path / "dense", network(name, seed=1))
    assert same(small, again, images()) and json.loads((tmp_path / "dense/layers.json").read_text()) == facts
    with pytest.raises(UserError, match="does not hold a dense form of this VGG"):
        dense.load(tmp_path / "dense", network("vgg"))
