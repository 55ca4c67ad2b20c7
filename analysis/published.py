"""The published numbers, and what is known to differ between one of them and a cell of ours that it is held against."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from analysis.operating_point import SENTENCES
from analysis.schema import METRICS, is_percent
from analysis.settings import Settings, by_hand
from analysis.sheets import Key, Sheet

REPORTED = Path(__file__).with_name("reported.csv")


def reported(path: Path = REPORTED) -> list[dict[str, Any]]:
    """The published numbers: names as ours, `printed` as in the source; numbers as floats, None where there is none."""
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        for name in (*METRICS, "at", "poison_rate", "epochs", "clean"):
            row[name] = float(row[name]) if row[name] else None
        if row["rule"] and row["rule"] not in SENTENCES:
            raise ValueError(f"{path.name}: {row['rule']!r} is no rule")
        if not all(row[metric] is None or is_percent(row[metric]) for metric in METRICS):
            raise ValueError(f"{path.name}: {row['printed']} of {row['paper']} holds no percentage")
    return rows


def config(sheet: Sheet, attack: Key, defense: Key, settings: Mapping[str, Settings]) -> Settings:
    """The settings of the first seed; the others have the same."""
    return settings.get(first(sheet, attack, defense)["where"], {})


def first(sheet: Sheet, attack: Key, defense: Key) -> Mapping[str, Any]:
    """The record of the first seed."""
    return sheet.cell(defense, attack).rows[0]


def same_data(row: Mapping[str, Any], ours: tuple[Sheet, Key, Key], settings: Mapping[str, Settings]) -> bool:
    """An image folder is taken for what its path says."""
    name, root = ours[0].dataset[0], config(*ours, settings).get("dataset.root", "")
    return row["dataset"] in (name, name.partition("_")[0]) or (name == "imagefolder" and names(root, row["dataset"]))


def names(root: str, dataset: str) -> bool:
    """Whether the end of a path names that data set: `data/cifar10/png` names cifar10, `data/cifar100` does not."""
    return re.search(rf"{re.escape(dataset)}(?!\d)", "/".join(PurePath(root).parts[-2:])) is not None


def differences(row: Mapping[str, Any], ours: tuple[Sheet, Key, Key], settings: Mapping[str, Settings]) -> list[str]:
    """What is known to differ between a published number and ours, in words."""
    sheet, own = ours[0], config(*ours, settings)
    why = []
    if "jpeg" in sheet.dataset[0] or "jpeg" in own.get("dataset.root", ""):
        why.append("JPEG pixels")
    if sheet.model[0] != row["model"]:
        why.append(f"{sheet.model[0]} for {row['model']}")
    if (width := own.get("model.width", "64")) != "64":
        why.append(f"width {width} for 64")
    here = {"epochs": number_of(own.get("train.epochs")), "clean": number_of(own.get("clean.tune"))}
    here["poison_rate"] = poison_rate(first(*ours), own)
    for key, what in (
        ("epochs", "{} epochs for {}"),
        ("clean", "{} clean images for {}"),
        ("poison_rate", "poison rate {} for {}"),
    ):
        there = row[key]
        if there is None or math.isnan(here[key]) or (row["defense"] == "none" and key == "clean"):
            continue
        if abs(here[key] - there) > 0.01 * there:
            why.append(what.format(f"{here[key]:.3g}", f"{there:g}"))
    words = by_hand(first(*ours)["folder"], ("defense", "attack"))
    return why + [f"{word}, given by hand" for word in words if not word.startswith("attack.poison_rate=")]


def poison_rate(record: Mapping[str, Any], settings: Settings) -> float:
    """The share of the training images, or of what was drawn, that is poisoned; NaN if unknown.

    The setting says so only where it is not a share of the target class or of other victims.
    """
    known = record.get("poison_rate")
    return float(known) if known is not None and known == known else number_of(settings.get("attack.poison_rate"))


def number_of(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        return math.nan
