"""Designed policies: those whose prices identify every unary and boundary cost of a space."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..hw_profiles.surrogate.surrogate_design import (
    Identification,
    balanced_design,
    choose_by_information,
    identify,
    uniform_vectors,
)
from ..hw_profiles.surrogate.surrogate_fit import Belief
from ..hw_profiles.surrogate.surrogate_terms import Edges, Structure
from .policy import Policy
from .space import Space

#: rows of a design per term of the structure
ROWS_PER_TERM = 2.5
#: balanced designs that are tried; the one with the largest determinant is kept
_N_TRIES = 4
#: random policies on which a design is judged
_N_ASKED = 256
#: designs with more entries than this are made once: they are balanced well, and judging them takes seconds
_FEW = 100_000


@dataclass(frozen=True)
class Design:
    """Policies to be priced, and what their prices will tell."""

    space: Space
    structure: Structure
    #: (n, n_dimensions) int64
    vectors: np.ndarray

    @cached_property
    def identification(self) -> Identification:
        """How well the policies tell the terms apart, asked about the same random policies for every design."""
        asked = _random_vectors(self.structure, _N_ASKED, np.random.default_rng(0))
        return identify(self.structure, self.vectors, asked)

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policies, in the order of the vectors."""
        return tuple(self.space.decode(vector) for vector in self.vectors)


def structures_of(space: Space, edges: Edges) -> tuple[Structure, ...]:
    """Returns the terms of a space, without and (where there are chains) with chains; graph choices have none."""
    sizes = tuple(len(options) for options in space.options)
    pairs = Structure(sizes, tuple(edges.pairs), edges.labels)
    return (pairs, replace(pairs, edges=edges.with_chains)) if edges.chains else (pairs,)


def design_policies(
    space: Space,
    structure: Structure,
    *,
    seed: int,
    n_policies: int | None = None,
    graph: Sequence[int] = (),
) -> Design:
    """Returns policies that identify every term of a structure, many groups flipped at once.

    The uniform policies come first, then a balanced design along the edges (`balanced_design`).
    Flipping groups one at a time would tell the same from as many policies,
    but with variances that are larger by about the number of groups.

    Args:
        space: whose policies.
        structure: the terms, over the space's groups.
        seed: the same seed gives the same policies.
        n_policies: `ROWS_PER_TERM` for each term where it is not given.
        graph: entries of the graph-wide choices, the same in every policy; those that are not given are 0.
    """
    wanted = n_policies or int(np.ceil(ROWS_PER_TERM * structure.n_terms))
    rng = np.random.default_rng(seed)
    n_tries = _N_TRIES if wanted * structure.n_terms <= _FEW else 1
    designs = [
        Design(space, structure, _with_graph(_one_design(structure, wanted, rng), _fill(space, graph)))
        for _ in range(n_tries)
    ]
    if n_tries == 1:
        return designs[0]
    return max(designs, key=lambda design: (design.identification.rank, design.identification.log_det))


def design_measurements(
    space: Space,
    belief: Belief,
    *,
    n_policies: int,
    candidates: np.ndarray,
    noise_s: float,
) -> Design:
    """Returns the few policies to measure on the device, of those at hand: greedy D-optimality after level 2.

    Args:
        space: whose policies.
        belief: what level 2 says of the device; see `measured_prior`.
        n_policies: how many; 16 to 24 correct the scale and the largest terms.
        candidates: (n, n_dimensions) integers to choose from, such as a design's vectors.
        noise_s: standard error of one measurement, in seconds.
    """
    chosen = choose_by_information(belief, candidates, n_policies, noise_s)
    return Design(space, belief.structure, np.asarray(candidates, np.int64)[chosen])


def _one_design(structure: Structure, wanted: int, rng: np.random.Generator) -> np.ndarray:
    uniform = uniform_vectors(structure.sizes)[:wanted]
    return np.concatenate([uniform, balanced_design(structure, wanted - len(uniform), rng)])


def _random_vectors(structure: Structure, n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, structure.sizes, (n, len(structure.sizes)))


def _fill(space: Space, graph: Sequence[int]) -> tuple[int, ...]:
    n_choices = len(space.dimensions) - len(space.groups)
    return (*graph, *(0,) * (n_choices - len(graph)))


def _with_graph(vectors: np.ndarray, graph: Sequence[int]) -> np.ndarray:
    """Appends the entries of the graph-wide choices: (n, n_dimensions) int64."""
    return np.concatenate([vectors.astype(np.int64), np.tile(np.array(graph, np.int64), (len(vectors), 1))], axis=1)
