"""Dashboards. The only module that knows W&B; a tracker's failure never fails a run."""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class NoTracker:
    """Writes nothing besides the record."""

    hint = "W&B is off; tracker=wandb logs runs there too (offline, never asking, when nobody is logged in)."
    said = False

    def log(
        self, folder: Path, config: dict[str, Any], record: dict[str, Any], curve: Sequence[dict[str, Any]]
    ) -> None:
        if not NoTracker.said:  # once a sweep is enough
            log.info(self.hint)
        NoTracker.said = True


class Wandb:
    """One W&B run per cell: config, before and after, and the curve as a table. Offline when nobody is logged in."""

    def __init__(self, project: str, entity: str | None = None, group: str | None = None, mode: str = "auto") -> None:
        self.project, self.entity, self.group, self.mode = project, entity, group, mode

    def log(
        self, folder: Path, config: dict[str, Any], record: dict[str, Any], curve: Sequence[dict[str, Any]]
    ) -> None:
        try:
            self._log(folder, config, record, curve)
        except Exception as error:  # a dashboard must not cost a result that is already on disk
            log.warning(
                "W&B could not log this run (%s: %s); the record in %s is complete.",
                type(error).__name__,
                error,
                folder,
            )

    def _log(
        self, folder: Path, config: dict[str, Any], record: dict[str, Any], curve: Sequence[dict[str, Any]]
    ) -> None:
        import wandb

        mode: Any = (
            self.mode
            if self.mode != "auto"
            else os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
        )
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group or f"{record['dataset']}-{record['model']}",
            name=f"{record['attack']}-{record['defense']}-s{record['seed']}",
            job_type=record["defense"],
            tags=[record["attack"], record["dataset"], record["defense"]],
            config=config,
            dir=folder,
            mode=mode,
            settings=wandb.Settings(silent=True, console="off"),
        )
        columns: list[Any] = list(curve[0])
        table = wandb.Table(columns=columns, data=[[row[c] for c in columns] for row in curve])
        run.log({"curve": table})
        run.summary.update({k: v for k, v in record.items() if v is not None})
        run.finish()
        if mode == "offline":
            log.info("W&B run kept offline; `wandb sync %s` uploads it.", Path(run.dir).parent)


def logged_in() -> bool:
    """Whether W&B has a key for its server, found as W&B finds it but without asking anybody."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
