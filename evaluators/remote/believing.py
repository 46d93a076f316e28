"""What of an agent's answers is believed.

An agent is another machine, perhaps somebody else's. What it says must be possible: times that add up to no more than
the time that passed, outputs as the model declares them, and of the original what ONNX Runtime computes here. An agent
that states false times within what is possible cannot be told from a faster or slower machine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from ...compressors.artifact import Artifact
from ...core.errors import MeasurementError, SpecError
from ...hw_profiles.target import Target
from ..device import Device, DeviceElsewhere, Executable
from ..latency import TimingSettings
from ..onnxruntime_device import OnnxRuntimeDevice

#: no call of a runtime takes less, in seconds
_LEAST_S = 1e-7
#: no executable takes so many times as long as the reference, or so small a part of it
_MOST_RATIO = 1e4
#: rounds without which nothing is known; `TimingSettings` allows no fewer
_FEWEST_ROUNDS = 5
#: outputs of the original in float32 may differ from those of ONNX Runtime by this much of the largest
_OUTPUT_TOLERANCE = 0.02


def check_times(times_s: np.ndarray, n_executables: int, settings: TimingSettings, *, elapsed_s: float) -> np.ndarray:
    """Returns an agent's times where they are possible.

    Args:
        times_s: (rounds, executables) float64 seconds, as the agent states them.
        n_executables: how many were asked for.
        settings: as asked for.
        elapsed_s: what passed here between the order and its answer.

    Raises:
        MeasurementError: they are not possible.
    """
    if times_s.dtype != np.float64 or times_s.ndim != 2 or times_s.shape[1] != n_executables:
        raise MeasurementError(
            f"times must be (rounds, {n_executables}) float64, got {times_s.dtype} {list(times_s.shape)}"
        )
    n_rounds = len(times_s)
    if not _FEWEST_ROUNDS <= n_rounds <= settings.max_runs:
        raise MeasurementError(f"there must be {_FEWEST_ROUNDS} to {settings.max_runs} rounds, got {n_rounds}")
    if not (np.isfinite(times_s).all() and (times_s >= _LEAST_S).all()):
        raise MeasurementError(f"every time must be finite and at least {_LEAST_S:g} s, got {float(np.min(times_s))!r}")
    if (total_s := float(times_s.sum())) > elapsed_s:
        raise MeasurementError(f"{total_s:.3g} s of runs are stated, and only {elapsed_s:.3g} s have passed")
    needed_s = settings.min_time_s if n_rounds >= settings.min_runs else settings.max_time_s
    if n_rounds < settings.max_runs and elapsed_s < needed_s:
        raise MeasurementError(
            f"{n_rounds} rounds end no sooner than after {needed_s:g} s, and {elapsed_s:.3g} s passed"
        )
    medians_s = np.median(times_s, axis=0)
    ratios = medians_s / medians_s[0]
    if ratios.max() > _MOST_RATIO or ratios.min() < 1 / _MOST_RATIO:
        raise MeasurementError(f"a model must take 1/{_MOST_RATIO:g} to {_MOST_RATIO:g} of the original's time, "
                               f"got {ratios.min():.3g} to {ratios.max():.3g}")  # fmt: skip
    return times_s


@dataclass(frozen=True)
class DeclaredOutput:
    """One output as a model declares it."""

    name: str
    dtype: np.dtype[Any]
    #: sides, None where open; None where the model tells no shape
    shape: tuple[int | None, ...] | None


def read_outputs(model: bytes) -> tuple[DeclaredOutput, ...]:
    """Returns what a model gives.

    Raises:
        MeasurementError: the bytes are no ONNX model.
    """
    try:
        return tuple(_read_output(value) for value in onnx.load_model_from_string(model).graph.output)
    except (DecodeError, KeyError) as error:
        raise MeasurementError(f"the bytes are no ONNX model: {error!r}") from error


def check_outputs(declared: Sequence[DeclaredOutput], outputs: Sequence[np.ndarray]) -> None:
    """Compares numbers, types and shapes with what the model declares.

    Raises:
        MeasurementError: they differ.
    """
    if len(outputs) != len(declared):
        raise MeasurementError(f"the model has {len(declared)} outputs, got {len(outputs)}")
    for one, array in zip(declared, outputs, strict=True):
        fits = one.shape is None or (
            len(one.shape) == array.ndim
            and all(side in (None, got) for side, got in zip(one.shape, array.shape, strict=True))
        )
        if array.dtype != one.dtype or not fits:
            raise MeasurementError(
                f"output {one.name} must be {one.dtype} {one.shape and list(one.shape)}, "
                f"got {array.dtype} {list(array.shape)}"
            )


def check_original(device: Device, executable: Executable, original: Artifact, batch: Mapping[str, np.ndarray]) -> None:
    """Compares the original's outputs with those of ONNX Runtime here, where the device is elsewhere.

    Args:
        device: where it was loaded.
        executable: the original in float32, loaded there.
        original: the same as an artifact.
        batch: input name → (batch, …) array.

    Raises:
        SpecError: the outputs differ by more than runtimes do.
        MeasurementError: the model fails, there or here.
    """
    if not isinstance(device, DeviceElsewhere):
        return
    local = OnnxRuntimeDevice(Target("onnxruntime", "cpu", 1, device.target.batch_size)).load(original)
    for position, (got, wanted) in enumerate(zip(executable.run(batch), local.run(batch), strict=True)):
        if got.shape != wanted.shape or _difference(got, wanted) > _OUTPUT_TOLERANCE:
            raise SpecError(
                f"the agent at {device.address.device} does not compute the model: output {position} of the original "
                f"must come within {_OUTPUT_TOLERANCE:.0%} of what ONNX Runtime gives here; is its runtime sound?"
            )


def _difference(got: np.ndarray, wanted: np.ndarray) -> float:
    """Returns the largest difference over the largest value; of whole numbers the share that differs."""
    if not got.size:
        return 0.0
    if not np.issubdtype(wanted.dtype, np.floating):
        return float(np.mean(got != wanted))
    if not np.isfinite(got).all():
        return float("inf")
    scale = max(float(np.abs(wanted).max()), 1e-6)
    return float(np.abs(got.astype(np.float64) - wanted).max()) / scale


def _read_output(value: onnx.ValueInfoProto) -> DeclaredOutput:
    kind = value.type.tensor_type
    shape = None
    if kind.HasField("shape"):
        shape = tuple(side.dim_value if side.HasField("dim_value") else None for side in kind.shape.dim)
    return DeclaredOutput(value.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type), shape)
