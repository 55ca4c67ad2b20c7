"""Scores against TAC: on made-up channels whose answers are known, on folders as the bench leaves them, and damaged ones."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from analysis import localisation
from analysis.bounds import mean_curve
from analysis.channels import Elsewhere, found, measure, read_channels, truth

GOLDEN = Path(__file__).parent / "golden_runs"
RNG = np.random.default_rng(0)
TAC = {"a": RNG.random(64), "b": 100 * RNG.random(136)}  # layers of very different size: each counts by itself
TAC["a"][[3, 4]] += 5
Z = "bench.pruning.ZScore"


def csv_of(layers, head="tac") -> str:
    rows = [f"{layer},{i},{float(v)!r}" for layer, values in layers.items() for i, v in enumerate(values)]
    return "\n".join([f"layer,channel,{head}", *rows]) + "\n"


# -- one cell ----------------------------------------------------------------------------------------------------------
def test_perfect_scores_are_perfect_and_reversed_ones_the_opposite():
    best = measure(TAC, TAC, Z)
    best.pop("curve")
    assert best == {"auroc": 1.0, "precision": 1.0, "rank": pytest.approx(1.0), "k": 2, "channels": 200, "scored": 200}
    worst = measure(TAC, {layer: -values for layer, values in TAC.items()}, Z)
    assert (worst["auroc"], worst["precision"]) == (0.0, 0.0) and worst["rank"] == pytest.approx(-1)


def test_backdoor_channels_are_outliers_of_their_own_layer():
    """By the bare change the large maps of layer b would win."""
    assert np.flatnonzero(truth(TAC)[1]).tolist() == [3, 4]


def test_the_order_is_that_in_which_the_rule_prunes():
    """Scores of layer b are a thousand times larger; a rule that compares within layers does not mind, a threshold does."""
    scores = {"a": TAC["a"], "b": 1000 * TAC["b"]}
    assert measure(TAC, scores, Z)["auroc"] == 1.0
    assert measure(TAC, scores, "bench.pruning.OneIn")["auroc"] > 0.98
    assert measure(TAC, scores, "bench.pruning.Threshold")["auroc"] < 0.7


def test_ties_count_as_chance():
    made = measure(TAC, {layer: np.zeros(len(v)) for layer, v in TAC.items()}, "Threshold")
    assert (made["auroc"], made["rank"]) == (0.5, None) and made["precision"] == pytest.approx(0.01)
    wanted = np.array([True, False, False, False])
    assert found(np.array([1.0, 1.0, 0.0, 0.0]), wanted).tolist() == [0, 0.5, 1, 1, 1]


def test_a_channel_without_a_score_is_pruned_last():
    made = measure(TAC, {"b": TAC["b"]}, Z)
    assert made["scored"] == 136 and made["precision"] == 0 and made["auroc"] < 0.5
    nan = measure(TAC, {"a": np.full(64, np.nan), "b": TAC["b"]}, "Threshold")
    assert nan["scored"] == 136 and nan["auroc"] == made["auroc"]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=200, max_size=200), st.integers(0, 2**31))
def test_auroc_and_precision_are_those_of_the_definition(levels, seed):
    scores = dict(zip(("a", "b"), np.split(np.array(levels, dtype=float), [64]), strict=True))
    made, wanted = measure(TAC, scores, "Threshold"), truth(TAC)[1]
    assert made["auroc"] == pytest.approx(roc_auc_score(wanted, np.array(levels)))
    rng = np.random.default_rng(seed)  # of many ways to break ties, the mean; its error is a few hundredths
    firsts = [np.lexsort((rng.random(200), -np.array(levels)))[:2] for _ in range(400)]
    assert made["precision"] == pytest.approx(np.mean([wanted[first].mean() for first in firsts]), abs=0.08)


def test_scores_of_other_layers_or_sizes_are_refused():
    with pytest.raises(Elsewhere, match="conv1"):
        measure(TAC, {"conv1": np.ones(64)}, "OneIn")
    with pytest.raises(ValueError, match="has 3 scores and 64 channels"):
        measure(TAC, {"a": np.ones(3)}, Z)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"a": np.where(np.arange(64) == 7, np.nan, TAC["a"])}, "'a' has a number that is not finite"),
        ({"b": np.where(np.arange(136) == 7, np.inf, TAC["b"])}, "'b' has a number that is not finite"),
        ({"a": np.full(64, 0.1), "b": np.full(136, 0.7)}, "the same for all channels"),
    ],
)
def test_a_tac_that_tells_no_channels_apart_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        measure(TAC | wrong, TAC, Z)


@pytest.mark.parametrize(
    "text", ["", "layer,channel,tac\n", "layer,channel,tac\na,1,0\n", "layer,channel,tac\na,0,x\n", "a,b\na,0\n"]
)
def test_a_damaged_file_is_refused(text, tmp_path):
    (tmp_path / "tac.csv").write_text(text)
    with pytest.raises(ValueError):
        read_channels(tmp_path / "tac.csv")


def test_the_curve_of_several_seeds_is_their_mean():
    """Kept at different counts: between these, straight lines."""
    x, y = mean_curve([{"curve": [[0, 0.0], [2, 1.0]]}, {"curve": [[0, 0.0], [1, 0.0], [2, 0.5]]}])
    assert x.tolist() == [0, 1, 2] and y.tolist() == [0, 0.25, 0.75]
    best = measure(TAC, TAC, Z)["curve"]
    assert best[:3] == [[0, 0.0], [1, 0.5], [2, 1.0]] and best[-1] == [200, 1.0]


def test_the_scatter_by_chance_is_that_of_random_scores():
    wanted = truth(TAC)[1]
    drawn = [roc_auc_score(wanted, RNG.random(200)) for _ in range(600)]
    assert np.std(drawn) == pytest.approx(localisation.scatter(2, 200), rel=0.1)


# -- a sweep -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def runs(tmp_path):
    """The golden runs, with made-up TACs beside the models they name and scores: CLP's true, RNP's random."""
    shutil.copytree(GOLDEN / "digits", tmp_path / "digits")
    for path in tmp_path.glob("digits/vgg5/*/*/*/record.json"):
        attack, defense = path.parts[-4:-2]
        model = tmp_path / "backdoors" / "digits" / "vgg5" / attack / json.loads(path.read_text())["backdoor"]
        model.mkdir(parents=True, exist_ok=True)
        (model / "tac.csv").write_text(csv_of(TAC))
        scores = {"clp": TAC, "rnp": {layer: RNG.random(len(v)) for layer, v in TAC.items()}}.get(defense)
        if scores:
            (path.parent / "scores.csv").write_text(csv_of(scores, "score"))
    return tmp_path


def rows(runs) -> dict[tuple, dict]:
    texts, _ = localisation.make(runs)
    return {(r["attack"], r["defense"], r["seed"]): r for r in csv.DictReader(io.StringIO(texts["localisation.csv"]))}


def line(runs, defense: str) -> str:
    text = localisation.make(runs)[0]["localisation.md"]
    return next(line for line in text.splitlines() if line.startswith(f"| {defense} "))


def test_the_table_of_a_sweep(runs, capsys):
    assert localisation.main(["--runs", str(runs)]) == 0
    said = capsys.readouterr().out
    assert said == (runs / "localisation" / "localisation.md").read_text()
    assert set(rows(runs)) == {(a, d, s) for a in ("badnets", "blend") for d in ("clp", "rnp") for s in "23"}
    assert line(runs, "clp").count("**1.00 ± 0.00**") == 2 and line(runs, "clp").count("1.00 ± 0.00") == 6
    assert {p.suffix for p in (runs / "localisation").glob("[!.]*")} == {".md", ".csv", ".png", ".pdf", ".svg"}
    assert "**" not in line(runs, "rnp") and "2 of 200" in said and "| none" not in said


def test_small_shares_and_their_chance_are_said_in_full(runs):
    said = localisation.make(runs, 0.004)[0]["localisation.md"]
    assert "the 0.4 % of all channels" in said and "(1 of 200)" in said and "chance is 0.005." in said


def test_a_cell_whose_tac_is_not_finite_is_named_and_left_out(runs):
    for path in runs.glob("backdoors/digits/vgg5/blend/*/tac.csv"):
        path.write_text(csv_of(TAC | {"a": np.full(64, np.nan)}))
    texts, problems = localisation.make(runs)
    assert "blend" not in texts["localisation.csv"] and len(problems) == 4
    assert all("not measured: the TAC of layer 'a' has a number that is not finite" in str(p) for p in problems)


def test_a_seed_whose_attack_did_not_take_counts_nowhere(runs):
    for path in runs.glob("digits/vgg5/blend/*/s3-*/record.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"took": False}))
    assert line(runs, "clp").count("±") == 3


def test_convolutions_are_left_out_and_said(runs):
    for path in runs.glob("digits/vgg5/*/rnp/*/scores.csv"):
        path.write_text(csv_of({"features.0": np.ones(8)}, "score"))
    text = localisation.make(runs)[0]["localisation.md"]
    assert "Left out" in text and "| rnp" not in text


def test_what_is_missing_damaged_or_hostile_is_named_and_left_out(runs):
    one, two = sorted(runs.glob("digits/vgg5/badnets/clp/*/record.json"))
    record = json.loads(one.read_text())
    secret = runs / "secret" / "tac.csv"
    secret.parent.mkdir()
    secret.write_text(csv_of(TAC))
    one.write_text(json.dumps(record | {"backdoor": "../../../../secret"}))
    (two.parent / "scores.csv").write_text("layer,channel,score\na,7,1\n")
    shutil.rmtree(runs / "backdoors" / "digits" / "vgg5" / "blend")
    texts, problems = localisation.make(runs)
    said = "\n".join(map(str, problems))
    assert "clp" not in texts["localisation.csv"] and set(rows(runs)) == {("badnets", "rnp", s) for s in "23"}
    assert (
        "does not say which backdoored model" in said
        and "out of order" in said
        and said.count("there is no tac.csv") == 4
    )


def test_nothing_to_measure_is_said(tmp_path, capsys):
    assert localisation.main(["--runs", str(GOLDEN), "--out", str(tmp_path)]) == 1
    assert "no pruner's cell with scores" in capsys.readouterr().err
    assert localisation.main(["--runs", str(GOLDEN), "--share", "1"]) == 1
