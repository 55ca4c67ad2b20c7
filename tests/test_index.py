"""The index that makes thousands of cells quick to read: it never says anything else than the files."""

import json
import os
import shutil

import pandas as pd
import pytest
from test_analysis import GOLDEN, cells, change

from analysis import curves as curves_module
from analysis import index, load, schema, settings
from analysis.curves import curves, layers


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "WORTH", 1)
    shutil.copytree(GOLDEN / "digits", tmp_path / "digits")
    found(tmp_path)
    assert len(list(tmp_path.glob(".index-*.json"))) == 2
    return tmp_path


def found(runs):
    frame, problems = load.load(runs)
    points, unread = curves(frame)
    return frame, points, [str(p) for p in [*problems, *unread]]


def same(one, two) -> bool:
    return one[0].equals(two[0]) and one[1].equals(two[1]) and one[2] == two[2]


def test_what_did_not_change_is_not_read_again(runs, monkeypatch):
    frame, points, problems = found(runs)
    written = [path.stat().st_ino for path in runs.glob(".index-*.json")]
    monkeypatch.setattr(load, "read_cell", lambda folder: pytest.fail(f"{folder} was read"))
    monkeypatch.setattr(curves_module, "read_curve", lambda path: pytest.fail(f"{path} was read"))
    assert same(found(runs), (frame, points, problems))
    assert [path.stat().st_ino for path in runs.glob(".index-*.json")] == written
    monkeypatch.undo()
    plain = load.load(GOLDEN)[0].drop(columns="folder")  # no index there
    pd.testing.assert_frame_equal(frame.drop(columns="folder"), plain)


def test_a_changed_file_is_read_even_with_its_old_size_and_time(runs):
    path = cells(runs, "badnets", "clp", 2)[0] / "record.json"
    before = path.stat()
    text = path.read_text()
    path.write_text(text.replace('"seconds": 0', '"seconds": 9'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    frame = found(runs)[0]
    row = frame[(frame["attack"] == "badnets") & (frame["defense"] == "clp") & (frame["seed"] == 2)]
    assert row["seconds"].item() > 9


def test_cells_that_fail_vanish_or_are_mended_are_seen(runs):
    folder = cells(runs, "blend", "rnp", 2)[0]
    record = (folder / "record.json").read_text()
    (folder / "record.json").write_text(record[:200])
    assert [p.split(":")[0] for p in found(runs)[2]] == ["damaged"]
    (folder / "record.json").unlink()
    (folder / "error.txt").write_text("ValueError: no\n")
    assert [p.split(":")[0] for p in found(runs)[2]] == ["failed"]
    (folder / "record.json").write_text(record)
    (folder / "curve.csv").write_text("pruned\n1\n")
    frame, _, problems = found(runs)
    assert len(frame) == 18 and ["column at is missing" in p for p in problems] == [True]
    shutil.rmtree(folder)
    assert len(found(runs)[0]) == 17


def test_the_index_of_somebody_elses_folder_is_not_believed(runs, tmp_path_factory):
    """Copied with its results, and with ASR 0 in it."""
    other = tmp_path_factory.mktemp("other") / "runs"
    shutil.copytree(runs, other, copy_function=shutil.copy2)
    path = other / ".index-cells.json"
    kept = json.loads(path.read_text())
    for _, (row, _) in kept["entries"].values():
        row["asr_clean_drop"] = 0.0
    path.write_text(json.dumps(kept))
    assert found(other)[0]["asr_clean_drop"].tolist() == found(runs)[0]["asr_clean_drop"].tolist()


def test_nothing_is_believed_about_files_that_are_not_there(runs):
    path = runs / ".index-layers.json"
    made_by = index.Index(runs, "layers", (curves_module.__file__, schema.__file__)).made_by
    where = load.load(runs)[0]["where"]
    entries = {place: [[None], [[["forged", 3, 1, 1, 1]], ""]] for place in where}
    path.write_text(json.dumps({"made_by": made_by, "entries": entries}))
    assert len(layers(load.load(runs)[0])[0]) == 0


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"made_by": 1}', "[" * 100_000, '{"entries": {}}', "\xff"])
def test_a_damaged_index_is_made_anew(runs, text):
    expected = found(runs)
    path = runs / ".index-cells.json"
    whole = json.loads(path.read_text())
    path.write_text(text)
    assert same(found(runs), expected)
    assert json.loads(path.read_text()) == whole
    first = next(iter(whole["entries"]))
    for entry in ("x", [], [[], None], None):
        whole["entries"][first] = entry
        path.write_text(json.dumps(whole))
        assert same(found(runs), expected)


def test_the_index_is_made_anew_when_the_code_is_another(runs, monkeypatch, tmp_path):
    (tmp_path / "other.py").write_text("")
    monkeypatch.setattr(load, "CODE", (str(tmp_path / "other.py"),))
    change(cells(runs)[0], note=1)  # something to read
    seen = []
    real = load.read_cell
    monkeypatch.setattr(load, "read_cell", lambda folder: seen.append(folder) or real(folder))
    found(runs)
    assert len(seen) == 18


def test_few_cells_and_folders_that_cannot_be_written_have_no_index(tmp_path, monkeypatch):
    shutil.copytree(GOLDEN / "digits", tmp_path / "digits")
    found(tmp_path)
    assert not list(tmp_path.glob(".index*"))
    monkeypatch.setattr(index, "WORTH", 1)

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index.render, "write", full)
    assert len(found(tmp_path)[0]) == 18


@pytest.mark.parametrize(
    "text",
    ["a: 'x\n\nb: y'\nc: 1", "a: {\nb: 1}", "a: |\n  b: 1\nb: 2", "---\na: 1", "a: 1\na: 2",
     "a:\n- 1\n- 2\nb: null", "a: 1 # b: 2"],
)  # fmt: skip
def test_settings_read_in_parts_are_those_of_the_whole(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert settings.read_settings(path) == settings.read_part(text)
