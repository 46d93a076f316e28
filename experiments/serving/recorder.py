"""What each call leaves behind: its times in a queue, and now and then a sample; all else is done beside the calls.

A call that ends after twenty milliseconds in a model finds nothing of Python in the processor's caches, and everything
that it touches costs ten times as much as in a loop: histograms, locks and random numbers are the watcher's.
"""

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...core.errors import SpecError
from ...core.seeds import derive_rng
from .histogram import LatencyHistogram
from .input_statistics import is_watchable, take_elements
from .shadow import Shadow

#: samples that wait for the watcher, at most, and gaps between them that it draws; latencies that it is given at a time
_MAX_WAITING = 512
#: share of the newest call rate in its average
_WEIGHT = 0.3

#: input name → (elements of one sample, which of them is drawn)
Sample = Mapping[str, tuple[np.ndarray, float]]
#: of a call that ended: its policy's level; when it came, when the runtime began with it, and when that had done, in
#: nanoseconds. Of one that begins, when it did; of one that failed, minus that
Event = tuple[int, int, int, int] | int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How much of the calls is looked at.

    Raises:
        SpecError: a rate is negative, or a fraction is not from 0 to 1.
    """

    #: inputs looked at, a second, at most …
    inputs_per_s: float = 100.0
    #: … and as a share of the calls, at most
    input_fraction: float = 0.25
    #: share of the calls that the original runs too
    shadow_fraction: float = 0.01

    def __post_init__(self) -> None:
        fractions = (self.input_fraction, self.shadow_fraction)
        if not self.inputs_per_s >= 0 or not all(0 <= fraction <= 1 for fraction in fractions):
            raise SpecError(
                f"inputs_per_s >= 0 and fractions from 0 to 1 must hold, got {self.inputs_per_s}, {fractions}"
            )


class Recorder:
    """Counts calls of any number of threads.

    A call appends an `Event` to ``events`` when the runtime begins with it and another when it has done, takes a number
    from ``numbers``, and is shown to `look` where that has reached ``due``.

    Args:
        n_levels: how many policies there are.
        sampling: how much is looked at.
        watched: the inputs whose samples are kept.
        shadow: takes a fraction of the calls; None where there is no original.
    """

    def __init__(
        self, n_levels: int, sampling: Sampling, watched: frozenset[str], shadow: Shadow | None = None
    ) -> None:
        self.events: deque[Event] = deque()
        self.numbers = itertools.count()
        self.due: float = math.inf
        self._lock = threading.Lock()
        self._watched, self._shadow = tuple(sorted(watched)), shadow
        self._services = [LatencyHistogram() for _ in range(n_levels)]
        self._answers = LatencyHistogram()
        self._latencies_ns: list[list[int]] = [[] for _ in range(n_levels)]
        self._running: dict[int, bool] = {}
        self._n_failed = 0
        self._samples: deque[Sample] = deque(maxlen=_MAX_WAITING)
        self._inputs = _Rhythm("inputs", sampling.input_fraction if watched else 0.0, sampling.inputs_per_s)
        self._shadows = _Rhythm("shadows", sampling.shadow_fraction if shadow else 0.0, math.inf)
        self._planned = (time.perf_counter(), 0)
        self.plan()

    def look(self, number: int, level: int, inputs: Mapping[str, np.ndarray], outputs: list[np.ndarray]) -> None:
        """Takes a sample of a call, gives it to the original, or both, as is due."""
        if number >= self._inputs.due:
            self._samples.append(self._take(inputs, self._inputs.advance(number)))
        if number >= self._shadows.due:
            self._shadows.advance(number)
            if self._shadow is not None:
                self._shadow.offer(level, inputs, outputs)
        self.due = min(self._inputs.due, self._shadows.due)

    @property
    def n_failed(self) -> int:
        """Calls in which the runtime failed."""
        with self._lock:
            self._count()
            return self._n_failed

    def plan(self) -> None:
        """Draws which calls are to be looked at next, by how many came since the last time; for the watcher."""
        with self._lock:
            self._count()
            began_s, n_before = self._planned
            now_s = time.perf_counter()
            self._planned = (now_s, self._answers.count)
        rate_per_s = (self._planned[1] - n_before) / max(now_s - began_s, 1e-3)
        self._inputs.plan(n_before, rate_per_s)
        self._shadows.plan(n_before, rate_per_s)
        self.due = min(self._inputs.due, self._shadows.due)

    def take_latencies(self) -> list[list[int]]:
        """Returns the nanoseconds of calls that ran alone, by level, since the last time."""
        with self._lock:
            self._count()
            taken, self._latencies_ns = self._latencies_ns, [[] for _ in self._latencies_ns]
        return taken

    def take_samples(self) -> list[Sample]:
        """Returns the samples since the last time."""
        return [self._samples.popleft() for _ in range(len(self._samples))]

    def read_services(self) -> list[LatencyHistogram]:
        """Returns, by level, how long calls took in the runtime."""
        with self._lock:
            self._count()
            return [histogram.copied() for histogram in self._services]

    def read_answers(self) -> LatencyHistogram:
        """Returns how long calls took from their arrival, waiting included."""
        with self._lock:
            self._count()
            return self._answers.copied()

    def _count(self) -> None:
        """Takes in the events since the last time.

        A call ran alone where no other began before it ended: side by side on the same cores, calls take longer than
        was promised of one.
        """
        for _ in range(len(self.events)):
            event = self.events.popleft()
            if isinstance(event, tuple):
                self._end(*event)
            elif event >= 0:
                for other in self._running:
                    self._running[other] = False
                self._running[event] = not self._running
            else:
                self._running.pop(-event, None)
                self._n_failed += 1

    def _end(self, level: int, arrived_ns: int, started_ns: int, ended_ns: int) -> None:
        self._services[level].add(ended_ns - started_ns)
        self._answers.add(ended_ns - arrived_ns)
        was_alone = self._running.pop(started_ns, False)
        if was_alone and len(self._latencies_ns[level]) < _MAX_WAITING:
            self._latencies_ns[level].append(ended_ns - started_ns)

    def _take(self, inputs: Mapping[str, np.ndarray], draws: tuple[float, float, float]) -> Sample:
        row, offset, position = draws
        known = {name: inputs[name] for name in self._watched if name in inputs}
        return {
            name: (take_elements(array, int(row * len(array)), offset), position)
            for name, array in known.items()
            if isinstance(array, np.ndarray) and is_watchable(array)
        }


class _Rhythm:
    """Which calls are looked at: a share of them, at most so many a second, with random gaps.

    A regular rhythm could be that of the callers. The watcher draws the gaps beforehand; where they are used up,
    nothing is due until it comes again.
    """

    def __init__(self, purpose: str, fraction: float, most_per_s: float) -> None:
        #: the number of the next call
        self.due: float = math.inf
        self._fraction, self._most_per_s = fraction, most_per_s
        self._rng = derive_rng("what is sampled in service", purpose)
        self._rate_per_s = 0.0
        self._gaps: list[int] = []
        self._draws: list[tuple[float, ...]] = []

    def plan(self, n_calls: int, rate_per_s: float) -> None:
        """Draws gaps for a while.

        Args:
            n_calls: calls so far.
            rate_per_s: calls a second since the last time.
        """
        if self._fraction == 0.0 or self._most_per_s == 0.0:
            return
        self._rate_per_s += _WEIGHT * (rate_per_s - self._rate_per_s)
        share = min(self._fraction, self._most_per_s / max(self._rate_per_s, 1e-9))
        self._draws += map(tuple, self._rng.random((_MAX_WAITING - len(self._draws), 3)).tolist())
        self._gaps = self._rng.geometric(share, _MAX_WAITING).tolist()
        if math.isinf(self.due):
            self.due = n_calls + self._gaps.pop() - 1

    def advance(self, number: int) -> tuple[float, float, float]:
        """Notes that a call was looked at; returns three random numbers from 0 to 1."""
        try:
            row, offset, position = self._draws.pop()
            self.due = number + self._gaps.pop()
        except IndexError:  # the watcher comes soon
            self.due = math.inf
            return (0.5, 0.5, 0.5)
        return row, offset, position
