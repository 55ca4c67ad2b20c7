"""Code that results come from does not change unseen: see analysis/fingerprints.py."""

import ast
import json

import pytest

from analysis import fingerprints, revisions

CODE = """
def draw(count: int) -> float:
    total = sum(range(count))
    if count < 0:
        raise ValueError(f"{count} is negative")
    return total * 0.5
"""


def test_no_code_changed_without_a_word():
    unseen, wanted = fingerprints.changed()
    assert not unseen, (
        f"{', '.join(unseen)} changed. If the results mean something else, count up in analysis/revisions.py and run "
        "python -m analysis.fingerprints; if they are the same to the last bit, run it with --same."
    )
    assert wanted == fingerprints.listed(), "python -m analysis.fingerprints"


@pytest.mark.parametrize(
    ("old", "new", "seen"),
    [
        ("0.5", "0.25", True),
        ("sum(", "max(", True),
        ("count < 0", "count <= 0", True),
        ("total", "other", True),
        ("return total", "# half of it\n    return total", False),
        ("    total", '    """Half the sum."""\n    total', False),
        ("count: int) -> float", "count)", False),
        ("is negative", "is below 0", False),
    ],
)
def test_what_a_fingerprint_sees(old, new, seen):
    one, other = (fingerprints.form(ast.parse(text)) for text in (CODE, CODE.replace(old, new)))
    assert CODE.replace(old, new) != CODE and (one != other) == seen


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A bench of three modules, whose list is up to date."""
    (tmp_path / "bench/attacks").mkdir(parents=True)
    texts = {"scene": "", "attacks/one": "from bench.shared import draw", "shared": "import os" + CODE}
    for name, text in texts.items():
        (tmp_path / f"bench/{name}.py").write_text(text)
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    monkeypatch.setattr(fingerprints, "LIST", tmp_path / "list.json")
    monkeypatch.setattr(fingerprints, "parts", lambda: ["bench.attacks.one", "bench.scene"])

    def command(*words):
        for cached in (fingerprints.module, fingerprints.listed, fingerprints.fingerprint):
            cached.cache_clear()
        return fingerprints.main(words)

    command()
    yield tmp_path / "bench/shared.py", command
    for cached in (fingerprints.module, fingerprints.listed, fingerprints.fingerprint):
        cached.cache_clear()


def test_a_change_is_suspect_until_somebody_says_that_it_means_the_same(small, monkeypatch, capsys):
    shared, command = small
    assert command() == 0
    record = {"fingerprints": fingerprints.stated({"attack": {"_target_": "bench.attacks.one.One"}})}
    assert fingerprints.suspect(record) is None and fingerprints.suspect({}) is None
    shared.write_text(shared.read_text().replace("sum(range(count))", "sum(range(0, count))"))
    assert command() == 1 and "bench.shared changed" in capsys.readouterr().out
    assert "the code of bench.attacks.one was another" in fingerprints.suspect(record)
    assert command("--same") == 0 and command() == 0
    assert fingerprints.suspect(record) is None
    shared.write_text(shared.read_text().replace("0.5", "0.7"))
    monkeypatch.setattr(revisions, "PROTOCOL", 2)
    assert command() == 0, "it was counted up"
    assert len(json.loads(fingerprints.LIST.read_text())["bench.shared"]) == 2
    assert command() == 0 and fingerprints.suspect(record)


def test_names_in_a_record_are_no_paths():
    for name in ("bench/../../etc", "bench..x", "os", "bench.nowhere", "/etc/passwd"):
        assert fingerprints.suspect({"fingerprints": f"{name}=0"}) is None
