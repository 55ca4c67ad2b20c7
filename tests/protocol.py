"""What must hold of the protocol, as functions of the modules that carry it: of ours, and of ones with a bug put in."""

import logging
import random
import types
from pathlib import Path

from disk import Dead, Disk, Workers
from filelock import FileLock

RESULT = Path("/runs/cell/record.json")
SAYS = [f"record of worker {i}, all of it".encode() for i in range(3)]


def mutant(module, old: str, new: str, count: int = 1):
    """The module with a piece of its source replaced; it must be there."""
    source = Path(module.__file__).read_text()
    assert source.count(old) == count, f"{old!r} is there {source.count(old)} times"
    made = types.ModuleType(module.__name__)
    made.__file__ = module.__file__
    exec(compile(source.replace(old, new), module.__file__, "exec"), made.__dict__)
    return made


# -- one writer, and the power fails ------------------------------------------------------------------------------------
def power(files, orders: int = 40) -> int:
    """Cuts the power before every call of every kind of writing; returns how many states were looked at."""
    looked = 0
    for act in (publish_one, replace_one, several, folder_one):
        for stop in range(200):
            disk = Disk(random.Random(stop))
            calls = iter(range(stop))

            def before(call, calls=calls):
                if next(calls, None) is None:
                    raise Dead

            for old in act.old:
                prepare(disk, *old)
            disk.before, files.os = before, disk
            try:
                acknowledged = act(files)
            except Dead:
                acknowledged = False
            for order in range(orders):
                left = disk.after_power_cut(random.Random(order))
                found = [left.read(path) for path in act.paths]
                assert found in ([act.new] if acknowledged else [act.new, act.before]), (act.__name__, stop, found)
                looked += 1
            if acknowledged:
                break
        else:
            raise AssertionError("it never ends")
    return looked


def prepare(disk, path, content):
    for parent in reversed(path.parents[:-1]):
        if not disk.lexists(parent):
            disk.mkdir(parent)
    number = disk.open(path, disk.O_CREAT)
    disk.open_files[number].now = content
    for node in (disk.find(p) for p in (path, *path.parents)):
        node.kept = dict(node.now) if node.folder else node.now


class Each(list):
    """Of each file what was there before or what is there now, whatever the others are."""

    def __init__(self, *either):
        super().__init__(zip(*either, strict=True))

    def __eq__(self, other):
        return all(part in either for part, either in zip(other, self, strict=True))


def publish_one(files):
    return files.publish(RESULT, SAYS[0])


def replace_one(files):
    files.write(RESULT, SAYS[1])
    return True


def several(files):
    files.write_all(RESULT.parent, {RESULT.name: SAYS[1], "curve": SAYS[2]})
    return True


def folder_one(files):
    with files.new_folder(Path("/runs/model")) as new:
        for name in ("weights", "card"):
            number = files.os.open(new / name, files.os.O_CREAT)
            for _ in range(3):
                files.os.write(number, name.encode())
    return True


publish_one.old, publish_one.paths, publish_one.before, publish_one.new = [], [RESULT], [None], [SAYS[0]]
replace_one.old, replace_one.paths = [(RESULT, SAYS[0])], [RESULT]
replace_one.before, replace_one.new = [SAYS[0]], [SAYS[1]]
several.old, several.paths = [(RESULT, SAYS[0])], [RESULT, RESULT.with_name("curve")]
several.before, several.new = Each([SAYS[0], None], [SAYS[1], SAYS[2]]), [SAYS[1], SAYS[2]]
folder_one.old, folder_one.paths = [], [Path("/runs/model/weights"), Path("/runs/model/card")]
folder_one.before = [None, None]


class Whatever(list):
    """Names of the model's files: either all of each, or neither."""

    def __eq__(self, other):
        return all(
            part is not None and set(part) <= set(name) and part
            for part, name in zip(other, (b"weights", b"card"), strict=True)
        )


folder_one.new = Whatever()


# -- three writers --------------------------------------------------------------------------------------------------------
def walk(files, choose, lost_replies: float = 0.1, seed: int = 0) -> None:
    """Three workers publish the same result, a call at a time; `choose(alive)` says whose turn it is, and whether it dies."""
    disk = Disk(random.Random(seed), lost_replies=lost_replies)
    prepare(disk, RESULT.with_name("other"), b"")
    workers = Workers([lambda says=says: files.publish(RESULT, says) for says in SAYS])
    disk.before, files.os = workers.before, disk
    first = None
    while workers.alive:
        i, kill = choose(sorted(workers.alive))
        workers.step(i, kill)
        there = disk.read(RESULT)
        first = first or there
        assert there == first and there in (None, *SAYS), f"the result was {first}, then {there}"
    for i, result in workers.results.items():
        assert result is Dead or isinstance(result, bool), f"worker {i} ended with {result!r}"
        if result is not Dead:
            assert result == (first == SAYS[i]), f"worker {i} was told {result}, the result is {first}"
    survivors = [result for result in workers.results.values() if result is not Dead]
    assert first or not survivors, "a worker came through, and there is no result"
    left = [name for name in disk.listdir(RESULT.parent) if name.startswith(".tmp-")]
    assert len(left) <= 3 - len(survivors), "one that lives cleans up behind it"


