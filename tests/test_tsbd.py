"""TSBD against sums by hand: the change of weights, the cut of sub-weights, the step of the fine-tuning."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.data import Augment, Defender, ImageSet
from bench.defenses.tsbd import TSBD
from bench.errors import UserError
from bench.models import resnet18
from bench.pruning import Share, Sweep
from bench.training import Plan

UNLEARN = Plan(epochs=3, batch_size=6, lr=0.01, momentum=0.9)


def tsbd(unlearn=UNLEARN, stop_acc=0.0, share=0.7, radius=0.05, alpha=0.7, then=None):
    return TSBD(
        unlearn,
        stop_acc,
        share,
        radius,
        alpha,
        rule=Share(0.2),
        sweep=Sweep("at", (0.5,)),
        zeroes=["weight"],
        then=then,
    )


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(75, 3)
    )


def defender(count=12):
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8, generator=rng)
    return Defender(ImageSet(x, torch.arange(count) % 3), (1, 8, 8), 3, Augment(), 0)


def test_score_is_how_far_the_weights_of_a_channel_went():
    """Up the loss, that is: by the same steps, taken by hand."""
    model, data = network(), defender()
    before = copy.deepcopy(model.state_dict())
    found = tsbd(Plan(epochs=2, batch_size=12, lr=0.01, momentum=0.9)).score(model, data)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    moved = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(moved.parameters(), 0.01, 0.9)
    for _ in range(2):  # one batch an epoch, so its order counts for nothing
        optimizer.zero_grad()
        (-F.cross_entropy(moved(data.clean.x.float() / 255), data.clean.y)).backward()
        optimizer.step()
    assert list(found) == ["0", "2"]
    for layer in found:
        old, new = model[int(layer)].weight, moved[int(layer)].weight
        wanted = torch.stack([(new[k] - old[k]).abs().sum() for k in range(len(old))])
        torch.testing.assert_close(found[layer], wanted, rtol=1e-4, atol=1e-6)


def test_unlearning_ends_once_the_clean_images_are_lost():
    class Watched(TSBD):
        def forget(self, model, data):
            self.history = super().forget(model, data)

    long = {"unlearn": Plan(epochs=25, batch_size=12, lr=0.01)}
    pruning = {"rule": Share(0.2), "sweep": Sweep("at", (0.5,)), "zeroes": ["weight"]}
    epochs = []
    for stop in (1.0, 0.1, -1.0):
        defence = Watched(**long, stop_acc=stop, share=0.7, radius=0.05, alpha=0.7, **pruning)
        defence.score(network(), defender())
        epochs.append(len(defence.history))
    assert epochs[0] == 1 < epochs[1] < epochs[2] == 25


def test_shortcuts_are_left_alone():
    scores = tsbd(Plan(epochs=1, batch_size=12, lr=0.01)).score(resnet18(3, 1, 4), defender())
    assert len(scores) == 17 and not any("shortcut" in name for name in scores)
    with pytest.raises(UserError, match="TSBD needs convolutions"):
        tsbd().score(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), defender())


def test_cut_zeroes_the_sub_weights_that_moved_most():
    """Of all chosen channels together; and each cut starts from the weights as they came."""
    model = nn.Sequential(nn.Conv2d(1, 3, 2, bias=False))
    nn.init.ones_(model[0].weight)
    defence = tsbd(share=0.5)
    defence.before = {"0": model[0].weight.detach().clone()}
    defence.change = {"0": torch.tensor([[5.0, 9.0, 6.0, 8.0], [7.0, 1.0, 7.5, 0.0], [9, 9, 9, 9]]).view(3, 1, 2, 2)}

    def kept(*chosen):
        mask = {"0": torch.tensor([k in chosen for k in range(3)])}
        return defence.cut(model, mask, None)[0].weight.flatten(1).int().tolist()

    assert kept(0) == [[1, 0, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert kept(0, 1) == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 1]]
    assert kept(0, 1, 2) == [
        [1, 0, 1, 0],
        [1, 1, 1, 1],
        [0, 0, 0, 0],
    ]  # what the smaller cut took from channel 1 is back


def test_a_step_of_the_fine_tuning():
    """(1 - alpha) g + alpha g', g' at each tensor moved by r along its own slope; BatchNorm sees the batch once."""
    model = network().train()
    x, y = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3
    there = copy.deepcopy(model)
    F.cross_entropy(there(x), y).backward()
    first = [p.grad.clone() for p in there.parameters()]
    once = there[1].running_mean.clone()
    with torch.no_grad():
        for p, g in zip(there.parameters(), first, strict=True):
            p += 0.05 * g / g.norm()
    there.zero_grad()
    F.cross_entropy(there(x), y).backward()
    loss, logits = tsbd().objective(model, x, y)
    loss.backward()
    for p, g, away in zip(model.parameters(), first, there.parameters(), strict=True):
        torch.testing.assert_close(p.grad, 0.3 * g + 0.7 * away.grad, rtol=1e-4, atol=1e-6)
    assert logits.shape == (6, 3) and model[1].running_mean.equal(once)
    assert model[1].momentum == 0.1


def test_zeroed_weights_are_trained_again():
    model = network()
    _, last, *_ = tsbd(then=Plan(epochs=2, batch_size=6, lr=0.01)).repair(model, defender()).candidates
    assert last.pruned > 0 and (last.model[0].weight != 0).all() and (last.model[2].weight != 0).all()


@pytest.mark.parametrize("share", [0.0, 1.1, -1.0])
def test_bad_shares(share):
    with pytest.raises(UserError, match=r"defense\.share="):
        tsbd(share=share)
