"""The sweep around the cells: launchers' presets, who gets which GPU, the honest rest of the time, one failure among others."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cells import NARROW
from filelock import FileLock
from joblib.externals.loky.process_executor import TerminatedWorkerError
from omegaconf import OmegaConf
from same_runs import differences
from submitit.core.utils import FailedJobError
from test_bench import QUICK, SERVER, alone, bench, cards, records

from bench import cli, config, machine, sweep
from bench.errors import UserError

ROOT = Path(__file__).parent.parent


def test_cards_are_shared_evenly_and_freed_at_death(tmp_path):
    """Each process keeps the card with the fewest on it; a killed one leaves its place at once."""

    def worker():
        ours, theirs = SERVER.Pipe()
        process = SERVER.Process(target=take_a_card, args=(tmp_path, theirs))
        process.start()
        return process, ours.recv(), ours

    workers = [worker() for _ in range(3)]
    try:
        assert [card for _, card, _ in workers] == [0, 1, 0]
        workers[1][0].kill()
        workers[1][0].join()
        assert machine.own_card(("a", "b"), tmp_path) == 1
    finally:
        for process, *_ in workers:
            process.kill()
            process.join()


def test_a_user_without_a_name_has_cards_too(monkeypatch, tmp_path):
    """As in a container under somebody's number."""

    def nobody():
        raise KeyError("getpwuid(): uid not found: 4242")

    monkeypatch.setattr(machine.getpass, "getuser", nobody)
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: str(tmp_path))
    assert machine.own_card(("only",)) == 0
    assert [place.name for place in tmp_path.iterdir()] == [f"backprune-{os.getuid()}"]


def take_a_card(place, pipe) -> None:
    pipe.send(machine.own_card(("a", "b"), place))
    machine.own_card(("a", "b"), place)
    pipe.recv()


