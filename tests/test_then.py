"""`then=ft`: one word that adds fine-tuning to any pruner, and is seen in a cell's id and in the tables."""

import csv
import io
import shutil

import pytest
import torch
from cells import ROOT, build, choices, composed, shrink
from omegaconf import OmegaConf
from test_analysis import GOLDEN, cells, set_line
from torch import nn

from analysis import tables
from analysis.settings import name_variants
from bench import config
from bench.data import Augment, Defender, ImageSet
from bench.defenses.base import PruningDefense
from bench.errors import UserError
from bench.pruning import Sweep, Threshold
from bench.training import Plan

PRUNERS = [name for name in choices("defense") if "rule:" in (ROOT / f"conf/defense/{name}.yaml").read_text()]
FT = Plan(epochs=100, batch_size=256, lr=0.01, momentum=0.9, weight_decay=5e-4, schedule="cosine")


def plain(*words: str) -> dict:
    cfg = composed(*words)
    nodes = {key: cfg[key] for key in cfg}
    return {k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in nodes.items()}


@pytest.mark.parametrize(
    ("name", "dataset"), [*((name, "digits") for name in PRUNERS), ("clp", "cifar10"), ("fmp", "cifar10")]
)
def test_it_composes_for_every_pruner(name, dataset):
    words = [f"defense={name}", f"dataset={dataset}"]
    with_it, without = plain(*words, "then=ft"), plain(*words, "++defense.then=null")
    config.check(with_it)
    assert config.run_id(with_it) != config.run_id(without)
    assert build(with_it["defense"]).then == build(composed("defense=ft", f"dataset={dataset}").defense).tune
    assert {k: v for k, v in with_it["defense"].items() if k != "then"} == {
        k: v for k, v in without["defense"].items() if k != "then"
    }
    assert config.backdoor_material(with_it, "") == config.backdoor_material(without, "")


def test_its_settings_are_those_of_ft():
    tune = build(composed("defense=ft", "dataset=cifar10").defense).tune
    assert tune == FT


def test_a_defence_that_does_not_prune_refuses_it():
    with pytest.raises(UserError, match=r"defense\.then is not a setting"):
        config.check(plain("defense=ft", "then=ft"))


def test_no_group_of_the_bench_is_disturbed():
    assert "then" not in choices("defense") and choices("then") == ["ft"]
    assert (ROOT / "conf/then/ft.yaml").read_text().startswith("# @package defense.then\n")


# -- what it does ------------------------------------------------------------------------------------------------------
class First(PruningDefense):
    """Prunes the first channel, then the first two."""

    def score(self, model, data):
        return {"1": torch.tensor([3.0, 2.0, 1.0])}


class Loose(First):
    """One whose cut is only a start, with an objective of its own."""

    holds = False

    def objective(self, model, x, y):
        logits = model(x)
        return logits.square().mean(), logits


def tuned(kind, **more):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 3))
    nn.init.ones_(model[1].bias)  # so that a channel without weight still has a slope
    rng = torch.Generator().manual_seed(0)
    images = ImageSet(torch.randint(256, (12, 1, 8, 8), dtype=torch.uint8, generator=rng), torch.arange(12) % 3)
    defence = kind(Threshold(3.0), Sweep("at", (2.0,)), ["weight"], Plan(epochs=3, batch_size=4, lr=0.01, **more))
    candidates = defence.repair(model, Defender(images, (1, 8, 8), 3, Augment(), 0)).candidates
    return model, [(c.pruned, c.model) for c in candidates]


def test_every_point_is_fine_tuned_by_itself_and_what_is_pruned_stays_pruned():
    model, points = tuned(First)
    assert [pruned for pruned, _ in points] == [0, 1, 2]
    assert points[0][1][4].weight.equal(model[4].weight)
    for pruned, repaired in points[1:]:
        assert (repaired[1].weight == 0).tolist() == [i < pruned for i in range(3)]
        assert not repaired[4].weight.equal(model[4].weight)


def test_it_trains_on_the_clean_images_moved_as_the_data_set_says(monkeypatch):
    seen = []
    monkeypatch.setattr("bench.defenses.base.fit", lambda model, *args, **more: seen.append((*args, more)))
    images = ImageSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4) % 3)
    data = Defender(images, (1, 8, 8), 3, Augment(1, True), 7)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    list(First(Threshold(3.0), Sweep("at", (2.0,)), ["weight"], FT).repair(model, data).candidates)
    assert len(seen) == 2
    for where, plan, more in seen:
        assert where is images and plan is FT and (more["seed"], more["augment"]) == (7, data.augment)


def test_a_method_may_let_it_grow_back_and_have_an_objective_of_its_own():
    model, points = tuned(Loose)
    for _, repaired in points[1:]:
        assert (repaired[1].weight != 0).all()
        assert repaired[4].weight.norm() < model[4].weight.norm()  # small logits were what it asked for


@pytest.mark.parametrize("name", ["clp", "magnitude"])
def test_a_pruner_without_data_sees_clean_images_then(name):
    """On the embedded data, from the command line's own config: with fine-tuning it is no defence without data."""
    data = build(composed().dataset)
    cfg = shrink(composed(f"defense={name}", "then=ft", "defense.sweep.points=[2,4]"))
    defence = build(cfg.defense)
    assert (defence.needs, build(composed(f"defense={name}").defense).needs) == ("clean", "nothing")
    torch.manual_seed(0)
    model = build(cfg.model, num_classes=10, channels=data.shape[0]).eval()
    for parameter in model.parameters():  # no two weights alike
        parameter.data += 0.1 * torch.rand_like(parameter)
    defender, _ = data.defender(50, 50, 0, defence.needs)
    repaired = defence.repair(model, defender)
    last = list(model.parameters())[-1]
    moved = [not list(c.model.parameters())[-1].equal(last) for c in repaired.candidates]
    assert moved == [False] + [True] * (len(moved) - 1) and len(moved) > 2


# -- where it is seen --------------------------------------------------------------------------------------------------
def test_the_tables_keep_it_apart_and_name_it(tmp_path):
    """Two cells of one seed, of which one was fine-tuned, are two rows, not one mean."""
    shutil.copytree(GOLDEN / "digits", tmp_path / "digits")
    (folder,) = cells(tmp_path, "blend", "clp", 2)
    other = folder.with_name("s2-other")
    shutil.copytree(folder, other)
    plan = "".join(f"    {k}: {v}\n" for k, v in (("_target_", "bench.training.Plan"), ("epochs", 100), ("lr", 0.01)))
    set_line(other, "  pairing: dataflow\n", f"  pairing: dataflow\n  then:\n{plan}")
    rows = csv.DictReader(io.StringIO(tables.make(tmp_path, "fixed")[0]["table.csv"]))
    assert {r["settings"] for r in rows if r["defense"] == "clp"} == {"defense.then=set", "defense.then=unset"}


def test_a_node_that_only_some_have_is_one_setting():
    bare, plan = {"a": "1"}, {"a": "1", "then.lr": "1", "then.epochs": "2", "then.x.y": "3", "then.x.z": "4"}
    assert name_variants([bare, plan]) == ["then=unset", "then=set"]
    assert name_variants([bare | {"then": "null"}, plan]) == ["then=null", "then=set"]
    assert name_variants([plan, plan | {"then.lr": "5"}]) == ["then.lr=1", "then.lr=5"]
    assert name_variants([{}, bare, plan]) == ["settings unknown", "then=unset", "then=set"]
    three = name_variants([bare, plan, plan | {"then.lr": "5"}])  # two plans: not one setting
    assert len(set(three)) == 3 and "then=set" not in three
