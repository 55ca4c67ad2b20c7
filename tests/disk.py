"""A file system in memory that stands in for `os` in `bench.files`: three workers share it, and the power may fail."""

import os
import random
import stat
import threading
import types
from errno import EIO
from pathlib import Path


class Dead(BaseException):
    """This worker was killed: nothing it still tries takes effect."""


class Node:
    """A file or a folder: what is there, and what of it is sure to survive a power cut."""

    def __init__(self, folder: bool) -> None:
        self.folder, self.links = folder, 1
        self.now = {} if folder else b""
        self.kept = {} if folder else b""


class Disk:
    O_RDONLY, O_WRONLY, O_CREAT, O_EXCL, O_DIRECTORY = os.O_RDONLY, os.O_WRONLY, os.O_CREAT, os.O_EXCL, os.O_DIRECTORY

    def __init__(self, rng: random.Random, before=lambda call: None, lost_replies: float = 0) -> None:
        self.rng, self.before, self.lost_replies = rng, before, lost_replies
        self.root, self.open_files = Node(True), {}
        self.path = types.SimpleNamespace(lexists=self.lexists)

    def find(self, path) -> Node:
        node = self.root
        for part in Path(path).parts[1:]:
            if part not in node.now:
                raise FileNotFoundError(2, "no such file", str(path))
            node = node.now[part]
        return node

    def place(self, path) -> tuple[dict, str]:
        return self.find(Path(path).parent).now, Path(path).name

    def open(self, path, flags, mode=0):
        self.before("open")
        if flags & os.O_CREAT:
            names, name = self.place(path)
            if name in names and flags & os.O_EXCL:
                raise FileExistsError(17, "there", str(path))
            node = names.setdefault(name, Node(False))
        else:
            node = self.find(path)
        number = len(self.open_files)
        self.open_files[number] = node
        return number

    def write(self, number, content):
        self.before("write")
        taken = bytes(content[: self.rng.randint(1, 5)])
        self.open_files[number].now += taken
        return len(taken)

    def fsync(self, number):
        self.before("fsync")
        node = self.open_files[number]
        node.kept = dict(node.now) if node.folder else node.now

    def close(self, number):
        self.before("close")

    def link(self, old, new):
        self.before("link")
        names, name = self.place(new)
        if name in names:
            raise FileExistsError(17, "there", str(new))
        names[name] = self.find(old)
        names[name].links += 1
        if self.rng.random() < self.lost_replies:
            raise OSError(EIO, "reply lost")

    def unlink(self, path):
        self.before("unlink")
        names, name = self.place(path)
        if name not in names:
            raise FileNotFoundError(2, "no such file", str(path))
        names.pop(name).links -= 1

    def replace(self, old, new):
        self.before("rename")
        node, (names, name) = self.find(old), self.place(new)
        if name in names and names[name].folder and names[name].now:
            raise OSError(39, "not empty")
        source, key = self.place(old)
        del source[key]
        names[name] = node

    rename = replace

    def mkdir(self, path, mode=0):
        self.before("mkdir")
        names, name = self.place(path)
        if name in names:
            raise FileExistsError(17, "there", str(path))
        names[name] = Node(True)

    def listdir(self, path):
        return sorted(self.find(path).now)

    def chmod(self, path, mode):
        self.before("chmod")

    def lexists(self, path):
        try:
            return bool(self.find(path))
        except FileNotFoundError:
            return False

    def stat(self, path):
        self.before("stat")
        node = self.find(path)
        return types.SimpleNamespace(
            st_nlink=node.links, st_mode=(stat.S_IFDIR if node.folder else stat.S_IFREG) | 0o755
        )

    def read(self, path) -> bytes | None:
        return self.find(path).now if self.lexists(path) else None

    def after_power_cut(self, rng: random.Random) -> "Disk":
        """What may be there when the power is back: of each name and each file that was not synced, the old or the new."""

        def survivor(node: Node) -> Node:
            new = Node(node.folder)
            if node.folder:
                for name in {**node.now, **node.kept}:
                    found = rng.choice([node.now, node.kept]).get(name)
                    if found:
                        new.now[name] = survivor(found)
            elif node.now == node.kept:
                new.now = node.now
            else:
                cut = rng.randrange(len(node.now) + 1)
                new.now = rng.choice([node.kept, node.now[:cut], bytes(len(node.now)), node.now])
            return new

        disk = Disk(rng)
        disk.root = survivor(self.root)
        return disk


class Workers:
    """Threads that each do one call of the file system at a time, as a walk chooses; a call may find its worker dead."""

    def __init__(self, jobs) -> None:
        self.turns = [threading.Semaphore(0) for _ in jobs]
        self.back = threading.Semaphore(0)
        self.alive, self.doomed, self.results = set(range(len(jobs))), set(), {}
        self.threads = [threading.Thread(target=self.run, args=(i, job), daemon=True) for i, job in enumerate(jobs)]
        self.number = {}
        for thread in self.threads:
            thread.start()

    def run(self, i, job) -> None:
        self.number[threading.get_ident()] = i
        self.turns[i].acquire()
        try:
            self.results[i] = job()
        except Dead:
            self.results[i] = Dead
        except OSError as error:
            self.results[i] = error
        self.alive.discard(i)
        self.back.release()

    def before(self, call: str) -> None:
        """Called by the file system before each of its calls: hands control back and waits to be chosen again."""
        i = self.number[threading.get_ident()]
        if i not in self.doomed:
            self.back.release()
            self.turns[i].acquire()
        if i in self.doomed:
            raise Dead

    def step(self, i: int, kill: bool = False) -> None:
        if kill:
            self.doomed.add(i)
        self.turns[i].release()
        self.back.acquire()
