"""Level 1 for a whole space: one pairwise surrogate per combination of graph-wide choices, fitted when it is asked for.

Fusion, quantised operators and the runtime's precision change what every group and every boundary costs, so each
combination of them has tables of its own; the first one that was fitted serves the others as a prior, which leaves
them fewer prices to ask for. Calibration changes no kernel and has no cost.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...hw_profiles.surrogate.surrogate import PairwiseSurrogate
from ...hw_profiles.surrogate.surrogate_fit import (
    Belief,
    Rows,
    TableError,
    belief_of,
    fit_best,
    measured_prior,
    refit,
    surrogate_of,
)
from ...hw_profiles.surrogate.surrogate_terms import Edges, Structure
from ...spaces.design_policies import Design, design_measurements, design_policies, structures_of
from ...spaces.policy import Policy
from ...spaces.space import Space

_log = logging.getLogger(__name__)

#: policies → (seconds, standard error) of each: level 2
Price = Callable[[Sequence[Policy]], Sequence[tuple[float, float]]]
#: entries of fusion, calibration, quantized_ops and precision; calibration is 0
Combination = tuple[int, int, int, int]

#: the two structures are compared only where pairs alone leave more than this share of a price
_WORTH_CHAINS = 0.005
#: standard deviation of measured ÷ priced before anything was measured, and from one policy to another
_RATIO_PRIOR, _RATIO_SCATTER = 0.1, 0.05
#: standard error of one measurement as a share, where the next ones are chosen
_MEASURED_SHARE = 0.01
_N_CANDIDATES = 1500


@dataclass(frozen=True, slots=True)
class Effort:
    """How many prices of level 2 a combination of graph choices may cost."""

    #: prices are asked for in batches, each as large as all before it, until the latest was predicted this well
    #: (root mean square of the relative errors)
    tolerance: float = 0.01
    #: prices of the first batch
    n_first: int = 64
    #: no more than this in all
    n_most: int = 1024


@dataclass
class SpaceSurrogate:
    """Prices the vectors of a space; learns from level 2 when first asked, and from measurements ever after."""

    space: Space
    edges: Edges
    level2: Price
    seed: int
    effort: Effort = field(default_factory=Effort)
    _fitted: dict[Combination, PairwiseSurrogate] = field(default_factory=dict)
    _measured: dict[Combination, PairwiseSurrogate] = field(default_factory=dict)
    _untold: dict[Combination, PairwiseSurrogate] = field(default_factory=dict)
    #: (measured ÷ priced, its variance) of every measurement
    _ratios: list[tuple[float, float]] = field(default_factory=list)

    def price(self, vectors: np.ndarray) -> np.ndarray:
        """Returns (n,) float64 seconds.

        Args:
            vectors: (n, n_dimensions) integers, uint8 being the fastest, each within its dimension.
        """
        return self._apart(vectors, lambda surrogate, part: surrogate.price(part))

    def standard_error(self, vectors: np.ndarray) -> np.ndarray:
        """Returns (n,) float64 seconds: the standard error of each price as a prediction of a measurement."""
        return self._apart(vectors, lambda surrogate, part: surrogate.standard_error(part))

    def update(self, policies: Sequence[Policy], measured: Sequence[tuple[float, float]]) -> None:
        """Learns from measurements on the device.

        Args:
            policies: what was measured.
            measured: (seconds, standard error) of each.
        """
        vectors = np.array([self.space.encode(policy) for policy in policies])
        seconds, errors = (np.array(column, float) for column in zip(*measured, strict=True))
        combinations = [self._combination(vector) for vector in vectors]
        for combination, vector, cost, error in zip(combinations, vectors, seconds, errors, strict=True):
            priced = float(self._level2_surrogate(combination).price(vector[None])[0])
            self._ratios.append((cost / priced, (error / priced) ** 2 + _RATIO_SCATTER**2))
        self._untold.clear()
        for combination in dict.fromkeys(combinations):
            taken = [i for i, other in enumerate(combinations) if other == combination]
            known = self.surrogate(combination)
            self._measured[combination] = refit(known, Rows(vectors[taken], seconds[taken], errors[taken]))

    def surrogate(self, combination: Combination) -> PairwiseSurrogate:
        """Returns the tables of a combination of graph-wide choices, for a solver; fits them if need be.

        Args:
            combination: entries of fusion, calibration (0), quantized_ops and precision.
        """
        if combination in self._measured:
            return self._measured[combination]
        if combination not in self._untold:
            belief = belief_of(self._level2_surrogate(combination))
            ratio, deviation = self._ratio()
            error = TableError(scale=deviation)
            self._untold[combination] = surrogate_of(measured_prior(belief, error, ratio=ratio))
        return self._untold[combination]

    def propose(self, n_policies: int, combination: Combination = (0, 0, 0, 0)) -> Design:
        """Returns the policies whose measurement would tell most about the tables of a combination."""
        surrogate = self.surrogate(combination)
        structure = belief_of(surrogate).structure
        candidates = design_policies(
            self.space, structure, seed=self.seed + 1, n_policies=_N_CANDIDATES, graph=combination
        ).vectors
        noise_s = _MEASURED_SHARE * surrogate.constant
        return design_measurements(
            self.space, belief_of(surrogate), n_policies=n_policies, candidates=candidates, noise_s=noise_s
        )

    def _combination(self, vector: np.ndarray) -> Combination:
        fusion, _, quantized_ops, precision = (int(entry) for entry in vector[len(self.space.groups) :][:4])
        return fusion, 0, quantized_ops, precision

    def _apart(self, vectors: np.ndarray, compute: Callable[[PairwiseSurrogate, np.ndarray], np.ndarray]) -> np.ndarray:
        """Computes for each combination of graph choices by its own surrogate."""
        results = np.empty(len(vectors))
        chosen = vectors[:, len(self.space.groups) :][:, :4]
        n_precisions, n_ops = len(self.space.graph.precision), len(self.space.graph.quantized_ops)
        codes = chosen @ np.array([n_precisions * n_ops, 0, n_precisions, 1])
        for code in np.unique(codes):
            combination = (int(code // (n_precisions * n_ops)), 0, int(code // n_precisions % n_ops))
            surrogate = self.surrogate((*combination, int(code % n_precisions)))
            rows = np.flatnonzero(codes == code)
            if len(rows) == len(vectors):
                return compute(surrogate, vectors)
            results[rows] = compute(surrogate, vectors[rows])
        return results

    def _ratio(self) -> tuple[float, float]:
        """Measured ÷ priced and its standard deviation, drawn to 1 while little was measured."""
        weights = [1 / _RATIO_PRIOR**2, *(1 / variance for _, variance in self._ratios)]
        ratio = float(np.average([1.0, *(ratio for ratio, _ in self._ratios)], weights=weights))
        return ratio, float(np.sum(weights)) ** -0.5

    def _level2_surrogate(self, combination: Combination) -> PairwiseSurrogate:
        if combination not in self._fitted:
            self._fitted[combination] = self._fit(combination)
        return self._fitted[combination]

    def _fit(self, combination: Combination) -> PairwiseSurrogate:
        """Asks for batches of prices until one of them was foreseen."""
        structures = structures_of(self.space, self.edges)
        like = belief_of(next(iter(self._fitted.values()))) if self._fitted else None
        rows = self._ask(structures[-1], combination, self.effort.n_first, batch=0)
        surrogate = self._fit_rows(structures, rows, like)
        while (n_known := len(rows.seconds)) < self.effort.n_most:
            n_more = min(n_known, self.effort.n_most - n_known)
            more = self._ask(structures[-1], combination, n_more, batch=n_known)
            error = float(np.sqrt(((surrogate.price(more.vectors) / more.seconds - 1) ** 2).mean()))
            _log.info("%d prices of level 2; the next %d were foreseen within %.1f %%", n_known, n_more, 100 * error)
            rows = Rows(*(np.concatenate([getattr(part, name) for part in (rows, more)]) for name in _ROW_FIELDS))
            surrogate = self._fit_rows(structures, rows, like)
            if error <= self.effort.tolerance:
                break
        return surrogate

    def _fit_rows(self, structures: Sequence[Structure], rows: Rows, like: Belief | None) -> PairwiseSurrogate:
        surrogate = fit_best(structures[:1], rows, like=like)
        misfit = belief_of(surrogate).misfit_s
        if len(structures) == 1 or misfit <= _WORTH_CHAINS * float(rows.seconds.mean()):
            return surrogate
        return fit_best(structures, rows, like=like)

    def _ask(self, structure: Structure, combination: Combination, n_policies: int, *, batch: int) -> Rows:
        design = design_policies(
            self.space, structure, seed=self.seed + batch, n_policies=n_policies, graph=combination
        )
        seconds, errors = zip(*self.level2(design.policies), strict=True)
        return Rows(design.vectors, np.array(seconds, float), np.array(errors, float))


_ROW_FIELDS = ("vectors", "seconds", "standard_errors")


def build_surrogate(
    space: Space, edges: Edges, level2: Price, *, seed: int, effort: Effort | None = None
) -> SpaceSurrogate:
    """Returns the surrogate of a space, fitted for its first combination of graph-wide choices.

    Args:
        space: whose vectors are to be priced.
        edges: which groups share kernels; see `compressors/edges.py`.
        level2: prices policies by kernel tables, or otherwise.
        seed: of the designs.
        effort: how many prices may be asked for.
    """
    surrogate = SpaceSurrogate(space, edges, level2, seed, effort or Effort())
    surrogate.surrogate((0, 0, 0, 0))
    return surrogate
