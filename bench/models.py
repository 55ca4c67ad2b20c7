"""Networks, and input normalisation inside the model.

They have the layer names of the widely used CIFAR code and take images from 8x8 up. Each is given what its signature asks
for of `num_classes`, `channels` and `size` (the images' height), as a user's own network and those of `bench/zoo.py` are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError


def normalised(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Makes the model take images in [0, 1]: (x - mean) / std runs before its own forward, whatever the model is.

    A hook and two buffers that stay out of the state dict, so that no layer changes its name.
    """
    if min(std) <= 0:
        raise UserError("dataset.std must be positive.")
    model.register_buffer("pixel_mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
    model.register_buffer("pixel_std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
    model.register_forward_pre_hook(_normalise)
    return model


@torch.no_grad()
def checked(model: nn.Module, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The model, if it makes `num_classes` logits of such images. Raises UserError if it does not."""
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise UserError(f"model._target_ must make a torch.nn.Module, but it made a {name}.")
    training = model.training
    try:
        logits = model.eval()(torch.zeros(2, *shape, device=next(model.parameters()).device))
    except (RuntimeError, ValueError, AssertionError, StopIteration) as error:
        raise UserError(
            f"the network {name} cannot take images of {shape[0]}x{shape[1]}x{shape[2]}: {str(error).splitlines()[0]}"
        ) from error
    if tuple(logits.shape) != (2, num_classes):
        raise UserError(
            f"the network {name} makes {tuple(logits.shape)[1:]} logits, not one for each of {num_classes} classes."
        )
    return model.train(training)


def _normalise(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return ((inputs[0] - model.pixel_mean) / model.pixel_std, *inputs[1:])  # type: ignore[operator]


class VGG(nn.Module):
    """conv3x3-BN-ReLU blocks, "M" for 2x2 max pooling, global average pooling, one linear layer (Simonyan & Zisserman)."""

    def __init__(
        self, layers: Sequence[int | str], num_classes: int, channels: int = 3, conv_bias: bool = True
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for width in layers:
            if width == "M":
                blocks.append(nn.MaxPool2d(2))
            else:
                conv = nn.Conv2d(channels, int(width), 3, padding=1, bias=conv_bias)
                blocks += [conv, nn.BatchNorm2d(int(width)), nn.ReLU(inplace=True)]
                channels = int(width)
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class BasicBlock(nn.Module):
    """He et al. 2016, Figure 5 left; BN after conv."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """He et al. 2016, Figure 5 right: 1x1, 3x3 (with the stride), 1x1 to four times the width."""

    expansion = 4

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        wide = outside * self.expansion
        self.conv1 = nn.Conv2d(inside, outside, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.conv3 = nn.Conv2d(outside, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != wide:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class PreActBlock(nn.Module):
    """He et al. 2016b, Figure 4e: BN and ReLU before each conv."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        side = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + side


class ResNet(nn.Module):
    """Four stages of blocks behind a 3x3 stem (the CIFAR form), widths `width` x 1, 2, 4, 8."""

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(
        self, block: type[nn.Module], blocks: Sequence[int], num_classes: int, channels: int = 3, width: int = 64
    ) -> None:
        super().__init__()
        preact = block is PreActBlock
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.Identity() if preact else nn.BatchNorm2d(width)
        inside = width
        for stage, count in enumerate(blocks):
            outside = width * 2**stage
            layers = []
            for index in range(count):
                layers.append(block(inside, outside, 2 if stage > 0 and index == 0 else 1))
                inside = outside * getattr(block, "expansion", 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(inside, num_classes)
        self.preact = preact

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x))
        out = out if self.preact else F.relu(out)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            out = stage(out)
        return self.linear(out.mean((2, 3)))


class WideResNet(nn.Module):
    """Zagoruyko & Komodakis 2016: three groups of (depth - 4) / 6 pre-activation blocks, 16, 32 and 64 channels x `width`."""

    def __init__(self, depth: int, width: int, num_classes: int, channels: int) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"model.depth={depth}: a WideResNet's depth is 6 n + 4 (10, 16, 22, 28, 40).")
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        groups, inside = [], 16
        for group in range(3):
            outside = 16 * width * 2**group
            for index in range((depth - 4) // 6):
                groups.append(PreActBlock(inside, outside, 2 if group and index == 0 else 1))
                inside = outside
        self.blocks = nn.Sequential(*groups)
        self.bn1 = nn.BatchNorm2d(inside)
        self.linear = nn.Linear(inside, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.bn1(self.blocks(self.conv1(x)))).mean((2, 3)))


def vgg(layers: Sequence[int | str], num_classes: int, channels: int, conv_bias: bool = True) -> nn.Module:
    return VGG(layers, num_classes, channels, conv_bias)


def resnet18(num_classes: int, channels: int, width: int = 64) -> nn.Module:
    """He et al. 2016, CIFAR stem."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, channels, width)


def resnet34(num_classes: int, channels: int, width: int = 64) -> nn.Module:
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, channels, width)


def resnet50(num_classes: int, channels: int, width: int = 64) -> nn.Module:
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, channels, width)


def preactresnet18(num_classes: int, channels: int, width: int = 64) -> nn.Module:
    """He et al. 2016b, CIFAR stem; as in ANP's and BackdoorBench's code it has no BN before the linear layer."""
    return ResNet(PreActBlock, (2, 2, 2, 2), num_classes, channels, width)


def wideresnet(num_classes: int, channels: int, depth: int = 28, width: int = 10) -> nn.Module:
    return WideResNet(depth, width, num_classes, channels)
