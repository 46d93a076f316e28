"""What is left of edge costs when all that is additive has moved into the groups' own costs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .additive_cost import AdditiveCost

#: relative to the largest entry: what a few additions and subtractions of float64 may leave of zero
_ROUNDING = 2.0**-48

#: edge → index of a cost → its table
_Tables = dict[tuple[int, ...], dict[int, np.ndarray]]


@dataclass(frozen=True)
class Interaction:
    """The costs of an edge that no sum over its groups can express, by classes of options.

    Options of a group whose interaction is the same in every cost and with every neighbour share a class.

    >>> cost = AdditiveCost(0.0, (np.zeros(3), np.zeros(2)), {(0, 1): np.array([[0.0, 1.0], [5.0, 6.0], [2.0, 0.0]])})
    >>> split_costs([cost]).interactions[0].shape
    (2, 2)
    """

    edge: tuple[int, ...]
    #: per axis, (n_options,) int: the class of each option
    classes: tuple[np.ndarray, ...]
    #: index of a cost → float64, one axis per group of the edge, by class
    tables: dict[int, np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of classes of each group."""
        return tuple(int(classes.max()) + 1 for classes in self.classes)


@dataclass(frozen=True)
class SplitCosts:
    """Costs as constants, groups' own costs and true interactions: the same costs, written otherwise.

    >>> cost = AdditiveCost(1.0, (np.zeros(2), np.zeros(2)), {(0, 1): np.array([[2.0, 3.0], [4.0, 5.0]])})
    >>> split = split_costs([cost])
    >>> split.constants.tolist(), [costs.tolist() for costs in split.unary], split.interactions
    ([3.0], [[[0.0, 2.0]], [[0.0, 1.0]]], ())
    """

    #: (n_costs,) float64
    constants: np.ndarray
    #: per group, (n_costs, n_options) float64, the lowest of each row being 0
    unary: tuple[np.ndarray, ...]
    interactions: tuple[Interaction, ...]


def split_costs(costs: Sequence[AdditiveCost]) -> SplitCosts:
    """Splits costs over the same groups so that as few and small interactions as possible remain.

    A table over three groups without an interaction of all three becomes tables over pairs; pairs within a remaining
    triple join it. Of every table the values along the axes through its first entry are additive. What is then zero up
    to the rounding of these steps is zero.
    """
    constants = np.array([cost.constant for cost in costs])
    unary = [np.stack([cost.unary[group] for cost in costs]) for group in range(len(costs[0].sizes))]
    tables: _Tables = {}
    for index, cost in enumerate(costs):
        for edge, table in cost.edges.items():
            tables.setdefault(edge, {})[index] = table
    _break_triples(tables)
    _join_pairs(tables)
    interactions = []
    for edge in sorted(tables):
        rests = {}
        for index, table in sorted(tables[edge].items()):
            parts = _additive_parts(table)
            for group, part in zip(edge, parts, strict=True):
                unary[group][index] += part
            rest = _without(table, parts)
            if rest.any():
                rests[index] = rest
        if rests:
            interactions.append(_interaction(edge, rests))
    lowest = [costs_of.min(axis=1) for costs_of in unary]
    shifted = tuple(costs_of - low[:, None] for costs_of, low in zip(unary, lowest, strict=True))
    return SplitCosts(constants + np.sum(lowest, axis=0), shifted, tuple(interactions))


def _break_triples(tables: _Tables) -> None:
    """Writes triples as pairs where no cost has an interaction of all three."""
    for edge in sorted(edge for edge in tables if len(edge) == 3):
        if any(_clean(_triple_part(table), table).any() for table in tables[edge].values()):
            continue
        a, b, c = edge
        for index, table in tables.pop(edge).items():
            corner = table[:, :1, :1], table[:1, :, :1], table[:1, :1, :], table[:1, :1, :1]
            _add(tables, (a, b), index, table[:, :, 0])
            _add(tables, (a, c), index, (table[:, :1, :] - corner[0])[:, 0, :])
            _add(tables, (b, c), index, (table[:1, :, :] - corner[1] - corner[2] + corner[3])[0])


def _triple_part(table: np.ndarray) -> np.ndarray:
    for axis in range(3):
        table = table - table.take([0], axis)
    return table


def _join_pairs(tables: _Tables) -> None:
    """Adds the tables of pairs to a triple that covers them: fewer variables and a tighter relaxation."""
    triples = sorted(edge for edge in tables if len(edge) == 3)
    for edge in sorted(edge for edge in tables if len(edge) == 2):
        for triple in triples:
            if set(edge) < set(triple):
                _join(tables, edge, triple)
                break


def _join(tables: _Tables, pair: tuple[int, ...], triple: tuple[int, ...]) -> None:
    shape = next(iter(tables[triple].values())).shape
    axis = next(axis for axis in range(3) if triple[axis] not in pair)
    for index, table in tables.pop(pair).items():
        _add(tables, triple, index, np.broadcast_to(np.expand_dims(table, axis), shape))


def _add(tables: _Tables, edge: tuple[int, ...], index: int, table: np.ndarray) -> None:
    of_edge = tables.setdefault(edge, {})
    of_edge[index] = of_edge[index] + table if index in of_edge else table


def _additive_parts(table: np.ndarray) -> list[np.ndarray]:
    """Returns a vector per axis, whose sum is equal to the table wherever at most one index is not 0."""
    first = table[(0,) * table.ndim]
    lines = [
        table[tuple(slice(None) if other == axis else 0 for other in range(table.ndim))] for axis in range(table.ndim)
    ]
    return [lines[0], *(line - first for line in lines[1:])]


def _without(table: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the table less a vector along each axis; 0 where nothing but rounding is left."""
    rest = table
    for axis, part in enumerate(parts):
        rest = rest - part.reshape([-1 if other == axis else 1 for other in range(table.ndim)])
    return _clean(rest, table)


def _clean(rest: np.ndarray, table: np.ndarray) -> np.ndarray:
    return np.where(np.abs(rest) <= _ROUNDING * np.abs(table).max(), 0.0, rest)


def _interaction(edge: tuple[int, ...], rests: dict[int, np.ndarray]) -> Interaction:
    classes, firsts = [], []
    for axis in range(len(edge)):
        labels = _labels([np.moveaxis(rest, axis, 0) for rest in rests.values()])
        classes.append(labels)
        firsts.append(np.unique(labels, return_index=True)[1])
    tables = {index: rest[np.ix_(*firsts)] for index, rest in rests.items()}
    return Interaction(edge, tuple(classes), tables)


def _labels(rests: Iterable[np.ndarray]) -> np.ndarray:
    """Returns (n_options,) int: equal where the entries of all tables are, up to rounding."""
    rows = []
    for rest in rests:
        unit = np.abs(rest).max() * _ROUNDING * 4
        rows.append(np.rint(rest.reshape(len(rest), -1) / unit) + 0.0)
    labels: np.ndarray = np.unique(np.concatenate(rows, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    return labels
