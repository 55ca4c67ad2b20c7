"""What a person at the terminal sees: one line or one table per cell, and errors as one sentence."""

from __future__ import annotations

import errno
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.errors import UserError, nearest


def name(choices: Mapping[str, Any], seed: int) -> str:
    return f"{choices['attack']} / {choices['defense']} / seed {seed}"


def words(typed: Sequence[str]) -> list[str]:
    """The command line, with what goes without saying: a folder of images for a data set is an image folder; and flags, which
    Hydra does not understand between other words, at its end."""
    chosen = {word.lstrip("+~").partition("=")[0] for word in typed if not word.endswith("=null")}
    folder = "dataset.root" in chosen and not chosen & {"dataset", "experiment"}
    told, flags = [], []
    rest = iter([*typed, *(["dataset=imagefolder"] if folder else [])])
    for word in rest:
        if word in ("-m", "--multirun"):
            flags.append(word)
        elif word in ("-c", "--cfg", "-p", "--package"):
            flags += [word, *([value] if (value := next(rest, None)) is not None else [])]
        else:
            told.append(word)
    return told + flags


def one_cell(record: Mapping[str, Any]) -> str:
    name = f"{record['attack']} / {record['defense']}{cheats(record)} / seed {record['seed']}"
    change = "  ".join(
        f"{k.upper()} {percent(record[f'{k}_before'])} -> {percent(record[k])}" for k in ("acc", "asr", "ra")
    )
    return f"{name}:  {change}  ({pruned(record)}{record['seconds'] + record['seconds_curve']:.1f} s)"


def percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f}"


def cheats(record: Mapping[str, Any]) -> str:
    return " (cheats: sees the trigger)" if record.get("needs") == "trigger" else ""


def pruned(record: Mapping[str, Any]) -> str:
    return f"{record['pruned']} of {record['channels']} channels, " if record["channels"] else ""


def show(record: Mapping[str, Any], folder: Path) -> None:
    """The before/after table of one cell."""
    r = record
    defense = f"{r['defense']}{cheats(r)}"
    table = Table(title=f"{r['attack']} on {r['dataset']} ({r['model']}), defence {defense}, seed {r['seed']}")
    for column in ("", "ACC", "ASR", "RA", "pruned", "at"):
        table.add_column(column, justify="left" if not column else "right")
    cells = [percent(r[f"{k}_before"]) for k in ("acc", "asr", "ra")]
    table.add_row("before", *cells, "0" if r["channels"] else "", "")
    for rule in dict.fromkeys([r["rule"], *(k[4:] for k in r if k.startswith("acc_") and k not in ("acc_before",))]):
        if (rule != r["rule"] and not r["channels"]) or r[f"acc_{rule}"] is None:
            continue
        cells = [percent(r[f"{k}_{rule}"]) for k in ("acc", "asr", "ra")]
        at = r[f"at_{rule}"]
        name = f"after, {rule}" if r["channels"] else "after"
        cells += [str(r[f"pruned_{rule}"]) if r["channels"] else "", "" if at is None else f"{at:.3g}"]
        table.add_row(
            name + (" (sees the test set)" if rule == "oracle" else ""),
            *cells,
            style="bold" if rule == r["rule"] else "dim",
        )
    Console(highlight=False).print(table)
    counts = f"ACC on {r['clean']} clean test images, "
    known = f"ASR and RA on {r['triggered']} triggered ones, none of the target class"
    counts += known if r["triggered"] else "ASR and RA unknown, as the trigger is"
    print(f"{counts}; all in {folder}")


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
UNSAID = ("No space left on device", "Disk quota exceeded", "File too large")
"""The same in errors of libraries that have no number."""
KILLED = "a worker was killed from outside, most often for want of memory: try fewer workers."
ENDED = "a job ended without a result: it was cancelled, or killed for its time or memory."
LOST = {"TerminatedWorkerError": KILLED, "WorkerCrashedError": KILLED, "LocalRayletDiedError": KILLED}
LOST |= {"UncompletedJobError": ENDED, "FailedJobError": ENDED}
"""What launchers raise when a worker of theirs is gone, by the name of the exception: they need not be installed."""


