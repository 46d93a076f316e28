"""What the solver is asked: the vector with the smallest cost that keeps every bound."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...core.errors import SpecError
from .additive_cost import AdditiveCost


def largest(costs: Sequence[AdditiveCost], vectors: np.ndarray) -> np.ndarray:
    """Returns (n,) float64: the largest of the costs of each vector, for example over the moments of a run.

    Args:
        costs: at least one.
        vectors: (n, at least n_groups) integers, each within its group's options.
    """
    values: np.ndarray = np.max([cost.value(vectors) for cost in costs], axis=0)
    return values


@dataclass(frozen=True)
class Bound:
    """An upper limit that every one of the costs has to keep: one cost, or one for each moment of a peak.

    >>> size = AdditiveCost(0.0, (np.array([8.0, 2.0]), np.array([8.0, 4.0])))
    >>> Bound("size", (size,), 10.0).value((0, 1))
    12.0
    """

    name: str
    costs: tuple[AdditiveCost, ...]
    #: in the unit of the costs; infinity bounds nothing
    limit: float

    def __post_init__(self) -> None:
        if not self.costs or np.isnan(self.limit):
            raise SpecError(f"bound {self.name} must have a cost and a limit, got {len(self.costs)} and {self.limit}")

    def value(self, vector: Sequence[int]) -> float:
        """Returns the largest of the costs of one vector."""
        return float(largest(self.costs, np.array([vector], int))[0])


@dataclass(frozen=True)
class Program:
    """Minimise the largest objective over integer vectors that keep the bounds; one entry a group.

    Raises:
        SpecError: costs over different options, two bounds of a name, no option allowed in a group, or an excluded
            vector that is none.

    >>> time = AdditiveCost(0.0, (np.array([3.0, 1.0]), np.array([3.0, 2.0])))
    >>> Program((time,), excluded=((1, 1),)).sizes
    (2, 2)
    """

    #: the largest of them is minimised; usually one
    objective: tuple[AdditiveCost, ...]
    bounds: tuple[Bound, ...] = ()
    #: vectors that may not be the answer
    excluded: tuple[tuple[int, ...], ...] = ()
    #: per group, (n_options,) bool: the options that may be taken; None allows all
    allowed: tuple[np.ndarray, ...] | None = None

    def __post_init__(self) -> None:
        if not self.objective:
            raise SpecError("a program must have an objective")
        names = [bound.name for bound in self.bounds]
        if len(set(names)) != len(names):
            raise SpecError(f"each bound must have a name of its own, got {names}")
        if any(cost.sizes != self.sizes for cost in self.costs):
            raise SpecError("all costs of a program must be over the same groups and options")
        self._check_allowed()
        self._check_excluded()

    def _check_allowed(self) -> None:
        for group, mask in enumerate(self.masks):
            if mask.dtype != bool or not mask.any():
                raise SpecError(f"at least one option of group {group} must be allowed, got {mask}")
        if tuple(map(len, self.masks)) != self.sizes:
            raise SpecError(f"allowed must have an entry for every option, {self.sizes}")

    def _check_excluded(self) -> None:
        for vector in self.excluded:
            in_range = len(vector) == len(self.sizes) and all(
                0 <= option < size for option, size in zip(vector, self.sizes, strict=True)
            )
            if not in_range:
                raise SpecError(f"an excluded vector must choose among {self.sizes}, got {vector}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of options of each group."""
        return self.objective[0].sizes

    @cached_property
    def masks(self) -> tuple[np.ndarray, ...]:
        """Per group, (n_options,) bool: the options that may be taken."""
        return tuple(np.ones(size, bool) for size in self.sizes) if self.allowed is None else self.allowed

    @cached_property
    def binding(self) -> tuple[Bound, ...]:
        """The bounds with a finite limit."""
        return tuple(bound for bound in self.bounds if bound.limit < np.inf)

    @property
    def costs(self) -> tuple[AdditiveCost, ...]:
        """The objective and the costs of all bounds."""
        return (*self.objective, *(cost for bound in self.bounds for cost in bound.costs))

    def value(self, vector: Sequence[int]) -> float:
        """Returns the objective of one vector."""
        return float(largest(self.objective, np.array([vector], int))[0])

    def permits(self, vectors: np.ndarray) -> np.ndarray:
        """Returns (n,) bool: allowed, not excluded, and within every limit as float64 has it.

        Args:
            vectors: (n, n_groups) integers, each within its group's options.
        """
        is_good = np.ones(len(vectors), bool)
        for group, mask in enumerate(self.masks):
            is_good &= mask[vectors[:, group]]
        for bound in self.binding:
            is_good &= largest(bound.costs, vectors) <= bound.limit
        excluded = set(self.excluded)
        is_good &= np.array([tuple(vector) not in excluded for vector in vectors.tolist()], bool)
        return is_good
