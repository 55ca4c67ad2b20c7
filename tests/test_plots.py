"""The plots: the same bytes each time, whatever stands in the records; and the statistics in them."""

import itertools
import random
import shutil

import matplotlib as mpl
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import friedmanchisquare
from test_analysis import GOLDEN, HOSTILE, cells, change, runs, set_line  # noqa: F401 - runs is a fixture

from analysis import plots
from analysis.curves import curves, layers
from analysis.drawing import STYLE, looks, short, slugs
from analysis.lines import TOLD_APART, draw_counts, thinned
from analysis.load import load
from analysis.ranks import ranks, test
from analysis.sheets import sheets
from analysis.spots import draw_layers, draw_tradeoff, pareto

test.__test__ = False
LAYERS = "layer,channels,fixed,clean_drop,oracle\nfeatures.1,32,0,8,1\nfeatures.4,64,1,0,64\n"


def test_plots_are_made_and_are_the_same_each_time(runs, tmp_path, capsys):  # noqa: F811
    for folder in cells(runs, "blend", seed=3):
        change(folder, asr_before=10.0)
    (cells(runs, "blend", "clp", 2)[0] / "layers.csv").write_text(LAYERS)
    for out, some in (("one", []), ("two", ["--kinds", "svg", "pdf"])):
        assert plots.main(["--runs", str(runs), "--out", str(tmp_path / out), *some]) == 0
    names = sorted(p.name for p in (tmp_path / "one").glob("[!.]*"))
    assert names == [
        f"{plot}.{kind}" for plot in sorted(set(plots.PLOTS) - {"ranks"}) for kind in ("pdf", "png", "svg")
    ]
    for name in names:
        data = (tmp_path / "one" / name).read_bytes()
        assert name.endswith("png") or data == (tmp_path / "two" / name).read_bytes(), name
        assert data.startswith({"pdf": b"%PDF", "png": b"\x89PNG", "svg": b"<?xml"}[name[-3:]])


