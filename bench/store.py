"""Backdoored models on disk: each is trained once, whoever asks, and verified whenever it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bench import PROTOCOL, shelf
from bench.attacks.base import Backdoor
from bench.files import digest


def folder_for(runs: str, cell: Mapping[str, Any], material: Mapping[str, Any]) -> Path:
    """<runs>/backdoors/<dataset>/<model>/<attack>/s<seed>-<key>: the key covers what shapes the model and nothing else."""
    seed = cell["seed"]
    key = digest({"protocol": PROTOCOL, "seed": seed, **material})[:12]
    return Path(runs, "backdoors", cell["dataset"], cell["model"], cell["attack"], f"s{seed}-{key}")


def load_or_make(folder: Path, blank: Backdoor, make: Callable[[Backdoor], dict[str, Any]]) -> Backdoor:
    """The backdoor stored in `folder`; if there is none, `make(blank)` trains it and returns its card, and it is stored.

    One process trains, others wait for it. A damaged model is set aside, named and trained again.
    """

    def fill(new: Path) -> None:
        _write(blank.model.state_dict(), new / "model.safetensors")
        _write(blank.trigger.state_dict(), new / "trigger.safetensors")
        if blank.samples:
            _write(blank.samples, new / "samples.safetensors")

    card = shelf.obtain(folder, "training this model", lambda: make(blank), fill)
    blank.model.load_state_dict(load_file(folder / "model.safetensors"))
    blank.trigger.load_state_dict(load_file(folder / "trigger.safetensors"))
    blank.model.to(memory_format=torch.channels_last).eval()
    return Backdoor(blank.model, blank.trigger, card, name=folder.name)


class Clean:
    """A clean model in the store, trained if it is not there. Most cells need what its card says and never load it."""

    def __init__(self, folder: Path, obtain: Callable[[], Backdoor], device: torch.device) -> None:
        self.name, self.obtain, self.device = folder.name, obtain, device
        self.card = shelf.stated(folder) or self.whole.card

    @cached_property
    def whole(self) -> Backdoor:
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # loaded sooner, later or never, it moves nobody's chance
            return self.obtain()

    @property
    def model(self) -> nn.Module:
        return self.whole.model


def _write(tensors: Mapping[str, Tensor], path: Path) -> None:
    path.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


if __name__ == "__main__":
    from bench.upkeep import main

    raise SystemExit(main())
