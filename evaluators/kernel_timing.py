"""Times of kernels and graphs as on a machine that stays as fast as it was at first."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..compressors.artifact import Artifact
from ..core.errors import MeasurementError
from ..hw_profiles.kernels.kernel import KernelTiming
from ..hw_profiles.kernels.kernel_table import KernelTable
from ..hw_profiles.latency import Latency
from ..hw_profiles.prices.price_list import build_pricer
from .device import Executable, KernelDevice, LoweringDevice


@dataclass
class SteadyTimer:
    """Scales times by how fast the machine is now: the original, timed in turns, tells.

    A shared machine is a tenth slower in one minute than in the next; what is compared across minutes must not be.
    """

    device: KernelDevice
    original: Executable
    #: input name → (batch, …) array
    batch: Mapping[str, np.ndarray]
    #: what the original takes at the speed that all times are brought to; None: what it takes when it is first timed
    usual_s: float | None = None

    def steady(self, latency: Latency) -> Latency:
        """Returns a latency that was timed in turns with the original as it would have been at first."""
        now_s = latency.reference_s or latency.median_s
        self.usual_s = self.usual_s or now_s
        return latency.scaled(self.usual_s / now_s)

    def time_kernels(self, artifact: Artifact, *, runs: int) -> tuple[KernelTiming, ...]:
        """Times an artifact's kernels in turns with the original; see `KernelDevice.time_kernels`.

        Raises:
            MeasurementError: the runtime refuses the model, or fails to run it.
        """
        between = _TimedRun(self.original, self.batch)
        timings = self.device.time_kernels(artifact, self.batch, runs=runs, between=between)
        self.usual_s = self.usual_s or between.median_s
        return tuple(timing.scaled(self.usual_s / between.median_s) for timing in timings)


def find_usual_s(device: LoweringDevice, original: Artifact, table: KernelTable, *, model: str) -> float | None:
    """Returns what the original takes on the machine as it was when a table was made; None where the table cannot tell.

    New times are brought to that speed, or a table would mix the speeds of all days on which it grew.

    Args:
        device: whose table it is.
        original: the untouched model.
        table: what is known.
        model: names the model in tables.
    """
    try:
        price = build_pricer(table, model=model, predicts=False).price(device.lower(original), model=model)
    except MeasurementError:
        return None
    return price.seconds if price.unseen_share < _MOST_UNSEEN else None


#: share of the original's time that may be guessed where its price sets the speed
_MOST_UNSEEN = 0.1


class _TimedRun:
    """Runs the original and remembers how long it took; it leaves the caches as a measurement in turns does."""

    def __init__(self, executable: Executable, batch: Mapping[str, np.ndarray]) -> None:
        self._executable = executable
        self._batch = batch
        self._times_s: list[float] = []

    def __call__(self) -> None:
        start_ns = time.perf_counter_ns()
        self._executable.run(self._batch)
        self._times_s.append((time.perf_counter_ns() - start_ns) / 1e9)

    @property
    def median_s(self) -> float:
        return float(np.median(self._times_s))
