"""Dashboards. The only module of bench/ that knows W&B; a tracker's failure never fails a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from analysis.login import logged_in
from bench.errors import UserError, nearest

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")

Cell = tuple[Path, dict[str, Any], dict[str, Any], Sequence[dict[str, Any]], Mapping[str, Any] | None]
"""A finished cell: its folder, composed settings, record, curve, and the scores per layer (None: not a pruner)."""


class Tracker:
    """What a cell is handed to when everything is on disk. `write` may do anything: `log` lets none of it fail a run."""

    name = "the tracker"

    def log(
        self,
        folder: Path,
        config: dict[str, Any],
        record: dict[str, Any],
        curve: Sequence[dict[str, Any]],
        scores: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            self.write((folder, config, record, curve, scores))
        except Exception as error:  # a dashboard must not cost a result that is already on disk
            said = " ".join(str(error).split())[:300]
            log.warning(
                "%s could not log this run (%s: %s); the record in %s is complete.",
                self.name, type(error).__name__, said, folder,
            )  # fmt: skip

    def write(self, cell: Cell) -> None:
        raise NotImplementedError


class NoTracker(Tracker):
    """Writes nothing besides the record."""

    hint = "No tracker; tracker=wandb (offline, never asking, when nobody is logged in) or tracker=tensorboard log runs too."
    said = False

    def write(self, cell: Cell) -> None:
        if not NoTracker.said:  # once a sweep is enough
            log.info(self.hint)
        NoTracker.said = True


class Wandb(Tracker):
    """One W&B run per cell: config, before and after, cost, the curve, and histograms of scores and masks.

    `group`: None for the sweep, which is the folder that results go to, with data set and model. `mode`: auto (online
    when logged in, else offline), online, offline or disabled. `patience`: seconds that a cell waits for W&B at most. A
    server that does not answer turns the rest of the sweep offline; a W&B that does not even come back is left alone
    from then on.
    """

    name = "W&B"
    down = stuck = False  # for the rest of this process

    def __init__(
        self,
        project: str,
        entity: str | None = None,
        group: str | None = None,
        mode: str = "auto",
        patience: float = 60.0,
    ) -> None:
        if mode not in MODES:
            raise UserError(f"tracker.mode={mode} is unknown: {nearest(mode, MODES)}")
        self.project, self.entity, self.group, self.mode, self.patience = project, entity, group, mode, patience

    def write(self, cell: Cell) -> None:
        if Wandb.stuck:
            return
        failed: list[Exception] = []

        def work() -> None:
            try:
                self.upload(cell)
            except Exception as error:
                failed.append(error)

        thread = Thread(target=work, name="wandb", daemon=True)
        thread.start()
        thread.join(self.patience)
        if thread.is_alive():
            Wandb.stuck = True
            raise TimeoutError(f"no answer within {self.patience:g} s, so it is left alone from here on")
        if failed:
            raise failed[0]

    def upload(self, cell: Cell) -> None:
        """Once more, offline and with a fresh W&B process, if the first time fails."""
        mode = "offline" if Wandb.down else self.wanted()
        try:
            self.send(cell, mode)
        except Exception as error:
            restart()
            if mode == "online":
                Wandb.down = True
                log.info("W&B cannot be reached (%s), so this sweep goes on offline.", type(error).__name__)
            self.send(cell, "offline")

    def wanted(self) -> str:
        if self.mode != "auto":
            return self.mode
        return os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")

    def send(self, cell: Cell, mode: Any) -> None:
        import wandb

        folder, config, record, curve, scores = cell
        names = {key: record[key] for key in ("dataset", "model", "attack", "defense")}
        sweep = Path(config.get("runs", folder)).name
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group or f"{sweep}: {names['dataset']}, {names['model']}",
            name=f"{names['attack']}-{names['defense']}-s{record['seed']}",
            job_type=names["defense"],
            tags=[names["attack"], names["dataset"]],
            config=config | {"names": names},
            dir=folder,
            mode=mode,
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=self.patience / 3,
                finish_timeout=self.patience / 3,
            ),
        )
        columns: list[Any] = list(curve[0])
        run.define_metric("curve/pruned", hidden=True)
        run.define_metric("curve/*", step_metric="curve/pruned")
        for row in curve:  # as history, so that a workspace can lay many runs over each other
            run.log({f"curve/{key}": value for key, value in row.items() if value is not None})
        metrics = [key for key in ("acc", "asr", "ra") if key in columns]
        last: dict[str, Any] = {
            "curve": wandb.Table(columns=columns, data=[[row[c] for c in columns] for row in curve]),
            "chart": wandb.plot.line_series(
                xs=[row["pruned"] for row in curve],
                ys=[[row[key] for row in curve] for key in metrics],
                keys=[key.upper() for key in metrics],
                title=f"{names['defense']} against {names['attack']}, seed {record['seed']}",
                xname="pruned channels",
            ),
        }
        for name, values in histograms(config, scores).items():
            last[name] = wandb.Histogram(np_histogram=np.histogram(values, bins=64))
        run.log(last)
        run.summary.update({key: value for key, value in record.items() if value is not None})
        run.finish()
        if mode == "offline":
            log.info("W&B run kept offline; `wandb sync %s` uploads it.", Path(run.dir).parent)


def restart() -> None:
    """Ends W&B's own process, which may be dead already, so that the next run starts another."""
    import wandb

    with suppress(Exception):
        wandb.teardown()


def histograms(config: Mapping[str, Any], scores: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    """Name -> finite numbers, one per channel: `scores` of a pruner, and `masks` in [0, 1] where its rule cuts learned masks.

    A learned mask is stored as the score 1 - mask (see bench.pruning.MaskBelow).
    """
    if not scores:
        return {}
    values = np.array([float(v) for layer in scores.values() for v in layer.tolist()])
    values = values[np.isfinite(values)]
    rule = str(config.get("defense", {}).get("rule", {}).get("_target_", ""))
    return {"scores": values} | ({"masks": 1 - values} if rule.endswith(".MaskBelow") else {})
