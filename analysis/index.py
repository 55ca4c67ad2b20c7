"""What was read from thousands of small files, kept in one: read again only where a file changed.

An index speeds reading up and decides nothing. Each entry carries size, time stamps and inode of the files it was read
from; where one differs, by a nanosecond, the files are read. The change time (ctime) cannot be set by hand and no copy
keeps it, so an index that came with somebody else's results is never believed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from analysis import render

LIMIT = 1 << 29  # bytes; 10,000 cells have 40 MiB
WORTH = 100  # below so many files reading is quick, and a folder that git tracks stays as it is


class Index:
    """Use as a context: it is read on entering, and written on leaving if something changed.

    `name`: the file is `<root>/.index-<name>.json`. `code`: source files of the readers; if one changes, so may what they
    find, and everything is read anew.
    """

    def __init__(self, root: Path, name: str, code: Iterable[str]) -> None:
        self.path = root / f".index-{name}.json"
        self.made_by = hashlib.sha256(b"".join(Path(file).read_bytes() for file in [__file__, *code])).hexdigest()
        self.old: dict[str, Any] = {}
        self.new: dict[str, Any] = {}
        self.changed = 0

    def __enter__(self) -> Index:
        try:
            if self.path.stat().st_size <= LIMIT:
                found = json.loads(self.path.read_bytes())
                if found["made_by"] == self.made_by and isinstance(found["entries"], dict):
                    self.old = found["entries"]
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            pass  # no index, or a damaged one: everything is read
        return self

    def get(self, where: str, files: Iterable[str], read: Callable[[Path], Any], path: Path) -> Any:
        """What `read(path)` finds, as plain data, from the index if none of the files changed. `where`: a name for it."""
        now = [stamp(file) for file in files]
        if not any(now):  # nothing that an entry could be tied to
            return read(path)
        entry = self.old.get(where)
        if not (isinstance(entry, list) and len(entry) == 2 and entry[0] == now):
            entry = [now, read(path)]
            self.changed += 1
        self.new[where] = entry
        return entry[1]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and len(self.new) >= WORTH and (self.changed or len(self.new) != len(self.old)):
            text = json.dumps({"made_by": self.made_by, "entries": self.new}, separators=(",", ":"))
            with suppress(OSError):  # somebody else's folder, or a full disk: the next command reads the files again
                render.write(self.path, text)


def stamp(file: str) -> list[int] | None:
    """Size, modification and change time, and inode; None for a file that cannot be looked at."""
    try:
        found = os.stat(file)  # noqa: PTH116 - 40,000 of them
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
