"""The contract that every device which tells its kernels must keep; see `KernelDevice`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..compressors.artifact import Artifact
from ..core.errors import MeasurementError
from ..hw_profiles.kernels.kernel import Kernel
from .device import KernelDevice


@dataclass(frozen=True)
class KernelCase:
    """A device, a model that it must lower, and one batch of the target's size for it."""

    device: KernelDevice
    artifact: Artifact
    inputs: Mapping[str, np.ndarray]


def lowering_names_what_is_executed(case: KernelCase) -> None:
    """What is lowered without a run is what the profiler sees in a run, kernel for kernel and in order."""
    lowered = list(case.device.lower(case.artifact).kernels)
    executed = [timing.kernel for timing in case.device.time_kernels(case.artifact, case.inputs, runs=4)]
    _require(lowered == executed, f"lowered {len(lowered)} kernels, executed {len(executed)}, or others")


def lowering_repeats_itself(case: KernelCase) -> None:
    """The same artifact gives the same kernels under the same ids."""
    first, again = case.device.lower(case.artifact), case.device.lower(case.artifact)
    _require(
        [k.id for k in first.kernels] == [k.id for k in again.kernels], "equal artifacts must lower to equal kernels"
    )


def values_flow(case: KernelCase) -> None:
    """Every value that a step reads was written before, or is an input; every output of the graph is there."""
    graph = case.device.lower(case.artifact)
    known = set(graph.inputs)
    for step in graph.steps:
        unknown = {name for name in step.reads if name} - known
        _require(not unknown, f"{step.name} reads {sorted(unknown)}, which nothing wrote before")
        _require(len(step.reads) == len(step.kernel.inputs), f"{step.name} must name every input")
        _require(len(step.writes) == len(step.kernel.outputs), f"{step.name} must name every output")
        known.update(step.writes)
    _require(known >= set(graph.outputs), f"nothing writes {sorted(set(graph.outputs) - known)}")


def shapes_are_known_and_carry_the_batch(case: KernelCase) -> None:
    """All sides are known once the batch is, and the graph's inputs are those of the batch that is run."""
    graph = case.device.lower(case.artifact)
    for kernel in graph.kernels:
        open_ones = [tensor for tensor in (*kernel.inputs, *kernel.outputs) if any(side < 0 for side in tensor.shape)]
        _require(not open_ones, f"{kernel.op} has an open side: {open_ones}")
    shapes = sorted(tensor.shape for tensor in graph.inputs.values())
    _require(shapes == sorted(array.shape for array in case.inputs.values()), f"inputs must be those run, got {shapes}")


def kernels_survive_json(case: KernelCase) -> None:
    """What goes into a table comes out of it."""
    for kernel in case.device.lower(case.artifact).kernels:
        _require(Kernel.from_json(kernel.to_json()) == kernel, f"{kernel.to_json()} must survive JSON")


def times_are_positive_and_counted(case: KernelCase) -> None:
    """Times are finite, greater than 0, and counted; what comes between the runs is called before each."""
    calls: list[int] = []
    timings = case.device.time_kernels(case.artifact, case.inputs, runs=6, between=lambda: calls.append(1))
    _require(len(calls) >= 6, f"between must be called before each of 6 runs, was called {len(calls)} times")
    for timing in timings:
        _require(0.0 < timing.median_s < 10.0, f"{timing.kernel.op} takes {timing.median_s} s")
        _require(timing.iqr_s >= 0.0 and timing.runs >= 6, f"{timing.kernel.op} has {timing.runs} runs")


def what_cannot_be_lowered_is_refused(case: KernelCase) -> None:
    """Bytes that are no model are refused with MeasurementError."""
    for refuse in (
        lambda: case.device.lower(Artifact(b"garbage")),
        lambda: case.device.time_kernels(Artifact(b"garbage"), case.inputs, runs=2),
    ):
        try:
            refuse()
        except MeasurementError:
            continue
        raise AssertionError("bytes that are no model must be refused with MeasurementError")


#: The contract: each takes a `KernelCase` and raises AssertionError.
KERNEL_CHECKS: tuple[Callable[[KernelCase], None], ...] = (
    lowering_names_what_is_executed,
    lowering_repeats_itself,
    values_flow,
    shapes_are_known_and_carry_the_batch,
    kernels_survive_json,
    times_are_positive_and_counted,
    what_cannot_be_lowered_is_refused,
)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
