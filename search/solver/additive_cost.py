"""A cost that is a sum over groups and over pairs or triples of groups: what the solver can optimise and bound."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ...core.errors import RunError, SpecError


@dataclass(frozen=True)
class AdditiveCost:
    """cost(v) = constant + Σ_g unary[g][v_g] + Σ_e edges[e][v_e], for integer vectors v with one entry a group.

    The unit is the caller's: seconds, bytes, points of accuracy. `PairwiseSurrogate` has the same parts.

    >>> import numpy as np
    >>> cost = AdditiveCost(1.0, (np.array([0.0, -0.2]), np.array([0.0, -0.3])), {(0, 1): np.diag([0.0, 0.5])})
    >>> cost.value(np.array([[0, 0], [1, 1]])).tolist()
    [1.0, 1.0]
    """

    constant: float
    #: per group, (n_options,) float64
    unary: tuple[np.ndarray, ...]
    #: two or three groups in ascending order → float64, an axis for each
    edges: Mapping[tuple[int, ...], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for edge, table in self.edges.items():
            shape = tuple(len(self.unary[group]) for group in edge)
            if list(edge) != sorted(set(edge)) or len(edge) not in (2, 3) or table.shape != shape:
                raise SpecError(f"edge {edge} must name two or three ascending groups and have shape {shape}, "
                                f"got {table.shape}")  # fmt: skip
        parts = [np.array([self.constant]), *self.unary, *self.edges.values()]
        if not all(np.isfinite(part).all() for part in parts):
            raise SpecError("an additive cost must be finite everywhere")

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of options of each group."""
        return tuple(len(costs) for costs in self.unary)

    @cached_property
    def magnitude(self) -> float:
        """The sum of the largest magnitudes of all parts: what rounding errors are relative to."""
        parts = [*self.unary, *self.edges.values()]
        return abs(self.constant) + float(sum(np.abs(part).max() for part in parts))

    def value(self, vectors: np.ndarray) -> np.ndarray:
        """Returns (n,) float64 costs.

        Args:
            vectors: (n, at least n_groups) integers, each within its group's options.
        """
        total = np.full(len(vectors), self.constant)
        for group, costs in enumerate(self.unary):
            total += costs[vectors[:, group]]
        for edge, table in self.edges.items():
            total += table[tuple(vectors[:, group] for group in edge)]
        return total

    def restrict(self, kept: Sequence[np.ndarray]) -> "AdditiveCost":
        """Returns the cost over fewer options.

        Args:
            kept: per group, (n_kept,) integers: the options that stay, in their new order.
        """
        unary = tuple(costs[options] for costs, options in zip(self.unary, kept, strict=True))
        edges = {edge: table[np.ix_(*(kept[group] for group in edge))] for edge, table in self.edges.items()}
        return AdditiveCost(self.constant, unary, edges)

    def to_json(self) -> dict[str, Any]:
        """Returns the parts as JSON values."""
        return {
            "constant": self.constant,
            "unary": [costs.tolist() for costs in self.unary],
            "edges": [[list(edge), table.tolist()] for edge, table in self.edges.items()],
        }

    @classmethod
    def from_json(cls, value: Any) -> "AdditiveCost":
        """Reads what `to_json` wrote.

        Raises:
            RunError: the value is not an additive cost.
        """
        try:
            unary = tuple(np.array(costs, float) for costs in value["unary"])
            edges = {tuple(map(int, edge)): np.array(table, float) for edge, table in value["edges"]}
            return cls(float(value["constant"]), unary, edges)
        except (KeyError, TypeError, ValueError, IndexError, SpecError) as cause:
            raise RunError(f"not an additive cost: {cause!r}") from cause


def zero_cost(sizes: Sequence[int]) -> AdditiveCost:
    """Returns the cost that is 0 everywhere."""
    return AdditiveCost(0.0, tuple(np.zeros(size) for size in sizes))


def weighted_sum(terms: Sequence[tuple[AdditiveCost, float]]) -> AdditiveCost:
    """Returns the sum of costs times their factors; costs of fewer choices know nothing of the later ones.

    >>> import numpy as np
    >>> cost = AdditiveCost(1.0, (np.array([0.0, 2.0]),))
    >>> weighted_sum([(cost, 1.0), (cost, 0.5)]).value(np.array([[1]])).tolist()
    [4.5]
    """
    longest = max((cost.unary for cost, _ in terms), key=len)
    unary = [np.zeros(len(costs)) for costs in longest]
    edges: dict[tuple[int, ...], np.ndarray] = {}
    for cost, factor in terms:
        for group, costs in enumerate(cost.unary):
            unary[group] += factor * costs
        for edge, table in cost.edges.items():
            edges[edge] = factor * table + edges.get(edge, 0.0)
    return AdditiveCost(sum(factor * cost.constant for cost, factor in terms), tuple(unary), edges)


def scaled(cost: AdditiveCost, factor: float) -> AdditiveCost:
    """Returns the cost in another unit: everything times a factor."""
    return weighted_sum([(cost, factor)])
