"""Image files, in folders or in a zip, to uint8 arrays: decoded once, kept in one file, mapped by every job."""

from __future__ import annotations

import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.errors import UserError
from bench.files import digest, new_folder
from bench.progress import progress

log = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
Listing = list[tuple[str, Any]]
"""(class name, a Path or a zipfile.Path) of each image."""


def named(parts: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    (train_x, train_y), (test_x, test_y) = parts
    return {"train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y}


def stamps(paths: Iterable[Any]) -> list[tuple[str, int, int]]:
    """What tells a file from a changed one; of a file in a zip, its checksum."""
    out = []
    for path in paths:
        if isinstance(path, zipfile.Path):
            info = path.root.getinfo(path.at)
            out.append((path.at, info.file_size, info.CRC))
        else:
            status = path.stat()
            out.append((str(path), status.st_size, status.st_mtime_ns))
    return out


def cached(cache: str, name: str, key: list[Any], read: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The arrays that `read` makes, mapped from a file that is made once for this key."""
    folder = Path(cache) / f"{name}-{digest(key)[:16]}"
    if not folder.is_dir():
        arrays = read()
        try:
            with new_folder(folder) as new:
                save_file(arrays, new / "arrays.safetensors")
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    return load_file(folder / "arrays.safetensors")


def listing(folder: Any, layout: str) -> Listing:
    """The images in `folder`/<class>/, at any depth, in alphabetical order; names with a dot in front are passed over.

    Raises UserError if there is no such folder, if a class has no image (the others would be numbered anew), if a link leads
    to a folder that is there already, or if an image is no regular file. What is no image by its name is counted in the log.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; {layout}.")
    files, others, seen = [], dict[str, int](), set[tuple[int, int]]()
    for entry in sorted(folder.iterdir(), key=str):
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        found = sorted(_below(entry, seen), key=str)
        images = [(entry.name, path) for path in found if ending(path) in SUFFIXES]
        if not images:
            said = f"{entry} holds no images (looked for {', '.join(sorted(SUFFIXES))})"
            raise UserError(f"{said}: each folder there is a class, so put some in or remove it.")
        for path in found:
            if (suffix := ending(path)) not in SUFFIXES | {".txt"}:  # Tiny ImageNet's boxes
                others[suffix or "no suffix"] = others.get(suffix or "no suffix", 0) + 1
        files += images
    if not files:
        raise UserError(f"{folder} holds no images in class folders (looked for {', '.join(sorted(SUFFIXES))}).")
    if others:
        kinds = ", ".join(f"{count} with {suffix}" for suffix, count in sorted(others.items()))
        log.warning("%s: files that are no images by their names are passed over: %s.", folder, kinds)
    return files


def ending(path: Any) -> str:
    """The suffix, in small letters, of a Path or a zipfile.Path."""
    return Path(path.name).suffix.lower()


def _below(folder: Any, seen: set[tuple[int, int]]) -> Iterable[Any]:
    """The files in a folder and in those below. `seen`: folders met so far, as a disk numbers them."""
    if isinstance(folder, Path):
        status = folder.stat()
        if (place := (status.st_dev, status.st_ino)) in seen and status.st_ino:
            raise UserError(f"{folder} is a link to a folder whose images are counted already: remove it.")
        seen.add(place)
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _below(entry, seen)
        elif entry.is_file():
            yield entry
        elif ending(entry) in SUFFIXES:
            raise UserError(f"{entry} is no file, or a link to nowhere: mend it or remove it.")


def decode(paths: Sequence[Any], size: int, label: str) -> Tensor:
    """[N, 3, size, size] uint8, by threads (the decoder releases the interpreter)."""
    from PIL import Image, ImageOps

    broken = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, Image.DecompressionBombError)
    out = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)

    def one(index: int) -> None:
        try:
            with paths[index].open("rb") as data, Image.open(data) as file:
                if file.mode.startswith(("I", "F")):
                    raise ValueError("more than 8 bits in each pixel would be cut off")
                image = file.convert("RGB")
        except broken as error:
            raise UserError(f"{paths[index]} cannot be read as an image ({error}): mend it or remove it.") from error
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        out[index] = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)

    with progress(label, len(paths)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(one, range(len(paths))):
            advance()
    return out
