"""What a search is asked: the same for every algorithm."""

from dataclasses import dataclass, field

from ..spaces.space import Space
from .budget import Budget
from .knowledge import Knowledge
from .objectives import check_objective


@dataclass(frozen=True)
class Problem:
    """A space, what is wanted of its policies, and what is known before any trial.

    Raises:
        SpecError: the objective is unknown.
    """

    space: Space
    budget: Budget = field(default_factory=Budget)
    #: one of `OBJECTIVES`
    objective: str = "latency"
    knowledge: Knowledge = field(default_factory=Knowledge)

    def __post_init__(self) -> None:
        check_objective(self.objective)
