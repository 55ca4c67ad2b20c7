"""The oracle: the trigger-activated change by hand, and that whatever prints its results says that it cheats."""

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from test_analysis import GOLDEN, cells, change, table, tidy
from torch import nn
from torch.nn import functional as F

from analysis import plots, tables
from analysis.runs import Runs
from bench import cli
from bench.attacks.base import Backdoor, Trigger
from bench.data import Augment, Defender, ImageSet
from bench.defenses.oracle import Oracle
from bench.errors import UserError
from bench.pruning import Sweep, ZScore
from bench.tac import leave, trigger_activated_change

PRUNING = {"rule": ZScore(3.0), "sweep": Sweep("at", (3.0,)), "zeroes": ["weight"]}


class White(Trigger):
    """A white corner."""

    def forward(self, x):
        out = x.clone()
        out[..., -2:, -2:] = 255
        return out


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
    )
    for bn in (model[1], model[4]):
        bn.weight.data.uniform_(-1, 1)
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 2)
    return model.train()


def images(count=9):
    rng = torch.Generator().manual_seed(1)
    x = torch.randint(0, 200, (count, 1, 8, 8), dtype=torch.uint8, generator=rng)
    return ImageSet(x, torch.arange(count) % 3)


def by_hand(model, clean, triggered):
    """Image by image, layer by layer, with the running statistics: the norm of the change of each map, averaged."""
    sums = {"1": torch.zeros(3), "4": torch.zeros(5)}
    for pair in zip(clean, triggered, strict=True):
        maps = []
        for x in pair:
            first, second = model[1], model[4]
            a = F.conv2d(x[None], model[0].weight, model[0].bias)[0]
            a = (a - first.running_mean[:, None, None]) / (first.running_var + first.eps).sqrt()[:, None, None]
            a = a * first.weight[:, None, None] + first.bias[:, None, None]
            b = F.conv2d(a.clamp(min=0)[None], model[3].weight, model[3].bias)[0]
            b = (b - second.running_mean[:, None, None]) / (second.running_var + second.eps).sqrt()[:, None, None]
            maps.append({"1": a, "4": b * second.weight[:, None, None] + second.bias[:, None, None]})
        for layer in sums:
            for k in range(len(sums[layer])):
                sums[layer][k] += (maps[0][layer][k] - maps[1][layer][k]).square().sum().sqrt()
    return {layer: total / len(clean) for layer, total in sums.items()}


def test_the_change_is_left_beside_the_model_once(tmp_path):
    """Of all channels, over the test images that count for ASR; nothing without a trigger or without normalisation layers."""
    model, test, path = network(), images(600), tmp_path / "tac.csv"
    leave(path, Backdoor(model, White(3, target=1)), test)
    some = test.x[test.y != 1]
    wanted = trigger_activated_change(model, some / 255, White(3, target=1).stamp(some) / 255)
    rows = [line.split(",") for line in path.read_text().splitlines()]
    assert rows[0] == ["layer", "channel", "tac"]
    assert [(layer, int(i)) for layer, i, _ in rows[1:]] == [(n, i) for n, v in wanted.items() for i in range(len(v))]
    assert [float(value) for *_, value in rows[1:]] == pytest.approx(torch.cat([*wanted.values()]).tolist(), rel=1e-5)
    written = path.read_text()
    leave(path, Backdoor(network(), White(3, target=2)), test)
    assert path.read_text() == written
    leave(tmp_path / "none.csv", Backdoor(model, Trigger(3, target=1)), test)
    leave(tmp_path / "none.csv", Backdoor(nn.Conv2d(1, 3, 3), White(3, target=1)), test)
    assert not (tmp_path / "none.csv").exists()


def test_of_many_images_evenly_spaced_ones_are_looked_at(tmp_path, monkeypatch):
    """30 count, and 8 are to be looked at, at most: every fourth."""
    monkeypatch.setattr("bench.tac.IMAGES", 8)
    model, test, path = network(), images(45), tmp_path / "tac.csv"
    leave(path, Backdoor(model, White(3, target=1)), test)
    some = test.x[test.y != 1][::4]
    wanted = trigger_activated_change(model, some / 255, White(3, target=1).stamp(some) / 255)
    found = [float(line.split(",")[2]) for line in path.read_text().splitlines()[1:]]
    assert found == pytest.approx(torch.cat([*wanted.values()]).tolist(), rel=1e-5)


