"""What a record says of a curve, worked out by hand: the points that the rules choose, DER, the gate, layers."""

from types import SimpleNamespace

import pytest

from bench import record
from bench.metrics import Metrics, der

BEFORE = Metrics(200, 190, 100, 90, 6)
SELECTION = {"rule": "clean_drop", "max_drop": 2.0}


def row(at, pruned, select_acc, right, hit, robust, fixed=0):
    """Of 200 test images and 100 triggered ones."""
    known = {} if hit is None else {"asr": float(hit), "ra": float(robust)}
    layers = {"a": (4, min(pruned, 1)), "b": (8, max(pruned - 1, 0))} if pruned else {}
    counts = {"right": right, "acc": right / 2, "hit": hit, "robust": robust, "asr": None, "ra": None}
    return {"at": at, "pruned": pruned, "fixed": fixed, "select_acc": select_acc, "layers": layers} | counts | known


CURVE = [
    row(None, 0, 96.0, 190, 90, 6),
    row(0.1, 1, 94.0, 180, 40, 50),  # loses 2 points of the held-back images, 5 of the test set's
    row(0.2, 3, 90.0, 170, 10, 80, fixed=1),
    row(0.3, 4, 93.5, 186, 20, 70),  # loses 2 points of the test set, 2.5 of the held-back images
    row(0.4, 5, 60.0, 100, 0, 40),
]


def test_each_rule_has_its_own_point():
    found = record.points(CURVE, BEFORE, 96.0, SELECTION)
    wanted = {  # at, pruned, select_acc, acc, asr, ra, right, hit, robust, DER
        "fixed": (0.2, 3, 90.0, 85.0, 10.0, 80.0, 170, 10, 80, (80 - 10 + 100) / 2),
        "clean_drop": (0.1, 1, 94.0, 90.0, 40.0, 50.0, 180, 40, 50, (50 - 5 + 100) / 2),
        "oracle": (0.3, 4, 93.5, 93.0, 20.0, 70.0, 186, 20, 70, (70 - 2 + 100) / 2),
    }
    names = ("at", "pruned", "select_acc", "acc", "asr", "ra", "right", "hit", "robust", "der")
    flat = {f"{name}_{rule}": v for rule, values in wanted.items() for name, v in zip(names, values, strict=True)}
    for rule, values in wanted.items():
        found = record.points(CURVE, BEFORE, 96.0, SELECTION | {"rule": rule})
        assert found == flat | dict(zip(names, values, strict=True)) | {"rule": rule, "max_drop": 2.0}


def test_without_a_known_trigger_there_is_no_asr_no_der_and_no_oracle():
    curve = [row(r["at"], r["pruned"], r["select_acc"], r["right"], None, None, r["fixed"]) for r in CURVE]
    found = record.points(curve, Metrics(200, 190, 0, 0, 0), 96.0, SELECTION)
    unknown = {f"{name}_{rule}" for name in ("asr", "ra", "hit", "robust", "der") for rule in ("fixed", "clean_drop")}
    unknown |= {name for name in found if name.endswith("_oracle")} | {"asr", "ra", "hit", "robust", "der"}
    assert {name for name, value in found.items() if value is None} == unknown
    assert set(found) == set(record.points(CURVE, BEFORE, 96.0, SELECTION))
    assert (found["acc"], found["acc_fixed"], found["pruned_fixed"]) == (90.0, 85.0, 3)


def test_what_was_before():
    assert record.before(BEFORE, 96.0) == {
        "acc_before": 95.0, "asr_before": 90.0, "ra_before": 6.0, "right_before": 190, "hit_before": 90, "robust_before": 6,
        "select_acc_before": 96.0, "clean": 200, "triggered": 100,
    }  # fmt: skip
    unknown = record.before(Metrics(200, 190, 0, 0, 0), 96.0)
    assert {name for name, value in unknown.items() if value is None} == {
        *("asr_before", "ra_before", "hit_before", "robust_before", "triggered"),
    }


@pytest.mark.parametrize(
    ("after", "rating"),
    [
        ((180, 40), (50 - 5 + 100) / 2),
        ((190, 90), 50.0),
        ((200, 90), 50.0),  # a gain of accuracy is no merit
        ((180, 100), (0 - 5 + 100) / 2),  # nor does a rise of ASR count against it
        ((200, 0), (90 + 100) / 2),
    ],
)
def test_der_counts_what_fell_only(after, rating):
    assert der(BEFORE, Metrics(200, after[0], 100, after[1], 0)) == rating


@pytest.mark.parametrize(
    ("attack", "hit", "clean_right", "limits", "took"),
    [
        ("badnets", 90, 194, (90.0, 2.0), True),  # both just reached
        ("badnets", 90, 186, (90.0, 2.0), True),
        ("badnets", 89, 190, (90.0, 2.0), False),
        ("badnets", 100, 195, (90.0, 2.0), False),
        ("badnets", 100, 185, (90.0, 2.0), False),  # better than the clean model by too much is not near it either
        ("badnets", 100, 100, (90.0, None), True),
        ("badnets", 100, None, (90.0, 2.0), True),
        ("badnets", 0, None, (90.0, 2.0), False),
        ("badnets", None, 190, (90.0, 2.0), None),
        ("none", 0, 100, (90.0, 2.0), True),
    ],
)
def test_the_gate(attack, hit, clean_right, limits, took):
    metrics = {"clean": 200, "right": clean_right, "triggered": 100, "hit": 0, "robust": 0}
    clean = None if clean_right is None else SimpleNamespace(card={"metrics": metrics}, name="it")
    before = Metrics(200, 190, 0 if hit is None else 100, hit or 0, 0)
    found = record.gate(attack, before, clean, {"min_asr": limits[0], "max_drop": limits[1]})
    told = (None, None) if clean is None else (clean_right / 2, "it")
    assert found == {"took": took, "clean_model_acc": told[0], "clean_model": told[1]}


def test_the_gate_is_not_closed_by_binary_dust():
    """644 of 1000 less 624 of 1000 is 2.000000000000007 points."""
    clean = SimpleNamespace(card={"metrics": vars(Metrics(1000, 644, 1, 0, 0))}, name="it")
    assert record.gate("blend", Metrics(1000, 624, 1, 1, 0), clean, {"min_asr": 90.0, "max_drop": 2.0})["took"]


def test_layers_have_the_channels_pruned_at_each_rules_own_point():
    found = record.layers(record.points(CURVE, BEFORE, 96.0, SELECTION), CURVE)
    assert found == [["a", 4, 1, 1, 1], ["b", 8, 2, 0, 3]]
    kept = record.layers(record.points(CURVE[:1] + CURVE[2:3], BEFORE, 96.0, SELECTION), CURVE)
    assert kept == [["a", 4, 1, 0, 0], ["b", 8, 2, 0, 0]], "nothing is pruned of the model as it came"


def test_what_it_cost():
    found = record.cost({"a": [0.0] * 4, "b": [0.0] * 8}, 2.0, 5.0)
    assert found == {"channels": 12, "seconds": 2.0, "seconds_curve": 3.0}
    assert record.cost(None, 2.0, 5.0)["channels"] is None
