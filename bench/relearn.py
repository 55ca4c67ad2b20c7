"""Does it stay purified? The repaired model is trained on, and whoever has the trigger looks whether the backdoor is back.

A purified model may have forgotten the backdoor or only hidden it; how few poisoned images bring it back tells them apart. (Min
et al., "Uncovering, Explaining, and Mitigating the Superficial Safety of Backdoor Defense", NeurIPS 2024, ask so with a
Retuning Attack. The numbers here are ours.) Each training starts anew from the model at the operating point and takes
the clean images that a defender has, with k poisoned ones among them: training images that count for ASR, with the
trigger, labelled as the attacker wants. Those for a smaller k are among those for a larger one. Enough of them teach any
network, so the clean model of the bench goes through the same, as control.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bench.chosen import Chosen
from bench.data import ImageSet, generator, stream
from bench.errors import UserError
from bench.metrics import evaluate
from bench.plan import Plan
from bench.scene import Scene
from bench.training import fit


class Relearn:
    """`tune`: how to train. `counts`: the numbers k of poisoned images. `hold`: what pruning set to 0 stays 0.

    `control`: whether the clean model goes through the same, where there is one (`gate.max_drop` is not null).
    """

    def __init__(self, tune: Plan, counts: Sequence[int], hold: bool = False, control: bool = True) -> None:
        self.tune, self.counts, self.hold, self.control = tune, sorted(set(counts)), hold, control
        if not all(isinstance(k, int) and k > 0 for k in self.counts):
            raise UserError(
                f"check.counts={list(counts)} must be whole numbers above 0; clean images only are always tried."
            )

    def fits(self, stage: Scene) -> None:
        """Raises UserError if there is no trigger to put on training images, or if there are too few of them."""
        if not stage.backdoor.trigger.known:
            raise UserError("check=relearn: nobody knows this trigger, so no image can be poisoned with it.")
        if stage.backdoor.trigger.identity:
            raise UserError(
                "check=relearn: this attack puts nothing on an image, so there are no poisoned images to train on."
            )
        able = int(stage.backdoor.trigger.counts(stage.data.train.y).sum())
        if self.counts and self.counts[-1] > able:
            raise UserError(f"check.counts asks for {self.counts[-1]} poisoned images, but only {able} can be made.")

    def columns(self, stage: Scene, chosen: Chosen) -> dict[str, Any]:
        """`relearn_acc_clean`, `relearn_asr_clean`, `relearn_ra_clean`, and the same with `k1`, `k10`, ... for `clean`.

        And with `control_clean`, `control_k1`, ... for the control.
        """
        seed = stream(stage.settings["seed"], "relearn")
        clean, poisoned = self.images(stage), self.poisoned(stage, seed)
        out: dict[str, Any] = {"relearn_hold": self.hold, "relearn_images": len(clean)}
        starts = {"": chosen.model} | ({"control_": stage.clean.model} if self.control and stage.clean else {})
        for start, model in starts.items():
            for k in (0, *self.counts):
                mix = ImageSet(torch.cat([clean.x, poisoned.x[:k]]), torch.cat([clean.y, poisoned.y[:k]]))
                metrics = evaluate(self.trained(model, mix, stage, seed), stage.exam)
                word = start + (f"k{k}" if k else "clean")
                out |= {f"relearn_{name}_{word}": getattr(metrics, name) for name in ("acc", "asr", "ra")}
        return out

    def trained(self, model: nn.Module, images: ImageSet, stage: Scene, seed: int) -> nn.Module:
        """A copy of the model, trained on."""
        model = copy.deepcopy(model)
        hold = held(model, stage.backdoor.model) if self.hold else None
        torch.manual_seed(seed)  # dropout's
        fit(model, images, self.tune, seed=seed, augment=stage.data.augment, after_step=hold, label="relearning")
        return model

    def images(self, stage: Scene) -> ImageSet:
        """The clean images of a defender that needs some: the same as the defence had, if it had any."""
        clean, seed = stage.settings["clean"], stream(stage.settings["seed"], "defender")
        wanted = {key: clean[key] for key in ("tune", "select", "source", "balance")}
        return stage.data.defender(**wanted, seed=seed, needs="clean")[0].clean

    def poisoned(self, stage: Scene, seed: int) -> ImageSet:
        train, trigger = stage.data.train, stage.backdoor.trigger
        able = trigger.counts(train.y).nonzero().flatten()
        order = torch.randperm(len(able), generator=generator(seed, "poisoned"))[: max(self.counts, default=0)]
        drawn = train[able[order.to(able.device)]]
        return ImageSet(trigger.stamp(drawn.x), trigger.relabel(drawn.y))


def held(model: nn.Module, before: nn.Module) -> Callable[[], None]:
    """A function that puts back to 0 the weights of `model` that are 0 now, and were not in `before`."""
    old = dict(before.named_parameters())
    same = {name: p for name, p in model.named_parameters() if name in old and old[name].shape == p.shape}
    dead = {name: (p.detach() == 0) & (old[name].detach() != 0) for name, p in same.items()}

    @torch.no_grad()
    def hold() -> None:
        for name, gone in dead.items():
            same[name].masked_fill_(gone, 0)

    return hold