def test_trigger_activated_change_is_that_of_the_paper():
    model, x = network(), images().x
    before = copy.deepcopy(model.state_dict())
    clean, triggered = x.float() / 255, White(3).stamp(x).float() / 255
    found = trigger_activated_change(model, clean, triggered, chunk=4)  # 9 images: a last chunk of one
    with torch.no_grad():
        wanted = by_hand(model, clean, triggered)
    assert list(found) == ["1", "4"] and found["1"].min() > 0
    for layer, values in wanted.items():
        torch.testing.assert_close(found[layer], values)
    assert model.training and all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_the_oracle_scores_by_the_trigger_it_is_given():
    data = images()
    defender = Defender(data, (1, 8, 8), 3, Augment(), 0)
    seen = Oracle(**PRUNING).score(network(), replace(defender, trigger=White(3)))
    wanted = trigger_activated_change(network(), data.x.float() / 255, White(3).stamp(data.x).float() / 255)
    assert all(seen[layer].equal(values) for layer, values in wanted.items())
    none = Oracle(**PRUNING).score(network(), replace(defender, trigger=Trigger(3)))  # a trigger that changes nothing
    assert all((values == 0).all() for values in none.values())
    with pytest.raises(UserError, match="true trigger"):
        Oracle(**PRUNING).score(network(), defender)


# -- who cheats is marked ----------------------------------------------------------------------------------------------
@pytest.fixture
def runs(tmp_path):
    """The golden runs, in which clp (the lowest ASR of all) now says that it saw the trigger."""
    shutil.copytree(GOLDEN / "digits", tmp_path / "digits")
    for folder in cells(tmp_path, defense="clp"):
        change(folder, needs="trigger")
    return tmp_path


def test_tables_mark_who_cheats_and_rank_without_it(runs):
    texts, _ = tables.make(runs, "clean_drop")
    rows = table(texts["table.md"])
    assert rows["clp"]["sees"] == "trigger (cheats)"
    assert rows["clp"]["blend ASR"].startswith("0.0") and rows["rnp"]["blend ASR"].startswith("**18.7")
    assert list(rows)[-1] == "clp"
    assert "Cheats: clp sees the true trigger; a control and no defence" in texts["table.md"]
    assert "trigger (cheats)" in texts["table.tex"]
    assert {row["sees"] for (_, d), row in tidy(texts["table.csv"]).items() if d == "clp"} == {"trigger (cheats)"}


def test_tables_without_a_cheat_do_not_speak_of_one():
    assert not any("cheat" in text.lower() for text in tables.make(GOLDEN, "all")[0].values())


@pytest.mark.parametrize(
    ("needs", "sees"),
    [("nothing", "nothing"), ("clean", "clean images"), ("poisoned", "clean and poisoned images"), ("else", "else")],
)
def test_tables_say_what_a_defence_sees(runs, needs, sees):
    for folder in cells(runs, defense="rnp"):
        change(folder, needs=needs)
    assert table(tables.make(runs, "fixed")[0]["table.md"])["rnp"]["sees"] == sees


def test_plots_and_the_terminal_mark_who_cheats(runs, tmp_path, capsys):
    plots.draw(Runs.of(runs), "clean_drop", tmp_path / "plots")
    for name in ("curves.svg", "tradeoff.svg"):
        text = (tmp_path / "plots" / name).read_text()
        assert "clp (cheats)" in text and "rnp (cheats)" not in text
    folder = cells(runs, "blend", "clp")[0]
    record = json.loads((folder / "record.json").read_text())
    assert "clp (cheats: sees the trigger)" in cli.one_cell(record)
    cli.show(record, folder)
    assert "cheats: sees the trigger" in " ".join(capsys.readouterr().out.split())
    assert "cheats" not in cli.one_cell(record | {"needs": "clean"})
