"""Backdoored models on disk: each is trained once, whoever asks, and verified whenever it is loaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench import PROTOCOL
from bench.attacks.base import Backdoor
from bench.errors import UserError
from bench.files import digest, new_folder, set_aside, sha256

log = logging.getLogger(__name__)


def folder_for(runs: str, cell: Mapping[str, Any], material: Mapping[str, Any]) -> Path:
    """<runs>/backdoors/<dataset>/<model>/<attack>/s<seed>-<key>: the key covers what shapes the model and nothing else."""
    seed = cell["seed"]
    key = digest({"protocol": PROTOCOL, "seed": seed, **material})[:12]
    return Path(runs, "backdoors", cell["dataset"], cell["model"], cell["attack"], f"s{seed}-{key}")


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
        try:
            if not (folder / "card.json").is_file():
                _publish(folder, blank, make(blank))
        finally:
            lock.release()
    return _load(folder, blank)


def _publish(folder: Path, made: Backdoor, card: dict[str, Any]) -> None:
    try:
        with new_folder(folder) as new:
            _write(made.model.state_dict(), new / "model.safetensors")
            _write(made.trigger.state_dict(), new / "trigger.safetensors")
            if made.samples:
                _write(made.samples, new / "samples.safetensors")
            card["sha256"] = {path.name: sha256(path) for path in sorted(new.iterdir())}
            card["sha256"]["card"] = digest(card)
            (new / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    except OSError:
        if not (folder / "card.json").is_file():  # else somebody, where the lock does not reach, was faster
            raise


def _write(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _load(folder: Path, blank: Backdoor) -> Backdoor:
    try:
        card = json.loads((folder / "card.json").read_text())
        if card["sha256"].pop("card") != digest(card):
            raise ValueError("its card was changed")
        for name, expected in card["sha256"].items():
            if sha256(folder / name) != expected:
                raise ValueError(f"the sha256 of {name} is not the one on its card")
        model, trigger = (load_file(folder / f"{part}.safetensors") for part in ("model", "trigger"))
    except PermissionError:  # says nothing about the content
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        aside = set_aside(folder)
        raise UserError(
            f"the stored backdoor {folder} is damaged ({error}); it was moved to {aside.name}. "
            f"Run the same command again to train it anew."
        ) from error
    blank.model.load_state_dict(model)
    blank.trigger.load_state_dict(trigger)
    blank.model.to(memory_format=torch.channels_last).eval()
    return Backdoor(blank.model, blank.trigger, card, name=folder.name)
