"""Files are whole or absent; the store keeps what it is given and says what it cannot use."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from cells import ROOT
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from torch import nn

from bench import PROTOCOL, cell, cli, companions, config, faults, files, record, shelf, store
from bench.attacks.base import Backdoor, Trigger
from bench.curve import COLUMNS
from bench.errors import UserError

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=4), plain, max_size=5), st.randoms())
def test_digest_ignores_order_only(settings, rng):
    items = list(settings.items())
    rng.shuffle(items)
    assert files.digest(dict(items)) == files.digest(settings)
    assert files.digest(settings | {"": 1.5}) != files.digest(settings | {"": 1.25})
    assert files.digest([5.0, True]) == files.digest([5, True]) != files.digest([5, 1])


@pytest.fixture
def full_disk(monkeypatch):
    """Syncing fails as on a full disk."""

    def fsync(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk_leaves_the_old_file_and_no_new_one(tmp_path, full_disk):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(OSError) as caught:
        files.write(tmp_path / "a.json", "new")
    assert "the disk is full" in cli.sentence(caught.value)
    with pytest.raises(OSError), files.new_folder(tmp_path / "b") as new:
        (new / "x").write_text("half")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json").read_text() == "old"
    assert "the disk is full" in cli.sentence(SafetensorError("I/O error: No space left on device (os error 28)"))


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EIO", "EROFS", "ESTALE"])
@pytest.mark.parametrize("point", ["open", "write", "sync"])
def test_a_disk_that_refuses_is_one_sentence_and_loses_nothing(tmp_path, monkeypatch, point, code):
    files.publish(tmp_path / "a.json", "old")
    monkeypatch.setattr(faults, "armed", f"*.{point}:{code}")
    for act in (files.publish, files.write):
        monkeypatch.setattr(faults, "passed", Counter())
        with pytest.raises(OSError) as caught:
            act(tmp_path / "a.json", "new")
        said = cli.sentence(caught.value)
        wanted = "the disk is full" if code in ("ENOSPC", "EDQUOT") else os.strerror(getattr(errno, code))
        assert wanted in said and "unexpected" not in said and "\n" not in said
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json").read_text() == "old"


FULL = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from bench import cli, files
room = Path(sys.argv[2])
files.publish(room / "kept", "x" * 1000)
try:
    files.publish(room / "large", bytes(2**21))
except OSError as error:
    print(cli.sentence(error))
files.publish(room / "after", "there is room again")
print(sorted(path.name for path in room.iterdir()))
"""
READ = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from analysis import status
from bench import cell, cli, files, shelf
room = Path(sys.argv[2])
for act in (lambda: files.publish(room / "new", "x"), lambda: shelf.obtain(room / "m", "making it", dict, None)):
    try:
        act()
    except OSError as error:
        print(cli.sentence(error))
