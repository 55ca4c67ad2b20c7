"""What is left of a suspicious model once it was purified, in files that anybody can read without this bench."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from bench import cell, dense, files
from bench.chosen import Chosen
from bench.errors import UserError
from bench.scene import Scene

log = logging.getLogger(__name__)

COUNTS = ("right", "hit", "robust")


def leave(folder: Path, chosen: Chosen, stage: Scene, smaller: bool, weights: bool) -> dict[str, Any]:
    """Writes the model at the operating point into a cell's folder, in place of what lies there; returns columns of the record.

    `weights`: whether `purified.safetensors` and `purified.pt` are wanted, which hold the same weights, on the CPU; the second
    is a plain state dict for torch.load(..., weights_only=True). Their names are the network's own, unless the defence put layers
    in: then `purified.json` says which, and so does a warning. `pruned.csv` (layer, channel) says what was pruned; there is none
    of a defence that prunes nothing. Normalisation is not in them: the network takes images as the data set's mean and std
    make them. `smaller`: whether the smaller network is wanted, as `dense/`. `purified.json` also has the sha256 of all of them.
    Raises OSError; UserError where the cell has a record of another model.
    """
    if (weights or smaller) and (record := cell.read(folder)):
        compare(folder, record, chosen.row)
    columns = dense.leave(folder / "dense", chosen.model, stage.data.shape) if smaller else {}
    if not weights:
        return columns
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in chosen.model.state_dict().items()}
    new: dict[str, str | bytes] = {"purified.pt": plain(tensors)}
    if chosen.mask is not None:
        rows = (
            f"{layer},{channel}" for layer, gone in chosen.mask.items() for channel in gone.nonzero().flatten().tolist()
        )
        new["pruned.csv"] = "\n".join(["layer,channel", *rows]) + "\n"
    new["purified.safetensors"] = save(tensors)
    facts = {name: chosen.row[name] for name in COUNTS} | (named := names(chosen.model, stage.backdoor.model))
    if named:
        log.warning("%s: %s", folder / "purified.safetensors", named["note"])
    digests = {name: files.digest_of(content) for name, content in new.items()}
    digests |= {f"dense/{path.name}": files.sha256(path) for path in sorted((folder / "dense").glob("*"))}
    last = new.pop("purified.safetensors")  # its presence means that all are there
    files.write_all(
        folder, new | {"purified.json": files.sealed(facts | {"sha256": digests}), "purified.safetensors": last}
    )
    return columns


def plain(content: Any) -> bytes:
    """A file of torch.save, to be written by ourselves: its own writer raises a RuntimeError of other words on a full disk."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def compare(folder: Path, record: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """Raises UserError if a repair that was done again did not come to the counts on record."""
    for column in COUNTS:
        then, now = record.get(column), row[column]
        if then != now:
            raise UserError(
                f"{folder}: done again here, this repair gives {column} {now} and not {then} as on record; the same "
                "machine and number of threads give the same numbers."
            )


def names(model: nn.Module, before: nn.Module) -> dict[str, Any]:
    """Nothing if the weights have the names of the network before; else `changed` (module -> what is there now) and a `note`."""
    if model.state_dict().keys() == before.state_dict().keys():
        return {}
    old, changed = dict(before.named_modules()), dict[str, str]()
    for name, module in model.named_modules():
        if type(module) is not type(old.get(name)) and not any(name.startswith(f"{above}.") for above in changed):
            changed[name] = " ".join(repr(module).split())
    note = (
        f"the defence put layers in, so the weights do not fit the plain network: first put there what `changed` says "
        f"({', '.join(changed) or 'see the names'}), as with set_submodule, then load_state_dict."
    )
    return {"note": note, "changed": changed}
