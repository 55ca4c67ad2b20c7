"""Models from elsewhere, end to end: the same model gives the same counts in every form, and a stranger's is purified."""

import json
import shutil
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from cells import build, composed
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file
from test_bench import bench, records

from bench import config
from bench.attacks.badnets import CHECKER
from bench.backdoorbench import write as export_backdoorbench
from bench.cli import words
from bench.data import stream
from bench.errors import UserError
from bench.metrics import accuracy
from bench.scene import repair, scene

EP = "vgg_badnets_3_0.1_0.pth"
QUICK = ["train.epochs=3", "gate.max_drop=null"]


def settings_of(runs, *words, checkpoint=None):
    settings = OmegaConf.to_container(composed(*QUICK, f"runs={runs}", *words), resolve=True)
    settings["model"]["checkpoint"] = None if checkpoint is None else str(checkpoint)
    return settings


def stage(runs, attack, *words, checkpoint=None, defense=None):
    settings = settings_of(runs, f"attack={attack}", *words, checkpoint=checkpoint)
    config.check(settings)
    names = {"dataset": "digits", "model": "vgg5", "attack": attack}
    return scene(settings, names, build, defense)


@contextmanager
def one_sentence(words):
    """A UserError that says so, also inside the error that Hydra makes of it."""
    with pytest.raises((UserError, InstantiationException)) as caught:
        yield
    error = caught.value if isinstance(caught.value, UserError) else caught.value.__cause__
    assert isinstance(error, UserError) and words in str(error) and "\n" not in str(error), error


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def direct(runs):
    return stage(runs, "badnets")


@pytest.fixture(scope="module")
def along(direct):
    """The counts along its whole curve under CLP."""
    return counted(repair(direct, build(composed("defense=clp").defense)))


@pytest.fixture
def forms(direct, tmp_path):
    """Writes the model in a form, and returns the file and the attack that reads it."""
    return partial(write, direct, tmp_path)


def ours(made, folder, state):
    shutil.copytree(next(Path(made.settings["runs"]).glob("backdoors/digits/vgg5/badnets/s*/")), folder / "ours")
    return folder / "ours/model.safetensors", "imported"


def plain(made, folder, state):
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, folder / "ddp.pt")
    return folder / "ddp.pt", "badnets"


def rnp(made, folder, state):
    torch.save({"epoch": 9, "state_dict": state, "clean_acc": 99.0, "bad_acc": 99.0, "optimizer": {}}, folder / "m.tar")
    return folder / "m.tar", "badnets"


def anp(made, folder, state):
    trigger = made.backdoor.trigger
    shown = {f"trigger_{part}": getattr(trigger, part).permute(1, 2, 0)[None].numpy().astype(np.uint8)
             for part in ("pattern", "mask")}  # fmt: skip
    shown["trigger_mask"] = shown["trigger_mask"][..., :1]
    more = {"trigger_alpha": 1.0, "poison_target": np.array([0]), "data_index": np.arange(9)}
    torch.save(shown | more, folder / "trigger_info.th")
    torch.save(state, folder / "model_last.th", _use_new_zipfile_serialization=False)
    return folder / "model_last.th", "imported"


def ep(made, folder, state):
    torch.save({"state_dict": state, "trigger": CHECKER.float().repeat(3, 1, 1)}, folder / EP)
    return folder / EP, "imported"


def part(images, labels, wanted, index, count, folder):
    table = {}
    for image, label, after, at in zip(images, labels, wanted, index, strict=True):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{at}.png")
        table[np.int64(at)] = {
            "path": f"./record/x/{folder.name}/{label}/{at}.png",
            "other_info": [after, np.int64(label)],
        }
    indicator = np.zeros(count)
    indicator[index] = 1
    container = {"save_folder_path": f"./record/x/{folder.name}", "data_dict": table, "save_file_format": ".png"}
    return {"bd_data_container": container, "getitem_all": True, "getitem_all_switch": False,
            "original_index_array": np.array(index), "poison_indicator": indicator,
            "save_folder_path": f"./record/x/{folder.name}"}  # fmt: skip


