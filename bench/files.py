"""The one module through which result files are written.

A result is one immutable file (or folder), published complete and never replaced; everything else rests on that. Whatever
happens, and whenever, a reader finds a whole file or none.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from analysis.sealing import digest as digest
from bench import faults

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""What file systems without hard links say when asked for one."""


def publish(path: Path, content: str | bytes) -> bool:
    """Makes a file that stays as it is for ever. Returns False, and changes nothing, if there is one already.

    When it returns, the file survives a power cut. Raises OSError, and then leaves nothing behind. Where a file system has
    no hard links the file is renamed into place, which a second writer at the same instant could replace with its own
    (`python -m bench.store doctor` says so).
    """
    make_folder(path.parent)
    temporary = _whole(path, content, "publish")
    mine = True
    try:
        faults.hit("publish.link")
        try:
            os.link(temporary, path)
        except OSError as error:
            if os.stat(temporary).st_nlink == 2:
                pass  # it worked, and a file server's reply was lost
            elif error.errno == errno.EEXIST or (error.errno in NO_LINKS and os.path.lexists(path)):
                mine = False
            elif error.errno in NO_LINKS:
                os.rename(temporary, path)
            else:
                raise
        faults.hit("publish.linked")
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    faults.hit("publish.folder")
    settle(path.parent)
    faults.hit("publish.done")
    return mine


def write(path: Path, content: str | bytes, sync: bool = True) -> None:
    """Makes or replaces a file so that a reader sees the old one or the new one, never half of it. Raises OSError.

    For what may change: reports, tracebacks. Without `sync` a power cut may leave the old one.
    """
    make_folder(path.parent)
    temporary = _whole(path, content, "write", sync)
    try:
        faults.hit("write.replace")
        os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise
    if sync:
        faults.hit("write.folder")
        settle(path.parent)


def write_all(folder: Path, contents: Mapping[str, str | bytes], unless: Path | None = None) -> None:
    """Makes or replaces several files in a folder, each as `write` does, by name. All are on the disk when it returns.

    They are synced side by side, which a disk does about as fast as one. Once `unless` is there none is replaced any more;
    it is looked for right before each of them.
    """
    make_folder(folder)
    made: dict[Path, Path] = {}
    try:
        for name, content in contents.items():
            made[folder / name] = _whole(folder / name, content, "write", sync=False)
        faults.hit("write.sync")
        settle(*made.values())
        for path, temporary in made.items():
            faults.hit("write.replace")
            if unless and os.path.lexists(unless):
                _remove(temporary)
            else:
                os.replace(temporary, path)
    except BaseException:
        for temporary in made.values():
            _remove(temporary)
        raise
    faults.hit("write.folder")
    settle(folder)


def _whole(path: Path, content: str | bytes, act: str, sync: bool = True) -> Path:
    """A temporary file beside `path` that holds all of the content, on the disk itself."""
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:16]}")
    left = memoryview(content.encode() if isinstance(content, str) else content)
    try:
        faults.hit(f"{act}.open")
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            while left:
                short = faults.hit(f"{act}.write")
                left = left[os.write(file, left[: len(left) // 2 + 1] if short else left) :]
            if sync:
                faults.hit(f"{act}.sync")
                os.fsync(file)
        finally:
            os.close(file)
        faults.hit(f"{act}.closed")
    except BaseException as error:
        _remove(temporary)  # a full disk would stay full otherwise
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    return temporary


def _remove(path: Path) -> None:
    with suppress(OSError):
        os.unlink(path)


def settle(*paths: Path) -> None:
    """Makes what is in these files, and the names that are in these folders, survive a power cut.

    All at once: a journal commits what waits for it together, and one after the other each waits for a commit of its own.
    """
    if len(paths) == 1:
        _sync(paths[0])
        return
    with ThreadPoolExecutor(len(paths) or 1) as threads:
        list(threads.map(_sync, paths))


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(file)


def make_folder(path: Path, above: bool = True) -> None:
    """Makes a folder and, with `above`, those that it lies in, each of them to stay."""
    try:
        os.mkdir(path)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise
    except FileNotFoundError:
        if not above:  # /proc refuses a new folder in this way
            raise
        make_folder(path.parent)
        make_folder(path, above=False)
    else:
        settle(path.parent)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `folder` when the block ends well and vanishes when it does not.

    Raises OSError if there is one already that holds anything; that one stays as it is.
    """
    make_folder(folder.parent)
    temporary = folder.with_name(f".tmp-{uuid.uuid4().hex[:16]}")
    os.mkdir(temporary)
    try:
        yield temporary
        faults.hit("folder.sync")
        for name in os.listdir(temporary):
            path = temporary / name
            os.chmod(path, os.stat(temporary).st_mode & 0o666)  # some writers make files for their owner only
        settle(*(temporary / name for name in os.listdir(temporary)))
        settle(temporary)
        faults.hit("folder.rename")
        os.rename(temporary, folder)
        faults.hit("folder.renamed")
        settle(folder.parent)
        faults.hit("folder.done")
    finally:
        if os.path.lexists(temporary):
            shutil.rmtree(temporary, ignore_errors=True)


def set_aside(path: Path) -> Path:
    """Renames a damaged file or folder out of the way, losing nothing, and returns where it is now."""
    aside = path.with_name(f"{path.name}.damaged-{uuid.uuid4().hex[:8]}")
    os.rename(path, aside)
    return aside


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(card: dict[str, Any]) -> str:
    """The text of a card, which has its own digest besides those of files in `sha256`; `shelf.card` reads it."""
    return json.dumps(card | {"sha256": card["sha256"] | {"card": digest(card)}}, indent=1) + "\n"


def digest_of(content: str | bytes) -> str:
    """The sha256 of a file with this content."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
