"""The best policy of a chain within a bound on damage, exactly."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...core.errors import SpecError

#: entries of a layer of the dynamic programme; more would fill the memory
_MAX_ENTRIES = 2_000_000


@dataclass(frozen=True)
class Chain:
    """Groups in a row: what each option costs, and what each pair of neighbours costs more."""

    #: (n_groups, n_options) float64 seconds
    unary_s: np.ndarray
    #: (n_groups - 1, n_options, n_options) float64 seconds
    boundary_s: np.ndarray
    #: (n_groups, n_options) int64 ≥ 0
    unary_damage: np.ndarray
    #: (n_groups - 1, n_options, n_options) int64 ≥ 0
    pair_damage: np.ndarray

    def __post_init__(self) -> None:
        n, m = self.unary_s.shape
        shapes = ((n - 1, m, m), (n, m), (n - 1, m, m))
        for part, shape in zip((self.boundary_s, self.unary_damage, self.pair_damage), shapes, strict=True):
            if part.shape != shape:
                raise SpecError(f"the parts of a chain of {n} groups with {m} options must have the shapes {shapes}, "
                                f"got {part.shape}")  # fmt: skip
        if self.unary_damage.min() < 0 or self.pair_damage.min(initial=0) < 0:
            raise SpecError("damage must not be negative")

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of options of each group."""
        return (self.unary_s.shape[1],) * len(self.unary_s)

    def seconds(self, vectors: np.ndarray) -> np.ndarray:
        """Returns (n,) float64; vectors are (n, n_groups) int."""
        return _total(self.unary_s, self.boundary_s, vectors)

    def damage(self, vectors: np.ndarray) -> np.ndarray:
        """Returns (n,) int64; vectors are (n, n_groups) int."""
        return _total(self.unary_damage, self.pair_damage, vectors)


def find_chain_optimum(chain: Chain, most_damage: int) -> tuple[list[int], float]:
    """Returns the fastest vector whose damage is at most ``most_damage``, and its seconds.

    The state is the option of the last group and the damage so far (the shortest path under a resource constraint by
    dynamic programming: Joksch, The shortest route problem with constraints, J. Math. Anal. Appl. 14, 1966, section 2).

    Raises:
        SpecError: no vector has so little damage, or the bound is too large to be tabulated.
    """
    n_groups, n_options = chain.unary_s.shape
    n_units = most_damage + 1
    if not 0 < n_units <= _MAX_ENTRIES // n_options:
        raise SpecError(f"0 <= most_damage < {_MAX_ENTRIES // n_options} must hold, got {most_damage}")
    best = np.full((n_options, n_units), np.inf)  # seconds by (last option, damage so far)
    for option in range(n_options):
        if chain.unary_damage[0, option] < n_units:
            best[option, chain.unary_damage[0, option]] = chain.unary_s[0, option]
    previous = np.zeros((n_groups, n_options, n_units), np.int8)
    for group in range(1, n_groups):
        best, previous[group] = _extend(chain, group, best)
    last, units = np.unravel_index(int(best.argmin()), best.shape)
    if not np.isfinite(best[last, units]):
        raise SpecError(f"no policy of the chain has a damage of at most {most_damage}")
    return _walk_back(chain, previous, int(last), int(units)), float(best[last, units])


def _extend(chain: Chain, group: int, best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the states after one more group, and from which option each came."""
    n_options, n_units = best.shape
    after, source = np.full_like(best, np.inf), np.zeros(best.shape, np.int8)
    for option in range(n_options):
        for before in range(n_options):
            units = int(chain.unary_damage[group, option] + chain.pair_damage[group - 1, before, option])
            if units >= n_units:
                continue
            seconds = best[before, : n_units - units] + (
                chain.unary_s[group, option] + chain.boundary_s[group - 1, before, option]
            )
            is_better = seconds < after[option, units:]
            after[option, units:][is_better] = seconds[is_better]
            source[option, units:][is_better] = before
    return after, source


def _walk_back(chain: Chain, previous: np.ndarray, last: int, units: int) -> list[int]:
    found = [last]
    for group in range(len(previous) - 1, 0, -1):
        option, before = found[-1], int(previous[group, found[-1], units])
        units -= int(chain.unary_damage[group, option] + chain.pair_damage[group - 1, before, option])
        found.append(before)
    return found[::-1]


def _total(unary: np.ndarray, pairs: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    groups = np.arange(len(unary))
    total: np.ndarray = unary[groups, vectors].sum(axis=1)
    total += pairs[groups[:-1], vectors[:, :-1], vectors[:, 1:]].sum(axis=1)
    return total
