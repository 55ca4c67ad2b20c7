"""The API gives the numbers of a cell, and the examples of docs/api.md run as they stand."""

import copy
import json
import re
import subprocess
import sys

import pytest
import torch
from cells import ROOT
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from bench.api import evaluate, load_backdoor, repair
from bench.errors import UserError

QUICK = ["train.epochs=2", "threads=1", "gate.max_drop=null"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = tmp_path_factory.mktemp("lab")
    command = [
        sys.executable,
        str(ROOT / "bench/run.py"),
        "attack=badnets",
        "defense=clp",
        *QUICK,
        f"runs={lab / 'runs'}",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return lab


@pytest.fixture(scope="module")
def victim(lab):
    return load_backdoor(next(lab.glob("runs/backdoors/digits/vgg5/badnets/s2-*")), device="cpu")


def test_the_examples_run_as_they_stand(lab, monkeypatch):
    monkeypatch.chdir(lab)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text(), re.DOTALL)
    space: dict = {}
    for block in blocks:
        exec(block, space)
    assert len(blocks) == 6 and space["facts"]["channels"][1] < space["facts"]["channels"][0]


def test_a_repair_is_that_of_the_cell(lab, victim):
    """The same point, the same counts; and the model handed over is not touched."""
    record = json.loads(next(lab.glob("runs/digits/vgg5/badnets/clp/*/record.json")).read_text())
    before = {key: value.clone() for key, value in victim.model.state_dict().items()}
    result = repair(victim.model, "clp", *victim.clean_images(100, 100), preset="digits", max_drop=5.0)
    metrics = evaluate(result.model, victim)
    assert (metrics.right, metrics.hit, metrics.robust) == tuple(record[key] for key in ("right", "hit", "robust"))
    assert (result.point["at"], result.point["pruned"], result.point["select_acc"]) == tuple(
        record[key] for key in ("at", "pruned", "select_acc")
    )
    assert all(value.equal(before[key]) for key, value in victim.model.state_dict().items())
    again = load_backdoor(next(lab.glob("runs/digits/vgg5/badnets/clp/s2-*")), device="cpu")
    assert evaluate(again.model, again) == evaluate(victim.model, victim) == victim.metrics


def test_what_does_not_fit_is_one_sentence(victim):
    clean, held = victim.clean_images(20, 20)
    for words, said in (
        ({"defense": "clqp"}, "clp"),
        ({"defense": "clp", "settings": ["defense.rule.att=2"]}, "att"),
        ({"defense": "clp", "settings": ["defense.rule.at=high"]}, "defense.rule.at=high must be a number"),
        ({"defense": "clp", "settings": ["seed=5"]}, "seed=5 is none of the defence's"),
        ({"defense": "ep"}, "needs poisoned"),
        ({"defense": "clp", "rule": "clean_drop"}, "rule=clean_drop must be fixed"),
        ({"defense": "clp", "rule": "oracle", "select": held}, "rule=oracle must be fixed"),
        ({"defense": "clp", "clean": (torch.rand(2, 3, 16, 16), torch.tensor([0, 1]))}, "images must be uint8"),
        ({"defense": "clp", "select": held[torch.arange(0)]}, "at least one image, also to `select` by"),
        (
            {"defense": "ft", "clean": (clean.x, clean.y + 5)},
            r"labels go from 5 to 14, but the model has classes 0 to 9",
        ),
        ({"defense": "clp", "select": (held.x, held.y - 1)}, "labels go from -1 to"),
        ({"defense": "clp", "select": (held.x[:, :1], held.y)}, "do not go with clean ones"),
        ({"defense": "clp", "clean": (clean.x, clean.y.tolist())}, "must be tensors, not Tensor and list"),
        ({"defense": "clp", "select": held, "max_drop": -5}, "max_drop=-5 must be a number of points"),
        ({"defense": "clp", "select": held, "max_drop": float("nan")}, "max_drop=nan must be"),
        ({"defense": "clp", "seed": -1}, "seed=-1 a whole number"),
        ({"defense": "clp", "clean": clean.x}, "or a pair of images and labels"),
        ({"defense": "clp", "clean": (clean.x[:, :2], clean.y)}, r"cannot take images of \[2, 16, 16\]"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            repair(victim.model, **({"clean": clean} | words))
        assert "\n" not in str(caught.value)
    for on, said in (
        (clean[torch.arange(0)], "at least one clean image"),
        ((clean.x, clean.y + 10), "labels go from 10"),
        ((clean.x[:, :2], clean.y), "cannot take images"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate(victim.model, on)
    with pytest.raises(UserError, match=r"logits are \[2, 10, 1, 1\], where \[N, classes\] is needed"):
        evaluate(torch.nn.Sequential(victim.model, torch.nn.Unflatten(1, (10, 1, 1))), clean)


def test_a_frozen_model_is_not_trained_in_silence(victim):
    clean, held = victim.clean_images(20, 20)
    frozen = copy.deepcopy(victim.model).requires_grad_(False)
    assert repair(frozen, "clp", clean, held).mask
    with pytest.raises(UserError, match=r"all weights are frozen .*: model\.requires_grad_\(\)"):
        repair(frozen, "ft", clean, held)


def test_a_program_of_hydras_may_repair(victim):
    """It keeps its own Hydra, as it was."""
    clean, held = victim.clean_images(20, 20)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        theirs = GlobalHydra.instance().hydra
        assert theirs is not None and repair(victim.model, "clp", clean, held).curve
        assert GlobalHydra.instance().hydra is theirs
        with pytest.raises(UserError):
            repair(victim.model, "clqp", clean)
        assert GlobalHydra.instance().hydra is theirs


def test_defences_with_other_needs(victim):
    """One that takes a poisoned mix, one that cheats; chance outside is left as it was."""
    clean, held = victim.clean_images(20, 20)
    some = victim.data.train[torch.arange(40)]
    mix = (torch.cat([victim.trigger.stamp(some.x[:20]), some.x[20:]]), some.y)
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    assert repair(victim.model, "ep", clean, held, poisoned=mix).scores
    assert repair(victim.model, "oracle", clean, held, trigger=victim.trigger).scores
    assert torch.rand(1).equal(wanted)


def test_importing_loads_no_hydra():
    code = "import sys, bench.api; print('hydra' in sys.modules, 'wandb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
