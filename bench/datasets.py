"""The data sets, each as uint8 tensors: embedded digits, those of torchvision, Tiny ImageNet, and any folder of images.

What lies on disk is read once and kept as one array file in `cache`, which all jobs map into memory; a file that changes
its name, size or time is read anew.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.archives import is_archive, unpacked
from bench.data import Augment, Dataset, ImageSet, hold_out, kept_and_held, stratified
from bench.decode import Listing, cached, decode, listing, named, stamps
from bench.errors import UserError, nearest


def digits(
    size: int, heldout: int, test: int, split_seed: int, augment: Augment, mean: Sequence[float], std: Sequence[float]
) -> Dataset:
    """scikit-learn's 1,797 handwritten digits (8x8, UCI Optdigits test part) as `size` x `size` RGB. No download."""
    images, labels = handwritten()
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) * (255 / 16)
    x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False).round().to(torch.uint8)
    every = ImageSet(x.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(labels).long())
    tested, rest = stratified(labels, test, np.random.default_rng(split_seed))
    train, held = hold_out(every[torch.from_numpy(rest)], heldout, split_seed)
    return Dataset(train, held, every[torch.from_numpy(tested)], 10, *per_channel(3, mean, std), augment)


def handwritten() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits: [1797, 64] in 0 to 16, and their labels. Its file is read by itself where it lies as ever: to
    import scikit-learn takes two seconds of every cell."""
    package = find_spec("sklearn")
    file = Path(package.origin).with_name("datasets") / "data/digits.csv.gz" if package and package.origin else Path()
    if not file.is_file():
        from sklearn.datasets import load_digits

        return load_digits(return_X_y=True)
    table = np.loadtxt(file, delimiter=",")
    return table[:, :-1], table[:, -1].astype(int)


class Archive(NamedTuple):
    """What torchvision looks for: where under the root, and what a user without a network has to get."""

    classes: int
    folder: str
    size: str
    files: str


ARCHIVES = {
    "CIFAR10": Archive(10, "cifar-10-batches-py", "163 MB", "cifar-10-python.tar.gz from the CIFAR-10 home page"),
    "CIFAR100": Archive(100, "cifar-100-python", "161 MB", "cifar-100-python.tar.gz from the CIFAR-10 home page"),
    "MNIST": Archive(10, "MNIST/raw", "11 MB", "MNIST/raw with the four ...-ubyte files, unpacked"),
    "FashionMNIST": Archive(
        10, "FashionMNIST/raw", "29 MB", "FashionMNIST/raw with the four ...-ubyte files, unpacked"
    ),
    "SVHN": Archive(10, "", "234 MB", "train_32x32.mat and test_32x32.mat from the SVHN home page"),
    "STL10": Archive(10, "stl10_binary", "2.5 GB", "stl10_binary.tar.gz from the STL-10 home page"),
    "GTSRB": Archive(
        43, "gtsrb", "276 MB", "gtsrb/ with GTSRB/Training, GTSRB/Final_Test/Images and GT-final_test.csv"
    ),
}


def torchvision_set(
    name: str,
    root: str,
    download: bool,
    size: int | None,
    heldout: float,
    split_seed: int,
    cache: str,
    augment: Augment,
    mean: Sequence[float],
    std: Sequence[float],
) -> Dataset:
    """A data set of torchvision by its class name, in its official training and test parts.

    `size`: pixels of a side; null keeps the images' own (not for GTSRB, whose images are of all sizes).
    """
    from torchvision import datasets

    if name not in ARCHIVES:
        raise UserError(f"dataset.name={name} is unknown: {nearest(name, ARCHIVES)}")
    archive = ARCHIVES[name]
    splits = [{"split": part} for part in ("train", "test")]
    if name in ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST"):
        splits = [{"train": part} for part in (True, False)]  # type: ignore[dict-item]

    def read() -> dict[str, Tensor]:
        try:
            found = [getattr(datasets, name)(root, download=download, **split) for split in splits]
        except (RuntimeError, OSError) as error:
            asked = (
                f"the download failed ({error})" if download else f"dataset.download=true fetches it ({archive.size})"
            )
            raise UserError(f"{name} is not in {root}: {asked}; or put {archive.files} into {root}.") from error
        return named(_pixels(part, size, f"decoding {name}") for part in found)

    files = sorted(p for p in (Path(root) / archive.folder).rglob("*") if p.is_file())
    # An absent or half-downloaded set is not looked up in the cache: torchvision says what is missing.
    arrays = cached(cache, name.lower(), [size, *stamps(files)], read) if files and not download else read()
    return _split(arrays, archive.classes, heldout, split_seed, augment, mean, std)


def _pixels(part: Any, size: int | None, label: str) -> tuple[Tensor, Tensor]:
    """Images and labels of one torchvision set, whatever it calls them and however its axes lie."""
    if hasattr(part, "_samples"):  # files of all sizes
        paths, labels = zip(*part._samples, strict=True)
        return decode([Path(p) for p in paths], size or 32, label), torch.tensor(labels)
    x = torch.as_tensor(part.data)
    y = torch.as_tensor(part.labels if hasattr(part, "labels") else part.targets).long()
    if x.dim() == 3:
        x = x[:, None]
    elif x.shape[-1] == 3:
        x = x.permute(0, 3, 1, 2)
    if size and size != x.shape[-1]:
        parts = [F.interpolate(c.float(), size=(size, size), mode="bilinear", antialias=True) for c in x.split(1024)]
        x = torch.cat([c.round().clamp(0, 255).to(torch.uint8) for c in parts])
    return x.contiguous(), y


def imagefolder(
    root: str | None,
    size: int,
    heldout: float,
    split_seed: int,
    augment: Augment,
    cache: str,
    mean: Sequence[float],
    std: Sequence[float],
    train: str = "train",
    test: str = "test",
) -> Dataset:
    """Any tree `root`/train/<class>/*.jpg, `root`/test/<class>/*.jpg; classes are numbered in alphabetical order.

    `train`, `test`: the names of the two folders. Images are made RGB; those of another size are resized so that the
    shorter side fits and cropped to the centre. `root` may be an archive (.zip, .tar.gz, ...) of such a tree.
    """
    if not root:
        raise UserError(f"dataset.root is not set: give the folder that holds {train}/<class>/ and {test}/<class>/.")
    top = Path(root)
    if is_archive(top):
        top = unpacked(top, Path(cache))
        top = top if (top / train).is_dir() else inner(top)
        if lost := [part for part in (train, test) if not (top / part).is_dir()]:
            raise UserError(f"{root} holds no folder {lost[0]}; it must hold {train}/<class>/ and {test}/<class>/.")
    found = [
        listing(top / part, f"an image folder holds {train}/<class>/ and {test}/<class>/") for part in (train, test)
    ]
    return _from_files("imagefolder", root, found, size, heldout, split_seed, augment, cache, mean, std)


def inner(folder: Path) -> Path:
    """The one folder that is all there is in it, as many archives have; else the folder itself."""
    inside = [path for path in folder.iterdir() if path.name != "__MACOSX" and not path.name.startswith(".")]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def tiny_imagenet(
    root: str,
    size: int,
    heldout: float,
    split_seed: int,
    augment: Augment,
    cache: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Dataset:
    """Tiny ImageNet in its own layout, unpacked or as tiny-imagenet-200.zip: its labelled val images are the test set.

    Classes are those in train/, in alphabetical order of their WordNet ids: 200, or fewer in a part of it.
    """
    top: Any = Path(root) / "tiny-imagenet-200"
    if not top.is_dir():
        archive = top.with_suffix(".zip")
        if not archive.is_file():
            raise UserError(
                f"there is neither {top} nor {archive.name} beside it: get the archive and set dataset.root."
            )
        try:
            top = zipfile.Path(archive, "tiny-imagenet-200/")
        except zipfile.BadZipFile as error:
            raise UserError(f"{archive} cannot be read as an archive ({error}): fetch it again.") from error
    train = listing(top / "train", "Tiny ImageNet holds train/<wnid>/images")
    try:
        lines = (top / "val" / "val_annotations.txt").read_text().splitlines()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{top}/val/val_annotations.txt cannot be read: {error}.") from error
    test = [(line.split("\t")[1], top / "val" / "images" / line.split("\t")[0]) for line in lines if "\t" in line]
    if not test:
        raise UserError(f"{top}/val/val_annotations.txt names no image: it holds lines of a file, a tab and its class.")
    return _from_files(
        "tiny-imagenet", str(top), [train, sorted(test, key=str)], size, heldout, split_seed, augment, cache, mean, std
    )


def _from_files(
    name: str, root: str, found: Sequence[Listing], size: int, heldout: float, split_seed: int, augment: Augment,
    cache: str, mean: Sequence[float], std: Sequence[float],
) -> Dataset:  # fmt: skip
    classes = sorted({label for label, _ in found[0]})
    if strange := sorted({label for label, _ in found[1]} - set(classes)):
        raise UserError(
            f"the test images of {root} have classes that its training set lacks: {', '.join(strange[:5])}."
        )
    if len(classes) < 2:
        raise UserError(f"{root} has {len(classes)} class folder of training images; at least two are needed.")

    def read() -> dict[str, Tensor]:
        labels = [torch.tensor([classes.index(label) for label, _ in files]) for files in found]
        parts = ("training", "test")
        return named(
            (decode([path for _, path in files], size, f"decoding {part} images"), y)
            for files, y, part in zip(found, labels, parts, strict=True)
        )

    arrays = cached(cache, name, [size, *stamps(path for files in found for _, path in files)], read)
    return _split(arrays, len(classes), heldout, split_seed, augment, mean, std)


def _split(
    arrays: Mapping[str, Tensor], classes: int, heldout: float, split_seed: int, augment: Augment,
    mean: Sequence[float], std: Sequence[float],
) -> Dataset:  # fmt: skip
    train, test = (ImageSet(arrays[f"{part}_x"], arrays[f"{part}_y"]) for part in ("train", "test"))
    kept, held = kept_and_held(train, heldout, split_seed)
    facts = per_channel(train.x.shape[1], mean, std)
    return Dataset(train[kept], train[held], test, classes, *facts, augment, kept)


def per_channel(
    channels: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Both as a `Dataset` has them. Raises UserError unless they are numbers, one for each channel or one for all."""
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels) or not all(isinstance(value, int | float) for value in values):
            raise UserError(f"dataset.{name}={list(values)} must be numbers, one for each of {channels} channels.")
    return tuple(mean), tuple(std)
