"""Takes an interrupted training up where it was: all that shapes its next step is kept beside the model to be.

On the same device, with as many threads, the end is the same to the last bit. What is kept are safetensors, with the rest
as JSON in their header; each file is verified by the sha256 in its name, and no pickle is read or written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from bench import faults, files

log = logging.getLogger(__name__)

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
WORTH = 30.0  # seconds of work after which the end of a training is kept, where another may follow


class Keep:
    """The trainings of one model, numbered as they come: an attack may train an encoder before the classifier.

    `folder`: where they are kept. `minutes`: after so many the state is written, at the end of a step (None: never); besides,
    it is written when the process is told to stop. `exact`: whether all of it ran on this device with this many threads.
    """

    def __init__(self, folder: Path, minutes: float | None, device: torch.device) -> None:
        self.folder, self.device, self.parts = folder, device, 0
        self.every = math.inf if minutes is None else 60 * minutes
        self.last = self.started = time.monotonic()
        self.earlier, self.interruptions, self.exact = 0.0, 0, True

    @property
    def seconds(self) -> float:
        """Of work so far, that before interruptions included."""
        return self.earlier + time.monotonic() - self.started

    def environment(self) -> list[Any]:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return [name, torch.get_num_threads(), torch.__version__]


class Part:
    """One training. A context: within it, the first signal to stop is obeyed at the end of a step, a second one at once.

    `things`: what has a state that shapes the next step: tensors, generators, modules, optimisers, schedules (or None).
    Without a `keep` it does nothing.
    """

    def __init__(self, keep: Keep | None, **things: Any) -> None:
        self.keep, self.things = keep, things
        self.number = keep.parts if keep else 0
        self.caught: list[int] = []
        self.before: dict[int, Any] = {}
        if keep:
            keep.parts += 1

    def __enter__(self) -> Part:
        if self.keep and threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler) or number == signal.SIGTERM:
                    self.before[number] = handler
                    signal.signal(number, self.note)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.let_go()
        if kind is None:
            self.obey()

    def let_go(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def note(self, number: int, frame: object) -> None:
        self.caught.append(number)
        self.let_go()

    def obey(self) -> None:
        while self.caught:
            signal.raise_signal(self.caught.pop())

    def due(self) -> bool:
        if self.keep is None:
            return False
        return bool(self.caught) or time.monotonic() - self.keep.last >= self.keep.every

    def save(self, place: Mapping[str, Any]) -> None:
        """Keeps the state of all things, and `place`: plain data and tensors. Then does what a signal asked for."""
        assert self.keep
        tensors: dict[str, Tensor] = {}
        whole = {
            "place": dict(place),
            "things": {name: state(thing) for name, thing in self.things.items()},
            "chance": chance(self.keep.device),
            "seconds": self.keep.seconds,
            "environment": self.keep.environment(),
        }
        packed = json.dumps(pack(whole, tensors))
        content = save(tensors, {"state": packed})
        old = self.found()
        serial = 1 + max((int(path.name.split(".")[1]) for path in old), default=0)
        name = f"{self.number}.{serial}.{hashlib.sha256(content).hexdigest()}.safetensors"
        faults.hit("resume.save")
        # No folder: this process was taken for dead, and the other has made the model and cleaned up.
        with suppress(FileNotFoundError):
            files.publish(self.keep.folder / name, content)
        faults.hit("resume.saved")
        for path in old:
            path.unlink(missing_ok=True)
        self.keep.last = time.monotonic()
        if self.caught:
            log.info("told to stop: this training goes on from here when the same command is given again.")
            self.obey()

    def finish(self, place: Mapping[str, Any]) -> None:
        """Keeps the end of this training where that is worth it."""
        if self.keep and (self.caught or time.monotonic() - self.keep.last >= min(WORTH, self.keep.every)):
            self.save(place)

    def load(self) -> dict[str, Any] | None:
        """Restores all things as last kept and returns the place; None if nothing is kept."""
        for path in self.found() if self.keep else []:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != path.name.split(".")[2]:
                log.warning("%s is damaged; it is set aside as %s and not used.", path, files.set_aside(path).name)
                continue
            with safe_open(path, "pt") as file:
                whole = unpack(json.loads(file.metadata()["state"]), load(content))
            return self.restore(whole)
        return None

    def restore(self, whole: Mapping[str, Any]) -> dict[str, Any]:
        assert self.keep
        for name, thing in self.things.items():
            give(thing, whole["things"][name])
        set_chance(self.keep.device, whole["chance"])
        if whole["environment"] != self.keep.environment():
            self.keep.exact = False
            log.warning("this training began on %s and goes on on %s: it may end a little differently.",
                        whole["environment"], self.keep.environment())  # fmt: skip
        self.keep.earlier = max(self.keep.earlier, whole["seconds"])
        self.keep.interruptions += 1
        return dict(whole["place"])

    def found(self) -> list[Path]:
        """What is kept of this training, the latest first."""
        assert self.keep
        kept = self.keep.folder.glob(f"{self.number}.*.*.safetensors")
        return sorted(kept, key=lambda path: -int(path.name.split(".")[1]))


def chance(device: torch.device) -> list[Tensor]:
    """PyTorch's own generators, which layers such as dropout draw from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_chance(device: torch.device, states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def state(thing: Any) -> Any:
    if isinstance(thing, tuple):
        return tuple(state(part) for part in thing)
    if thing is None or isinstance(thing, Tensor):
        return thing
    if isinstance(thing, torch.Generator):
        return thing.get_state()
    if isinstance(thing, nn.Module):  # gradients may add up over steps
        slopes = {name: weight.grad for name, weight in thing.named_parameters() if weight.grad is not None}
        return {"state": thing.state_dict(), "slopes": slopes}
    return thing.state_dict()


@torch.no_grad()
def give(thing: Any, kept: Any) -> None:
    """Puts a state back, in place: whoever holds the thing sees it."""
    if isinstance(thing, tuple):
        for part, of in zip(thing, kept, strict=True):
            give(part, of)
    elif isinstance(thing, Tensor):
        thing.copy_(kept)
    elif isinstance(thing, torch.Generator):
        thing.set_state(kept)
    elif isinstance(thing, nn.Module):
        thing.load_state_dict(kept["state"])
        for name, weight in thing.named_parameters():
            weight.grad = kept["slopes"][name].to(weight.device) if name in kept["slopes"] else None
    elif thing is not None:
        thing.load_state_dict(kept)


def pack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Plain data as JSON can hold it, with numbers in place of tensors, which go to `tensors`."""
    if isinstance(tree, Tensor):
        name = str(len(tensors))
        tensors[name] = tree.detach().cpu().clone(memory_format=torch.contiguous_format)
        last = tree.dim() == 4 and not tree.is_contiguous() and tree.is_contiguous(memory_format=torch.channels_last)
        return {"tensor": name, "channels_last": last}
    if isinstance(tree, Mapping):
        return {"map": [[pack(key, tensors), pack(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, tuple | list):
        return {type(tree).__name__: [pack(value, tensors) for value in tree]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"a training cannot keep {type(tree).__name__}")


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        found = tensors[tree["tensor"]]
        return found.to(memory_format=torch.channels_last) if tree["channels_last"] else found
    if "map" in tree:
        return {unpack(key, tensors): unpack(value, tensors) for key, value in tree["map"]}
    ((kind, values),) = tree.items()
    return {"tuple": tuple, "list": list}[kind](unpack(value, tensors) for value in values)