EXTRAS = ("joblib", "slurm", "ray")
"""What pyproject.toml calls the packages of the launchers."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def sentence(error: BaseException) -> str:
    """What went wrong, in one sentence and without a traceback."""
    chain = list(causes(error))
    for e in chain:
        if isinstance(e, UserError):
            return str(e)
    for e in chain:  # a group or choice that does not exist: the error carries the choices
        options = getattr(e, "options", None)
        if options and getattr(e, "missing_cfg_file", None):
            group, _, wrong = str(e.missing_cfg_file).rpartition("/")  # type: ignore[attr-defined]
            if group == "hydra/launcher" and (extra := wrong.partition("_")[0].replace("submitit", "slurm")) in EXTRAS:
                return f"launcher={wrong} needs a package that is not installed: pip install 'backprune[{extra}]'."
            return f"{group}={wrong} does not exist: {nearest(wrong, options)}"
    for e in chain:  # a key that does not exist: the error carries the node that lacks it
        node = getattr(e, "parent_node", None)
        key = getattr(e, "full_key", None)
        if node is not None and key and hasattr(node, "keys") and "not in struct" in str(e):
            group, _, last = str(key).rpartition(".")
            if any(word.startswith(f"{group}=") and re.search("[,(]", word) for word in sys.argv):
                return f"{key} is no setting of the default {group}: in a sweep over {group}s write ++{key}=VALUE."
            if key == "check":
                return "check=relearn is to be chosen before a setting of it is given."
            return f"{key} is not a setting of the bench: {nearest(last, [str(k) for k in node])}"
    for e in chain:
        if "Could not detect" in str(e) and "srun" in str(e):
            return "launcher=submitit_slurm: there is no Slurm here (no srun); launcher=submitit_local and joblib need none."
        if (isinstance(e, OSError) and e.errno in FULL) or any(said in str(e) for said in UNSAID):
            return "the disk is full: free some space, or choose another place with runs=DIR; nothing half-written is left."
        if isinstance(e, OSError) and e.filename:
            return f"cannot use {e.filename}: {e.strerror}. Choose another place with runs=DIR, or free this one."
        if type(e).__name__ == "OutOfMemoryError":
            return "the device ran out of memory: lower train.batch_size, or use device=cpu."
        if isinstance(e, MemoryError) or "DefaultCPUAllocator" in str(e):
            return "this machine ran out of memory: lower train.batch_size, or run fewer cells at once (workers)."
        if said := LOST.get(type(e).__name__):
            return (
                f"{said} What is finished is kept; the same command goes on from here. ({str(e).splitlines()[0][:300]})"
            )
        if type(e).__name__ in ("ScannerError", "ParserError", "ConstructorError", "ComposerError"):
            return f"a config file is not plain YAML: {' '.join(str(e).split())}"
        if type(e).__name__ == "OverrideParseException":
            key, _, value = str(getattr(e, "override", "")).partition("=")
            quoted = f"\"{key}='{Path(value).expanduser()}'\""
            return f"{key}={value} is not understood: a value with such characters needs quotes within the shell's, {quoted}."
    head = str(error).strip().splitlines() or [""]
    if type(error).__module__.startswith(("hydra", "omegaconf")):
        return " ".join(line.strip() for line in head if line.strip())
    return f"unexpected {type(error).__name__}: {head[0]}"


def since(changed: str | None, folder: Path) -> str:
    """What to add about a finished cell whose code is another by now. `changed`: see `analysis.fingerprints.suspect`."""
    return f" ({changed}; delete {folder} to run it again)" if changed else ""


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a batch system sends it before it kills: an interruption, with the exit status that such systems know."""

    status = 143


def stoppable() -> None:
    """Ctrl-C and SIGTERM raise, but never within an import: the compiled parts of torch and of Triton run Python while they
    are loaded, and an exception there would abort the whole process (one Ctrl-C in 230, measured). They wait for its end."""
    ours = threading.main_thread().ident or 0
    waiting: set[int] = set()

    def stop(number: int, frame: FrameType | None) -> None:
        if not importing(frame):
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if number not in waiting:
            waiting.add(number)
            threading.Thread(target=knock, args=[number], daemon=True).start()

    def knock(number: int) -> None:
        while importing(sys._current_frames().get(ours)):
            time.sleep(0.02)
        waiting.discard(number)
        signal.pthread_kill(ours, number)  # it also ends a sleep, which _thread.interrupt_main does not

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it was told to ignore it, as after nohup
        signal.signal(signal.SIGINT, stop)


def importing(frame: FrameType | None) -> bool:
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


FAILED: list[Exception] = []
"""What a single cell failed with."""


def failure(error: Exception, alone: bool) -> dict[str, str]:
    """For the note of a cell that failed. One that ran `alone` is left to `close`: of an error raised Hydra says a line first."""
    if alone:
        FAILED.append(error)
    return {"state": "failed", "why": sentence(error)}


def close(error: BaseException | None, outcomes: Sequence[Mapping[str, Any]]) -> int:
    """Says what ended the program (unless its cell did) and which cells of a sweep failed; returns the exit status."""
    error = error or next(iter(FAILED), None)
    failed = [note for note in outcomes if note["state"] == "failed"]
    if isinstance(error, KeyboardInterrupt):
        print("\nInterrupted. Finished cells are kept; the same command goes on from here.", file=sys.stderr)
        return getattr(error, "status", 130)
    if error and not getattr(error, "reported", False):
        print(f"error: {sentence(error)}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(outcomes)} cells failed; the others are kept:", file=sys.stderr)
        for why in dict.fromkeys(note["why"] for note in failed):
            same = [note for note in failed if note["why"] == why]
            more = f" and {len(same) - 1} more" if len(same) > 1 else ""
            print(f"  {same[0]['name']}{more}: {why} ({same[0]['folder']})", file=sys.stderr)
        print(
            "Each folder holds the traceback (error.txt) and the settings (.hydra). The same command tries only what is missing.",
            file=sys.stderr,
        )
    return 1 if error or failed else 0
