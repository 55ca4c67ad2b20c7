"""RESULTS.md is what the records in results/ say, and nothing else; claims are judged by their tests."""

import csv
import json
import re
import shutil

import pytest
from cells import ROOT, choices
from test_analysis import HOSTILE, change

from analysis import claims, findings, render, results
from analysis.load import load, read
from analysis.operating_point import SENTENCES
from analysis.settings import spoken
from analysis.sheets import sheets
from bench import config, run

CIFAR = ROOT / "results" / "cifar10-jpeg-h200"


@pytest.fixture
def runs(tmp_path):
    for defense in ("none", "rnp", "clp"):
        for attack in ("badnets", "wanet"):
            place = f"imagefolder/resnet18/{attack}/{defense}"
            shutil.copytree(CIFAR / place, tmp_path / "results" / "some" / place)
    return tmp_path / "results" / "some"


def judged(runs, **claim):
    (sheet,) = sheets(*load(runs))
    base = {"defense": "rnp", "attacks": ["badnets"], "rule": "fixed", "test": "asr < 5", "model": "resnet18"}
    base |= {"of": "each", "epochs": None, "clean": None, "poison_rate": None} | claim
    base["terms"] = [claims.TERM.fullmatch(term) for term in base["test"].split(" and ")]
    return claims.judge(base, sheet, {row["where"]: row["settings"] for row in read(runs)[0]})


def test_results_are_regenerated_byte_for_byte():
    """After new records: make results, and read the diff."""
    assert results.page(ROOT / "results") == (ROOT / "RESULTS.md").read_text(encoding="utf-8")


def test_the_page_says_how_any_cell_is_made_again(runs):
    assert "Any cell again" not in results.page(runs.parent)  # nothing was kept of how these were started
    for number, cell in enumerate(sorted(runs.glob("*/*/*/*/*"))):
        words = ["attack=badnets", "defense=clp", f"seed={number}", "scale=cpu", "dataset.root=my images"]
        (cell / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in words))
    line = "\n    python bench/run.py scale=cpu 'dataset.root=my images' attack=ATTACK defense=DEFENSE seed=SEED\n"
    assert results.page(runs.parent).count(line) == 1
    (runs / "again.yaml").write_text("'*/badnets/*': [seed=0, scale=cpu, threads=1]\n'*/wanet/*': [threads=2]\n")
    lines = [line.replace("my images'", f"my images' threads={count}") for count in (1, 2)]
    assert [results.page(runs.parent).count(line) for line in lines] == [1, 1]
    (runs / "again.yaml").write_text("- a\n")
    with pytest.raises(ValueError, match=r"again\.yaml is not a mapping of patterns"):
        results.page(runs.parent)
    (runs / "again.yaml").unlink()
    (cell / ".hydra" / "overrides.yaml").write_text('- "a=1\\n\\n# Injected \\uD800"\n')
    assert "\n# Injected" not in results.page(runs.parent)
    (cell / ".hydra" / "config.yaml").unlink()  # counted nevertheless
    assert "; 0 cells that could not be counted" in results.page(runs.parent)


def test_a_cell_of_the_results_is_made_again_by_its_words():
    """Composed today they name the very cell: one of each attack and command, and every ANP, whose masks go by the processor."""
    root, shown = ROOT / "results" / "cifar10-jpeg-cpu", {}
    for path in sorted(root.glob("*/*/*/*/*/record.json")):
        words = spoken(root, path.parent)
        attack, defense = path.parts[-4:-2]
        rest = tuple(word for word in words if word.partition("=")[0] not in results.VARIED)
        shown[attack, defense == "anp" and path.parent.name, rest] = words, path.parent.name
    assert len(shown) > 20
    for words, name in shown.values():
        assert name.endswith(f"-{config.run_id(run.composed(*words))}"), words


def test_every_claim_is_about_what_the_bench_has():
    for claim in claims.claims():
        assert set(claim["attacks"]) <= set(choices("attack")) and claim["defense"] in choices("defense")
        assert claim["source"] and claim["rule"] in SENTENCES


def test_a_claim_that_is_not_understood_is_refused(tmp_path):
    text = claims.CLAIMS.read_text()
    for old, new in (
        ("asr < 1", "asr << 1"),
        ("asr < 1", "__import__('os') < 1"),
        (",fixed,", ",best,"),
        (",each,", ",most,"),
    ):
        path = tmp_path / "claims.csv"
        path.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match="is no test"):
            claims.claims(path)


