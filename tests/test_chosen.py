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


class Told(nn.Module):
    """Says of each image what it was told: an image's value is its place in the list."""

    def __init__(self, answers):
        super().__init__()
        self.answers = torch.tensor(answers)

    def forward(self, x):
        return torch.eye(3)[self.answers[(x[:, 0, 0, 0] * 255).round().long()]]


def told(select, clean, hit, robust):
    """Right on so many of 4 held-back and of 5 test images; of 6 triggered ones so many hit, and so many are seen as they are."""
    few = [0] * hit + [1] * robust + [2] * (6 - hit - robust)
    return Told([1] * select + [2] * (4 - select) + [1] * clean + [2] * (5 - clean) + few)


def looked_at(candidates, stop):
    """The rows of a curve whose model had, as it came, 90 % on the held-back images and 3 of 5, 6 of 6 and 0 of 6 elsewhere."""
    x = torch.arange(15, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    select, clean, triggered = (ImageSet(part, torch.ones(len(part), dtype=torch.int64)) for part in x.split([4, 5, 6]))
    exam = Exam(clean, triggered, torch.zeros(6, dtype=torch.int64))
    return trace(Repaired(candidates), exam, select, Metrics(5, 3, 6, 6, 0), 90.0, stop)


def pruned(counts, at, fixed, *said):
    """A point that prunes so many of three channels."""
    return Candidate(told(*said), at, {"layer": torch.arange(3) < counts}, fixed)


def test_a_row_says_of_its_own_images_what_a_look_at_them_gives():
    """The first is not looked at again; a model that was repaired and not pruned is."""
    rows = looked_at([pruned(0, None, False, 0, 0, 0, 0), pruned(2, 0.5, True, 3, 1, 2, 4)], None)
    first, second = ({key: row[key] for key in row if key != "layers"} for row in rows)
    assert first == dict(
        at=None, pruned=0, fixed=0, select_acc=90.0, acc=60.0, asr=100.0, ra=0.0, right=3, hit=6, robust=0
    )
    assert second == dict(at=0.5, pruned=2, fixed=1, select_acc=75.0, acc=20.0, asr=100 * 2 / 6, ra=100 * 4 / 6, right=1,
                          hit=2, robust=4)  # fmt: skip
    assert [row["layers"] for row in rows] == [{"layer": (3, 0)}, {"layer": (3, 2)}]
    (row,) = looked_at([Candidate(told(1, 4, 0, 5))], 0.0)
    assert (row["pruned"], row["fixed"], row["select_acc"], row["right"], row["hit"], row["robust"]) == (
        0,
        1,
        25.0,
        4,
        0,
        5,
    )
    assert row["layers"] == {}


def test_a_curve_ends_after_the_point_that_loses_more_than_the_limit_on_the_held_back_images():
    """But for the paper's own point. A loss of just the limit goes on, whatever the test set says."""
    points = [
        (1, 0.1, False, 3, 0, 0, 0),
        (2, 0.2, False, 2, 5, 0, 0),
        (2, 0.3, False, 4, 5, 0, 0),
        (3, 0.4, True, 1, 5, 0, 0),
    ]
    for stop, seen in ((15.0, [0.1, 0.2, 0.4]), (14.0, [0.1, 0.4]), (None, [0.1, 0.2, 0.3, 0.4])):
        assert [row["at"] for row in looked_at([pruned(*point) for point in points], stop)] == seen
