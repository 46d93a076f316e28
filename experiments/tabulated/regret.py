"""How far from the best a search still is: the same for tabulated and for synthetic problems."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...core.errors import MeasurementError, PolicyError, SpecError
from ...evaluators.measurement import Measurement
from ...search.objectives import objective_value
from ...search.problem import Problem
from ...spaces.policy import Policy

#: policy → what is measured of it
Measure = Callable[[Policy], Measurement]


@dataclass(frozen=True)
class Optimum:
    """The best feasible policy of a problem; of several equal ones any."""

    policy: Policy
    #: what is minimised, in the unit of `objective_value`
    objective: float

    def __post_init__(self) -> None:
        if not 0.0 < self.objective < math.inf:
            raise SpecError(f"regret is relative, so the optimum must be positive and finite, got {self.objective}")


def feasible_objective(problem: Problem, measure: Measure, policy: Policy) -> float:
    """Returns the objective of a policy; infinity where it breaks the budget or cannot be measured."""
    try:
        measurement = measure(policy)
    except (PolicyError, MeasurementError):
        return math.inf
    if problem.budget.violation(measurement) > 0.0:
        return math.inf
    value = objective_value(problem.objective, measurement, problem.budget)
    return math.inf if value is None else value


def regrets(problem: Problem, measure: Measure, optimum: Optimum, policies: Sequence[Policy]) -> np.ndarray:
    """Returns (n_policies + 1,) float64: the regret before any evaluation and after each of them.

    Regret is (best feasible objective of those evaluated and of the untouched original − optimum) / optimum; infinite
    while nothing feasible is known.

    Args:
        problem: budget and objective decide what is feasible and what is best.
        measure: of the problem.
        optimum: of the problem.
        policies: in the order in which they were evaluated.
    """
    known: dict[Policy, float] = {}
    for policy in (Policy({}), *policies):
        if policy not in known:
            known[policy] = feasible_objective(problem, measure, policy)
    best = np.minimum.accumulate([known[policy] for policy in (Policy({}), *policies)])
    relative: np.ndarray = (best - optimum.objective) / optimum.objective
    return relative
