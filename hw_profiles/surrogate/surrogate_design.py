"""Designed sets of policies: which prices tell the terms of a surrogate apart, and how well a set does it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .surrogate_fit import Belief
from .surrogate_terms import Structure

#: of the prior information on each term, for the measure of a design: small, so that only rows count
_RIDGE = 1e-6


@dataclass(frozen=True)
class Identification:
    """How well a set of policies tells the terms of a structure apart."""

    n_terms: int
    #: terms, or sums of terms, that the set determines; all of them when it equals ``n_terms``
    rank: int
    #: of the design matrix: the largest singular value over the smallest that is not 0
    condition: float
    #: log determinant of XᵀX + 10⁻⁶ I per term: larger is better (the D-criterion)
    log_det: float
    #: variance of the worst predicted price among the policies asked about, for prices of variance 1 (G-criterion)
    max_variance: float

    @property
    def is_complete(self) -> bool:
        """Whether every term is determined."""
        return self.rank == self.n_terms


def identify(structure: Structure, vectors: np.ndarray, asked: np.ndarray) -> Identification:
    """Measures a design; Atkinson, Donev & Tobias, Optimum Experimental Designs (2007), chapters 9 and 10.

    Args:
        structure: the terms.
        vectors: (n, at least n_groups) integers: the design.
        asked: (m, at least n_groups) integers: policies whose price is to be predicted.
    """
    features = structure.features(vectors)
    singular = np.linalg.svd(features, compute_uv=False)
    present = singular[singular > singular[0] * max(features.shape) * np.finfo(float).eps]
    information = features.T @ features + _RIDGE * np.eye(structure.n_terms)
    factor = np.linalg.cholesky(information)
    whitened = np.linalg.solve(factor, structure.features(asked).T)
    return Identification(
        n_terms=structure.n_terms,
        rank=len(present),
        condition=float(present[0] / present[-1]),
        log_det=float(2 * np.log(np.diag(factor)).sum() / structure.n_terms),
        max_variance=float((whitened**2).sum(0).max(initial=0.0)),
    )


def balanced_design(structure: Structure, n_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Returns (n_rows, n_groups) uint8 policies in which all options of all neighbours meet equally often.

    An orthogonal array along the edges: with every pair of neighbouring options equally often, the columns of the
    terms are as far from collinear as they can be. The groups are filled in order; rows are sorted by what the earlier
    neighbours hold, and each run of equal rows is dealt the options in turn, in a new random order each round.
    """
    design = np.zeros((n_rows, len(structure.sizes)), np.uint8)
    earlier: list[set[int]] = [set() for _ in structure.sizes]
    for edge in structure.edges:
        earlier[edge[-1]].update(edge[:-1])
        if len(edge) == 3:
            earlier[edge[1]].add(edge[0])
    for group, size in enumerate(structure.sizes):
        keys = [design[:, neighbour] for neighbour in sorted(earlier[group])]
        order = np.lexsort(np.array([rng.random(n_rows), *keys]))  # the last key sorts first: the nearest neighbour
        rounds = math.ceil(n_rows / size)
        dealt = rng.permuted(np.tile(np.arange(size, dtype=np.uint8), (rounds, 1)), axis=1).ravel()
        design[order, group] = dealt[:n_rows]
    return design


def choose_by_information(belief: Belief, candidates: np.ndarray, n_rows: int, noise_s: float) -> list[int]:
    """Returns positions of candidates whose prices, seen together, tell most about the terms.

    Greedy D-optimality: each next policy is the one whose price is least certain after those before it, which gives
    the largest gain of log determinant, ½ log(1 + x Σ xᵀ / noise²); conditioning on it is a rank-one downdate. The
    greedy set has at least 1 - 1/e of the gain of the best one (Krause & Guestrin, UAI 2005: entropy is submodular).

    Args:
        belief: what is known of the terms.
        candidates: (n, at least n_groups) integers to choose from.
        n_rows: how many to choose, each at most once.
        noise_s: standard error of one price, in seconds.
    """
    features = belief.structure.features(candidates)
    covariance = features @ belief.covariance @ features.T  # of the candidates' prices
    own = noise_s**2 + belief.misfit_s**2
    chosen: list[int] = []
    free = np.ones(len(candidates), bool)
    for _ in range(min(n_rows, len(candidates))):
        best = int(np.argmax(np.where(free, np.diag(covariance), -np.inf)))
        chosen.append(best)
        free[best] = False
        column = covariance[:, best].copy()
        covariance -= np.outer(column, column) / (column[best] + own)
    return chosen


def uniform_vectors(sizes: Sequence[int]) -> np.ndarray:
    """Returns (most options, n_groups) uint8: every group at its first option, at its second or last, and so on."""
    return np.array([[min(option, size - 1) for size in sizes] for option in range(max(sizes, default=0))], np.uint8)
