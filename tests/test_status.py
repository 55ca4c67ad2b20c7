"""Where a sweep stands, and the command that fills the gap; sweeps are expanded as Hydra does it."""

import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest
from filelock import FileLock
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from test_analysis import GOLDEN, cells, change, runs  # noqa: F401 - runs is a fixture

from analysis import grid, status
from analysis.grid import expand

SWEEP = ["attack=badnets,blend", "defense=clp,rnp,none", "seed=2,3"]


def states(runs, overrides=SWEEP) -> dict[str, int]:  # noqa: F811
    found = [state for _, state, _ in status.status(runs, overrides, runs)]
    return {state: found.count(state) for state in status.STATES if state in found}


def test_every_state_is_seen(runs, capsys):  # noqa: F811
    assert states(runs) == {"done": 12}
    shutil.rmtree(cells(runs, "badnets", "clp", 2)[0])
    (cells(runs, "badnets", "clp", 3)[0] / "record.json").write_text("{")
    failed = cells(runs, "badnets", "rnp", 2)[0]
    (failed / "record.json").unlink()
    (failed / "error.txt").write_text("ValueError: no BatchNorm\n")
    change(cells(runs, "badnets", "rnp", 3)[0], protocol=0)
    assert states(runs) == {"done": 8, "failed": 1, "damaged": 1, "stale": 1, "missing": 1}
    assert status.main(["--runs", str(runs), *SWEEP]) == 0
    out = capsys.readouterr().out
    assert out.startswith("12 cells: 8 done, 1 failed, 1 damaged, 1 stale, 1 missing.\n")
    assert "  failed: attack=badnets defense=rnp seed=2 (digits/vgg5/badnets/rnp/s2-" in out and "no BatchNorm" in out
    words = shlex.split(out.splitlines()[-1])
    assert words[:3] == ["python", "bench/run.py", "-m"] and words[-1] == f"runs={runs}"
    assert expand(words[3:], runs) == expand(["attack=badnets", "defense=clp,rnp", "seed=2,3"], runs)
    assert status.main(["--runs", str(runs), *SWEEP, "threads=1", "launcher=joblib", "workers=2"]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[-4:] == ["threads=1", "launcher=joblib", "workers=2", f"runs={runs}"], "the cells are run as they were"


def test_a_cell_is_running_while_a_process_holds_its_lock(runs):  # noqa: F811
    old = cells(runs, "badnets", "clp", 2)[0]
    (old / "record.json").unlink()
    lock = old.with_name(f".{old.name}.lock")
    with FileLock(lock):
        assert states(runs) == {"done": 11, "running": 1}
    assert states(runs) == {"done": 11, "missing": 1}
    old.with_name(f".{old.name}.beat").write_text("another-machine 7")
    lock.touch()
    assert states(runs) == {"done": 11, "running": 1}


def test_a_cell_made_by_other_code_is_suspect_and_not_run_again(runs, capsys):  # noqa: F811
    change(cells(runs, "badnets", "clp", 2)[0], fingerprints="bench.attacks.badnets=0123456789ab bench.scene=0")
    assert states(runs) == {"done": 11, "suspect": 1}
    assert status.main(["--runs", str(runs), *SWEEP]) == 0
    said = capsys.readouterr().out
    assert "bench.attacks.badnets, bench.scene was another" in said and "To fill the gap" not in said


def test_other_settings_are_another_cell(runs):  # noqa: F811
    assert states(runs, [*SWEEP, "selection.max_drop=5"]) == {"done": 12}
    assert states(runs, [*SWEEP, "selection.max_drop=2,5"]) == {"done": 12, "missing": 12}
    for folder in cells(runs, "badnets", "clp"):
        (folder / ".hydra" / "overrides.yaml").write_text(
            "- attack=badnets\n- 'defense=clp'\n- train=fast\n- threads=1\n"
        )
    assert states(runs, [*SWEEP, "threads=2"]) == {"done": 10, "missing": 2}
    for folder in cells(runs, "badnets", "clp"):  # what is not said is the default, which `digits` here may not be
        (folder / ".hydra" / "overrides.yaml").write_text("- attack=badnets\n- defense=clp\n- dataset=digits\n")
    assert states(runs) == {"done": 10, "missing": 2} and states(runs, [*SWEEP, "dataset=digits"]) == {"done": 12}
    for folder in cells(runs, "badnets", "clp"):
        (folder / ".hydra" / "overrides.yaml").write_text("- attack=badnets\n- 'defense=clp'\n- train=fast\n")
    assert states(runs, ["attack=badnets", "defense=clp", "seed=2", "train=fast"]) == {"done": 1}


def test_the_last_sweep_is_what_is_asked_about(runs, capsys):  # noqa: F811
    assert status.main(["--runs", str(runs)]) == 1
    assert "No sweep was started" in capsys.readouterr().err
    (runs / "multirun.yaml").write_text(json.dumps({"hydra": {"overrides": {"task": [*SWEEP, "seed=2,3,4"]}}}))
    assert status.main(["--runs", str(runs)]) == 0
    assert capsys.readouterr().out.startswith("18 cells: 12 done, 6 missing.")
    asked = {"overrides": {"task": ["defense=clp"]}, "sweeper": {"params": {"attack": "badnets,sig", "seed": "2,3"}}}
    (runs / "multirun.yaml").write_text(json.dumps({"hydra": asked}))  # as an experiment's file has it
    assert status.main(["--runs", str(runs)]) == 0
    assert capsys.readouterr().out.startswith("4 cells: 2 done, 2 missing.")
    for text in ("a: [", "[]", "hydra: {overrides: {task: [nonsense]}}", "hydra: {overrides: {task: 5}}"):
        (runs / "multirun.yaml").write_text(text)
        assert status.main(["--runs", str(runs)]) == 1
        assert "The sweep is not known" in capsys.readouterr().err


def test_a_thousand_cells_take_less_than_two_seconds(tmp_path):
    """Of a processor, in a process of its own; first with each record read, then with the index that this leaves."""
    (golden,) = (GOLDEN / "digits/vgg5/badnets/clp").glob("s2-*")
    record = (golden / "record.json").read_text()
    words = {"attack": [f"a{i}" for i in range(12)], "defense": [f"d{i}" for i in range(12)], "seed": [*"2345678"]}
    for attack, defense, seed in itertools.product(*words.values()):
        folder = tmp_path / f"digits/vgg5/{attack}/{defense}/s{seed}-0"
        (folder / ".hydra").mkdir(parents=True)
        text = record.replace('"badnets"', f'"{attack}"', 1).replace('"clp"', f'"{defense}"', 1)
        (folder / "record.json").write_text(text.replace('"seed": 2', f'"seed": {seed}'))
        (folder / ".hydra/overrides.yaml").write_text(f"- attack={attack}\n- defense={defense}\n- seed={seed}\n")
    asked = [f"{key}={','.join(found)}" for key, found in words.items()]
    command = [sys.executable, "-m", "analysis.status", "--runs", str(tmp_path), *asked]
    for _ in range(2):
        before = os.times()
        said = subprocess.run(command, cwd=GOLDEN.parent.parent, capture_output=True, text=True, check=True).stdout
        after = os.times()
        assert said == "1008 cells: 1008 done.\n"
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        assert spent < 2, f"{spent:.2f} s"


def hydras(overrides):
    (batch,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)
    return [dict(word.split("=", 1) for word in cell) for cell in batch]


WORD = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True)
VALUES = st.lists(WORD | st.integers(0, 99).map(str), min_size=1, max_size=3, unique=True)
AXES = st.dictionaries(WORD.map(lambda word: f"x.{word}"), VALUES, min_size=1, max_size=3)


