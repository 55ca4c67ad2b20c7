"""What a finished cell leaves in its folder: record.json (written last: its presence means done), curve.csv, and of
pruners scores.csv and layers.csv."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.fingerprints import joined
from analysis.operating_point import SENTENCES, choose
from analysis.revisions import stated
from bench import PROTOCOL, cell
from bench.curve import COLUMNS
from bench.metrics import Metrics, der
from bench.pruning import Scores
from bench.repeat import verdict
from bench.scene import Scene
from bench.store import Clean

log = logging.getLogger(__name__)


def points(
    curve: Sequence[Mapping[str, Any]], before: Metrics, select_before: float, selection: Mapping[str, Any]
) -> dict[str, Any]:
    """The operating points under every rule, as columns `acc_fixed`, `asr_clean_drop`, ...; without suffix: the chosen rule's."""
    drop = selection["max_drop"]
    out: dict[str, Any] = {"rule": selection["rule"], "max_drop": drop}
    for rule in SENTENCES:
        if rule == "oracle" and not before.triggered:  # it goes by ASR
            out |= dict.fromkeys(f"{key}_{rule}" for key in (*COLUMNS, "der") if key != "fixed")
            continue
        row = curve[choose(curve, rule, select_before=select_before, acc_before=before.acc, max_drop=drop)]
        after = Metrics(before.clean, row["right"], before.triggered, row["hit"] or 0, row["robust"] or 0)
        values = {key: row[key] for key in COLUMNS if key != "fixed"} | {"der": der(before, after)}
        out |= {f"{key}_{rule}": value for key, value in values.items()}
        if rule == selection["rule"]:
            out = values | out
    return out


def before(metrics: Metrics, select_acc: float) -> dict[str, Any]:
    """The columns `acc_before`, `asr_before`, ..., and the two numbers of images that hold before and after."""
    names = ("acc", "asr", "ra", "right", "hit", "robust")
    columns = {f"{name}_before": getattr(metrics, name) for name in names} | {"select_acc_before": select_acc}
    columns |= {} if metrics.triggered else {"hit_before": None, "robust_before": None}
    return columns | {"clean": metrics.clean, "triggered": metrics.triggered or None}


def gate(attack: str, before: Metrics, clean: Clean | None, limits: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the attack took: enough ASR, and an ACC near that of a clean model of the same bench. Without one always.

    None where ASR is unknown.
    """
    acc = Metrics(**clean.card["metrics"]).acc if clean else None
    near = limits["max_drop"] is None or acc is None or abs(acc - before.acc) <= limits["max_drop"] + 1e-9
    took = True if attack == "none" else None if before.asr is None else before.asr >= limits["min_asr"] and near
    return {"took": took, "clean_model_acc": acc, "clean_model": clean.name if clean else None}


def cost(scores: Scores | None, repair: float, total: float) -> dict[str, Any]:
    """Seconds of the repair and of the curve's evaluation; channels a pruner had to choose from (None: not a pruner)."""
    channels = None if scores is None else sum(len(values) for values in scores.values())
    return {"channels": channels, "seconds": repair, "seconds_curve": total - repair}


def origin(stage: Scene, code: str) -> dict[str, Any]:
    """What a second run can be held against: code, revisions, digests of weights and predictions, and how equal it will be.

    `code`: the fingerprints of what this cell itself ran; those of what made its models come from their cards.
    """
    backdoor, settings = stage.backdoor, stage.settings
    stored = backdoor.card["sha256"]
    digests = {f"digest_{part}": stored.get(f"{part}.safetensors") for part in ("model", "trigger")}
    digests["digest_predictions"] = backdoor.card.get("predictions")
    prints = joined(code, [backdoor.card, *([stage.clean.card] if stage.clean else [])])
    repeat = verdict(stage.attack, backdoor, stage.data.train, settings["train"].get("precision", "fp32"))
    return {"fingerprints": prints, "revisions": stated(settings), "repeat": repeat} | digests


def write(folder: Path, record: dict[str, Any], curve: Sequence[Mapping[str, Any]], scores: Scores | None) -> None:
    """All files of a finished cell; record.json last, whole, and never in place of another."""
    beside = {"curve.csv": table(COLUMNS, ([row[c] for c in COLUMNS] for row in curve))}
    if scores is not None:
        rows = ([layer, i, v] for layer, values in scores.items() for i, v in enumerate(values.tolist()))
        beside["scores.csv"] = table(("layer", "channel", "score"), rows)
        beside["layers.csv"] = table(("layer", "channels", *SENTENCES), layers(record, curve))
    if not cell.finish(folder, beside, {"schema": cell.SCHEMA, "protocol": PROTOCOL} | record):
        log.warning("this cell had a record already, which stays as it was (%s).", folder)


def layers(record: Mapping[str, Any], curve: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Per layer its channels, and how many of them are pruned at each rule's operating point (None: there is none)."""
    chosen = [
        next((r for r in curve if (r["at"], r["pruned"]) == (record[f"at_{rule}"], record[f"pruned_{rule}"])), None)
        for rule in SENTENCES
    ]
    known = [row["layers"] for row in chosen if row]
    channels = {name: gone[0] for layers in known for name, gone in layers.items()}
    return [[name, n, *(row and row["layers"].get(name, (0, 0))[1] for row in chosen)] for name, n in channels.items()]


def table(header: Sequence[str], rows: Any) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()
