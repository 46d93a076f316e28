"""How far prices are from what was measured."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class PriceAccuracy:
    """Prices against measurements, over policies that nothing was fitted on; shares are of 1."""

    n_policies: int
    #: mean absolute error relative to the measurement
    mape: float
    #: mean signed relative error: above 0, prices are too high
    bias: float
    #: shares of policies whose price is within 5 and 10 % of the measurement
    hits_5: float
    hits_10: float
    #: rank correlation (Kendall's τ-b); None for fewer than two policies
    kendall_tau: float | None
    #: share of measurements within 1.96 standard errors of their price; None where prices have no errors
    coverage_95: float | None = None

    def to_json(self) -> dict[str, float | int | None]:
        """Returns the fields as JSON values."""
        return asdict(self)


def compare_prices(priced_s: np.ndarray, measured_s: np.ndarray, errors_s: np.ndarray | None = None) -> PriceAccuracy:
    """Compares (n,) prices with (n,) measurements, both in seconds.

    Args:
        priced_s: (n,) float, prices.
        measured_s: (n,) float, measurements.
        errors_s: (n,) float, standard errors of the prices.
    """
    error = np.asarray(priced_s) / np.asarray(measured_s) - 1.0
    within = None if errors_s is None else np.abs(np.asarray(priced_s) - measured_s) <= 1.96 * np.asarray(errors_s)
    return PriceAccuracy(
        n_policies=len(error),
        mape=float(np.abs(error).mean()),
        bias=float(error.mean()),
        hits_5=float((np.abs(error) <= 0.05).mean()),
        hits_10=float((np.abs(error) <= 0.10).mean()),
        kendall_tau=_kendall_tau(np.asarray(priced_s), np.asarray(measured_s)),
        coverage_95=None if within is None else float(within.mean()),
    )


def _kendall_tau(left: np.ndarray, right: np.ndarray) -> float | None:
    """Returns τ-b; None where one side has no order at all, as for one policy."""
    from scipy.stats import kendalltau  # takes most of a second to import

    return None if not np.ptp(left) or not np.ptp(right) else float(kendalltau(left, right).statistic)


def describe(accuracy: PriceAccuracy) -> Mapping[str, str]:
    """Returns column → text, as tables show it."""
    tau, coverage = accuracy.kendall_tau, accuracy.coverage_95
    return {
        "MAPE": f"{accuracy.mape:.1%}",
        "bias": f"{accuracy.bias:+.1%}",
        "within 5 %": f"{accuracy.hits_5:.0%}",
        "within 10 %": f"{accuracy.hits_10:.0%}",
        "Kendall τ": "–" if tau is None else f"{tau:.3f}",
        "95 % covers": "–" if coverage is None else f"{coverage:.0%}",
    }
