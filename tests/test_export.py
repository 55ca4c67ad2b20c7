"""What is exported is what was measured, in forms that others read; what is read back are settings, not orders."""

import copy
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from cells import NARROW, ROOT, attacks, build, choices, composed
from PIL import Image
from safetensors.torch import load_file
from test_bench import bench

from bench import export, parts, purified, stored, victim
from bench.attacks.badnets import BadNets
from bench.checkpoints import read
from bench.chosen import Chosen
from bench.data import ImageSet
from bench.defenses.npd import insert
from bench.errors import UserError
from bench.files import digest
from bench.metrics import Exam, evaluate
from bench.models import normalised
from bench.run import composed as typed
from bench.run import plain
from bench.scene import scene

QUICK = ["train.epochs=2", "threads=1", "gate.max_drop=null", NARROW]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One cell of a pruner and its backdoor, made as a user makes them."""
    runs = tmp_path_factory.mktemp("lab") / "runs"
    command = [sys.executable, str(ROOT / "bench/run.py"), "attack=badnets", "defense=clp", *QUICK, f"runs={runs}"]
    subprocess.run(command, check=True, capture_output=True)
    return runs


@pytest.fixture(scope="module")
def cell(runs):
    return next(runs.glob("digits/vgg5/badnets/clp/*"))


@pytest.fixture(scope="module")
def backdoor(runs):
    return next(runs.glob("backdoors/digits/vgg5/badnets/s2-*"))


def network(folder: Path) -> torch.nn.Module:
    """From what model.json says, without the bench's help."""
    facts = json.loads((folder / "model.json").read_text())
    assert facts["network"]["_target_"] == "bench.models.vgg" and facts["shape"] == [3, 16, 16]
    model = parts.make(facts["network"], num_classes=facts["num_classes"], channels=3)
    return normalised(model, facts["mean"], facts["std"])


def test_a_cell_gives_its_repaired_model_and_a_backdoor_itself(cell, backdoor, tmp_path):
    """The counts of the record and of the card, to the last image."""
    exam = stored.open_scene(stored.find(backdoor)).exam
    record, card = (json.loads((p / n).read_text()) for p, n in ((cell, "record.json"), (backdoor, "card.json")))
    for run, wanted in ((cell, [record["right"], record["hit"], record["robust"]]),
                        (backdoor, [card["metrics"][k] for k in ("right", "hit", "robust")])):  # fmt: skip
        for form, load in (("safetensors", load_file), ("torch", read)):
            out = tmp_path / run.name / form
            assert export.main([str(run), "--format", form, "--into", str(out)]) == 0
            model = network(out)
            model.load_state_dict(load(out / ("model.pt" if form == "torch" else "model.safetensors")))
            metrics = evaluate(model, exam)
            assert [metrics.right, metrics.hit, metrics.robust] == wanted
            assert json.loads((out / "model.json").read_text())["metrics"]["hit"] == wanted[1]
    assert record["pruned"] > 0 and record["right"] != card["metrics"]["right"]


def test_a_backdoorbench_folder_holds_the_very_images(cell, backdoor, runs):
    """Its PNG files, read as its own code finds them, give the ACC, ASR and RA that were measured; so does its model."""
    said = export.export(cell, "backdoorbench")
    (folder,) = (runs / "exports/record").iterdir()
    assert any(f"record/{folder.name}" in line for line in said)
    result = read(folder / "attack_result.pt")
    stage = stored.open_scene(stored.find(backdoor))
    assert (result["model_name"], result["num_classes"], result["img_size"]) == ("vgg5", 10, (16, 16, 3))
    assert "data" in result["data_path"] and result["clean_data"] == "digits"
    for part, total, count in (("bd_test", 500, 450), ("bd_train", 1097, 109)):
        state = result[part]
        indicator, table = state["poison_indicator"], state["bd_data_container"]["data_dict"]
        assert indicator.shape == (total,) and indicator.sum() == count == len(table)
        rows = [int(i) for i in state["original_index_array"] if indicator[int(i)] == 1]
        x, true, wanted = [], [], []
        for i in rows:
            bd_label, label = table[i]["other_info"]
            path = Path(*Path(table[i]["path"]).parts[2:])  # it lies under record/<name> there
            x.append(torch.from_numpy(np.array(Image.open(folder / path))).permute(2, 0, 1))
            true.append(label)
            wanted.append(bd_label)
        images, labels = torch.stack(x), torch.tensor(true)
        source = stage.data.test if part == "bd_test" else stage.data.train
        assert labels.equal(source.y[rows]) and images.equal(stage.backdoor.trigger.stamp(source.x[rows]))
        if part == "bd_test":
            exam = Exam(stage.data.test, ImageSet(images, labels), torch.tensor(wanted))
    model = stage.backdoor.model
    for file, column in (("attack_result.pt", "_before"), ("defense_result.pt", "")):
        model.load_state_dict(read(folder / file)["model"])
        record, metrics = json.loads((cell / "record.json").read_text()), evaluate(model, exam)
        assert [metrics.right, metrics.hit] == [record[f"right{column}"], record[f"hit{column}"]]
    words = [
        "attack=imported",
        f"model.checkpoint={folder / 'attack_result.pt'}",
        *QUICK,
        f"runs={runs.parent / 'back'}",
    ]
    back = scene(typed(*words), {"dataset": "digits", "model": "vgg5", "attack": "imported"}, build)
    assert vars(back.before) == stage.backdoor.card["metrics"]
    assert back.exam.images.equal(exam.images) and back.exam.wanted.equal(exam.wanted)