def backdoorbench(made, folder, state):
    test, train, trigger = made.data.test, made.data.train, made.backdoor.trigger
    index = (test.y != 0).nonzero().flatten()
    bd_test = part(trigger.stamp(test.x[index]), test.y[index].tolist(), [0] * len(index), index.tolist(), len(test),
                   folder / "bd_test_dataset")  # fmt: skip
    bd_train = part(trigger.stamp(train.x[:20]), train.y[:20].tolist(), [0] * 20, list(range(20)), 100,
                    folder / "bd_train_dataset")  # fmt: skip
    content = {"model_name": "vgg5", "num_classes": 10, "model": state, "data_path": "./data/digits", "img_size": (16, 16, 3),
               "clean_data": "digits", "bd_train": bd_train, "bd_test": bd_test}  # fmt: skip
    torch.save(content, folder / "attack_result.pt")
    return folder / "attack_result.pt", "imported"


def exported(made, folder, state):
    """As this bench itself exports it."""
    (folder / "record_x").mkdir()
    export_backdoorbench(folder / "record_x", "record_x", {"dataset": "digits", "model": "vgg5"}, made, None)
    return folder / "record_x/attack_result.pt", "imported"


def defense_result(made, folder, state):
    torch.save({"model_name": "vgg5", "num_classes": 10, "model": state}, folder / "defense_result.pt")
    return folder / "defense_result.pt", "badnets"


FORMS = {f.__name__: f for f in (ours, plain, rnp, anp, ep, backdoorbench, exported, defense_result)}


def write(made, folder, form):
    state = {name: tensor.clone() for name, tensor in made.backdoor.model.state_dict().items()}
    return FORMS[form](made, folder, state)


def counted(outcome):
    return [{k: v for k, v in row.items() if k != "layers"} for row in outcome.rows]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_model_gives_the_same_counts_in_every_form(form, forms, direct, along, runs):
    """Before a defence, and along its whole curve; no clean model is trained for it."""
    file, attack = forms(form)
    clp = build(composed("defense=clp").defense)
    there = stage(runs, attack, "gate.max_drop=5", checkpoint=file, defense=clp)
    assert there.before == direct.before and there.before.hit > 400
    assert there.exam.triggered.x.equal(direct.exam.triggered.x) and there.clean is None
    assert counted(repair(there, clp)) == along
    again = stage(runs, attack, "gate.max_drop=5", checkpoint=file)
    assert again.backdoor.name == there.backdoor.name and again.before == direct.before, "and again from the store"
    if form == "ours":
        assert again.backdoor.card["poison"] == direct.backdoor.card["poison"]
        assert there.attack.poison_rate == direct.backdoor.card["poison"]["poison_rate"]
    if form == "backdoorbench":
        assert again.backdoor.card["poison"] == {"poisoned": 20, "poison_base": 100, "poison_rate": 0.2}
        mix = there.attack.mix(direct.data.train, 50, stream(2, "poison"))
        stamped = {image.numpy().tobytes() for image in direct.backdoor.trigger.stamp(direct.data.train.x[:20])}
        assert len(mix) == 50 and [image.numpy().tobytes() in stamped for image in mix.x] == [True] * 10 + [False] * 40
        assert mix.y[:10].eq(0).all()
        with one_sentence("only known as pictures"):
            there.backdoor.trigger.stamp(direct.data.train.x[:2])


