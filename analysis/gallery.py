"""Pictures of all stored backdoors: for each attack a few test images before and after the trigger, and what it changed."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as tensors

from analysis import command
from analysis.drawing import STYLE, save, short
from analysis.load import Problem, reason
from analysis.render import plain
from analysis.schema import is_count, read_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 4  # images per attack
FACTOR = 5  # of the difference
LIMIT = 1 << 26  # bytes; 2 x 8 colour images of 224 x 224 have 2.4 million
BELOW = (
    f"Difference: |triggered - original| × {FACTOR}, clipped; black is no change. "
    "ASR and ACC in %, as on the card of the stored model; of each attack the lowest seed."
)
ROWS = ("original", "triggered", f"difference\n× {FACTOR}")
SIZE, GAP, HEAD, SIDE, LINE = 0.52, 0.28, 0.42, 0.9, 0.15  # inches: image, gap, text above, text beside, caption


@dataclass(frozen=True)
class Sample:
    """One stored model: where it is, and its images, uint8 [N, C, H, W]. `asr` and `acc` in percent."""

    dataset: str
    model: str
    attack: str
    seed: int
    original: np.ndarray
    triggered: np.ndarray
    asr: float
    acc: float


# -- read --------------------------------------------------------------------------------------------------------------
def samples(runs: Path) -> tuple[list[Sample], list[Problem]]:
    """Of each attack on each data set, the readable model of the lowest seed; and what could not be read before it."""
    found: dict[tuple[str, str], Sample] = {}
    problems = []
    for seed, folder in models(runs):
        dataset, model, attack = folder.parts[-4:-1]
        if attack == "none" or (dataset, attack) in found:
            continue
        try:
            if seed is None:
                raise ValueError("its name is not s<seed>-<key>")
            found[dataset, attack] = Sample(dataset, model, attack, seed, *pictures(folder), *rates(folder))
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            where = folder.relative_to(runs).as_posix()
            what = f"{error} is missing" if isinstance(error, KeyError) else reason(error)
            problems.append(Problem("other", where, f"not shown: {what}"))
    return sorted(found.values(), key=lambda s: (s.dataset, s.attack)), problems


def models(runs: Path) -> Iterator[tuple[int | None, Path]]:
    """Seed and folder of every <runs>/backdoors/<dataset>/<model>/<attack>/s<seed>-<key>, the lowest seeds first."""
    seeds = []
    for folder in (runs / "backdoors").glob("*/*/*/*"):
        if folder.is_dir() and not any(name.startswith(".") for name in folder.parts[-4:]):
            named = re.fullmatch(r"s(-?\d{1,19})-\w+", folder.name)
            seeds.append((int(named[1]) if named else None, folder))
    yield from sorted(seeds, key=lambda item: (item[0] is None, item[0] or 0, item[1]))


def pictures(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Raises ValueError unless there are as many images before as after the trigger, of one size, grey or in colour."""
    path = folder / "samples.safetensors"
    if not path.is_file():
        raise ValueError("it has no samples.safetensors, as models of older versions")
    if path.stat().st_size > LIMIT:
        raise ValueError(f"{path.name} is larger than {LIMIT >> 20} MiB")
    found = tensors(path.read_bytes())
    before, after = found["original"], found["triggered"]
    if before.shape[:1] == after.shape[:1] == (0,):
        raise ValueError("there is no triggered image: nobody knows its trigger")
    for images in (before, after):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
            raise ValueError(f"{path.name} holds no images: {images.dtype} {list(images.shape)}")
    if before.shape != after.shape:
        raise ValueError(f"{path.name} holds {list(before.shape)} images, triggered {list(after.shape)}")
    return before, after


def rates(folder: Path) -> tuple[float, float]:
    """ASR and ACC in percent, from the counts on the card."""
    counts = json.loads(read_text(folder / "card.json"))["metrics"]
    pairs = [(counts[part], counts[whole]) for part, whole in (("hit", "triggered"), ("right", "clean"))]
    for part, whole in pairs:
        if not (is_count(part) and is_count(whole) and part <= whole and whole > 0):
            raise ValueError(f"card.json counts {str(part)[:20]} of {str(whole)[:20]}")
    asr, acc = (100 * part / whole for part, whole in pairs)
    return asr, acc