def test_training_images_stand_where_the_official_set_has_them(tmp_path):
    """Indices in bd_train count the official training set, from which the defender's images were taken out."""
    node = plain(composed("dataset=imagefolder", "dataset.root=x"))["dataset"]
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 6)):
        for label in "ab":
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / label / f"{i:02}.png")
    data = parts.make(node | {"root": str(tmp_path), "cache": str(tmp_path / "cache"), "size": 8, "heldout": 0.25})
    files = sorted(tmp_path.glob("train/*/*.png"))
    for row, place in enumerate(data.places.tolist()):
        assert data.train.x[row].equal(torch.from_numpy(np.array(Image.open(files[place]))).permute(2, 0, 1))
    assert len(data.places) == 30


def test_weights_with_names_of_their_own_say_so(tmp_path, cell, caplog):
    """NPD puts layers in: what is written says where, and how it is loaded; a form that cannot hold it is refused."""
    found = stored.find(cell)
    stage = stored.open_scene(found)
    polarised = copy.deepcopy(stage.backdoor.model)
    insert(polarised, None)
    assert purified.names(stage.backdoor.model, stage.backdoor.model) == {}
    said = export._safetensors(tmp_path, tmp_path, found, stage, polarised)
    facts = json.loads((tmp_path / "model.json").read_text())
    (place, what), = facts["changed"].items()  # fmt: skip
    assert "Conv2d" in what and "BatchNorm2d" in what and place in facts["note"] and facts["note"] in said[1]
    plain = network(tmp_path)
    with pytest.raises(RuntimeError):
        plain.load_state_dict(load_file(tmp_path / "model.safetensors"))
    old = plain.get_submodule(place)
    mix = torch.nn.Conv2d(old.in_channels, old.in_channels, 1, bias=False)
    plug = torch.nn.Sequential(mix, torch.nn.BatchNorm2d(old.in_channels))
    plain.set_submodule(place, torch.nn.Sequential(plug, old))
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with pytest.raises(UserError, match="clp put layers into the network, which defense_result"):
        export._backdoorbench(tmp_path, tmp_path, found, stage, polarised)
    row = dict.fromkeys(purified.COUNTS, 1)
    purified.leave(tmp_path / "new", Chosen(polarised, row, None), stage, False, True)
    assert json.loads((tmp_path / "new/purified.json").read_text())["changed"] == facts["changed"]
    assert facts["note"] in caplog.text


def test_purified_weights_go_with_the_record_or_are_not_written(runs, cell, tmp_path):
    """`save=true` on a finished cell repairs again."""
    copied = tmp_path / "runs"
    shutil.copytree(runs, copied)
    folder = copied / cell.relative_to(runs)
    words = ["attack=badnets", "defense=clp", *QUICK, f"runs={copied}", "save=true"]
    kept = (folder / "record.json").read_text()
    record = json.loads(kept)
    other = {key: value for key, value in record.items() if key != "digest_record"} | {"hit": record["hit"] + 1}
    (folder / "record.json").write_text(json.dumps(other))
    status, said = bench(*words)
    assert status == 1 and "as on record" in said and not list(folder.glob("pur*")), said
    (folder / "record.json").write_text(kept)
    assert bench(*words)[0] == 0 and (folder / "record.json").read_text() == kept
    card = json.loads((folder / "purified.json").read_text())
    assert card["right"] == record["right"] and "note" not in card and not (folder / "error.txt").exists()


