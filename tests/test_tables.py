"""The tables for a paper: kinds of defences, what stands in columns beside the metrics, TeX, and the terminal."""

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from test_analysis import GOLDEN, HOSTILE, cells, change, made, runs, table, tidy  # noqa: F401 - runs is a fixture

from analysis import attacks, tables, terminal
from analysis.render import Entry, Grid, Table, blocks, latex

PAPER = r"""\documentclass{article}
\usepackage{booktabs,graphicx}
\begin{document}
\input{table}
\end{document}
"""


def copy(runs: Path, defense: str, name: str, **values) -> None:  # noqa: F811
    for folder in cells(runs, defense=defense):
        new = folder.parent.with_name(name) / folder.name
        shutil.copytree(folder, new)
        change(new, defense=name, **values)


def booktabs() -> bool:
    """Whether a TeX engine is here that has it: texlive-latex-base alone has not."""
    if not (shutil.which("pdflatex") and shutil.which("kpsewhich")):
        return False
    return subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).returncode == 0


@pytest.mark.skipif(not booktabs(), reason="no TeX engine with booktabs: apt-get install texlive-latex-recommended")
@pytest.mark.parametrize("by", ["defenses", "attacks"])
def test_latex_compiles(runs, tmp_path_factory, by):  # noqa: F811
    copy(runs, "rnp", "hostile", channels=None)
    for folder in cells(runs, defense="hostile"):
        change(folder, defense=HOSTILE, needs=HOSTILE)
    (cells(runs, "blend", "clp", 3)[0] / "record.json").write_text("{")
    out = tmp_path_factory.mktemp("paper")
    (out / "paper.tex").write_text(PAPER)
    (out / "table.tex").write_text(tables.make(runs, "all", by)[0]["table.tex"])
    command = ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (out / "paper.pdf").read_bytes().startswith(b"%PDF")


def test_a_latex_caption_says_which_data_set_and_network():
    grid = Grid([("", ["defence"])], [[Entry("clp")]], 1)
    text = latex([Table("cifar10_jpeg, resnet18: fixed", ["Two seeds."], grid, [], [])])
    assert r"\caption{cifar10\_jpeg, resnet18: fixed. Two seeds.}" in text


def test_rows_are_grouped_by_kind_and_what_cheats_is_last(runs):  # noqa: F811
    assert "_pruning:_" not in made(runs)["table.md"]  # one kind needs no heading
    for name in ("ft", "ibau"):
        copy(runs, "rnp", name, channels=None)
    copy(runs, "clp", "random", needs="nothing")
    copy(runs, "clp", "oracle", needs="trigger")
    names = list(table(made(runs)["table.md"]))
    assert names == ["none", "_repair:_", "ft", "ibau", "_pruning:_", "clp", "rnp", "_controls:_", "random", "oracle"]
    assert made(runs)["table.tex"].count(r"\textit{pruning}") == 2  # the table and the seeds below it


def test_attacks_can_be_the_rows(runs):  # noqa: F811
    text = tables.make(runs, "clean_drop", "attacks")[0]["table.md"]
    found, by_defense = table(text), table(made(runs)["table.md"])
    assert list(found) == ["badnets", "blend", "none", "average"]
    for defense, row in by_defense.items():
        for column in ("ACC", "ASR", "RA"):
            assert all(found[attack][f"{defense} {column}"] == row[f"{attack} {column}"] for attack in found)
    assert "| rnp     | clean images |  2 of 2 | 90.4 |" in text


def test_without_the_defence_none_the_models_are_still_shown_as_they_came(runs):  # noqa: F811
    whole = table(made(runs)["table.md"])["none"]
    shutil.rmtree(runs / "digits" / "vgg5" / "badnets" / "none")
    shutil.rmtree(runs / "digits" / "vgg5" / "blend" / "none")
    shutil.rmtree(runs / "digits" / "vgg5" / "none" / "none")
    found = table(made(runs)["table.md"])
    assert list(found) == ["before", "clp", "rnp"]
    for column in ("badnets ACC", "blend ASR", "none RA", "average ASR"):
        assert found["before"][column] == whole[column]
    assert (found["before"]["DER"], found["before"]["seconds"]) == ("–", "–")


def test_a_strangers_model_has_unknown_asr_and_is_in_no_average(runs):  # noqa: F811
    average = {d: row["average ACC"] for d, row in table(made(runs)["table.md"]).items()}
    nothing = {f"{m}_{at}": None for m in ("asr", "ra") for at in ("before", "fixed", "clean_drop", "oracle")}
    nothing |= {f"der_{rule}": None for rule in ("fixed", "clean_drop", "oracle")}
    for folder in cells(runs, "none"):
        new = runs / "digits" / "vgg5" / "unknown" / folder.parent.name / folder.name
        shutil.copytree(folder, new)
        change(new, attack="unknown", took=None, triggered=0, **nothing)
    texts = made(runs, "clean_drop")
    found = table(texts["table.md"])
    assert {found["rnp"][f"unknown {m}"] for m in ("ASR", "RA")} == {"unknown"}
    assert found["rnp"]["unknown ACC"] == found["rnp"]["none ACC"]
    assert {d: row["average ACC"] for d, row in found.items()} == average
    assert (found["rnp"]["attacks"], tidy(texts["table.csv"])["unknown", "rnp"]["took"]) == ("2 of 2", "unknown")
    assert "Column unknown: models whose trigger nobody knows" in texts["table.md"]
    alone = runs / "alone"
    shutil.copytree(runs / "digits" / "vgg5" / "unknown", alone / "digits" / "vgg5" / "unknown")
    assert table(made(alone)["table.md"])["rnp"]["unknown ASR"] == "unknown"
    assert "| unknown | unknown" in attacks.make(alone)[0]
    shutil.rmtree(alone)
    change(cells(runs, "blend", "rnp", 2)[0], asr_clean_drop=None)  # of a known attack it must be known
    assert table(made(runs)["table.md"])["rnp"]["blend ASR"] == "32.4"


