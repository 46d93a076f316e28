"""Fits a pairwise surrogate to prices: Bayesian linear regression whose prior scales the prices choose themselves.

Level 1 learns from two sources. Prices of level 2 (kernel tables) are many, and wrong in a systematic way; device
measurements are few. So the terms are fitted to the first, then `measured_prior` loosens them by what a kernel table
may be wrong by, and `refit` lets measurements move them. Beliefs are kept in information form (precision and mean):
a refit needs no old rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from ...core.errors import SpecError
from .surrogate import PairwiseSurrogate
from .surrogate_terms import Structure

#: standard deviation of a boundary term, relative to that of a unary term: the scales that are tried
_BOUNDARY_SCALES = (0.03, 0.1, 0.3, 1.0)
#: share of a term's variance that it has for itself, not in common with the terms that are alike: what is tried
_OWN_SHARES = (1.0, 0.1, 0.01, 0.001)
#: share of |term| by which the terms of one combination of graph choices may differ from another's: what is tried
_DRIFTS = (0.1, 0.5)
#: variance of what no sum of pairs explains, relative to that of the prices: what is tried
_MISFITS = (1e-10, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
#: rows on which the scales are chosen; the terms are then fitted to all of them
_N_SCALE_ROWS = 400


@dataclass(frozen=True)
class Rows:
    """Prices of policies: from level 2, or measured."""

    #: (n, at least n_groups) integers
    vectors: np.ndarray
    #: (n,) float64
    seconds: np.ndarray
    #: (n,) float64 seconds
    standard_errors: np.ndarray

    def __post_init__(self) -> None:
        finite = np.isfinite(self.seconds).all() and np.isfinite(self.standard_errors).all()
        if not (len(self.vectors) == len(self.seconds) == len(self.standard_errors) and finite):
            raise SpecError("prices must be finite, one of them and one standard error for each policy")


@dataclass(frozen=True)
class Belief:
    """A normal distribution over the terms of a structure; predicts the variance of prices."""

    structure: Structure
    #: (n_terms,) float64 seconds
    mean: np.ndarray
    #: (n_terms, n_terms) float64 seconds⁻²
    precision: np.ndarray
    #: standard deviation of what no sum of pairs explains, in seconds
    misfit_s: float

    @cached_property
    def covariance(self) -> np.ndarray:
        """(n_terms, n_terms) float64 seconds²."""
        covariance: np.ndarray = self._root.T @ self._root
        return covariance

    @cached_property
    def _root(self) -> np.ndarray:
        """(n_terms, n_terms): the inverse of the precision's Cholesky factor."""
        inverse: np.ndarray = np.linalg.inv(np.linalg.cholesky(self.precision))
        return inverse

    def variance(self, vectors: np.ndarray) -> np.ndarray:
        """Returns (n,) float64 seconds²: x Σ xᵀ of the terms, plus the misfit's."""
        whitened = self.structure.features(vectors) @ self._root.T
        variance: np.ndarray = np.einsum("ij,ij->i", whitened, whitened) + self.misfit_s**2
        return variance

    def updated(self, rows: Rows) -> "Belief":
        """Returns the belief after seeing rows: Λ' = Λ + XᵀWX, m' = m + Λ'⁻¹ XᵀW (y - X m).

        Bishop, Pattern Recognition and Machine Learning (2006), eq. 3.50 and 3.51, with the weights
        1 / (standard error² + misfit²).
        """
        features = self.structure.features(rows.vectors)
        weighted = features / (rows.standard_errors**2 + self.misfit_s**2)[:, None]
        precision = self.precision + features.T @ weighted
        step = np.linalg.solve(precision, weighted.T @ (rows.seconds - features @ self.mean))
        return replace(self, mean=self.mean + step, precision=precision)


def fit_surrogate(structure: Structure, rows: Rows, *, like: Belief | None = None) -> PairwiseSurrogate:
    """Fits the terms to prices of level 2.

    The scales of the prior are those under which the prices are most probable (type-II maximum likelihood, Rasmussen
    & Williams, Gaussian Processes for Machine Learning (2006), eq. 5.8). Boundary terms are drawn to 0, unary ones to
    those of groups that are alike; signs are left free, for a fused kernel costs less than its parts.

    Args:
        structure: the terms.
        rows: at least one price.
        like: what is known of another combination of graph-wide choices; it is tried as a prior, too.

    Raises:
        SpecError: there are no rows.
    """
    return fit_best((structure,), rows, like=like)