@given(AXES, st.sampled_from(["{}", "choice({})"]))
def test_sweeps_are_expanded_as_hydra_does(axes, form):
    overrides = [f"{key}={form.format(','.join(found)) if len(found) > 1 else found[0]}" for key, found in axes.items()]
    assert expand(overrides, GOLDEN) == hydras(overrides)


@given(AXES, st.data())
def test_the_command_has_every_missing_cell_in_it(axes, data):
    every = expand([f"{key}={','.join(found)}" for key, found in axes.items()], GOLDEN)
    missing = data.draw(st.lists(st.sampled_from(every), min_size=1, unique_by=str))
    again = expand(shlex.split(grid.command(missing))[3:], GOLDEN)
    assert all(cell in again for cell in missing) and all(cell in every for cell in again)


def test_forms_of_overrides(tmp_path):
    (tmp_path / "attack").mkdir()
    for name in ("blend", "badnets", "wanet"):
        (tmp_path / "attack" / f"{name}.yaml").touch()
    assert [c["attack"] for c in expand(["attack=glob(b*)"], tmp_path)] == ["badnets", "blend"]
    for text, found in (
        ("glob(*,exclude=[wanet,bl*])", ["badnets"]),
        ("glob([b*,w*],exclude=blend)", ["badnets", "wanet"]),
    ):
        assert [c["attack"] for c in expand([f"attack={text}"], tmp_path)] == found
    assert [c["seed"] for c in expand(["seed=range(2,5)", "runs=x"], tmp_path)] == ["2", "3", "4"]
    assert expand(["a=[1,2],[3]", "b='x,y'", "~c"], tmp_path) == [
        {"a": "[1,2]", "b": "x,y", "~c": ""}, {"a": "[3]", "b": "x,y", "~c": ""}]  # fmt: skip
    for wrong in ("attack=glob(a,b,c)", "attack=glob(a,without=b)", "seed=range(x)", "defense=glob(*)", "word"):
        with pytest.raises(ValueError, match=r"not understood|no config|no override"):
            expand([wrong], tmp_path)
