"""What is done with the model at the operating point: trained on with a few poisoned images, and made physically smaller."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from cells import build, composed
from torch import nn

from bench import config, dense
from bench.chosen import Chosen
from bench.data import ImageSet
from bench.errors import UserError
from bench.metrics import Metrics, evaluate
from bench.plan import Plan
from bench.relearn import Relearn, held
from bench.run import plain, run
from bench.scene import repair, scene
from bench.training import fit

TYPED = ["defense=clp", "train.epochs=2", "threads=1", "clean.tune=40", "clean.select=40"]
NAMES = {"dataset": "digits", "model": "vgg5", "attack": "badnets", "defense": "clp"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def stage(runs):
    return scene(plain(composed(*TYPED, f"runs={runs}")), NAMES, build)


def relearn(counts=(1, 4), **options):
    return Relearn(Plan(epochs=3, batch_size=16, lr=0.05), counts, **options)


def test_the_poisoned_images_are_training_images_with_the_trigger(stage):
    """Of other classes than the target; those for a smaller k are among those for a larger one."""
    few, many = relearn((3,)).poisoned(stage, 5), relearn((2, 9)).poisoned(stage, 5)
    trigger, train = stage.backdoor.trigger, stage.data.train
    assert len(few) == 3 and len(many) == 9 and many.x[:3].equal(few.x)
    assert (many.y == trigger.target).all()
    able = train.x[train.y != trigger.target]
    stamped = trigger.stamp(able)
    for image in many.x:
        place = (stamped == image).flatten(1).all(1)
        assert place.any() and not able[place].equal(stamped[place])
    assert not relearn((3,)).poisoned(stage, 6).x.equal(few.x)


def test_each_training_starts_anew_from_the_model_at_the_operating_point(stage):
    """With the images that a defence has which needs some, and the clean model beside it as control."""
    made = repair(stage, build(composed(*TYPED).defense), keep=True)
    before = copy.deepcopy(made.chosen.model.state_dict())
    check = relearn((4,))
    columns = check.columns(stage, made.chosen)
    assert check.images(stage).x.equal(stage.hand(build(composed("defense=ft").defense))[0].clean.x)
    names = {f"relearn_asr_{start}{k}" for start in ("", "control_") for k in ("clean", "k4")}
    assert {name for name in columns if "asr" in name} == names and columns["relearn_images"] == 40
    assert check.columns(stage, made.chosen) == columns
    assert all(value.equal(before[key]) for key, value in made.chosen.model.state_dict().items())
    plenty = relearn((200,), control=False).columns(stage, made.chosen)
    assert plenty["relearn_asr_clean"] == columns["relearn_asr_clean"] and not any("control" in name for name in plenty)
    assert plenty["relearn_asr_k200"] > 90 > plenty["relearn_asr_clean"]


def test_what_is_held_stays_zero(stage):
    model, old = copy.deepcopy(stage.backdoor.model), stage.backdoor.model
    norm = model.features[1]
    norm.weight.data[:3], norm.bias.data[:3] = 0, 1  # behind ReLU these still pass a gradient on
    fit(model, stage.data.heldout, Plan(epochs=1, lr=0.1), seed=0, after_step=held(model, old))
    assert (norm.weight[:3] == 0).all() and not norm.weight[3:].equal(old.features[1].weight[3:])
    fit(model, stage.data.heldout, Plan(epochs=1, lr=0.1), seed=0)
    assert (norm.weight[:3] != 0).all()


def test_each_column_is_of_its_own_model_and_its_own_images(monkeypatch):
    """Each number of poisoned images goes beside all the clean ones; the control is the clean model."""

    class Noted(Relearn):
        def images(self, stage):
            return ImageSet(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5))

        def poisoned(self, stage, seed):
            return ImageSet(torch.ones(4, 1, 2, 2, dtype=torch.uint8), torch.full((4,), 9))

        def trained(self, model, images, stage, seed):
            assert images.y.tolist() == [0, 1, 2, 3, 4] + [9] * (len(images) - 5)
            assert images.x.flatten(1).amax(1).tolist() == [0] * 5 + [1] * (len(images) - 5)
            return model, len(images)

    def evaluated(trained, exam):
        model, count = trained
        return Metrics(100, count, 100, {"mine": 10, "clean": 20}[model] + count, 50 + count)

    monkeypatch.setattr("bench.relearn.evaluate", evaluated)
    stage = SimpleNamespace(settings={"seed": 3}, clean=SimpleNamespace(model="clean"), exam=None)
    columns = Noted(Plan(), (3, 1, 3)).columns(stage, Chosen("mine", {}, None))
    wanted = {"relearn_hold": False, "relearn_images": 5}
    for start, hits in (("", 10), ("control_", 20)):
        for word, count in (("clean", 5), ("k1", 6), ("k3", 8)):
            values = {"acc": count, "asr": hits + count, "ra": 50 + count}
            wanted |= {f"relearn_{name}_{start}{word}": value for name, value in values.items()}
    assert columns == wanted
    stage.clean = None
    assert not any("control" in name for name in Noted(Plan(), ()).columns(stage, Chosen("mine", {}, None)))


@pytest.mark.parametrize("hold", [True, False])
def test_what_pruning_set_to_0_is_held_only_where_it_is_asked_for(hold):
    """In a copy; and what was 0 in the backdoored model already may grow."""
    torch.manual_seed(0)
    before = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    before[1].weight.data[2, 0] = 0
    chosen = copy.deepcopy(before)
    chosen[1].weight.data[0] = 0
    kept = copy.deepcopy(chosen.state_dict())
    images = ImageSet(torch.arange(48, dtype=torch.uint8).view(12, 1, 2, 2) * 5, torch.arange(12) % 3)
    stage = SimpleNamespace(backdoor=SimpleNamespace(model=before), data=SimpleNamespace(augment=None))
    found = Relearn(Plan(epochs=2, batch_size=4, lr=0.1), (), hold).trained(chosen, images, stage, 0)
    assert found is not chosen and all(value.equal(kept[key]) for key, value in chosen.state_dict().items())
    assert bool((found[1].weight[0] == 0).all()) == hold and found[1].weight[2, 0] != 0
    assert not found[1].weight[1].equal(kept["1.weight"][1])


def test_what_cannot_be_tried_is_one_sentence(stage):
    with pytest.raises(UserError, match=r"check.counts=\[0\] must be whole numbers above 0"):
        relearn((0,))
    with pytest.raises(UserError, match=r"check.counts asks for 9999 poisoned images, but only \d+ can be made"):
        relearn((1, 9999)).fits(stage)


def test_a_cell_with_both_leaves_columns_and_a_network_that_gives_the_recorded_numbers(stage, runs, tmp_path):
    """The dense network, built again from disk, has the ACC, ASR and RA of the record to the last image."""
    cfg = composed(
        *TYPED, f"runs={runs}", "check=relearn", "check.counts=[2]", "check.tune.epochs=1", "make_dense=true"
    )
    settings = plain(cfg)
    config.check(settings)
    record = run(cfg, settings, tmp_path, NAMES | {"tracker": "none"})
    assert json.loads((tmp_path / "record.json").read_text())["relearn_asr_k2"] == record["relearn_asr_k2"]
    assert record["dense_channels"] < record["dense_channels_before"] == 266
    assert record["dense_parameters"] < record["dense_parameters_before"]
    small = dense.load(tmp_path / "dense", copy.deepcopy(stage.backdoor.model))
    metrics = evaluate(small, stage.exam)
    assert sum(p.numel() for p in small.parameters()) == record["dense_parameters"]
    assert (metrics.right, metrics.hit, metrics.robust) == (record["right"], record["hit"], record["robust"])


def test_new_settings_at_their_defaults_leave_the_names_of_stored_cells():
    settings = plain(composed(*TYPED))
    older = {key: value for key, value in settings.items() if key != "make_dense"}
    assert "check" not in settings and config.run_id(settings) == config.run_id(older)
    ids = {config.run_id(plain(composed(*TYPED, *more))) for more in ([], ["make_dense=true"], ["check=relearn"])}
    assert len(ids) == 3
