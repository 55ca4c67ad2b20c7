"""The report page: what it holds, that nothing in it can run or load anything, and what a reader's clicks do."""

import base64
import hashlib
import html
import json
import re
import shutil
from pathlib import Path

import browser
import pandas as pd
import pytest

from analysis import ledger, plots, report
from analysis.load import load, read
from analysis.page import page
from analysis.render import plain
from analysis.report_tables import ledger_table, runs_table

GOLDEN = Path(__file__).parent / "golden_runs"
HOSTILE = "<script>window.hacked=1</script><!--</script><img src=x onerror='window.hacked=1'>=cmd|'/c calc'!A1 $\\frac{$ \u2028"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The golden runs, one of them with a hostile name, one as it really is run, with Hydra's own note of the command."""
    runs = tmp_path_factory.mktemp("report")
    shutil.copytree(GOLDEN / "digits", runs / "digits")
    one, two, *_ = sorted(runs.glob("digits/vgg5/badnets/*/*/record.json"))
    one.write_text(json.dumps(json.loads(one.read_text()) | {"attack": HOSTILE, "device": HOSTILE}))
    config = one.parent / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("pattern: checker1", f"pattern: {json.dumps(HOSTILE)}"))
    (two.parent / ".hydra" / "overrides.yaml").write_text("- attack=badnets\n- attack.alpha=0.5\n- 'x=a b'\n")
    assert report.main(["--runs", str(runs)]) == 0
    return runs


@pytest.fixture(scope="module")
def text(made):
    return (made / "report" / "report.html").read_text()


def data(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def values(table: dict, name: str, rule: str = "clean_drop") -> list:
    (column,) = (c for c in table["columns"] if c["name"] == name)
    column = column.get("by", {}).get(rule, column)
    return column["numbers"] if "numbers" in column else [column["words"][code] for code in column["codes"]]


# -- the text ----------------------------------------------------------------------------------------------------------
def test_every_run_is_there_with_its_numbers_settings_and_command(made, text):
    runs = data(text)["tables"][0]
    frame, _ = load(made)
    assert runs["rows"] == len(frame) == 18
    assert values(runs, "seconds") == pytest.approx(list(frame["seconds"]), rel=1e-5)
    for name in ("seed", "commit", "device"):
        assert values(runs, name) == [plain(v) if isinstance(v, str) else v for v in frame[name]], name
    for rule in ("fixed", "clean_drop", "oracle"):
        assert values(runs, "asr", rule) == pytest.approx(list(frame[f"asr_{rule}"]), rel=1e-5)
    settings = {row["where"]: row["settings"] for row in read(made)[0]}
    for i, where in enumerate(frame["where"]):
        kept = dict(pair for part in runs["details"]["settings"] for pair in part["blocks"][part["codes"][i]])
        assert kept.keys() == settings[where].keys() and kept["defense._target_"] == settings[where]["defense._target_"]
    commands = values(runs, "command")
    assert (
        "python bench/run.py attack=badnets 'attack.alpha=0.5 # two words' 'x=a b'" not in commands
    )  # a comment ends it
    assert "python bench/run.py attack=badnets attack.alpha=0.5 'x=a b'" in commands
    assert sum("none was kept" in kind for kind in values(runs, "command_is")) == 17


def test_nothing_on_the_page_can_run_or_load_anything(text):
    """Only the script and style named by their hashes; every text of a record is JSON without a single < in it."""
    policy = html.unescape(re.search(r'Content-Security-Policy" content="(.*?)"', text)[1])
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for tag in ("script", "style"):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S)[1]
        assert base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode() in policy
    raw = re.search(r'id="data">(.*?)</script>\n<script>', text, re.S)[1]
    assert not set("<>&\u2028") & set(raw) and "window.hacked" in raw
    assert not re.search(r"""(?:src|href)\s*=|url\(|@import""", re.sub(r"<script.*?</script>", "", text, flags=re.S))
    shown = html.unescape(page(HOSTILE, [HOSTILE], [], []).split("<h1>")[1])
    assert HOSTILE not in page(HOSTILE, [HOSTILE], [], []) and "<script>window" in shown


def test_the_same_records_give_the_same_page(monkeypatch):
    monkeypatch.setattr(report, "drawn", lambda *_: ([], []))  # pictures have a test of their own
    assert report.make(GOLDEN, "fixed") == report.make(GOLDEN, "fixed")


def test_pictures_of_a_large_sweep_are_drawn_once(made, monkeypatch):
    monkeypatch.setattr(report, "WORTH", 1)
    first = report.make(made, "fixed")
    (made / ".pictures-fixed" / "gone.svg").write_text("of an earlier report")
    monkeypatch.setattr(plots, "draw_sheet", None)
    assert report.make(made, "fixed") == first and len(data(first[0])["pictures"]) > 3
    assert not (made / ".pictures-fixed" / "gone.svg").exists()


def test_no_cell_is_said(tmp_path, capsys):
    assert report.main(["--runs", str(tmp_path)]) == 1
    assert "no finished cell" in capsys.readouterr().err


