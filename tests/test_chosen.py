"""The model kept is the one that the rule chooses of the whole curve, with the very weights that were measured."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from analysis.operating_point import SENTENCES, choose
from bench.chosen import Keeper
from bench.curve import trace
from bench.data import ImageSet
from bench.defenses.base import Candidate, Repaired
from bench.metrics import Exam, Metrics

percent = st.integers(0, 10).map(lambda n: 10.0 * n)


@given(st.lists(st.tuples(percent, percent, percent, st.integers(0, 4)), min_size=1, max_size=8), st.data())
def test_the_kept_model_is_the_one_chosen_of_the_whole_curve(points, data):
    points = sorted(points, key=lambda point: point[3])
    paper = data.draw(st.integers(0, len(points) - 1))
    rows = [
        {"select_acc": s, "acc": a, "asr": h, "pruned": n, "fixed": i == paper} for i, (s, a, h, n) in enumerate(points)
    ]
    before = {"select_before": data.draw(percent), "acc_before": data.draw(percent)}
    for rule in SENTENCES:
        keeper, shared = Keeper({"rule": rule, "max_drop": 15.0}, **before), nn.Linear(1, 1, bias=False)
        for i in range(len(rows)):
            shared.weight.data.fill_(i)  # as pruners do: one working copy serves all points
            keeper(rows[: i + 1], Candidate(shared, mask={"layer": torch.tensor([True])}))
        best = choose(rows, rule, **before, max_drop=15.0)
        shared.weight.data.fill_(-1)
        assert keeper.chosen.row is rows[best] and keeper.chosen.model.weight.item() == best


def test_every_row_of_a_curve_is_shown_with_its_own_candidate():
    """The first one, which is not measured again, too; those that are passed over are not."""

    class Answer(nn.Module):
        def __init__(self, label):
            super().__init__()
            self.label = label

        def forward(self, x):
            return torch.eye(2)[torch.full((len(x),), self.label)]

    images = ImageSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 0, 1]))
    exam = Exam(images, images, torch.ones(4, dtype=torch.int64))
    masks = [{"layer": torch.tensor([i > 0, i > 1])} for i in range(3)]
    candidates = [
        Candidate(Answer(label), at, mask, fixed=False)
        for label, at, mask in zip((0, 1, 0), (None, 1.0, 2.0), masks, strict=True)
    ]
    seen = []
    rows = trace(Repaired(candidates), exam, images, Metrics(4, 3, 4, 0, 3), 75.0, 10.0,
                 lambda rows, candidate: seen.append((rows[-1]["at"], candidate.at, candidate.model.label)))  # fmt: skip
    assert len(rows) == 2 and seen == [(None, None, 0), (1.0, 1.0, 1)]