print(cell.read(room), files.sha256(room / "kept")[:8])
sys.exit(status.main(["--runs", str(room), "attack=badnets", "defense=clp"]))
"""


def test_a_disk_that_is_really_full(tmp_path):
    """One of a megabyte, in a namespace of our own; then the same one read-only: nothing is lost, and what is there is read."""
    script = 'mount -t tmpfs -o size=1m none "$1" && "$2" -c "$3" "$5" "$1" && mount -o remount,ro "$1" && "$2" -c "$4" "$5" "$1"'
    words = ["unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, FULL, READ, str(ROOT)]
    try:
        made = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if "unshare" in made.stderr or "mount" in made.stderr:
        pytest.skip(f"no namespace of our own here: {made.stderr.strip()[:100]}")
    said, names, *read_only = made.stdout.splitlines()
    assert "the disk is full" in said and names == "['after', 'kept']", made
    one, other, read, *state = read_only
    for sentence in (one, other):
        assert sentence.startswith(f"cannot use {tmp_path}") and "Read-only file system" in sentence, made
    assert read.startswith("None ") and state[0] == "1 cells: 0 done, 1 missing." and made.returncode == 0, made


def test_a_failed_cell_keeps_its_traceback_until_it_succeeds(tmp_path, caplog):
    with pytest.raises(ZeroDivisionError), cell.failures(tmp_path):
        _ = 1 / 0
    assert "unexpected ZeroDivisionError" in caplog.text and "Traceback" in (tmp_path / "error.txt").read_text()
    with pytest.raises(KeyboardInterrupt), cell.failures(tmp_path):
        raise KeyboardInterrupt
    assert (tmp_path / "error.txt").is_file(), "an interruption is no verdict on the cell"
    with cell.failures(tmp_path):
        pass
    assert not (tmp_path / "error.txt").exists()


@pytest.mark.parametrize("text", ['{"schema": 1', "[]", '{"schema": 0}', "{}", "null"])
def test_a_damaged_record_is_set_aside_by_whose_turn_it_is(tmp_path, text, caplog):
    (tmp_path / "record.json").write_text(text)
    assert cell.read(tmp_path) is None and not list(tmp_path.glob("*damaged*"))
    assert cell.read(tmp_path, mine=True) is None and "is damaged" in caplog.text
    assert [p.read_text() for p in tmp_path.glob("record.json.damaged-*")] == [text]


def test_a_record_that_was_edited_counts_as_none(tmp_path, caplog):
    """It says so itself; one of an earlier version, which says nothing, is read as ever."""
    numbers = dict.fromkeys(
        ("acc", "acc_before", "asr", "asr_before", "ra", "ra_before", "seconds", "seconds_curve"), 1.5
    )
    whole = numbers | {"schema": 1, "attack": "a", "defense": "d", "seed": 2, "channels": None, "rate": 5.0, "n": None}
    assert cell.finish(tmp_path, {"curve.csv": "at\n", "layers.csv": "layer\n"}, whole)
    path, found = tmp_path / "record.json", cell.read(tmp_path)
    assert found and found["digest_layers"] == files.sha256(tmp_path / "layers.csv")
    old = {key: value for key, value in found.items() if key != "digest_record"}
    text = path.read_text()
    path.write_text(json.dumps(old | {"asr": 0.0}))
    assert cell.read(tmp_path)
    path.write_text(text.replace('"asr": 1.5', '"asr": 0.5'))
    assert cell.read(tmp_path) is None and cell.read(tmp_path, mine=True) is None
    assert "not as it was written" in caplog.text and len(list(tmp_path.glob("record.json.damaged-*"))) == 1


def new_backdoor():
    return Backdoor(nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)), Trigger(10))


def stored(folder):
    return store.load_or_make(folder, new_backdoor(), lambda new: {"metrics": {"right": 3}})


@pytest.mark.parametrize("name", ["model.safetensors", "trigger.safetensors", "card.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_no_damage_to_a_stored_model_goes_unnoticed(tmp_path, name, harm, caplog):
    """Any byte: neither torch nor safetensors would notice a flipped bit in the weights. It is named, kept and made anew."""
    stored(tmp_path / "it")
    whole = (tmp_path / "it" / name).read_bytes()
    places = range(0, len(whole), max(1, len(whole) // 10)) if harm == "flip" else [len(whole) // 2]
    for place in places:
        copy = tmp_path / f"copy-{place}"
        shutil.copytree(tmp_path / "it", copy)
        spoiled = whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :] if harm == "flip" else whole[:place]
        (copy / name).write_bytes(spoiled)
        if harm == "remove":
            (copy / name).unlink()
        caplog.clear()
        made = []
        store.load_or_make(copy, new_backdoor(), lambda new, made=made: made.append(new) or {"metrics": {"right": 3}})
        assert len(made) == 1 and "is damaged" in caplog.text
        (kept,) = tmp_path.glob(f"copy-{place}.damaged-*")
        assert harm == "remove" or (kept / name).read_bytes() == spoiled
        assert shelf.verified(copy)


def test_a_disk_that_damages_what_it_is_given_is_named(tmp_path, monkeypatch):
    def spoil(folder):
        raise shelf.Damaged("a bit flipped")

    monkeypatch.setattr(shelf, "verified", spoil)
    with pytest.raises(UserError, match="damaged right after it was written"):
        stored(tmp_path / "it")


def test_the_store_keeps_what_it_is_given(tmp_path):
    one = stored(tmp_path / "it")
    two = store.load_or_make(tmp_path / "it", new_backdoor(), None)
    assert two.card["metrics"] == {"right": 3}
    for a, b in zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    json.loads((tmp_path / "it/card.json").read_text())


def test_a_clean_model_is_read_only_where_its_weights_are_wanted(tmp_path):
    """Its card is enough to say whether an attack took; a card that was changed, or names what is gone, is not believed."""
    calls = []

    def obtain():
        calls.append(torch.rand(3))
        return stored(tmp_path / "it")

    def clean():
        return store.Clean(tmp_path / "it", obtain, torch.device("cpu"))

    assert clean().card["metrics"] == {"right": 3} and len(calls) == 1, "there is none: it is made"
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    found = clean()
    assert found.card["metrics"] == {"right": 3} and found.name == "it" and len(calls) == 1
    assert isinstance(found.model, nn.Module) and found.model is found.model and len(calls) == 2
    assert torch.equal(torch.rand(2), expected), "loading it moves nobody's chance"
    card = (tmp_path / "it/card.json").read_text()
    (tmp_path / "it/card.json").write_text(card.replace("3", "4", 1))
    assert clean().card["metrics"] == {"right": 3} and len(calls) == 3
    (tmp_path / "it/model.safetensors").unlink()
    assert clean().card and len(calls) == 4


def test_folders_that_hydra_made_survive_a_power_cut_too(tmp_path, monkeypatch):
    """Every name on the way to a record is synced before the record is there."""
    synced = []
    settle = files.settle
    monkeypatch.setattr(files, "settle", lambda *paths: settle(*paths) or synced.extend(paths))
    folder = tmp_path / "runs/d/m/a/none/s2-0"
    folder.mkdir(parents=True)
    link = os.link
    monkeypatch.setattr(os, "link", lambda *a: synced.append("link") or link(*a))
    record.write(folder, {"seed": 2}, [dict.fromkeys(COLUMNS, 1) | {"layers": {}}], None)
    assert {folder, *folder.parents[:5]} <= set(synced[: synced.index("link")])


BASE = {
    "dataset": {"size": 8, "root": "here", "cache": "x"},
    "model": {"width": 1},
    "attack": {"rate": 0.1},
    "train": {"epochs": 1},
    "defense": {"at": 1},
    "clean": {"tune": 1},
    "selection": {"rule": "fixed"},
    "seed": 1,
    "device": "cpu",
    "threads": 1,
    "runs": "runs",
    "tracker": {},
}


@pytest.mark.parametrize(
    ("path", "cell_changes", "backdoor_changes"),
    [
        ("dataset.size", True, True),
        ("dataset.root", True, False),
        ("model.width", True, True),
        ("attack.rate", True, True),
        ("train.epochs", True, True),
        ("defense.at", True, False),
        ("clean.tune", True, False),
        ("selection.rule", True, False),
        ("seed", True, True),
        ("device", False, False),
        ("threads", False, False),
        ("runs", False, False),
        ("tracker", False, False),
    ],
)
def test_keys_cover_what_shapes_a_result_and_nothing_else(path, cell_changes, backdoor_changes):
    """`dataset.root` tells cells apart because their folder is named before the data is read; the data's digest tells models."""

    def keys(settings):
        names = dict.fromkeys(("dataset", "model", "attack"), "x") | {"seed": settings["seed"]}
        return config.run_id(settings), store.folder_for("r", names, config.backdoor_material(settings, "digest"))

    changed = json.loads(json.dumps(BASE))
    node, _, last = path.rpartition(".")
    (changed[node] if node else changed)[last] = 77
    (run, model), (run_after, model_after) = keys(BASE), keys(changed)
    assert (run != run_after, model != model_after) == (cell_changes, backdoor_changes)