@pytest.mark.parametrize(
    ("claim", "verdict", "said"),
    [
        ({}, "holds", "badnets: asr 0.3 (3 of 3 seeds)"),
        ({"test": "asr > 5"}, "does not hold", "badnets: asr 0.3"),
        ({"test": "asr < 5 and acc_drop < 1"}, "does not hold", "acc drop 2.6"),
        ({"attacks": ["badnets", "blend"]}, "holds where tested", "not tested: blend (not run)"),
        ({"attacks": ["wanet"]}, "untested", ""),
        ({"defense": "anp"}, "untested", ""),
    ],
)
def test_verdicts(runs, claim, verdict, said):
    found = judged(runs, **claim)
    assert found["verdict"] == verdict
    assert said in "; ".join(found["numbers"])


def test_verdicts_over_several_attacks_and_departures(runs):
    for folder in runs.glob("imagefolder/resnet18/wanet/*/*"):
        change(folder, took=True, asr_fixed=50.0)
    found = judged(runs, attacks=["badnets", "wanet"], epochs=60.0)
    assert found["verdict"] == "in part" and found["departures"] == ["JPEG pixels", "20 epochs for 60"]


def test_a_claim_holds_on_every_seed_or_of_the_average(runs):
    folder = next(runs.glob("imagefolder/resnet18/badnets/rnp/s2-*"))
    change(folder, asr_fixed=8.0)
    found = judged(runs)
    assert found["verdict"] == "in part" and "(2 of 3 seeds)" in found["numbers"][0]
    for wanet in runs.glob("imagefolder/resnet18/wanet/*/*"):
        change(wanet, took=True, asr_fixed=5.0)
    over = {"attacks": ["badnets", "wanet"], "of": "average"}
    found = judged(runs, **over)
    assert found["verdict"] == "holds" and found["numbers"][0] == "average: asr 3.9"
    change(folder, asr_fixed=50.0)
    assert judged(runs, **over)["verdict"] == "does not hold"


def test_settings_given_by_hand_are_neither_a_papers_nor_marked(runs):
    """A cell with another learning rate than its preset's, the same folder name but for it, and a lower ASR."""
    for folder in list(runs.glob("imagefolder/resnet18/badnets/rnp/*")):
        new = folder.with_name(folder.name + "0")
        shutil.copytree(folder, new)
        change(new, id="0", **{f"asr_{rule}": 0.0 for rule in SENTENCES})
        config = new / ".hydra" / "config.yaml"
        text = config.read_text()
        assert "lr: 0.2" in text
        config.write_text(text.replace("lr: 0.2", "lr: 0.02"))
        (new / ".hydra" / "overrides.yaml").write_text("- attack=badnets\n- defense.recover.lr=0.02\n")
    found = judged(runs)
    assert found["numbers"] == ["badnets: asr 0.3 (3 of 3 seeds)"]
    (sheet,) = sheets(*load(runs))
    (tried,) = sheet.tried
    assert tried == ("rnp", "defense.recover.lr=0.02") and tried not in sheet.styles(("badnets", ""), "fixed")
    for cell in runs.glob("imagefolder/resnet18/badnets/rnp/*"):  # a study of both: none is the preset's own
        (cell / ".hydra" / "overrides.yaml").write_text("- defense.recover.lr=0.2\n")
    (sheet,) = sheets(*load(runs))
    assert not sheet.tried and sheet.styles(("badnets", ""), "fixed")[tried] == "best"


def test_findings_are_computed(runs):
    (sheet,) = sheets(*load(runs))
    text = "\n".join(findings.findings(sheet))
    assert "1 of 2 attacks took" in text and "wanet did not" in text
    own = "clp (1): badnets (3 of 3 seeds); rnp (1): badnets (3 of 3 seeds)."
    assert "At each pruner's published number (fixed) these backdoors" in text and own in text
    assert re.search(r"rnp by clean_drop leaves ASR below 5 % .* on every seed: badnets\.", text)
    for folder in list(runs.glob("imagefolder/resnet18/badnets/rnp/*"))[:1]:
        change(folder, asr_clean_drop=50.0)
    (sheet,) = sheets(*load(runs))
    assert re.search(r"rnp by clean_drop leaves .* on some seeds: badnets\.", "\n".join(findings.findings(sheet)))
    for seed in (2, 3):
        shutil.rmtree(next(runs.glob(f"imagefolder/resnet18/badnets/clp/s{seed}-*")))
    (sheet,) = sheets(*load(runs))
    assert re.search(r"clp by clean_drop leaves .* on the one seed: badnets\.", "\n".join(findings.findings(sheet)))


