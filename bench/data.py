"""What a data set is, and what of it a defender is given.

Images are uint8 tensors [N, C, H, W] held whole on the device: no loader, no workers, no decoding after the start.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bench.errors import UserError


@dataclass(frozen=True)
class ImageSet:
    """Images `x` (uint8 [N, C, H, W], pixel values 0..255) with labels `y` (int64 [N])."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Tensor) -> ImageSet:
        return ImageSet(self.x[index], self.y[index])

    def to(self, device: torch.device | str) -> ImageSet:
        return ImageSet(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Augment:
    """Random shift by up to `shift` pixels (zero-padded crop) and, if `flip`, a horizontal flip in half of the draws."""

    shift: int = 0
    flip: bool = False

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """One row (down, right, flipped) per image: int64 [count, 3]."""
        offsets = torch.randint(2 * self.shift + 1, (count, 2), generator=rng)
        flips = torch.randint(2, (count, 1), generator=rng) * int(self.flip)
        return torch.cat([offsets, flips], dim=1)

    def pad(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> contiguous [N, H + 2 shift, W + 2 shift, C], the layout that `crop` reads."""
        s = self.shift
        return torch.nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, s, s, s, s)).contiguous()

    def crop(self, padded: Tensor, index: Tensor, moves: Tensor) -> Tensor:
        """The images `index` of a padded set, moved and flipped, in one gather: [B, C, H, W] (channels_last)."""
        h, w = padded.shape[1] - 2 * self.shift, padded.shape[2] - 2 * self.shift
        rows = moves[:, 0, None] + torch.arange(h, device=padded.device)
        across = torch.arange(w, device=padded.device).expand(len(index), w)
        cols = moves[:, 1, None] + torch.where(moves[:, 2, None] > 0, w - 1 - across, across)
        return padded[index[:, None, None], rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Dataset:
    """Training images, the defender's held-out images (never trained on) and the test set, with what models need to know."""

    train: ImageSet
    heldout: ImageSet
    test: ImageSet
    num_classes: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    augment: Augment = Augment()
    places: Tensor | None = None
    """Where in the official training set each of the training images stands; None if there is no such order."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        c, h, w = self.train.x.shape[1:]
        return c, h, w

    @cached_property
    def digest(self) -> str:
        """sha256 over all pixels and labels: the identity of the data, wherever it lies on disk."""
        sha = hashlib.sha256()
        for part in (self.train, self.heldout, self.test):
            for tensor in (part.x, part.y):
                sha.update(str(tuple(tensor.shape)).encode())
                sha.update(tensor.cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()

    def to(self, device: torch.device | str) -> Dataset:
        return replace(self, train=self.train.to(device), heldout=self.heldout.to(device), test=self.test.to(device))

    def defender(
        self, tune: int, select: int, seed: int, needs: str, source: str = "heldout", balance: str = "class"
    ) -> tuple[Defender, ImageSet]:
        """Draws the defender's clean images: `tune` for the defence, `select` to choose its operating point.

        `source`: `heldout` images, which no model was trained on, or clean `train` images (some of which the attacker
        may have poisoned a copy of). `balance`: drawn by `class`, or `uniform`ly whatever their class. The two parts are
        disjoint, and the second is not handed to the defence. A defence that `needs` nothing gets no images.
        """
        if source not in ("heldout", "train"):
            raise UserError(f"clean.source={source} is unknown: use heldout or train.")
        if balance not in ("class", "uniform"):
            raise UserError(f"clean.balance={balance} is unknown: use class or uniform.")
        pool = self.heldout if source == "heldout" else self.train
        if tune + select > len(pool):
            more = (
                "are held out: lower them, or raise dataset.heldout"
                if source == "heldout"
                else "are in the training set"
            )
            raise UserError(
                f"clean.tune={tune} plus clean.select={select} images were asked for, but only {len(pool)} {more}."
            )
        if min(tune, select) < 1:
            raise UserError("clean.tune and clean.select must be at least 1.")
        rng = np.random.default_rng(seed)
        labels = pool.y.cpu().numpy() if balance == "class" else np.zeros(len(pool), int)
        first, rest = stratified(labels, tune, rng)
        second, _ = stratified(labels[rest], select, rng)
        empty = torch.empty(0, dtype=torch.int64)
        allowed = torch.from_numpy(first) if needs != "nothing" else empty
        kept = torch.from_numpy(rest[second])
        view = Defender(pool[allowed], self.shape, self.num_classes, self.augment, seed)
        return view, pool[kept]


@dataclass(frozen=True)
class Defender:
    """All that a defence may see: its clean images (none if it needs nothing) and the facts of the task.

    `poisoned`: training images with the labels they were trained on, some with the trigger and not said which; only
    for a defence that needs a poisoned mix (see `Attack.mix`).

    Never the trigger, the target, the test set, or the images that choose the operating point.
    """

    clean: ImageSet
    shape: tuple[int, int, int]
    num_classes: int
    augment: Augment
    seed: int
    poisoned: ImageSet | None = None
    trigger: torch.nn.Module | None = None


def stratified(labels: np.ndarray, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Splits 0..N-1 into `size` indices with the class shares of `labels` (largest remainders), and the rest. Both sorted."""
    if not 0 <= size <= len(labels):
        raise UserError(f"cannot draw {size} images from {len(labels)}.")
    classes, counts = np.unique(labels, return_counts=True)
    ideal = counts * size / max(len(labels), 1)
    quota = np.floor(ideal).astype(int)
    for extra in np.argsort(quota - ideal, kind="stable")[: size - quota.sum()]:
        quota[extra] += 1
    drawn = [rng.permutation(np.flatnonzero(labels == c))[:q] for c, q in zip(classes, quota, strict=True)]
    chosen = np.sort(np.concatenate([*drawn, np.empty(0, int)]).astype(np.int64))
    return chosen, np.setdiff1d(np.arange(len(labels)), chosen)


def hold_out(train: ImageSet, size: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """(train without them, held out): `size` images (0: none), or that share of the set if below 1, drawn class by class."""
    kept, held = kept_and_held(train, size, seed)
    return train[kept], train[held]


def kept_and_held(train: ImageSet, size: float, seed: int) -> tuple[Tensor, Tensor]:
    """The indices of those images; both sorted."""
    count = round(size * len(train)) if size < 1 else int(size)
    if size < 0 or not 0 <= count < len(train) or (size and not count):
        raise UserError(
            f"dataset.heldout={size} must be 0 or leave images on both sides; the training set has {len(train)}."
        )
    held, kept = stratified(train.y.numpy(), count, np.random.default_rng(seed))
    return torch.from_numpy(kept), torch.from_numpy(held)


def stream(seed: int, name: str) -> int:
    """A seed of its own for each use of chance, so that a new use moves no other: sha256 of the root seed and a name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little") >> 1


def generator(seed: int, name: str = "") -> torch.Generator:
    """A CPU generator for that stream: the same draws whatever device the model is on."""
    return torch.Generator().manual_seed(stream(seed, name))
