"""The terms of a pairwise surrogate: which cost belongs to which options, and which terms are alike."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from ...core.errors import SpecError


@dataclass(frozen=True)
class Edges:
    """Which groups share kernels, as positions in the space's order."""

    #: pairs, the lower group first: nothing but nodes without weights between them
    pairs: tuple[tuple[int, int], ...]
    #: triples in ascending order, in which one group lies directly between the two others
    chains: tuple[tuple[int, int, int], ...] = ()
    #: see `Structure.labels`
    labels: tuple[Hashable, ...] = ()

    @property
    def with_chains(self) -> tuple[tuple[int, ...], ...]:
        """The pairs, the ends of each chain, and the chains themselves.

        A layer between two others may cost what depends on both: in ONNX Runtime an int8 convolution between float
        ones is wrapped in layout changes that vanish on the side where the neighbour is int8, too.
        """
        inner = [pair for chain in self.chains for pair in combinations(chain, 2)]
        return tuple(dict.fromkeys((*self.pairs, *inner, *self.chains)))


@dataclass(frozen=True)
class Structure:
    """The groups' numbers of options, and the pairs and triples of groups that have a boundary cost.

    The identifiable parametrisation: with the first option of every group as reference, the terms are the constant
    (every group at its reference), o - 1 unary terms for a group of o options, (o - 1) × (p - 1) boundary terms for a
    pair, and so on for a triple. Every sum of tables over groups, pairs and triples can be written so, in one way, if
    the pairs inside each triple are listed too.

    >>> Structure((2, 3), ((0, 1),)).n_terms
    6
    """

    sizes: tuple[int, ...]
    #: pairs or triples of groups in ascending order, each once
    edges: tuple[tuple[int, ...], ...]
    #: one label a group: groups with equal labels cost nearly the same (equal layers of a network, shape for shape),
    #: so that what is seen of one says much about the others; empty where nothing is known to be alike
    labels: tuple[Hashable, ...] = ()

    def __post_init__(self) -> None:
        n_groups = len(self.sizes)
        if any(list(edge) != sorted({*edge} & {*range(n_groups)}) or len(edge) < 2 for edge in self.edges):
            raise SpecError(f"edges must name two or three of {n_groups} groups in ascending order, got {self.edges}")
        if len(set(self.edges)) != len(self.edges) or len(self.labels) not in (0, n_groups):
            raise SpecError("each edge must be named once, and either every group has a label or none")

    @cached_property
    def n_unary(self) -> int:
        """The number of unary terms."""
        return sum(self.sizes) - len(self.sizes)

    def shape(self, edge: tuple[int, ...]) -> tuple[int, ...]:
        """The terms of an edge: one less than the options along each group."""
        return tuple(self.sizes[group] - 1 for group in edge)

    @cached_property
    def n_terms(self) -> int:
        """The number of terms, the constant included."""
        return 1 + self.n_unary + sum(math.prod(self.shape(edge)) for edge in self.edges)

    @cached_property
    def orders(self) -> np.ndarray:
        """(n_terms,) int64: how many groups a term speaks of, 0 for the constant."""
        boundary = [len(edge) for edge in self.edges for _ in range(math.prod(self.shape(edge)))]
        return np.array([0, *[1] * self.n_unary, *boundary])

    def features(self, vectors: np.ndarray) -> np.ndarray:
        """Returns (n, n_terms) float64: 1 where a policy has the term, else 0.

        Args:
            vectors: (n, at least n_groups) integers, each within its group's options.
        """
        chosen = [vectors[:, g, None] == np.arange(1, size) for g, size in enumerate(self.sizes)]
        found = np.ones((len(vectors), self.n_terms))
        position = 1
        for edge in (*((g,) for g in range(len(self.sizes))), *self.edges):
            block = chosen[edge[0]]
            for group in edge[1:]:
                block = (block[:, :, None] & chosen[group][:, None, :]).reshape(len(vectors), -1)
            found[:, position : position + block.shape[1]] = block
            position += block.shape[1]
        return found

    @cached_property
    def kinds(self) -> np.ndarray:
        """(n_terms,) int64: terms with one number are alike; the constant has 0.

        Boundary terms are alike where all ends are, and lie as far apart in the order of the groups.
        """
        labels: Sequence[Hashable] = self.labels or range(len(self.sizes))
        keys: list[Hashable] = ["constant"]
        for edge in (*((g,) for g in range(len(self.sizes))), *self.edges):
            ends = tuple((labels[group], group - edge[0], self.sizes[group]) for group in edge)
            keys += [(ends, options) for options in np.ndindex(self.shape(edge))]
        numbers = {key: n for n, key in enumerate(dict.fromkeys(keys))}
        return np.array([numbers[key] for key in keys])

    def tables(self, terms: np.ndarray) -> tuple[float, tuple[np.ndarray, ...], dict[tuple[int, ...], np.ndarray]]:
        """Lays out terms as constant, unary and boundary tables, the references' costs being 0.

        Args:
            terms: (n_terms,) float64.
        """
        found = []
        position = 1
        for edge in (*((g,) for g in range(len(self.sizes))), *self.edges):
            shape = self.shape(edge)
            table = np.zeros([self.sizes[group] for group in edge])
            table[(slice(1, None),) * len(edge)] = terms[position : position + math.prod(shape)].reshape(shape)
            found.append(table)
            position += math.prod(shape)
        n_groups = len(self.sizes)
        return float(terms[0]), tuple(found[:n_groups]), dict(zip(self.edges, found[n_groups:], strict=True))
