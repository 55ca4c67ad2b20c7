"""Networks of torchvision and timm, untrained, adapted to small images and other channels by the rule in `small`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from bench.errors import UserError, nearest


def torchvision(
    name: str,
    num_classes: int,
    channels: int,
    size: int,
    options: Mapping[str, Any] | None = None,
    adapt: bool = True,
) -> nn.Module:
    """Any classifier of torchvision.models, untrained; `options` go to it (width_mult, growth_rate, ...).

    `adapt`: whether it is made fit for small images; false leaves it as it is, for weights from elsewhere (BackdoorBench).
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"model.name={name} is not a classifier of torchvision: {nearest(name, known)}")
    options = ({"image_size": size} if name.startswith("vit_") else {}) | dict(options or {})
    try:
        made = models.get_model(name, weights=None, num_classes=num_classes, **options)
        return small(made, channels, size) if adapt else made
    except (TypeError, ValueError) as error:
        raise UserError(f"model.options={options} do not make a {name}: {error}") from error


def vit(
    num_classes: int, channels: int, size: int, num_layers: int, num_heads: int, hidden_dim: int, mlp_dim: int
) -> nn.Module:
    """Dosovitskiy et al. 2021: patches of 16 pixels; of size // 8 for images below 128 pixels, so that there are 64."""
    from torchvision.models import VisionTransformer

    patch = 16 if size >= 128 else max(1, size // 8)
    if size % patch:
        raise UserError(f"this ViT cuts patches of {patch} pixels, and images of {size} cannot be cut into them.")
    model = VisionTransformer(size, patch, num_layers, num_heads, hidden_dim, mlp_dim, num_classes=num_classes)
    return small(model, channels, size)


def timm(name: str, num_classes: int, channels: int, size: int, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Any classifier of timm, untrained; `pip install timm` first."""
    try:
        from timm import create_model, list_models
    except ImportError as error:
        raise UserError("model=timm needs the package timm: pip install 'backprune[timm]'.") from error
    if name not in list_models():
        raise UserError(f"model.name={name} is not a model of timm: {nearest(name, list_models())}")
    try:
        built = create_model(name, pretrained=False, num_classes=num_classes, in_chans=channels, **(options or {}))
    except (TypeError, ValueError) as error:
        raise UserError(f"model.options={dict(options or {})} do not make a {name}: {error}") from error
    return small(built, channels, size)


def small(model: nn.Module, channels: int, size: int) -> nn.Module:
    """Adapts a network made for 224x224 RGB, in place, and returns it.

    Other channels: the first convolution takes as many. Images below 64 pixels: a first convolution with a stride (of odd
    kernel: an overlapping one) loses it, and so does a max pooling right behind the stem, so that these images are not down
    to one pixel after half of the network. One that cuts patches (stride = kernel) cuts them of size // 16 pixels, at least 1.
    """
    name, stem = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    kernel, stride, padding = stem.kernel_size, stem.stride, stem.padding
    if size < 64 and stride[0] > 1:
        if stride == kernel and not hasattr(model, "patch_size"):  # a ViT has as many positions as patches
            kernel = stride = (min(kernel[0], max(1, size // 16)),) * 2
        elif stride != kernel:
            stride = (1, 1)
            for pool in ("maxpool", "features.pool0"):
                parent, _, child = pool.rpartition(".")
                holder = model.get_submodule(parent) if hasattr(model, pool.split(".")[0]) else model
                if isinstance(getattr(holder, child, None), nn.MaxPool2d):
                    setattr(holder, child, nn.Identity())
    if (channels, kernel, stride) != (stem.in_channels, stem.kernel_size, stem.stride):
        new = nn.Conv2d(channels, stem.out_channels, kernel, stride, padding, bias=stem.bias is not None)  # type: ignore[arg-type]
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
    return model
