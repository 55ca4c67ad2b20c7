"""The finished cells under one root and what all commands make of them, each read or made once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from analysis import curves
from analysis.load import Problem, gather
from analysis.settings import Settings
from analysis.sheets import Sheet, sheets


@dataclass(frozen=True)
class Runs:
    """`frame` and `problems` as of `load.load`; `settings`: a cell's place -> its settings."""

    root: Path
    frame: pd.DataFrame
    problems: list[Problem]
    settings: dict[str, Settings]

    @classmethod
    def of(cls, root: Path | Runs) -> Runs:
        """What lies under a root; what is read already is not read again."""
        return root if isinstance(root, Runs) else cls(Path(root), *gather(root))

    @cached_property
    def sheets(self) -> list[Sheet]:
        return list(sheets(self.frame, self.problems)) if len(self.frame) else []

    @cached_property
    def curves(self) -> tuple[pd.DataFrame, list[Problem]]:
        """As of `curves.curves`."""
        return curves.curves(self.frame)

    @cached_property
    def layers(self) -> tuple[pd.DataFrame, list[Problem]]:
        """As of `curves.layers`."""
        return curves.layers(self.frame)