def test_onnx_gives_the_same_logits(cell, tmp_path):
    pytest.importorskip("onnxscript")
    said = export.export(cell, "onnx", tmp_path / "out")
    assert any("gives the same logits" in line for line in said)
    from onnx.reference import ReferenceEvaluator

    stage = stored.open_scene(found := stored.find(cell))
    model = stored.run_again(found, stage).chosen.model
    x = stage.data.test.x[:3].float() / 255  # another number of images than it was traced with
    (logits,) = ReferenceEvaluator(str(tmp_path / "out/model.onnx")).run(None, {"images": x.numpy()})
    assert torch.allclose(torch.from_numpy(logits), model(x), atol=1e-3)


def test_what_cannot_be_exported_is_one_sentence(cell, backdoor, runs, tmp_path, capsys):
    assert export.main([str(runs), "--format", "torch"]) == 1
    assert "neither a finished cell (record.json) nor a stored backdoor" in capsys.readouterr().err
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="is there already"):
        export.export(backdoor, "torch", tmp_path / "there")
    moved = tmp_path / "a/b/c/d/e" / cell.name
    shutil.copytree(cell, moved)
    with pytest.raises(UserError, match="it was moved, or the data set differs"):
        export.export(moved, "torch", tmp_path / "out")
    record = json.loads((moved / "record.json").read_text())
    (moved / "record.json").write_text(json.dumps(record | {"right": record["right"] + 1}))
    shutil.copytree(runs / "backdoors", tmp_path / "a/backdoors")
    with pytest.raises(UserError, match=r"this repair gives right \d+ and not \d+ as on record"):
        export.export(moved, "torch", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".tmp-*"))


def test_nothing_is_trained_for_a_look(cell, backdoor, tmp_path, monkeypatch):
    """What is damaged is named, with the command that makes it again; a clean model that is gone is not missed."""

    def train(*_, **__):
        raise AssertionError("trained")

    monkeypatch.setattr(victim, "fit", train)
    found = stored.find(cell)
    found.settings["gate"]["max_drop"] = 5.0
    assert stored.open_scene(found).clean is None
    monkeypatch.setattr(BadNets, "needs_clean", True)
    assert stored.open_scene(stored.find(backdoor)).clean is None
    copy = tmp_path / "runs/backdoors" / backdoor.relative_to(backdoor.parents[3])
    moved = tmp_path / "runs/digits/vgg5/badnets/clp" / cell.name
    shutil.copytree(backdoor, copy)
    shutil.copytree(cell, moved)
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-9] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    words = f"python bench/run.py dataset=digits model=vgg5 attack=badnets defense=none seed=2 save=true runs={tmp_path}/runs"
    for folder in (copy, moved):
        with pytest.raises(UserError, match=rf"s2-\w+ is damaged: the sha256 of model.safetensors .* {words},"):
            stored.open_scene(stored.find(folder))
    assert (copy / "model.safetensors").read_bytes() == content, "it stays for who may train"


@pytest.mark.parametrize("name", ["../../../../../victim/.config", "..", "a/b", "", "/etc", ".ssh", "a\nb", 5.5])
def test_a_record_does_not_say_where_to_write(name, cell, runs, tmp_path):
    changed = cell.with_name("s2-named")
    shutil.copytree(cell, changed, dirs_exist_ok=True)
    record = json.loads((cell / "record.json").read_text())
    (changed / "record.json").write_text(json.dumps(record | {"defense": [name] if name == 5.5 else name}))
    with pytest.raises(UserError, match="is no name of a part"):
        export.export(changed, "torch")