def test_a_pruner_that_had_to_prune_nothing_is_told_with_what_it_offered(runs):
    (sheet,) = sheets(*load(runs))
    assert "prunes nothing" not in "\n".join(findings.findings(sheet))
    folder = next(runs.glob("imagefolder/resnet18/badnets/rnp/s3-*"))
    change(folder, pruned_clean_drop=0)
    curve = list(csv.DictReader((folder / "curve.csv").read_text().splitlines()))
    first = next(row for row in curve if int(row["pruned"]))
    (sheet,) = sheets(*load(runs))
    (said,) = [text for text in findings.findings(sheet) if "prunes nothing" in text]
    assert said.startswith("rnp by clean_drop prunes nothing of 1 of 3 models (badnets): ")
    drop = json.loads((folder / "record.json").read_text())["acc_before"] - float(first["acc"])
    assert f"is {first['pruned']} of 4800 channels at once, for {drop:.1f} points of ACC" in said
    (folder / "curve.csv").unlink()
    assert not [text for text in findings.findings(sheet) if "prunes nothing" in text]


def test_cells_that_test_no_claim_have_no_table_of_claims(runs):
    page = results.page(runs.parent)
    assert ": claims\n" in page and "tests any of the published claims" not in page
    shutil.rmtree(runs / "imagefolder/resnet18/badnets")
    page = results.page(runs.parent)
    assert ": claims\n" not in page and "- No cell here tests any of the published claims" in page


def test_the_command(runs, tmp_path, capsys):
    for folder in runs.glob("imagefolder/resnet18/badnets/clp/*"):
        change(folder, defense=HOSTILE)
    out = tmp_path / "RESULTS.md"
    assert results.main(["--results", str(runs.parent), "--out", str(out)]) == 0
    assert "## some" in out.read_text() and "<b>" not in out.read_text().replace(r"\<b\>", "")
    shutil.rmtree(runs)
    assert results.main(["--results", str(runs.parent), "--out", str(out)]) == 1
    assert "no finished cell" in capsys.readouterr().err


def test_the_first_table_has_every_claim_beside_every_folder(runs):
    shutil.copytree(runs, runs.with_name("other"))
    for folder in runs.glob("imagefolder/resnet18/badnets/rnp/s2-*"):
        change(folder, asr_fixed=50.0)
    page = results.page(runs.parent)
    _, _, *lines = [line for line in page.partition("\n## other")[0].splitlines() if line.startswith("| ")]
    rows = {cells[1]: cells[3:5] for cells in ([c.strip() for c in line.split("|")] for line in lines)}
    assert list(rows) == [render.md(c["claim"]) for c in claims.claims()]
    assert rows["RNP at 0.3, best in its log, leaves BadNets below 5 % ASR"] == ["**holds: 3 of 3**", "in part: 2 of 3"]
    assert rows["FT-SAM leaves ASR below 10 %"] == ["–", "–"]
    average = rows["RNP at 0.3 leaves ASR below 10 % on average over its twelve attacks (5.03)"]
    assert average == ["**holds where tested: average of 1**", "does not hold: average of 1"]
    shutil.rmtree(runs / "imagefolder/resnet18/badnets")
    shutil.rmtree(runs.with_name("other"))
    assert "At a glance" not in results.page(runs.parent)  # these test nothing


def test_of_many_attacks_the_largest_group_is_counted():
    few = {"every seed": ["a"], "some seeds": [], "no seed": ["b", "c"]}
    assert findings.shortened(few) == ["on every seed: a", "on no seed: b, c"]
    many = few | {"no seed": list("bcdefgh")}
    assert findings.shortened(many) == ["on every seed: a", "on no seed: the other 7 attacks"]
    assert findings.shortened(many | {"every seed": []}) == ["on no seed: all 7 attacks"]
