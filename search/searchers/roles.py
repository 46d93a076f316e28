"""Choices that belong together: the same layer of every block."""

import re

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


def single_changes(space: Space, vector: np.ndarray) -> np.ndarray:
    """Returns (n, n_dimensions) int64: every vector that differs from this one in the option of one group."""
    pairs = [(g, o) for g, options in enumerate(space.options) for o in range(len(options)) if o != vector[g]]
    changed = np.repeat(vector[None], len(pairs), axis=0)
    for row, (group, option) in enumerate(pairs):
        changed[row, group] = option
    return changed
