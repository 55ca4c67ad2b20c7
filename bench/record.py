"""What a finished cell leaves in its folder: record.json (written last: its presence means done), curve.csv, scores.csv."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import platform
import subprocess
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from analysis.operating_point import SENTENCES, choose
from bench import PROTOCOL, __version__, files
from bench.cli import sentence
from bench.curve import COLUMNS
from bench.errors import UserError
from bench.metrics import Metrics, der
from bench.pruning import Scores

log = logging.getLogger(__name__)

SCHEMA = 1


def read(folder: Path) -> dict[str, Any] | None:
    """The record of a finished cell, or None. Raises UserError if the file is damaged (it is set aside)."""
    path = folder / "record.json"
    try:
        found = json.loads(path.read_text())
        if found["schema"] != SCHEMA:
            raise ValueError(f"its schema is {found['schema']}, this version writes {SCHEMA}")
        return dict(found)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        aside = files.set_aside(path)
        raise UserError(
            f"{path} is damaged ({error}); it was moved to {aside.name}. Run the same command again."
        ) from error


@contextmanager
def failures(folder: Path) -> Iterator[None]:
    """Says in one sentence what goes wrong in the block, and keeps the traceback as error.txt until the cell succeeds."""
    path = folder / "error.txt"
    try:
        yield
    except Exception as error:
        log.error("failed: %s (traceback in %s)", sentence(error), path)
        error.reported = True  # type: ignore[attr-defined]
        with suppress(OSError):  # the disk may be full; the sentence above is what counts
            files.write(path, traceback.format_exc())
        raise
    path.unlink(missing_ok=True)


def points(
    curve: Sequence[Mapping[str, Any]], before: Metrics, select_before: float, selection: Mapping[str, Any]
) -> dict[str, Any]:
    """The operating points under every rule, as columns `acc_fixed`, `asr_clean_drop`, ...; without suffix: the chosen rule's."""
    rules = dict.fromkeys([*SENTENCES, selection["rule"]])
    out: dict[str, Any] = {"rule": selection["rule"], "max_drop": selection["max_drop"]}
    for rule in rules:
        try:
            row = curve[
                choose(curve, rule, select_before=select_before, acc_before=before.acc, max_drop=selection["max_drop"])
            ]
        except ValueError as error:
            raise UserError(str(error)) from None
        after = Metrics(before.clean, row["right"], before.triggered, row["hit"], row["robust"])
        values = {key: row[key] for key in COLUMNS if key != "fixed"} | {"der": der(before, after)}
        out |= {f"{key}_{rule}": value for key, value in values.items()}
        if rule == selection["rule"]:
            out = values | out
    return out


def before(metrics: Metrics, select_acc: float) -> dict[str, Any]:
    names = {"acc": metrics.acc, "asr": metrics.asr, "ra": metrics.ra, "right": metrics.right, "hit": metrics.hit}
    return {f"{k}_before": v for k, v in (names | {"robust": metrics.robust, "select_acc": select_acc}).items()} | {
        "clean": metrics.clean,
        "triggered": metrics.triggered,
    }


def environment(device: torch.device) -> dict[str, Any]:
    """What is part of no identity but may explain a difference."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else processor(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "peak_memory_mib": torch.cuda.max_memory_allocated(device) // 2**20 if on_gpu else resident(),
        "version": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def resident() -> int | None:
    """The most memory that this process has held so far, MiB; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if platform.system() == "Linux" else 2**20)


@cache
def processor() -> str:
    """The CPU's name as the system gives it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def commit() -> str:
    """The commit of the code, with `+` if files differ from it; outside a git checkout BACKPRUNE_COMMIT, or `unknown`."""
    here = Path(__file__).parent
    try:
        run = [
            subprocess.run(
                ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True
            ).stdout
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "-uno"])
        ]
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("BACKPRUNE_COMMIT", "unknown")
    return run[0].strip() + ("+" if run[1].strip() else "")


def cost(scores: Scores | None, repair: float, total: float) -> dict[str, Any]:
    """Seconds of the repair and of the curve's evaluation; channels a pruner had to choose from (None: not a pruner)."""
    channels = None if scores is None else sum(len(values) for values in scores.values())
    return {"channels": channels, "seconds": repair, "seconds_curve": total - repair}


def write(folder: Path, record: dict[str, Any], curve: Sequence[Mapping[str, Any]], scores: Scores | None) -> None:
    """All files of a finished cell; record.json last and atomically."""
    files.write(folder / "curve.csv", table(COLUMNS, ([row[c] for c in COLUMNS] for row in curve)))
    if scores is not None:
        rows = ([layer, i, v] for layer, values in scores.items() for i, v in enumerate(values.tolist()))
        files.write(folder / "scores.csv", table(("layer", "channel", "score"), rows))
    flat = {"schema": SCHEMA, "protocol": PROTOCOL} | record
    files.write(folder / "record.json", json.dumps(flat, indent=1, allow_nan=False) + "\n")


def table(header: Sequence[str], rows: Any) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()
