"""Published numbers beside ours: nothing is compared with something else than it says."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from cells import ROOT, choices
from test_analysis import HOSTILE, change

from analysis import ledger, published

RESULTS = ROOT / "results" / "cifar10-jpeg-h200"
BADNETS = RESULTS / "imagefolder" / "resnet18" / "badnets"


@pytest.fixture
def runs(tmp_path):
    for defense in ("none", "rnp"):
        shutil.copytree(BADNETS / defense, tmp_path / "imagefolder" / "resnet18" / "badnets" / defense)
    return tmp_path


def test_the_published_numbers_name_what_the_bench_has():
    rows = published.reported()
    assert {row["attack"] for row in rows} <= set(choices("attack"))
    assert {row["defense"] for row in rows} <= set(choices("defense"))
    assert {row["verified"] for row in rows} == {"yes", "no"} and all(row["source"] for row in rows)


def test_a_number_with_a_threshold_is_held_against_our_curve_there():
    (row,) = [r for r in ledger.compare(RESULTS, "clean_drop") if r["defense"] == "rnp" and r["at"] == 0.3]
    ours = []
    for path in BADNETS.glob("rnp/*/curve.csv"):
        with path.open() as file:
            ours += [float(point["asr"]) for point in csv.DictReader(file) if point["at"] == "0.3"]
    assert len(ours) == 3 and row["asr_ours"] == pytest.approx(sum(ours) / 3)
    assert row["asr_difference"] == pytest.approx(row["asr_ours"] - 1.72)
    assert row["why"] == ["JPEG pixels", "20 epochs for 60"]


def test_a_threshold_without_a_row_is_the_one_before_it_or_unknown(runs):
    """A curve has no row where a threshold prunes nothing more, and none after the one that lost too much."""

    def at(threshold):
        (row,) = [r for r in ledger.compare(runs, "clean_drop") if r["defense"] == "rnp" and r["at"] == threshold]
        return row["acc_ours"], row["why"]

    places = list(runs.glob("imagefolder/resnet18/badnets/rnp/*"))
    for folder in places:
        lines = (folder / "curve.csv").read_text().splitlines()
        kept = [line for line in lines if not line.startswith(("0.35,", "0.4,"))]
        (folder / "curve.csv").write_text("\n".join(kept) + "\n")
    assert at(0.35) == at(0.4) == at(0.3) and at(0.3)[1] == ["JPEG pixels", "20 epochs for 60"]
    for folder in places:  # as if it had ended at 0.3: no row after it, and too much lost there
        lines = (folder / "curve.csv").read_text().splitlines()
        last = next(i for i, line in enumerate(lines) if line.startswith("0.3,"))
        (folder / "curve.csv").write_text("\n".join(lines[: last + 1]) + "\n")
        config = folder / ".hydra" / "config.yaml"
        text = config.read_text()
        assert "  stop: null\n" in text
        config.write_text(text.replace("  stop: null\n", "  stop: 0.1\n"))
    assert at(0.3)[0] is not None
    value, why = at(0.5)
    assert value is None and why[-1] == "our curve ended before such a threshold, 0.1 points of ACC lost"
    for folder in places:
        config = folder / ".hydra" / "config.yaml"
        config.write_text(re.sub(r"points:\n( *- .*\n)+", "points: [0.1, 0.3]\n", config.read_text()))
    assert at(0.5) == (None, ["JPEG pixels", "20 epochs for 60", "our curve has no such threshold"])


def test_one_without_is_held_against_the_operating_point():
    found = {}
    for rule in ("fixed", "clean_drop"):
        (row,) = [r for r in ledger.compare(RESULTS, rule) if r["attack"] == "blend" and r["paper"].startswith("ANP")
                  and r["defense"] == "anp"]  # fmt: skip
        records = [json.loads(p.read_text()) for p in BADNETS.parent.glob("blend/anp/*/record.json")]
        assert row["asr_ours"] == pytest.approx(sum(r[f"asr_{rule}"] for r in records) / 3)
        found[rule] = row["why"]
    rules = {r["why"][-1] for r in ledger.compare(RESULTS, "fixed") if r["rule"] == "oracle"}
    assert rules == {"theirs has the lowest test ASR within a tenth of test ACC"}
    assert "operating point by fixed" in found["fixed"] and "operating point by clean_drop" in found["clean_drop"]
    assert {"poison rate 0.1 for 0.05", "20 epochs for 200", "published number not verified at its source"} <= set(
        found["fixed"]
    )


def test_an_attack_that_did_not_take_says_so():
    rows = [r for r in ledger.compare(RESULTS, "clean_drop") if r["attack"] == "wanet"]
    assert rows and all(r["why"][0] == "our attack did not take" for r in rows)


def test_the_closest_of_ours_is_taken(runs):
    """The same cell at width 16 loses to the one of full width."""
    for folder in list(runs.glob("imagefolder/resnet18/badnets/rnp/*")):
        new = folder.with_name(folder.name + "0")
        shutil.copytree(folder, new)
        change(new, id="0", **{f"asr_{rule}": 99.0 for rule in ("fixed", "clean_drop", "oracle")})
        config = new / ".hydra" / "config.yaml"
        config.write_text(config.read_text().replace("width: 64", "width: 16"))
    rows = ledger.compare(runs, "clean_drop")
    assert {r["model_ours"] for r in rows if r["defense"] == "rnp"} == {"resnet18 (model.width=64)"}


def test_one_whose_attack_took_is_taken_and_one_network_serves_a_table(runs):
    """BadNets at another rate took, at the published one it did not; and RNP alone was also run on another network."""
    for folder in runs.glob("imagefolder/resnet18/badnets/*/*"):
        new = folder.with_name(folder.name + "0")
        shutil.copytree(folder, new)
        change(folder, took=False)
        change(new, id="0")
        config = new / ".hydra" / "config.yaml"
        config.write_text(config.read_text().replace("poison_rate: 0.1", "poison_rate: 0.2"))
        if "rnp" in folder.parts:
            other = folder.with_name(folder.name + "1")
            shutil.copytree(new, other)
            change(other, id="1")
            config = other / ".hydra" / "config.yaml"
            config.write_text(config.read_text().replace("precision: bf16", "precision: amp"))
    rows = ledger.compare(runs, "clean_drop")
    assert rows and all(r["took"] and r["attack_ours"] == "badnets (attack.poison_rate=0.2)" for r in rows)
    assert {r["model_ours"] for r in rows} == {"resnet18 (train.precision=bf16)"}
    assert "operating point" not in str([r["why"] for r in rows if r["defense"] in ("none", "ft")])


def test_other_data_is_not_compared(runs):
    """A folder is what the end of its path says."""
    for there, here in (("data/cifar10-jpeg", "data/flowers"), ("data/flowers", "cifar10-work/data/cifar100")):
        for config in runs.rglob("config.yaml"):
            config.write_text(config.read_text().replace(there, here))
        assert ledger.make(runs, "clean_drop") == {}


def test_the_command_writes_and_escapes(runs, capsys):
    assert ledger.main(["--runs", str(runs)]) == 0
    out = capsys.readouterr().out
    assert "| badnets | rnp at 0.3  |" in out and (runs / "tables" / "ledger.md").read_text() == out
    for folder in runs.glob("imagefolder/resnet18/badnets/rnp/*"):
        change(folder, model=HOSTILE)
    texts = ledger.make(runs, "clean_drop")
    assert "<b>" not in texts["ledger.md"].replace(r"\<b\>", "")


def test_the_command_with_nothing_to_compare(tmp_path, capsys):
    assert ledger.main(["--runs", str(Path(__file__).parent / "golden_runs")]) == 0
    assert "are of cifar10" in capsys.readouterr().out
    assert ledger.main(["--runs", str(tmp_path)]) == 1
    assert "no finished cell" in capsys.readouterr().err
