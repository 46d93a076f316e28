"""The default search: solve what is believed, measure, correct, solve again.

Every quantity of the problem is believed to be what was known beforehand plus a Gaussian process whose mean is a sum
over groups and pairs of groups (`search/beliefs`). So a mixed-integer program finds the best policy under what is
believed, exactly and among any number of policies; the trial that promises most (expected improvement within the
budget, `Beliefs.score`) is proposed, and each result corrects the beliefs: latencies, drops, and which pairs of
layers do not simply add up.
"""

from collections.abc import Iterator

import numpy as np

from ...core.seeds import derive_rng
from ...evaluators.measurement import Measurement
from ...spaces.policy import Policy
from ..beliefs.beliefs import Beliefs, Trial, fit_beliefs
from ..problem import Problem
from .candidates import Vector, mutants_of, neighbours_of, random_policies, without
from .replaying_searcher import ReplayingSearcher
from .solved import solve_believed
from .tried import Tried

#: measurements below which policies are drawn at random: nothing can be believed of a single one
_N_FEWEST = 2
#: of the policies known, so many are taken apart for new ones; and so many are drawn beside those
_N_STARTS, _N_MUTANTS, _N_RANDOM = 6, 128, 32
#: rounds in which the neighbours of the most promising candidates join them
_N_CLIMBS, _N_CLIMBERS = 4, 3
#: policies that are drawn while nothing is believed, or nothing promises anything, before the nearest unseen is taken
_N_DRAWN = (16, 64, 256)


def build_auto(problem: Problem, *, seed: int) -> ReplayingSearcher:
    """Makes the search that proposes what is believed to be best, and learns from every quantity that was measured.

    >>> from trimtab.search.testing import small_problem
    >>> len(build_auto(small_problem(), seed=0).ask(3))
    3
    """
    return ReplayingSearcher(problem, seed=seed, propose=_propose)


def _propose(problem: Problem, tried: Tried, seed: int) -> Iterator[Policy]:
    """Yields the proposals of one batch: beliefs are fitted once, and each proposal is then taken for measured."""
    rng = derive_rng(seed, "ask", tried.n_asks)
    trials = _trials(tried)
    is_enough = sum(trial.measurement is not None for trial in trials) >= _N_FEWEST
    promising = _Promising(problem, tried, fit_beliefs(problem, trials), rng) if is_enough else None
    while True:
        vector = promising.find() if promising is not None else None
        vector = vector or _draw(problem, tried, rng)
        if vector is None:
            return
        yield problem.space.decode(vector)


def _trials(tried: Tried) -> list[Trial]:
    """Returns what has a verdict, in an order that does not depend on that of telling."""
    told = [(result.key, result.vector, result.verdict) for result in tried.results.values()]
    return [
        # what failed has no measurement at all
        Trial(vector, verdict.measurement if verdict.measurement != Measurement() else None)
        for _, vector, verdict in sorted(told, key=lambda entry: entry[0])
        if verdict is not None
    ]


class _Promising:
    """The candidates of one batch and what is believed of them."""

    def __init__(self, problem: Problem, tried: Tried, beliefs: Beliefs, rng: np.random.Generator) -> None:
        self._space, self._tried, self._rng = problem.space, tried, rng
        ranked = sorted(tried.known(), key=lambda result: (*result.merit, result.key))[:_N_STARTS]
        n_dimensions = len(problem.space.dimensions)
        self._starts = np.array([result.vector for result in ranked], np.int64).reshape(-1, n_dimensions)
        self._beliefs, self._n_expected = beliefs, 0
        self._pool: np.ndarray | None = None

    def find(self) -> Vector | None:
        """Returns the most promising policy that was not tried; None where there is no candidate left."""
        self._expect()
        taken, beliefs = self._tried.keys(), self._beliefs
        if self._pool is None:
            self._pool = self._gather(taken)
        candidates = without(self._pool, taken)
        if not len(candidates):
            return None
        scores = beliefs.score(candidates)
        for _ in range(_N_CLIMBS):
            best = candidates[_best_first(candidates, scores)[:_N_CLIMBERS]]
            more = without(neighbours_of(self._space, best), taken | set(map(tuple, candidates.tolist())))
            if not len(more):
                break
            candidates = np.concatenate([candidates, more])
            scores = np.concatenate([scores, beliefs.score(more)])
        self._pool = candidates
        return tuple(map(int, candidates[_best_first(candidates, scores)[0]]))

    def _expect(self) -> None:
        """Takes what was proposed and has no verdict yet for measured, as expected."""
        pending = list(self._tried.pending.values())
        for policy in pending[self._n_expected :]:
            self._beliefs = self._beliefs.conditioned(self._tried.results[policy].vector)
        self._n_expected = len(pending)

    def _gather(self, taken: set[Vector]) -> np.ndarray:
        solved = solve_believed(self._space, self._beliefs, self._starts, taken)
        starts = np.concatenate([self._starts, solved]) if len(solved) else self._starts
        parts = [solved, random_policies(self._space, _N_RANDOM, self._rng), neighbours_of(self._space, starts)]
        if len(starts):
            parts.append(mutants_of(self._space, starts, _N_MUTANTS, self._rng))
        return np.concatenate([part for part in parts if len(part)])


def _draw(problem: Problem, tried: Tried, rng: np.random.Generator) -> Vector | None:
    for n in _N_DRAWN:
        found = without(random_policies(problem.space, n, rng), tried.keys())
        if len(found):
            return tuple(map(int, found[0]))
    return None


def _best_first(vectors: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns (n,) positions, the highest score first; scores equal to nine digits are ordered by the vector itself."""
    rounded = np.array([float(f"{score:.9g}") for score in scores])
    order: np.ndarray = np.lexsort((*vectors.T[::-1], -rounded))
    return order
