"""A program as HiGHS reads it: columns, rows and what is integer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from scipy.sparse import csc_array

from .interactions import Interaction, SplitCosts, split_costs
from .program import Program

#: largest coefficient of the objective. HiGHS stops at an absolute difference of 10⁻⁶; rows have 1 as their largest
#: coefficient, and may be broken by 10⁻⁶
SPAN = 1000.0
#: the values of a cost, added up in another order, differ by less than this times its magnitude
_ROUNDING = 1e-14


@dataclass(frozen=True)
class LinearForm:
    """Minimise ``objective @ z`` for column bounds and rows; the value of the program is ``scale`` times that.

    The first columns say which option each group takes (one of a group is 1). Then come the classes of options that
    meet on an edge, tied to the former by their marginals (the local marginal polytope, tight where the edges form a
    tree: Wainwright and Jordan 2008, Graphical Models, Exponential Families, and Variational Inference, § 4.1). The
    last two are the excess of a peak over the constant, and the constant.

    >>> from trimtab.search.solver.additive_cost import AdditiveCost
    >>> form = linearise(Program((AdditiveCost(0.0, (np.array([2.0, 1.0]),)),)))
    >>> form.read(np.array([0.0, 1.0, 0.0, 1.0]))
    (1,)
    """

    sizes: tuple[int, ...]
    objective: np.ndarray  # (n_columns,)
    lower: np.ndarray  # (n_columns,)
    upper: np.ndarray  # (n_columns,)
    rows: csc_array  # (n_rows, n_columns)
    row_lower: np.ndarray  # (n_rows,)
    row_upper: np.ndarray  # (n_rows,)
    scale: float
    #: what meets on each edge, and the first of its columns
    blocks: tuple[tuple[Interaction, int], ...]

    @cached_property
    def starts(self) -> np.ndarray:
        """(n_groups + 1,) int: the column of each group's first option."""
        starts: np.ndarray = np.cumsum([0, *self.sizes])
        return starts

    @property
    def is_integer(self) -> np.ndarray:
        """(n_columns,) int: 1 for the columns that must be 0 or 1."""
        marks: np.ndarray = (np.arange(len(self.objective)) < self.starts[-1]).astype(int)
        return marks

    def read(self, columns: np.ndarray) -> tuple[int, ...]:
        """Returns the option that each group takes."""
        return tuple(int(np.argmax(columns[a:b])) for a, b in zip(self.starts, self.starts[1:], strict=False))


