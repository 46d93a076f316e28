"""Choices that belong together: the same layer of every block."""

import re
from collections.abc import Iterable

import numpy as np

from ...spaces.space import Space


def find_roles(space: Space) -> list[list[int]]:
    """Returns the positions in the vector that belong together: names equal but for numbers, equal options."""
    roles: dict[tuple[object, ...], list[int]] = {}
    options = [*space.options, *[()] * (len(space.dimensions) - len(space.groups))]
    for position, ((name, size), offered) in enumerate(zip(space.dimensions.items(), options, strict=True)):
        if size > 1:
            roles.setdefault((re.sub(r"\d+", "*", name), offered), []).append(position)
    return list(roles.values()) or [[0]]


def single_changes(space: Space, vector: np.ndarray, positions: Iterable[int] | None = None) -> np.ndarray:
    """Returns (n, n_dimensions) int64: every vector that differs from this one in one choice.

    Args:
        space: of the vector.
        vector: (n_dimensions,) integers.
        positions: of the choices; None: those of the groups.
    """
    sizes = list(space.dimensions.values())
    chosen = range(len(space.groups)) if positions is None else positions
    pairs = [(position, entry) for position in chosen for entry in range(sizes[position]) if entry != vector[position]]
    changed = np.repeat(vector[None], len(pairs), axis=0)
    for row, (position, entry) in enumerate(pairs):
        changed[row, position] = entry
    return changed
