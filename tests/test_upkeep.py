"""`python -m bench.store`: the doctor sees what a disk cannot do, verify sees every changed byte, gc takes only rubbish."""

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest
from cells import ROOT
from filelock import FileLock

from bench import files, shelf, turn, upkeep


def model(folder):
    shelf.obtain(folder, "making it", dict, lambda new: (new / "weights").write_bytes(bytes(999)))


@pytest.fixture
def runs(tmp_path):
    model(tmp_path / "backdoors/d/m/a/s2-0")
    cell = tmp_path / "d/m/a/none/s2-1"
    files.write(cell / "curve.csv", "at,acc\n")
    record = {"schema": 1, "digest_curve": files.sha256(cell / "curve.csv")}
    files.publish(cell / "record.json", json.dumps(record))
    return tmp_path


def test_the_doctor_tries_this_disk(tmp_path, monkeypatch, capsys):
    assert upkeep.main(["doctor", "--runs", str(tmp_path / "new")]) == 0
    said = capsys.readouterr().out
    assert said.count("ok ") == 4 and "BAD" not in said and not list((tmp_path / "new").iterdir())

    def no_links(*_):
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(upkeep, "contend", lambda room: [7, 0])
    assert upkeep.main(["doctor", "--runs", str(tmp_path / "new")]) == 0
    said = capsys.readouterr().out
    assert "NOTE  no hard links" in said and "7 of 200 turns overlapped" in said
    monkeypatch.setattr(files, "publish", lambda path, text: bool(path.write_text(text)))
    assert upkeep.main(["doctor", "--runs", str(tmp_path / "new")]) == 1
    assert upkeep.main(["doctor", "--runs", "/dev/null/x"]) == 1


@pytest.mark.parametrize("name", ["weights", "card.json", "curve.csv", "record.json"])
def test_verify_sees_a_changed_byte(name, runs, capsys):
    assert upkeep.main(["verify", "--runs", str(runs)]) == 0
    assert "2 models and records" in capsys.readouterr().out
    (path,) = runs.rglob(name)
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    assert upkeep.main(["verify", "--runs", str(runs)]) == 1
    assert f"damaged: {path.parent}" in capsys.readouterr().out


def test_gc_takes_rubbish_only_and_only_when_told(runs, tmp_path, capsys):
    place = runs / "backdoors/d/m/a"
    outside = tmp_path / "outside"
    for name in (".tmp-old", ".tmp-new", ".s2-0.part", ".s2-9.part", "s2-8.damaged-ab", "outside"):
        (place / name).mkdir()
        (place / name / "file").write_text("x")
    (place / ".s2-7.part").symlink_to(place / "outside")
    os.utime(place / ".tmp-old", (0, 0))
    os.utime(place / ".s2-0.lock", (0, 0))

    def listing():
        return {path.relative_to(runs).as_posix() for path in runs.rglob("*")}

    before = listing()
    assert upkeep.main(["gc", "--runs", str(runs)]) == 0
    said = capsys.readouterr().out
    assert listing() == before and said.count("would delete") == 3
    with FileLock(place / ".s2-0.lock"):
        assert upkeep.main(["gc", "--runs", str(runs)]) == 0
        assert capsys.readouterr().out.count("would delete") == 1, "somebody is at it"
    os.utime(place / ".s2-0.lock", (0, 0))
    assert upkeep.main(["gc", "--runs", str(runs), "--delete", "--damaged"]) == 0
    gone = {path.rpartition("/")[2] for path in before - listing()}
    assert gone == {".tmp-old", ".s2-0.part", ".s2-0.lock", "s2-8.damaged-ab", "file"}
    assert (place / ".s2-9.part/file").exists() and (place / "outside/file").exists() and not outside.exists()


def test_gc_lists_the_notes_of_a_killed_sweep(runs, capsys):
    for name in ("old", "new"):
        (runs / ".sweeps" / name).mkdir(parents=True)
        (runs / ".sweeps" / name / "0-ab.json").write_text("{}")
    os.utime(runs / ".sweeps/old", (0, 0))
    assert upkeep.main(["gc", "--runs", str(runs), "--delete"]) == 0
    assert f"deleted {runs}/.sweeps/old (the notes of a sweep that was killed" in capsys.readouterr().out
    assert [path.name for path in (runs / ".sweeps").iterdir()] == ["new"]
    os.utime(runs / ".sweeps/new", (0, 0))
    assert upkeep.main(["gc", "--runs", str(runs), "--delete"]) == 0 and not (runs / ".sweeps").exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_work_is_done_and_processes_go_by_each_others_counts(code, runs, monkeypatch, caplog):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(turn, "locks", True)
    model(runs / "backdoors/d/m/a/s2-1")
    model(runs / "backdoors/d/m/a/s2-2")
    assert caplog.text.count("has no locks") == 1 and shelf.verified(runs / "backdoors/d/m/a/s2-2")
    beat = runs / ".it.beat"
    monkeypatch.setattr(turn, "patient", False)
    with turn.turn(runs / "it", "at it"):
        here = turn.read(beat).rpartition(":")[0]
        beat.write_text(f"{here}:{os.getpid() + 1} 3")  # another process of this machine
        with pytest.raises(turn.Busy), turn.turn(runs / "it", "at it"):
            pass
    assert upkeep.free(runs / "backdoors/d/m/a/s2-1") and not upkeep.free(runs / "it")


def test_the_command():
    words = [sys.executable, "-m", "bench.store", "verify", "--runs", "nowhere"]
    made = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 1 and "say where the results are" in made.stderr and "Traceback" not in made.stderr
