"""I-BAU, SAU and NPD, held against what can be worked out by hand."""

import pytest
import torch
from test_defenses import defender, network
from torch import nn
from torch.nn import functional as F

from bench.data import generator
from bench.defenses.ibau import IBAU, with_hypergradient
from bench.defenses.npd import NPD, insert, runner_up
from bench.defenses.sau import SAU, away, jensen_shannon
from bench.errors import UserError
from bench.models import preactresnet18
from bench.training import Plan, epoch_order


def steep():
    """The small network with a classifier that cares: larger weights, larger slopes."""
    model = network()
    model[5].weight.data *= 20
    return model


def test_the_hypergradient_of_a_quadratic():
    """Inner loss d'Ad/2 - d'Bw: the best d is inv(A) B w, so the whole slope of the outer loss |d - c|^2/2 + e'w is
    e + B' inv(A) (d - c). At few steps it is the truncated series, exactly."""
    torch.manual_seed(0)
    half = torch.randn(3, 3, dtype=torch.float64)
    a, b = half @ half.T + torch.eye(3), torch.randn(3, 4, dtype=torch.float64)
    c, e = torch.randn(3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    w = torch.randn(4, dtype=torch.float64, requires_grad=True)
    delta = torch.linalg.solve(a, b @ w).detach().requires_grad_()

    def slope(steps, rate):
        outer = (delta - c).square().sum() / 2 + e @ w
        inner = delta @ a @ delta / 2 - delta @ b @ w
        loss = with_hypergradient(outer, inner, delta, steps, rate)
        assert loss.item() == pytest.approx(outer.item())
        return torch.autograd.grad(loss, w)[0]

    rate = 1 / torch.linalg.eigvalsh(a)[-1].item()
    exact = e + b.T @ torch.linalg.solve(a, (delta - c).detach())
    torch.testing.assert_close(slope(400, rate), exact)
    contraction, series = torch.eye(3) - rate * a, torch.zeros(3, 3, dtype=torch.float64)
    for power in range(2):
        series += torch.linalg.matrix_power(contraction, power)
    torch.testing.assert_close(slope(2, rate), e + rate * b.T @ series @ (delta - c).detach())
    assert not torch.allclose(slope(2, rate), exact)


def test_ibau_takes_one_step_of_the_hypergradient():
    """One round of one batch against the method written out with the Jacobians in full."""
    data, lr = defender(), 0.1
    plan = Plan(epochs=1, batch_size=len(data.clean), lr=lr, momentum=0.0, augment=False)
    (tuned,) = IBAU(plan, lr=10.0, decay=0.001, share=1.0, steps=3, rate=1.0).repair(steep(), data).candidates
    model, x, y = steep(), data.clean.x / 255, data.clean.y
    weights = list(model.parameters())
    start = torch.zeros(3, 8, 8, requires_grad=True)
    F.cross_entropy(model(x + start), model(x).argmax(1)).backward()
    delta = (10.0 * start.grad).requires_grad_()

    def inner_slope(delta):
        loss = 0.001 * delta.square().sum() - F.cross_entropy(model(x + delta), y)
        return torch.autograd.grad(loss, delta, create_graph=True)[0]

    size = delta.numel()
    hessian = torch.autograd.functional.jacobian(inner_slope, delta).view(size, size)
    outer = F.cross_entropy(model(x + delta), y)
    direct = torch.autograd.grad(outer, [delta, *weights])
    step, v = torch.eye(size) - hessian, torch.zeros(size)
    for _ in range(3):
        v = step.T @ v + direct[0].flatten()
    implicit = torch.autograd.grad(inner_slope(delta).flatten() @ v, weights)
    assert max(part.abs().max() for part in implicit) > 1e-3
    for found, w, plain, part in zip(tuned.model.parameters(), weights, direct[1:], implicit, strict=True):
        torch.testing.assert_close(found.detach(), (w - lr * (plain - part)).detach(), rtol=1e-3, atol=1e-5)
    assert tuned.model[1].running_mean.equal(network()[1].running_mean)


def test_ibau_by_hand():
    """Two rounds of two batches: the perturbation is made anew in each round, from the model as it is then; a quarter of a
    batch carries it; the inner loss is that of the very first batch."""
    data, lr, rate = defender(), 0.1, 0.5
    plan = Plan(epochs=2, batch_size=20, lr=lr, momentum=0.0, augment=False)
    (tuned,) = IBAU(plan, lr=5.0, decay=0.001, share=0.25, steps=2, rate=rate).repair(steep(), data).candidates
    model, x, y, rng = steep(), data.clean.x / 255, data.clean.y, generator(data.seed, "ibau")
    weights, first = list(model.parameters()), None

    def inner(index, delta, labels):
        return 0.001 * delta.square().sum() - F.cross_entropy(model(x[index] + delta), labels)

    for epoch in range(2):
        delta = torch.zeros(3, 8, 8, requires_grad=True)
        for index in torch.randperm(40, generator=rng).split(20):
            slope = torch.autograd.grad(inner(index, delta, model(x[index]).argmax(1)), delta)[0]
            delta = (delta - 5.0 * slope).detach().requires_grad_()
        for index in epoch_order(40, plan, data.seed, epoch).split(20):
            first = index if first is None else first
            carried = torch.cat([x[index[:5]] + delta, x[index[5:]]])
            outer = F.cross_entropy(model(carried), y[index])
            loss = with_hypergradient(outer, inner(first, delta, y[first]), delta, 2, rate)
            slopes = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for w, slope in zip(weights, slopes, strict=True):
                    w -= lr * slope
    for found, w in zip(tuned.model.parameters(), weights, strict=True):
        torch.testing.assert_close(found.detach(), w.detach(), rtol=1e-3, atol=1e-5)


def test_ibau_lives_in_the_space_it_says():
    """A model that divides by its standard deviation of 2 sees twice the perturbation's step in pixels, at half its slope."""
    plan, found = Plan(epochs=0, batch_size=40), {}
    for space in ("normalised", "pixels"):
        defence = IBAU(plan, lr=1.0, decay=0.0, share=0.01, steps=1, rate=0.1, space=space)
        model = network()
        model.register_buffer("pixel_std", torch.tensor([2.0, 2.0, 2.0]).view(1, 3, 1, 1))
        defence.repair(model, defender())
        found[space] = defence.worst(model, defender().clean, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found["normalised"], 2 * found["pixels"])
    assert found["pixels"].any()


@pytest.mark.parametrize(
    ("setting", "value"), [("share", 0.0), ("share", 1.5), ("steps", 0), ("space", "latent")], ids=str
)
def test_ibau_names_a_bad_setting(setting, value):
    settings = {"lr": 1.0, "decay": 0.1, "share": 0.5, "steps": 1, "rate": 0.1, "space": "pixels"}
    with pytest.raises(UserError, match=rf"defense\.{setting}={value}"):
        IBAU(Plan(), **settings | {setting: value})


def test_sau_takes_one_step():
    """One batch against the method written out image by image, with its early stop."""
    data, lr, eps = defender(), 0.1, 0.2
    plan = Plan(epochs=1, batch_size=len(data.clean), lr=lr, momentum=0.0, augment=False)
    first = steep()
    (tuned,) = SAU(plan, eps, 0.15, 3, fool=0.3, share=1.0, weight=2.0).repair(first, data).candidates
    model, x, y, n = steep(), data.clean.x / 255, data.clean.y, len(data.clean)
    own = model(x).argmax(1)  # both models are the same as yet
    moved = []
    for image, label, mine in zip(x, y, own, strict=True):
        delta = torch.full_like(image, eps)
        for _ in range(3):
            delta.requires_grad_()
            logits = model((image + delta)[None])
            if (
                logits.argmax() == mine
            ):  # both fooled or neither, and alike: the divergence of equal models has no slope
                loss = -0.3 * F.cross_entropy(logits, label[None]) / n
                slope = torch.autograd.grad(loss, delta)[0]
                delta = (delta - 0.15 * slope.sign()).clamp(-eps, eps)
            delta = delta.detach()
        moved.append(image + delta)
    found = SAU(plan, eps, 0.15, 3, fool=0.3, share=0.0, weight=2.0).attack(model, first, x, y)
    torch.testing.assert_close(x + found, torch.stack(moved))
    p = model(torch.stack(moved)).softmax(1)
    into = p.argmax(1)
    counts = (into != y) & (into != own)
    assert 0 < counts.sum() < n
    lost = -(1 - p[torch.arange(n), into].clamp(0.001, 0.999)).log()[counts].sum() / n
    (F.cross_entropy(model(x), y) + 2 * lost).backward()
    for found, w in zip(tuned.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found.detach(), (w - lr * w.grad).detach(), rtol=1e-3, atol=1e-4)
    assert tuned.model[1].running_mean.equal(model[1].running_mean)


def test_jensen_shannon():
    p, q = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.2, 0.8]]), torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.6, 0.4]])
    middle = (p + q) / 2
    by_hand = sum(torch.xlogy(r, r / middle).sum(1) for r in (p, q)) / 2
    torch.testing.assert_close(jensen_shannon(p, q), by_hand, atol=1e-6, rtol=1e-5)


