"""One process at a time: a lock that saves doing work twice. No result is ever at stake (see `bench.files`).

Two questions, asked without any clock but the asker's own:
- Is the holder on this machine? The operating system's lock answers at once, and a dead process holds none. (Where a file system
  has no locks every process counts as a machine of its own.)
- Is it on another one, and the file system's locks end at the machine? Then it counts up in a file beside the lock; when
  that count has stood still for `GRACE` seconds of the asker's own monotonic clock, the holder is taken for dead. One that
  was only stalled goes on, and may do the work a second time; the first result stays.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import getnode

from filelock import FileLock, Timeout

from bench import faults, files

log = logging.getLogger(__name__)

patient = True
"""False: who would have to wait is told so by `Busy`, and may do something else first."""
locks = True
"""False once a file system said that it has none."""
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)
BEAT = 15.0  # seconds between two counts
GRACE = 150.0  # network file systems show a change after a minute at worst


class Busy(BaseException):
    """Another process is at it. No failure of anything, so nothing on the way may take it for an `Exception`."""


def here() -> str:
    """This machine since it was started: locks of the operating system hold within it. This process, where there are none."""
    found = f"{getnode():x}"
    with suppress(OSError):
        found = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return found if locks else f"{found}:{os.getpid()}"


@contextmanager
def turn(target: Path, doing: str) -> Iterator[None]:
    """Runs the block while no other process runs one for the same `target`; look there first, its work may be done.

    `doing`: for the line that is shown while waiting, such as `training this model`. The lock is a hidden file beside the
    target and stays there.
    """
    global locks
    files.make_folder(target.parent)
    beat = target.with_name(f".{target.name}.beat")
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    clock = Patience(target, doing)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            clock.wait(0.1)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            if locks:
                log.warning("%s: this file system has no locks; processes go by each other's counts.", target.parent)
            locks = False
            break
    stop = threading.Event()
    try:
        faults.hit("turn.locked")
        elsewhere(beat, clock)
        count(beat, 0)
        thread = threading.Thread(target=keep_counting, args=(beat, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            if ours(beat):
                beat.unlink(missing_ok=True)
            faults.hit("turn.leaving")
    finally:
        lock.release()


def elsewhere(beat: Path, clock: Patience) -> None:
    """Returns when nobody on another machine counts in `beat`."""
    last, since = None, time.monotonic()
    while (now := read(beat)) is not None and now.split(" ")[0] != here():
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > GRACE:
            log.warning("taking over %s: its holder on another machine has stood still for %d s", clock.target, GRACE)
            return
        clock.wait(min(1.0, GRACE / 10))


def read(beat: Path) -> str | None:
    try:
        return beat.read_text()
    except OSError:
        return None


def ours(beat: Path) -> bool:
    """Unless another machine counts there: this one was stalled for so long that its turn was taken over."""
    return (read(beat) or here()).split(" ")[0] == here()


def count(beat: Path, number: int) -> None:
    files.write(beat, f"{here()} {number}", sync=False)


def keep_counting(beat: Path, stop: threading.Event) -> None:
    number = 0
    while not stop.wait(BEAT) and ours(beat):
        number += 1
        with suppress(OSError):  # a stalled share must not end the work
            count(beat, number)


class Patience:
    """Waits, and says so after growing intervals."""

    def __init__(self, target: Path, doing: str) -> None:
        self.target, self.doing = target, doing
        self.started, self.next = time.monotonic(), 0.0

    def wait(self, seconds: float) -> None:
        if not patient:
            log.info("put off: another process is %s, %s; other cells come first.", self.doing, self.target)
            raise Busy
        waited = time.monotonic() - self.started
        if waited >= self.next:
            log.info("waiting: another process is %s, %s (%d s so far)", self.doing, self.target, waited)
            self.next = max(10.0, 2 * waited)
        time.sleep(seconds)
