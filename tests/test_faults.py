"""Killed, stopped or refused at any point, a sweep goes on where it was: real processes, real signals, real files."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cells import NARROW
from test_bench import ENV, ROOT, alone, bench, cards, leftovers, records


@pytest.fixture
def room(tmp_path):
    """A folder in memory where there is one: a sync costs nothing there."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    found = Path(tempfile.mkdtemp(dir=memory))
    yield found
    shutil.rmtree(found)


def toy(room, way):
    command = [sys.executable, str(ROOT / "tests/toy.py"), str(room), way]
    made = subprocess.run(command, env=ENV | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr[-2000:]
    return json.loads(made.stdout)


def test_a_kill_a_signal_or_an_error_at_every_named_point(room):
    assert len(toy(room, "points")) >= 20


def test_kills_at_random_moments(room):
    assert toy(room, "moments") >= 30, "most hit a process at work"


def test_six_processes_do_everything_once(room):
    assert toy(room, "crowd") == 10


def test_a_dead_holder_is_taken_over_within_a_second(room):
    assert toy(room, "successor") < 1


def test_a_worker_that_stood_still_and_was_replaced_changes_nothing_when_it_wakes(room):
    """On a share whose locks end at the machine, at every place, with the other machine's results different from its own."""
    assert toy(room, "stalled") >= 40


def weights(runs: Path) -> dict[str, list[str]]:
    """attack -> digests of the weights and of the trigger"""
    names = ("model.safetensors", "trigger.safetensors")
    return {
        p.parents[1].name: [json.loads(p.read_text())["sha256"][n] for n in names]
        for p in cards(runs)
        if ".tmp-" not in str(p)
    }


REAL = [
    "-m",
    "attack=wanet",
    "defense=none,clp",
    "train.epochs=2",
    "checkpoint=0",
    "threads=1",
    "gate.max_drop=null",
    NARROW,
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    runs = tmp_path_factory.mktemp("whole")
    assert bench(*REAL, f"runs={runs}")[0] == 0
    return weights(runs), columns(runs)


def columns(runs):
    changing = ("seconds", "peak", "commit", "digest_record")
    return [{k: v for k, v in r.items() if not k.startswith(changing)} for r in records(runs)]


@pytest.mark.parametrize(
    ("fault", "status"),
    [("resume.saved:kill:7", -9), ("resume.saved:term:20", 143), ("folder.rename:kill:1", -9)],
)
def test_the_bench_itself_goes_on_and_ends_with_the_same_bits(fault, status, whole, tmp_path, monkeypatch):
    monkeypatch.setitem(ENV, "BACKPRUNE_TEST", "1")
    monkeypatch.setitem(ENV, "BACKPRUNE_FAULT", fault)
    stopped, said = alone(*REAL, f"runs={tmp_path}")
    assert stopped == status and "Traceback" not in said, said
    monkeypatch.delitem(ENV, "BACKPRUNE_FAULT")
    half = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    status, said = bench(*REAL, f"runs={tmp_path}")
    assert status == 0, said
    assert half.items() <= {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}.items()
    assert (weights(tmp_path), columns(tmp_path)) == whole
    (card,) = (path for path in cards(tmp_path) if ".tmp-" not in str(path))
    assert json.loads(card.read_text())["made"]["interruptions"] == 1, "it went on, it did not begin again"
    assert not list(tmp_path.rglob("*.part")) and (stopped < 0 or not leftovers(tmp_path))
