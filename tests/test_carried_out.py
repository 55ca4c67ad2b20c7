"""How a plan is carried out (compiled, fused) changes neither what is learnt nor what a cell is called."""

import logging

import pytest
import torch
from cells import composed
from torch import nn

from bench import config
from bench.data import Augment, ImageSet
from bench.models import normalised, vgg
from bench.run import plain
from bench.training import Plan, fit


def learnt(**plan):
    """What a small network with dropout remembers of one training, all of it. Every second batch is a smaller one."""
    torch.manual_seed(0)
    model = normalised(nn.Sequential(vgg([4, "M", 8], 10, 3), nn.Dropout(0.5)), (0.5,) * 3, (0.2,) * 3)
    rng = torch.Generator().manual_seed(0)
    data = ImageSet(
        torch.randint(256, (24, 3, 8, 8), dtype=torch.uint8, generator=rng), torch.randint(10, (24,), generator=rng)
    )
    plan = Plan(**{"epochs": 2, "batch_size": 16, "lr": 0.1, "nesterov": True} | plan)
    history = fit(model, data, plan, seed=1, augment=Augment(1, True))
    return [*model.state_dict().values(), torch.tensor([epoch.loss for epoch in history])]


def test_compiled_as_not_compiled(monkeypatch):
    """With a compiler that only traces, so to the last bit: trying it out leaves no trace."""
    traced, compiler = [], torch.compile
    backend = lambda graph, _: traced.append(1) or graph  # noqa: E731
    monkeypatch.setattr(
        torch, "compile", lambda model, mode, dynamic: compiler(model, dynamic=dynamic, backend=backend)
    )
    found, wanted = learnt(compile=True), learnt()
    assert traced and all(a.equal(b) for a, b in zip(found, wanted, strict=True))


def test_without_a_compiler_one_line_and_on(monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda model, **_: broken)
    with caplog.at_level(logging.WARNING):
        found = learnt(compile=True)
    assert all(a.equal(b) for a, b in zip(found, learnt(), strict=True))
    assert [r.getMessage() for r in caplog.records] == [
        "train.compile: going on without, because RuntimeError: no C++ compiler"
    ]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_fused_only_where_there_is_a_gpu(optimizer):
    assert all(
        a.equal(b) for a, b in zip(learnt(fused=True, optimizer=optimizer), learnt(optimizer=optimizer), strict=True)
    )
    weight = nn.Parameter(torch.zeros(2, device="cuda" if torch.cuda.is_available() else "cpu"))
    assert bool(Plan(fused=True, optimizer=optimizer).optimise([weight]).defaults["fused"]) == weight.is_cuda


def test_no_part_of_an_identity():
    one, other = (plain(composed(f"train.compile={word}", f"train.fused={word}")) for word in ("false", "true"))
    older = one | {"train": {k: v for k, v in one["train"].items() if k not in ("compile", "fused")}}
    nested = one | {"defense": one["defense"] | {"mask": one["defense"]["mask"] | {"compile": True}}}
    assert len({config.run_id(settings) for settings in (one, other, older, nested)}) == 1
    materials = [config.backdoor_material(settings, "digest") for settings in (one, other, older)]
    assert materials[0] == materials[1] == materials[2]
    assert config.run_id(one | {"train": one["train"] | {"lr": 1.0}}) != config.run_id(one)
