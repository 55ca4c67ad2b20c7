"""Model files of this bench and of others, read without running anything that is in them. The one place with torch.load.

A .pt, .pth, .th or .tar is looked into first (`bench.pickles`). What torch reads then is an archive written anew from the
parts that were looked at, with weights_only=True and a few numpy names besides, so that no second reading of the file can differ.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bench.errors import UserError
from bench.pickles import Store, walk
from bench.pieces import zipped
from bench.rebuilt import NUMBERS, NUMPY, Refused

LIMIT = 4 << 30
"""Bytes of a file; DenseNet-161 has 0.1 GiB."""
PICKLE_LIMIT = 64 << 20
"""Bytes of an archive's pickle; BackdoorBench's list of 60,000 images has 6 MiB."""
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""What files of torch before 1.6 begin with."""
CORE = getattr(np, "_core", None) or np.core
ALLOWED: list[Any] = [np.ndarray, np.dtype, *{type(np.dtype(name)) for name in NUMBERS}]
ALLOWED += [(getattr(CORE.multiarray, name.rpartition(".")[2]), name) for name in sorted(NUMPY)]
NESTED = {
    "state_dict": "RNP, EP or CLP",
    "net": "the CIFAR code",
    "model_state_dict": "torch's tutorials",
    "netC": "WaNet",
}
"""Under which key a file may hold its weights besides `model` (BackdoorBench), and whose habit that is."""


@dataclass(frozen=True)
class Checkpoint:
    """`weights`: name -> tensor, on the CPU. `rest`: what else is in the file, as plain data. `kind`: whose file it is."""

    path: Path
    kind: str
    weights: dict[str, Tensor]
    rest: dict[str, Any] = field(default_factory=dict)


def checkpoint(path: str | Path) -> Checkpoint:
    """Weights of a model file, whoever wrote it. Raises UserError if it is none, damaged, or more than data."""
    path = Path(path)
    content = read(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds no model: it is {_called(content)}.")
    if is_weights(content):
        return Checkpoint(path, "safetensors" if _suffix(path) else "state dict", dict(content))
    if isinstance(content.get("model"), dict) and is_weights(content["model"]):
        rest = {key: value for key, value in content.items() if key != "model"}
        kind = "BackdoorBench" if "model_name" in content else "a wrapped state dict"
        return Checkpoint(path, kind, dict(content["model"]), rest)
    for key, kind in NESTED.items():
        if isinstance(content.get(key), dict) and is_weights(content[key]):
            return Checkpoint(path, kind, dict(content[key]), {k: v for k, v in content.items() if k != key})
    keys = ", ".join(str(key) for key in list(content)[:6])
    raise UserError(
        f"{path} holds no model that the bench knows: it has {keys}; a state dict is known by itself, or as model, "
        f"{', '.join(NESTED)}."
    )


def is_weights(found: Mapping[Any, Any]) -> bool:
    return bool(found) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())


def read(path: Path) -> Any:
    """What is in a .safetensors file or a torch checkpoint: tensors, arrays, numbers, words, lists, dicts. On the CPU.

    Raises UserError, in one sentence, for anything that is not only data, and for what would take more memory than the
    file has bytes.
    """
    try:
        bytes_ = path.stat().st_size
        if not path.is_file():
            raise Refused("is no file")
        if bytes_ > LIMIT:
            raise Refused(f"has {bytes_ >> 30} GiB, more than the {LIMIT >> 30} GiB that are read")
        with path.open("rb") as file:
            head = file.read(len(MAGIC))
        if head[:4] == b"PK\x03\x04":
            safe: IO[bytes] = _rewritten(path.read_bytes())
        elif head == MAGIC:
            safe = _old(path.read_bytes())
        elif head[8:9] == b"{":
            return load_file(path)
        else:
            raise Refused(_what(head))
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(safe, map_location="cpu", weights_only=True)
    except Refused as error:
        raise UserError(f"{path} {error}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (
        zipfile.BadZipFile,
        SafetensorError,
        RuntimeError,
        ValueError,
        EOFError,
        NotImplementedError,
        struct.error,
    ) as error:
        raise UserError(f"{path} is damaged, or no checkpoint: {_line(error)}.") from error
    except Exception as error:  # torch's own unpickler has the last word; its errors are of many kinds
        raise UserError(f"{path} was refused by torch.load(weights_only=True): {_line(error)}.") from error


