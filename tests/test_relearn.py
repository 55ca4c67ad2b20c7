"""What is done with the model at the operating point: trained on with a few poisoned images, and made physically smaller."""

import copy
import json

import pytest
from cells import build, composed

from bench import config, dense
from bench.errors import UserError
from bench.metrics import evaluate
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
