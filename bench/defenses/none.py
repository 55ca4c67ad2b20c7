"""No defence: the backdoored model as it is. The row every other row is compared with."""

from bench.defenses.base import Candidate, Defense, Repaired


class NoDefense(Defense):
    needs = "nothing"

    def repair(self, model, data):
        return Repaired([Candidate(model)])
