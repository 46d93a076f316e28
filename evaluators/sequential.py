"""Scoring in growing pieces, with a test that ends it when an artifact is clearly too bad.

Samples are scored in a fixed random order, so the first k of them are a draw without replacement from the split. Tested
is whether the score on the *whole* split can still keep a bound on the accuracy drop. The test bets against that: it
starts with a wealth of 1, and each sample multiplies it by a factor whose mean is at most 1 as long as the bound is
kept. Whoever stops at a wealth of 1 / α is wrong with a probability of at most α (Ville's inequality), however often it
is looked at, for scores of any distribution with a known largest value, and however few the samples that differ.

Source: I. Waudby-Smith and A. Ramdas, Estimating means of bounded random variables by betting, J. R. Stat. Soc. B 86
(2024): the capital process with bets against a mean, its mixture over fixed bets, and sampling without replacement.
"""

import numpy as np

from .metrics import CheckedMetric, accuracy, agreement, kl, nll, top5

#: probability with which an artifact that keeps the bound on the whole split is stopped all the same
FALSE_STOP_RATE = 0.001

#: splits of up to so many samples are scored at once
_MAX_UNDIVIDED = 256
#: no look is taken before so many samples
_MIN_LOOK = 60
#: the first part, which every trial is scored on: this share of the split, and at least so many samples
_FIRST_SHARE, _MIN_FIRST = 1 / 8, 120

#: shares of the wealth that are staked, a purse each; small ones find small excesses, large ones large excesses early
_STAKES = (0.02, 0.1, 0.35, 0.8)

#: of what is left for the samples to come, below which nothing is left
_NO_ROOM = 1e-9

#: metric → the largest score that a sample can have
_CEILINGS = ((accuracy, 1.0), (top5, 1.0), (agreement, 1.0), (kl, 0.0), (nll, 0.0))


def list_looks(n_samples: int, *, batch_size: int) -> tuple[int, ...]:
    """Returns how many samples are scored by each look: n, n/2, n/4 …, ascending, in whole batches but for the last.

    >>> list_looks(1000, batch_size=1)
    (63, 125, 250, 500, 1000)
    """
    if n_samples <= _MAX_UNDIVIDED:
        return (n_samples,)
    n_halvings = int(np.log2(n_samples / _MIN_LOOK))
    wanted = n_samples / 2.0 ** np.arange(n_halvings + 1)
    in_batches = np.ceil(wanted / batch_size).astype(int) * batch_size
    return tuple(sorted({min(int(look), n_samples) for look in in_batches}))


def find_first(looks: tuple[int, ...]) -> int:
    """Returns the look up to which every trial is scored: the smallest that tells enough to learn from."""
    n_samples = looks[-1]
    return next((look for look in looks if look >= max(_MIN_FIRST, _FIRST_SHARE * n_samples)), n_samples)


def ceiling_of(metric: CheckedMetric) -> float | None:
    """Returns the largest score that a sample can have; None for a metric that is not known."""
    return next((ceiling for function, ceiling in _CEILINGS if metric.function is function), None)


def log_wealth(original: np.ndarray, scores: np.ndarray, *, max_drop: float, ceiling: float) -> float:
    """Returns the logarithm of the wealth after betting that the drop on the whole split is above ``max_drop``.

    Two differences have the drop as their mean over the split, and both are bet on: the paired one, original minus
    artifact, and the mean of the original minus the artifact. The first varies less where the artifact changes few
    samples; the second is better bounded where the original is nearly perfect.

    Args:
        original: (n,) float64 scores of the original on the whole split, in the order of scoring.
        scores: (k,) float64 scores of the artifact on the first k of them.
        max_drop: the bound on mean(original) minus mean(artifact) over the split.
        ceiling: the largest score that any sample can have.

    Returns:
        Infinity when the samples that are left cannot make up for the drop, whatever their scores.

    >>> log_wealth(np.ones(300), np.zeros(10), max_drop=0.5, ceiling=1.0) > 0
    True
    """
    differences = (
        (original[: len(scores)] - scores, float(np.min(original)) - ceiling),
        (np.mean(original) - scores, float(np.mean(original)) - ceiling),
    )
    purses = [_log_purses(values, floor, len(original), max_drop) for values, floor in differences]
    return float(np.logaddexp.reduce(np.concatenate(purses)) - np.log(len(purses) * len(_STAKES)))


def _log_purses(differences: np.ndarray, floor: float, n_samples: int, max_drop: float) -> np.ndarray:
    """Returns (n_stakes,) log wealth of betting on differences that are nowhere below ``floor``.

    Before each sample, the mean of those that are left may be at most what the bound leaves for them. In units of its
    distance from the floor, a difference is u ≥ 0 of mean at most 1, and its factor 1 + stake (u - 1) ≥ 0.
    """
    before = np.concatenate([[0.0], np.cumsum(differences)])[:-1]
    n_left = n_samples - np.arange(len(differences))
    room = (n_samples * max_drop - before) / n_left - floor
    if (room < -_NO_ROOM).any():
        return np.full(len(_STAKES), np.inf)
    # without room, every sample that is left has to lie on the floor: the next look finds out, nothing is staked here
    units = np.divide(differences - floor, room, out=np.ones_like(room), where=room > _NO_ROOM)
    stakes = np.array(_STAKES)[:, None]
    purses: np.ndarray = np.log1p(stakes * (units - 1.0)).sum(axis=1)
    return purses
