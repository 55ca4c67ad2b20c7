"""Means over seeds, then over attacks, and what passes a limit: on cells that can be worked out by hand."""

import math

import pandas as pd
import pytest

from analysis import claims, findings, ledger, paper
from analysis.ranks import ranks
from analysis.ranks import test as friedman
from analysis.sheets import gate, sheets, std

RULES = ("fixed", "clean_drop", "oracle")


def seed_of(attack, defense, seed, asr, acc=90.0, **more):
    """A record: 95 % ACC and 100 % ASR before; after, `asr` and `acc` by every rule."""
    row = {"dataset": "digits", "model": "vgg5", "attack": attack, "defense": defense, "seed": seed, "took": True}
    row |= {f"{axis}_settings": "" for axis in ("dataset", "model", "attack", "defense")}
    row |= {
        "needs": "clean",
        "channels": 9.0,
        "folder": f"no/such/folder/{defense}",
        "where": f"{attack}{defense}{seed}",
    }
    row |= {"acc_before": 95.0, "asr_before": 100.0, "ra_before": 0.0, "max_drop": 2.0, "poison_rate": 0.1}
    for rule in RULES:
        row |= {f"asr_{rule}": asr, f"acc_{rule}": acc, f"ra_{rule}": 100 - asr, f"pruned_{rule}": 3}
        row |= {f"der_{rule}": (100 - asr - (95 - acc) + 100) / 2}
    return row | more


def sheet_of(*rows):
    (sheet,) = sheets(pd.DataFrame(rows), [])
    return sheet


UNEVEN = [
    *(
        seed_of("badnets", "clp", seed, asr, acc)
        for seed, asr, acc in ((1, 0.0, 93.0), (2, 0.0, 93.0), (3, 30.0, 90.0))
    ),
    seed_of("blend", "clp", 1, 50.0, 80.0),
    seed_of("blend", "clp", 2, 99.0, 10.0, took=False),  # proves nothing
]
"""Means of 10 and 50 % ASR, 92 and 80 % ACC: 30 and 86 on average, where all seeds together would have 20 and 89."""


def judged(sheet, test, attacks=("badnets", "blend"), of="each", rule="fixed"):
    terms = [claims.TERM.fullmatch(term) for term in test.split(" and ")]
    base = {"defense": "clp", "model": "vgg5", "epochs": None, "clean": None, "poison_rate": None, "attacks": attacks}
    return claims.judge(base | {"of": of, "rule": rule, "terms": terms, "test": test}, sheet, {})


def test_each_attack_counts_the_same_however_many_seeds_it_has():
    sheet = sheet_of(*UNEVEN)
    cells = {attack: sheet.cell(("clp", ""), attack) for attack in sheet.attacks}
    found = {metric: paper.average(cells, metric, "fixed") for metric in ("acc", "asr", "ra")}
    assert found == {"acc": 86.0, "asr": 30.0, "ra": 70.0}
    assert judged(sheet, "asr < 31 and acc_drop < 10", of="average")["numbers"][0] == "average: asr 30.0, acc drop 9.0"
    assert judged(sheet, "asr > 29", of="average")["verdict"] == "holds"
    by_oracle = [row | {"asr_oracle": 0.0} for row in UNEVEN]
    (said,) = (text for text in findings.findings(sheet_of(*by_oracle)) if text.startswith("Had the test set"))
    assert "change by -30.0 points (clp): for clp the rule" in said


def test_a_claim_is_about_every_seed_whose_attack_took_and_its_limits_are_strict():
    sheet = sheet_of(*UNEVEN)
    found = judged(sheet, "asr < 50")
    assert found["passed"] == [True, True, True, False] and found["verdict"] == "in part"
    assert judged(sheet, "asr > 50")["passed"] == [False] * 4
    assert judged(sheet, "acc_drop < 5")["passed"] == [True, True, False, False]  # 2, 2, 5 and 15 points
    assert judged(sheet, "acc_drop > 5")["passed"] == [False, False, False, True]
    assert judged(sheet, "asr < 30 and acc_drop > 1")["passed"] == [True, True, False, False]
    for test, holds in (("asr < 30", False), ("asr > 30", False), ("asr < 30.1", True)):
        assert (judged(sheet, test, of="average")["verdict"] == "holds") == holds


