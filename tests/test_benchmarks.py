"""Every row of `make bench` on tiny sizes: the official procedure and ours agree. Nothing is asserted on time."""

import copy
import json
from pathlib import Path

import pytest
import torch

import benchmarks.__main__ as command
from benchmarks import cells, gpu, growth, rates, write
from benchmarks.defenses import at_threshold
from benchmarks.profiles import kind, profiles
from benchmarks.rows import ROWS, measure
from benchmarks.searches import spearman
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


def test_what_is_not_there(capsys):
    assert command.main(["--only", "clq"]) == 2
    assert "clp" in capsys.readouterr().err


def test_rates_and_profiles(setting):
    """Every path has its operations: training does three times those of evaluation, but for the first layer's input."""
    found = rates.rates(setting, torch.device("cpu"), setting.size.batch)
    work = {path["path"]: path["gflop_per_image"] for path in found["paths"]}
    assert 2.8 * work["eval"] < work["train"] < 3 * work["eval"]
    for path in profiles(setting, torch.device("cpu")):
        assert sum(path["shares"].values()) == pytest.approx(1, abs=0.03)
        assert path["shares"]["convolution"] > 0 and path["bound"]
    assert (kind("aten::mkldnn_convolution"), kind("aten::relu")) == ("convolution", "elementwise")


