"""docs/performance.md from the JSON files of `make bench` and `make bench-gpu`: every number of the page comes from them.

python -m benchmarks.write
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from analysis.render import Entry, Grid, md_grid, slug
from bench import files
from benchmarks.words import aim, factor, likeness, middle, percent, seconds

ROOT = Path(__file__).parent.parent
MEASURED = ROOT / "results/performance"
PAGE = ROOT / "docs/performance.md"

NUMBERS = {"official", "time", "img/s, best", "power", "measured"}
Rows = tuple[list[str], list[list[str]]]
"""A heading and lines of text."""


def place(kind: str, device: str) -> Path:
    """Where the JSON of a machine goes, e.g. cpu-amd-epyc.json: another machine's stays beside it.

    `kind`: cpu or gpu. `device`: the processor's or card's name.
    """
    return MEASURED / f"{kind}-{slug(device)}.json"


def stored(kind: str) -> list[dict[str, Any]]:
    """What was measured on each machine of this kind, by file name."""
    return [json.loads(path.read_text()) for path in sorted(MEASURED.glob(f"{kind}-*.json"))]


# -- tables ------------------------------------------------------------------------------------------------------------
def comparisons(found: list[dict[str, Any]]) -> Rows:
    rows = []
    for row in found:
        first = next(iter(row["times"]))
        for name, ratio in row["ratios"].items():
            goal = next((g for g in row["goals"] if g["variant"] == name), None)
            spread = f"{factor(ratio['low'])} – {factor(ratio['high'])}" if ratio["low"] != ratio["high"] else "one run"
            official, ours = (seconds(middle(row["times"][variant]["wall"])) for variant in (first, name))
            rows.append([row["title"], name, aim(goal), likeness(row, name), official, ours, factor(ratio["median"]), spread,
                         factor(ratio["cpu"])])  # fmt: skip
    return ["what", "variant", "goal", "outputs", "official", "time", "ratio", "range", "by CPU time"], rows


def details(found: list[dict[str, Any]]) -> Rows:
    """What was compared, the memory, and what bounds each row."""
    rows = []
    for row in found:
        peaks = ", ".join(f"{name} {t['peak_mib']}" for name, t in row["times"].items() if t["peak_mib"] is not None)
        runs = len(next(iter(row["times"].values()))["wall"])
        rows.append([row["title"], row["work"], str(runs), row["agreement"], row["bound"], peaks])
    return ["what", "on", "repeats", "agreement", "what bounds it", "memory of a first call, MiB"], rows


def commands(found: dict[str, Any]) -> Rows:
    rows = []
    for f in found["facts"]:
        goal = "" if f["goal"] is None else f"≤ {seconds(f['goal'])} {'met' if f['met'] else 'missed'}"
        rows.append([f["what"], f["note"], goal, seconds(f["seconds"])])
    return ["command", "with", "goal", "time"], rows


def speeds(found: dict[str, Any]) -> Rows:
    rows = []
    for path in found["paths"]:
        top = found["peak"][path["precision"]]
        rows.append([f"{path['path']} {path['precision']}", f"{path['img_per_s']:g}", f"{path['median_img_per_s']:g}",
                     f"{path['gflop_per_image']:.3g}", percent(path["mfu"]), f"{top['gflops']:g} ({top['by']})"])  # fmt: skip
    return [
        "path",
        "img/s, best",
        "img/s, median",
        "GFLOP per image",
        "share of the matmul rate",
        "matmul rate, GFLOP/s",
    ], rows


def growths(found: list[dict[str, Any]]) -> Rows:
    rows = [
        [g["axis"], ", ".join(map(str, g["sizes"])), ", ".join(map(seconds, g["seconds"])), f"{g['power']:g}"]
        for g in found
    ]
    return ["time against", "sizes", "times", "power"], rows


def hot(found: list[dict[str, Any]]) -> Rows:
    rows = []
    for path in found:
        shares = ", ".join(f"{k} {percent(s)}" for k, s in sorted(path["shares"].items(), key=lambda i: -i[1]))
        top = ", ".join(f"{k} {percent(s)}" for k, s in path["top"].items())
        rows.append([path["path"], seconds(path["milliseconds"] / 1000), shares, top, path["bound"]])
    return ["hot path", "time", "by kind", "operations that take most", "bound by"], rows


def tables(found: dict[str, Any]) -> list[Rows]:
    """Those tables that there is something for, for the terminal."""
    parts = [comparisons(found["rows"])] if found.get("rows") else []
    if "cells" in found:
        parts.append(commands(found["cells"]))
    if "rates" in found:
        parts.append(speeds(found["rates"]))
    if grown := growing(found):
        parts.append(growths(grown))
    if "profiles" in found:
        parts.append(hot(found["profiles"]))
    return parts


def growing(found: dict[str, Any]) -> list[dict[str, Any]]:
    return found.get("growth", []) + ([found["cells"]["growth"]] if "cells" in found else [])


# -- the page ----------------------------------------------------------------------------------------------------------
def grid(rows: Rows) -> str:
    """As Markdown; columns from the first that holds a number or a time on are set right."""
    head, lines = rows
    texts = next((i for i, name in enumerate(head) if name in NUMBERS), len(head))
    return md_grid(Grid([("", head)], [[Entry(text) for text in line] for line in lines], texts))


def machine(found: dict[str, Any]) -> str:
    m, before_after = found["machine"], [x for x in found["load"] if x is not None]
    busy = f"; load average before and after {' and '.join(map(str, before_after))}" if before_after else ""
    own = m["threads"]
    loaded = before_after and before_after[0] > 0.5
    warning = " **The machine was busy when this was begun: read the column by CPU time.**" if loaded else ""
    return (
        f"{m['device']}, {own} thread{'s' if own != 1 else ''}, torch {m['torch']}, Python {m['python']}, commit {m['commit']}, "
        f"{found['date']}; {seconds(found['seconds'])} in all{busy}.{warning}"
    )


def verdict(found: dict[str, Any]) -> str:
    """Which goals are met and which are not, and why, in words."""
    goals = [(row, goal) for row in found["rows"] for goal in row["goals"]]
    facts = [f for f in found.get("cells", {"facts": []})["facts"] if f["goal"] is not None]
    met = sum(goal["met"] for _, goal in goals) + sum(f["met"] for f in facts)
    quick = sum(
        row["ratios"][goal["variant"]]["cpu"] >= goal["least"] if goal["fact"] == "ratio" else goal["met"]
        for row, goal in goals
    )
    lines = [
        f"{met} of {len(goals) + len(facts)} goals are met on this machine by time on the wall, "
        f"{quick + sum(f['met'] for f in facts)} with the ratios taken by CPU time."
    ]
    for row, goal in goals:
        if not goal["met"]:
            got = factor(row["ratios"][goal["variant"]]["median"])
            if goal["fact"] != "ratio":
                got = f"{row['facts'].get(goal['fact'], float('nan')):.3f}"
            lines.append(f"- {row['title']} ({goal['variant']}): {got}, goal {aim(goal).removesuffix(' missed')}. "
                         f"What bounds it: {row['bound']}.")  # fmt: skip
    lines += [
        f"- {f['what']}: {seconds(f['seconds'])}, goal ≤ {seconds(f['goal'])}. {f['note']}."
        for f in facts
        if not f["met"]
    ]
    return "\n".join([lines[0], "", *lines[1:]]) if len(lines) > 1 else lines[0]


def page(cpus: list[dict[str, Any]], gpus: list[dict[str, Any]]) -> str:
    parts = [
        "# Performance",
        "Written by `python -m benchmarks.write` from `results/performance/*.json`; `make bench` measures a machine's part.\n"
        "Ratios are those of the official procedure, re-implemented plainly (`benchmarks/official/`), to ours: on the same\n"
        "machine, in one process, in turn, each repeat against its neighbour; median and range. Before the times count, the\n"
        "outputs are compared. What the authors' side draws by chance, and its loading in ANP and RNP, is given to it for free.",
    ]
    for found in cpus:
        parts += [f"## On a CPU: {found['machine']['device']}", cpu_half(found)]
    if not cpus:
        parts += ["## On a CPU", "Not run yet: `make bench`."]
    for found in gpus:
        parts += [f"## On a GPU: {found['machine']['device']}", gpu_half(found)]
    if not gpus:
        parts += ["## On a GPU", "Not run yet: `make bench-gpu` takes under nine minutes and fills this half."]
    return "\n\n".join(parts) + "\n"


def cpu_half(found: dict[str, Any]) -> str:
    """What there is of it: a run that was cut short leaves its first parts."""
    parts = [machine(found), verdict(found), grid(comparisons(found["rows"])), "### What was compared, and what bounds it",
             grid(details(found["rows"]))]  # fmt: skip
    if "cells" in found:
        parts += ["### Whole commands", grid(commands(found["cells"]))]
    if "rates" in found:
        parts += ["### Rates", about_rates(found["rates"]), grid(speeds(found["rates"]))]
    if grown := growing(found):
        parts += ["### Growth", "Best times; the power is the slope of log time over log size: 1 is proportional, below it there "
                  "is a fixed part.", grid(growths(grown))]  # fmt: skip
    if "profiles" in found:
        parts += ["### Hot paths", "By torch's profiler, an operation's own time.", grid(hot(found["profiles"]))]
    if missing := [name for name in ("cells", "rates", "growth", "profiles") if name not in found]:
        parts.append(f"This run was cut short or asked for less: without {', '.join(missing)}.")
    return "\n\n".join(parts)


def about_rates(found: dict[str, Any]) -> str:
    peaks = "; ".join(
        f"{precision}: " + ", ".join(f"{name} {value:g}" for name, value in top["all"].items())
        for precision, top in found["peak"].items()
    )
    return (
        f"ResNet-18 as above, {found['batch']} images a batch in training, 512 in evaluation. Operations are those of\n"
        "convolutions and products, a multiply-add counting as two. The matmul rate is the best of the kernels below, with as\n"
        "many threads and in the same precision: a convolution is a product too, and on some CPUs from a faster library than\n"
        f"`torch.mm`, against which alone a share above 100 % can come out. GFLOP/s: {peaks}."
    )


def gpu_half(found: dict[str, Any]) -> str:
    parts = [machine(found)]
    facts = []
    for f in found["facts"]:
        goal = "" if f["goal"] is None else f"{f['goal']} {'met' if f['met'] else 'missed'}"
        facts.append([f["what"], goal, f["value"]])
    parts.append(grid((["what", "goal", "measured"], facts)))
    if "rates" in found:
        parts += ["### Rates on the GPU", grid(speeds(found["rates"]))]
    if "profiles" in found:
        parts += ["### Hot paths on the GPU", grid(hot(found["profiles"]))]
    if found["left_out"]:
        parts.append(f"Left out because the time was up: {', '.join(found['left_out'])}.")
    if found["failed"]:
        parts.append(f"Failed, at least in part: {', '.join(found['failed'])}.")
    return "\n\n".join(parts)


def document() -> None:
    """Writes the page from what JSON there is."""
    files.write(PAGE, page(stored("cpu"), stored("gpu")))


if __name__ == "__main__":
    document()
