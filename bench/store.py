"""Backdoored models on disk: each is trained once, whoever asks, and verified whenever it is loaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from bench import PROTOCOL
from bench.attacks.base import Backdoor
from bench.errors import UserError
from bench.files import digest, new_folder, set_aside, sha256

log = logging.getLogger(__name__)


def folder_for(root: Path, names: tuple[str, str, str], seed: int, material: dict[str, Any]) -> Path:
    """<root>/<dataset>/<model>/<attack>/s<seed>-<key>; the key covers everything that shapes the model and nothing else."""
    return root.joinpath(*names, f"s{seed}-{digest({'protocol': PROTOCOL, 'seed': seed, **material})[:12]}")


def load_or_make(folder: Path, blank: Backdoor, make: Callable[[Backdoor], dict[str, Any]]) -> Backdoor:
    """The backdoor stored in `folder`; if there is none, `make(blank)` trains it and returns its card, and it is stored.

    One process trains, others wait for it. A damaged model is set aside and reported (UserError).
    """
    if not (folder / "card.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            log.info("waiting: another process is training %s", folder)
            lock.acquire()
        with lock:
            if not (folder / "card.json").is_file():
                card = make(blank)
                with new_folder(folder) as new:
                    _save(blank.model, new / "model.safetensors")
                    _save(blank.trigger, new / "trigger.safetensors")
                    card["sha256"] = {path.name: sha256(path) for path in sorted(new.iterdir())}
                    card["sha256"]["card"] = digest(card)
                    (new / "card.json").write_text(json.dumps(card, indent=1) + "\n")
        lock.release(force=True)
    return _load(folder, blank)


def _save(module: nn.Module, path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}, path)


def _load(folder: Path, blank: Backdoor) -> Backdoor:
    try:
        card = json.loads((folder / "card.json").read_text())
        if card["sha256"].pop("card") != digest(card):
            raise ValueError("its card was changed")
        for name, expected in card["sha256"].items():
            if sha256(folder / name) != expected:
                raise ValueError(f"the sha256 of {name} is not the one on its card")
        blank.model.load_state_dict(load_file(folder / "model.safetensors"))
        blank.trigger.load_state_dict(load_file(folder / "trigger.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        aside = set_aside(folder)
        raise UserError(
            f"the stored backdoor {folder} is damaged ({error}); it was moved to {aside.name}. "
            f"Run the same command again to train it anew."
        ) from error
    blank.model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return Backdoor(blank.model, blank.trigger, card)
