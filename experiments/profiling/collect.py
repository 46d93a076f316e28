"""Policies measured on the device: whole, in turns with the original, and kernel by kernel."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ...compressors.artifact import Artifact
from ...compressors.pipeline import Pipeline
from ...core.errors import SpecError
from ...evaluators.device import Executable, KernelDevice
from ...evaluators.latency import TimingSettings, measure_latency
from ...hw_profiles.kernel import Kernel, KernelTiming, LoweredGraph
from ...hw_profiles.latency import Latency
from ...spaces.policy import GraphTreatment, Policy
from ...spaces.space import Space

#: long enough for the median of a model of 5 ms to be known to about 1 %
DEFAULT_TIMING = TimingSettings(min_runs=30, min_time_s=0.5, max_time_s=8.0)
_KERNEL_RUNS = 20


@dataclass(frozen=True)
class PolicyRun:
    """One policy measured."""

    policy: Policy
    #: whole, timed in turns with the original, at the speed that the machine had at first
    latency: Latency
    #: kernel → how often it runs
    counts: Mapping[Kernel, int]
    #: per executed kernel, in order, at the same speed; may be empty
    timings: tuple[KernelTiming, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {
            "policy": self.policy.to_json(),
            "latency": self.latency.to_json(),
            "counts": [[kernel.to_json(), n] for kernel, n in self.counts.items()],
            "timings": [[t.kernel.to_json(), t.median_s, t.iqr_s, t.runs] for t in self.timings],
        }

    @classmethod
    def from_json(cls, value: Any) -> "PolicyRun":
        """Reads what `to_json` wrote."""
        return cls(
            Policy.from_json(value["policy"]),
            Latency.from_json(value["latency"]),
            {Kernel.from_json(kernel): n for kernel, n in value["counts"]},
            tuple(KernelTiming(Kernel.from_json(k), m, i, n) for k, m, i, n in value["timings"]),
        )


@dataclass
class Collector:
    """Measures policies of one model on one device.

    All times are those of a machine as fast as it was at the first measurement: the original, timed in turns, tells
    how fast it is now.
    """

    device: KernelDevice
    pipeline: Pipeline
    space: Space
    #: input name → (batch, …) array
    batch: Mapping[str, np.ndarray]
    timing: TimingSettings = DEFAULT_TIMING
    #: what the original took when it was first timed; None before that
    _usual_s: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.device, KernelDevice):
            raise SpecError(
                f"runtime '{self.device.target.runtime}' does not tell its kernels; profiles can be made for "
                f"onnxruntime and openvino"
            )

    @cached_property
    def original(self) -> Executable:
        """The untouched model, loaded."""
        return self.device.load(self.pipeline.build({}, GraphTreatment()))

    def build(self, policy: Policy) -> Artifact:
        """Builds the policy's artifact; see `Pipeline.build`."""
        return self.pipeline.build(self.space.layer_treatments(policy), policy.graph)

    def lower(self, policy: Policy) -> LoweredGraph:
        """Returns the kernels that the runtime makes of a policy; nothing is run."""
        return self.device.lower(self.build(policy))

    def measure(self, policy: Policy) -> PolicyRun:
        """Measures a policy as a whole; nothing is learnt of its kernels' times.

        Raises:
            PolicyError: the policy cannot be built.
            MeasurementError: the times stayed unstable, or the runtime failed.
        """
        artifact = self.build(policy)
        latency = measure_latency(self.device.load(artifact), self.original, self.batch, self.timing)
        now_s = latency.reference_s or latency.median_s
        self._usual_s = self._usual_s or now_s
        return PolicyRun(policy, scale_latency(latency, self._usual_s / now_s), self.device.lower(artifact).counts)

    def measure_kernels(self, policy: Policy) -> PolicyRun:
        """Measures a policy as a whole, and then its kernels in turns with the original; see `measure`."""
        run = self.measure(policy)
        between = _TimedRun(self.original, self.batch)
        timings = self.device.time_kernels(self.build(policy), self.batch, runs=_KERNEL_RUNS, between=between)
        factor = (self._usual_s or between.median_s) / between.median_s
        return replace(run, timings=tuple(scale_timing(timing, factor) for timing in timings))


def scale_latency(latency: Latency, factor: float) -> Latency:
    """Returns the latency on a machine that takes ``factor`` times as long."""
    return replace(
        latency,
        median_s=latency.median_s * factor,
        iqr_s=latency.iqr_s * factor,
        reference_s=None if latency.reference_s is None else latency.reference_s * factor,
    )


def scale_timing(timing: KernelTiming, factor: float) -> KernelTiming:
    """Returns the timing on a machine that takes ``factor`` times as long."""
    return replace(timing, median_s=timing.median_s * factor, iqr_s=timing.iqr_s * factor)


class _TimedRun:
    """Runs the original and remembers how long it took: it warms no caches for the model under test."""

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
