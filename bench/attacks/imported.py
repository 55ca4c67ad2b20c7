"""A backdoored model from elsewhere, with the trigger that comes with it: nothing is trained.

The trigger is, in this order: trigger.safetensors with card.json beside the model (this bench's own), ANP's trigger_info.th
beside it, BackdoorBench's pictures (bd_test_dataset/ beside attack_result.pt), or a `trigger` in the file itself (EP, CLP).
docs/checkpoints.md has the forms.
Departures: images are triggered as bytes, while EP's code pastes floats; its random pattern is rounded to the nearest of 256.
"""

import torch

from bench.attacks.base import Attack, PoisonAttack
from bench.attacks.counts import check_rate, draw_mix, poison_count
from bench.checkpoints import checkpoint as open_checkpoint
from bench.companions import PICTURES, beside
from bench.data import ImageSet
from bench.errors import UserError
from bench.foreign import Pictures, found, images, rows


class Imported(Attack):
    """`target`: the class wanted, where the file does not say (EP, CLP: 0 by default). `alpha`: opacity; null: as the file says.

    `corners`: whether EP's trigger is in all four corners (its clean-label attack). `poison_rate`: of the mix that a
    defence asks for, where the file does not say (0.1 by default). Raises UserError if the file says otherwise.
    """

    elsewhere = True

    def __init__(self, shape, num_classes, checkpoint=None, target: int | None = None, alpha: float | None = None,
                 corners=False, poison_rate: float | None = None):  # fmt: skip
        super().__init__(shape, num_classes)
        if checkpoint is None:
            raise UserError("attack=imported is about a model from elsewhere: give model.checkpoint=FILE.")
        self.file = open_checkpoint(checkpoint)
        self.trigger, self.facts, made = found(self.file, shape, num_classes, target, alpha, corners)
        self.clean_label = isinstance(made, PoisonAttack) and made.victims == "target"
        said = {"target": self.trigger.target, "poison_rate": self.facts.get("poison_rate")}
        for name, given in (("target", target), ("poison_rate", poison_rate)):
            if None not in (given, said[name]) and given != said[name]:
                raise UserError(f"attack.{name}={given}: {self.file.path} says {said[name]}; leave attack.{name} out.")
        if alpha is not None and isinstance(self.trigger, Pictures):
            raise UserError(
                f"attack.alpha={alpha} changes nothing: the trigger is only known as pictures. Leave it out."
            )
        self.poison_rate = said["poison_rate"] or (0.1 if poison_rate is None else poison_rate)
        check_rate("attack.poison_rate", self.poison_rate)

    def inject(self, model, data, lab):
        return self.facts

    def mix(self, train, size, seed):
        """As `Attack.mix`; where the trigger is only known as pictures, with the poisoned training images among these."""
        if self.clean_label:
            raise UserError(
                f"this defence needs poisoned training images, and those of {self.file.path} cannot be made anew from its "
                "trigger (they kept their labels): run the defence where the model was trained."
            )
        if not isinstance(self.trigger, Pictures):
            return super().mix(train, size, seed)
        folder = beside(str(self.file.path), PICTURES[1])
        index, before, after = rows(self.file, "bd_train") if self.file.rest.get("bd_train") else ([], [], [])
        count = min(poison_count(self.poison_rate, size), len(index))
        if folder is None or not count:
            raise UserError(
                f"this defence needs poisoned training images, and {PICTURES[1]}/ with them is not beside {self.file.path}."
            )
        if not set(before + after) <= set(range(self.num_classes)):
            raise UserError(f"{self.file.path}: bd_train has classes outside 0 to {self.num_classes - 1}.")
        clean = train[draw_mix(len(train), size, seed).to(train.y.device)[count:]]
        some = draw_mix(len(index), count, seed).tolist()
        x = images(folder, [index[i] for i in some], [before[i] for i in some], self.shape)
        y = torch.tensor([after[i] for i in some])
        return ImageSet(torch.cat([x.to(clean.x), clean.x]), torch.cat([y.to(clean.y), clean.y]))
