"""The tables and plots, on a committed mini-sweep (golden_runs) and on damaged copies of it."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import attacks, paper, plots, tables
from analysis.load import load
from analysis.operating_point import choose
from analysis.render import csv_value, md, tex
from analysis.sheets import sheets

GOLDEN = Path(__file__).parent / "golden_runs"
HOSTILE = "=1+1|$x$_%&#{}~^\\<b>*[a](b)`c`\x1b[31m"


@pytest.fixture
def runs(tmp_path):
    shutil.copytree(GOLDEN / "digits", tmp_path / "digits")
    return tmp_path


def cells(runs: Path, attack="*", defense="*", seed="*") -> list[Path]:
    return sorted((runs / "digits" / "vgg5").glob(f"{attack}/{defense}/s{seed}-*"))


def change(folder: Path, /, **values) -> None:
    path = folder / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def set_line(folder: Path, old: str, new: str) -> None:
    path = folder / ".hydra" / "config.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def made(runs: Path, select="clean_drop") -> dict[str, str]:
    return tables.make(runs, select)[0]


def table(text: str) -> dict[str, dict[str, str]]:
    """The first Markdown table: defence -> column -> text."""
    lines = [line for line in text.split("\n\n")[2].splitlines() if line.startswith("|")]
    head, _, *body = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {row[0]: dict(zip(head, row, strict=True)) for row in body}


def tidy(text: str) -> dict[tuple[str, str], dict[str, str]]:
    return {(r["attack"], r["defense"]): r for r in csv.DictReader(io.StringIO(text))}


# -- what is pinned ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["table.md", "table.csv", "table.tex"])
def test_tables_of_the_golden_runs_are_pinned(name):
    """golden_runs/README.md says how to make the expected files anew."""
    assert made(GOLDEN, "all")[name] == (GOLDEN / "expected" / name).read_text()


def test_numbers_are_those_of_the_records(runs):
    asr = [json.loads((c / "record.json").read_text())["asr_clean_drop"] for c in cells(runs, "badnets", "clp")]
    row = tidy(made(runs)["table.csv"])["badnets", "clp"]
    mean = sum(asr) / 2
    assert float(row["asr_mean"]) == pytest.approx(mean, abs=1e-4)
    assert float(row["asr_std"]) == pytest.approx(sum((a - mean) ** 2 for a in asr) ** 0.5, abs=1e-4)
    assert (row["n"], row["seeds"]) == ("2", "2 3")


def test_files_are_those_on_stdout_and_nothing_else_is_left(runs, capsys):
    assert tables.main(["--runs", str(runs)]) == 0
    assert (runs / "tables" / "table.md").read_text() == capsys.readouterr().out
    assert sorted(p.name for p in (runs / "tables").iterdir()) == ["table.csv", "table.md", "table.tex"]
    assert made(runs)["table.md"] == (runs / "tables" / "table.md").read_text()  # tables/ holds no cells


def test_the_lowest_asr_is_marked_but_never_by_the_oracle(runs):
    marked = {row["defence"]: row["blend ASR"] for row in table(made(runs)["table.md"]).values()}
    assert marked["clp"].startswith("**0.0")
    assert marked["rnp"].startswith("_18.7")
    assert not marked["none"].startswith(("*", "_"))
    assert "**" not in made(runs, "oracle")["table.md"]


def test_the_oracle_gap_is_shown_with_all_rules_only(runs):
    assert "oracle gap" not in made(runs)["table.md"]
    assert made(runs, "all")["table.md"].count("oracle gap |") == 3


def test_one_seed_has_no_spread(runs):
    for folder in cells(runs, seed=3):
        shutil.rmtree(folder)
    assert "±" not in made(runs)["table.md"]


# -- the gate ----------------------------------------------------------------------------------------------------------
def test_a_seed_whose_attack_did_not_take_counts_in_no_average(runs):
    for folder in cells(runs, "blend", seed=3):
        change(folder, asr_before=79.9)
    texts = made(runs)
    assert table(texts["table.md"])["rnp"]["blend ACC"] == "97.6 (1 of 2 seeds†)"
    assert "blend seed 3 (ASR 79.9, ACC 99.0, clean model 99.8)" in texts["table.md"]
    row = tidy(texts["table.csv"])["blend", "rnp"]
    assert (row["took"], row["seeds"], row["not_taken"]) == ("yes", "2", "3")


def test_the_record_says_whether_an_attack_took(runs):
    """With the limits it was run with; a record from before it did is judged by the bench's own."""
    for folder in cells(runs, "blend"):
        change(folder, took=False, clean_model_acc=42.0)
    for folder in cells(runs, "badnets"):
        change(folder, took=True, asr_before=3.0, clean_model_acc=99.0)
    texts = made(runs)
    assert {tidy(texts["table.csv"])[attack, "clp"]["took"] for attack in ("blend", "badnets")} == {"no", "yes"}
    assert tidy(texts["table.csv"])["blend", "clp"]["took"] == "no"
    assert "clean model 42.0)" in texts["table.md"]