def test_only_pictures_that_would_change_are_drawn_again(runs, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "out"

    def drawn(*some):
        """The pictures that the command has touched."""
        before = {p.name: p.stat().st_ctime_ns for p in out.glob("[!.]*")}
        assert plots.main(["--runs", str(runs), "--out", str(out), "--kinds", "png", "svg", *some]) == 0
        return {p.name for p in out.glob("[!.]*") if p.stat().st_ctime_ns != before.get(p.name)}

    every = drawn()
    whole = (out / "heatmap.svg").read_bytes()
    capsys.readouterr()
    assert len(every) == 10 and drawn() == set() and "10 of them were there already" in capsys.readouterr().out
    (out / "heatmap.svg").write_bytes(whole[:-9])
    (out / "cost.png").unlink()
    assert drawn() == {"heatmap.svg", "cost.png"} and (out / "heatmap.svg").read_bytes() == whole
    curve = cells(runs, "blend", "clp", 2)[0] / "curve.csv"
    curve.write_text("".join(curve.read_text().splitlines(keepends=True)[:-1]))
    assert drawn() == {f"{plot}.{kind}" for plot in ("curves", "thresholds") for kind in ("png", "svg")}
    change(cells(runs, "blend", "clp", 2)[0], asr_clean_drop=1.0)
    assert "heatmap.png" in drawn() and drawn("--select", "fixed") == every
    (out / ".drawn.json").write_text('{"heatmap.png": 3, ')
    assert drawn("--select", "fixed") == every


def test_a_picture_is_drawn_again_where_other_settings_were_given_by_hand(runs, tmp_path, capsys):  # noqa: F811
    """Which stand in no record, and say who is a rival."""
    new = cells(runs, "blend", "rnp", 2)[0].with_name("s2-aaaaaaaa")
    shutil.copytree(cells(runs, "blend", "rnp", 2)[0], new)
    change(new, id="aaaaaaaa", max_drop=2.0)
    set_line(new, "max_drop: 5.0", "max_drop: 2.0")
    command = ["--runs", str(runs), "--out", str(tmp_path / "out"), "--kinds", "svg", "--only", "heatmap"]
    assert plots.main(command) == plots.main(command) == 0
    assert "there already" in capsys.readouterr().out
    (new / ".hydra" / "overrides.yaml").write_text("[defense.rule.at=0.3]")
    assert plots.main(command) == 0 and "there already" not in capsys.readouterr().out


@pytest.mark.filterwarnings("error")
def test_plots_of_hostile_and_lacking_cells(runs, tmp_path, capsys):  # noqa: F811
    for folder in cells(runs, defense="clp"):
        change(folder, defense="_$\\frac{$" + HOSTILE)
    cells(runs, "blend", "rnp", 2)[0].joinpath("curve.csv").write_text("pruned,acc\n1,nan\n")
    cells(runs, "blend", "rnp", 3)[0].joinpath("curve.csv").unlink()
    assert plots.main(["--runs", str(runs), "--out", str(tmp_path / "out"), "--kinds", "png"]) == 0
    assert capsys.readouterr().err.count("not drawn") == 2


def test_without_pruners_there_are_no_curves(runs, tmp_path):  # noqa: F811
    for defense in ("clp", "rnp"):
        for folder in cells(runs, defense=defense):
            shutil.rmtree(folder)
    assert plots.main(["--runs", str(runs), "--out", str(tmp_path / "out")]) == 0
    assert {p.stem for p in (tmp_path / "out").glob("[!.]*")} == {"tradeoff", "heatmap"}


def test_of_many_curves_the_seed_in_the_middle_is_drawn(runs):  # noqa: F811
    """Among five seeds that differ in ASR only, whatever their order: none is made up, and none is left out of few."""
    points = curves(load(runs)[0])[0].query("attack == 'blend' and defense == 'clp' and seed == 2")
    look = looks([("clp", "")])
    many = pd.concat(
        [points.assign(seed=seed, asr=asr) for seed, asr in ((1, 90.0), (2, 10.0), (3, 50.0), (4, 0.0), (5, 60.0))]
    )
    assert thinned(many, look)[0].equals(many)
    names = [("clp", f"x={i}") for i in range(TOLD_APART // 5 + 1)]
    crowd = pd.concat([many.assign(defense_settings=settings) for _, settings in names])
    drawn, said = thinned(crowd, looks(names))
    assert set(drawn["seed"]) == {3} and len(drawn) == len(names) * len(points) and "in the middle" in said


def test_curves_of_chosen_rows(runs):  # noqa: F811
    frame, _ = load(runs)
    points, problems = curves(frame[(frame["defense"] == "clp") & (frame["attack"] == "blend")])
    assert not problems
    assert set(points["seed"]) == {2, 3}
    assert (points.groupby("seed")["pruned"].min() == 0).all()


# -- room and colours --------------------------------------------------------------------------------------------------
def drawn(runs, draw, read=layers):  # noqa: F811
    frame, problems = load(runs)
    (sheet,) = sheets(frame, problems)
    with mpl.rc_context(STYLE):
        return draw(sheet, read(frame)[0], "clean_drop")


@pytest.mark.parametrize(("draw", "read"), [(draw_counts, curves), (draw_layers, layers), (draw_tradeoff, layers)])
def test_a_title_of_many_lines_lies_over_nothing(runs, draw, read):  # noqa: F811
    for folder in cells(runs, "b*"):  # six panels: two rows
        for i in range(4):
            new = folder.parents[1].with_name(f"{folder.parts[-3]}{i}") / folder.parent.name / folder.name
            shutil.copytree(folder, new)
            change(new, attack=f"{folder.parts[-3]}{i} " + "word " * 20)
    for path in runs.glob("digits/vgg5/*/*/*/curve.csv"):
        (path.parent / "layers.csv").write_text(LAYERS)
    page = drawn(runs, draw, read)
    page.figure.canvas.draw()
    titles = [t for t in page.ax.texts if t.get_text().count("\n") > 2]
    boxes = [t.get_window_extent().transformed(page.ax.transData.inverted()) for t in titles]
    (head,) = [t.get_window_extent() for t in page.ax.texts if t.get_text() == page.title]
    top = head.transformed(page.ax.transData.inverted()).y0
    panels = [box for i in range(page.count) for box in page.boxes(i)]
    assert len(boxes) == 8 and max(box.y1 for box in boxes) < top
    for box in boxes:
        assert not any(y < box.y1 and y + tall > box.y0 and x < box.x1 and x + w > box.x0 for x, y, w, tall in panels)


def test_hollow_markers_keep_the_colours_of_their_defences(runs):  # noqa: F811
    for folder in cells(runs, "blend"):
        change(folder, took=False)
    lines = [line for line in drawn(runs, draw_tradeoff).ax.lines if line.get_marker() not in ("None", "")]
    hollow = [line for line in lines if line.get_markerfacecolor() == "none"]
    assert hollow and {line.get_markeredgecolor() for line in lines if line not in hollow} == {"black"}
    assert all(line.get_markeredgecolor() == line.get_color() for line in hollow)


def test_a_name_that_is_cut_off_says_so():
    assert short("layer" * 8) == "layer" * 8
    assert short("layer" * 8 + "1") == ("layer" * 8)[:39] + "…"


# -- layers ------------------------------------------------------------------------------------------------------------
def test_pruned_channels_of_each_layer_are_read(runs):  # noqa: F811
    (cells(runs, "blend", "clp", 2)[0] / "layers.csv").write_text(LAYERS)
    (cells(runs, "blend", "clp", 3)[0] / "layers.csv").write_text(LAYERS.replace("64\n", "65\n"))
    (cells(runs, "blend", "rnp", 3)[0] / "layers.csv").write_text("layer,channels,fixed\na,1,1\n")
    found, problems = layers(load(runs)[0])
    assert found[["layer", "channels", "clean_drop", "oracle"]].values.tolist() == [
        ["features.1", 32, 8, 1],
        ["features.4", 64, 0, 64],
    ]
    assert [str(p).partition("not drawn: ")[2] for p in problems] == [
        "it holds something else than counts of channels", "its column 'clean_drop' is missing"]  # fmt: skip


# -- statistics --------------------------------------------------------------------------------------------------------
POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1)


@given(POINTS)
def test_the_pareto_front_is_what_nothing_beats(points):
    front = pareto(points)
    for asr, acc in points:
        beaten = any(a <= asr and b >= acc and (a, b) != (asr, acc) for a, b in points)
        assert ((asr, acc) in front) != beaten


SMALL = st.integers(2, 3).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 20), min_size=n, max_size=n), min_size=3, max_size=3)
)


