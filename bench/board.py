"""TensorBoard: the other tracker. `tensorboard --logdir runs` shows all cells beside each other."""

from __future__ import annotations

import json

from bench.errors import UserError
from bench.tracking import Cell, Tracker, histograms

BEFORE_AFTER = ("acc", "asr", "ra", "der", "pruned", "seconds")


class TensorBoard(Tracker):
    """Event files in the cell's folder: settings as text, the curve against pruned channels, histograms, before and after."""

    name = "TensorBoard"

    def __init__(self) -> None:
        try:
            import tensorboard  # noqa: F401
        except ImportError as error:
            raise UserError(
                "tracker=tensorboard needs a package that is not here: pip install 'backprune[tensorboard]'."
            ) from error

    def write(self, cell: Cell) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder, config, record, curve, scores = cell
        with SummaryWriter(str(folder / "tensorboard")) as writer:
            writer.add_text("settings", f"```json\n{json.dumps(config, indent=1, default=str)}\n```")
            for row in curve:
                for key in ("acc", "asr", "ra", "select_acc"):
                    if row.get(key) is not None:
                        writer.add_scalar(f"curve/{key}", row[key], row["pruned"])
            for key, values in histograms(config, scores).items():
                writer.add_histogram(key, values)
            names = {key: record[key] for key in ("dataset", "model", "attack", "defense", "seed")}
            numbers = {f"{key}{when}": record.get(f"{key}{when}") for key in BEFORE_AFTER for when in ("_before", "")}
            found = {f"result/{key}": float(value) for key, value in numbers.items() if value is not None}
            writer.add_hparams(names, found, run_name=".")
