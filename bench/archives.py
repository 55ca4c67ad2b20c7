"""Archives of images, unpacked by our own rules: what is in them is somebody's, and the library's default follows it anywhere."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from bench.errors import UserError
from bench.files import sha256

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
FILES = 5_000_000
BYTES = 1 << 40
RATIO = 200  # images are compressed already; a bomb unpacks to a thousand times its size


class Entry(NamedTuple):
    name: str
    size: int
    data: IO[bytes]


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def unpacked(archive: Path, cache: Path) -> Path:
    """The folder that the archive's content lies in: unpacked once, below `cache`, and named by the archive's digest.

    Not synced to disk: after a power cut `decode` names a damaged image, and without this folder it is unpacked again.
    """
    folder = cache / f"unpacked-{sha256(archive)[:16]}"
    if not folder.is_dir():
        temporary = cache / f".tmp-{uuid.uuid4().hex[:16]}"
        temporary.mkdir(parents=True)
        try:
            unpack(archive, temporary)
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def unpack(archive: Path, into: Path) -> None:
    """Writes the regular files of a zip or tar below `into`, an empty folder. Raises UserError at the first that is not one.

    Refused: names that leave the folder (absolute, `..`, a drive), links, devices, pipes, two names that are one on some file
    system, and more files or bytes than `FILES`, `BYTES` or `RATIO` times the archive's own size.
    """
    most = min(BYTES, RATIO * max(archive.stat().st_size, 1 << 20))
    seen: set[str] = set()
    written = 0
    try:
        for entry in entries(archive):
            name = safe(entry.name, archive)
            if str(name).casefold() in seen:
                raise UserError(
                    f"{archive} holds {entry.name!r} twice, or once more in other letters: unpack it by hand."
                )
            seen.add(str(name).casefold())
            if len(seen) > FILES or written + entry.size > most:
                raise UserError(f"{archive} unpacks to far more than its own size: it is no archive of images.")
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                while block := entry.data.read(min(1 << 20, most - written + 1)):
                    written += len(block)
                    if written > most:
                        raise UserError(f"{archive} unpacks to far more than its own size: it is no archive of images.")
                    file.write(block)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{archive} cannot be read as an archive ({error}): fetch it again.") from error
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{archive} holds a file and a folder of the same name ({error.filename}).") from error


def safe(name: str, archive: Path) -> PurePosixPath:
    """The name as a path below a folder. Raises UserError if it is none on some system."""
    path = PurePosixPath(name)
    parts = path.parts
    strange = not parts or path.is_absolute() or ".." in parts or not name.isprintable() or "\\" in name or ":" in name
    if strange or len(name) > 1024 or any(len(os.fsencode(part)) > 255 for part in parts):
        raise UserError(
            f"{archive} holds the file name {name[:100]!r}, which does not stay in its folder: it was not unpacked."
        )
    return path


def entries(archive: Path) -> Iterator[Entry]:
    """The regular files in an archive, in its order. Raises UserError for anything else but folders."""

    def refuse(name: str, kind: str) -> None:
        raise UserError(f"{archive} holds {name[:100]!r}, a {kind}: only ordinary files are unpacked.")

    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            for info in file.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if info.is_dir():
                    safe(info.filename, archive)
                    continue
                if kind not in (0, stat.S_IFREG):
                    refuse(info.filename, "link or device")
                with file.open(info) as data:
                    yield Entry(info.filename, info.file_size, data)
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isdir():
                if PurePosixPath(member.name).parts:  # else it is the folder itself, as `tar -C DIR .` names it
                    safe(member.name, archive)
                continue
            if not member.isreg() or member.sparse is not None:
                refuse(member.name, "link, device or sparse file")
            content: Any = tar.extractfile(member)
            yield Entry(member.name, member.size, content)
