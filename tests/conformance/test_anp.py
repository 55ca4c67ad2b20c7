"""ANP: the mask search step by step, and the pruning curves, against the authors' code."""

import re
from functools import cache

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import bench.defenses.anp
import bench.training
from bench.data import ImageSet
from bench.defenses.anp import ANP
from bench.layers import batch_norms
from bench.metrics import evaluate
from bench.pruning import MaskBelow, Sweep, by_rank, count, prune
from bench.training import Plan

from .vectors import chw, counts, spread


# -- the trace ---------------------------------------------------------------------------------------------------------
class Run:
    """`ANP.score` on the stored batches, with everything recorded that the trace knows.

    The bench's own loop, noise draw, perturbation and update run; only the order of the images is given, and the seed of
    the noise. Rounding decides the sign of gradients near zero, and each sign weighs the same, so a run that takes its own
    signs leaves the stored one as soon as it rounds otherwise. Hence two kinds of run:

    - free: it takes its own signs, on tensors laid out as the authors' are. (The bench's layout, channels_last, rounds
      otherwise: signs differ from the third iteration on. Nothing but rounding depends on the layout.)
    - `forced`: on the bench's own layout. The perturbation runs too, but its result is then replaced by the stored one.
    """

    def __init__(self, folder, iterations, forced):
        trace, data = folder.arrays("anp_trace.npz"), folder.arrays("data.npz")
        h = folder.manifest["hyper_parameters"]["anp"]
        order = torch.tensor(trace["batch_index"][:iterations].astype(np.int64))
        layout = {"channels_last": forced}
        plan = Plan(iterations=iterations, batch_size=order.shape[1], lr=h["lr"], momentum=h["momentum"], **layout)
        pruning = {"rule": MaskBelow(0.2), "sweep": Sweep("at", ()), "zeroes": ("weight",)}
        defence = (Forced if forced else Watched)(plan, h["eps"], h["steps"], h["alpha"], **pruning)
        defence.trace, defence.drawn, defence.flips = trace, [], []
        self.masks, self.nat, self.total = [], [], []

        def fit(model, *args, objective, parameters, after_step, **more):
            self.model = model

            def watched_objective(model, x, y):
                loss, logits = objective(model, x, y)
                self.total.append(loss.item())
                self.nat.append(F.cross_entropy(logits, y).item())
                return loss, logits

            def watched_step():
                after_step()
                self.masks.append(torch.cat(parameters).detach().numpy().copy())

            more |= {"objective": watched_objective, "parameters": parameters, "after_step": watched_step}
            return bench.training.fit(model, *args, **more)

        model = folder.network()
        images = ImageSet(chw(data["x_def"]), torch.tensor(data["y_def"]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench.training, "epoch_order", lambda *_: order.flatten())
            patch.setattr(bench.defenses.anp, "generator", lambda *_: torch.Generator().manual_seed(h["torch_seed"]))
            patch.setattr(bench.defenses.anp, "fit", fit)
            self.scores = defence.score(model, folder.defender(images))
        self.noise, self.flips = defence.drawn, defence.flips


class Watched(ANP):
    """ANP that notes the noise it draws, and in how many places its perturbation ends elsewhere than the stored one."""

    def perturb(self, model, x, y, gates, rng):
        same = torch.Generator().set_state(rng.get_state())
        self.drawn.append([torch.empty(len(g.mask)).uniform_(-self.eps, self.eps, generator=same) for g in gates])
        super().perturb(model, x, y, gates, rng)
        stored = self.stored_noise()
        self.flips.append(sum(int(((g.noise - n).abs() > 1e-4).sum()) for g, n in zip(gates, stored, strict=True)))

    def stored_noise(self):
        """Where the stored perturbation of this iteration ended, in the order of the gates: weight and bias by turns."""
        step, sizes, parts = len(self.drawn) - 1, np.diff(self.trace["layer_offset"]).tolist(), []
        for name in ("noise", "noise_bias"):
            signs = self.trace[f"{name}_grad_sign"][step].astype(np.float32)
            signs = signs.reshape(-1, signs.shape[-1]).sum(0)  # one row for each of `steps`
            end = self.trace[f"{name}_init"][step] - np.float32(self.eps / self.steps) * signs
            parts.append(torch.tensor(end).split(sizes))
        return [part for layer in zip(*parts, strict=True) for part in layer]


class Forced(Watched):
    """ANP whose perturbation ends where the stored one did."""

    def perturb(self, model, x, y, gates, rng):
        super().perturb(model, x, y, gates, rng)
        for gate, stored in zip(gates, self.stored_noise(), strict=True):
            gate.noise.copy_(stored)


FREE = 5
"""Iterations over which a run with its own signs stays on the stored one."""

run = cache(Run)


def stored_masks(folder):
    """iteration -> the masks after it, for every iteration in the trace."""
    found = {re.fullmatch(r"mask_iter(\d+)", key): value for key, value in folder.arrays("anp_trace.npz").items()}
    return {int(match.group(1)): value for match, value in found.items() if match}


def test_layers(anp_folder):
    """Layers in the order of the state dict, and of the right size: the order of all flat vectors."""
    trace = anp_folder.arrays("anp_trace.npz")
    layers = batch_norms(anp_folder.network())
    assert list(layers) == trace["layer_names"].tolist()
    assert [bn.num_features for bn in layers.values()] == np.diff(trace["layer_offset"]).tolist()


def test_free_run(anp_folder):
    """Five iterations of the real search: the noise drawn is the authors', and masks and losses are theirs to 1e-4.

    Once a sign fell otherwise, masks are theirs to 0.02: one in 200 may in the first iteration, later one in 20.
    """
    trace = anp_folder.arrays("anp_trace.npz")
    own = run(anp_folder, FREE, False)
    for step, noise in enumerate(own.noise):
        np.testing.assert_array_equal(torch.cat(noise[::2]), trace["noise_init"][step])
        np.testing.assert_array_equal(torch.cat(noise[1::2]), trace["noise_bias_init"][step])
    signs = 2 * trace["noise_init"].shape[1]
    assert own.flips[0] <= signs / 200 and max(own.flips) <= signs / 20
    same = next((step for step, flips in enumerate(own.flips) if flips), FREE)
    stored = {k: v for k, v in stored_masks(anp_folder).items() if k <= FREE}
    assert stored
    for iteration, mask in stored.items():
        atol = 1e-4 if iteration <= same else 0.02
        np.testing.assert_allclose(own.masks[iteration - 1], mask, rtol=0, atol=atol, err_msg=f"iteration {iteration}")
    np.testing.assert_allclose(own.total[:same], trace["loss_total"][:same], rtol=0, atol=1e-4)
    np.testing.assert_allclose(own.nat[:same], trace["loss_nat"][:same], rtol=0, atol=1e-4)
    scores = torch.cat(list(own.scores.values())).numpy()
    np.testing.assert_allclose(1 - scores, np.round(own.masks[-1].astype(np.float64), 4), rtol=0, atol=1e-9)


def test_forced_run(anp_folder):
    """The whole trace with the stored signs: masks to 0.02, losses to 1e-3, and as many forward passes as there."""
    trace = anp_folder.arrays("anp_trace.npz")
    last = max(iteration for iteration in stored_masks(anp_folder) if iteration <= len(trace["noise_init"]))
    own = run(anp_folder, last, True)
    assert max(own.flips) <= 2 * trace["noise_init"].shape[1] / 20
    for iteration, mask in stored_masks(anp_folder).items():
        np.testing.assert_allclose(own.masks[iteration - 1], mask, rtol=0, atol=0.02, err_msg=f"iteration {iteration}")
    np.testing.assert_allclose(own.total, trace["loss_total"][:last], rtol=0, atol=1e-3)
    np.testing.assert_allclose(own.nat, trace["loss_nat"][:last], rtol=0, atol=1e-3)
    layers = batch_norms(own.model).values()
    assert {int(bn.num_batches_tracked) for bn in layers} == {int(trace[f"num_batches_tracked_iter{last}"])}
    for statistic in ("running_mean", "running_var"):
        ours, theirs = torch.cat([getattr(bn, statistic) for bn in layers]).numpy(), trace[f"{statistic}_iter{last}"]
        assert np.linalg.norm(ours - theirs) <= 1e-2 * np.linalg.norm(theirs), statistic


# -- the pruning curves ------------------------------------------------------------------------------------------------
def curve(folder):
    """(scores from the stored mask values, the stored curves). Ties in the stored order keep the layers' own order."""
    arrays = folder.arrays("anp_prune_curves.npz")
    scores = {n: torch.full((bn.num_features,), torch.nan).double() for n, bn in batch_norms(folder.network()).items()}
    for layer, channel, value in zip(
        arrays["sorted_layer"].tolist(), arrays["sorted_channel"], arrays["sorted_value"], strict=True
    ):
        scores[layer][channel] = 1 - value
    assert not any(score.isnan().any() for score in scores.values())
    return scores, arrays


def check_counts(folder, masks, rows):
    """ACC, ASR and RA of the models pruned so, to 2 images."""
    model, exam = folder.network(), folder.exam
    for mask, row in zip(masks, rows, strict=True):
        assert count(mask) == row[0]
        found = counts(evaluate(prune(model, mask, ("weight",)), exam))
        np.testing.assert_allclose(found, row[2:5], rtol=0, atol=2, err_msg=f"{row[0]:.0f} channels pruned")


def test_order_of_pruning(curve_folder):
    """`by_rank` prunes in the stored order. Where the last channel is tied, it takes all channels tied with it."""
    scores, arrays = curve(curve_folder)
    rule, values = MaskBelow(0.2), arrays["sorted_value"]
    flat = torch.cat(list(scores.values()))
    place, start = {}, 0
    for layer, score in scores.items():
        place |= {(layer, channel): start + channel for channel in range(len(score))}
        start += len(score)
    order = np.array(
        [place[key] for key in zip(arrays["sorted_layer"].tolist(), arrays["sorted_channel"], strict=True)]
    )
    np.testing.assert_array_equal(flat.argsort(descending=True, stable=True), order)
    clean_cuts = 0
    for number in range(1, len(values) + 1):
        at, mask = by_rank(rule, scores, number)
        end = int(np.searchsorted(values, values[number - 1], side="right"))
        assert at == pytest.approx(values[number - 1], abs=1e-9)
        np.testing.assert_array_equal(torch.cat(list(mask.values())).nonzero().flatten(), np.sort(order[:end]))
        clean_cuts += end == number
    assert clean_cuts


def test_curve_by_threshold(curve_folder):
    """Exactly as many channels at every stored threshold, and the counts of the pruned models at some of them."""
    scores, arrays = curve(curve_folder)
    rows = arrays["curve_threshold"]
    masks = [MaskBelow(0.2).mask(scores, row[1]) for row in rows]
    assert [count(mask) for mask in masks] == rows[:, 0].tolist()
    looked_at = spread(len(rows), 4)
    check_counts(curve_folder, [masks[i] for i in looked_at], rows[looked_at])


def test_curve_by_number(curve_folder):
    """The official number mode, at its points without a tie at the border: mask value, counts of the pruned models."""
    scores, arrays = curve(curve_folder)
    points = [(row, *by_rank(MaskBelow(0.2), scores, int(row[0]))) for row in arrays["curve_number"]]
    points = [
        (row, mask) for row, at, mask in points if count(mask) == row[0] and at == pytest.approx(row[1], abs=1e-9)
    ]
    assert points
    looked_at = [points[i] for i in spread(len(points), 3)]
    check_counts(curve_folder, [mask for _, mask in looked_at], [row for row, _ in looked_at])
