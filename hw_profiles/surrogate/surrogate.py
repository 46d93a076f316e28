"""Level 1 of the ladder of prices: what a policy costs, as a sum over groups and over pairs of groups."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from ...core.errors import SpecError
from .joint_tables import JointTables, build_joint_tables

#: policies that are priced with their standard error at a time: one-hot rows of 1,000 terms take 4 MB
_CHUNK = 1024


class Spread(Protocol):
    """What knows how uncertain a price is."""

    def variance(self, vectors: np.ndarray) -> np.ndarray:
        """Returns (n,) float64 seconds² for (n, n_groups) integer vectors."""


@dataclass(frozen=True)
class PairwiseSurrogate:
    """cost(v) = constant + Σ_g unary[g][v_g] + Σ_(g,h) boundary[g,h][v_g, v_h], in seconds.

    An edge may also run over three groups, with a table of three axes; see `Edges` for why. It knows integer vectors
    only: entry g of a vector is the option that group g takes. Further entries (the choices for the whole graph) are
    ignored; they select between surrogates, see `experiments/profiling/surrogate.py`. A solver may linearise ``unary``
    and ``boundary`` as they stand.

    >>> import numpy as np
    >>> boundary = {(0, 1): np.array([[0.0, 0.5], [0.5, 0.0]])}
    >>> surrogate = PairwiseSurrogate(1.0, (np.array([0.0, -0.2]), np.array([0.0, -0.3])), boundary)
    >>> surrogate.price(np.array([[0, 0], [0, 1], [1, 1]])).round(6).tolist()
    [1.0, 1.2, 0.5]
    """

    constant: float
    #: per group, (n_options,) float64 seconds; the first option is the reference and costs 0
    unary: tuple[np.ndarray, ...]
    #: groups in ascending order → (n_options, n_options) float64 seconds, an axis for each; 0 where one is 0
    boundary: Mapping[tuple[int, ...], np.ndarray]
    #: None where the tables are taken to be exact
    spread: Spread | None = None

    def __post_init__(self) -> None:
        for edge, table in self.boundary.items():
            shape = tuple(len(self.unary[group]) for group in edge)
            if list(edge) != sorted(set(edge)) or table.shape != shape:
                raise SpecError(
                    f"a boundary must name ascending groups and have one axis for each, here {shape}; "
                    f"got {edge} with {table.shape}"
                )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of options of each group."""
        return tuple(len(costs) for costs in self.unary)

    @cached_property
    def tables(self) -> JointTables:
        """The sums over neighbouring groups that make pricing fast."""
        return build_joint_tables(self.unary, self.boundary, self.constant)

    def price(self, vectors: np.ndarray) -> np.ndarray:
        """Returns (n,) float64 seconds.

        Args:
            vectors: (n, at least n_groups) integers, uint8 being the fastest, each within its group's options.
        """
        return self.tables.price(vectors)

    def standard_error(self, vectors: np.ndarray) -> np.ndarray:
        """Returns (n,) float64 seconds: the standard error of each price, for one policy seen once more.

        It holds what the fit leaves undecided (leverage) and what no sum of pairs explains (misfit).

        Args:
            vectors: (n, at least n_groups) integers.
        """
        if self.spread is None:
            return np.zeros(len(vectors))
        chunks = [
            self.spread.variance(vectors[start : start + _CHUNK, : len(self.unary)])
            for start in range(0, len(vectors), _CHUNK)
        ]
        return np.sqrt(np.concatenate(chunks)) if chunks else np.zeros(0)

    def price_neighbours(self, vector: np.ndarray) -> np.ndarray:
        """Returns (n_groups, most options) float64 seconds: the price when one group takes another option.

        ``inf`` where a group has no such option; its own option has the vector's price.

        Args:
            vector: (at least n_groups,) integers.
        """
        n_groups = len(self.unary)
        costs = np.full((n_groups, max(self.sizes, default=0)), np.inf)
        for group, options in enumerate(self.unary):
            costs[group, : len(options)] = options
        for edge, table in self.boundary.items():
            for axis, group in enumerate(edge):
                where = tuple(slice(None) if other == group else int(vector[other]) for other in edge)
                costs[group, : table.shape[axis]] += table[where]
        own = costs[np.arange(n_groups), np.asarray(vector[:n_groups], np.intp)]
        prices: np.ndarray = costs - own[:, None] + self.price(np.asarray(vector)[None])[0]
        return prices
