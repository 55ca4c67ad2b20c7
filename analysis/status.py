"""Where a sweep stands: its cells done, suspect, running, failed, stale or missing, and the command that fills the gap."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # comes with omegaconf

from analysis import command, grid
from analysis.fingerprints import suspect
from analysis.load import read, reason
from analysis.render import plain
from analysis.schema import AXES, read_text

STATES = ("done", "suspect", "running", "failed", "damaged", "stale", "missing")
FINISHED = STATES[:2]
PLAIN = re.compile(r"- ([\w.@/+~-]+=[^'\"#\n:]*|~[\w.@/]+)")  # a line of overrides.yaml that needs no YAML
LOCK = re.compile(r"\.(s(-?\d+)-[0-9a-f]+)\.lock")


# -- what is there -----------------------------------------------------------------------------------------------------
def found(root: Path) -> list[dict[str, Any]]:
    """Every cell that has a record, a traceback or a running process: axes, `seed`, `state`, `what`, `where`, `settings`."""
    rows = {}
    for row in read(root)[0]:
        if "seed" in row:
            rows[row["where"]] = row | {"state": row["kind"]}
            if row["kind"] == "done" and (why := suspect(row)):
                rows[row["where"]] |= {"state": "suspect", "what": why}
    for folder, seed in running(root):
        where = folder.relative_to(root).as_posix()
        if rows.get(where, {}).get("state") not in FINISHED:
            names = dict(zip(AXES, folder.parts[-5:-1], strict=False))
            rows[where] = {**names, "seed": seed, "where": where, "folder": str(folder), "settings": {}, "what": ""}
            rows[where]["state"] = "running"
    return [rows[where] for where in sorted(rows)]


def running(root: Path) -> Iterator[tuple[Path, int]]:
    """Folders of cells whose lock a process holds, and their seeds."""
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".") and name not in ("backdoors", "cache")]
        for name in names:
            if (lock := LOCK.fullmatch(name)) and (held(Path(folder, name)) or counted_elsewhere(Path(folder, name))):
                yield Path(folder, lock[1]), int(lock[2])
        inner[:] = [name for name in inner if not re.fullmatch(r"s-?\d+-[0-9a-f]+", name)]  # nothing below a cell


def held(lock: Path) -> bool:
    """By a process of this machine. Asks without waiting, and lets go at once."""
    try:
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    except OSError:  # gone, or not ours to read
        pass
    return False


def counted_elsewhere(lock: Path) -> bool:
    """Whether a process of another machine says that it is at work, in the file beside the lock (bench.turn). It may be dead."""
    try:
        beat = read_text(lock.with_name(lock.name.removesuffix(".lock") + ".beat"), 200)
        here = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return False
    return beat.split(" ")[0] != here


def typed(folder: Path) -> dict[str, str] | None:
    """The overrides that a cell was started with; None if they are not known."""
    try:
        text = read_text(folder / ".hydra" / "overrides.yaml", 1 << 14)
        lines = text.splitlines()
        words = [line[2:] for line in lines if PLAIN.fullmatch(line)]
        if len(words) != len(lines):
            words = yaml.safe_load(text)
        (cell,) = grid.expand([word for word in words if isinstance(word, str)], Path())
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError):
        return None
    return cell


# -- what is wanted ----------------------------------------------------------------------------------------------------
def last_sweep(root: Path) -> list[str]:
    """The overrides of the sweep that was started last. Raises OSError or ValueError if they are not known."""
    config = yaml.safe_load(read_text(root / "multirun.yaml", 1 << 17))
    try:
        words = [str(word) for word in config["hydra"]["overrides"]["task"]]
        params = dict(
            config["hydra"].get("sweeper", {}).get("params") or {}
        )  # an experiment's own; what was typed comes last
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError("multirun.yaml names no overrides") from error
    return [*(f"{key}={value}" for key, value in params.items()), *words]


def status(root: Path, overrides: Sequence[str], conf: Path) -> list[tuple[dict[str, str], str, str]]:
    """Every cell of the sweep: its overrides, its state (one of STATES), and what there is to say. Raises ValueError."""
    rows = found(root)
    by_names: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    wanted = grid.expand(overrides, conf)
    keys = [key for key in (*AXES, "seed") if wanted and key in wanted[0]]
    for row in rows:
        by_names.setdefault(tuple(str(row[key]) for key in keys), []).append(row)
    known: dict[str, Any] = {}
    out = []
    for cell in wanted:
        best = ("missing", "")
        for row in by_names.get(tuple(cell[key] for key in keys), ()):
            if row["where"] not in known:
                known[row["where"]] = typed(Path(row["folder"]))
            if grid.fits(cell, row, row["settings"], known[row["where"]]):
                best = min(best, (row["state"], f"{row['where']}: {row['what']}".removesuffix(": ")), key=rank)
        out.append((cell, *best))
    return out


def rank(state: tuple[str, str]) -> int:
    return STATES.index(state[0])


# -- the program -------------------------------------------------------------------------------------------------------
def said(cells: Sequence[tuple[Mapping[str, str], str, str]], most: int) -> Iterator[str]:
    """Counts, what is not done (at most so many of each state), and the command."""
    counts = {state: sum(own == state for _, own, _ in cells) for state in STATES}
    yield (
        f"{len(cells)} cells: " + ", ".join(f"{n} {state}" for state, n in counts.items() if n or state == "done") + "."
    )
    for state in STATES[1:]:
        own = [(cell, what) for cell, is_state, what in cells if is_state == state]
        for cell, what in own[:most]:
            name = " ".join(f"{key}={value}" for key, value in cell.items())
            yield f"  {state}: {name}" + (f" ({what})" if what else "")
        if len(own) > most:
            yield f"  {state}: {len(own) - most} more (--all names them)"
    if counts["suspect"]:
        yield "Suspect cells are kept and counted: if the meaning changed, count it up in analysis/revisions.py."
    gap = [cell for cell, state, _ in cells if state not in (*FINISHED, "running")]
    if gap:
        yield "To fill the gap (finished cells are passed over):"
        yield f"  {grid.command(gap)}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser("status", __doc__ or "", "")
    parser.add_argument("overrides", nargs="*", help="the sweep, as given to bench/run.py -m (default: the last one)")
    parser.add_argument("--conf", type=Path, default=Path("conf"), metavar="DIR", help="where the configs are (conf)")
    parser.add_argument("--all", action="store_true", help="name every cell that is not done")
    options = parser.parse_args(arguments)
    overrides = options.overrides
    try:
        if not overrides:
            overrides = last_sweep(options.runs)
        cells = status(options.runs, overrides, options.conf)
    except FileNotFoundError:
        return command.refuse(
            f"No sweep was started in {options.runs}: say which, as to bench/run.py -m, or --runs DIR."
        )
    except (OSError, ValueError, yaml.YAMLError) as error:
        return command.refuse(f"The sweep is not known: {reason(error)}.")
    how = [word for word in overrides if word.partition("=")[0] in grid.ASIDE - {"runs"}]  # by whom, where, how fast
    how += [] if options.runs == Path("runs") else [f"runs={options.runs}"]
    lines = list(said(cells, len(cells) if options.all else 10))
    if lines[-1].startswith("  python"):
        lines[-1] = " ".join([lines[-1], *map(shlex.quote, how)])
    for line in lines:
        print(plain(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