def test_a_model_is_compared_with_the_clean_model_of_its_own_seed(runs):
    """And only where there is none with the mean of the others: a seed of which both are bad took nevertheless."""
    for folder in cells(runs, seed=3):
        change(folder, acc_before=88.0)
    (sheet,) = sheets(*load(runs))
    assert sheet.before(("badnets", "")).column("acc", "fixed")[1] == 88.0 and all(sheet.rows["took"])
    assert dict(zip(sheet.rows["seed"], sheet.rows["clean_acc"], strict=True))[3] == 88.0
    for folder in cells(runs, "none", seed=2):
        shutil.rmtree(folder)
    (sheet,) = sheets(*load(runs))
    assert set(sheet.rows["clean_acc"]) == {88.0}


def test_averages_and_ranks_compare_the_same_seeds(runs):
    for folder in cells(runs, defense="rnp", seed=3):
        shutil.rmtree(folder)
    for folder in cells(runs, defense="rnp"):
        change(folder, asr_clean_drop=0.0)
    (sheet,) = sheets(*load(runs))
    cells_of = {d: {a: sheet.cell(d, a) for a in sheet.attacks} for d in sheet.rivals}
    assert paper.comparable(cells_of)[0] == [("clp", "")]
    assert "**" not in table(made(runs)["table.md"])["rnp"]["average ASR"]


def test_the_table_of_attacks(runs, capsys, tmp_path):
    """One row per attack with its seeds, from cells of any defence; put into a document between its marks."""
    for folder in cells(runs, "blend", seed=3):
        change(folder, took=False, asr_before=12.0, seconds_backdoor=4.0)
    for folder in cells(runs, "badnets"):
        change(folder, poisoned=109, poison_base=1097, poison_rate=109 / 1097, cover=7)
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- attacks -->\nold\n<!-- end of attacks -->\nafter\n")
    assert attacks.main(["--runs", str(runs), "--into", str(document)]) == 0
    text = capsys.readouterr().out
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    found = {row[0]: dict(zip(lines[0], row, strict=True)) for row in lines[2:]}
    assert found["blend"]["took"] == "1 of 2" and found["blend"]["ASR per seed"] == "100.0, 12.0"
    assert found["badnets"]["poisoned"] == "109 of 1097 (9.94 %, 7 covers)" and found["none"]["took"] == "control"
    assert "blend seed 3 did not take: ASR 12.0" in text
    assert document.read_text() == f"before\n<!-- attacks -->\n\n{text.strip()}\n\n<!-- end of attacks -->\nafter\n"
    for folder in cells(runs):
        change(folder, device=None, threads=None)
    assert "the defences ran on machines that are not known." in attacks.make(runs)[0]
    document.write_text("no marks")
    assert attacks.main(["--runs", str(runs), "--into", str(document)]) == 1
    assert "has no lines '<!-- attacks -->'" in capsys.readouterr().err and document.read_text() == "no marks"


def test_an_attack_that_never_took_is_struck_and_left_out(runs):
    for folder in cells(runs, "blend"):
        change(folder, asr_before=10.0, asr_clean_drop=0.0)
    found = table(made(runs)["table.md"])
    assert found["clp"]["blend ACC"] == "~~95.9 ± 0.1†~~"
    assert found["clp"]["blend ASR"] == "~~0.0 ± 0.0~~"
    assert found["clp"]["attacks"] == "1 of 2"
    assert found["clp"]["average ASR"] == "41.7"


def test_an_attack_that_cost_too_much_accuracy_did_not_take(runs):
    for folder in cells(runs, "badnets"):
        change(folder, acc_before=94.0)  # the clean models have 99.6 and 99.8
    assert "~~" in table(made(runs)["table.md"])["rnp"]["badnets ASR"]
    for folder in cells(runs, "none"):
        shutil.rmtree(folder)
    assert "~~" not in made(runs)["table.md"]  # nothing to compare with


