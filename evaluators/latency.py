"""Latency on a real device: warm-up, timed runs in turns with the original, median and spread, or a refusal."""

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from ..core.errors import MeasurementError, SpecError
from ..hw_profiles.latency import Latency
from .device import Executable
from .timing_lock import hold_timing_lock

#: Reads a clock in nanoseconds.
Clock = Callable[[], int]

#: Rounds below which quartiles say nothing.
_FEWEST_RUNS = 5

#: Rounds above which nobody times, however unquiet the machine is.
MOST_RUNS = 100_000

#: Rounds of warm-up that are compared with as many before them.
_WARM_UP_WINDOW = 3


@dataclass(frozen=True, slots=True)
class TimingSettings:
    """How long to time, and what is too unquiet to believe.

    The limits are loose on purpose. Measured on a shared 2-core Xeon, a model against itself, 0.3 s each: with one
    thread the interquartile range was 4 to 9 % of the median and the ratio 0.97 to 1.01; with as many threads as
    cores it reached 52 %, and the ratio still lay in 0.92 to 1.06. With enough runs a wide spread does little harm;
    what the limits refuse are times whose median is a matter of luck.
    """

    #: rounds of warm-up at most; it ends sooner once the runs no longer get faster
    warm_up_runs: int = 20
    #: timed runs of each executable
    min_runs: int = 30
    max_runs: int = 1000
    #: go on until all timed runs together took this long
    min_time_s: float = 0.3
    #: stop after this long even below ``min_runs`` (never below 5 runs); `Latency.runs` tells how many there were
    max_time_s: float = 120.0
    #: interquartile range over median, of every executable
    max_spread: float = 1.0
    #: width of the median's 95 % confidence interval over the median, of every executable
    max_uncertainty: float = 0.25
    #: how far the median of the ratio candidate / reference may move from the first half of the runs to the second
    max_drift: float = 0.2
    #: how often to time before giving up, each time twice as long as the time before
    attempts: int = 5
    #: how long to wait for another process on this machine that is timing
    lock_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if not _FEWEST_RUNS <= self.min_runs <= self.max_runs:
            raise SpecError(
                f"{_FEWEST_RUNS} <= min_runs <= max_runs must hold, "
                f"got min_runs={self.min_runs}, max_runs={self.max_runs}"
            )
        if self.attempts < 1 or not 0 <= self.min_time_s <= self.max_time_s:
            raise SpecError(
                "attempts >= 1 and 0 <= min_time_s <= max_time_s must hold, got "
                f"attempts={self.attempts}, min_time_s={self.min_time_s}, max_time_s={self.max_time_s}"
            )


@runtime_checkable
class SelfTiming(Protocol):
    """An executable that states its latency instead of being timed, as simulated devices do.

    When all executables of a measurement are of this kind, nothing is run and the spread is 0.
    """

    #: seconds for one batch
    simulated_latency_s: float


@runtime_checkable
class PricedExecutable(SelfTiming, Protocol):
    """An executable that also says where the latency that it states comes from."""

    @property
    def stated_latency(self) -> Latency:
        """The latency with its source; runs and reference are filled in by who asks."""
        ...


@runtime_checkable
class DeviceTiming(Protocol):
    """An executable on an accelerator, which is timed there: from the first kernel of a run to its last.

    What copying the inputs and outputs takes is not in it; they are on the device where the model is used, too.
    """

    def time_once(self, inputs: Mapping[str, np.ndarray]) -> float:
        """Runs one batch and waits for it; returns the seconds by the accelerator's own clock.

        The same arrays, passed again, are not copied again: they must not be changed in between.
        """
        ...


@runtime_checkable
class TimedElsewhere(Protocol):
    """An executable on another machine, which times it there, so that no network is in the times."""

    def time_with(
        self, others: Sequence[Executable], inputs: Mapping[str, np.ndarray], settings: TimingSettings
    ) -> np.ndarray:
        """Times this executable in turns with others, once; see `time_together`.

        Args:
            others: executables of the same device, or a `Yardstick`.
            inputs: input name → (batch, …) array.
            settings: how long.

        Returns:
            (rounds, 1 + others) float64 seconds; this executable's own stand first.

        Raises:
            MeasurementError: it failed there, or what came back cannot be believed.
            TransientError: the machine cannot be reached.
        """
        ...