def test_a_claim_is_judged_at_the_point_of_its_own_rule():
    rows = [row | {"asr_oracle": 1.0, "acc_oracle": 94.0} for row in UNEVEN]
    assert judged(sheet_of(*rows), "asr < 2 and acc_drop < 2", rule="oracle")["verdict"] == "holds"
    assert judged(sheet_of(*rows), "asr < 2", rule="clean_drop")["verdict"] == "in part"


@pytest.mark.parametrize(
    ("asr", "acc", "group"),
    [(4.9, 90.1, "every seed"), (5.0, 95.0, "some seeds"), (0.0, 90.0, "some seeds"), (0.0, 99.0, "every seed")],
)
def test_a_backdoor_is_removed_below_both_limits(asr, acc, group):
    rows = seed_of("badnets", "clp", 1, 0.0), seed_of("badnets", "clp", 2, asr, acc)
    rows = [
        row | {f"acc_{rule}": max(row["acc_fixed"], 90.1) for rule in RULES} if row["seed"] == 1 else row
        for row in rows
    ]
    text = "\n".join(findings.findings(sheet_of(*rows)))
    assert f"for fewer than 5 points of ACC on {group}: badnets." in text


def test_what_a_rule_costs_on_a_clean_model_is_told_from_least_to_most():
    accs = (("clp", 94.0), ("anp", 91.0), ("rnp", 93.5))
    clean = [seed_of("none", defense, 1, 5.0, acc, asr_before=5.0) for defense, acc in accs]
    text = "\n".join(findings.findings(sheet_of(*clean, *UNEVEN)))
    assert "clean_drop costs 1.0 to 4.0 points of ACC (most: anp)" in text


@pytest.mark.parametrize(
    ("asr", "acc", "took"),
    [(80.0, 90.0, True), (79.9, 95.0, False), (100.0, 89.9, False), (100.0, 100.0, True), (100.0, 100.1, False)],
)
def test_a_record_that_does_not_say_is_held_against_the_clean_model(asr, acc, took):
    """At least 80 % ASR, at most 5 points of ACC above or below."""
    clean = seed_of("none", "none", 1, 5.0, 95.0, asr_before=5.0)
    attacked = seed_of("badnets", "none", 1, asr, acc, asr_before=asr, acc_before=acc)
    frame = gate(pd.DataFrame([clean, attacked]).drop(columns="took"))
    assert frame["took"].tolist() == [True, took]


def test_ranks_are_of_the_means_over_seeds():
    """By DER: clp has 75 and 50, anp 65 and 65, rnp 55 and 65; ties share their places."""
    rows = []
    for defense, values in (
        ("clp", ((60, 90), (50, 50))),
        ("anp", ((65, 65), (65, 65))),
        ("rnp", ((20, 90), (60, 70))),
    ):
        for attack, seeds in zip(("badnets", "blend"), values, strict=True):
            rows += [
                seed_of(attack, defense, i, 1.0, **{f"der_{rule}": v for rule in RULES}) for i, v in enumerate(seeds)
            ]
    assert ranks(sheet_of(*rows), "fixed").average == {("clp", ""): 2.0, ("anp", ""): 1.75, ("rnp", ""): 2.25}
    assert friedman("abc", [[1, 2], [2, 2], [0, 2]]).average == {"a": 2.0, "b": 1.5, "c": 2.5}


def test_a_threshold_is_looked_up_for_the_seeds_that_are_shown():
    (cell,) = (sheet_of(*UNEVEN).cell(("clp", ""), ("blend", "")),)
    points = [{"where": f"blendclp{seed}", "at": 0.3, "pruned": 1, "select_acc": 90.0, "acc": 80.0 + seed, "asr": 10.0 * seed,
               "ra": 1.0} for seed in (1, 2)]  # fmt: skip
    values, unknown = ledger.at_threshold(cell, pd.DataFrame(points), 0.3, {})
    assert values == {"acc": [81.0], "asr": [10.0], "ra": [1.0]} and unknown == ""


def test_the_spread_is_that_of_a_sample():
    assert std([1.0, 2.0, 3.0, 4.0]) == pytest.approx(math.sqrt(5 / 3)) and math.isnan(std([1.0]))