def test_an_identity_is_of_what_is_in_a_file_not_of_where_it_lies(forms, runs, tmp_path):
    without = settings_of(runs)
    plain_id = config.run_id({k: v for k, v in without.items() if k != "save"} | {"model": config.network(without)})
    assert config.run_id(without) == plain_id, "cells made before there were such settings keep their ids"
    file, _ = forms("anp")
    other = tmp_path / "elsewhere"
    other.mkdir()
    for name in ("model_last.th", "trigger_info.th"):
        shutil.copy(tmp_path / name, other / name)

    def ids(path, attack):
        config.fingerprint.cache_clear()
        return config.run_id(settings_of(runs, f"attack={attack}", checkpoint=path))

    here = {attack: ids(file, attack) for attack in ("imported", "unknown")}
    assert here == {attack: ids(other / "model_last.th", attack) for attack in here}
    (other / "trigger_info.th").write_bytes(b"another")
    assert ids(other / "model_last.th", "imported") != here["imported"]
    assert ids(other / "model_last.th", "unknown") == here["unknown"], "its neighbours are not asked"
    (other / "model_last.th").write_bytes(b"another")
    assert ids(other / "model_last.th", "unknown") != here["unknown"]


def test_images_that_kept_their_labels_are_not_made_anew(direct, runs, tmp_path):
    """Their trigger says nothing of which they were, and puts others into the target class."""
    make = spoiled("ours", CARD, put("from", "attack", "victims", to="target"))
    file, attack = make(direct, tmp_path, direct.backdoor.model.state_dict())
    there = stage(runs, attack, checkpoint=file)
    assert there.before == direct.before
    with one_sentence("run the defence where the model was trained"):
        there.attack.mix(there.data.train, 50, 0)


def test_poisoned_training_images_of_no_class_are_named(direct, runs, tmp_path):
    make = spoiled("backdoorbench", "attack_result.pt", wanting(11, "bd_train"))
    file, attack = make(direct, tmp_path, direct.backdoor.model.state_dict())
    there = stage(runs, attack, checkpoint=file)
    with one_sentence("bd_train has classes outside 0 to 9"):
        there.attack.mix(there.data.train, 50, 0)


def test_a_trigger_that_was_learned_must_come_with_the_model(direct, runs, tmp_path):
    state = direct.backdoor.model.state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "model.safetensors")
    with one_sentence("InputAware is learned while it attacks"):
        stage(runs, "inputaware", checkpoint=tmp_path / "model.safetensors")
    with one_sentence("comes without a trigger"):
        stage(runs, "imported", checkpoint=tmp_path / "model.safetensors")
    save_file({"pattern": torch.zeros(3)}, tmp_path / "trigger.safetensors")
    config.fingerprint.cache_clear()
    with one_sentence("not a trigger of BadNets"):
        stage(runs, "badnets", checkpoint=tmp_path / "model.safetensors")


def spoiled(form, name, change):
    """That form with the content of one of its files changed."""

    def make(made, folder, state):
        file, attack = FORMS[form](made, folder, state)
        path = folder / name
        if path.suffix == ".json":
            card = json.loads(path.read_text())
            change(card)
            path.write_text(json.dumps(card))
        elif path.is_dir():
            change(path)
        else:
            content = torch.load(path, weights_only=False)
            torch.save(change(content) or content, path)
        return file, attack

    return make


def put(*path, to):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return change


def wanting(label, part="bd_test"):
    """As `put`: every triggered image is to be of this class."""

    def change(content):
        for row in content[part]["bd_data_container"]["data_dict"].values():
            row["other_info"][0] = label

    return change


