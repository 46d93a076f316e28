"""Which policy of a set suits the load: a state machine without threads or clocks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: share of a new service time in the estimate of its policy
_WEIGHT = 0.05
#: a service time counts as this many means at most: a machine that stood still says nothing about a policy
_MAX_SURPRISE = 3.0
#: seconds over which the arrival rate is averaged
_RATE_WINDOW_S = 1.0
#: a call is turned away where it would take more than this share of the bound: what is admitted is to keep it
_ADMITTED_SHARE = 0.95
#: the dwell time is doubled this often at most
_MAX_DOUBLINGS = 4


@dataclass(frozen=True, slots=True)
class LoadBounds:
    """What is to be kept, and how eagerly policies are changed."""

    #: 99 of 100 calls are to be answered within this time, waiting included
    p99_s: float
    #: calls that are served at once
    n_slots: int = 1
    #: goes to a faster policy where a call would take more than this share of the bound
    down_share: float = 0.8
    #: goes back to a slower policy only where its predicted p99 is below this share of the bound …
    up_share: float = 0.6
    #: … and has been for this long
    dwell_s: float = 2.0


class LevelChooser:
    """Chooses among policies, 0 being the slowest and most faithful, by what waits and what is predicted.

    Down at once: a call that arrives to a queue which the present policy would not work off within the bound makes all
    that wait, itself too, be served by the first policy that would; where none would, it is turned away. Up slowly: one
    level, when nothing waits, once the predicted p99 of the slower policy has been well within the bound for the dwell
    time. The dwell time doubles each time that a step up is taken back within it, and recovers with quiet.

    The prediction is the service time's own tail and, in front of it, an exponential waiting time, P(W > t) =
    ρ exp(-2 n (1-ρ) t / (s (1+c²))): Kingman's heavy-traffic law with Poisson arrivals, service times of mean s and
    squared variation c² and n servers at a load of ρ (Kingman, The single server queue in heavy traffic, 1961; Allen,
    Probability, Statistics and Queueing Theory, 1990, equation 5.73, for n > 1).

    >>> chooser = LevelChooser([0.020, 0.005], LoadBounds(p99_s=0.1))
    >>> [chooser.admit(0.0, n_ahead) for n_ahead in (0, 3, 10, 30)], chooser.level
    ([True, True, True, False], 1)
    """

    def __init__(self, expected_s: Sequence[float], bounds: LoadBounds) -> None:
        self.bounds = bounds
        #: the policy that calls are served by now
        self.level = 0
        #: how often it was changed
        self.n_changes = 0
        self._expected_s = tuple(expected_s)
        self._ratios: list[float | None] = [None] * len(self._expected_s)
        self._newest_ratio = 1.0
        self._variation = 0.01  # squared coefficient, until it is seen
        self._rate_per_s = 0.0
        self._arrived_s: float | None = None
        self._calm_since_s: float | None = None
        self._stepped_up_s = -math.inf
        self._n_doublings = 0

    @property
    def dwell_s(self) -> float:
        """How long a slower policy must look good before it is tried."""
        return float(self.bounds.dwell_s * 2**self._n_doublings)

    def admit(self, now_s: float, n_ahead: int) -> bool:
        """Takes in an arrival, with as many calls before it, waiting or running; returns whether it can be served.

        Args:
            now_s: seconds of any clock that never goes back.
            n_ahead: calls that are in the queue or being served.
        """
        self.note_arrival(now_s)
        last = len(self._expected_s) - 1
        while self.level < last and self._answer_s(self.level, n_ahead) > self.bounds.down_share * self.bounds.p99_s:
            self._step_down(now_s)
        if n_ahead and self._answer_s(self.level, n_ahead) > _ADMITTED_SHARE * self.bounds.p99_s:
            return False  # an idle model serves what comes, however slow it is: otherwise it would never learn more
        if n_ahead == 0:
            self._consider_step_up(now_s)
        return True

    def note_arrival(self, now_s: float) -> None:
        """Takes in a call that found nothing before it, and for which nothing was to be decided.

        The rate is an exponential average: an arrival adds 1 over the window, and fades.
        """
        gap_s = 0.0 if self._arrived_s is None else now_s - self._arrived_s
        self._rate_per_s = self._rate_per_s * math.exp(-gap_s / _RATE_WINDOW_S) + 1.0 / _RATE_WINDOW_S
        self._arrived_s = now_s

    def note_service(self, level: int, service_s: float) -> None:
        """Takes in how long a call took in the runtime, at the level that served it."""
        mean_s = self.mean_s(level)
        surprise = min(service_s / mean_s, _MAX_SURPRISE) - 1.0
        self._newest_ratio = mean_s / self._expected_s[level] * (1.0 + _WEIGHT * surprise)
        self._ratios[level] = self._newest_ratio
        self._variation += _WEIGHT * (surprise**2 - self._variation)

    def mean_s(self, level: int) -> float:
        """Returns the expected service time; of a policy that did not run yet, by how the newest keeps its promise."""
        ratio = self._ratios[level]
        return self._expected_s[level] * (self._newest_ratio if ratio is None else ratio)

    def predict_p99_s(self, level: int) -> float:
        """Returns the p99 that a policy would have under the present load; infinite where it could not keep up."""
        mean_s, n_slots = self.mean_s(level), self.bounds.n_slots
        load = self._rate_per_s * mean_s / n_slots
        if load >= 1.0:
            return math.inf
        waiting_s = mean_s * (1.0 + self._variation) / (2.0 * n_slots * (1.0 - load))
        return self._tail_s(level) + waiting_s * max(0.0, math.log(100.0 * load) if load > 0.0 else 0.0)

    def _tail_s(self, level: int) -> float:
        return self.mean_s(level) * (1.0 + 3.0 * math.sqrt(self._variation))

    def _answer_s(self, level: int, n_ahead: int) -> float:
        """Returns when a call is answered if all before it take the mean: what runs is taken to have just begun."""
        return n_ahead * self.mean_s(level) / self.bounds.n_slots + self._tail_s(level)

    def _step_down(self, now_s: float) -> None:
        if now_s - self._stepped_up_s < self.dwell_s:
            self._n_doublings = min(self._n_doublings + 1, _MAX_DOUBLINGS)
            self._stepped_up_s = -math.inf
        self.level += 1
        self.n_changes += 1
        self._calm_since_s = None

    def _consider_step_up(self, now_s: float) -> None:
        if self.level == 0 or self.predict_p99_s(self.level - 1) > self.bounds.up_share * self.bounds.p99_s:
            self._calm_since_s = None
            return
        self._calm_since_s = now_s if self._calm_since_s is None else self._calm_since_s
        if now_s - self._calm_since_s < self.dwell_s:
            return
        if now_s - self._stepped_up_s > 4 * self.dwell_s:
            self._n_doublings = max(0, self._n_doublings - 1)
        self.level -= 1
        self.n_changes += 1
        self._stepped_up_s, self._calm_since_s = now_s, None
