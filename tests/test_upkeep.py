"""`python -m bench.store`: the doctor sees what a disk cannot do, verify sees every changed byte, gc takes only rubbish."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cells import ROOT
from filelock import FileLock
from torch import nn

from bench import cell, doctor, files, purified, shelf, turn, upkeep
from bench.chosen import Chosen
from bench.errors import UserError


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
    monkeypatch.setattr(doctor, "contend", lambda room: [7, 0])
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
    with FileLock(path.parent.with_name(f".{path.parent.name}.lock")):
        assert upkeep.main(["verify", "--runs", str(runs), "--aside"]) == 1 and path.exists(), "somebody is at it"
    assert upkeep.main(["verify", "--runs", str(runs), "--aside"]) == 1 and not path.exists()
    assert upkeep.main(["verify", "--runs", str(runs)]) == 0, "what is set aside is not looked at"


@pytest.fixture
def finished(tmp_path):
    """A cell with everything that can lie beside a record."""
    folder = tmp_path / "d/m/a/clp/s2-2"
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    row = dict.fromkeys(purified.COUNTS, 7)
    chosen = Chosen(net, row, {"1": torch.tensor([True, False, False, False])})
    net[1].weight.data[0] = net[1].bias.data[0] = 0
    stage = SimpleNamespace(backdoor=SimpleNamespace(model=net), data=SimpleNamespace(shape=(3, 8, 8)))
    tables = {f"{name}.csv": "a,b\n" * 9 for name in cell.TABLES}
    names = {"schema": 1, "attack": "a", "defense": "clp", "seed": 2, "channels": None}
    numbers = dict.fromkeys(
        ("acc", "acc_before", "asr", "asr_before", "ra", "ra_before", "seconds", "seconds_curve"), 1.5
    )

    def make(now=row):
        purified.leave(folder, replace(chosen, row=now), stage, True, True)
        return cell.finish(folder, tables, names | numbers | row)

    make()
    return folder, make


FILES = ["record.json", "curve.csv", "scores.csv", "layers.csv", "purified.json", "purified.pt", "purified.safetensors",
         "pruned.csv", "dense/model.safetensors", "dense/layers.json"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["change", "append", "remove"])
def test_no_damage_beside_a_record_goes_unnoticed(name, harm, finished, tmp_path, capsys):
    """Nothing is touched unless told; set aside, it is whole again once the command that made it ran again."""
    folder, make = finished
    assert upkeep.main(["verify", "--runs", str(tmp_path)]) == 0
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == set(FILES)
    if (harm, name) in (("append", "record.json"), ("append", "purified.json")):
        return  # a line break behind JSON says nothing else
    path, before = folder / name, (folder / name).read_bytes()
    flipped = (
        before.replace(b"1.5", b"2.5", 1)
        if name == "record.json"
        else before[:-9] + bytes([before[-9] ^ 1]) + before[-8:]
    )
    changed = before + b"\n" if harm == "append" else flipped
    path.write_bytes(changed) if harm != "remove" else path.unlink()
    if (harm, name) in (("remove", "record.json"), ("remove", "purified.json")):
        return  # then nothing says that there was one
    capsys.readouterr()
    assert upkeep.main(["verify", "--runs", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert f"damaged: {folder}: " in said and name in said and "give --aside" in said
    assert not list(folder.rglob("*.damaged-*"))
    assert upkeep.main(["verify", "--runs", str(tmp_path), "--aside"]) == 1
    kept = [path.read_bytes() for path in folder.rglob("*") if ".damaged-" in str(path) and path.is_file()]
    assert harm == "remove" or changed in kept
    assert cell.read(folder, beside=["purified.safetensors"]) is None, "the next run makes it again"
    make()
    assert upkeep.main(["verify", "--runs", str(tmp_path)]) == 0 and path.read_bytes() == before
    assert [path.read_bytes() for path in folder.rglob("*") if ".damaged-" in str(path) and path.is_file()] == kept


def test_weights_that_a_record_is_not_about_are_not_written(finished):
    folder, make = finished
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    with pytest.raises(UserError, match="gives hit 8 and not 7 as on record"):
        make(dict.fromkeys(purified.COUNTS, 7) | {"hit": 8})
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


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
