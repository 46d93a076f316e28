"""Sums of unary and boundary costs tabulated over blocks of groups, so that a policy is priced by a few look-ups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

#: entries of one joint table. With about ten tables of 8 bytes an entry, all of them stay in 2 MB of L2.
MAX_ENTRIES = 16384
#: rows that are priced at a time: their float32 codes, indices and costs stay in the cache together
CHUNK = 2048


@dataclass(frozen=True)
class JointTables:
    """price(v) = Σ_t flat[offset_t + Σ_g v_g × stride_(g,t)].

    The indices of all tables are one float32 matrix product, exact up to 2^24 entries; each table holds every cost
    between the groups that it covers, and each cost stands in one table.
    """

    #: (n_tables, n_groups) float32: what one step of a group's option moves in the table
    strides: np.ndarray
    #: (n_tables, 1) float32: where each table begins
    offsets: np.ndarray
    #: (n_entries,) float64 seconds
    flat: np.ndarray

    def price(self, vectors: np.ndarray) -> np.ndarray:
        """Returns (n,) float64 seconds for (n, at least n_groups) integer vectors, each within its options."""
        n_groups = self.strides.shape[1]
        prices = np.empty(len(vectors))
        for start in range(0, len(vectors), CHUNK):
            codes = vectors[start : start + CHUNK, :n_groups].astype(np.float32)
            indices = (self.strides @ codes.T + self.offsets).astype(np.int64)  # (n_tables, rows)
            found = np.take(self.flat, indices, mode="clip")  # the default mode checks each index first
            found.sum(axis=0, out=prices[start : start + CHUNK])
        return prices


def build_joint_tables(
    unary: Sequence[np.ndarray], boundary: Mapping[tuple[int, ...], np.ndarray], constant: float
) -> JointTables:
    """Tabulates the costs.

    Args:
        unary: per group, (n_options,) float64.
        boundary: groups in ascending order → float64, an axis for each.
        constant: added to every price.
    """
    sizes = [len(costs) for costs in unary]
    blocks = cover_edges(sizes, list(boundary))
    strides = np.zeros((len(blocks), len(sizes)), np.float32)
    offsets, tables, n_entries = np.zeros((len(blocks), 1), np.float32), [], 0
    missing_groups, missing_edges = set(range(len(sizes))), set(boundary)
    for t, block in enumerate(blocks):
        shape = [sizes[group] for group in block]
        table = np.full(shape, constant if t == 0 else 0.0)
        for axis, group in enumerate(block):
            strides[t, group] = int(np.prod(shape[axis + 1 :]))
            if group in missing_groups:
                table += _along(unary[group], [axis], len(block))
        inside = [edge for edge in missing_edges if set(edge) <= set(block)]
        for edge in inside:
            table += _along(boundary[edge], [block.index(group) for group in edge], len(block))
        missing_groups -= set(block)
        missing_edges -= set(inside)
        offsets[t] = n_entries
        n_entries += table.size
        tables.append(table.ravel())
    flat = np.concatenate(tables) if tables else np.array([constant])
    return JointTables(strides, offsets, flat)


def cover_edges(
    sizes: Sequence[int], edges: Sequence[tuple[int, ...]], *, max_entries: int = MAX_ENTRIES
) -> list[tuple[int, ...]]:
    """Returns few blocks of groups such that each edge lies inside a block and each group in one.

    Greedy: a block starts at the first edge that is not covered and grows by the group that brings most uncovered
    edges into it, then by the group that needs fewest, while the product of the sizes stays within ``max_entries``.
    """
    open_edges = dict.fromkeys(edges)
    open_groups = dict.fromkeys(range(len(sizes)))
    blocks = []
    while open_edges or open_groups:
        start = min(min(edge) for edge in open_edges) if open_edges else next(iter(open_groups))
        block = _grow(start, sizes, list(open_edges), max_entries)
        if not open_edges:
            block = _fill(block, list(open_groups), sizes, max_entries)
        open_edges = {edge: None for edge in open_edges if not set(edge) <= block}
        open_groups = {group: None for group in open_groups if group not in block}
        blocks.append(tuple(sorted(block)))
    return blocks


def _grow(start: int, sizes: Sequence[int], edges: Sequence[tuple[int, ...]], max_entries: int) -> set[int]:
    """Adds the group with the most open edges into the block; ties go to the one with fewest edges outside."""
    adjacent: dict[int, set[int]] = {}
    for edge in edges:
        for group in edge:
            adjacent.setdefault(group, set()).update(edge)
    widest = max((len(edge) for edge in edges if start in edge), default=1)
    block, n_entries = {start}, sizes[start]
    while True:
        near = set().union(*(adjacent.get(member, set()) for member in block)) - block
        fitting = [group for group in near if n_entries * sizes[group] <= max_entries or len(block) < widest]
        if not fitting:
            return block
        best = max(fitting, key=lambda g: (_n_closed(g, block, edges), len(adjacent[g] & block), -g))
        block.add(best)
        n_entries *= sizes[best]


def _n_closed(group: int, block: set[int], edges: Sequence[tuple[int, ...]]) -> int:
    """The edges that lie inside the block once it has the group."""
    return sum(group in edge and set(edge) <= block | {group} for edge in edges)


def _fill(block: set[int], groups: Sequence[int], sizes: Sequence[int], max_entries: int) -> set[int]:
    """Adds groups without edges while they fit."""
    n_entries = int(np.prod([sizes[group] for group in block]))
    for group in groups:
        if group not in block and n_entries * sizes[group] <= max_entries:
            block = block | {group}
            n_entries *= sizes[group]
    return block


def _along(costs: np.ndarray, axes: Sequence[int], n_axes: int) -> np.ndarray:
    """Reshapes costs so that they broadcast along the given ascending axes of a joint table."""
    shape = [1] * n_axes
    for axis, side in zip(axes, costs.shape, strict=True):
        shape[axis] = side
    return costs.reshape(shape)
