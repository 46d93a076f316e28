"""Pairs of two sequences that keep their order, for which most speaks; and where another way is as good."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

#: per element of the first sequence and of the second: what speaks for the pair, above 0; None: it is not possible
Gains = Sequence[Sequence[float | None]]

#: ways whose sums differ by no more than this are taken for equally good
_TIE = 0.1


@dataclass(frozen=True)
class Alignment:
    """What became of the first sequence, by positions; elements that are in neither part have no partner."""

    #: position in the first → position in the second
    pairs: Mapping[int, int] = field(default_factory=dict)
    #: position in the first → positions in the second that are as good, that another element claims as well, or with
    #: which another pair that is as good cannot stand in order
    ambiguous: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


def align(gains: Gains, *, may_skip: bool) -> Alignment:
    """Pairs elements in their order so that the sum of gains is largest (S. Needleman and C. Wunsch, 1970, gaps free).

    Args:
        gains: n × m.
        may_skip: whether elements may stay without a partner; if not, every one has one, or none is paired.

    >>> align([[3.0, 1.0], [1.0, 3.0]], may_skip=False).pairs
    {0: 0, 1: 1}
    >>> align([[1.0, 1.0]], may_skip=True).ambiguous
    {0: (0, 1)}
    """
    n, m = len(gains), len(gains[0]) if gains else 0
    if not n or not m or (not may_skip and n != m):
        return Alignment()
    table = np.array([[-np.inf if gain is None else gain for gain in row] for row in gains])
    skip = 0.0 if may_skip else -np.inf
    before = _best_sums(table, skip)
    behind = _best_sums(table[::-1, ::-1], skip)[::-1, ::-1]
    through = before[:-1, :-1] + table + behind[1:, 1:]
    best = before[-1, -1]
    if not np.isfinite(best):
        return Alignment()
    good = through >= best - _TIE
    partners = {i: tuple(map(int, np.flatnonzero(good[i]))) for i in range(n) if good[i].any()}
    sure = {i: js[0] for i, js in partners.items() if len(js) == 1 and not _is_contested(good, i, js[0])}
    return Alignment(sure, {i: js for i, js in partners.items() if i not in sure})


def _is_contested(good: np.ndarray, i: int, j: int) -> bool:
    """Whether another good pair has the same second element, or crosses this one."""
    return bool(good[:, j].sum() > 1 or good[:i, j + 1 :].any() or good[i + 1 :, :j].any())


def _best_sums(table: np.ndarray, skip: float) -> np.ndarray:
    """Returns (n + 1, m + 1) float64: the largest sum over the first elements of both."""
    n, m = table.shape
    sums = np.full((n + 1, m + 1), -np.inf)
    sums[0, :], sums[:, 0] = skip, skip
    sums[0, 0] = 0.0
    for i in range(n):
        for j in range(m):
            sums[i + 1, j + 1] = max(sums[i, j] + table[i, j], sums[i, j + 1] + skip, sums[i + 1, j] + skip)
    return sums
