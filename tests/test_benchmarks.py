"""Every row of `make bench` on tiny sizes: the official procedure and ours agree. Nothing is asserted on time."""

import pytest

import benchmarks.__main__ as command
from benchmarks.rows import ROWS, measure
from benchmarks.setting import QUICK, Setting


@pytest.fixture(scope="module")
def setting():
    return Setting(QUICK)


@pytest.mark.parametrize("name", ROWS)
def test_outputs_agree(name, setting):
    found = measure(name, setting)
    assert found["agrees"], found["agreement"]


def test_a_row_that_disagrees_is_told(monkeypatch, setting, capsys):
    made = ROWS["poison-badnets"](setting)
    monkeypatch.setitem(made.variants, "ours", lambda: setting.images(setting.size.poisoned).x)
    monkeypatch.setitem(ROWS, "poison-badnets", lambda _: made)
    assert command.main(["--quick", "--only", "poison-badnets"]) == 1
    assert "DISAGREES: pixels differ" in capsys.readouterr().out


def test_a_row_that_is_not_there(capsys):
    assert command.main(["--only", "clq"]) == 2
    assert "clp" in capsys.readouterr().err
