"""Uniform random search without repetition: the baseline that every other algorithm has to beat."""

from collections.abc import Sequence
from typing import Any

from ...core.errors import RunError
from ...core.seeds import derive_rng
from ...spaces.policy import Policy
from ..problem import Problem
from ..searcher import Suggestion, Verdict
from .unseen import find_unseen

#: samples that may turn out known before the nearest unseen policy is taken instead
_N_SAMPLES = 50


class RandomSearcher:
    """Draws every choice uniformly; never the same policy twice.

    >>> from trimtab.search.testing import small_problem
    >>> len(RandomSearcher(small_problem(), seed=0).ask(3))
    3
    """

    def __init__(self, problem: Problem, *, seed: int) -> None:
        self._space = problem.space
        self._seed = seed
        self._n_asks = 0
        #: suggested or injected, in that order; those outside the space are not counted among the seen
        self._seen: dict[Policy, None] = {}
        self._n_suggested = 0
        self._pending: set[int] = set()

    def ask(self, n: int) -> list[Suggestion]:
        """Returns up to n suggestions; fewer only when the space is exhausted."""
        rng = derive_rng(self._seed, "ask", self._n_asks)
        self._n_asks += 1
        found: list[Suggestion] = []
        while len(found) < n and len(self._seen) < self._space.size:
            samples = (self._space.sample(rng) for _ in range(_N_SAMPLES))
            policy = next((sample for sample in samples if sample not in self._seen), None)
            policy = policy or find_unseen(self._space, self._seen.keys(), list(self._seen))
            if policy is None:
                break
            self._seen[policy] = None
            self._pending.add(self._n_suggested)
            found.append(Suggestion(self._n_suggested, policy))
            self._n_suggested += 1
        return found

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Takes note that the suggestions were tried; random search learns nothing from them.

        Raises:
            RunError: a verdict's id was not suggested, or was told before.
        """
        for verdict in verdicts:
            if verdict.id not in self._pending:
                raise RunError(f"verdict on suggestion {verdict.id}, which is not open; open: {sorted(self._pending)}")
            self._pending.remove(verdict.id)

    def inject(self, policy: Policy, verdict: Verdict) -> None:  # noqa: ARG002
        """Takes note that the policy is known and need not be suggested."""
        if self._space.contains(policy):
            self._seen[policy] = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the whole state as JSON values."""
        return {
            "n_asks": self._n_asks,
            "n_suggested": self._n_suggested,
            "pending": sorted(self._pending),
            "seen": [policy.to_json() for policy in self._seen],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state that `state_dict` returned."""
        self._n_asks = state["n_asks"]
        self._n_suggested = state["n_suggested"]
        self._pending = set(state["pending"])
        self._seen = {Policy.from_json(policy): None for policy in state["seen"]}
