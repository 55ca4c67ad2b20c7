"""Attacks and defences of a user's own that do not keep the contract are told so in one sentence."""

import pytest
import torch
from torch import nn

from bench.attacks.base import Trigger
from bench.data import Augment, Defender, ImageSet
from bench.defenses.base import Defense, PruningDefense, Repaired
from bench.errors import UserError
from bench.pruning import Sweep, Threshold


@pytest.fixture
def given():
    """A model, and what a defender holds."""
    images = ImageSet(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4))
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(180, 4))
    return model, Defender(images, (3, 8, 8), 4, Augment(), 0, None, None)


def test_a_threat_model_that_is_none():
    with pytest.raises(UserError, match=r"Mine.needs='images' is unknown: use nothing, clean, poisoned, trigger\."):

        class Mine(Defense):
            needs = "images"


def test_a_repair_that_is_none(given):
    class Mine(Defense):
        def repair(self, model, data):
            return model

    with pytest.raises(UserError, match=r"Mine.repair returned Sequential, and not a Repaired\."):
        Mine().offer(*given)


@pytest.mark.parametrize(
    "scores",
    [{"0": torch.zeros(4)}, {"0": torch.zeros(5, 1)}, {"9": torch.zeros(5)}, {"1": torch.zeros(5)}],
    ids=["too few", "a table", "no layer", "no weights"],
)
def test_scores_of_something_else_than_channels(scores, given):
    class Mine(PruningDefense):
        def score(self, model, data):
            return scores

    mine = Mine(Threshold(1.0), Sweep("number", [1.0]), ["weight"])
    with pytest.raises(UserError, match="where one per channel of a layer with weights is needed"):
        mine.offer(*given)
    scores.clear()
    scores["0"] = torch.zeros(5)
    assert isinstance(mine.offer(*given), Repaired)


def test_a_trigger_that_changes_the_size():
    class Mine(Trigger):
        def forward(self, x):
            return x[:, :, 1:]

    with pytest.raises(UserError, match=r"Mine made \[4, 3, 7, 8\] pixels of \[4, 3, 8, 8\]"):
        Mine(10).stamp(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