def weighted(rng: random.Random):
    """One worker runs for a while, then another takes over in the middle; now and then one dies."""
    current = [0]

    def choose(alive):
        if current[0] not in alive or rng.random() < 0.2:
            current[0] = rng.choice(alive)
        return current[0], rng.random() < 0.01

    return choose


def walks(files, count: int = 150) -> None:
    for seed in range(count):
        walk(files, weighted(random.Random(seed)), seed=seed)


# -- failures of the file system -------------------------------------------------------------------------------------------
def refusals(files) -> None:
    """Whatever call fails, the old is left, nothing half-made is, and the error comes through."""
    for act in (publish_one, replace_one, several, folder_one):
        for stop in range(200):
            disk, failed = Disk(random.Random(stop)), []
            for old in act.old:
                prepare(disk, *old)
            seen = [0]

            def before(call, seen=seen, failed=failed, stop=stop):
                seen[0] += 1
                if seen[0] == stop + 1 and call in ("open", "write", "fsync", "link", "rename", "mkdir"):
                    failed.append(call)
                    raise OSError(28, "No space left on device")

            disk.before, files.os = before, disk
            files.shutil = types.SimpleNamespace(rmtree=lambda path, ignore_errors, disk=disk: remove(disk, path))
            try:
                act(files)
                told = False
            except OSError:
                told = True
            assert told == bool(failed), f"{act.__name__}: {failed} was swallowed"
            names = disk.listdir("/runs") if disk.lexists("/runs") else []
            names += disk.listdir("/runs/cell") if disk.lexists("/runs/cell") else []
            assert not [name for name in names if name.startswith(".tmp-")], f"{act.__name__}: {failed} leaves {names}"
            assert [disk.read(path) for path in act.paths] in [act.new, act.before]
            if seen[0] <= stop:
                break


def remove(disk, path):
    names, name = disk.place(path)
    del names[name]


# -- taking turns -----------------------------------------------------------------------------------------------------------
class Clock:
    """Stands in for `time`: sleeping takes none, the wall clock jumps by days."""

    def __init__(self, tick) -> None:
        self.now, self.tick = 0.0, tick

    def monotonic(self):
        return self.now

    def time(self):
        return 1e9 + 86400 * (-1) ** int(self.now)

    def sleep(self, seconds):
        self.now += seconds
        assert self.now < 5000, "waits for ever"
        self.tick(self.now)


def turns(turn, folder: Path) -> None:
    target, beat = folder / "it", folder / ".it.beat"

    def entered(tick) -> float:
        turn.time = Clock(tick)
        with turn.turn(target, "at it"):
            when = turn.time.now
            assert beat.read_text().startswith(turn.here()), "it counts for others to see"
        assert not beat.exists(), "it stops counting"
        return when

    assert entered(lambda now: None) == 0
    beat.write_text(f"{turn.here()} 7")
    assert entered(lambda now: None) == 0, "who died here has left no lock: taken over at once"

    def elsewhere(now):
        if now < 1000:
            beat.write_text(f"elsewhere {int(now / turn.BEAT)}")

    elsewhere(0)
    assert 1000 - turn.BEAT + turn.GRACE <= entered(elsewhere) <= 1000 + turn.GRACE + 5, "one that counts is alive"

    with turn.turn(target, "at it"):
        beat.write_text("elsewhere 3")
        stop = iter((False, True))
        turn.keep_counting(beat, types.SimpleNamespace(wait=lambda _: next(stop)))
        assert beat.read_text() == "elsewhere 3", "who was taken over counts no more"
    assert turn.read(beat) == "elsewhere 3", "and does not end the other's count"
    beat.unlink()

    held = FileLock(folder / ".it.lock")
    held.acquire()
    logging.getLogger(turn.__name__).setLevel(logging.INFO)
    assert 30 <= entered(lambda now: held.release() if now > 30 else None) <= 31


def shelves(shelf, folder: Path) -> None:
    """What is on the shelf is made once; what is damaged there is made anew."""
    made = []

    def make():
        made.append(1)
        return {"facts": len(made)}

    def fill(new):
        (new / "weights").write_bytes(b"0123456789")

    def obtain(name):
        return shelf.obtain(folder / name, "making it", make, fill)

    first = obtain("a")
    assert obtain("a") == first and len(made) == 1
    for place in range(10):
        content = bytearray(b"0123456789")
        content[place] ^= 1
        (folder / "a/weights").write_bytes(content)
        assert obtain("a")["facts"] == place + 2 == len(made), "a flipped bit is seen, and it is made anew"
    assert len(list(folder.glob("a.damaged-*"))) == 10, "nothing is thrown away"
    card = folder / "a/card.json"
    card.write_text(card.read_text().replace('"facts": 11', '"facts": 99'))
    assert obtain("a")["facts"] == 12, "so is a changed card"

    taken = shelf.turn

    def late(target, doing):  # somebody else makes it while this one waits for its turn
        shelf.turn = taken
        obtain("b")
        return taken(target, doing)

    shelf.turn = late
    count = len(made)
    obtain("b")
    assert len(made) == count + 1, "who waited looks again"
