"""The default search: solve what is believed, measure, correct, solve again.

Every quantity of the problem is believed to be what was known beforehand plus a Gaussian process whose mean is a sum
over groups and pairs of groups (`search/beliefs`). So a mixed-integer program finds the best policy under what is
believed, exactly and among any number of policies; the trial that promises most (expected improvement within the
budget, `Beliefs.score`) is proposed, and each result corrects the beliefs: latencies, drops, and which pairs of
layers do not simply add up.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...core.errors import RunError
from ...core.seeds import derive_rng
from ...evaluators.measurement import Measurement
from ...spaces.policy import Policy
from ..beliefs.beliefs import Beliefs, Trial, fit_beliefs
from ..problem import Problem
from ..searcher import Suggestion, Verdict
from .candidates import Tried, Vector, mutants_of, neighbours_of, random_policies
from .solved import solve_believed

#: measurements below which policies are drawn at random: nothing can be believed of a single one
_N_FEWEST = 2
#: of the policies known, so many are taken apart for new ones; and so many are drawn beside those
_N_STARTS, _N_MUTANTS, _N_RANDOM = 6, 128, 32
#: rounds in which the neighbours of the most promising candidates join them
_N_CLIMBS, _N_CLIMBERS = 4, 3


class AutoSearcher:
    """Proposes what is believed to be best, and learns from every quantity that was measured.

    >>> from trimtab.search.testing import small_problem
    >>> len(AutoSearcher(small_problem(), seed=0).ask(3))
    3
    """

    def __init__(self, problem: Problem, *, seed: int) -> None:
        self._problem, self._space = problem, problem.space
        self._seed = seed
        self._n_asks = 0
        self._n_suggested = 0
        #: suggestion id → vector, until its verdict comes
        self._pending: dict[int, Vector] = {}
        #: vector → (violation, objective, measurement); None where nothing came of it
        self._told: dict[Vector, Verdict] = {}

    def ask(self, n: int) -> list[Suggestion]:
        """Returns up to n suggestions; fewer only when the space is exhausted."""
        rng = derive_rng(self._seed, "ask", self._n_asks)
        self._n_asks += 1
        proposer = _Proposer(self._problem, self._trials(), self._ranked(), rng)
        taken = {*self._told, *self._pending.values()}
        for vector in self._pending.values():
            proposer.expect(np.array(vector))
        found: list[Suggestion] = []
        while len(found) < n and len(taken) < self._space.size:
            vector = proposer.propose(Tried(taken))
            taken.add(vector)
            self._pending[self._n_suggested] = vector
            found.append(Suggestion(self._n_suggested, self._space.decode(vector)))
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
            self._told[self._pending.pop(verdict.id)] = verdict

    def inject(self, policy: Policy, verdict: Verdict) -> None:
        """Learns from a policy that it did not suggest; one outside the space, or known, is left aside."""
        if not self._space.contains(policy):
            return
        vector = tuple(map(int, self._space.encode(policy)))
        if vector not in self._told and vector not in self._pending.values():
            self._told[vector] = verdict

    def state_dict(self) -> dict[str, Any]:
        """Returns the whole state as JSON values."""
        return {
            "n_asks": self._n_asks,
            "n_suggested": self._n_suggested,
            "pending": [[number, list(vector)] for number, vector in sorted(self._pending.items())],
            "told": [[list(vector), _verdict_to_json(verdict)] for vector, verdict in sorted(self._told.items())],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state that `state_dict` returned."""
        self._n_asks, self._n_suggested = state["n_asks"], state["n_suggested"]
        self._pending = {number: tuple(vector) for number, vector in state["pending"]}
        self._told = {tuple(vector): _verdict_from_json(verdict) for vector, verdict in state["told"]}

    def _trials(self) -> list[Trial]:
        """Returns what was told, in an order that does not depend on that of telling."""
        return [
            Trial(np.array(vector), None if _is_failed(verdict) else verdict.measurement)
            for vector, verdict in sorted(self._told.items())
        ]

    def _ranked(self) -> list[Vector]:
        """Returns the policies with a result, the best first."""
        known = [
            (verdict.violation, verdict.objectives[0], vector)
            for vector, verdict in self._told.items()
            if verdict.objectives is not None
        ]
        return [vector for *_, vector in sorted(known)]