def test_cores_are_divided():
    cores = len(os.sched_getaffinity(0))
    assert (
        sweep.shared_cores(1) == cores and sweep.shared_cores(2) == max(1, cores // 2) and sweep.shared_cores(999) == 1
    )


def test_workers_without_a_launcher_are_refused():
    with pytest.raises(UserError, match="needs a launcher: launcher=joblib"):
        config.check_workers(4, "basic")
    config.check_workers(4, "joblib")
    with pytest.raises(UserError, match="array_parallelism=4"):
        config.check_workers(4, "submitit_slurm")


def test_the_rest_of_the_time_is_honest():
    """Of sweeps whose cells take times of one distribution, at least nine in ten end within the interval named early on."""
    draw = random.Random(1)
    hits = 0
    for _ in range(400):
        times = [draw.lognormvariate(3, 0.5) for _ in range(40)]
        workers = draw.choice([1, 4])
        low, high = sweep.remaining(times[:8], 32, sum(times[:8]) / workers)
        hits += low <= sum(times[8:]) / workers <= high
    assert 360 <= hits < 400
    assert sweep.remaining([10.0, 10.0], 3, 10.0) == pytest.approx((15, 15))  # two side by side
    note = {"state": "done", "seconds": 60.0}
    assert sweep.state([note, note, {"state": "failed"}, {"state": "passed"}], 5, 120.0) == "1 failed, 60 s left"
    assert sweep.state([note], 3, 60.0) == "up to 17 min left"  # one cell tells little
    assert sweep.state([{"state": "passed", "seconds": 0.1}], 5, 1.0) == ""  # nothing was worked on: nothing is known


def test_launchers_are_presets_that_change_no_cell(tmp_path):
    """`launcher=joblib` is a sweep by itself; the cells are those of a plain run, and a finished one is not run again."""
    words = ["attack=none", "defense=none", "train.epochs=1", "threads=1", NARROW, f"runs={tmp_path}"]
    assert bench(*words)[0] == 0
    status, said = alone("launcher=joblib", "workers=2", *words, "defense=none,clp", "attack.target=0,99")
    assert status == 1 and said.count("done already") == 1 and "2 of 4 cells failed" in said, said
    assert "and 1 more: attack.target=99 does not exist" in said and "Traceback" not in said
    (error, _) = tmp_path.rglob("error.txt")
    assert "Traceback" in error.read_text() and "target: 99" in (error.parent / ".hydra/config.yaml").read_text()
    written = error.stat().st_mtime_ns
    status, said = bench("-m", "retry=never", *words, "defense=none,clp", "attack.target=0,99")
    assert (
        status == 1 and said.count("done already") == 2 and "failed before, and retry=never: attack.target=99" in said
    )
    assert error.stat().st_mtime_ns == written
    assert len(records(tmp_path)) == 2 and not (tmp_path / ".sweeps").exists()
    plain = tmp_path.with_name("plain")
    assert bench("-m", *words[:-1], "defense=none,clp", f"runs={plain}")[0] == 0
    assert len(records(plain)) == 2 and not differences(plain, tmp_path)


@pytest.mark.parametrize(("target", "times"), [("x.BasicLauncher", 3), ("x.JoblibLauncher", 5)])
def test_a_cell_is_composed_once_where_it_runs_in_the_same_process(target, times):
    """Never twice the same object: a cell's settings are changed while it runs."""
    composed = []

    class Loader:
        def load_sweep_config(self, master_config, sweep_overrides):
            return composed.append(sweep_overrides) or object()

    class Sweeper:
        launcher = SimpleNamespace(launch=None)
        config = OmegaConf.create({"hydra": {"launcher": {"_target_": target}}})
        hydra_context = SimpleNamespace(config_loader=Loader())

    sweep.compose_once(Sweeper, Loader)
    Sweeper().validate_batch_is_legal([("a=1",), ("a=2",)])
    cells = [Loader().load_sweep_config(Sweeper.config, words) for words in (["a=1"], ["a=1"], ["a=2"])]
    assert len(set(map(id, cells))) == 3 and len(composed) == times


def test_workers_begin_with_cells_of_different_models():
    """So that they train side by side; a launcher's results are handed back in the order that was asked for."""
    launched = []

    def launch(cells, initial_job_idx):
        launched.extend(cells)
        return ["".join(words) for words in cells]

    cells = [(f"attack={a}", f"defense={d}", *more) for a in "ab" for d, *more in ("x", "y", ("x", "attack.target=1"))]
    assert sweep.models_apart(launch, cells, initial_job_idx=7) == ["".join(words) for words in cells]
    assert launched == [cells[i] for i in (0, 2, 3, 5, 1, 4)]


def test_cells_whose_model_another_process_makes_come_last(tmp_path):
    words = ["defense=none", *QUICK, f"runs={tmp_path}"]
    assert bench("attack=badnets", *words)[0] == 0
    ((card,), (record,)) = cards(tmp_path), tmp_path.rglob("record.json")
    for folder in (card.parent, record.parent):
        shutil.rmtree(folder)
    lock = FileLock(card.parent.with_name(f".{card.parent.name}.lock"))
    with ThreadPoolExecutor(1) as pool, lock:  # the lock is let go before the sweep is waited for
        job = pool.submit(bench, "-m", "attack=badnets,blend", *words)
        while not (found := records(tmp_path)) and not job.done():
            time.sleep(0.1)
        assert [r["attack"] for r in found] == ["blend"]
    status, said = job.result()
    assert status == 0 and len(records(tmp_path)) == 2
    assert said.count("put off: another process is training this model") == 1 and not list(tmp_path.rglob("error.txt"))


def test_an_attack_does_not_wait_for_the_clean_model_before_its_own(tmp_path):
    words = ["attack=none", "defense=none", "train.epochs=1", "threads=1", NARROW, f"runs={tmp_path}"]
    assert bench(*words)[0] == 0
    (clean,) = cards(tmp_path)
    shutil.rmtree(clean.parent)
    with ThreadPoolExecutor(1) as pool, FileLock(clean.parent.with_name(f".{clean.parent.name}.lock")):
        job = pool.submit(bench, "attack=badnets", *words[1:])
        until = time.monotonic() + 120
        while not (made := cards(tmp_path)) and not job.done() and time.monotonic() < until:
            time.sleep(0.1)
        assert [card.parent.parent.name for card in made] == ["badnets"]
    assert job.result()[0] == 0 and len(cards(tmp_path)) == 2


FAULTS = [
    (OSError(28, "No space left on device", "x"), "the disk is full"),
    (OSError(122, "Disk quota exceeded", "x"), "the disk is full"),
    (OSError(27, "File too large", "x"), "the disk is full"),
    (OSError(30, "Read-only file system", "runs/x"), "cannot use runs/x: Read-only file system"),
    (torch.OutOfMemoryError("CUDA out of memory"), "the device ran out of memory"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "this machine ran out of memory"),
    (MemoryError(), "this machine ran out of memory"),
    (TerminatedWorkerError("A worker process"), "a worker was killed from outside"),
    (FailedJobError("Job 3_1 has not produced any output (state: CANCELLED)\nmore"), "a job ended without a result"),
]


@pytest.mark.parametrize(("error", "said"), FAULTS, ids=range(len(FAULTS)))
def test_what_breaks_is_one_sentence(error, said):
    """Also when a library wrapped it in something else."""
    try:
        try:
            raise error
        except Exception as inner:
            raise RuntimeError("in a wrapper") from inner
    except RuntimeError as outer:
        assert cli.sentence(outer).startswith(said) and "\n" not in cli.sentence(outer)


def test_two_folders_of_runs_are_compared(tmp_path):
    for place, acc in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / place / "cell").mkdir(parents=True)
        (tmp_path / place / "cell/record.json").write_text(json.dumps({"acc": acc, "seconds": acc}))

    def same(one: str, other: str) -> int:
        command = [sys.executable, str(ROOT / "tests/same_runs.py"), str(tmp_path / one), str(tmp_path / other)]
        return subprocess.run(command, capture_output=True).returncode

    assert same("a", "b") == 0 and same("a", "c") == 1 and same("a", "nowhere") == 1
