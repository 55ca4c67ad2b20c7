"""The data sets, each as uint8 tensors: embedded digits, CIFAR-10, and any folder of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from bench.data import Augment, Dataset, ImageSet, hold_out, stratified
from bench.errors import UserError
from bench.files import digest, new_folder
from bench.progress import progress

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}


def digits(
    size: int, heldout: int, test: int, split_seed: int, augment: Augment, mean: Sequence[float], std: Sequence[float]
) -> Dataset:
    """scikit-learn's 1,797 handwritten digits (8x8, UCI Optdigits test part) as `size` x `size` RGB. No download."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) * (255 / 16)
    x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False).round().to(torch.uint8)
    every = ImageSet(x.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(labels).long())
    tested, rest = stratified(labels, test, np.random.default_rng(split_seed))
    train, held = hold_out(every[torch.from_numpy(rest)], heldout, split_seed)
    return Dataset(train, held, every[torch.from_numpy(tested)], 10, mean=tuple(mean), std=tuple(std), augment=augment)


def cifar10(
    root: str,
    download: bool,
    heldout: float,
    split_seed: int,
    augment: Augment,
    mean: Sequence[float],
    std: Sequence[float],
) -> Dataset:
    """CIFAR-10 through torchvision: 50,000 training and 10,000 test images, 32x32 RGB."""
    from torchvision.datasets import CIFAR10

    try:
        parts = [CIFAR10(root, train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        asked = f"the download failed ({error})" if download else "dataset.download=true fetches it (163 MB)"
        raise UserError(
            f"CIFAR-10 is not in {root}: {asked}; or put cifar-10-python.tar.gz from the CIFAR-10 home page into {root}."
        ) from error
    train, test = (
        ImageSet(torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(p.targets)) for p in parts
    )
    return Dataset(*hold_out(train, heldout, split_seed), test, 10, mean=tuple(mean), std=tuple(std), augment=augment)


def imagefolder(
    root: str,
    size: int,
    heldout: float,
    split_seed: int,
    augment: Augment,
    cache: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Dataset:
    """Any tree `root`/train/<class>/*.jpg, `root`/test/<class>/*.jpg; classes are numbered in alphabetical order.

    Images are made RGB; those of another size are resized so that the shorter side fits and cropped to the centre.
    They are decoded once: `cache` keeps the arrays, until a file in the tree changes its name, size or time.
    """
    if not root:
        raise UserError("dataset.root is not set: give the folder that holds train/<class>/ and test/<class>/.")
    found = {part: _listing(Path(root) / part) for part in ("train", "test")}
    classes = sorted({name for name, _ in found["train"]})
    if strange := sorted({name for name, _ in found["test"]} - set(classes)):
        raise UserError(f"{root}/test has classes that {root}/train lacks: {', '.join(strange[:5])}.")
    if len(classes) < 2:
        raise UserError(f"{root}/train has {len(classes)} class folder; at least two are needed.")
    stamp = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for part in found.values() for _, p in part]
    folder = Path(cache) / f"imagefolder-{digest([size, stamp])[:16]}"
    if not folder.is_dir():
        arrays = {}
        for part, files in found.items():
            arrays[f"{part}_x"] = _decode([path for _, path in files], size, f"decoding {part}")
            arrays[f"{part}_y"] = torch.tensor([classes.index(name) for name, _ in files])
        try:
            with new_folder(folder) as new:
                save_file(arrays, new / "arrays.safetensors")
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    arrays = load_file(folder / "arrays.safetensors")
    train, test = (ImageSet(arrays[f"{part}_x"], arrays[f"{part}_y"]) for part in ("train", "test"))
    return Dataset(
        *hold_out(train, heldout, split_seed), test, len(classes), mean=tuple(mean), std=tuple(std), augment=augment
    )


def _listing(folder: Path) -> list[tuple[str, Path]]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; an image folder holds train/<class>/ and test/<class>/.")
    files = [
        (entry.name, path)
        for entry in sorted(folder.iterdir())
        if entry.is_dir()
        for path in sorted(entry.rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise UserError(f"{folder} holds no images in class folders (looked for {', '.join(sorted(SUFFIXES))}).")
    return files


def _decode(paths: list[Path], size: int, label: str) -> Tensor:
    """[N, 3, size, size] uint8, by threads (the decoder releases the interpreter)."""
    from PIL import Image, ImageOps

    out = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)

    def one(index: int) -> None:
        try:
            with Image.open(paths[index]) as file:
                image = file.convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{paths[index]} cannot be read as an image ({error}): mend it or remove it.") from error
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        out[index] = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)

    with progress(label, len(paths)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(one, range(len(paths))):
            advance()
    return out
