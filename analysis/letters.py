"""Texts as outlines of letters: a few dozen for a page, each placed where it occurs. matplotlib takes half a millisecond for a
text of its own, and a sweep's plots have thousands. An outline also needs no font where it is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np


@lru_cache(maxsize=512)
def letter(c: str) -> tuple[Any, Any, float]:
    """Corners and codes of its outline, and how far the next one stands from it, all for a font of one inch."""
    from matplotlib.font_manager import findfont, get_font
    from matplotlib.ft2font import LoadFlags
    from matplotlib.path import Path

    font = get_font(findfont("DejaVu Sans"))
    font.set_size(100, 72)
    glyph = font.load_char(ord(c), flags=LoadFlags.NO_HINTING)
    outline = Path(*font.get_path()).cleaned(curves=False)  # corners only: curves are slow
    corners, codes = np.asarray(outline.vertices), np.asarray(outline.codes)
    return corners[codes != Path.STOP] / 100, codes[codes != Path.STOP], glyph.linearHoriAdvance / 65536 / 100


def width(text: str, size: float) -> float:
    """In inches; of what is not printable ASCII about that."""
    return sum(letter(c if c.isascii() else "m")[2] for c in text) * size / 72


@dataclass
class Letters:
    """Texts of printable ASCII, at places in inches."""

    places: dict[tuple[str, float, float, str], list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, x: float, y: float, text: str, size: float, ha: str, va: str, angle: float, colour: str) -> None:
        """`ha`, `va`: which side of the text is at x, y, as matplotlib has it; `angle` in degrees."""
        inch = size / 72
        steps = [letter(c)[2] * inch for c in text]
        along = {"left": 0.0, "center": -0.5, "right": -1.0}[ha] * sum(steps)
        up = {"bottom": 0.0, "center": -0.365, "top": -0.73}[va] * inch  # capitals are 0.73 of the size high
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        for c, step in zip(text, steps, strict=True):
            spot = (x + along * cos - up * sin, y + along * sin + up * cos)
            self.places.setdefault((c, size, angle, colour), []).append(spot)
            along += step

    def draw(self, ax: Any) -> None:
        """On axes in inches."""
        from matplotlib.collections import PathCollection
        from matplotlib.path import Path
        from matplotlib.transforms import Affine2D

        for (c, size, angle, colour), spots in self.places.items():
            corners, codes, _ = letter(c)
            if len(corners):
                turned = Affine2D().scale(size / 72).rotate_deg(angle).transform(corners)
                drawn = PathCollection(
                    [Path(turned, codes)], offsets=spots, offset_transform=ax.transData, facecolors=colour, edgecolors="none",
                    zorder=4,
                )  # fmt: skip
                drawn.set_transform(ax.figure.dpi_scale_trans)
                drawn.set_snap(False)  # else an l is moved away from its word
                ax.add_collection(drawn, autolim=False)
