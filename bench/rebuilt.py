"""What a checkpoint's pickle may call, and with which arguments: each function here stands in for the real one.

It makes no tensor and no array, only a note of what one would be, and raises Refused where a real one would not be what it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NUMBERS = {"b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"}
"""Kinds of numpy array: plain numbers, nothing that holds objects."""
NUMPY = {f"numpy{core}.multiarray.{name}" for core in (".core", "._core") for name in ("_reconstruct", "scalar")}
MOST_DIMENSIONS, MOST_ITEMS = 32, 2**40


class Refused(Exception):
    """Why a pickle is not loaded: the end of a sentence that begins with the file's name."""


@dataclass(eq=False)
class Thing:
    """Stands for something that was not made. `kind`: its name, or what it would be; `size`: elements, or bytes of one."""

    kind: str
    size: int = 0
    item: str = ""
    ready: bool = True


def want(holds: bool, else_it: str) -> None:
    if not holds:
        raise Refused(else_it)


def whole(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value <= MOST_ITEMS for value in values)


def called(function: Any, arguments: Any) -> Any:
    """What `function(*arguments)` would be. Raises Refused for anything that a checkpoint does not need."""
    want(type(function) is Thing and type(arguments) is tuple, "calls something that is no function")
    make = CALLS.get(function.kind)
    want(make is not None, f"calls {function.kind[:80]!r}, which makes no weights")
    return make(*arguments)  # type: ignore[misc]


def tensor(numbers: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, more: Any = None) -> Thing:
    want(type(numbers) is Thing and numbers.kind == "storage", "has a tensor without a storage")
    want(type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides), "has a tensor of no shape")
    want(len(shape) <= MOST_DIMENSIONS and whole(offset, *shape, *strides), "has a tensor of an impossible shape")
    want(type(grad) is bool and hooks == {} and more is None, "has a tensor with more than numbers")
    count = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if count else 0
    want(count <= numbers.size and (not count or last < numbers.size),
         f"has a tensor of {count} numbers in a storage of {numbers.size}")  # fmt: skip
    return Thing("tensor", count)


def parameter(data: Any, grad: Any, hooks: Any) -> Thing:
    want(
        type(data) is Thing and data.kind == "tensor" and type(grad) is bool and hooks == {}, "has a strange parameter"
    )
    return data


def ordered(*items: Any) -> dict[Any, Any]:
    want(items in ((), ([],)), "has an OrderedDict that is made of something")
    return {}


def size(*shape: Any) -> tuple[int, ...]:
    want(len(shape) == 1 and type(shape[0]) is tuple and len(shape[0]) <= MOST_DIMENSIONS and whole(*shape[0]),
         "has an impossible torch.Size")  # fmt: skip
    return shape[0]


def encoded(text: Any, code: Any) -> bytes:
    """Bytes, as Python 3 writes them in protocol 2."""
    want(type(text) is str and code == "latin1", "encodes something that is no text")
    return text.encode("latin1")


def dtype(name: Any, align: Any = False, copy: Any = True) -> Thing:
    want(type(name) is str and name in NUMBERS, f"has a numpy array of {str(name)[:20]!r}, which are no plain numbers")
    want(type(align) in (bool, int) and type(copy) in (bool, int), "has a strange numpy type")
    return Thing("dtype", int(name[1:]), name)


def scalar(kind: Any, data: Any) -> Thing:
    want(type(kind) is Thing and kind.kind == "dtype" and type(data) is bytes and len(data) == kind.size,
         "has a numpy number of the wrong size")  # fmt: skip
    return Thing("scalar", kind.size, kind.item)


def array(kind: Any, shape: Any, code: Any) -> Thing:
    want(type(kind) is Thing and kind.kind == "numpy.ndarray" and shape == (0,) and code == b"b",
         "has a numpy array that is made of something")  # fmt: skip
    return Thing("array", ready=False)


def built(thing: Any, state: Any) -> None:
    """What is put into an object after it was made: an array's numbers, a type's byte order; nothing else."""
    if type(thing) is dict:  # an OrderedDict's `_metadata`, in state dicts of old and new
        want(type(state) is dict and set(state) <= {"_metadata"}, "puts more than metadata into an OrderedDict")
        return
    want(
        type(thing) is Thing and thing.kind in ("dtype", "array") and type(state) is tuple,
        "puts a state into something",
    )
    if thing.kind == "dtype":
        want(len(state) == 8 and state[0] == 3 and state[1] in ("<", "|") and state[2:5] == (None, None, None)
             and state[5:] == (-1, -1, 0), "has a numpy type that is no plain number")  # fmt: skip
        return
    want(len(state) == 5 and not thing.ready, "has a strange numpy array")
    version, shape, kind, fortran, data = state
    want(
        version == 1 and type(shape) is tuple and len(shape) <= MOST_DIMENSIONS and whole(*shape),
        "has a strange numpy array",
    )
    want(type(kind) is Thing and kind.kind == "dtype" and type(fortran) in (bool, int) and type(data) is bytes,
         "has a numpy array that holds more than numbers")  # fmt: skip
    want(math.prod(shape) * kind.size == len(data), "has a numpy array whose shape and numbers do not fit")
    thing.size, thing.item, thing.ready = math.prod(shape), kind.item, True


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": ordered,
    "torch._utils._rebuild_tensor_v2": tensor,
    "torch._utils._rebuild_parameter": parameter,
    "torch.Size": size,
    "_codecs.encode": encoded,
    "numpy.dtype": dtype,
}
CALLS |= {name: scalar if name.endswith("scalar") else array for name in NUMPY}
