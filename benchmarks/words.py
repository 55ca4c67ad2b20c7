"""Numbers of the page in words: times, shares, ratios, goals, and how near outputs are."""

from __future__ import annotations

from typing import Any


def middle(values: list[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def seconds(value: float) -> str:
    if value >= 100:
        return f"{value:.0f} s"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def factor(ratio: float) -> str:
    return f"{ratio:.3g}x" if ratio < 100 else f"{ratio:.0f}x"


def aim(goal: dict[str, Any] | None) -> str:
    """A goal, and whether it was met."""
    if goal is None:
        return ""
    what = f"≥ {goal['least']:g}x" if goal["fact"] == "ratio" else f"Spearman ≥ {goal['least']:g}"
    return f"{what} {'met' if goal['met'] else 'missed'}"


def likeness(row: dict[str, Any], variant: str) -> str:
    """How this variant's outputs are to the official ones: the same, or how near."""
    facts = row.get("facts", {})
    if not row["agrees"]:
        return "DISAGREE"
    if (alike := facts.get(f"spearman {variant}", 1.0)) < 1:
        return f"Spearman {alike:.3f}"
    return f"within {off:.2g} points" if (off := facts.get(f"points {variant}")) is not None else "agree"
