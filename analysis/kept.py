"""Pictures that lie there and would come out the same are not drawn again.

A hidden file beside them holds for each what it was drawn from, as a digest, and its own size, time stamps and inode (as
`Index` has them). A picture that was changed, cut off or copied, or comes with somebody else's results, is drawn again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.index import stamp
from analysis.render import write

FILE = ".drawn.json"


class Kept:
    """What is known of the pictures in a folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.known: dict[str, Any] = {}
        with suppress(OSError, ValueError, RecursionError):  # none, or a damaged one: everything is drawn
            found = json.loads((out / FILE).read_bytes())
            self.known = found if isinstance(found, dict) else {}

    def stale(self, stem: str, kinds: Iterable[str], source: str) -> list[str]:
        """The kinds of a picture that have to be drawn. `source`: the digest of what they are drawn from."""
        names = {kind: f"{stem}.{kind}" for kind in kinds}
        return [kind for kind, name in names.items() if self.known.get(name) != [source, stamp(str(self.out / name))]]

    def note(self, stem: str, kinds: Iterable[str], source: str, there: bool) -> None:
        """What was just drawn; not `there`: there was nothing to draw."""
        for name in (f"{stem}.{kind}" for kind in kinds):
            self.known[name] = [source, stamp(str(self.out / name)) if there else None]

    def names(self, stem: str, kinds: Iterable[str]) -> list[str]:
        return [name for kind in kinds if self.known.get(name := f"{stem}.{kind}", [""])[-1]]

    def save(self) -> None:
        if self.out.is_dir():
            write(self.out / FILE, json.dumps(self.known, indent=0))


def digest(*parts: Any) -> str:
    """Of frames, and of plain data by its repr; with what draws."""
    found = hashlib.sha256(repr(drawn_by()).encode())
    for part in parts:
        columns: Sequence[Any] = (
            [(name, part[name].to_numpy()) for name in part] if isinstance(part, pd.DataFrame) else []
        )
        for name, values in columns:
            found.update(repr((name, len(values))).encode())
            found.update(values.tobytes() if values.dtype.kind in "fiub" else repr(values.tolist()).encode())
        found.update(b"" if isinstance(part, pd.DataFrame) else repr(part).encode())
        found.update(b"\0")
    return found.hexdigest()


@lru_cache(maxsize=1)
def drawn_by() -> list[str]:
    """All of analysis/, and the libraries."""
    code = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return [hashlib.sha256(b"\0".join(code)).hexdigest(), *map(version, ("matplotlib", "numpy", "pandas"))]
