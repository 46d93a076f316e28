"""What the solver makes of the knowledge alone: policies for a range of accuracies, before any trial."""

from collections.abc import Iterator

import numpy as np

from ..spaces.policy import Policy
from .baselines import spread
from .pareto import pareto_front
from .problem import Problem
from .solver.additive_cost import AdditiveCost
from .solver.front import sweep
from .solver.program import Bound, Program
from .solver.solution import Limits

#: a front is a proposal, not a proof: small gaps do not matter, and the same program must have the same answer
_LIMITS = Limits(relative_gap=1e-3, node_limit=64)


def known_front(problem: Problem, n: int) -> tuple[Policy, ...]:
    """Returns up to n policies from the one that changes the output least to the one that costs least.

    What is minimised is the known latency, or the size where that is the objective or no latency is known, for as many
    bounds on the summed influence on the output. Empty where influences are not known.

    Args:
        problem: space, objective and knowledge.
        n: at least 2.
    """
    knowledge = problem.knowledge
    if not knowledge.influence:
        return ()
    influence = AdditiveCost(0.0, knowledge.influence)
    found: dict[Policy, tuple[float, float]] = {}
    for setting, cost in _costs(problem):
        program = Program((cost,), (Bound("influence", (influence,), np.inf),))
        for solution in sweep(program, "influence", n, _LIMITS):
            policy = problem.space.decode([*(solution.vector or ()), *setting])
            point = (solution.bound_values["influence"], solution.value or 0.0)
            found[policy] = min(point, found.get(policy, point))
    policies = list(found)
    front = [policies[i] for i in pareto_front(list(found.values()))]
    return tuple(spread(sorted(front, key=lambda policy: found[policy]), n))


def _costs(problem: Problem) -> Iterator[tuple[tuple[int, ...], AdditiveCost]]:
    """Yields settings of the graph-wide choices with what is minimised in them."""
    knowledge, space = problem.knowledge, problem.space
    if problem.objective != "size" and knowledge.latency:
        yield from knowledge.latency.items()
    elif knowledge.size_bytes is not None:
        yield (0,) * (len(space.dimensions) - len(space.groups)), knowledge.size_bytes
