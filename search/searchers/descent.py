"""The order in which groups are compressed when accuracy is given away step by step."""

from collections.abc import Sequence

import numpy as np

from ..solver.additive_cost import AdditiveCost
from .prices import row_of

#: passes over all groups in search of the cheapest policy
_N_PASSES = 10


def descend(cost: AdditiveCost, influence: AdditiveCost, graph: Sequence[int]) -> list[np.ndarray]:
    """Returns vectors from the one that does least to the output to the cheapest, each one move from the next.

    Found backwards: from the cheapest vector the move is taken back that wins most influence for what it costs, all
    others as they stand; so what two neighbours save only together is given up together. Without edges these are
    the policies that the linear relaxation of the knapsack passes (P. Sinha and A. Zoltners, The multiple-choice
    knapsack problem, Operations Research 27, 1979).

    Args:
        cost: what is saved on the way.
        influence: what is done to the output; without edges.
        graph: entries of the graph-wide choices, which all the vectors have.

    >>> import numpy as np
    >>> cost = AdditiveCost(0.0, (np.array([0.0, -1.0]), np.array([0.0, -3.0])))
    >>> influence = AdditiveCost(0.0, (np.array([0.0, 1.0]), np.array([0.0, 1.0])))
    >>> [vector.tolist() for vector in descend(cost, influence, [])]
    [[0, 0], [0, 1], [1, 1]]
    """
    row = row_of(cost)
    zeros = np.array([*([0] * len(cost.unary)), *graph], int)
    vector = find_cheapest(cost, [zeros, least_each(cost, graph)])
    path = [vector]
    prices = [_take_back(row(vector, g), influence.unary[g], int(vector[g])) for g in range(len(cost.unary))]
    touching = _neighbours(cost)
    while True:
        group = int(np.argmin([price.min() for price in prices]))
        if not np.isfinite(prices[group].min()):
            return path[::-1]
        vector = vector.copy()
        vector[group] = int(np.argmin(prices[group]))
        path.append(vector)
        for g in touching[group]:
            prices[g] = _take_back(row(vector, g), influence.unary[g], int(vector[g]))


def _take_back(costs: np.ndarray, influences: np.ndarray, chosen: int) -> np.ndarray:
    """Returns per option what a unit of influence costs that it wins; infinite where it wins none."""
    won = influences[chosen] - influences
    spent = costs - costs[chosen]
    # what wins and costs nothing goes before everything, the greatest saving first
    ratio = np.where(spent > 0.0, spent / np.where(won > 0.0, won, 1.0), spent)
    return np.where(won > 0.0, ratio, np.inf)


def _neighbours(cost: AdditiveCost) -> list[set[int]]:
    """Returns per group itself and the groups whose prices depend on it."""
    near = [{group} for group in range(len(cost.unary))]
    for edge in cost.edges:
        for group in edge:
            near[group] |= set(edge)
    return near


def least_each(cost: AdditiveCost, graph: Sequence[int]) -> np.ndarray:
    """Returns the vector of the options that can be cheapest, if all others are what suits each best."""
    hopes = [costs.copy() for costs in cost.unary]
    for edge, table in cost.edges.items():
        for axis, group in enumerate(edge):
            hopes[group] += table.min(axis=tuple(other for other in range(len(edge)) if other != axis))
    return np.array([*(int(np.argmin(costs)) for costs in hopes), *graph], int)


def find_cheapest(cost: AdditiveCost, starts: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the cheapest vector that changing one group at a time finds from the starts.

    Args:
        cost: what is brought down.
        starts: (n_dimensions,) vectors; entries beyond the groups of the cost stay as they are.
    """
    row, found = row_of(cost), []
    for start in starts:
        vector = start.copy()
        for _ in range(_N_PASSES):
            before = vector.copy()
            for group in range(len(cost.unary)):
                costs = row(vector, group)
                if costs.min() < costs[vector[group]]:
                    vector[group] = int(np.argmin(costs))
            if np.array_equal(before, vector):
                break
        found.append(vector)
    return found[int(np.argmin(cost.value(np.array(found))))]
