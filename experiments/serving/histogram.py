"""A histogram of latencies whose buckets are fixed: cheap to fill, exact to a few per cent wherever it is asked."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

#: buckets in each doubling of the latency: a bucket's middle is within 2.2 % of everything in it
_PER_OCTAVE = 16
#: 2^10 ns is a microsecond, 2^37 ns two minutes; what lies outside counts in the first or last bucket
_FIRST_OCTAVE, _LAST_OCTAVE = 10, 37
_OFFSET = _FIRST_OCTAVE * _PER_OCTAVE
_N_BUCKETS = (_LAST_OCTAVE - _FIRST_OCTAVE) * _PER_OCTAVE
_log2 = math.log2


class LatencyHistogram:
    """Counts latencies in log-spaced buckets; not safe for threads by itself, the owner locks.

    >>> histogram = LatencyHistogram()
    >>> for milliseconds in (1, 2, 3, 4, 100):
    ...     histogram.add(milliseconds * 1_000_000)
    >>> round(histogram.quantile_s(0.5), 4), histogram.count
    (0.003, 5)
    """

    def __init__(self) -> None:
        self._counts = [0] * _N_BUCKETS
        #: how many latencies were added
        self.count = 0
        #: their sum, in nanoseconds
        self.sum_ns = 0

    def add(self, latency_ns: int) -> None:
        """Counts one latency, in nanoseconds."""
        index = int(_log2(latency_ns or 1) * _PER_OCTAVE) - _OFFSET
        self._counts[0 if index < 0 else index if index < _N_BUCKETS else _N_BUCKETS - 1] += 1
        self.count += 1
        self.sum_ns += latency_ns

    def quantile_s(self, share: float) -> float:
        """Returns the latency below which a share of all lies, within 2.2 %; NaN where there is none.

        Args:
            share: 0 to 1, such as 0.99.
        """
        if not self.count:
            return math.nan
        rank = max(1, math.ceil(share * self.count))
        index = bisect_left(list(accumulate(self._counts)), rank)
        return float(2 ** ((index + _OFFSET + 0.5) / _PER_OCTAVE)) / 1e9

    def copied(self) -> "LatencyHistogram":
        """Returns a copy, which others may read at leisure."""
        copy = LatencyHistogram()
        copy._counts, copy.count, copy.sum_ns = list(self._counts), self.count, self.sum_ns
        return copy

    def cumulate(self) -> Sequence[tuple[float, int]]:
        """Returns (upper bound in seconds, latencies up to it), one a doubling; the last bound is infinite."""
        found, seen = [], 0
        for octave in range(_FIRST_OCTAVE, _LAST_OCTAVE):
            first = (octave - _FIRST_OCTAVE) * _PER_OCTAVE
            seen += sum(self._counts[first : first + _PER_OCTAVE])
            found.append((2 ** (octave + 1) / 1e9, seen))
        return [*found[:-1], (math.inf, self.count)]
