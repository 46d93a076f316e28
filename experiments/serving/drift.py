"""A drift: what left its band; and the sequential test that decides it, with a stated rate of false alarms."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

#: a window counts as out of band by chance, such as a moment's disturbance, in at most this share of all windows …
_CHANCE = 0.05
#: … and once something has drifted, in about this share
_DRIFTED = 0.9
#: windows between two false alarms on average, at least
WINDOWS_PER_FALSE_ALARM = 1e6
#: windows in the band, in a row, after which a drift counts as over
_N_RECOVERED = 5


@dataclass(frozen=True, slots=True)
class Drift:
    """One signal: something has left its band.

    >>> Drift("latency", "artifact", {"median_s": 0.004, "limit_s": 0.002}, "too slow", 0.0).signal
    'latency'
    """

    #: ``latency``, ``inputs`` or ``agreement``
    signal: str
    #: the policy that it was seen on: the name of its folder; empty for the inputs, which all policies share
    policy: str
    #: the numbers behind it, with their units in their names
    figures: Mapping[str, float]
    #: the same in words
    message: str
    #: Unix time
    at_s: float


class DriftDetector:
    """Decides from windows, each in or out of its band, whether something has drifted.

    Page's cumulative sum of log-likelihood ratios (Page, Continuous inspection schemes, Biometrika 41, 1954) of windows
    that are out of band with probability 0.9 against 0.05. Where a window, whatever came before it, is out of band with
    at most 0.05, there are at least 10^6 windows from start to false alarm on average, however the windows depend on
    each other (Lorden, Annals of Mathematical Statistics 42, 1971, theorem 2; Shin, Ramdas and Rinaldo, E-detectors,
    2022, theorem 2.4). Five windows out of band in a row are a signal.

    >>> detector = DriftDetector()
    >>> [detector.add(is_out=True) for _ in range(6)]
    [False, False, False, False, True, False]
    """

    def __init__(self, *, windows_per_false_alarm: float = WINDOWS_PER_FALSE_ALARM) -> None:
        self._limit = math.log(windows_per_false_alarm)
        self._sum = 0.0
        self._n_within = 0
        #: a drift was signalled and is not over
        self.is_drifting = False

    def add(self, *, is_out: bool) -> bool:
        """Takes in a window; returns whether to signal now. A drift is signalled once, until it is over."""
        self._n_within = 0 if is_out else self._n_within + 1
        if self.is_drifting:
            if self._n_within >= _N_RECOVERED:
                self.is_drifting, self._sum = False, 0.0
            return False
        step = math.log(_DRIFTED / _CHANCE) if is_out else math.log((1.0 - _DRIFTED) / (1.0 - _CHANCE))
        self._sum = max(0.0, self._sum + step)
        self.is_drifting = self._sum >= self._limit
        return self.is_drifting