def fit_best(structures: Sequence[Structure], rows: Rows, *, like: Belief | None = None) -> PairwiseSurrogate:
    """Fits the structure under which the prices are most probable; see `fit_surrogate`."""
    if not len(rows.vectors):
        raise SpecError("a surrogate needs at least one price to be fitted to")
    some = _thin(rows)
    found = [_choose_prior(structure, rows, some, like) for structure in structures]
    best = max(range(len(found)), key=lambda i: found[i][0])
    return surrogate_of(found[best][1].updated(rows))


def refit(surrogate: PairwiseSurrogate, rows: Rows) -> PairwiseSurrogate:
    """Returns the surrogate after further rows; the old ones are not needed.

    Raises:
        SpecError: the surrogate was not fitted, so nothing says how sure its tables are.
    """
    return surrogate_of(belief_of(surrogate).updated(rows))


def belief_of(surrogate: PairwiseSurrogate) -> Belief:
    """Returns what the surrogate was made from.

    Raises:
        SpecError: it was not fitted.
    """
    if not isinstance(surrogate.spread, Belief):
        raise SpecError("only a surrogate that was fitted can be refitted; this one was made from exact tables")
    return surrogate.spread


def surrogate_of(belief: Belief) -> PairwiseSurrogate:
    """Returns the surrogate with the belief's mean as tables."""
    return PairwiseSurrogate(*belief.structure.tables(belief.mean), spread=belief)


@dataclass(frozen=True)
class TableError:
    """How wrong a kernel table may be, as shares: standard deviations before anything was measured."""

    #: of the whole price: clock, cache and calls between kernels scale everything alike
    scale: float = 0.1
    #: of a policy's price, added to every one
    offset: float = 0.05
    #: of each term by itself
    term: float = 0.2


def measured_prior(belief: Belief, error: TableError | None = None, *, ratio: float = 1.0) -> Belief:
    """Returns what a belief about level 2 says of the device: θ' = (ratio + b) θ + a e₀ + δ.

    With b ~ N(0, scale²), a ~ N(0, (offset × constant)²) and δ ~ N(0, diag((term × θ)²)), all of it stays normal:
    Σ' = ratio² Σ + scale² θθᵀ + (offset × θ₀)² e₀e₀ᵀ + diag((term × θ)²). So a few measurements correct the whole
    price at once, and many correct single terms.

    Args:
        belief: fitted to prices of level 2.
        error: how wrong the kernel table may be.
        ratio: measured over priced, where other measurements have told it.
    """
    error = error or TableError()
    mean = belief.mean * ratio
    own = (error.term * mean) ** 2
    own[0] = (error.offset * mean[0]) ** 2
    covariance = ratio**2 * belief.covariance + error.scale**2 * np.outer(mean, mean) + np.diag(own)
    precision = np.linalg.inv(covariance)
    return replace(belief, mean=mean, precision=(precision + precision.T) / 2)


class _Prior(Protocol):
    """A prior up to its scale: the rows choose the factor of the covariance."""

    @property
    def mean(self) -> np.ndarray:
        """(n_terms,) float64 seconds."""

    def gram(self, features: np.ndarray) -> np.ndarray:
        """Returns X P Xᵀ."""

    def covariance(self) -> np.ndarray:
        """Returns P."""


@dataclass(frozen=True)
class _Fresh:
    """Unary terms of variance 1, boundary terms of less; terms of a kind have most of it in common."""

    mean: np.ndarray
    #: (n_terms,) standard deviations
    deviation: np.ndarray
    #: (n_terms, n_kinds) 1 where a term is of a kind
    kinds: np.ndarray
    own: float

    def gram(self, features: np.ndarray) -> np.ndarray:
        scaled = features * self.deviation
        shared = scaled @ self.kinds
        gram: np.ndarray = self.own * (scaled @ scaled.T) + (1 - self.own) * (shared @ shared.T)
        return gram

    def covariance(self) -> np.ndarray:
        scaled = self.deviation[:, None] * self.kinds
        covariance: np.ndarray = (1 - self.own) * (scaled @ scaled.T) + self.own * np.diag(self.deviation**2)
        return covariance