class _Proposer:
    """The proposals of one batch: beliefs are fitted once, and each proposal is then taken for measured as expected."""

    def __init__(
        self, problem: Problem, trials: Sequence[Trial], ranked: Sequence[Vector], rng: np.random.Generator
    ) -> None:
        self._space, self._rng = problem.space, rng
        is_enough = sum(trial.measurement is not None for trial in trials) >= _N_FEWEST
        self._beliefs: Beliefs | None = fit_beliefs(problem, trials) if is_enough else None
        self._starts = np.array(ranked[:_N_STARTS], np.int64).reshape(-1, len(problem.space.dimensions))
        self._pool: np.ndarray | None = None

    def expect(self, vector: np.ndarray) -> None:
        """Takes a policy for measured, as expected."""
        if self._beliefs is not None:
            self._beliefs = self._beliefs.conditioned(vector)

    def propose(self, tried: Tried) -> Vector:
        """Returns the most promising policy that was not tried; there must be one."""
        vector = self._promising(tried) if self._beliefs is not None else None
        vector = vector or self._by_chance(tried)
        self.expect(np.array(vector))
        return vector

    def _promising(self, tried: Tried) -> Vector | None:
        beliefs = self._beliefs
        if beliefs is None:
            return None
        if self._pool is None:
            self._pool = self._gather(beliefs, tried)
        candidates = tried.without(self._pool)
        if not len(candidates):
            return None
        scores = beliefs.score(candidates)
        for _ in range(_N_CLIMBS):
            best = candidates[_best_first(candidates, scores)[:_N_CLIMBERS]]
            known = Tried({*tried.vectors, *map(tuple, candidates.tolist())})
            more = known.without(neighbours_of(self._space, best))
            if not len(more):
                break
            candidates = np.concatenate([candidates, more])
            scores = np.concatenate([scores, beliefs.score(more)])
        self._pool = candidates
        return tuple(map(int, candidates[_best_first(candidates, scores)[0]]))

    def _gather(self, beliefs: Beliefs, tried: Tried) -> np.ndarray:
        solved = solve_believed(self._space, beliefs, self._starts, tried.vectors)
        starts = np.concatenate([self._starts, solved]) if len(solved) else self._starts
        parts = [solved, random_policies(self._space, _N_RANDOM, self._rng), neighbours_of(self._space, starts)]
        if len(starts):
            parts.append(mutants_of(self._space, starts, _N_MUTANTS, self._rng))
        return np.concatenate([part for part in parts if len(part)])

    def _by_chance(self, tried: Tried) -> Vector:
        for n in (16, 64, 256):
            found = tried.without(random_policies(self._space, n, self._rng))
            if len(found):
                return tuple(map(int, found[0]))
        known = np.array(sorted(tried.vectors), np.int64)
        return tuple(map(int, tried.without(neighbours_of(self._space, known))[0]))


def _best_first(vectors: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns (n,) positions, the highest score first; scores equal to nine digits are ordered by the vector itself."""
    rounded = np.array([float(f"{score:.9g}") for score in scores])
    order: np.ndarray = np.lexsort((*vectors.T[::-1], -rounded))
    return order


def _is_failed(verdict: Verdict) -> bool:
    return verdict.measurement == Measurement()


def _verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "id": verdict.id,
        "objectives": None if verdict.objectives is None else list(verdict.objectives),
        # JSON has no infinity
        "violation": verdict.violation if np.isfinite(verdict.violation) else None,
        "measurement": verdict.measurement.to_json(),
    }


def _verdict_from_json(value: dict[str, Any]) -> Verdict:
    objectives, violation = value["objectives"], value["violation"]
    return Verdict(
        value["id"],
        None if objectives is None else tuple(objectives),
        float("inf") if violation is None else violation,
        Measurement.from_json(value["measurement"]),
    )
