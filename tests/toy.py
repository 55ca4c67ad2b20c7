"""A sweep of six cells on two models that trains nothing, killed in every way: `python toy.py FOLDER WAY`, prints JSON.

One process forks all trials, so that a kill costs milliseconds. What it writes it writes as the bench does: the same
shelf, turns, cells and files, at the same places.
"""

import json
import logging
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import bench.turn as turns
from bench import cell, faults, files, shelf, upkeep
from bench.turn import FileLock, turn

PACE = 0.0  # seconds for a step
WHO = ""
"""What a worker writes into all that it makes, so that two of them make different files."""
CELLS = [(model, defence) for model in range(2) for defence in range(3)]


def note(root: Path, *words) -> None:
    """One line in the ledger, at once."""
    file = os.open(root / "ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, (" ".join(map(str, words)) + "\n").encode())
    os.close(file)


def train(root: Path, model: int) -> dict:
    """Five steps, each kept."""
    place = shelf.part(root / f"models/m{model}")
    note(root, "train", model)
    done = max((int(path.name) for path in place.glob("?")), default=0)
    for step in range(done + 1, 6):
        note(root, "step", model, step)
        time.sleep(PACE)
        with suppress(FileNotFoundError):  # as bench.resume does
            files.publish(place / str(step), "x" * step)
    return {"steps": 5}


def run(root: Path, first: int) -> None:
    for model, defence in CELLS[first:] + CELLS[:first]:
        folder = root / f"cells/a{model}/d{defence}"
        if cell.read(folder):
            continue
        with cell.failures(folder), turn(folder, "running this cell"):
            if cell.read(folder, mine=True):
                continue
            note(root, "begin", model, defence)
            card = shelf.obtain(root / f"models/m{model}", "training", lambda m=model: train(root, m), fill)
            curve = f"at,acc\n1,{model * 10 + defence}{WHO}\n" * 50
            numbers = dict.fromkeys(
                ("acc_before", "asr", "asr_before", "ra", "ra_before", "seconds", "seconds_curve"), 1.0
            )
            names = {
                "schema": cell.SCHEMA,
                "attack": f"a{model}{WHO}",
                "defense": f"d{defence}",
                "seed": 0,
                "channels": None,
            }
            record = names | numbers | {"acc": model * 10 + defence, "steps": card["steps"]}
            cell.finish(folder, {"curve.csv": curve, "scores.csv": curve}, record)
            note(root, "end", model, defence)


def fill(new: Path) -> None:
    (new / "weights").write_bytes(bytes(1000) + WHO.encode())
    (new / "trigger").write_bytes(bytes(100))


def table(root: Path) -> dict:
    return {
        str(path.parent.relative_to(root)): (path.read_text(), (path.parent / "curve.csv").read_text())
        for path in sorted(root.glob("cells/*/*/record.json"))
    }


def child(root: Path, armed: str | None = None, show: Path | None = None, first: int = 0, machine: str = "") -> int:
    """Forks a process that runs the sweep, from one of its cells on; its number. `machine`: of its own, with its own locks."""
    if number := os.fork():
        return number
    if machine:
        apart(machine)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faults.armed = armed
    faults.passed.clear()
    status = 1
    try:
        run(root, first)
        status = 0
        if show:
            show.write_text(json.dumps(faults.passed))
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:
        status = 130
    except OSError as error:
        status = 2 if error.errno else 3
    finally:
        os._exit(status)


def apart(machine: str) -> None:
    """From here on this process is on another machine: locks end there, and one that stands still for a second is dead."""
    global WHO
    WHO, turns.BEAT, turns.GRACE = machine, 0.2, 1.0
    turns.here = lambda: machine
    turns.FileLock = lambda path: FileLock(f"{path}-{machine}")


def ended(number: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def sound(root: Path) -> None:
    """Nothing on the disk is torn, whoever looks and whenever."""
    for path in root.glob("models/m*"):
        if ".damaged-" not in path.name:
            shelf.verified(path)
    for path in root.glob("models/.*.part/?"):
        assert path.read_text() == "x" * int(path.name)
    for path in root.glob("cells/*/*/record.json"):
        json.loads(path.read_text())
        assert (path.parent / "curve.csv").stat().st_size > 300


def finished(root: Path, whole: dict, trainings: int = 0) -> None:
    """The sweep is run again: it ends well, with the same table; no finished cell is begun again, no step done twice."""
    sound(root)
    before = set(table(root))
    assert ended(child(root)) == 0, "the second run fails"
    sound(root)
    assert table(root) == whole, "the table differs"
    lines = [line.split() for line in (root / "ledger").read_text().splitlines()]
    over = set()
    for what, *which in lines:
        assert what != "begin" or tuple(which) not in over, "a finished cell is run again"
        over |= {tuple(which)} if what == "end" else set()
    assert before <= set(whole)
    steps = [tuple(rest) for what, *rest in lines if what == "step"]
    assert len(steps) <= 10 + 1 + trainings, f"{len(steps)} steps of training instead of 10"


def points(root: Path, whole: dict) -> list:
    """Every place, its first three passages and its last, by kill; its first by other ways to fail or to be stopped."""
    assert ended(child(root / "count", "*:count", root / "places")) == 0
    places = json.loads((root / "places").read_text())
    places.pop("matching")
    ways = [
        (name, "kill", nth)
        for name, times in places.items()
        for nth in sorted({1, min(2, times), min(3, times), times})
    ]
    ways += [(name, way, 1) for name in places for way in ("ENOSPC", "EIO", "EROFS", "term", "int")]
    ways += [(name, "short", nth) for name in places if name.endswith(".write") for nth in (1, 2)]
    for i, (name, way, nth) in enumerate(ways):
        here = root / f"p{i}"
        here.mkdir()
        status = ended(child(here, f"{name}:{way}:{nth}"))
        expected = {"kill": -9, "term": 143, "int": 130, "short": 0}.get(way, 2)
        # a beat, an error report, or what tidies up may fail without ending the run
        assert status in (expected, 0) if way[0] == "E" else status == expected, (name, way, nth, status)
        if way != "kill":
            left = [path.name for path in here.rglob(".tmp-*")]
            assert not left, (name, way, "leaves", left)
        finished(here, whole)
    return sorted(places)


def moments(root: Path, whole: dict) -> int:
    """Sixty kills at random moments, of one process and of three at once."""
    rng, early = random.Random(0), 0
    started = time.monotonic()
    assert ended(child(root / "timed")) == 0
    length = time.monotonic() - started
    for i in range(60):
        here = root / f"m{i}"
        here.mkdir()
        workers = [child(here, first=first) for first in range(1 if i % 2 else 3)]
        time.sleep(rng.random() * length)
        os.kill(workers[0], signal.SIGKILL)
        statuses = [ended(number) for number in workers]
        early += statuses[0] == -9
        assert not any(statuses[1:]), "the death of another harms nobody"
        finished(here, whole, trainings=1)
    return early


def crowd(root: Path, whole: dict) -> int:
    """Six processes at once, ten times: each model is trained once, each cell run once. Returns the trainings."""
    global PACE
    PACE = 0.01
    for i in range(10):
        here = root / f"c{i}"
        here.mkdir()
        assert not any([ended(number) for number in [child(here, first=first) for first in range(6)]])
        assert table(here) == whole
        lines = (here / "ledger").read_text().splitlines()
        for what in ("train 0", "train 1", "begin 0 0", "begin 1 2"):
            assert lines.count(what) == 1, f"{what}: {lines.count(what)} times"
    return 10


def successor(root: Path, whole: dict) -> float:
    """Seconds from the death of one that holds everything up to the next one's first step."""
    here = root / "s"
    here.mkdir()
    holder = child(here, "shelf.made:hang")
    while "train 0" not in (here / "ledger").read_text() if (here / "ledger").exists() else True:
        time.sleep(0.01)
    waiting = child(here)
    time.sleep(0.3)
    os.kill(holder, signal.SIGKILL)
    died = time.monotonic()
    while (here / "ledger").read_text().count("begin 0 0") < 2:
        time.sleep(0.005)
    took = time.monotonic() - died
    assert ended(waiting) == 0 and table(here) == whole
    ended(holder)
    return took


def stalled(root: Path, whole: dict) -> int:
    """A worker stands still at each place, for longer than another machine waits; that one takes over, and then it wakes up."""
    assert ended(child(root / "count", "*:count", root / "places", machine="one")) == 0
    places = json.loads((root / "places").read_text())
    places.pop("matching")
    ways = [(name, nth) for name, times in places.items() for nth in sorted({1, times})]
    rooms = [root / f"z{i}" for i in range(len(ways))]
    for here in rooms:
        here.mkdir()
    sleepers = [child(here, f"{name}:stop:{nth}", machine="one") for here, (name, nth) in zip(rooms, ways, strict=True)]
    for number, way in zip(sleepers, ways, strict=True):
        assert os.WIFSTOPPED(os.waitpid(number, os.WUNTRACED)[1]), way
    for number in [child(here, machine="two") for here in rooms]:
        assert ended(number) == 0
    before = [kept(here) for here in rooms]
    for number in sleepers:
        os.kill(number, signal.SIGCONT)
    for here, number, was, way in zip(rooms, sleepers, before, ways, strict=True):
        assert ended(number) == 0, way
        assert kept(here) == was and len(was) == 6 * 3 + 2 * 3, (way, was, kept(here))
        for path in here.glob("cells/*/*/record.json"):
            assert not upkeep.record(path.parent), way
        sound(here)
        assert not list(here.rglob(".tmp-*")) and not list(here.rglob("*.damaged-*")), way
    return len(ways)


def kept(root: Path) -> dict[str, tuple]:
    """Every file of every result -> its inode, its time and what is in it."""
    found = [path for path in root.glob("*/*/**/*") if path.is_file() and path.relative_to(root).parts[1][0] != "."]
    found = [path for path in found if path.name[0] != "."]
    return {str(p.relative_to(root)): (p.stat().st_ino, p.stat().st_mtime_ns, p.read_bytes()) for p in found}


if __name__ == "__main__":
    logging.disable()
    root = Path(sys.argv[1])
    for name in ("whole", "count", "timed"):
        (root / name).mkdir()
    assert ended(child(root / "whole")) == 0
    whole = table(root / "whole")
    assert len(whole) == len(CELLS)
    print(json.dumps(globals()[sys.argv[2]](root, whole)))
