"""Evolution around the best policies: for spaces with more choices than there are trials.

A model-based sampler needs more trials than choices before it knows what each of them does. Here every suggestion is
one of the best policies known (the baselines included) with few changes, among them changes of a whole *role*: the
same layer of every block, as its name without numbers tells. After E. Real et al., Regularized Evolution for Image
Classifier Architecture Search, AAAI 2019 (mutation of good parents), with elitist instead of ageing selection.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...core.errors import RunError
from ...core.seeds import derive_rng
from ...spaces.policy import Policy
from ...spaces.space import Space
from ..problem import Problem
from ..searcher import Suggestion, Verdict
from .unseen import find_unseen

#: parents are drawn from this many of the best
_N_PARENTS = 6
#: how often a parent's rank is passed over for the next one
_PASS_OVER = 0.5
#: mutations that may turn out known before the nearest unseen policy is taken instead
_N_PROPOSALS = 50
#: shares of the moves: change of a role, of one to three choices; the rest is a crossover of two parents
_ROLE_SHARE, _FEW_SHARE = 0.45, 0.4


class EvolutionSearcher:
    """Mutates and crosses the best policies known; never suggests the same twice.

    >>> from trimtab.search.testing import small_problem
    >>> len(EvolutionSearcher(small_problem(), seed=0).ask(3))
    3
    """

    def __init__(self, problem: Problem, *, seed: int) -> None:
        self._space = problem.space
        self._seed = seed
        self._n_asks = 0
        self._n_suggested = 0
        #: suggestion id → policy, until its verdict comes
        self._pending: dict[int, Policy] = {}
        #: policy of the space → (violation, objective); infinities until, or unless, it is known
        self._scores: dict[Policy, tuple[float, float]] = {}
        self._roles = _find_roles(problem.space)

    def ask(self, n: int) -> list[Suggestion]:
        """Returns up to n suggestions; fewer only when the space is exhausted."""
        rng = derive_rng(self._seed, "ask", self._n_asks)
        self._n_asks += 1
        parents = [self._space.encode(policy) for policy in self._ranked()[:_N_PARENTS]]
        found: list[Suggestion] = []
        while len(found) < n and len(self._scores) < self._space.size:
            policy = self._propose(parents, rng)
            self._scores[policy] = (math.inf, math.inf)
            self._pending[self._n_suggested] = policy
            found.append(Suggestion(self._n_suggested, policy))
            self._n_suggested += 1
        return found

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Learns from verdicts on earlier suggestions, by id, in any order.

        Raises:
            RunError: a verdict's id is not open.
        """
        for verdict in verdicts:
            if verdict.id not in self._pending:
                raise RunError(f"verdict on suggestion {verdict.id}, which is not open; open: {sorted(self._pending)}")
            self._note(self._pending.pop(verdict.id), verdict.objectives, verdict.violation)

    def inject(self, policy: Policy, verdict: Verdict) -> None:
        """Learns from a policy that it did not suggest; one outside the space, or known, is left aside."""
        if policy not in self._scores and self._space.contains(policy):
            self._note(policy, verdict.objectives, verdict.violation)

    def state_dict(self) -> dict[str, Any]:
        """Returns the whole state as JSON values."""
        return {
            "n_asks": self._n_asks,
            "n_suggested": self._n_suggested,
            "pending": [[number, policy.to_json()] for number, policy in sorted(self._pending.items())],
            # JSON has no infinity: a policy without a result is written without a score
            "scores": [
                [policy.to_json(), None if math.isinf(score[1]) else list(score)]
                for policy, score in self._scores.items()
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state that `state_dict` returned."""
        self._n_asks, self._n_suggested = state["n_asks"], state["n_suggested"]
        self._pending = {number: Policy.from_json(policy) for number, policy in state["pending"]}
        self._scores = {
            Policy.from_json(policy): (math.inf, math.inf) if score is None else (score[0], score[1])
            for policy, score in state["scores"]
        }

    def _note(self, policy: Policy, objectives: tuple[float, ...] | None, violation: float) -> None:
        self._scores[policy] = (math.inf, math.inf) if objectives is None else (min(violation, 1e9), objectives[0])

    def _ranked(self) -> list[Policy]:
        """Returns the policies with a result, the best first; the policy's id breaks ties, not the order of telling."""
        known = [policy for policy, score in self._scores.items() if math.isfinite(score[1])]
        return sorted(known, key=lambda policy: (*self._scores[policy], policy.id))

    def _propose(self, parents: list[np.ndarray], rng: np.random.Generator) -> Policy:
        for _ in range(_N_PROPOSALS):
            policy = self._move(parents, rng) if parents else self._space.sample(rng)
            if policy not in self._scores:
                return policy
        unseen = find_unseen(self._space, self._scores.keys(), sorted(self._scores, key=lambda policy: policy.id))
        return unseen or self._space.sample(rng)

    def _move(self, parents: list[np.ndarray], rng: np.random.Generator) -> Policy:
        vector = _pick(parents, rng).copy()
        kind = rng.random()
        if kind < _ROLE_SHARE:
            role = self._roles[rng.integers(len(self._roles))]
            sizes = [list(self._space.dimensions.values())[i] for i in role]
            vector[role] = int(rng.integers(min(sizes)))
        elif kind < _ROLE_SHARE + _FEW_SHARE:
            sizes = list(self._space.dimensions.values())
            free = [i for i, size in enumerate(sizes) if size > 1]
            for i in rng.choice(free, size=min(int(rng.integers(1, 4)), len(free)), replace=False):
                vector[i] = (vector[i] + rng.integers(1, sizes[i])) % sizes[i]
        else:
            other = _pick(parents, rng)
            vector = np.where(rng.random(len(vector)) < 0.5, vector, other)
        return self._space.decode(vector)


def _find_roles(space: Space) -> list[list[int]]:
    """Returns the positions in the vector that belong together: names equal but for numbers, equal options."""
    roles: dict[tuple[object, ...], list[int]] = {}
    options = [*space.options, *[()] * (len(space.dimensions) - len(space.groups))]
    for position, ((name, size), offered) in enumerate(zip(space.dimensions.items(), options, strict=True)):
        if size > 1:
            roles.setdefault((re.sub(r"\d+", "*", name), offered), []).append(position)
    return list(roles.values()) or [[0]]


def _pick(parents: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    rank = 0
    while rank + 1 < len(parents) and rng.random() < _PASS_OVER:
        rank += 1
    return parents[rank]
