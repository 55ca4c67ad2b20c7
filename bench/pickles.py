"""Looks into a pickle without executing any of it, and says what loading it would call, with which arguments.

torch.load(weights_only=True) calls nothing but a list of known functions, yet with whatever arguments the file gives them:
1.7 kB may ask for 10^12 elements. Here each call must be one that a checkpoint needs, with arguments that make sense.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import IO, Any

from bench.rebuilt import CALLS, Refused, Thing, built, called, want, whole

BYTES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1,
         "Bool": 1}  # fmt: skip
"""Kinds of torch storage, and the bytes of an element. No sparse, quantised or complex ones."""
NAMES = set(CALLS) | {"numpy.ndarray"} | {f"torch.{kind}Storage" for kind in BYTES}
PLAIN = {
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINSTRING",
}


@dataclass(frozen=True)
class Store:
    """A piece of numbers that the pickle refers to: its key, how many, and the bytes of each."""

    key: str
    count: int
    bytes: int


def walk(file: IO[bytes]) -> tuple[Any, dict[str, Store]]:
    """(what the next pickle in the file would become, the stores of numbers that it names).

    Dicts, lists, tuples, numbers and words are as they are; all else is a `Thing`. Raises Refused, in time and memory in
    proportion to the file. The file stands behind the pickle afterwards.
    """
    machine = Walk()
    try:
        for op, argument, _ in pickletools.genops(file):
            if op.name == "STOP":
                return machine.stack.pop(), machine.stores
            machine.step(op.name, argument)
    except Refused:
        raise
    except (ValueError, IndexError, KeyError, TypeError, EOFError, OverflowError, RecursionError) as error:
        raise Refused(f"is damaged, or no pickle: {str(error)[:80] or type(error).__name__}") from error
    raise Refused("is cut off: its pickle has no end")


class Walk:
    """The stack machine of a pickle, of which only what torch.save writes is known."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.stores: dict[str, Store] = {}

    def step(self, op: str, argument: Any) -> None:
        stack = self.stack
        if op in PLAIN:
            stack.append(argument if op not in ("NEWTRUE", "NEWFALSE") else op == "NEWTRUE")
        elif op == "PROTO":
            if argument != 2:
                raise Refused(f"has pickle protocol {argument}; torch.save writes 2")
        elif op == "GLOBAL":
            stack.append(Thing(named(*argument.split(" ", 1))))
        elif op == "MARK":
            self.marked.append(stack)
            self.stack = []
        elif op in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[op]())
        elif op in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif op in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(op[-1])
            if len(stack) < count:
                raise Refused("is damaged: its stack is empty")
            stack[-count:] = [tuple(stack[-count:])]
        elif op == "TUPLE":
            items = self.since_mark()
            self.stack.append(tuple(items))
        elif op in ("APPEND", "APPENDS"):
            items = [stack.pop()] if op == "APPEND" else self.since_mark()
            want(type(self.stack[-1]) is list, "appends to something that is no list")
            self.stack[-1].extend(items)
        elif op in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if op == "SETITEM" else self.since_mark()
            want(type(self.stack[-1]) is dict and len(items) % 2 == 0, "sets items of something that is no dict")
            for key, value in zip(items[::2], items[1::2], strict=True):
                self.stack[-1][hashable(key)] = value
        elif op == "BINPERSID":
            stack.append(self.store(stack.pop()))
        elif op == "REDUCE":
            arguments = stack.pop()
            stack[-1] = called(stack[-1], arguments)
        elif op == "BUILD":
            state = stack.pop()
            built(stack[-1], state)
        else:
            raise Refused(f"holds what no checkpoint needs (pickle code {op})")

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def store(self, said: Any) -> Thing:
        """What `torch.save` writes where a tensor's numbers belong; the fifth or sixth part, a view, is of old files."""
        want(
            type(said) is tuple and len(said) in (5, 6) and said[0] == "storage",
            "refers to something that is no storage",
        )
        _, kind, key, where, count, *view = said
        want(
            type(kind) is Thing and kind.kind.endswith("Storage") and kind.kind in NAMES,
            "has a storage of no known kind",
        )
        want(type(key) is str and type(where) is str and whole(count), "has a storage that is badly described")
        want(view in ([], [None]), "has a storage that is a view of another")
        store = Store(key, count, BYTES[kind.kind.removeprefix("torch.").removesuffix("Storage")])
        want(self.stores.setdefault(key, store) == store, "describes one storage in two ways")
        return Thing("storage", count)


def named(module: str, name: str) -> str:
    full = f"{module}.{name}"
    if full in NAMES:
        return full
    if module.startswith("torch") and any(
        word in name.lower() for word in ("sparse", "qtensor", "qint", "quint", "meta")
    ):
        raise Refused(f"holds sparse, quantised or empty tensors ({full[:80]}); save ordinary ones")
    raise Refused(
        f"is more than weights: it asks for {full[:80]!r}, which loading it would run, so it was not loaded; "
        "save the model's state_dict alone"
    )


def hashable(key: Any) -> Any:
    """What may be a dict's key: words and numbers, also numpy's. No tuples, whose hash may take for ever."""
    if type(key) is Thing and key.kind == "scalar":
        return key
    want(type(key) in (str, int, float, bool, type(None)), "has a dict with keys that are no words or numbers")
    return key
