"""Roofline: a kernel takes as long as its arithmetic or its bytes, whichever is more, and an overhead.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore architectures",
Communications of the ACM 52(4), 2009, with rates fitted per kind of kernel instead of the machine's peaks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...core.errors import SpecError
from ..kernels.kernel import Kernel
from ..kernels.kernel_features import KernelWork, describe_kind, measure_work
from .predictors import SHORTEST_S, check_timings

#: seconds of overhead, per operation and per byte, before anything is known: a core of a server of 2020
_PRIOR = np.log([1e-6, 1 / 3e10, 1 / 1e10])
#: how many kernels' worth of trust the parameters of the coarser kind have
_TRUST = np.array([2.0, 1.0, 1.0])
#: how many kernels' worth of trust the spread of the coarser kind has
_SPREAD_TRUST = 4.0
#: relative error before anything is known
_PRIOR_SPREAD = 1.0
_N_STEPS = 12


@dataclass(frozen=True, slots=True)
class Rates:
    """The roofline of one kind of kernel."""

    #: (3,) natural logarithms of seconds of overhead, per operation, per byte
    parameters: np.ndarray
    #: standard deviation of the logarithm of the time around it
    spread: float


@dataclass
class Roofline:
    """Fits rates per operator, implementation, dtypes and layout; kinds with few kernels lean on coarser ones."""

    _rates: dict[tuple[str, ...], Rates] = field(default_factory=dict)

    def fit(self, kernels: Sequence[Kernel], seconds: np.ndarray) -> None:
        """Learns the rates; see `KernelPredictor.fit`."""
        logs = np.log(np.maximum(check_timings(kernels, seconds), SHORTEST_S))
        amounts = stack_amounts([measure_work(kernel) for kernel in kernels])
        kinds = [describe_kind(kernel) for kernel in kernels]
        self._rates = {(): _fit_rates(amounts, logs, Rates(_PRIOR, _PRIOR_SPREAD))}
        for start in range(len(kinds[0]) - 1, -1, -1):
            members: dict[tuple[str, ...], list[int]] = {}
            for index, kind in enumerate(kinds):
                members.setdefault(kind[start:], []).append(index)
            for kind, indices in members.items():
                self._rates[kind] = _fit_rates(amounts[indices], logs[indices], self._rates[kind[1:]])

    def predict(self, kernels: Sequence[Kernel]) -> tuple[np.ndarray, np.ndarray]:
        """Returns medians and errors; see `KernelPredictor.predict`."""
        if not self._rates:
            raise SpecError("a predictor must be fitted before it predicts")
        amounts = stack_amounts([measure_work(kernel) for kernel in kernels])
        rates = [self.find_rates(describe_kind(kernel)) for kernel in kernels]
        parameters = np.array([rate.parameters for rate in rates]).reshape(-1, 3)
        return np.exp(_log_time(parameters, amounts)[0]), np.array([rate.spread for rate in rates])

    def find_rates(self, kind: tuple[str, ...]) -> Rates:
        """Returns the rates of the finest kind that was seen."""
        return next(self._rates[kind[i:]] for i in range(len(kind) + 1) if kind[i:] in self._rates)


def stack_amounts(works: Sequence[KernelWork]) -> np.ndarray:
    """Returns (n, 2) operations and bytes."""
    return np.array([(work.flops, work.moved_bytes) for work in works], np.float64).reshape(-1, 2)


def _log_time(parameters: np.ndarray, amounts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the (n,) log seconds and their (n, 3) derivatives.

    The larger of two is taken as the root of the sum of squares, which is smooth.
    """
    overhead, *rates = np.exp(parameters).T
    work, traffic = (rate * amount for rate, amount in zip(rates, amounts.T, strict=True))
    roof = np.hypot(work, traffic)
    seconds = overhead + roof
    slope = np.divide(1.0, roof * seconds, out=np.zeros_like(roof), where=roof > 0)
    return np.log(seconds), np.stack([overhead / seconds, work**2 * slope, traffic**2 * slope], axis=1)


def _fit_rates(amounts: np.ndarray, logs: np.ndarray, parent: Rates) -> Rates:
    """Damped Gauss-Newton on robust squared errors of the logarithm, drawn towards the parent's parameters."""
    parameters = parent.parameters.copy()
    for _ in range(_N_STEPS):
        guess, slopes = _log_time(np.broadcast_to(parameters, (len(logs), 3)), amounts)
        misses = logs - guess
        weights = 1.0 / np.maximum(np.abs(misses) / max(parent.spread, 0.1), 1.0)  # Huber
        pull = np.diag(_TRUST)
        gradient = slopes.T @ (weights * misses) + pull @ (parent.parameters - parameters)
        step = np.linalg.solve(slopes.T @ (weights[:, None] * slopes) + pull, gradient)
        parameters = parameters + np.clip(step, -1.0, 1.0)
    misses = logs - _log_time(np.broadcast_to(parameters, (len(logs), 3)), amounts)[0]
    spread = (np.sum(misses**2) + _SPREAD_TRUST * parent.spread**2) / (len(logs) + _SPREAD_TRUST)
    return Rates(parameters, float(np.sqrt(spread)))
