"""A zip archive put together of pieces that stay where they are: nothing is copied, and no checksum is computed again."""

from __future__ import annotations

import io
import struct
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import Any


class Pieces(io.RawIOBase):
    """A file to be read, made of buffers one after the other."""

    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        self.pieces = [memoryview(piece) for piece in pieces if len(piece)]
        self.ends = list(accumulate(len(piece) for piece in self.pieces))
        self.at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = max(0, offset + (0, self.at, self.ends[-1])[whence])
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, room: Any) -> int:
        """Fills as much of it as there is; returns the number of bytes."""
        left = memoryview(room).cast("B")
        wanted = len(left)
        number = bisect_right(self.ends, self.at)
        while left and number < len(self.pieces):
            piece = self.pieces[number]
            part = piece[self.at - self.ends[number] + len(piece) :][: len(left)]
            left[: len(part)] = part
            left, self.at, number = left[len(part) :], self.at + len(part), number + 1
        return wanted - len(left)


def zipped(parts: Iterable[tuple[str, bytes | memoryview, int]]) -> io.BufferedReader:
    """An archive of stored parts: (name, content, crc32 of it). Raises struct.error above 4 GiB or 65,535 parts."""
    pieces: list[bytes | memoryview] = []
    listed, place = [], 0
    for word, content, crc in parts:
        name = word.encode()
        # version 2.0, no flags, stored, midnight, 1 January 1980
        common = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 0x21, crc, len(content), len(content), len(name), 0)
        listed.append(b"PK\1\2\x14\0" + common + struct.pack("<HHHII", 0, 0, 0, 0, place) + name)
        pieces += [b"PK\3\4" + common + name, content]
        place += 4 + len(common) + len(name) + len(content)
    directory = b"".join(listed)
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, len(listed), len(listed), len(directory), place, 0)
    return io.BufferedReader(Pieces([*pieces, directory, end]))
