"""A changed meaning cannot pass off old results as new, and each record says how equal a second run will be."""

import json
import shutil

import pytest
import torch
from cells import ROOT
from test_files import BASE
from torch import nn

from analysis import revisions
from analysis.load import load
from bench import config
from bench.attacks.base import Backdoor, Trigger
from bench.attacks.none import NoAttack
from bench.data import ImageSet
from bench.repeat import verdict

CELL = BASE | {"attack": {"_target_": "bench.attacks.wanet.WaNet"}, "defense": {"_target_": "bench.defenses.clp.CLP"}}


def keys(settings):
    return config.run_id(settings), json.dumps(config.backdoor_material(settings, "data"), sort_keys=True)


@pytest.mark.parametrize(("module", "model_too"), [("attacks.wanet", True), ("defenses.clp", False)])
def test_a_revision_is_part_of_the_keys_it_touches_and_revision_1_of_none(module, model_too, monkeypatch):
    cell, model = keys(CELL)
    assert "revisions" not in model
    monkeypatch.setitem(revisions.REVISIONS, "bench.attacks.other", 2)
    assert keys(CELL) == (cell, model)
    monkeypatch.setitem(revisions.REVISIONS, f"bench.{module}", 2)
    assert keys(CELL)[0] != cell and (keys(CELL)[1] != model) == model_too


def test_what_is_older_is_shown_as_stale_and_not_counted(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "tests/golden_runs/digits", tmp_path / "digits")
    before, _ = load(tmp_path)
    monkeypatch.setitem(revisions.REVISIONS, "bench.attacks.badnets", 2)
    new = next(tmp_path.glob("digits/vgg5/badnets/clp/s2-*/record.json"))
    new.write_text(json.dumps(json.loads(new.read_text()) | {"revisions": "bench.attacks.badnets=2"}))
    frame, problems = load(tmp_path)
    assert list(frame[frame.attack == "badnets"]["where"]) == [new.parent.relative_to(tmp_path).as_posix()]
    stale = [p for p in problems if p.kind == "stale"]
    assert len(stale) == (before.attack == "badnets").sum() - 1 > 0
    assert "made by revision 1 of bench.attacks.badnets, this version has 2: run the cell again" in stale[0].what
    monkeypatch.setattr(revisions, "PROTOCOL", 2)
    assert load(tmp_path)[0].empty and "protocol 1" in revisions.stale({"protocol": 1})


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) * torch.rand(1, generator=GENERATOR)


GENERATOR = torch.Generator()


@pytest.mark.parametrize(
    ("layer", "exact", "repeat"),
    [(nn.Linear, True, "bitwise"), (Noisy, True, "tolerance"), (nn.Linear, False, "tolerance")],
)
def test_repeat_is_checked_not_claimed(layer, exact, repeat):
    images = ImageSet(torch.randint(256, (9, 3, 4, 4), dtype=torch.uint8), torch.arange(9))
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), layer(48, 10))
    backdoor = Backdoor(model, Trigger(10), {"made": {"exact": exact}})
    assert verdict(NoAttack((3, 4, 4), 10), backdoor, images, "fp32") == repeat
