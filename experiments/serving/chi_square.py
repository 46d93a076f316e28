"""Whether two samples, counted in the same bins, come from one distribution."""

import math

import numpy as np


def compare_counts(reference: np.ndarray, counts: np.ndarray) -> float:
    """Returns the probability that two samples of one distribution differ as much as these do.

    The two-sample chi-square of binned counts (Press et al., Numerical Recipes, 3rd edition, equation 14.3.3, with one
    constraint), so that the reference may be small: its own error is in it.

    Args:
        reference: (n_bins,) int counts.
        counts: (n_bins,) int counts of the other sample.
    """
    used = (reference + counts) > 0
    r, s = reference[used].astype(np.float64), counts[used].astype(np.float64)
    if len(r) < 2:
        return 1.0
    weight = math.sqrt(s.sum() / r.sum())
    statistic = float((np.square(weight * r - s / weight) / (r + s)).sum())
    return chi_square_tail(statistic, len(r) - 1)


def chi_square_tail(statistic: float, n_degrees: int) -> float:
    """Returns the probability that a chi-square variable is above a value.

    The regularised upper gamma function Q(n/2, x/2) by Q(a + 1, x) = Q(a, x) + x^a e^-x / Γ(a + 1), from Q(1, x) = e^-x
    and Q(1/2, x) = erfc(√x) (Abramowitz and Stegun 6.5.17, 6.5.21). Importing scipy would take longer than all else.

    >>> round(chi_square_tail(3.841, 1), 3)
    0.05
    """
    x = statistic / 2.0
    if x <= 0.0:
        return 1.0
    a, tail = (1.0, math.exp(-x)) if n_degrees % 2 == 0 else (0.5, math.erfc(math.sqrt(x)))
    while a < n_degrees / 2.0:
        tail += math.exp(a * math.log(x) - x - math.lgamma(a + 1.0))
        a += 1.0
    return min(1.0, tail)


def population_stability(reference: np.ndarray, counts: np.ndarray) -> float:
    """Returns the population stability index, Σ (q - p) ln(q / p); half a count is added to every bin.

    The index that scoring uses (Siddiqi, Credit Risk Scorecards, 2006, chapter 8): below 0.1 little has changed, above
    0.25 much. It is shown, and does not decide: with few samples it is large by chance.

    Args:
        reference: (n_bins,) int counts.
        counts: (n_bins,) int counts of the other sample.
    """
    p = (reference + 0.5) / (reference.sum() + 0.5 * len(reference))
    q = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    return float(((q - p) * np.log(q / p)).sum())
