"""What a trial has to reach to be worth its whole cost."""

from dataclasses import dataclass

from ..evaluators.measurement import Measurement
from .budget import BOUNDS, Budget
from .objectives import objective_value


@dataclass(frozen=True, slots=True)
class Goal:
    """What a trial is up against: the budget, and the best that is known to keep it.

    >>> goal = Goal("size", Budget(size_bytes=2e6), best=1e6)
    >>> goal.rules_out(Measurement(size_bytes=1_500_000))
    'its size is worse than that of the best so far'
    """

    #: one of `OBJECTIVES`
    objective: str
    budget: Budget
    #: objective of the best record that keeps the budget and was scored in full, as `objective_value` gives it; None
    #: where there is none yet
    best: float | None = None

    def rules_out(self, measurement: Measurement) -> str:
        """Returns why the trial cannot win whatever its accuracy, in words; empty where it still can.

        An equal is not ruled out: between equals the other quantities decide.
        """
        excess = self._excess(measurement)
        if excess or self.objective == "accuracy":
            return excess
        value = objective_value(self.objective, measurement, self.budget)
        if value is None:
            return f"its {self.objective} is not known"
        if self.best is not None and value > self.best:
            return f"its {self.objective} is worse than that of the best so far"
        return ""

    def _excess(self, measurement: Measurement) -> str:
        exceeded = {name for name, excess in self.budget.excesses(measurement) if excess > 0.0}
        for name, label, factor, unit in BOUNDS:
            if name not in exceeded or name == "accuracy_drop":
                continue
            value, bound = self.budget.value_of(name, measurement), getattr(self.budget, name)
            if value is None:
                return f"its {label} is not known"
            return f"its {label} of {value * factor:.4g} {unit} is above {bound * factor:.4g} {unit}"
        return ""
