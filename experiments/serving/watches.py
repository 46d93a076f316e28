"""The three bands: latency, inputs, agreement. Each closes windows of what it is given, and says when it drifts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .chi_square import compare_counts, population_stability
from .drift import Drift, DriftDetector
from .input_statistics import InputStatistics, list_features, measure_row

#: a window is out of band where chance would put it there once in a thousand windows; `DriftDetector` allows for fifty
_ALPHA = 0.001


@dataclass(frozen=True, slots=True)
class LatencyBand:
    """How long a call may take, as `verify` decides it."""

    #: the promised median
    promised_s: float
    #: seconds of the yardstick when the promise was made
    yardstick_s: float
    #: how much slower than promised counts as kept, beyond what the whole machine is slower
    tolerance: float
    #: a machine that is slower than when the promise was made is forgiven up to this factor
    max_slowdown: float = 3.0

    def limit_s(self, yardstick_s: float) -> float:
        """Returns the longest median that keeps the promise on a machine whose yardstick takes that long now."""
        slowdown = min(max(1.0, yardstick_s / self.yardstick_s), self.max_slowdown)
        return self.promised_s * slowdown * (1.0 + self.tolerance)


class LatencyWatch:
    """Compares medians of windows with the promise, in the machine's own terms.

    A window of at least half a second and 20 calls is out of band where its median is above the limit for the machine
    as it was when the model was loaded, and still above it for the machine as it is just now: what slows everything
    down is no drift of the model.

    Args:
        policy: the policy's name.
        band: the promise.
        yardstick_s: seconds of the yardstick when the model was loaded.
        time_yardstick: measures it again; called only where a window is too slow.
    """

    window_s = 0.5
    min_calls = 20

    def __init__(self, policy: str, band: LatencyBand, yardstick_s: float, time_yardstick: Callable[[], float]) -> None:
        self.detector = DriftDetector()
        #: the limit of the machine as it was when the model was loaded
        self.limit_s = band.limit_s(yardstick_s)
        #: the policy's name
        self.policy = policy
        self._band, self._time_yardstick = band, time_yardstick
        self._latencies_ns: list[int] = []
        self._began_s: float | None = None

    def add(self, latencies_ns: Sequence[int], now_s: float) -> Drift | None:
        """Takes in latencies in nanoseconds that came up to now; returns a drift that is to be signalled."""
        if not latencies_ns:
            return None
        self._began_s = now_s if self._began_s is None else self._began_s
        self._latencies_ns += latencies_ns
        if len(self._latencies_ns) < self.min_calls or now_s - self._began_s < self.window_s:
            return None
        median_s = float(np.median(self._latencies_ns)) / 1e9
        self._latencies_ns, self._began_s = [], None
        limit_s = self.limit_s
        if median_s > limit_s:
            limit_s = max(limit_s, self._band.limit_s(self._time_yardstick()))
        if not self.detector.add(is_out=median_s > limit_s):
            return None
        figures = {"median_s": median_s, "limit_s": limit_s, "promised_s": self._band.promised_s}
        message = (
            f"{self.policy} takes {median_s * 1e3:.4g} ms; promised were {self._band.promised_s * 1e3:.4g}, "
            f"which is {limit_s * 1e3:.4g} at most on this machine now; check it with: trimtab verify"
        )
        return Drift("latency", self.policy, figures, message, now_s)


class InputWatch:
    """Compares windows of 200 samples with the recorded ones, feature by feature.

    A window is out of band where any feature's two-sample chi-square says so at a level of 0.001 over all features
    (Bonferroni). With fewer recorded samples than a window has, the record's own error is in the test, and it is the
    same in every window: with a probability of 0.001 the record itself is so unlucky that it will be signalled.
    """

    window = 200

    def __init__(self, statistics: InputStatistics) -> None:
        self.detector = DriftDetector()
        #: (input, feature) → population stability index of the last full window
        self.stability: dict[tuple[str, str], float] = {}
        self._features = tuple(list_features(statistics))
        self._samples: list[dict[str, dict[str, float]]] = []

    @property
    def names(self) -> frozenset[str]:
        """The inputs that are watched."""
        return frozenset(name for name, *_ in self._features)

    def add(self, samples: Sequence[Mapping[str, tuple[np.ndarray, float]]], now_s: float) -> Drift | None:
        """Takes in samples, input → (elements, which of them is drawn); returns a drift that is to be signalled."""
        found: Drift | None = None
        for sample in samples:
            self._samples.append({name: measure_row(*taken) for name, taken in sample.items()})
            if len(self._samples) == self.window:
                found = self._close(now_s) or found
        return found

    def _close(self, now_s: float) -> Drift | None:
        samples, self._samples = self._samples, []
        chances: dict[tuple[str, str], float] = {}
        for name, feature, bins in self._features:
            values = np.array([sample[name][feature] for sample in samples if name in sample])
            counts, reference = bins.count(values), np.array(bins.counts)
            chances[name, feature] = compare_counts(reference, counts) if len(values) else 1.0
            self.stability[name, feature] = population_stability(reference, counts)
        (name, feature), least = min(chances.items(), key=lambda pair: pair[1])
        if not self.detector.add(is_out=least * len(chances) < _ALPHA):
            return None
        index = self.stability[name, feature]
        message = (
            f"the inputs are not like those that the artifact was made with: most of all the {feature} of '{name}' "
            f"(population stability index {index:.2f}, chance {least:.1g}); see what is sent, or search with new data"
        )
        return Drift("inputs", "", {"stability": index, "chance": least}, message, now_s)


class AgreementWatch:
    """Compares windows of 64 shadowed samples with how often the artifact agreed with the original when it was made.

    A window is out of band where so few agreements have a binomial probability below 0.001 if the rate is the promised
    one less two standard errors and the tolerance. Shares between 0 and 1 vary less than that (Hoeffding, Journal of
    the American Statistical Association 58, 1963, section 3).

    Args:
        policy: the policy's name.
        floor: the least rate of agreement in the band.
    """

    window = 64

    def __init__(self, policy: str, floor: float) -> None:
        self.detector = DriftDetector()
        #: the least rate of agreement in the band
        self.floor = min(max(floor, 0.0), 1.0)
        #: the rate in the last full window; NaN before it
        self.rate = math.nan
        #: the policy's name
        self.policy = policy
        self._scores: list[float] = []

    def add(self, scores: Sequence[float], now_s: float) -> Drift | None:
        """Takes in scores of samples, 0 to 1; returns a drift that is to be signalled."""
        found: Drift | None = None
        for score in scores:
            self._scores.append(score)
            if len(self._scores) == self.window:
                found = self._close(now_s) or found
        return found

    def _close(self, now_s: float) -> Drift | None:
        total, self._scores = sum(self._scores), []
        self.rate = total / self.window
        # Hoeffding's bound compares shares with a binomial away from its mean only; above the floor nothing is asked
        is_out = self.rate < self.floor and binomial_tail(math.ceil(total), self.window, self.floor) < _ALPHA
        if not self.detector.add(is_out=is_out):
            return None
        message = (
            f"{self.policy} agrees with the original in {self.rate:.1%} of the samples, and its band begins at "
            f"{self.floor:.1%}; look at the inputs, or search again with such data"
        )
        return Drift("agreement", self.policy, {"rate": self.rate, "floor": self.floor}, message, now_s)


def binomial_tail(n_successes: int, n_trials: int, rate: float) -> float:
    """Returns the probability of at most so many successes.

    >>> binomial_tail(1, 2, 0.5)
    0.75
    """
    terms = (
        math.comb(n_trials, k) * rate**k * (1.0 - rate) ** (n_trials - k) for k in range(min(n_successes, n_trials) + 1)
    )
    return min(1.0, math.fsum(terms))