def test_sau_counts_only_what_may_be_shared():
    """The loss falls as the class into which the first model fell loses probability; images that do not count do nothing."""
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 5.0, 1.0]], requires_grad=True)
    loss = away(logits, torch.tensor([0, 1]), torch.tensor([True, False]))
    p = logits[0].softmax(0)[0]
    torch.testing.assert_close(loss, -(1 - p).log() / 2, rtol=1e-4, atol=1e-5)
    loss.backward()
    assert logits.grad[0, 0] > 0 and not logits.grad[1].any()
    assert away(logits, torch.tensor([0, 1]), torch.tensor([False, False])) == 0


def block(width=4):
    """Two convolutions with a kernel, and a 1x1 one after them."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
                         nn.Sequential(nn.Conv2d(width, 6, 3, padding=1), nn.Conv2d(6, 6, 1)), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(6, 4)).eval()  # fmt: skip


@pytest.mark.parametrize(("layer", "where"), [(None, "0"), ("3.0", "3.0"), ("3.1", "3.1")], ids=str)
def test_npd_puts_the_identity_before_a_convolution(layer, where):
    model, x = block(), torch.rand(5, 3, 8, 8)
    plugged = block()
    plug = insert(plugged, layer)
    plug[1].eps = 0.0
    torch.testing.assert_close(plugged.eval()(x), model(x))
    assert plugged.get_submodule(where)[0] is plug
    assert {k for k in plugged.state_dict() if k.startswith(f"{where}.0.")} >= {
        f"{where}.0.{k}" for k in plug.state_dict()
    }


def test_npd_goes_where_the_reference_goes():
    model = preactresnet18(10, 3, width=4)
    plug = insert(model, None)
    assert model.layer4[1].conv1[0] is plug and isinstance(model.layer4[1].conv1[1], nn.Conv2d)


@pytest.mark.parametrize("layer", ["3.2", "1"])
def test_npd_names_a_bad_layer(layer):
    with pytest.raises(UserError, match=rf"defense\.layer={layer} is no Conv2d"):
        insert(block(), layer)


def npd(polarise, warmup=None, **more):
    settings = {"eps": 3.0, "step": 0.1, "steps": 2, "enough": 0.6, "weights": (1.0, 0.4, 0.3, 0.2)} | more
    return NPD(warmup or Plan(epochs=0), polarise, **settings)


def test_npd_trains_the_plug_alone():
    """The rest of the model, statistics and all, is what it was; the plug's own statistics move in the warm-up only."""
    model, plan = block(), Plan(epochs=3, batch_size=16, lr=0.1, augment=False)
    (still,) = npd(plan, layer="3.0").repair(model, defender()).candidates
    (warm,) = npd(plan, plan, layer="3.0").repair(model, defender()).candidates
    for candidate in (still, warm):
        state = candidate.model.state_dict()
        assert all(value.equal(state[key.replace("3.0.", "3.0.1.")]) for key, value in model.state_dict().items())
        assert not state["3.0.0.0.weight"].equal(torch.eye(4).view(4, 4, 1, 1))
    assert not still.model[3][0][0][1].running_mean.any() and warm.model[3][0][0][1].running_mean.all()