@settings(deadline=None, max_examples=30)
@given(SMALL)
def test_friedmans_p_is_exact_where_the_attacks_are_few(table):
    """The share of all ways to hand each attack's numbers to the defences whose statistic is as large, by scipy's own."""
    found = test([(str(i), "") for i in range(3)], table)
    assert sum(found.average.values()) == pytest.approx(6)

    def statistic(columns):
        if all(len(set(column)) == 1 for column in columns):
            return 0.0
        return friedmanchisquare(*zip(*columns, strict=True)).statistic

    columns = list(zip(*table, strict=True))
    every = [statistic(ways) for ways in itertools.product(*(itertools.permutations(column) for column in columns))]
    assert found.p == pytest.approx(sum(value >= statistic(columns) - 1e-9 for value in every) / len(every))


def test_friedmans_p_of_many_attacks_is_near_the_chi_square():
    rng = random.Random(0)
    table = [[rng.gauss(0.4 * i, 1) for _ in range(20)] for i in range(4)]
    assert test([(str(i), "") for i in range(4)], table).p == pytest.approx(friedmanchisquare(*table).pvalue, abs=0.01)


def test_nemenyis_difference_is_that_of_the_tables():
    """Demšar (2006), table 5: q at 5 % is 2.343 for 3 and 2.850 for 6; his example with 4 methods on 14 sets has 1.25."""
    found = test([(str(i), "") for i in range(4)], [[float(i)] * 14 for i in range(4)])
    assert found.difference == pytest.approx(1.25, abs=0.005)
    assert list(found.average.values()) == [4, 3, 2, 1]  # higher is better
    assert [[name for name, _ in group] for group in found.cliques] == [["3", "2"], ["2", "1"], ["1", "0"]]
    assert test([("a", ""), ("b", ""), ("c", "")], [[1, 2], [2, 1], [1, 1]]).cliques == [
        [("a", ""), ("b", ""), ("c", "")]
    ]


def test_ranks_need_three_defences_on_the_same_attacks(runs, tmp_path):  # noqa: F811
    def now():
        (sheet,) = sheets(*load(runs))
        return ranks(sheet, "clean_drop")

    assert now() is None  # two, and none and a control
    for folder in cells(runs, defense="rnp"):
        new = folder.parent.with_name("third") / folder.name
        shutil.copytree(folder, new)
        change(new, defense="third", der_clean_drop=1.0)
    assert [name for name, _ in now().average] == ["clp", "rnp", "third"]
    assert now().average["third", ""] == 3
    assert plots.main(["--runs", str(runs), "--out", str(tmp_path / "out"), "--only", "ranks", "--kinds", "svg"]) == 0
    assert "p = " in (tmp_path / "out" / "ranks.svg").read_text()
    for folder in cells(runs, "blend", "third"):
        shutil.rmtree(folder)
    assert now() is None


def test_each_data_set_and_network_has_its_own_file(runs, tmp_path):  # noqa: F811
    for i, name in enumerate(("vgg 5", "vgg-5", "ünder")):
        for folder in cells(runs, "blend"):
            new = runs / "digits" / f"other{i}" / folder.relative_to(runs / "digits" / "vgg5")
            shutil.copytree(folder, new)
            change(new, model=name)
    found = list(sheets(*load(runs)))
    assert slugs(found) == ["-digits-vgg-5-1", "-digits-vgg-5-2", "-digits-vgg5", "-digits-nder"]
