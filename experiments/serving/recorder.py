"""What each call leaves behind: counts in histograms, and now and then a sample. The only code beside the runtime's."""

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...core.seeds import derive_rng
from .histogram import LatencyHistogram
from .input_statistics import is_watchable, take_elements
from .shadow import Shadow

#: latencies of calls that ran alone, kept until the watch looks at them
_MAX_LATENCIES = 512
#: samples of inputs, the same
_MAX_SAMPLES = 512

#: input name → (elements of one sample, which of them is drawn)
Sample = Mapping[str, tuple[np.ndarray, float]]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How much of the calls is looked at."""

    #: inputs looked at, a second, at most
    inputs_per_s: float = 100.0
    #: share of the calls that the original runs too
    shadow_fraction: float = 0.01


@dataclass(frozen=True, slots=True)
class Times:
    """When a call came, when the runtime began with it, and when it had done, in nanoseconds of one clock."""

    arrived_ns: int
    started_ns: int
    ended_ns: int


class Recorder:
    """Counts calls of any number of threads.

    Args:
        n_levels: how many policies there are.
        sampling: how much is looked at.
        watched: the inputs whose samples are kept.
        shadow: takes a fraction of the calls; None where there is no original.
    """

    def __init__(
        self, n_levels: int, sampling: Sampling, watched: frozenset[str], shadow: Shadow | None = None
    ) -> None:
        self._lock = threading.Lock()
        self._services = [LatencyHistogram() for _ in range(n_levels)]
        self._answers = LatencyHistogram()
        self._latencies_ns: list[list[int]] = [[] for _ in range(n_levels)]
        self._samples: deque[Sample] = deque(maxlen=_MAX_SAMPLES)
        self._watched, self._shadow = tuple(sorted(watched)), shadow
        self._rng = derive_rng("what is sampled in service")
        self._gap_ns = 1e9 / sampling.inputs_per_s if sampling.inputs_per_s > 0 else np.inf
        self._next_sample_ns: float = 0.0 if self._watched else np.inf
        self._fraction = sampling.shadow_fraction
        self._until_shadow = self._draw_until_shadow()
        self._n_running = 0
        self._n_begun = 0
        #: calls in which the runtime failed
        self.n_failed = 0

    def begin(self) -> int:
        """Notes that a call begins; returns what `end` must be given: 0 where another one runs."""
        with self._lock:
            self._n_running += 1
            self._n_begun += 1
            return self._n_begun if self._n_running == 1 else 0

    def fail(self) -> None:
        """Notes that a call failed."""
        with self._lock:
            self._n_running -= 1
            self.n_failed += 1

    def end(
        self, level: int, mark: int, times: Times, inputs: Mapping[str, np.ndarray], outputs: list[np.ndarray]
    ) -> None:
        """Notes that a call has ended.

        Args:
            level: the policy that served.
            mark: what `begin` returned.
            times: of the call.
            inputs: input name → (batch, …) array.
            outputs: what is returned.
        """
        service_ns = times.ended_ns - times.started_ns
        drawn: tuple[float, float, float] | None = None
        with self._lock:
            self._services[level].add(service_ns)
            self._answers.add(times.ended_ns - times.arrived_ns)
            # side by side on the same cores, calls take longer than was promised of one
            if mark == self._n_begun and len(self._latencies_ns[level]) < _MAX_LATENCIES:
                self._latencies_ns[level].append(service_ns)
            self._n_running -= 1
            if times.ended_ns >= self._next_sample_ns:
                # random gaps: a regular rhythm could be that of the callers
                self._next_sample_ns = times.ended_ns + self._gap_ns * 2.0 * self._rng.random()
                drawn = (self._rng.random(), self._rng.random(), self._rng.random())
            self._until_shadow -= 1
            is_shadowed = self._until_shadow == 0
            if is_shadowed:
                self._until_shadow = self._draw_until_shadow()
        if drawn is not None:
            self._samples.append(self._take(inputs, *drawn))
        if is_shadowed and self._shadow is not None:
            self._shadow.offer(level, inputs, outputs)

    def take_latencies(self) -> list[list[int]]:
        """Returns the nanoseconds of calls that ran alone, by level, since the last time."""
        with self._lock:
            taken, self._latencies_ns = self._latencies_ns, [[] for _ in self._latencies_ns]
        return taken

    def take_samples(self) -> list[Sample]:
        """Returns the samples since the last time."""
        return [self._samples.popleft() for _ in range(len(self._samples))]

    def read_services(self) -> list[LatencyHistogram]:
        """Returns, by level, how long calls took in the runtime."""
        with self._lock:
            return [histogram.copied() for histogram in self._services]

    def read_answers(self) -> LatencyHistogram:
        """Returns how long calls took from their arrival, waiting included."""
        with self._lock:
            return self._answers.copied()

    def _draw_until_shadow(self) -> int:
        """Returns a geometric number of calls; -1: never."""
        if self._shadow is None or self._fraction <= 0.0:
            return -1
        return int(self._rng.geometric(min(1.0, self._fraction)))

    def _take(self, inputs: Mapping[str, np.ndarray], row: float, offset: float, position: float) -> Sample:
        known = {name: inputs[name] for name in self._watched if name in inputs}
        return {
            name: (take_elements(array, int(row * len(array)), offset), position)
            for name, array in known.items()
            if isinstance(array, np.ndarray) and is_watchable(array)
        }