class _Rows:
    """Rows as they are collected: coordinates, values and sides."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []
        self._columns: list[np.ndarray] = []
        self._values: list[np.ndarray] = []
        self.lower: list[float] = []
        self.upper: list[float] = []

    def add(self, columns: np.ndarray, values: np.ndarray, sides: tuple[float, float]) -> None:
        """Adds one row, sides = (lower, upper)."""
        self._rows.append(np.full(len(columns), len(self.lower)))
        self._columns.append(columns)
        self._values.append(values)
        self.lower.append(sides[0])
        self.upper.append(sides[1])

    def matrix(self, n_columns: int) -> csc_array:
        if not self._rows:
            return csc_array((0, n_columns))
        entries = np.concatenate(self._values), (np.concatenate(self._rows), np.concatenate(self._columns))
        return csc_array(entries, shape=(len(self.lower), n_columns))


def linearise(program: Program) -> LinearForm:
    """Writes a program in linear form."""
    bounded = [(cost, bound.limit) for bound in program.binding for cost in bound.costs]
    costs = [*program.objective, *(cost for cost, _ in bounded)]
    split = split_costs(costs)
    starts = np.cumsum([0, *program.sizes])
    blocks = _block_starts(split.interactions, int(starts[-1]))
    n_columns = blocks[-1] + 2
    magnitudes = np.array([cost.magnitude for cost in costs])
    table = _coefficients(split, blocks, n_columns)
    table[np.abs(table) <= _ROUNDING * magnitudes[:, None]] = 0.0  # no difference that float64 sums could show
    rows = _Rows()
    _add_choices(rows, program, starts)
    for interaction, start in zip(split.interactions, blocks, strict=False):
        _add_marginals(rows, interaction, start, starts)
    n_objectives = len(program.objective)
    for row, constant, (cost, limit) in zip(table[n_objectives:], split.constants[n_objectives:], bounded, strict=True):
        _add_limit(rows, row, limit - constant + _ROUNDING * (cost.magnitude + abs(limit)))
    sides = np.zeros(n_columns), np.ones(n_columns)
    objective, scale = _add_objective(rows, table[:n_objectives], split.constants[:n_objectives], sides)
    return LinearForm(
        program.sizes,
        objective,
        *sides,
        rows.matrix(n_columns),
        np.array(rows.lower),
        np.array(rows.upper),
        scale,
        tuple(zip(split.interactions, blocks, strict=False)),
    )


def _block_starts(interactions: Sequence[Interaction], first: int) -> list[int]:
    return list(accumulate((math.prod(interaction.shape) for interaction in interactions), initial=first))


def _coefficients(split: SplitCosts, blocks: Sequence[int], n_columns: int) -> np.ndarray:
    """Returns (n_costs, n_columns) float64."""
    table = np.zeros((len(split.constants), n_columns))
    if split.unary:
        unary = np.concatenate(split.unary, axis=1)
        table[:, : unary.shape[1]] = unary
    for interaction, start in zip(split.interactions, blocks, strict=False):
        for index, values in interaction.tables.items():
            table[index, start : start + values.size] = values.ravel()
    return table


def _add_choices(rows: _Rows, program: Program, starts: np.ndarray) -> None:
    """One option a group; of an excluded vector not all."""
    for start, size in zip(starts, program.sizes, strict=False):
        rows.add(start + np.arange(size), np.ones(size), (1.0, 1.0))
    for vector in program.excluded:
        columns = starts[:-1] + np.array(vector, int)
        rows.add(columns, np.ones(len(columns)), (-np.inf, len(columns) - 1.0))


def _add_marginals(rows: _Rows, interaction: Interaction, start: int, starts: np.ndarray) -> None:
    """What a class adds up to over the other groups' classes is what its options add up to."""
    columns = start + np.arange(math.prod(interaction.shape)).reshape(interaction.shape)
    for axis, (group, classes) in enumerate(zip(interaction.edge, interaction.classes, strict=True)):
        by_class = np.moveaxis(columns, axis, 0).reshape(interaction.shape[axis], -1)
        # each group's columns add up to 1, so from the second axis on the first class follows from the others
        for label in range(min(axis, 1), len(by_class)):
            own = starts[group] + np.flatnonzero(classes == label)
            values = np.concatenate([np.ones(by_class.shape[1]), -np.ones(len(own))])
            rows.add(np.concatenate([by_class[label], own]), values, (0.0, 0.0))


def _add_limit(rows: _Rows, coefficients: np.ndarray, room: float) -> None:
    columns = np.flatnonzero(coefficients)
    factor = 1.0 / (np.abs(coefficients).max() or 1.0)
    rows.add(columns, factor * coefficients[columns], (-np.inf, factor * room))


def _add_objective(
    rows: _Rows, table: np.ndarray, constants: np.ndarray, sides: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, float]:
    """Sets the last two columns; returns the objective and its scale."""
    span = float(np.abs(table).max(initial=0.0)) or 1.0
    scale = span / SPAN
    objective = np.zeros(table.shape[1])
    objective[-1] = constants[0] / scale
    sides[0][-1] = 1.0
    sides[1][-2] = 0.0
    if len(table) == 1:
        return objective + table[0] / scale, scale
    objective[-2] = SPAN
    sides[0][-2] = (np.minimum(table, 0.0).sum(axis=1) + constants - constants[0]).max() / span
    sides[1][-2] = np.inf
    for coefficients, constant in zip(table / span, constants, strict=True):
        columns = np.flatnonzero(coefficients)
        values = np.append(coefficients[columns], -1.0)
        rows.add(np.append(columns, table.shape[1] - 2), values, (-np.inf, (constants[0] - constant) / span))
    return objective, scale