def test_where_images_are_kept_is_in_no_key():
    """As the defaults are spelt, so that cells made with them keep their ids."""

    def key(**where):
        return config.run_id(BASE | {"dataset": {"size": 8, "root": "here"} | where})

    assert len({key(cache=place, download=word) for place in ("runs/cache", "/tmp/x") for word in (False, True)}) == 1
    plain = {k: v for k, v in BASE.items() if k not in config.HOW} | {"dataset": {"size": 8, "cache": "runs/cache"}}
    wanted = files.digest({"protocol": PROTOCOL} | plain)[:8]
    assert config.run_id(plain | {"dataset": {"size": 8, "cache": "elsewhere/cache"}}) == wanted


def test_pictures_that_an_attack_is_given_are_in_the_keys(tmp_path, monkeypatch):
    """What is in them, not their names alone; a pattern's name stays what it is, whatever file is called so."""
    monkeypatch.chdir(tmp_path)

    def keys(**attack):
        companions.picture.cache_clear()
        made = BASE | {"attack": {"rate": 0.1} | attack}
        return config.run_id(made), files.digest(config.backdoor_material(made, "digest"))

    plain = keys(pattern="white3"), keys(folder=None)
    Path("pictures").mkdir()
    seen = [[keys(pattern="./mine.png"), keys(folder="pictures")]]
    for content in (b"one", b"other"):
        for name in ("white3", "mine.png", "pictures/a.jpg"):
            Path(name).write_bytes(content)
        seen.append([keys(pattern="./mine.png"), keys(folder="pictures")])
    Path("pictures/b.txt").write_bytes(b"no picture")
    assert keys(folder="pictures") == seen[-1][1]
    assert len({key for both in seen for pair in both for key in pair}) == 3 * 2 * 2
    assert (keys(pattern="white3"), keys(folder=None)) == plain
    assert "pictures" not in config.backdoor_material(BASE | {"attack": {"pattern": "white3"}}, "digest")
    assert "pictures" not in config.backdoor_material(BASE | {"attack": {"pattern": "white3"}}, "digest")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc")
def test_a_place_that_takes_no_folder_says_so():
    with pytest.raises(OSError, match="nothing"):
        files.make_folder(Path("/proc/nothing/below"))