@dataclass(frozen=True)
class _Drifted:
    """Another combination's terms, scaled to these prices, each free to move by a share of itself."""

    mean: np.ndarray
    matrix: np.ndarray

    def gram(self, features: np.ndarray) -> np.ndarray:
        gram: np.ndarray = features @ self.matrix @ features.T
        return gram

    def covariance(self) -> np.ndarray:
        return self.matrix


def _choose_prior(structure: Structure, rows: Rows, some: Rows, like: Belief | None) -> tuple[float, Belief]:
    """Returns the log likelihood of some rows under the best prior, and that prior."""
    features = structure.features(some.vectors)
    related = like if like is not None and like.structure == structure else None
    priors = [*_fresh_priors(structure, rows), *(_drifted_priors(related, rows) if related else ())]
    scored = [_score(prior, features, some) for prior in priors]
    best = max(range(len(priors)), key=lambda i: scored[i][0])
    likelihood, scale, misfit = scored[best]
    precision = np.linalg.inv(priors[best].covariance() * scale)
    return likelihood, Belief(structure, priors[best].mean, (precision + precision.T) / 2, misfit)


def _fresh_priors(structure: Structure, rows: Rows) -> Iterator[_Prior]:
    mean = np.zeros(structure.n_terms)
    mean[0] = rows.seconds.mean()
    kinds = (structure.kinds[:, None] == np.unique(structure.kinds)).astype(np.float64)
    for scale in _BOUNDARY_SCALES if structure.edges else (1.0,):
        deviation = np.where(structure.orders > 1, scale, 1.0)
        deviation[0] = max(len(structure.sizes), 1)
        for own in _OWN_SHARES if structure.labels else (1.0,):
            yield _Fresh(mean, deviation, kinds, own)


def _drifted_priors(like: Belief, rows: Rows) -> Iterator[_Prior]:
    ratio = rows.seconds.mean() / max(float((like.structure.features(rows.vectors) @ like.mean).mean()), 1e-12)
    mean = like.mean * ratio
    typical = float(np.abs(mean[1:]).mean()) if len(mean) > 1 else abs(float(mean[0]))
    for drift in _DRIFTS:
        own = drift**2 * (mean**2 + typical**2)
        yield _Drifted(mean, ratio**2 * like.covariance + np.diag(own))


def _thin(rows: Rows) -> Rows:
    """Takes rows evenly from the whole, so that no part of a design is left out."""
    if len(rows.vectors) <= _N_SCALE_ROWS:
        return rows
    taken = np.linspace(0, len(rows.vectors) - 1, _N_SCALE_ROWS).astype(np.intp)
    return Rows(rows.vectors[taken], rows.seconds[taken], rows.standard_errors[taken])


def _score(prior: _Prior, features: np.ndarray, rows: Rows) -> tuple[float, float, float]:
    """Returns the best log likelihood of the rows, and there the prior's scale (seconds²) and the misfit (seconds).

    With K = s² (X P Xᵀ + ν I) and residual r, s² = rᵀ(X P Xᵀ + ν I)⁻¹ r / n maximises the likelihood, which is then
    -n/2 log s² - ½ log|X P Xᵀ + ν I|, up to a constant; one eigendecomposition serves every ν.
    """
    values, vectors = np.linalg.eigh(prior.gram(features))
    values = np.maximum(values, 0.0)
    rotated = vectors.T @ (rows.seconds - features @ prior.mean)
    unit = float(values.mean()) or 1.0
    found = []
    for share in _MISFITS:
        spectrum = values + share * unit
        scale = max(float((rotated**2 / spectrum).mean()), 1e-30)
        likelihood = -0.5 * len(rotated) * np.log(scale) - 0.5 * float(np.log(spectrum).sum())
        found.append((float(likelihood), scale, share * unit))
    likelihood, scale, misfit = max(found)
    spectrum = values + misfit
    # leave-one-out residuals over their deviations (eq. 5.12): a prior that is too narrow shows there
    leverage = (vectors**2 / spectrum).sum(1)
    surprise = ((vectors @ (rotated / spectrum)) ** 2 / leverage).mean() / scale
    scale *= max(1.0, float(surprise))
    # the rows' own errors are part of what looks like misfit
    known = float((rows.standard_errors**2).mean())
    return likelihood, scale, float(np.sqrt(max(misfit * scale - known, _MISFITS[0] * unit * scale)))
