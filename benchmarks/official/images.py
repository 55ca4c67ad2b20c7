"""The data path as published: an image at a time through PIL and numpy, batches by DataLoader, a number read per batch."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Array = NDArray[np.uint8]


def badnets(image: Image.Image, pattern: Array, mask: Array) -> Array:
    """A patch over one image [H, W, C]: 1 in `mask` is covered."""
    pixels = np.array(image)
    return (pixels * (1 - mask) + pattern * mask).astype(np.uint8)


def blend(image: Image.Image, pattern: NDArray[np.float64], alpha: float) -> Array:
    """A pattern mixed into one image."""
    mixed = (1 - alpha) * np.array(image).astype(np.float64) + alpha * pattern
    return np.clip(mixed, 0, 255).astype(np.uint8)


def sig(image: Image.Image, delta: float, f: float) -> Array:
    """A sine along the columns of one image, pixel by pixel."""
    pixels = np.array(image, dtype=np.float32)
    wave = np.zeros_like(pixels)
    width, height = image.size
    for row in range(height):
        for column in range(width):
            wave[row, column] = delta * math.sin(2 * math.pi * column * f / width)
    return np.clip(np.uint32(pixels) + wave, 0, 255).astype(np.uint8)


def poisoned(images: Array, change: Callable[[Image.Image], Array]) -> Array:
    """[N, H, W, C] -> the same, changed one by one."""
    return np.stack([change(Image.fromarray(image)) for image in images])


def as_png(images: Array) -> list[bytes]:
    """The files that BackdoorBench leaves on disk, here in memory."""
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


class Pictures(Dataset):
    """Images in RAM, as arrays [H, W, C] or as PNG files, made a tensor one at a time through PIL."""

    def __init__(
        self, images: Array | Sequence[bytes], labels: Sequence[int], original: Sequence[int],
        transform: Callable[[Image.Image], Tensor],
    ) -> None:  # fmt: skip
        self.images, self.labels, self.original, self.transform = images, labels, original, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        found = self.images[index]
        image = Image.open(io.BytesIO(found)) if isinstance(found, bytes) else Image.fromarray(found)
        return self.transform(image), self.labels[index], self.original[index]


def transform(
    mean: Sequence[float], std: Sequence[float], size: int = 32, pad: int = 0
) -> Callable[[Image.Image], Tensor]:
    """ToTensor and Normalize; for training, with `pad`, a random crop of `size` and a flip before them."""
    from torchvision import transforms

    first = [transforms.RandomCrop(size, padding=pad), transforms.RandomHorizontalFlip()] if pad else []
    return transforms.Compose([*first, transforms.ToTensor(), transforms.Normalize(mean, std)])


def loader(pictures: Pictures, batch_size: int, shuffle: bool = False) -> DataLoader[tuple[Tensor, Tensor, Tensor]]:
    return DataLoader(pictures, batch_size, shuffle, num_workers=0)


def hits(net: nn.Module, batches: DataLoader[tuple[Tensor, Tensor, Tensor]]) -> tuple[int, int, int]:
    """(given label, original label, images): an evaluation loop that reads its counts after every batch.

    `net` takes normalised images. The loss is taken too, as the authors do.
    """
    loss = nn.CrossEntropyLoss()
    right = robust = total = 0
    spent = 0.0
    net.eval()
    with torch.no_grad():
        for x, y, original in batches:
            logits = net(x)
            spent += loss(logits, y).item()
            predicted = logits.argmax(-1)
            right += predicted.eq(y).sum().item()
            robust += predicted.eq(original).sum().item()
            total += len(y)
    return int(right), int(robust), total
