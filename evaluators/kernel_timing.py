"""Times of kernels and graphs as on a machine that stays as fast as it was at first."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..compressors.artifact import Artifact
from ..hw_profiles.kernels.kernel import KernelTiming
from ..hw_profiles.latency import Latency
from .device import Executable, KernelDevice


@dataclass
class SteadyTimer:
    """Scales times by how fast the machine is now: the original, timed in turns, tells.

    A shared machine is a tenth slower in one minute than in the next; what is compared across minutes must not be.
    """

    device: KernelDevice
    original: Executable
    #: input name → (batch, …) array
    batch: Mapping[str, np.ndarray]
    #: what the original took when it was first timed; None before that
    usual_s: float | None = None

    def steady(self, latency: Latency) -> Latency:
        """Returns a latency that was timed in turns with the original as it would have been at first."""
        now_s = latency.reference_s or latency.median_s
        self.usual_s = self.usual_s or now_s
        factor = self.usual_s / now_s
        return replace(
            latency,
            median_s=latency.median_s * factor,
            iqr_s=latency.iqr_s * factor,
            reference_s=None if latency.reference_s is None else latency.reference_s * factor,
        )

    def time_kernels(self, artifact: Artifact, *, runs: int) -> tuple[KernelTiming, ...]:
        """Times an artifact's kernels in turns with the original; see `KernelDevice.time_kernels`.

        Raises:
            MeasurementError: the runtime refuses the model, or fails to run it.
        """
        between = _TimedRun(self.original, self.batch)
        timings = self.device.time_kernels(artifact, self.batch, runs=runs, between=between)
        self.usual_s = self.usual_s or between.median_s
        factor = self.usual_s / between.median_s
        return tuple(replace(t, median_s=t.median_s * factor, iqr_s=t.iqr_s * factor) for t in timings)


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
