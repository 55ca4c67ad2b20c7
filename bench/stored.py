"""What lies in runs/, picked up again: a stored backdoor, or a finished cell with its repair. Nothing is trained."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.schema import RECORD_LIMIT, read_text
from analysis.settings import CONFIG_LIMIT, mapping
from bench import config, shelf, signatures, store
from bench.errors import UserError
from bench.parts import make, own
from bench.purified import compare
from bench.scene import Outcome, Scene, repair, scene

Settings = dict[str, Any]
PASSIVE = {"gate": {"min_asr": 0.0, "max_drop": None}, "threads": None}
"""Looking at a stored backdoor compares it with nothing."""
NODES = ("dataset", "model", "attack", "train", "defense", "clean", "selection", "gate")
STRANGE = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)
"""What reading somebody's files raises if they are not as the bench writes them."""


@dataclass(frozen=True)
class Found:
    """A folder in runs/: the settings behind it and the names of its parts; the record, if it is a cell's."""

    folder: Path
    settings: Settings
    names: dict[str, Any]
    record: dict[str, Any] | None = None

    @property
    def name(self) -> Path:
        """<dataset>/<model>/<attack>/<defense>/<folder>, without the defence for a backdoor."""
        parts = [str(self.names[key]) for key in ("dataset", "model", "attack", "defense") if key in self.names]
        return Path(*parts, self.folder.name)


def find(folder: str | Path, root: str | None = None, device: str = "auto") -> Found:
    """What this folder is. `root`: where the data set lies, if not where it did. Raises UserError if it is neither."""
    folder = Path(folder).resolve()
    if (folder / "card.json").is_file():
        found = _backdoor(folder)
    elif (folder / "record.json").is_file():
        found = _cell(folder)
    else:
        raise UserError(
            f"{folder} is neither a finished cell (record.json) nor a stored backdoor (card.json): give such a folder of runs/."
        )
    found.settings["device"] = device
    if root is not None:
        found.settings["dataset"]["root"] = root
    return found


def open_scene(found: Found) -> Scene:
    """The data, the stored model (verified) and its exam. Nothing is trained: raises UserError if it is not there, or damaged."""
    settings, names = found.settings, found.names
    data = make(settings["dataset"])
    material = config.backdoor_material(settings, data.digest)
    wanted = store.folder_for(settings["runs"], names, material)
    if not (wanted / "card.json").is_file():
        raise UserError(
            f"the backdoored model behind {found.folder} is not in {wanted}: it was moved, or the data set differs from then."
        )
    _verified(wanted)
    return scene(settings, names, make, stored=True)


def run_again(found: Found, stage: Scene) -> Outcome:
    """The cell's repair, done again. Raises UserError if the model at the operating point is not the one on record."""
    if found.record is None:
        raise ValueError("a stored backdoor has no repair")
    outcome = repair(stage, make(found.settings["defense"]), keep=True)
    assert outcome.chosen is not None, "a curve has at least one row"
    compare(found.folder, found.record, outcome.chosen.row)
    return outcome


def _verified(folder: Path) -> shelf.Card:
    """The card of a stored model. Raises UserError, with the command that makes a damaged one again."""
    try:
        return shelf.verified(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}.") from error
    except shelf.Damaged as problem:
        said, seed = f"{folder} is damaged: {problem}.", folder.name[1:].rpartition("-")[0]
        if len(folder.parts) > 5:
            dataset, model, attack = folder.parts[-4:-1]
            said += (
                f" python bench/run.py dataset={dataset} model={model} attack={attack} defense=none seed={seed} save=true "
                f"runs={folder.parents[4]}, with the other settings that it was trained with, sets it aside and makes it again."
            )
        raise UserError(said) from problem


def _backdoor(folder: Path) -> Found:
    card = _verified(folder)
    try:
        made = card["from"]
        dataset, model, attack = folder.parts[-4:-1]
        seed, runs = int(folder.name[1:].rpartition("-")[0]), str(folder.parents[4])
        settings = {key: dict(made[key]) for key in ("dataset", "model", "attack", "train")}
        target = own(settings["dataset"].get("_target_"))  # before it is imported
        if "checkpoint" in settings["model"]:
            raise UserError(
                f"{folder} came from a file of somebody else: take a finished cell of it, which names that file."
            )
    except STRANGE as error:
        raise UserError(f"{folder} is not named, or its card not made, as those of runs/backdoors.") from error
    where = {"root": "data", "cache": str(Path(runs, "cache")), "download": False}
    takes = signatures.takes(target, "dataset")
    settings["dataset"] |= {key: value for key, value in where.items() if key in takes}
    names = {"dataset": dataset, "model": model, "attack": attack, "seed": seed}
    return Found(folder, settings | PASSIVE | {"seed": seed, "runs": runs}, names)


def _cell(folder: Path) -> Found:
    try:
        record = json.loads(read_text(folder / "record.json", RECORD_LIMIT))
        settings = mapping(read_text(folder / ".hydra/config.yaml", CONFIG_LIMIT))
        runs = str(folder.parents[4])
        settings = _said(settings, {"runs": str(settings["runs"])}) | {"runs": runs}
        if wrong := [key for key in NODES if not isinstance(settings[key], dict)]:
            raise ValueError(f"its settings for {wrong[0]} are no mapping")
        if type(settings["seed"]) is not int:
            raise ValueError("its seed is no whole number")
        names = {key: _name(record[key]) for key in ("dataset", "model", "attack", "defense")}
        ours = {"id": record["id"], "seed": record["seed"]} == {"id": config.run_id(settings), "seed": settings["seed"]}
    except STRANGE as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error).strip().partition("\n")[0][:200]
        raise UserError(f"{folder} is no finished cell of the bench: {why}.") from error
    if not ours:
        raise UserError(f"{folder}: .hydra/config.yaml is not what its record.json was made with.")
    return Found(folder, settings, names | {"seed": settings["seed"]}, record)


def _name(said: Any) -> str:
    """What a record calls one of its parts; exports are put into folders of these names."""
    if not re.fullmatch(r"\w[\w.,@=+-]*", str(said)):
        raise ValueError(f"{str(said)[:80]!r} is no name of a part")
    return str(said)


def _said(node: Any, words: Mapping[str, str]) -> Any:
    """Settings with ${runs} in them said out; the file holds them as they were typed."""
    if isinstance(node, dict):
        return {key: _said(value, words) for key, value in node.items()}
    if isinstance(node, list):
        return [_said(value, words) for value in node]
    if isinstance(node, str):
        for word, said in words.items():
            node = node.replace(f"${{{word}}}", said)
    return node
