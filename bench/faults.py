"""Named places where tests make things go wrong. Outside tests every call returns at once."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter
from fnmatch import fnmatch

armed: str | None = os.environ.get("BACKPRUNE_FAULT") if os.environ.get("BACKPRUNE_TEST") == "1" else None
"""`name:action[:nth]`: what happens at the nth passage of a place; `name` may hold wildcards."""
passed: Counter[str] = Counter()
"""How often each place was passed, while armed."""


def hit(name: str) -> bool:
    """Passes the place `name`. True: the write that follows is to be cut short.

    Actions: kill, term, int, stop (signals to this process), hang (two seconds), short, or a name of `errno` such as ENOSPC,
    which is raised as OSError; any other word only counts.
    """
    if armed is None:
        return False
    passed[name] += 1
    pattern, action, *nth = armed.split(":")
    if not fnmatch(name, pattern):
        return False
    passed["matching"] += 1
    if passed["matching"] != int(nth[0] if nth else 1):
        return False
    signals = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT, "stop": signal.SIGSTOP}
    if action in signals:
        os.kill(os.getpid(), signals[action])
    elif action == "hang":
        time.sleep(2)
    elif action in vars(errno):
        code = getattr(errno, action)
        raise OSError(code, os.strerror(code))
    return action == "short"
