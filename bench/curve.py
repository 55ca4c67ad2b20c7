"""Looks at every model that a defence offers: one row per point, on the defender's images and on the test set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.data import ImageSet
from bench.defenses.base import Candidate, Repaired
from bench.metrics import Exam, Metrics, accuracy, evaluate
from bench.prefix import Prefixes

COLUMNS = ("at", "pruned", "fixed", "select_acc", "acc", "asr", "ra", "right", "hit", "robust")


def trace(
    repaired: Repaired,
    exam: Exam,
    select: ImageSet,
    before: Metrics,
    select_before: float,
    stop: float | None,
    keep: Callable[[list[dict[str, Any]], Candidate], None] | None = None,
) -> list[dict[str, Any]]:
    """The defence's curve, from few to many pruned channels: rows of COLUMNS, and `layers`: name -> (channels, pruned).

    `select_before`: accuracy on `select` before the defence. Points after one that loses more than `stop` points there are
    passed over (None: none are), but never the paper's own, and what follows that only if it loses as much. `keep` is called
    with the rows so far after each, while the candidate of the last is still what it was measured as; see `bench.chosen`.
    """
    rows: list[dict[str, Any]] = []
    prefixes = Prefixes()
    for candidate in repaired.candidates:
        predict = prefixes.of(candidate.model)
        if candidate.mask is not None and candidate.pruned == 0:  # the model as it came
            rows.append(_row(candidate, select_before, before))
        else:
            gone = stop is not None and rows and rows[-1]["select_acc"] < select_before - stop
            if gone and not candidate.fixed:
                continue
            measured = accuracy(candidate.model, select, predict), evaluate(candidate.model, exam, predict)
            rows.append(_row(candidate, *measured))
        if keep:
            keep(rows, candidate)
    return rows


def _row(candidate: Candidate, select_acc: float, m: Metrics) -> dict[str, Any]:
    values = (candidate.at, candidate.pruned, int(candidate.fixed), select_acc, m.acc, m.asr, m.ra)
    layers = {layer: (len(gone), int(gone.sum())) for layer, gone in (candidate.mask or {}).items()}
    by_trigger = (m.hit, m.robust) if m.triggered else (None, None)
    return dict(zip(COLUMNS, (*values, m.right, *by_trigger), strict=True)) | {"layers": layers}