CARD = "ours/card.json"
SPOILED = {
    "a card that names a program": (spoiled("ours", CARD, put("from", "attack", to={"_target_": "os.system", "command": "x"})),
                                    "none of the bench's own parts"),
    "a card that names another class": (spoiled("ours", CARD, put("from", "attack", to={"_target_": "bench.data.Augment"})),
                                        "does not take these settings"),
    "a card with a strange setting": (spoiled("ours", CARD, put("from", "attack", "more", to=1)), "does not take these settings"),
    "a card with a strange part": (spoiled("ours", CARD, put("from", "attack", "alpha", to={"_target_": "os.system"})),
                                   "none of the bench's own parts"),
    "a card that is none": (spoiled("ours", CARD, put("from", to=[])), "names no attack"),
    "a card of an import": (spoiled("ours", CARD, put("from", "attack", "_target_", to="bench.attacks.imported.Imported")),
                            "was itself imported"),
    "a pattern of another size": (spoiled("anp", "trigger_info.th", put("trigger_pattern", to=np.zeros((1, 9, 9, 3), np.uint8))),
                                  "no trigger for images of 3x16x16"),
    "no target": (spoiled("anp", "trigger_info.th", lambda c: c.pop("poison_target") and None), "poison_target"),
    "a target that is not there": (spoiled("anp", "trigger_info.th", put("poison_target", to=np.array([10]))), "target=10"),
    "two targets": (spoiled("anp", "trigger_info.th", put("poison_target", to=np.array([0, 1]))), "too many values"),
    "a mask of nothing": (spoiled("anp", "trigger_info.th", put("trigger_mask", to=np.zeros((1, 16, 16, 1), np.uint8))), "zeros"),
    "a pattern out of range": (spoiled("anp", "trigger_info.th",
                                       put("trigger_pattern", to=np.full((1, 16, 16, 3), 256.0))), "0 and 255"),
    "no indicator": (spoiled("backdoorbench", "attack_result.pt", lambda c: c["bd_train"].__delitem__("poison_indicator")),
                     "no bd_train as"),
    "an odd indicator": (spoiled("backdoorbench", "attack_result.pt", put("bd_train", "poison_indicator",
                                                                               to=np.full(100, np.nan))),
                         "more than 0 and 1"),
    "a class that is not there": (spoiled("backdoorbench", "attack_result.pt", wanting(11)), "classes outside 0 to 9"),
    "a mask of more": (spoiled("anp", "trigger_info.th", put("trigger_mask", to=np.full((1, 16, 16, 1), 7, np.uint8))), "mask"),
    "a trigger that is no square": (spoiled("ep", EP, put("trigger", to=torch.rand(3, 3, 4))), "no square"),
    "a trigger out of range": (spoiled("ep", EP, put("trigger", to=torch.full((3, 3, 3), 7.0))), "outside"),
    "no pictures": (spoiled("backdoorbench", "bd_test_dataset", shutil.rmtree), "not beside it"),
    "a picture less": (spoiled("backdoorbench", "bd_test_dataset", lambda folder: next(folder.rglob("*.png")).unlink()),
                       "is missing"),
    "other test images": (spoiled("backdoorbench", "attack_result.pt",
                                  put("bd_test", "original_index_array", to=np.array([10**6]))), "no bd_test as"),
    "the first version": (spoiled("backdoorbench", "attack_result.pt", put("bd_test", to={"x": [], "y": []})), "no bd_test as"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_companion_is_one_sentence(name, direct, runs, tmp_path):
    make, words = SPOILED[name]
    file, attack = make(direct, tmp_path, direct.backdoor.model.state_dict())
    with one_sentence(words):
        stage(runs, attack, checkpoint=file)


@pytest.mark.parametrize(
    ("form", "word", "says"),
    [
        ("anp", "attack.target=3", "says 0"),
        ("backdoorbench", "attack.target=3", "says 0"),
        ("backdoorbench", "attack.poison_rate=0.1", "says 0.2"),
        ("backdoorbench", "attack.alpha=0.5", "only known as pictures"),
        ("ep", "attack.poison_rate=1.5", "at most 1"),
        ("ep", "attack.poison_rate=0.0", "above 0"),
    ],
)
def test_a_setting_that_the_file_answers_is_not_passed_over(form, word, says, forms, runs):
    file, attack = forms(form)
    with one_sentence(says):
        stage(runs, attack, word, checkpoint=file)


def test_pictures_of_other_images_are_noticed(forms, direct, runs, tmp_path):
    """Their true classes are not those of the data set's test images: the order is another."""
    file, _ = forms("backdoorbench")
    content = torch.load(file, weights_only=False)
    table = content["bd_test"]["bd_data_container"]["data_dict"]
    one = next(iter(table))
    label = int(table[one]["other_info"][1])
    table[one]["other_info"][1] = label % 9 + 1
    moved = tmp_path / "bd_test_dataset" / str(label % 9 + 1)
    shutil.copy(tmp_path / "bd_test_dataset" / str(label) / f"{one}.png", moved / f"{one}.png")
    torch.save(content, file)
    config.fingerprint.cache_clear()
    with one_sentence("of other test images"):
        stage(runs, "imported", checkpoint=file)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("defense=ep", "clean.mix=100"), "needs poisoned images, which attack=unknown cannot give"),
        (("defense=oracle",), "needs the trigger, which attack=unknown cannot give"),
        (("defense=clp", "selection.rule=oracle"), "oracle goes by ASR"),
    ],
    ids=str,
)
def test_what_cannot_be_done_for_a_stranger_is_one_sentence(words, says, forms, runs):
    file, _ = forms("plain")
    with one_sentence(says):
        stage(runs, "unknown", *words, checkpoint=file, defense=build(composed(*words).defense))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("attack=unknown", "give model.checkpoint=FILE"),
        ("attack=unknown model.checkpoint=nowhere.pt", "model.checkpoint=nowhere.pt is no file"),
        ("attack=unknown model.chekpoint=x", "did you mean 'checkpoint'"),
    ],
)
def test_a_wrong_command_is_one_sentence(words, says, tmp_path):
    status, said = bench(*words.split(), *QUICK, f"runs={tmp_path}")
    assert status == 1 and says in said and "Traceback" not in said, said