def test_the_published_numbers_are_beside_ours(tmp_path):
    """By the ledger's own rows, on the records of a full-size sweep that are in the repository."""
    runs = Path(__file__).parent.parent / "results" / "cifar10-jpeg-h200"
    spec = ledger_table(ledger.compare(runs, "clean_drop"), "clean_drop")
    assert spec["rows"] > 0 and {"BadNets", "badnets"} & set(values(spec, "attack"))
    for ours, published, apart in zip(
        *(values(spec, f"acc{end}") for end in ("_ours", "", "_difference")), strict=True
    ):
        assert apart is None or apart == pytest.approx(ours - published, abs=1e-3)
    assert any("JPEG" in why for why in values(spec, "why"))


# -- in a browser ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if not browser.found():
        pytest.skip(browser.MISSING)
    with browser.browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def columns(chromium, name: str) -> list[str]:
    """The texts of one column of the runs, as drawn."""
    heads = chromium.texts("#runs thead tr:first-child th")
    return chromium.texts(f"#runs tbody tr.open td:nth-child({heads.index(name) + 1})")


def head(name: str) -> str:
    return f"#runs th button[title='{name}']"


def test_clicks_filter_and_sort(made, chromium):
    chromium.open(made / "report" / "report.html")
    assert chromium.texts("#runs .count") == ["18 rows"]
    before = [float(asr) for asr in columns(chromium, "ASR")]
    chromium.click(head("asr"))
    assert [float(asr) for asr in columns(chromium, "ASR")] == sorted(before) != before
    chromium.click(head("asr"))
    assert [float(asr) for asr in columns(chromium, "ASR")] == sorted(before, reverse=True)
    assert chromium.run("return document.querySelector('th[aria-sort=descending]').textContent") == "ASR"
    chromium.click("#runs [data-column=defense] option:nth-child(2)")
    assert set(columns(chromium, "defence")) == {"clp"} and chromium.texts("#runs .count") == ["6 of 18 rows"]
    chromium.type("#runs [data-column=asr]", "< 5")
    kept = columns(chromium, "ASR")
    assert 0 < len(kept) < 6 and all(float(asr) < 5 for asr in kept)
    chromium.type("#runs input[type=search]", "no such thing")
    assert columns(chromium, "ASR") == [] and chromium.run("return !document.querySelector('#runs .none').hidden")
    chromium.click("#runs .tools button")
    assert chromium.texts("#runs .count") == ["18 rows"]


def test_the_rule_and_the_details(made, chromium):
    chromium.open(made / "report" / "report.html")
    before = columns(chromium, "ASR")
    chromium.click("#runs .rule option[value=oracle]")
    assert columns(chromium, "ASR") != before
    chromium.run("document.querySelector('#runs tbody tr.open:nth-child(4)').click()")
    said = chromium.texts("dialog")[0]
    for word in ("python bench/run.py", "defense._target_", "bench.defenses.", "commit", "device"):
        assert word in said
    chromium.click("dialog .bar button")
    chromium.click("#tabs button:nth-child(2)")
    widths = chromium.run("return [...document.querySelectorAll('#plots img')].map(image => image.naturalWidth)")
    assert widths and all(widths), "a picture was not drawn"


def test_hostile_names_are_shown_and_nothing_else(made, chromium):
    chromium.open(made / "report" / "report.html")
    assert any("<script>window.hacked=1</script>" in name and "=cmd" in name for name in columns(chromium, "attack"))
    row = next(i for i, name in enumerate(columns(chromium, "attack")) if "hacked" in name)
    chromium.run("document.querySelectorAll('#runs tbody tr.open')[arguments[0]].click()", row)
    assert chromium.texts("dialog dd").count(HOSTILE.replace("\u2028", "?")) >= 2
    assert chromium.run(
        "return [window.hacked, document.querySelectorAll('main script, dialog script, dialog img').length]"
    ) == [None, 0]
    loaded = chromium.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith("data:image/") for name in loaded)
    assert chromium.errors() == []


def test_ten_thousand_rows_stay_usable(tmp_path, chromium):
    frame, _ = load(GOLDEN)
    many = pd.concat([frame.assign(seed=frame["seed"] + 10 * i, where=frame["where"] + f"-{i}") for i in range(556)])
    many = many.assign(overrides=None).reset_index(drop=True)[:10_000]
    settings = {where: {"attack.alpha": str(i % 7), "seed": "x"} for i, where in enumerate(many["where"])}
    path = tmp_path / "report.html"
    path.write_text(page("many", [], [runs_table(many, settings)], []))
    assert path.stat().st_size < 6e6
    chromium.open(path)
    assert chromium.texts("#runs .count") == ["10,000 rows"]
    chromium.click(head("asr"))
    chromium.type("#runs [data-column=asr]", "0.5..60")
    chromium.click(head("seed"))
    chromium.click(head("seed"))
    bottom = "const box = document.querySelector('#runs .rows'); box.scrollTop = box.scrollHeight;"
    chromium.run(f"{bottom} box.dispatchEvent(new Event('scroll'))")
    seeds = [int(seed) for seed in columns(chromium, "seed")]
    assert len(seeds) < 150 and seeds == sorted(seeds, reverse=True) and seeds[-1] < 10
    click = "const now = performance.now(); document.querySelector('#runs th button').click(); return performance.now() - now"
    spent = chromium.run(click)
    assert spent < 2000, f"a sort of 10,000 rows takes {spent:.0f} ms"
