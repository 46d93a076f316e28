"""Policies measured on the device: whole, in turns with the original, and kernel by kernel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ...compressors.artifact import Artifact
from ...compressors.pipeline import Pipeline
from ...evaluators.device import Executable, KernelDevice
from ...evaluators.kernel_timing import SteadyTimer
from ...evaluators.latency import TimingSettings, measure_latency
from ...hw_profiles.kernels.kernel import Kernel, KernelTiming, LoweredGraph
from ...hw_profiles.latency import Latency
from ...spaces.policy import GraphTreatment, Policy
from ...spaces.space import Space

#: how long one loaded copy of a policy is timed
DEFAULT_TIMING = TimingSettings(warm_up_runs=6, min_runs=12, min_time_s=0.3, max_time_s=8.0)
#: Copies that are loaded and timed one after the other: where a copy's buffers happen to lie moves its latency by up to
#: 5 % (ResNet-18 in OpenVINO, bfloat16), however long it is timed.
_N_COPIES = 2
_KERNEL_RUNS = 12


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
    """Measures policies of one model on one device, all as at one speed of the machine; see `SteadyTimer`."""

    device: KernelDevice
    pipeline: Pipeline
    space: Space
    #: input name → (batch, …) array
    batch: Mapping[str, np.ndarray]
    timing: TimingSettings = DEFAULT_TIMING
    #: see `SteadyTimer.usual_s`
    usual_s: float | None = None

    @cached_property
    def original(self) -> Executable:
        """The untouched model, loaded."""
        return self.device.load(self.build_original())

    @cached_property
    def _timer(self) -> SteadyTimer:
        return SteadyTimer(self.device, self.original, self.batch, self.usual_s)

    def build_original(self) -> Artifact:
        """Builds the untouched model."""
        return self.pipeline.build({}, GraphTreatment())

    def build(self, policy: Policy) -> Artifact:
        """Builds the policy's artifact; see `Pipeline.build`."""
        return self.pipeline.build(self.space.layer_treatments(policy), policy.graph, policy.recovery)

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
        copies = [
            self._timer.steady(measure_latency(self.device.load(artifact), self.original, self.batch, self.timing))
            for _ in range(_N_COPIES)
        ]
        return PolicyRun(policy, _pool(copies), self.device.lower(artifact).counts)

    def measure_kernels(self, policy: Policy) -> PolicyRun:
        """Measures a policy as a whole, and then its kernels in turns with the original; see `measure`."""
        run = self.measure(policy)
        return replace(run, timings=self._timer.time_kernels(self.build(policy), runs=_KERNEL_RUNS))


def _pool(copies: Sequence[Latency]) -> Latency:
    """Returns the mean of copies of one model, with a spread that holds what they differ by."""
    medians = [copy.median_s for copy in copies]
    return replace(
        copies[0],
        median_s=float(np.mean(medians)),
        iqr_s=float(np.hypot(np.mean([copy.iqr_s for copy in copies]), np.ptp(medians))),
        runs=sum(copy.runs for copy in copies),
    )