def _what(head: bytes) -> str:
    if head[:1] == b"\x80":
        return "is a pickle that torch did not write, and reading it could run code; save the model's state_dict with torch.save"
    if head[:2] in (b"\x1f\x8b", b"BZ"):
        return "is compressed; unpack it first"
    return "is neither a .safetensors file nor a torch checkpoint"


def _rewritten(data: bytes) -> IO[bytes]:
    """The archive that torch.save wrote, reduced to what its pickle names and in an order of its own."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        listed = archive.infolist()
        entries = {entry.filename: entry for entry in listed}
        if any(name.split("/")[1:2] == ["code"] or name.endswith("/constants.pkl") for name in entries):
            raise Refused("is a TorchScript program, not weights; save the model's state_dict")
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in listed):
            raise Refused("is compressed inside, which torch.save never does, so it may unpack to any size")
        if len(entries) < len(listed) or sum(entry.file_size for entry in listed) > len(data):
            raise Refused("is an archive with parts that lie over each other")
        if any(entry.flag_bits & 1 for entry in entries.values()):
            raise Refused("is encrypted")
        tops = {name.partition("/")[0] for name in entries}
        if len(tops) != 1 or f"{(top := tops.pop())}/data.pkl" not in entries:
            raise Refused("is a zip archive, but not one of torch.save")
        if f"{top}/byteorder" in entries and archive.read(f"{top}/byteorder") != b"little":
            raise Refused("was written on a big-endian machine")
        if entries[f"{top}/data.pkl"].file_size > PICKLE_LIMIT:
            raise Refused(f"has a pickle of more than {PICKLE_LIMIT >> 20} MiB")
        pickle = archive.read(f"{top}/data.pkl")
    stream = io.BytesIO(pickle)
    _, stores = walk(stream)
    if stream.tell() != len(pickle):
        raise Refused("has something behind its pickle")
    parts = [("archive/data.pkl", pickle), ("archive/version", b"3\n"), ("archive/byteorder", b"little")]
    new: list[tuple[str, bytes | memoryview, int]] = [(name, part, zlib.crc32(part)) for name, part in parts]
    for store in stores.values():
        entry = entries.get(f"{top}/data/{store.key}")
        if entry is None or entry.file_size != store.count * store.bytes:
            raise Refused(f"lacks the numbers {store.key[:20]!r} that its pickle names, or holds others")
        new.append((f"archive/data/{store.key}", _stored(data, entry), entry.CRC))
    with ThreadPoolExecutor() as threads:  # most of the time that all this takes
        for (name, _, crc), found in zip(new, threads.map(zlib.crc32, [part for _, part, _ in new]), strict=True):
            if found != crc:
                raise Refused(
                    f"is damaged: the checksum of {name.rpartition('/')[2][:20]!r} is not the one it was given"
                )
    return zipped(new)


def _stored(data: bytes, entry: zipfile.ZipInfo) -> memoryview:
    """The bytes of a part, where they lie in the archive."""
    magic, name, extra = struct.unpack_from("<4s22xHH", data, entry.header_offset)
    start = entry.header_offset + 30 + name + extra
    if magic != b"PK\3\4" or start + entry.file_size > len(data):
        raise Refused("is damaged, or no checkpoint: its directory points to where nothing is")
    return memoryview(data)[start : start + entry.file_size]


def _old(data: bytes) -> io.BytesIO:
    """A file of torch before 1.6: magic, protocol, machine, content and the storages' keys as pickles, then the storages."""
    file = io.BytesIO(data)
    _, (protocol, _), (machine, _), (_, stores), (keys, none) = (walk(file) for _ in range(5))
    if protocol != 1001 or not isinstance(machine, dict) or machine.get("little_endian") is not True or none:
        raise Refused("is an old torch file of an unknown protocol or byte order")
    if not isinstance(keys, list) or any(type(key) is not str for key in keys) or sorted(keys) != sorted(stores):
        raise Refused("names other numbers than it holds")
    for key in keys:
        store: Store = stores[key]
        (count,) = struct.unpack("<q", file.read(8))
        if count != store.count or file.seek(store.count * store.bytes, io.SEEK_CUR) > len(data):
            raise Refused("is cut off, or its numbers are not as many as it says")
    if file.tell() != len(data):
        raise Refused("has something behind its numbers")
    file.seek(0)
    return file


def _suffix(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _called(content: Any) -> str:
    return f"a single {type(content).__name__}" if not isinstance(content, dict) else "empty"


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:150]
