"""Energy of one run: measured with a counter of the hardware, or priced from a table; it always says which."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from ...core.errors import MeasurementError


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules for one inference of one batch.

    >>> Energy(0.020, 0.001, 400, "rapl", idle_j=0.005).net_j
    0.015
    """

    #: median over windows of many runs, all that the counter covers (idle power too); or the price from a table
    joules: float
    #: interquartile range over the windows; of a price: the range that the table's source leaves open
    iqr_j: float
    #: how many runs were counted; 0 for a price
    runs: int
    #: ``rapl`` (the processor's package), ``nvml`` (the board), or ``table: `` and the name of the table
    source: str
    #: what the same hardware, left idle just before, uses in the time of one run; part of ``joules``
    idle_j: float | None = None
    #: why it is this source and not a better one
    note: str = ""

    @property
    def net_j(self) -> float:
        """Joules beyond what the idle hardware would have used; all of them where idle was not measured."""
        return self.joules - (self.idle_j or 0.0)

    @property
    def is_measured(self) -> bool:
        """Whether a counter of the hardware said so."""
        return not self.source.startswith("table")

    def to_json(self) -> dict[str, Any]:
        """Returns the fields that are known, as JSON values."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Energy":
        """Reads what `to_json` wrote."""
        return cls(**value)


class EnergyCounter(Protocol):
    """Something that counts joules; `check_counter` is its contract."""

    #: as in `Energy.source`
    source: str

    def read_j(self) -> float:
        """Returns the joules used since some fixed moment; it never falls.

        Raises:
            MeasurementError: the counter can no longer be read.
        """
        ...

    def close(self) -> None:
        """Gives back what the counter holds; may be called twice."""
        ...


@dataclass(frozen=True, slots=True)
class EnergySettings:
    """How long energy is counted: about ``idle_s + n_windows × window_s``."""

    #: counters move in steps of 1 ms (RAPL) to 100 ms (NVML): a window has to hold many of them
    window_s: float = 0.3
    n_windows: int = 5
    #: how long the idle hardware is watched first
    idle_s: float = 0.3


def measure_energy(
    counter: EnergyCounter, work: Callable[[], object], settings: EnergySettings = EnergySettings()
) -> Energy:
    """Counts joules while work is repeated; the median over windows of joules per run.

    The counter covers the whole package or board, so whatever else runs there is counted too.

    Args:
        counter: what counts.
        work: one run; it is warmed up here.
        settings: how long.

    Raises:
        MeasurementError: the counter fails, or stands still while there is work.
    """
    work()
    idle_w = _idle_power(counter, settings.idle_s)
    windows = [_count_window(counter, work, settings.window_s) for _ in range(settings.n_windows)]
    joules = [used_j / runs for used_j, _, runs in windows]
    if not max(joules) > 0:
        raise MeasurementError(f"the energy counter {counter.source} stands still while the device works")
    low, middle, high = np.percentile(joules, [25, 50, 75])
    n_runs = sum(runs for *_, runs in windows)
    run_s = sum(elapsed_s for _, elapsed_s, _ in windows) / n_runs
    return Energy(float(middle), float(high - low), n_runs, counter.source, idle_j=idle_w * run_s)


def _idle_power(counter: EnergyCounter, idle_s: float) -> float:
    start_j, start_s = counter.read_j(), time.perf_counter()
    time.sleep(idle_s)
    return (counter.read_j() - start_j) / max(time.perf_counter() - start_s, 1e-9)


def _count_window(counter: EnergyCounter, work: Callable[[], object], window_s: float) -> tuple[float, float, int]:
    """Returns (joules, seconds, runs); at least one run."""
    start_j, start_s, runs = counter.read_j(), time.perf_counter(), 0
    while runs == 0 or time.perf_counter() - start_s < window_s:
        work()
        runs += 1
    return counter.read_j() - start_j, time.perf_counter() - start_s, runs


def check_counter(counter: EnergyCounter, work: Callable[[], object]) -> None:
    """Checks what every `EnergyCounter` has to keep.

    Args:
        counter: the implementation.
        work: something that uses energy on what the counter covers.

    Raises:
        AssertionError: the counter breaks the contract; the message says how.
    """
    readings = [counter.read_j()]
    for _ in range(20):
        work()
        readings.append(counter.read_j())
    if readings != sorted(readings):
        raise AssertionError(f"a counter must never fall, got {readings}")
    if not readings[-1] > readings[0]:
        raise AssertionError("a counter must rise while there is work")
    if not counter.source or counter.source.startswith("table"):
        raise AssertionError(f"a counter must name itself, got {counter.source!r}")
    counter.close()
    counter.close()
