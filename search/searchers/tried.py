"""What a searcher has suggested or was given, and what came of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...core.errors import RunError
from ...evaluators.measurement import Measurement
from ...spaces.policy import Policy
from ...spaces.space import Space
from ..searcher import Suggestion, Verdict
from .unseen import find_unseen

#: budgets exceeded more than this many times over are all equally hopeless; keeps infinities out of sums and of JSON
MAX_VIOLATION = 1e9


@dataclass(frozen=True, slots=True)
class Result:
    """A policy and its verdict, as far as there is one."""

    policy: Policy
    #: (n_dimensions,) int64: the policy as the space encodes it
    vector: np.ndarray = field(compare=False)
    #: the number of the suggestion; None for a policy that was injected
    number: int | None
    #: None while the verdict is open
    verdict: Verdict | None = None

    @property
    def key(self) -> tuple[int, ...]:
        """The vector as something that can be compared and stand in a set."""
        return tuple(self.vector.tolist())

    @property
    def merit(self) -> tuple[float, float]:
        """(violation, objective), the smaller the better; infinite where there is no result."""
        objectives = None if self.verdict is None else self.verdict.objectives
        if self.verdict is None or objectives is None or not all(map(math.isfinite, objectives)):
            return (math.inf, math.inf)
        return (min(self.verdict.violation, MAX_VIOLATION), objectives[0])

    @property
    def is_known(self) -> bool:
        """Whether the objective was measured."""
        return math.isfinite(self.merit[1])

    @property
    def is_hopeless(self) -> bool:
        """Whether the trial was stopped because it was bad."""
        return self.verdict is not None and not self.is_known and math.isinf(self.verdict.violation)


@dataclass
class Tried:
    """The policies of a space that need not be suggested again, the oldest first, each with its result.

    Age is the order in which policies were suggested or injected, never that in which verdicts came.

    >>> from trimtab.search.testing import policy_of, small_space
    >>> tried = Tried(small_space())
    >>> tried.suggest(policy_of(tried.space, [1])).id
    0
    >>> tried.tell([Verdict(0, (0.5,), 0.0)])
    >>> tried.ranked()[0].merit
    (0.0, 0.5)
    """

    space: Space
    #: how often the searcher was asked
    n_asks: int = 0
    n_suggested: int = 0
    results: dict[Policy, Result] = field(default_factory=dict)
    #: suggestion id → policy, until its verdict comes
    pending: dict[int, Policy] = field(default_factory=dict)

    def __contains__(self, policy: object) -> bool:
        return policy in self.results

    @property
    def is_exhausted(self) -> bool:
        """Whether every policy of the space was tried."""
        return len(self.results) >= self.space.size

    def suggest(self, policy: Policy) -> Suggestion:
        """Makes a suggestion of a policy that was not tried."""
        suggestion = Suggestion(self.n_suggested, policy)
        self.n_suggested += 1
        self.pending[suggestion.id] = policy
        self.results[policy] = self._result(policy, suggestion.id)
        return suggestion

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Notes verdicts on open suggestions.

        Raises:
            RunError: a verdict's id is not open.
        """
        for verdict in verdicts:
            if verdict.id not in self.pending:
                raise RunError(f"verdict on suggestion {verdict.id}, which is not open; open: {sorted(self.pending)}")
            policy = self.pending.pop(verdict.id)
            self.results[policy] = self._result(policy, verdict.id, verdict)

    def inject(self, policy: Policy, verdict: Verdict) -> None:
        """Notes a policy from elsewhere; one outside the space, or known, is left aside."""
        if policy not in self.results and self.space.contains(policy):
            self.results[policy] = self._result(policy, None, verdict)

    def keys(self) -> set[tuple[int, ...]]:
        """Returns the vectors of everything that was tried."""
        return {result.key for result in self.results.values()}

    def known(self) -> list[Result]:
        """Returns what has a result, the oldest first."""
        return [result for result in self.results.values() if result.is_known]

    def ranked(self) -> list[Result]:
        """Returns what has a result, the best first; the policy's id breaks ties."""
        return sorted(self.known(), key=lambda result: (*result.merit, result.policy.id))

    def nearest_unseen(self, rng: np.random.Generator) -> Policy:
        """Returns a policy that was not tried, next to the best that were; there must be one."""
        known = [result.policy for result in self.ranked()]
        others = [policy for policy, result in self.results.items() if not result.is_known]
        return find_unseen(self.space, self.results.keys(), [*known, *others]) or self.space.sample(rng)

    def state_dict(self) -> dict[str, Any]:
        """Returns the whole state as JSON values."""
        return {
            "n_asks": self.n_asks,
            "n_suggested": self.n_suggested,
            "results": [
                {
                    "policy": result.policy.to_json(),
                    "number": result.number,
                    "verdict": None if result.verdict is None else _verdict_to_json(result.verdict),
                }
                for result in self.results.values()
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state that `state_dict` returned."""
        self.n_asks, self.n_suggested = state["n_asks"], state["n_suggested"]
        self.results, self.pending = {}, {}
        for entry in state["results"]:
            policy, number = Policy.from_json(entry["policy"]), entry["number"]
            verdict = None if entry["verdict"] is None else _verdict_from_json(entry["verdict"])
            self.results[policy] = self._result(policy, number, verdict)
            if verdict is None:
                self.pending[number] = policy

    def _result(self, policy: Policy, number: int | None, verdict: Verdict | None = None) -> Result:
        return Result(policy, self.space.encode(policy), number, verdict)


def _verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    # JSON has neither infinity nor NaN: an objective that is not finite counts as none, an infinite violation is None
    objectives = verdict.objectives
    is_finite = objectives is not None and all(map(math.isfinite, objectives))
    return {
        "id": verdict.id,
        "objectives": list(objectives) if objectives is not None and is_finite else None,
        "violation": verdict.violation if math.isfinite(verdict.violation) else None,
        "measurement": verdict.measurement.to_json(),
    }


def _verdict_from_json(value: dict[str, Any]) -> Verdict:
    return Verdict(
        value["id"],
        None if value["objectives"] is None else tuple(value["objectives"]),
        math.inf if value["violation"] is None else value["violation"],
        Measurement.from_json(value["measurement"]),
    )
