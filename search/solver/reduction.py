"""Options that no best answer needs: they go before the solver sees them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .additive_cost import AdditiveCost
from .program import Bound, Program

#: sums of the same numbers in another order differ by less than this, relative to the sum of the magnitudes
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Removal:
    """An option of a group that went because ``better`` is at least as good in every cost, whatever the others do.

    >>> reduce_program(Program((AdditiveCost(0.0, (np.array([2.0, 1.0]),)),))).removals
    (Removal(group=0, option=0, better=1),)
    """

    group: int
    option: int
    better: int


@dataclass(frozen=True)
class Reduction:
    """A program over fewer options, and the way back.

    >>> reduction = reduce_program(Program((AdditiveCost(0.0, (np.array([2.0, 1.0]), np.array([0.0, 3.0]))),)))
    >>> [options.tolist() for options in reduction.kept], reduction.restore((0, 0))
    ([[1], [0]], (1, 0))
    """

    #: the same program over the kept options, renumbered
    program: Program
    #: per group, the kept options in ascending order, as the full program numbers them
    kept: tuple[np.ndarray, ...]
    #: dominated options in the order in which they went
    removals: tuple[Removal, ...]

    def restore(self, vector: Sequence[int]) -> tuple[int, ...]:
        """Returns a vector of the reduced program as the full program writes it."""
        return tuple(int(options[choice]) for options, choice in zip(self.kept, vector, strict=True))


def reduce_program(program: Program) -> Reduction | None:
    """Removes options that are forbidden, out of every bound's reach or dominated; None when a group loses them all.

    Of the vectors that a program permits, the reduced program keeps a best one, with one exception: where the vector
    that would take its place is excluded. Those stand in `stranded_vectors`.
    """
    costs = _Costs(program)
    kept = [np.flatnonzero(mask) for mask in program.masks]
    if not costs.drop_unreachable(program.binding, kept):
        return None
    removals = tuple(costs.drop_dominated(kept))
    return Reduction(restrict_program(program, kept), tuple(kept), removals)


def stranded_vectors(program: Program, reduction: Reduction) -> np.ndarray:
    """Returns (n, n_groups) int vectors, among which is a best answer if the reduced program has lost it.

    Take a permitted vector and walk through the removals in their order, each time exchanging a removed option for
    its better one: every step is at least as good in all costs, and the last vector consists of kept options. If the
    last is not excluded, the reduced program has an answer as good. If it is, go back to the last step that is not
    excluded: its successor is an excluded vector from which it differs by one removal. So it is enough to look at
    every excluded vector with one removal undone.
    """
    found = {
        (*vector[: removal.group], removal.option, *vector[removal.group + 1 :])
        for vector in program.excluded
        for removal in reduction.removals
        if vector[removal.group] == removal.better
    }
    vectors = np.array(sorted(found), int).reshape(len(found), len(program.sizes))
    stranded: np.ndarray = vectors[program.permits(vectors)]
    return stranded


class _Costs:
    """The costs of a program that matter, by group."""

    def __init__(self, program: Program) -> None:
        self._costs = [*program.objective, *(cost for bound in program.binding for cost in bound.costs)]
        n_groups = len(program.sizes)
        #: per group, (n_costs, n_options)
        self._unary = [np.stack([cost.unary[group] for cost in self._costs]) for group in range(n_groups)]
        self._edges: list[list[tuple[int, tuple[int, ...], np.ndarray]]] = [[] for _ in range(n_groups)]
        for index, cost in enumerate(self._costs):
            for edge, table in sorted(cost.edges.items()):
                for group in edge:
                    self._edges[group].append((index, edge, table))
        self._scales = np.array([cost.magnitude for cost in self._costs])  # (n_costs,)

    def drop_unreachable(self, bounds: Sequence[Bound], kept: list[np.ndarray]) -> bool:
        """Keeps the options with which no bound is certainly broken; False when a group has none."""
        limited = [(cost, bound.limit) for bound in bounds for cost in bound.costs]
        n_before = -1
        while (n_now := sum(map(len, kept))) != n_before:
            n_before = n_now
            for whole, limit in limited:
                cost = whole.restrict(kept)
                margin = _ROUNDING * cost.magnitude
                for group, least in enumerate(_least_values(cost)):
                    kept[group] = kept[group][least <= limit + margin]
                if not all(map(len, kept)):
                    return False
        return True

    def drop_dominated(self, kept: list[np.ndarray]) -> list[Removal]:
        """Drops dominated options until none is left; of equal ones the lowest stays."""
        removals: list[Removal] = []
        waiting = set(range(len(kept)))
        while waiting:
            group = min(waiting)
            waiting.discard(group)
            gone = self._drop_dominated_of(group, kept)
            removals += gone
            if gone:
                waiting |= {other for _, edge, _ in self._edges[group] for other in edge} - {group}
        return removals

    def _drop_dominated_of(self, group: int, kept: list[np.ndarray]) -> list[Removal]:
        options = kept[group]
        if len(options) < 2:
            return []
        dominates = self._dominates(group, kept)
        is_kept = np.ones(len(options), bool)
        removals = []
        for worse in reversed(range(len(options))):
            better = np.flatnonzero(is_kept & dominates[:, worse])
            better = better[(better < worse) | ~dominates[worse, better]]
            if len(better):
                is_kept[worse] = False
                removals.append(Removal(group, int(options[worse]), int(options[better[0]])))
        kept[group] = options[is_kept]
        return removals

    def _dominates(self, group: int, kept: list[np.ndarray]) -> np.ndarray:
        """Returns (n_kept, n_kept) bool: the row is at least as good as the column in every cost.

        Where all parts are, the sums are too, rounding included; where only their sum is, it has to be by a margin.
        """
        options = kept[group]
        unary = self._unary[group][:, options]
        difference = unary[:, :, None] - unary[:, None, :]  # (n_costs, row, column)
        is_all = difference <= 0
        for index, edge, table in self._edges[group]:
            part = table[np.ix_(*(kept[other] for other in edge))]
            part = np.moveaxis(part, edge.index(group), 0).reshape(len(options), -1)
            worst = (part[:, None, :] - part[None, :, :]).max(axis=2)
            difference[index] += worst
            is_all[index] &= worst <= 0
        is_sum = difference <= -_ROUNDING * self._scales[:, None, None]
        dominates: np.ndarray = (is_all | is_sum).all(axis=0)
        np.fill_diagonal(dominates, val=False)
        return dominates


def _least_values(cost: AdditiveCost) -> list[np.ndarray]:
    """Returns, per group, (n_options,) float64: a lower bound of the cost of all vectors that take the option."""
    gains = [costs - costs.min() for costs in cost.unary]
    total = cost.constant + sum(float(costs.min()) for costs in cost.unary)
    for edge, table in cost.edges.items():
        total += float(table.min())
        for axis, group in enumerate(edge):
            others = tuple(other for other in range(table.ndim) if other != axis)
            gains[group] = gains[group] + table.min(axis=others) - table.min()
    return [total + gain for gain in gains]


def restrict_program(program: Program, kept: Sequence[np.ndarray]) -> Program:
    """Returns the program over fewer options, renumbered; ``kept``: per group, (n_kept,) ascending integers."""
    places = [{int(option): place for place, option in enumerate(options)} for options in kept]
    excluded = tuple(
        tuple(place[option] for place, option in zip(places, vector, strict=True))
        for vector in program.excluded
        if all(option in place for place, option in zip(places, vector, strict=True))
    )
    bounds = tuple(replace(bound, costs=_restrict(bound.costs, kept)) for bound in program.binding)
    return Program(_restrict(program.objective, kept), bounds, excluded)


def _restrict(costs: Sequence[AdditiveCost], kept: Sequence[np.ndarray]) -> tuple[AdditiveCost, ...]:
    return tuple(cost.restrict(kept) for cost in costs)
