"""The one protocol behind which every search algorithm stands."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..core.registry import Registry
from ..evaluators.measurement import Measurement
from ..spaces.policy import Policy
from .objectives import objective_vector
from .problem import Problem


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A policy to try; the id is the searcher's own and comes back in `Verdict`."""

    id: int
    policy: Policy


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a suggestion.

    ``objectives`` are minimised, the first is the search's objective; None means that there are none. ``violation`` is
    0.0 when the budget is kept. A trial without objectives tells nothing when its violation is 0.0: it failed; an
    infinite one says that it was stopped because it was bad.
    """

    id: int
    objectives: tuple[float, ...] | None
    violation: float
    #: all that was measured, for searchers that model each quantity; also what is known of a trial that was stopped
    measurement: Measurement = field(default_factory=Measurement)


def give_verdict(problem: Problem, number: int, measurement: Measurement) -> Verdict:
    """Returns the verdict on a suggestion that was measured: without objectives where one of them is missing."""
    objectives = objective_vector(problem.objective, measurement, problem.budget)
    violation = 0.0 if objectives is None else problem.budget.violation(measurement)
    return Verdict(number, objectives, violation, measurement)


class Searcher(Protocol):
    """Proposes policies and learns from verdicts.

    Deterministic: equal seeds, spaces and verdicts give equal suggestions, in whatever order the verdicts
    of one batch are told. `state_dict` is JSON and restores exactly.
    """

    def ask(self, n: int) -> list[Suggestion]:
        """Returns up to n suggestions; fewer, or none, only when the space holds no more that it would try."""
        ...

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Learns from verdicts on earlier suggestions, by id, in any order."""
        ...

    def inject(self, policy: Policy, verdict: Verdict) -> None:
        """Learns from a policy that it did not suggest: a baseline, or a previous run; the id means nothing."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Returns the whole state as JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state that `state_dict` returned."""
        ...


#: name → factory(problem: Problem, *, seed: int) -> Searcher
SEARCHERS: Registry[Searcher] = Registry(
    "search algorithm",
    "trimtab.searchers",
    {
        "random": "trimtab.search.searchers.random_searcher:build_random",
        "tpe": "trimtab.search.searchers.optuna_searcher:build_tpe",
        "nsga2": "trimtab.search.searchers.optuna_searcher:build_nsga2",
        "nsga3": "trimtab.search.searchers.optuna_searcher:build_nsga3",
        "gp": "trimtab.search.searchers.optuna_searcher:build_gp",
        "cmaes": "trimtab.search.searchers.cmaes_searcher:build_cmaes",
        "evolution": "trimtab.search.searchers.evolution_searcher:build_evolution",
        "policy_gradient": "trimtab.search.searchers.policy_gradient_searcher:build_policy_gradient",
        "greedy": "trimtab.search.searchers.greedy_searcher:build_greedy",
        "auto": "trimtab.search.searchers.auto_searcher:build_auto",
    },
)


def build_searcher(algorithm: str, problem: Problem, *, seed: int) -> Searcher:
    """Makes a searcher by name.

    Raises:
        SpecError: the name is unknown.
    """
    return SEARCHERS.get(algorithm)(problem, seed=seed)