def test_a_suspicious_model_is_purified(forms, direct, tmp_path):
    """What is unknown is said to be, never 0; the weights written are those that were measured, and say what was pruned."""
    file, _ = forms("plain")
    runs, before = tmp_path / "runs", set(tmp_path.iterdir())
    typed = ["attack=unknown", f"model.checkpoint={file}", "defense=clp", "threads=1", f"runs={runs}"]
    status, said = bench(*typed)
    assert status == 0, said
    assert said.count("unknown") > 6 and "ASR and RA unknown" in said
    (record,) = records(runs)
    assert record["acc_before"] == direct.before.acc and record["triggered"] is None and record["took"] is None
    unknown = [
        k for k in record if k.startswith(("asr", "ra_", "hit", "robust", "der")) or k == "ra" or k.endswith("_oracle")
    ]
    assert len(unknown) > 20 and all(record[key] is None for key in unknown)
    (folder,) = runs.glob("digits/vgg5/unknown/clp/s*")
    safe, plain = load_file(folder / "purified.safetensors"), torch.load(folder / "purified.pt", weights_only=True)
    assert safe.keys() == plain.keys() and all(safe[name].equal(plain[name]) for name in safe)
    model = direct.backdoor.model
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        model.load_state_dict(plain)
        assert accuracy(model, direct.data.test) == record["acc"]
    finally:
        model.load_state_dict(kept)
    pruned = [line.split(",") for line in (folder / "pruned.csv").read_text().splitlines()[1:]]
    assert len(pruned) == record["pruned"] > 0
    assert all(safe[f"{layer}.weight"][int(channel)] == 0 for layer, channel in pruned)
    for name in ("purified.pt", "purified.safetensors"):
        again = stage(tmp_path / "again", "unknown", checkpoint=folder / name)
        assert again.before.acc == record["acc"], "what was written can be read again"
    assert set(tmp_path.iterdir()) - before == {runs, tmp_path / "again"}
    (folder / "purified.pt").unlink(), (folder / "purified.safetensors").unlink()
    assert "done already" not in bench(*typed)[1] and (folder / "purified.pt").exists(), (
        "what was lost is written again"
    )
    status, said = bench(*typed)
    assert status == 0 and "done already" in said and len(records(runs)) == 1


@pytest.mark.parametrize(
    ("typed", "added"),
    [
        ("attack=unknown dataset.root=DIR", True),
        ("dataset=cifar10 dataset.root=DIR", False),
        ("experiment=clp dataset.root=DIR", False),
        ("attack=unknown", False),
    ],
)
def test_a_folder_for_a_data_set_is_an_image_folder(typed, added):
    assert words(typed.split()) == [*typed.split(), *(["dataset=imagefolder"] if added else [])]
