"""Predictors of kernels that no table holds: the protocol, its calibration, and the choice.

The comparison behind the choice is in docs/adr/0009-predicting-unseen-kernels.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ...core.errors import SpecError
from ...core.registry import Registry
from ..kernels.kernel import Kernel
from ..kernels.kernel_features import FAMILIES, measure_work

#: what a clock that counts whole microseconds cannot tell from nothing, in seconds
SHORTEST_S = 3e-7
#: folds of the cross-validation that sets the error bars
_N_FOLDS = 5
#: held-out kernels of the whole that a family's own error factor is shrunk towards
_SHRINKAGE = 20
#: the share of a normal distribution within one standard error of its mean
_ONE_SIGMA = 0.6827


class KernelPredictor(Protocol):
    """Learns how long kernels take on one device from kernels that were timed there."""

    def fit(self, kernels: Sequence[Kernel], seconds: np.ndarray) -> None:
        """Learns from timed kernels; what was learnt before is forgotten.

        Args:
            kernels: distinct kernels.
            seconds: (n,) float, the median of each; 0 is taken for shorter than the clock can tell.

        Raises:
            SpecError: there are none, or a time is negative or not finite.
        """
        ...

    def predict(self, kernels: Sequence[Kernel]) -> tuple[np.ndarray, np.ndarray]:
        """Returns (n,) median seconds, and the (n,) standard error of their natural logarithm (relative error)."""
        ...


#: predictor name → factory() -> KernelPredictor
PREDICTORS: Registry[KernelPredictor] = Registry(
    "predictor",
    "trimtab.predictors",
    {
        "roofline": "trimtab.hw_profiles.prices.roofline:Roofline",
        "nearest_neighbours": "trimtab.hw_profiles.prices.neighbours:NearestNeighbours",
        "gaussian_process": "trimtab.hw_profiles.prices.neighbours:GaussianProcess",
        "random_forest": "trimtab.hw_profiles.prices.regression:build_random_forest",
        "gradient_boosting": "trimtab.hw_profiles.prices.regression:build_gradient_boosting",
    },
)
#: the one that docs/adr/0009 chose
DEFAULT_PREDICTOR = "gaussian_process"


def build_predictor(name: str = DEFAULT_PREDICTOR) -> "Calibrated":
    """Makes an unfitted predictor of this name whose error bars are calibrated when it is fitted.

    Raises:
        SpecError: there is none of this name; the message lists the known ones.
    """
    return Calibrated(PREDICTORS.get(name))


def check_timings(kernels: Sequence[Kernel], seconds: np.ndarray) -> np.ndarray:
    """Returns (n,) float64 seconds, checked for `KernelPredictor.fit`.

    Raises:
        SpecError: there are none, or a time is negative or not finite.
    """
    values = np.asarray(seconds, np.float64)
    if not len(kernels) or values.shape != (len(kernels),):
        raise SpecError(f"one time for each of at least one kernel is needed, got {len(kernels)} and {values.shape}")
    if not np.isfinite(values).all() or (values < 0).any():
        raise SpecError("times of kernels must be finite and at least 0 seconds; measure again")
    return values


@dataclass
class Calibrated:
    """Wraps a predictor so that its error bars hold for kernels whose *shapes* it never saw.

    Folds are made of whole shapes: the int8 and float32 forms of one layer are left out together, as they are when a
    model is new. The errors of the left-out kernels, over the predicted ones, give a factor for each family.
    """

    make: Callable[[], KernelPredictor]
    _predictor: KernelPredictor | None = None
    _factors: dict[str, float] = field(default_factory=dict)

    def fit(self, kernels: Sequence[Kernel], seconds: np.ndarray) -> None:
        """Learns, and calibrates the error bars; see `KernelPredictor.fit`."""
        values = check_timings(kernels, seconds)
        self._predictor = self.make()
        self._predictor.fit(kernels, values)
        works = [measure_work(kernel) for kernel in kernels]
        folds = fold_by_shape(kernels)
        families = np.array([work.family for work in works])
        ratios = np.full(len(kernels), np.nan)
        for fold in range(_N_FOLDS):
            held = folds == fold
            if held.all() or not held.any():
                continue
            ratios[held] = self._hold_out(kernels, values, held)
        self._factors = _find_factors(ratios, families)

    def _hold_out(self, kernels: Sequence[Kernel], seconds: np.ndarray, held: np.ndarray) -> np.ndarray:
        """Returns the (n_held,) absolute errors over the predicted ones."""
        predictor = self.make()
        predictor.fit([k for k, out in zip(kernels, held, strict=True) if not out], seconds[~held])
        medians, errors = predictor.predict([k for k, out in zip(kernels, held, strict=True) if out])
        misses: np.ndarray = np.abs(np.log(medians / np.maximum(seconds[held], SHORTEST_S))) / errors
        return misses

    def predict(self, kernels: Sequence[Kernel]) -> tuple[np.ndarray, np.ndarray]:
        """Returns medians and calibrated errors; see `KernelPredictor.predict`."""
        if self._predictor is None:
            raise SpecError("a predictor must be fitted before it predicts")
        medians, errors = self._predictor.predict(kernels)
        factors = [self._factors.get(measure_work(kernel).family, self._factors[""]) for kernel in kernels]
        return medians, errors * np.array(factors)


def _find_factors(ratios: np.ndarray, families: np.ndarray) -> dict[str, float]:
    """Returns family → factor; ``""`` is the factor of all, towards which small families are drawn."""
    known = ~np.isnan(ratios)
    if not known.any():
        return {"": 1.0}
    overall = max(float(np.quantile(ratios[known], _ONE_SIGMA)), 0.05)
    factors = {"": overall}
    for family in FAMILIES:
        own = ratios[known & (families == family)]
        if len(own):
            share = len(own) / (len(own) + _SHRINKAGE)
            mine = max(float(np.quantile(own, _ONE_SIGMA)), 0.05)
            factors[family] = float(np.exp(share * np.log(mine) + (1 - share) * np.log(overall)))
    return factors


def fold_by_shape(kernels: Sequence[Kernel], n_folds: int = _N_FOLDS) -> np.ndarray:
    """Returns the (n,) fold of each kernel; kernels of one shape share a fold, whatever their dtypes."""
    works = [measure_work(kernel) for kernel in kernels]
    shapes = [(work.family, work.flops, work.columns, work.depth) for work in works]
    order = {shape: i for i, shape in enumerate(sorted(set(shapes)))}
    shuffled = np.random.default_rng(0).permutation(len(order)) % n_folds
    return np.array([shuffled[order[shape]] for shape in shapes], int)