@pytest.mark.parametrize("place", ["/proc/nope/x", "FILE/x"])
def test_a_place_that_cannot_be_written_is_one_sentence(place, backdoor, tmp_path, capsys):
    (tmp_path / "FILE").touch()
    into = place.replace("FILE", str(tmp_path / "FILE"))
    assert export.main([str(backdoor), "--format", "torch", "--into", into]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {into} cannot be written: ") and said.count("\n") == 1


@pytest.mark.parametrize("form", ["torch", "safetensors", "backdoorbench"])
def test_a_full_disk_is_one_sentence(form, cell, tmp_path, capsys):
    """A limit on the size of files stands in for it: torch and safetensors have errors of their own for that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        assert export.main([str(cell), "--format", form, "--into", str(tmp_path / "out")]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert "out cannot be written: File too large: choose another" in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())


NINE = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10))
STRANGE = {
    "an alias of itself": "zz: &a [*a]",
    "aliases of aliases": f"a0: &a0 [x, x, x, x, x, x, x, x, x]\n{NINE}",
    "deep": "zz: " + "[" * 5000,
    "a number for the model": "model: 5",
    "a word for the data set": "dataset: digits",
    "no mapping": None,
}


@pytest.mark.parametrize("what", [*STRANGE, "a pipe", "large"])
def test_a_strangers_cell_is_read_as_data(what, cell, tmp_path):
    """In a moment, and refused in one sentence."""
    theirs = tmp_path / "runs/digits/vgg5/badnets/clp" / cell.name
    shutil.copytree(cell, theirs)
    file = theirs / ".hydra/config.yaml"
    if what == "a pipe":
        file.unlink()
        os.mkfifo(file)
    elif what == "no mapping":
        file.write_text("[1, 2]")
    else:
        said = STRANGE.get(what) or "zz: " + "x" * (1 << 17)
        file.write_text(re.sub(rf"(?m)^{said.partition(':')[0]}:.*\n(  .*\n)*", "", file.read_text()) + said + "\n")
    started = time.monotonic()
    with pytest.raises(UserError, match="is no finished cell of the bench: ") as caught:
        stored.find(theirs)
    assert time.monotonic() - started < 5 and len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_a_strangers_card_imports_nothing(backdoor, tmp_path, monkeypatch):
    """Whoever can write a card can write its digest as well."""
    copy = tmp_path / "runs/backdoors/digits/vgg5/badnets" / backdoor.name
    shutil.copytree(backdoor, copy)
    card = json.loads((copy / "card.json").read_text())
    card["from"]["dataset"]["_target_"] = "payload_of_theirs.Thing"
    digests = {key: value for key, value in card["sha256"].items() if key != "card"}
    card["sha256"] = digests | {"card": digest(card | {"sha256": digests})}
    (copy / "card.json").write_text(json.dumps(card))
    (tmp_path / "payload_of_theirs.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="none of the bench's own parts"):
        stored.find(copy)
    (copy / "model.safetensors").unlink()
    os.mkfifo(copy / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors is no ordinary file"):
        stored.find(copy)


@pytest.mark.parametrize(
    "target",
    ["os.system", "bench.files.write", "bench.data.np.save", "bench.datasets.Path", "bench.attacks.base.importlib.reload",
     "bench.nowhere.Thing", "bench.models.nothing", None, 3],
)  # fmt: skip
def test_settings_from_a_file_name_parts_of_the_bench_or_nothing(target, cell, runs, tmp_path):
    with pytest.raises(UserError, match="_target_="):
        parts.make({"_target_": target, "command": "touch here"})
    with pytest.raises(UserError, match="_target_="):
        parts.make(
            {"_target_": "bench.attacks.blend.Blend", "alpha": {"_target_": target}}, shape=(3, 8, 8), num_classes=2
        )


def test_a_changed_cell_is_refused(cell, runs):
    changed = cell.with_name("s2-changed")
    shutil.copytree(cell, changed)
    settings = yaml.safe_load((changed / ".hydra/config.yaml").read_text())
    settings["defense"]["_target_"] = "os.system"
    (changed / ".hydra/config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match="is not what its record"):
        export.export(changed, "torch")


def test_parts_are_built_as_hydra_builds_them():
    """Some defences and attacks of conf/: the same class with the same settings."""
    for group in ("attack", "defense"):
        for name in (attacks() if group == "attack" else choices(group))[::6]:
            node = plain(composed(f"{group}={name}"))[group]
            more = {"shape": [3, 32, 32], "num_classes": 10} if group == "attack" else {}
            ours, theirs = parts.make(node, **more), build(node, **more)
            assert type(ours) is type(theirs) and said(ours) == said(theirs), name


def said(thing) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", str(vars(thing)))