def test_the_operations_are_those_of_the_network():
    """A multiply-add counts as two."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.nn.Flatten(), torch.nn.Linear(512, 10)
    )
    x, y = torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)
    assert rates.operations(net, x, y, False) == 2 * (64 * 8 * 27 + 512 * 10)


def test_growth(setting):
    assert growth.power([1, 2, 4], [3, 6, 12]) == pytest.approx(1)
    assert growth.power([1, 10], [5, 5]) == pytest.approx(0)
    assert [len(axis["sizes"]) == len(axis["seconds"]) for axis in growth.growth(setting)] == [True] * 3


def test_only_channels_at_the_threshold_may_differ():
    """The threshold of these scores at k = 1 is 1.893; the fourth channel is 0.107 above it."""
    one = {"a": torch.tensor([0.0, 0.1, 0.0, 2.0, 1.99])}
    assert at_threshold(one, {"a": one["a"].clone()}, 1.0, 0.0) == 0
    moved = {"a": torch.tensor([0.0, 0.1, 0.0, 2.0, 3.0])}
    with pytest.raises(AssertionError, match="from the threshold"):
        at_threshold(one, moved, 1.0, 0.1)
    assert at_threshold(one, moved, 1.0, 0.11) == 1


def test_spearman_has_mean_ranks_for_ties():
    one, other = torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0, 4.0])
    assert spearman(one, other) == pytest.approx(0.9486833)
    assert spearman(one, -one) == pytest.approx(-1)


@pytest.mark.parametrize("again", [False, True])
def test_a_warm_sweep_that_works_again_is_told(monkeypatch, again):
    """`again`: the second sweep trains one more model."""

    def fake(*words, **options):
        runs = Path(next(word for word in words if word.startswith("runs=")).removeprefix("runs="))
        further, trained = "defense=none" in words, len(list(runs.rglob("card.json")))
        cell = runs / "digits" / (words[3] if further else "cell")
        if not trained or further or again:
            record, card = {"defense": "anp", "seconds": 8.0, "seconds_curve": 0.5}, {"made": {"seconds": 7.0}}
            for path, found in ((cell / "record.json", record), (runs / f"backdoors/{trained}/card.json", card)):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(found))
        return 1.0 + len(words)

    monkeypatch.setattr(cells, "command", fake)
    monkeypatch.setattr(cells, "spent", lambda words, timeout=None: 1.0)
    if again:
        with pytest.raises(AssertionError, match="warm sweep"):
            cells.cells(True, None)
    else:
        found = cells.cells(True, None)
        assert found["trained"] == 1
        assert found["facts"][0]["note"].endswith("training 7 s, repairs anp 8 s, curves 0.5 s")
        whole, rest = found["facts"][2:4]
        assert rest["note"] == "the evaluation took 0.5 s" and rest["seconds"] == whole["seconds"] - 0.5


# -- the page ----------------------------------------------------------------------------------------------------------
def test_the_page_is_the_one_written_from_the_files():
    """docs/performance.md is never written by hand."""
    assert write.PAGE.read_text() == write.page(write.stored("cpu"), write.stored("gpu"))
    names = {path.name for path in write.MEASURED.iterdir()}
    assert names == {
        write.place(kind, m["machine"]["device"]).name for kind in ("cpu", "gpu") for m in write.stored(kind)
    }


@pytest.fixture(scope="module")
def found(setting):
    measured = command.run(["clp"], setting, lambda found: None)
    top = {"gflops": 100.0, "by": "a product", "all": {"a product": 100.0}}
    path = {
        "path": "train",
        "precision": "fp32",
        "img_per_s": 50.0,
        "median_img_per_s": 49.0,
        "gflop_per_image": 1.0,
        "mfu": 0.5,
    }
    grown = growth.entry("cells", [1, 2], [3.0, 6.0])
    whole = {"facts": [cells.fact("nine cells, cold", 26.0, 25.0, "imports included")], "growth": grown}
    rest = {
        "cells": whole,
        "rates": {"batch": 128, "peak": {"fp32": top}, "paths": [path]},
        "growth": [],
        "profiles": [],
    }
    return json.loads(json.dumps(measured | rest))


def test_the_page_says_what_was_missed_and_what_bounds_it(found):
    found = copy.deepcopy(found)
    row = found["rows"][0]
    row["goals"][0]["met"], row["bound"] = False, "the moon"
    text = write.page([found], [])
    assert "0 of 2 goals are met" in text and "What bounds it: the moon" in text
    assert "nine cells, cold: 26 s, goal ≤ 25 s" in text and "| train fp32 |" in text and "50 %" in text
    row["goals"][0]["met"] = True
    text = write.page([found], [])
    assert "1 of 2 goals are met" in text and "What bounds it" not in text


def test_the_page_says_what_was_not_run_or_measured_under_load(found):
    assert write.page([], []).count("Not run yet") == 2
    assert "machine was busy" in write.page([found | {"load": [9.0, 9.0]}], [])
    assert "machine was busy" not in write.page([found | {"load": [0.0, 2.0]}], [])
    assert "machine was busy" not in write.page([found | {"load": [None, None]}], [])


# -- make bench-gpu ----------------------------------------------------------------------------------------------------
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu(capsys):
    assert gpu.main([]) == 2 and "--smoke" in capsys.readouterr().err


def test_what_there_is_no_time_for_is_left_out(tmp_path, found):
    session = gpu.Session(tmp_path, ("train.epochs=20", "train.epochs=3"), budget=0.0)
    assert gpu.gridded(session, "badnets", "clp", 3) == []
    assert gpu.epochs(session.words) == 3
    half = {key: found[key] for key in ("machine", "date", "seconds", "load", "rates")} | {"facts": []}
    half |= {"left_out": session.left_out, "failed": ["training"]}
    page = write.page([], [half])
    assert "Left out because the time was up: small grid." in page and "Failed, at least in part: training." in page


def test_a_cell_that_fails_is_named_and_the_rest_goes_on(tmp_path, capsys):
    """Another data set is not asked to be fetched."""
    words = gpu.settings(False, ("dataset=imagefolder", f"dataset.root={tmp_path / 'nowhere'}"))
    session = gpu.Session(tmp_path / "runs", words, budget=60.0)
    assert session.sweep("training", "attack=badnets", "defense=none") is None
    assert session.failed == ["training"] and session.left_out == []
    said = capsys.readouterr().err
    assert "nowhere" in said and "download" not in said
