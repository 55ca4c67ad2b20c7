"""Code that results come from does not change unseen: see analysis/fingerprints.py."""

import ast
import json

import pytest
from test_bench import QUICK, bench, records

from analysis import fingerprints, revisions
from bench import files

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


def test_a_record_does_not_vouch_for_code_that_did_not_make_its_model(small):
    """Of a model made by older code the card says so; a card that says nothing makes it unknown, which is not suspect."""
    shared, command = small
    config = {key: {} for key in ("dataset", "model", "train")} | {"attack": {"_target_": "bench.attacks.one.One"}}
    cards = [{"made": {"fingerprints": fingerprints.of_model(config)}}, {"made": {}}]
    assert "bench.attacks.one=" in cards[0]["made"]["fingerprints"]
    shared.write_text(shared.read_text().replace("0.5", "0.7"))
    command()
    record = {"fingerprints": fingerprints.joined(fingerprints.stated(config), cards)}
    words = record["fingerprints"].split()
    assert sum(word.startswith("bench.attacks.one=") for word in words) == 2 and "bench.scene=unknown" in words
    assert fingerprints.suspect(record) == "the code of bench.attacks.one was another when it ran"
    new = {"fingerprints": fingerprints.joined(fingerprints.stated(config), cards[1:])}
    assert fingerprints.suspect(new) is None


def test_a_cell_on_an_older_backdoor_says_which_code_made_that(tmp_path):
    """As when the attack changed between two cells: both are suspect."""
    assert bench("defense=none", *QUICK, f"runs={tmp_path}")[0] == 0
    (path,) = tmp_path.glob("backdoors/*/*/badnets/*/card.json")
    card = json.loads(path.read_text())
    own = fingerprints.fingerprint("bench.attacks.badnets")
    assert f"bench.attacks.badnets={own}" in card["made"]["fingerprints"].split()
    card["made"]["fingerprints"] = card["made"]["fingerprints"].replace(own, "0123456789ab")
    digests = {name: value for name, value in card["sha256"].items() if name != "card"}
    path.write_text(json.dumps(card | {"sha256": digests | {"card": files.digest(card | {"sha256": digests})}}))
    assert bench("defense=clp", *QUICK, f"runs={tmp_path}")[0] == 0
    first, later = sorted(records(tmp_path), key=lambda record: record["defense"], reverse=True)
    assert fingerprints.suspect(first) is None
    assert fingerprints.suspect(later) == "the code of bench.attacks.badnets was another when it ran"


def test_names_in_a_record_are_no_paths():
    for name in ("bench/../../etc", "bench..x", "os", "bench.nowhere", "/etc/passwd"):
        assert fingerprints.suspect({"fingerprints": f"{name}=0"}) is None