# -- what is not there -------------------------------------------------------------------------------------------------
def test_missing_cells_are_visible(runs):
    shutil.rmtree(runs / "digits" / "vgg5" / "blend" / "rnp")
    shutil.rmtree(cells(runs, "badnets", "rnp", 3)[0])
    texts = made(runs)
    assert table(texts["table.md"])["rnp"]["blend ACC"] == "missing"
    assert table(texts["table.md"])["rnp"]["badnets ACC"] == "93.0 (1 of 2 seeds)"
    assert "| missing, missing |" in texts["table.md"]
    assert tidy(texts["table.csv"])["blend", "rnp"]["missing"] == "2 3"


def test_failed_cells_are_visible_with_their_reason(runs, capsys):
    for folder in cells(runs, "blend", "rnp"):
        (folder / "record.json").unlink()
        (folder / "error.txt").write_text("Traceback:\n  ...\nValueError: no BatchNorm\n")
    assert tables.main(["--runs", str(runs)]) == 0
    out, err = capsys.readouterr()
    assert table(out)["rnp"]["blend ACC"] == "failed"
    assert re.search(r"- failed: blend / rnp / seed 2, .*: ValueError: no BatchNorm", out)
    assert "ValueError: no BatchNorm" in err
    assert tidy(made(runs)["table.csv"])["blend", "rnp"]["failed"] == "2 3"


def test_a_failure_outside_every_table_is_listed(runs):
    folder = runs / "other" / "net" / "blend" / "clp" / "s2-0"
    folder.mkdir(parents=True)
    (folder / "error.txt").write_text("MemoryError\n")
    assert "blend / clp / seed 2, other/net/blend/clp/s2-0: MemoryError" in made(runs)["table.md"].split("Problems")[1]


@pytest.mark.parametrize(
    "text",
    [
        '{"schema": 1, "dataset": "dig',
        "",
        "[]",
        '{"schema": 2}',
        "NAN",
        "INFINITY",
        "BIG",
        "[" * 100_000,
        '{"schema": 1, "seed": true}',
    ],
)
def test_a_damaged_record_is_named_and_never_counted(runs, text):
    path = cells(runs, "badnets", "clp", 2)[0] / "record.json"
    whole = path.read_text()
    odd = {"NAN": "NaN", "INFINITY": "-Infinity"}.get(text)
    path.write_text(
        re.sub(r'"acc": .*', f'"acc": {odd},', whole) if odd else "x" * (2 << 20) if text == "BIG" else text
    )
    frame, problems = load(runs)
    assert len(frame) == 17
    assert [(p.kind, p.where.startswith("digits/vgg5/badnets/clp/s2-")) for p in problems] == [("damaged", True)]
    texts = made(runs)
    assert table(texts["table.md"])["clp"]["badnets ACC"] == "92.2 (1 of 2 seeds, 1 damaged)"
    assert tidy(texts["table.csv"])["badnets", "clp"]["damaged"] == "2"


@pytest.mark.parametrize(
    "values",
    [
        {"acc_oracle": 101.0},
        {"asr_before": None},
        {"seed": -1},
        {"defense": ""},
        {"seconds": "1"},
        {"at_clean_drop": "abc"},
        {"digest_record": "0"},
    ],
)
def test_a_record_of_something_else_is_refused(runs, values):
    change(cells(runs)[0], **values)
    assert len(load(runs)[0]) == 17


def test_a_record_cannot_name_files_to_read(runs):
    change(cells(runs)[0], folder="/etc", where="/etc", took=True, clean_acc=0, settings={}, kind="failed")
    frame, problems = load(runs)
    assert len(frame) == 18
    assert not problems
    assert not frame["folder"].str.startswith("/etc").any()
    assert made(runs) == made(GOLDEN)


