"""Policies worth a thought: the solver's optima under what is believed, the neighbours of the best, and chance."""

from collections.abc import Sequence, Set

import numpy as np

from ...spaces.space import Space

Vector = tuple[int, ...]


def without(vectors: np.ndarray, tried: Set[Vector]) -> np.ndarray:
    """Returns the distinct rows that were not tried, in their order."""
    fresh = [vector for vector in dict.fromkeys(map(tuple, vectors.tolist())) if vector not in tried]
    return np.array(fresh, np.int64).reshape(len(fresh), vectors.shape[1])


def neighbours_of(space: Space, starts: np.ndarray) -> np.ndarray:
    """Returns (n, n_dimensions) int64: what differs from a start in one choice, in canonical form."""
    sizes = list(space.dimensions.values())
    moves = [(d, entry) for d, size in enumerate(sizes) for entry in range(size)]
    positions = np.array([d for d, _ in moves])
    entries = np.array([entry for _, entry in moves])
    found = []
    for start in starts:
        rows = np.tile(start, (len(moves), 1))
        rows[np.arange(len(moves)), positions] = entries
        found.append(rows)
    return space.canonical(np.concatenate(found)) if found else np.zeros((0, len(sizes)), np.int64)


def mutants_of(space: Space, starts: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Returns (n, n_dimensions) int64: starts with two to four choices drawn anew, or a mixture of two starts."""
    sizes = np.array(list(space.dimensions.values()))
    free = np.flatnonzero(sizes > 1)
    found = starts[rng.integers(len(starts), size=n)].copy()
    for row in found:
        if rng.random() < 0.3:
            other = starts[rng.integers(len(starts))]
            row[:] = np.where(rng.random(len(row)) < 0.5, row, other)
        elif len(free):
            changed = rng.choice(free, size=min(int(rng.integers(2, 5)), len(free)), replace=False)
            row[changed] = rng.integers(0, sizes[changed])
    return space.canonical(found)


def random_policies(space: Space, n: int, rng: np.random.Generator) -> np.ndarray:
    """Returns (n, n_dimensions) int64, every choice drawn independently and uniformly."""
    sizes = list(space.dimensions.values())
    return space.canonical(rng.integers(0, sizes, (n, len(sizes))))


def settings_of(space: Space, vectors: Sequence[np.ndarray]) -> list[tuple[int, ...]]:
    """Returns the settings of the graph-wide choices in some vectors, and those that differ from them in one choice."""
    n_groups, sizes = len(space.groups), list(space.dimensions.values())[len(space.groups) :]
    found: dict[tuple[int, ...], None] = {}
    for vector in vectors:
        found.setdefault(tuple(map(int, vector[n_groups:])))
    for setting in list(found):
        for position, size in enumerate(sizes):
            for entry in range(size):
                found.setdefault((*setting[:position], entry, *setting[position + 1 :]))
    return list(found)