# -- draw --------------------------------------------------------------------------------------------------------------
def mosaic(sample: Sample) -> np.ndarray:
    """Three rows of images on white, [H, W, 3]: before, after, and how far apart they are."""
    before, after = sample.original[:SHOWN], sample.triggered[:SHOWN]
    apart = np.abs(after.astype(int) - before) * FACTOR
    rows = np.stack([before, after, apart.clip(0, 255)]).transpose(0, 1, 3, 4, 2)
    _, count, height, width, _ = rows.shape
    gap = max(1, width // 24)
    sheet = np.full((3 * (height + gap) - gap, SHOWN * (width + gap) - gap, 3), 255, np.uint8)
    for row in range(3):
        for column in range(count):
            top, left = row * (height + gap), column * (width + gap)
            sheet[top : top + height, left : left + width] = rows[row, column]
    return sheet


def grid(count: int) -> tuple[int, int]:
    """Lines and columns of `count` blocks: no wider than high, but up to four side by side, and no line nearly empty."""
    lines = math.ceil(count / max(4, math.isqrt(count - 1) + 1))
    return lines, math.ceil(count / lines)


def draw(dataset: str, shown: Sequence[Sample]) -> Figure:
    """A block per attack, side by side and below each other."""
    from matplotlib.figure import Figure

    sheets = [mosaic(sample) for sample in shown]
    lines, columns = grid(len(shown))
    wide = SIZE * SHOWN
    high = max(wide * sheet.shape[0] / sheet.shape[1] for sheet in sheets)
    nets = sorted({sample.model for sample in shown})
    width = SIDE + columns * (wide + GAP)
    above = fill(plain(f"{dataset}, {nets[0]}" if len(nets) == 1 else dataset), int(width * 8))
    below = fill(BELOW, int(width * 14))
    start = 0.25 + 0.22 * len(above.splitlines())
    height = start + lines * (HEAD + high + GAP) + LINE * len(below.splitlines())
    figure = Figure(figsize=(width, height))

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, **style)

    write(width / 2, 0.12, above, fontsize=12, ha="center", va="top")
    for number, (sample, sheet) in enumerate(zip(shown, sheets, strict=True)):
        line, column = divmod(number, columns)
        left, top = SIDE + column * (wide + GAP), start + HEAD + line * (HEAD + high + GAP)
        tall = wide * sheet.shape[0] / sheet.shape[1]
        axes = figure.add_axes((left / width, 1 - (top + tall) / height, wide / width, tall / height))
        axes.imshow(sheet, interpolation="nearest", aspect="auto")
        axes.axis("off")
        name = sample.attack if len(nets) == 1 else f"{sample.attack} ({sample.model})"
        write(left, top - 0.21, short(plain(name), 24), fontsize=10, fontweight="bold")
        numbers = f"ASR {sample.asr:.1f}   ACC {sample.acc:.1f}   seed {sample.seed}"
        write(left, top - 0.06, short(numbers, 38), fontsize=7.5, color="#444444")
        for row, text in enumerate(ROWS if column == 0 else ()):
            write(left - 0.08, top + tall * (row + 0.5) / 3, text, fontsize=8.5, ha="right", va="center")
    write(width / 2, height - 0.12, below, fontsize=8, ha="center", va="bottom")
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser(
        "gallery", "Draws test images before and after each stored attack, a PNG and a PDF per data set.", "gallery"
    )
    options = parser.parse_args(arguments)
    shown, problems = samples(options.runs)
    for problem in problems:
        print(plain(str(problem)), file=sys.stderr)
    if not shown:
        return command.refuse(
            f"There is no backdoored model with samples in {options.runs}: run bench/run.py first, or say --runs DIR."
        )
    out = options.out or options.runs / "gallery"
    names = []
    try:
        import matplotlib as mpl

        with mpl.rc_context(STYLE):
            for dataset in sorted({sample.dataset for sample in shown}):
                own = [sample for sample in shown if sample.dataset == dataset]
                names += save(draw(dataset, own), out, dataset, ("png", "pdf"))
    except OSError as error:
        return command.no_room(out, error)
    print(f"In {out}: {', '.join(map(plain, names))}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