@pytest.mark.parametrize(("eps", "enough"), [(3.0, 0.0), (3.0, 1.0), (0.5, 1.0)], ids=str)
def test_npd_attack(eps, enough):
    """Against the method written out: steps down the loss of the runner-up, into the ball; none after one that is enough."""
    model, x, y = steep(), defender().clean.x / 255, defender().clean.y
    logits = model(x)
    target = runner_up(logits, y)
    order = logits.argsort(1, descending=True)
    assert target.equal(torch.where(order[:, 0] == y, order[:, 1], order[:, 0]))
    delta = torch.zeros_like(x)
    for _ in range(2):
        delta.requires_grad_()
        F.cross_entropy(model((x + delta).clamp(0, 1)), target).backward()
        delta = (delta - 0.1 * delta.grad.sign()).detach()
        size = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        delta = torch.where(size > eps, delta * eps / size, delta)
        if (model((x + delta).clamp(0, 1)).argmax(1) == target).float().mean() > enough:
            break
    found = npd(Plan(), eps=eps, enough=enough).attack(model, x, target)
    torch.testing.assert_close(found, (x + delta).clamp(0, 1), atol=1e-6, rtol=1e-5)


def test_npd_loss():
    model, x, y = steep(), defender().clean.x / 255, defender().clean.y
    loss, _ = npd(Plan(), steps=0).purify(model, x, y)
    logits, n = model(x), torch.arange(len(x))
    p, target = logits.softmax(1), runner_up(logits, y)
    kept = -(1.0001 - p[n, target]).log().mean()
    wanted = F.cross_entropy(logits, y) + 0.4 * F.cross_entropy(logits, logits.argmax(1)) + (0.3 + 0.2) * kept
    torch.testing.assert_close(loss, wanted)
