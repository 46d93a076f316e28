"""What the solver answers."""

from dataclasses import dataclass, field
from enum import Enum


class Outcome(Enum):
    """How a solve ended."""

    #: no permitted vector is better by more than the gap that was asked for
    OPTIMAL = "optimal"
    #: a limit was reached before the gap was closed
    GAP = "gap"
    #: no vector is permitted
    INFEASIBLE = "infeasible"
    #: a limit was reached before any permitted vector was found
    NO_ANSWER = "no answer"


@dataclass(frozen=True)
class Limits:
    """When to stop. Without a time limit the same program has the same answer on every machine.

    >>> Limits(node_limit=100).time_limit_s is None
    True
    """

    #: stop when (value - lower bound) / |value| is proven to be no more than this; 0 asks for the exact best, which
    #: may take long with hundreds of groups
    relative_gap: float = 1e-4
    #: nodes of the branch-and-bound tree: for searches, whose traces must repeat
    node_limit: int | None = None
    #: seconds: for people; the answer depends on the machine
    time_limit_s: float | None = None


@dataclass(frozen=True)
class Solution:
    """A vector that keeps every bound, and how good it is proven to be.

    >>> Solution(Outcome.OPTIMAL, (0, 1), 2.0, {"size": 7.0}, 1.5).relative_gap
    0.25
    """

    outcome: Outcome
    #: one option a group; None when there is none
    vector: tuple[int, ...] | None = None
    #: the objective of the vector, as its costs state it
    value: float | None = None
    #: name of a bound → the largest of its costs for the vector; bounds with an infinite limit too
    bound_values: dict[str, float] = field(default_factory=dict)
    #: no permitted vector has a smaller objective, up to HiGHS's tolerances (10⁻⁶ of the largest difference that one
    #: group makes); None when nothing is proven
    lower_bound: float | None = None
    #: nodes that HiGHS solved
    n_nodes: int = 0

    @property
    def relative_gap(self) -> float | None:
        """(value - lower bound) / |value|; None without a value or a bound."""
        if self.value is None or self.lower_bound is None:
            return None
        difference = self.value - self.lower_bound
        if difference == 0.0:
            return 0.0
        return difference / abs(self.value) if self.value else float("inf")