def measure_latency(
    candidate: Executable,
    reference: Executable,
    inputs: Mapping[str, np.ndarray],
    settings: TimingSettings,
    *,
    clock: Clock = time.perf_counter_ns,
) -> Latency:
    """Times a candidate in turns with the reference; see `measure_together`."""
    return measure_together([reference, candidate], inputs, settings, clock=clock)[1]


def measure_together(
    executables: Sequence[Executable],
    inputs: Mapping[str, np.ndarray],
    settings: TimingSettings,
    *,
    clock: Clock = time.perf_counter_ns,
) -> list[Latency]:
    """Times executables in turns; every round runs each once and the next round starts one further on.

    Whatever slows the machine down slows all of them, so ratios hold where absolute times do not. Times that cannot be
    believed are taken again, twice as long each time: a neighbour who comes and goes is averaged out that way.

    Args:
        executables: the first is the reference of all, itself included.
        inputs: input name → (batch, …) array, one batch for all.
        settings: how long, and what to refuse.
        clock: nanoseconds.

    Returns:
        One latency per executable, in their order.

    Raises:
        MeasurementError: the times stayed unstable, a runtime failed, or another process kept the timing lock.
    """
    if all(isinstance(executable, SelfTiming) for executable in executables):
        return _state_latencies(executables, settings)
    complaint = ""
    for attempt in range(settings.attempts):
        times_s = time_together(executables, inputs, _prolong(settings, 2**attempt), clock=clock)
        complaint = _find_instability(times_s, settings)
        if not complaint:
            return _summarise(times_s)
    raise MeasurementError(
        f"latency must repeat, but in {settings.attempts} attempts {complaint}; close what else runs on the machine"
    )


def time_together(
    executables: Sequence[Executable],
    inputs: Mapping[str, np.ndarray],
    settings: TimingSettings,
    *,
    clock: Clock = time.perf_counter_ns,
) -> np.ndarray:
    """Warms up and times executables in turns, once, whatever comes of it; see `measure_together`.

    Returns:
        (rounds, executables) float64 seconds.

    Raises:
        MeasurementError: a runtime failed, or another process kept the timing lock.
    """
    first = executables[0]
    if isinstance(first, TimedElsewhere):
        return first.time_with(executables[1:], inputs, settings)
    with hold_timing_lock(settings.lock_timeout_s), _without_garbage_collection():
        _warm_up(executables, inputs, settings, clock)
        return _time_rounds(executables, inputs, settings, clock)


def pin_cores(n_cores: int) -> tuple[int, ...]:
    """Pins the calling process to the last ``n_cores`` of the cores that it may use.

    To be called before a runtime is loaded: threads that exist already keep their cores.

    Returns:
        The cores; empty where the operating system has no such call.

    Raises:
        SpecError: the number is below 1.
    """
    if n_cores < 1:
        raise SpecError(f"n_cores >= 1 must hold, got {n_cores}")
    if not hasattr(os, "sched_setaffinity"):
        return ()
    cores = tuple(sorted(os.sched_getaffinity(0))[-n_cores:])
    os.sched_setaffinity(0, cores)
    return cores


def _prolong(settings: TimingSettings, factor: int) -> TimingSettings:
    return replace(
        settings,
        min_time_s=min(settings.max_time_s, settings.min_time_s * factor),
        max_runs=max(settings.max_runs, min(MOST_RUNS, settings.max_runs * factor)),
    )


def _state_latencies(executables: Sequence[Executable], settings: TimingSettings) -> list[Latency]:
    stated = [_state_latency(executable) for executable in executables if isinstance(executable, SelfTiming)]
    return [replace(one, runs=settings.min_runs, reference_s=stated[0].median_s) for one in stated]