def test_relearning_is_a_column_where_it_was_measured(runs):  # noqa: F811
    assert "relearn" not in made(runs)["table.md"]
    for folder in cells(runs, defense="rnp"):
        change(folder, relearn_asr_k10=40.0 if "badnets" in str(folder) else 50.0)
    texts = made(runs)
    found = table(texts["table.md"])
    assert (found["rnp"]["relearn 10 ASR"], found["clp"]["relearn 10 ASR"]) == ("45.0", "–")
    assert tidy(texts["table.csv"])["blend", "rnp"]["relearn_asr_k10_mean"] == "50.0000"
    change(cells(runs, "blend", "rnp", 2)[0], relearn_asr_k10=400)
    assert "relearn_asr_k10 is '400'" in made(runs)["table.md"]


def test_before_and_after_stand_in_the_csv(runs):  # noqa: F811
    row = tidy(made(runs)["table.csv"])["blend", "clp"]
    assert (row["asr_before_mean"], row["asr_mean"]) == ("100.0000", "0.0000")
    assert len({len(row) for row in csv.reader(io.StringIO(made(runs, "all")["table.csv"]))}) == 1


@pytest.mark.parametrize("width", [60, 100, 250])
def test_the_view_in_the_terminal_has_every_number_and_fits(width):
    _, found, _ = tables.build(GOLDEN, "clean_drop", "defenses")
    out = io.StringIO()
    terminal.show(found, Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(cell_len, text.splitlines())) <= width
    for row in found[0].grid.rows:
        for entry in row:
            assert entry.text in text
    heads = [line for line in text.splitlines() if line.startswith(" defence ")]
    assert len(heads) == {60: 7, 100: 4, 250: 2}[width]  # pieces, and the seeds


@pytest.mark.parametrize("width", [30, 60, 80])
def test_long_headings_cut_no_number_off_in_the_terminal(width):
    """As an attack's settings are: far longer than the numbers below them. The last column has more than one word."""
    long = [f"cl (attack.eps={i}, attack.pattern=checker4, attack.poison_rate=0.8)" for i in range(3)]
    row = [Entry("defense"), *(Entry(f"8{i}.7 (1 of 2 seeds)" if i % 3 == 0 else f"8{i}.7") for i in range(9))]
    groups = [("", ["defence"]), *((name, ["ACC", "ASR", "RA"]) for name in long), ("", ["relearn 10 ASR"])]
    each = Grid([("", ["defence"]), *(("", [name]) for name in long)], [row[:4]], 4)
    whole = Grid(groups, [[*row, Entry("5.7")]], 1, {0: "not finished"})
    out = io.StringIO()
    terminal.show([Table("t", [], whole, [("seeds", each)], [])], Console(file=out, width=width))
    text = out.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    assert set(re.findall(r"\d+\.7", text)) == {e.text.partition(" ")[0] for e in (*row[1:], Entry("5.7"))}
    assert len(re.findall(r"^ defence ", text, re.M)) == len(re.findall(r"^ defense ", text, re.M)) > 1
    assert width < 60 or text.count("(1 of 2 seeds)") == 4  # where they fit, they are not broken


def test_hostile_names_do_nothing_to_the_terminal(runs):  # noqa: F811
    for folder in cells(runs, defense="rnp"):
        change(folder, defense="[red]x[/red][/] \x1b[31m")
    out = io.StringIO()
    terminal.show(tables.build(runs, "clean_drop", "defenses")[1], Console(file=out, width=300))
    assert "[red]x[/red][/] ?[31m" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_markdown_is_printed_into_a_file_and_the_view_when_asked(runs, capsys):  # noqa: F811
    assert tables.main(["--runs", str(runs)]) == 0
    assert capsys.readouterr().out.startswith("### digits")
    assert tables.main(["--runs", str(runs), "--show", "terminal"]) == 0
    assert re.match(r"─+ digits, vgg5: clean_drop ─+", capsys.readouterr().out)


def test_a_wide_grid_is_set_in_parts_and_loses_nothing():
    groups = [("", ("defence", "sees")), *((f"a{i}", ("ACC", "ASR", "RA")) for i in range(12)), ("", ("seconds",))]
    row = [Entry(f"v{i}") for i in range(2 + 36 + 1)]
    parts = blocks(Grid(groups, [row], 2))
    assert [part.columns[:2] for part in parts] == [["defence", "sees"]] * 3
    assert [e for part in parts for e in part.rows[0][2:]] == row[2:]
    assert [name for part in parts for name in part.columns[2:]] == Grid(groups, [row], 2).columns[2:]
    narrow = Grid(groups[:6], [row[:17]], 2)
    assert blocks(narrow) == [narrow]


def test_many_seeds_of_many_attacks_are_set_in_parts_too():
    groups, row = [("", ["defence"])] + [("", [f"a{i}"]) for i in range(12)], [Entry("clp")]
    row += [Entry("100.0, 100.0, 100.0") for _ in range(12)]
    parts = blocks(Grid(groups, [row], 13))
    assert [(part.columns[0], part.texts) for part in parts] == [("defence", 6)] * 2 + [("defence", 3)]
    assert [name for part in parts for name in part.columns[1:]] == [f"a{i}" for i in range(12)]