def test_no_cells_is_one_sentence(tmp_path, capsys):
    for module in (tables, plots):
        assert module.main(["--runs", str(tmp_path)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1
        assert "no finished cell" in err


def test_models_and_caches_are_no_cells(runs):
    for name in ("backdoors", "cache", "plots"):
        shutil.copytree(cells(runs)[0], runs / name / "a" / "b" / "c" / "d" / "s2-0")
    assert made(runs) == made(GOLDEN)


# -- settings ----------------------------------------------------------------------------------------------------------
def test_two_settings_are_two_rows(runs):
    for folder in cells(runs, defense="rnp"):
        new = folder.with_name(folder.name[:3] + "aaaaaaaa")
        shutil.copytree(folder, new)
        change(new, id="aaaaaaaa", max_drop=2.0)
        set_line(new, "max_drop: 5.0", "max_drop: 2.0")
    found = table(made(runs)["table.md"])
    assert list(found) == ["none", "clp", "rnp (selection.max_drop=2)", "rnp (selection.max_drop=5)"]
    assert all("±" in row["badnets ASR"] for row in found.values())  # seeds of one setting stay together
    assert "at most 2 points" in made(runs)["table.md"]
    assert "at most 5 points" in made(runs)["table.md"]


def test_two_settings_of_an_attack_are_two_columns(runs):
    for folder in cells(runs, "blend", seed=3):
        set_line(folder, "alpha: 0.1", "alpha: 0.2")
    row = table(made(runs)["table.md"])["rnp"]
    assert row["blend (attack.alpha=0.1) ASR"] == "_4.9_"
    assert row["blend (attack.alpha=0.2) ASR"] == "_32.4_"


def test_many_differences_are_one_short_name(runs):
    for folder in cells(runs, defense="clp", seed=3):
        set_line(folder, "- 20\n", "- 21\n    - " + "\n    - ".join(map(str, range(300, 360))) + "\n")
    rows = [name for name in table(made(runs)["table.md"]) if name.startswith("clp")]
    assert len(rows) == 2
    assert all(re.fullmatch(r"clp \(settings [0-9a-f]{8}\)", name) for name in rows)


def test_device_and_places_are_no_settings(runs):
    for folder in cells(runs, seed=3):
        set_line(folder, "device: auto", "device: cuda")
        set_line(folder, "threads: null", "threads: 1")
        set_line(folder, "  split_seed: 0", "  split_seed: 0\n  cache: /share/cache\n  download: true")
    assert made(runs) == made(GOLDEN)


def test_the_same_cell_twice_counts_once(runs):
    folder = cells(runs, "badnets", "clp", 2)[0]
    shutil.copytree(folder, folder.with_name("s2-zzzzzzzz"))
    frame, problems = load(runs)
    assert len(frame) == 18
    assert "same settings and seed" in str(problems[0])


@pytest.mark.parametrize("text", [None, "- 1", "a: [", "a: &a [1]\nb: [*a, *a]", "[" * 60_000, "x" * (2 << 20)])
def test_unknown_settings_are_kept_apart(runs, text):
    path = cells(runs, "badnets", "clp", 2)[0] / ".hydra" / "config.yaml"
    path.unlink()
    if text is not None:
        path.write_text(text)
    frame, problems = load(runs)
    assert "settings are unknown" in str(problems[0])
    assert len(frame) == 18
    assert set(frame["dataset_settings"]) == {"", "settings unknown"}


# -- escaping ----------------------------------------------------------------------------------------------------------
def test_hostile_names_stay_text(runs):
    for folder in cells(runs, defense="rnp"):
        change(folder, defense=HOSTILE, needs=HOSTILE)
    texts = made(runs)
    lines = [line for line in texts["table.md"].splitlines() if line.startswith("|")]
    widths = {len(re.split(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines}
    assert widths == {20, 6}  # the table and the seeds: no column more
    assert "\x1b" not in "".join(texts.values())
    assert "<b>" not in texts["table.md"].replace(r"\<b\>", "")
    assert {r["defense"][0] for r in csv.DictReader(io.StringIO(texts["table.csv"]))} == {"n", "c", "'"}
    assert texts["table.tex"].count("{") - texts["table.tex"].count(r"\{") == texts["table.tex"].count("}") - texts[
        "table.tex"
    ].count(r"\}")


@given(st.text())
def test_latex_text_has_no_live_character(text):
    command = r"\\(?:text[a-z]+\{\}|[{}$&#_%])|\{[\[\]*]\}|\$\\pm\$|\$\^\{\\dagger\}\$"
    assert not re.search(r"[\\{}$&#_%^~<>|\"\[\]*\x00-\x1f\x7f]", re.sub(command, "", tex(text)))
    assert tex(text).isascii()


@given(st.text())
def test_markdown_text_has_no_live_character(text):
    assert not re.search(r"[\\`*\[\]<>|~&$\n]", re.sub(r"\\[\\`*\[\]<>|~&$_]", "", md(text)))


@given(st.text())
def test_csv_text_is_no_formula(text):
    assert not str(csv_value(text)).lstrip().startswith(("=", "+", "-", "@"))


def test_csv_numbers_stay_numbers():
    assert [csv_value(v) for v in (-1.5, 3, None)] == ["-1.5000", 3, None]


# -- operating points --------------------------------------------------------------------------------------------------
PERCENT = st.floats(0, 100).map(lambda x: round(x, 1))
LATER = st.fixed_dictionaries({"pruned": st.integers(1, 500), "select_acc": PERCENT, "acc": PERCENT, "asr": PERCENT})


@st.composite
def swept(draw):
    """A pruner's curve: the model as it came, then at least one point with more channels gone; one is the paper's."""
    rows = draw(st.lists(LATER, min_size=1, max_size=12, unique_by=lambda row: row["pruned"]))
    rows = [{"pruned": 0} | {key: draw(PERCENT) for key in ("select_acc", "acc", "asr")}, *sorted(rows, key=str)]
    rows.sort(key=lambda row: row["pruned"])
    paper = draw(st.integers(0, len(rows) - 1))
    return [row | {"fixed": int(i == paper)} for i, row in enumerate(rows)]


def chosen(curve, rule, max_drop):
    start = {"select_before": curve[0]["select_acc"], "acc_before": curve[0]["acc"]}
    return curve[choose(curve, rule, **start, max_drop=max_drop)]


@given(swept(), st.floats(0, 100))
def test_clean_drop_is_the_largest_pruning_within_the_limit(curve, max_drop):
    row = chosen(curve, "clean_drop", max_drop)
    within = [r for r in curve if r["select_acc"] >= curve[0]["select_acc"] - max_drop - 1e-9]
    assert row in within
    assert row["pruned"] == max(r["pruned"] for r in within)


@given(swept(), st.floats(0, 100), st.data())
def test_clean_drop_never_looks_at_the_test_set(curve, max_drop, data):
    other = [row | {"acc": data.draw(PERCENT), "asr": data.draw(PERCENT)} for row in curve]
    start = {"select_before": curve[0]["select_acc"], "max_drop": max_drop}
    here = choose(curve, "clean_drop", **start, acc_before=1.0)
    assert here == choose(other, "clean_drop", **start, acc_before=99.0)


@given(swept(), st.floats(0, 100))
def test_oracle_has_the_lowest_asr_within_the_limit(curve, max_drop):
    row = chosen(curve, "oracle", max_drop)
    within = [r for r in curve if r["acc"] >= curve[0]["acc"] - max_drop - 1e-9]
    assert row in within
    assert row["asr"] == min(r["asr"] for r in within)


@given(swept(), st.floats(0, 100))
def test_fixed_is_the_papers_own_point(curve, max_drop):
    assert chosen(curve, "fixed", max_drop)["fixed"]


def test_a_single_model_is_chosen_whatever_it_lost_and_unknown_rules_are_refused():
    curve = [{"pruned": 0, "fixed": 1, "select_acc": 1.0, "acc": 1.0, "asr": 1.0}]
    for rule in ("fixed", "clean_drop", "oracle"):
        assert choose(curve, rule, select_before=99.0, acc_before=99.0, max_drop=1.0) == 0
    with pytest.raises(ValueError, match="use fixed, clean_drop, oracle"):
        choose(curve, "best", select_before=99.0, acc_before=99.0, max_drop=1.0)


def test_when_everything_lost_too_much_nothing_is_pruned():
    curve = [{"pruned": n, "fixed": 0, "select_acc": 50.0, "acc": 50.0, "asr": 9.0 - n} for n in (0, 3)]
    for rule in ("clean_drop", "oracle"):
        assert choose(curve, rule, select_before=99.0, acc_before=99.0, max_drop=1.0) == 0


def test_a_loss_of_just_the_limit_is_within_it_and_among_equal_asr_the_higher_acc_is_taken():
    """644 of 1000 less 2 points is more than 624 of 1000 in binary; and 623 of 1000 is less."""
    points = [(0, 64.4, 64.4, 9.0), (1, 62.4, 62.4, 3.0), (2, 62.3, 62.3, 1.0)]
    curve = [{"pruned": n, "fixed": 0, "select_acc": s, "acc": a, "asr": h} for n, s, a, h in points]
    for rule in ("clean_drop", "oracle"):
        assert choose(curve, rule, select_before=64.4, acc_before=64.4, max_drop=2.0) == 1
    for better in (2, 1):
        equal = [row | {"asr": 3.0, "acc": 63.0 + (i == better)} for i, row in enumerate(curve)]
        assert choose(equal, "oracle", select_before=64.4, acc_before=64.4, max_drop=2.0) == better