def _state_latency(executable: SelfTiming) -> Latency:
    if isinstance(executable, PricedExecutable):
        return executable.stated_latency
    return Latency(executable.simulated_latency_s, 0.0, 1, source="model")


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _warm_up(
    executables: Sequence[Executable], inputs: Mapping[str, np.ndarray], settings: TimingSettings, clock: Clock
) -> None:
    """Runs all in turns until a few rounds are within 5 % as slow as the few before them, or the count is reached."""
    rounds_ns: list[int] = []
    for _ in range(settings.warm_up_runs):
        start_ns = clock()
        for executable in executables:
            _time_once(executable, inputs, clock)
        rounds_ns.append(clock() - start_ns)
        if sum(rounds_ns) > settings.max_time_s * 1e9:
            return
        if len(rounds_ns) >= 2 * _WARM_UP_WINDOW:
            before, now = rounds_ns[-2 * _WARM_UP_WINDOW : -_WARM_UP_WINDOW], rounds_ns[-_WARM_UP_WINDOW:]
            if np.median(now) >= 0.95 * np.median(before):
                return


def _time_rounds(
    executables: Sequence[Executable], inputs: Mapping[str, np.ndarray], settings: TimingSettings, clock: Clock
) -> np.ndarray:
    """Returns (rounds, executables) float64 seconds."""
    order = list(enumerate(executables))
    rows: list[list[int]] = []
    started_ns = clock()
    while not _is_enough(len(rows), (clock() - started_ns) / 1e9, settings):
        row = [0] * len(order)
        first = len(rows) % len(order)
        for position, executable in order[first:] + order[:first]:
            row[position] = _time_once(executable, inputs, clock)
        rows.append(row)
    return np.array(rows, dtype=np.float64) / 1e9


def _time_once(executable: Executable, inputs: Mapping[str, np.ndarray], clock: Clock) -> int:
    """Returns the nanoseconds of one run."""
    if isinstance(executable, DeviceTiming):
        return round(executable.time_once(inputs) * 1e9)
    start_ns = clock()
    executable.run(inputs)
    return clock() - start_ns


def _is_enough(n_rounds: int, elapsed_s: float, settings: TimingSettings) -> bool:
    if n_rounds < _FEWEST_RUNS:
        return False
    if n_rounds >= settings.max_runs or elapsed_s >= settings.max_time_s:
        return True
    return n_rounds >= settings.min_runs and elapsed_s >= settings.min_time_s


def _find_instability(times_s: np.ndarray, settings: TimingSettings) -> str:
    """Returns what is wrong with (rounds, executables) times; empty when they can be believed.

    Only order statistics are used, so single interruptions, however long, refuse nothing.
    """
    low, median, high = np.percentile(times_s, [25, 50, 75], axis=0)
    if not median.all():
        return "a run took less than the clock can tell"
    spread = float(np.max((high - low) / median))
    if spread > settings.max_spread:
        return f"the spread (interquartile range over median) was {spread:.0%}, more than {settings.max_spread:.0%}"
    uncertainty = float(np.max(median_interval(times_s) / median))
    if uncertainty > settings.max_uncertainty:
        return f"the median was known to {uncertainty:.0%} only, more than {settings.max_uncertainty:.0%}"
    ratios = times_s / times_s[:, :1].clip(min=1e-9)
    half = len(ratios) // 2
    first, second = np.median(ratios[:half], axis=0), np.median(ratios[half:], axis=0)
    drift = float(np.max(np.abs(second / first - 1.0)))
    if drift > settings.max_drift:
        return f"the ratio to the original moved by {drift:.0%} while timing, more than {settings.max_drift:.0%}"
    return ""


def median_interval(times_s: np.ndarray) -> np.ndarray:
    """Returns the width of the 95 % confidence interval of the medians of (runs, executables) times.

    By order statistics, n/2 ± 1.96·sqrt(n)/2 (Conover, Practical Nonparametric Statistics, 1999, section 3.2), so that
    times which jump between two levels give an interval from one to the other.
    """
    n_runs = len(times_s)
    reach = 1.96 * np.sqrt(n_runs) / 2
    ranked = np.sort(times_s, axis=0)
    low, high = (int(np.ceil(n_runs / 2 + side)) - 1 for side in (-reach, reach))
    width: np.ndarray = ranked[min(high, n_runs - 1)] - ranked[max(low, 0)]
    return width


def _summarise(times_s: np.ndarray) -> list[Latency]:
    low, median, high = np.percentile(times_s, [25, 50, 75], axis=0)
    return [
        Latency(float(median[i]), float(high[i] - low[i]), len(times_s), reference_s=float(median[0]))
        for i in range(times_s.shape[1])
    ]
