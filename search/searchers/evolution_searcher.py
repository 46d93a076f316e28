"""Ageing evolution with moves that keep the budget: for spaces with more choices than there are trials.

E. Real et al., Regularized Evolution for Image Classifier Architecture Search, AAAI 2019: the population is the
youngest results, not the best; a parent wins a tournament in it, and what is old dies however good it was. A
tournament is won by what keeps the budget, then by the objective (K. Deb, An efficient constraint handling method for
genetic algorithms, 2000). Besides mutations of a few choices there are changes of a whole *role* (the same layer of
every block, as its name without numbers tells), crossovers, and exchanges: one choice is relaxed and another
tightened so that, by the prices that are known or were learned from the results, the policy stays within the budget.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np

from ...core.seeds import derive_rng
from ...spaces.policy import Policy
from ...spaces.space import Space
from ..problem import Problem
from .prices import Prices, all_prices
from .replaying_searcher import ReplayingSearcher
from .roles import find_roles, single_changes
from .tried import Result, Tried

#: results that are alive, and how many of them a tournament draws: tuned on the synthetic problem, 60 to 200 trials
_POPULATION, _TOURNAMENT = 20, 8
#: shares of the moves: change of a role, of one to three choices, exchanges; the rest is a crossover of two parents
_ROLE_SHARE, _FEW_SHARE, _EXCHANGE_SHARE = 0.2, 0.25, 0.45
#: exchanges that are priced, of which the best is taken
_N_EXCHANGES = 32


def build_evolution(problem: Problem, *, seed: int) -> ReplayingSearcher:
    """Makes an ageing evolution with budget-preserving moves.

    >>> from trimtab.search.testing import small_problem
    >>> len(build_evolution(small_problem(), seed=0).ask(3))
    3
    """
    return ReplayingSearcher(problem, seed=seed, propose=_propose)


def _propose(problem: Problem, tried: Tried, seed: int) -> Iterator[Policy]:
    rng = derive_rng(seed, "ask", tried.n_asks)
    known = tried.known()
    while not known:
        yield problem.space.sample(rng)
    brood = _Brood(problem, known, rng)
    while True:
        yield problem.space.decode(brood.breed())


class _Brood:
    """The children of one population."""

    def __init__(self, problem: Problem, known: list[Result], rng: np.random.Generator) -> None:
        self._space = problem.space
        self._population = known[-_POPULATION:]
        self._roles = find_roles(problem.space)
        self._rng = rng
        self._prices = cache(lambda graph: all_prices(problem, graph, known))

    def breed(self) -> np.ndarray:
        """Returns the (n_dimensions,) vector of a child."""
        parent, kind = self._win(), self._rng.random()
        if kind < _ROLE_SHARE:
            return self._change_role(parent)
        if kind < _ROLE_SHARE + _FEW_SHARE:
            return self._change_few(parent)
        if kind < _ROLE_SHARE + _FEW_SHARE + _EXCHANGE_SHARE:
            prices = self._prices(tuple(parent[len(self._space.groups) :].tolist()))
            child = _exchange(self._space, parent, prices, self._rng)
            return self._change_few(parent) if child is None else child
        mixed: np.ndarray = np.where(self._rng.random(len(parent)) < 0.5, parent, self._win())
        return mixed

    def _win(self) -> np.ndarray:
        size = min(_TOURNAMENT, len(self._population))
        drawn = self._rng.choice(len(self._population), size=size, replace=False)
        rivals = (self._population[i] for i in drawn)
        winner: Result = min(rivals, key=lambda result: (*result.merit, result.policy.id))
        return winner.vector

    def _change_role(self, parent: np.ndarray) -> np.ndarray:
        sizes = list(self._space.dimensions.values())
        role = self._roles[self._rng.integers(len(self._roles))]
        child = parent.copy()
        child[role] = int(self._rng.integers(sizes[role[0]]))
        return child

    def _change_few(self, parent: np.ndarray) -> np.ndarray:
        sizes = list(self._space.dimensions.values())
        free = [i for i, size in enumerate(sizes) if size > 1]
        child = parent.copy()
        for i in self._rng.choice(free, size=min(int(self._rng.integers(1, 4)), len(free)), replace=False):
            child[i] = (child[i] + self._rng.integers(1, sizes[i])) % sizes[i]
        return child


def _exchange(space: Space, parent: np.ndarray, prices: Prices, rng: np.random.Generator) -> np.ndarray | None:
    """Relaxes one group and tightens another; returns None where the prices know no such pair within the budget."""
    singles = single_changes(space, parent)
    if not len(singles) or not prices.bounds:
        return None
    change = prices.load(singles) - prices.load(parent[None])[0]
    relaxed, tightened = singles[change < 0.0], singles[change > 0.0]
    if not len(relaxed) or not len(tightened):
        return None
    first = relaxed[rng.integers(len(relaxed), size=_N_EXCHANGES)]
    second = tightened[rng.integers(len(tightened), size=_N_EXCHANGES)]
    children = np.where(second != parent, second, first)
    is_pair = (children != parent).sum(axis=1) == 2
    allowed = max(0.0, float(prices.excess(parent[None])[0]))
    children = children[is_pair & (prices.excess(children) <= allowed)]
    if not len(children):
        return None
    best: np.ndarray = children[np.argmin(prices.value(children))]
    return best
