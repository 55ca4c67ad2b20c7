"""Oracle: prunes the channels that the true trigger moves most. IT CHEATS: it sees the trigger. No defence.

How far pruning goes if the backdoor's channels are known: meant as an upper bound for scores that are found without the
trigger. It is none for methods that fine-tune, and no proven one: TAC ranks channels one by one.
The score is the trigger-activated change (TAC) of Zheng et al. (CLP), ECCV 2022, at the output of each normalisation layer,
on the defender's clean images; `bench/tac.py` has the definition. Departures: the paper measures TAC and prunes nothing by it.
The rule is CLP's own, outliers within a layer, because feature maps of different sizes have changes of different sizes.
"""

from bench.defenses.base import PruningDefense
from bench.errors import UserError
from bench.tac import trigger_activated_change
from bench.training import to_unit


class Oracle(PruningDefense):
    needs = "trigger"

    def score(self, model, data):
        if data.trigger is None:
            raise UserError("The oracle looks at the true trigger and was given none; a real defender never has it.")
        x = data.clean.x
        return trigger_activated_change(model, to_unit(x), to_unit(data.trigger.stamp(x)), "The oracle")
