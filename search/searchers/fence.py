"""Which options keep a policy within the budget while it is made choice by choice."""

from collections.abc import Sequence

import numpy as np

from ..problem import Problem
from ..solver.additive_cost import weighted_sum
from .descent import find_cheapest, least_each
from .prices import Prices, Row, row_of
from .tried import Result

#: share of a bound by which sums in another order may exceed it
_ROUNDING = 1e-9


class Fence:
    """Keeps walks within the bounds that have a price.

    The groups that are not decided yet stand at the cheapest policy that was found; an option is allowed when the
    whole is within every bound. So some option always is, and every walk ends within the bounds. Where not even the
    cheapest policy is within them, everything is allowed.

    >>> import numpy as np
    >>> from trimtab.search.searchers.prices import PricedBound, Prices
    >>> from trimtab.search.solver.additive_cost import AdditiveCost
    >>> from trimtab.search.testing import small_problem
    >>> sizes = AdditiveCost(0.0, (np.array([2.0, 1.0]), np.array([2.0, 1.0])))
    >>> prices = Prices((), (PricedBound("size_bytes", (sizes,), 3.0),))
    >>> walk = Fence(small_problem(n_groups=2, n_options=2), prices, (0,) * 8, []).open()
    >>> walk.take(0, 0)
    >>> walk.allowed(1).tolist()
    [False, True]
    """

    def __init__(self, problem: Problem, prices: Prices, graph: Sequence[int], ranked: Sequence[Result]) -> None:
        self.sizes = [len(options) for options in problem.space.options]
        graph = list(graph)
        self.cheapest = _cheapest(self.sizes, prices, graph, ranked)
        self.bounds = prices.bounds if prices.excess(self.cheapest[None])[0] <= _ROUNDING else ()
        self.rows: list[list[Row]] = [[row_of(cost) for cost in bound.costs] for bound in self.bounds]

    def open(self) -> "Walk":
        """Begins a walk."""
        return Walk(self)


class Walk:
    """One policy in the making."""

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._vector = fence.cheapest.copy()
        self._totals = [np.array([cost.value(self._vector[None])[0] for cost in bound.costs]) for bound in fence.bounds]

    def allowed(self, group: int) -> np.ndarray:
        """Returns (n_options,) bool: what can be chosen so that the cheapest choices for the rest keep the bounds."""
        allowed = np.ones(self._fence.sizes[group], bool)
        for bound, rows, totals in zip(self._fence.bounds, self._fence.rows, self._totals, strict=True):
            for row, total in zip(rows, totals, strict=True):
                values = row(self._vector, group)
                allowed &= total + values - values[self._vector[group]] <= bound.limit + _ROUNDING * bound.unit
        allowed[self._vector[group]] = True
        return allowed

    def take(self, group: int, option: int) -> None:
        """Notes what was chosen for a group."""
        for rows, totals in zip(self._fence.rows, self._totals, strict=True):
            for i, row in enumerate(rows):
                values = row(self._vector, group)
                totals[i] += values[option] - values[self._vector[group]]
        self._vector[group] = option


def _cheapest(sizes: list[int], prices: Prices, graph: list[int], ranked: Sequence[Result]) -> np.ndarray:
    """Returns the vector that uses up least of the bounds, as far as it is found."""
    untouched = np.array([*([0] * len(sizes)), *graph], int)
    if not prices.bounds:
        return untouched
    terms = [(cost, 1.0 / (bound.unit * len(bound.costs))) for bound in prices.bounds for cost in bound.costs]
    load = weighted_sum(terms)
    starts = [untouched, least_each(load, graph)]
    starts += [result.vector for result in ranked[:1] if result.vector[len(sizes) :].tolist() == graph]
    found = np.array([find_cheapest(load, starts), *starts])
    best: np.ndarray = found[np.lexsort((prices.load(found), prices.excess(found)))[0]]
    return best
