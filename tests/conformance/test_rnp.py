"""RNP: unlearning, recovering and pruning against the authors' code."""

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest
import torch

import bench.defenses.rnp
import bench.training
from bench.defenses.rnp import RNP
from bench.layers import batch_norms
from bench.metrics import evaluate
from bench.pruning import MaskBelow, Sweep, count, prune
from bench.training import Plan

from . import vectors
from .vectors import counts, per_layer, spread


@dataclass
class Stage:
    """One call of `fit`, as RNP made it: losses of batches, what it returned, states or masks after every epoch."""

    model: torch.nn.Module
    steps: int
    losses: list = field(default_factory=list)
    history: list = field(default_factory=list)
    states: list = field(default_factory=list)
    masks: list = field(default_factory=list)

    def epoch_losses(self):
        """Means over batches, as the official code reports them; the last batch is smaller and weighs as much."""
        return np.reshape(self.losses, (-1, self.steps)).mean(1)


class Run:
    """`RNP.score` with the stored order of images; the bench's own `forget`, `remember` and loop run.

    What it unlearned is looked at and then replaced by what the authors' code did, to the last bit, so that what rounding does to
    the first stage does not count in the second one.
    """

    def __init__(self, folder):
        self.folder, self.stages = folder, []
        facts = folder.json("rnp.json")
        args, data = facts["args"], folder.arrays("data.npz")
        # The published code does not read its own arguments for momentum and weight decay.
        unlearn = Plan(args["unlearning_epochs"] + 1, batch_size=args["batch_size"], lr=args["unlearning_lr"],
                       weight_decay=5e-4, schedule="multistep", milestones=tuple(args["schedule"]))  # fmt: skip
        recover = Plan(args["recovering_epochs"], batch_size=args["batch_size"], lr=args["recovering_lr"])
        self.defence = RNP(unlearn, args["clean_threshold"], recover, args["alpha"],
                           rule=MaskBelow(0.3), sweep=Sweep("at", ()), zeroes=("weight",))  # fmt: skip
        self.orders = {id(unlearn): data["order_unlearn"], id(recover): data["order_recover"]}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench.training, "epoch_order", self.order)
            patch.setattr(bench.defenses.rnp, "fit", self.fit)
            network = folder.network("backdoored_weights.npz")
            self.scores = self.defence.score(network, folder.defender(vectors.rnp_images(folder)[0]))

    def order(self, total, plan, seed, epoch):
        return torch.tensor(self.orders[id(plan)][epoch].astype(np.int64))

    def fit(self, model, images, plan, *, objective, parameters=None, after_step=None, after_epoch=None, **more):
        stage = Stage(model, -(-len(images) // plan.batch_size))
        self.stages.append(stage)

        def watched_objective(model, x, y):
            loss, logits = objective(model, x, y)
            stage.losses.append(loss.item())
            return loss, logits

        def watched_step():
            after_step()
            if len(stage.losses) % stage.steps == 0:
                stage.masks.append(torch.cat(parameters).detach().numpy().copy())

        def watched_epoch(epoch):
            stage.states.append({k: v.clone() for k, v in model.state_dict().items()})
            return after_epoch(epoch)

        more |= (
            {"after_epoch": watched_epoch} if after_epoch else {"parameters": parameters, "after_step": watched_step}
        )
        stage.history = bench.training.fit(model, images, plan, objective=watched_objective, **more)
        if after_epoch:
            stored = self.folder.arrays("rnp_unlearned_weights.npz")
            model.load_state_dict({name: torch.tensor(value) for name, value in stored.items()})
        return stage.history


run = cache(Run)


def test_images(rnp_folder):
    """Decoded images and our triggered test images are, byte for byte, what the vectors were made with."""
    defence, test = vectors.rnp_images(rnp_folder)
    stored = rnp_folder.manifest["sha256_arrays"]
    for images, name in ((defence, "defence_x"), (test, "test_x")):
        assert vectors.sha256(images.x.permute(0, 2, 3, 1).numpy()) == stored[name], name
    exam = vectors.rnp_exam(rnp_folder)
    rows = (test.y != int(rnp_folder.manifest["target"])).nonzero().flatten()
    np.testing.assert_array_equal(rows, rnp_folder.arrays("data.npz")["nontarget_rows"])
    assert len(exam.triggered) == len(rows)


def test_unlearning(rnp_folder):
    """Stage 1 stops after the same epoch, with the stored losses, accuracies and weights."""
    facts = rnp_folder.json("rnp.json")
    stage, _ = run(rnp_folder).stages
    assert len(stage.history) == len(facts["unlearn"]) == facts["stop_epoch"] + 1
    np.testing.assert_allclose(-stage.epoch_losses(), [e["train_loss"] for e in facts["unlearn"]], rtol=1e-2)
    close_accuracies(stage, facts["unlearn"])
    before = rnp_folder.arrays("backdoored_weights.npz")
    for state, at in ((stage.states[0], "first"), (stage.states[-1], "stop")):
        stored = facts["after_unlearn_epoch_index0" if at == "first" else "after_stop"]
        for name, moved in facts[f"delta_l2_{at}"].items():
            ours = state[name].double().numpy()
            assert np.linalg.norm(ours) == pytest.approx(stored[name]["l2"], rel=1e-2), (at, name)
            assert np.linalg.norm(ours - before[name]) == pytest.approx(moved, rel=0.1, abs=1e-6), (at, name)


def test_unlearned_weights(rnp_folder):
    """The weights and running statistics at the stop are the stored ones, to 1 % of their length."""
    ours = run(rnp_folder).stages[0].states[-1]
    stored = rnp_folder.arrays("rnp_unlearned_weights.npz")
    assert set(ours) == set(stored)
    for name, tensor in stored.items():
        assert np.linalg.norm(ours[name].numpy() - tensor) <= 1e-2 * np.linalg.norm(tensor), name


def test_recovering(rnp_folder):
    """Stage 2: losses, accuracies, and masks to 5e-3 after the first, the fifth and the last epoch."""
    facts, stored = rnp_folder.json("rnp.json"), rnp_folder.arrays("rnp_masks.npz")
    assert list(batch_norms(rnp_folder.network("backdoored_weights.npz"))) == facts["bn_layers"]
    scores, (_, stage) = run(rnp_folder).scores, run(rnp_folder).stages
    np.testing.assert_allclose(stage.epoch_losses(), [e["train_loss_alpha"] for e in facts["recover"]], rtol=1e-2)
    close_accuracies(stage, facts["recover"])
    last = len(stored["masks"])
    for epoch in {1, 5, last}:
        ours, theirs = stage.masks[epoch - 1], stored["masks"][epoch - 1]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-3, err_msg=f"epoch {epoch}")
    np.testing.assert_allclose(1 - flat(scores), stored["mask_text_4dec"], rtol=0, atol=5e-3)
    np.testing.assert_array_equal((1 - flat(scores)).round(9), (1 - flat(scores)).round(4))  # 4 decimals, as the file
    means = torch.cat([bn.running_mean for bn in batch_norms(stage.model).values()]).numpy()
    theirs = stored[f"running_mean_after_recover_{last}"]
    assert np.linalg.norm(means - theirs) <= 1e-2 * np.linalg.norm(theirs)


def test_counts_along_the_curve(rnp_folder):
    """As many channels at every threshold of our own masks, to 3 %."""
    scores = run(rnp_folder).scores
    for point in rnp_folder.json("rnp.json")["curve"]:
        ours = count(MaskBelow(0.3).mask(scores, point["threshold"]))
        assert ours == pytest.approx(point["n_pruned"], rel=0.03, abs=1), point["threshold"]


def test_pruning(rnp_folder):
    """Stage 3 from the stored mask file: exactly as many channels at every threshold, and the counts at some of them."""
    facts, stored = rnp_folder.json("rnp.json"), rnp_folder.arrays("rnp_masks.npz")
    scores = per_layer(1 - stored["mask_text_4dec"], facts["bn_layers"], stored["layer_count"])
    masks = [MaskBelow(0.3).mask(scores, point["threshold"]) for point in facts["curve"]]
    assert [count(mask) for mask in masks] == [point["n_pruned"] for point in facts["curve"]]
    model, exam = rnp_folder.network("backdoored_weights.npz"), vectors.rnp_exam(rnp_folder)
    totals = [len(exam.clean), len(exam.triggered), len(exam.triggered)]
    looked_at = [(model, facts["before_pruning"], "before pruning")]
    for index in spread(len(masks), 5):
        point = facts["curve"][index]
        looked_at.append((prune(model, masks[index], ("weight",)), point, f"threshold {point['threshold']}"))
    for network, stored_shares, where in looked_at:
        expected = [stored_shares[name] * total for name, total in zip(("acc_all", "asr", "ra"), totals, strict=True)]
        np.testing.assert_allclose(counts(evaluate(network, exam)), expected, rtol=0, atol=2.001, err_msg=where)


def close_accuracies(stage, stored):
    """To 2 images in 500."""
    np.testing.assert_allclose(
        [e.accuracy for e in stage.history], [e["train_acc"] for e in stored], rtol=0, atol=0.0041
    )


def flat(scores):
    return torch.cat(list(scores.values())).numpy()
