"""The protocol of a runtime on a device, and the registry of runtimes."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from ..compressors.artifact import Artifact
from ..core.errors import SpecError, TrimtabError
from ..core.registry import Registry
from ..hw_profiles.kernels.kernel import Between, KernelTiming, LoweredGraph, do_nothing
from ..hw_profiles.profile import HardwareProfile
from ..hw_profiles.target import Capabilities, Target


class Executable(Protocol):
    """An artifact that the runtime has loaded and optimised for the target."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Runs one batch: input name → (batch, …) array; returns the outputs in the model's order."""
        ...


@runtime_checkable
class BatchedExecutable(Executable, Protocol):
    """An executable that takes many batches at a time, because every call of it costs a way through a network."""

    def run_batches(self, batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[list[np.ndarray]]:
        """Yields what `run` returns for each batch, in their order."""
        ...


class Device(Protocol):
    """One runtime on one device with fixed settings."""

    target: Target
    capabilities: Capabilities

    def identify(self) -> HardwareProfile:
        """Returns what this device is."""
        ...

    def load(self, artifact: Artifact) -> Executable:
        """Loads an artifact.

        Raises:
            MeasurementError: the runtime refuses the model; the message carries the runtime's own words.
        """
        ...


@runtime_checkable
class LoweringDevice(Device, Protocol):
    """A device that tells which kernels it makes of a model."""

    def lower(self, artifact: Artifact) -> LoweredGraph:
        """Returns the kernels that `load` would make of an artifact; nothing is run.

        Raises:
            MeasurementError: the runtime refuses the model.
        """
        ...


@runtime_checkable
class KernelDevice(LoweringDevice, Protocol):
    """A device that tells how long each kernel takes, too."""

    def time_kernels(
        self, artifact: Artifact, inputs: Mapping[str, np.ndarray], *, runs: int = 20, between: Between = do_nothing
    ) -> list[KernelTiming]:
        """Runs an artifact under the runtime's profiler; returns one timing per executed kernel.

        Args:
            artifact: what to run.
            inputs: input name → (batch, …) array.
            runs: timed runs, after some for warm-up.
            between: called before each run; what else the machine does shows in the times, since it fills the caches.

        Raises:
            MeasurementError: the runtime refuses the model, or fails to run it.
        """
        ...


@runtime_checkable
class DeviceElsewhere(Device, Protocol):
    """A device of another machine: its ``target`` is what that machine itself calls it."""

    #: what `build_device` reaches it by
    address: Target

    def measure_peak_memory(self, artifact: Artifact, inputs: Mapping[str, np.ndarray]) -> int:
        """Measures over there what `evaluators.memory.measure_peak_memory` measures here; returns bytes.

        Raises:
            MeasurementError: it failed.
        """
        ...


def find_address(device: Device) -> Target:
    """Returns the target from which another process builds the same device."""
    return device.address if isinstance(device, DeviceElsewhere) else device.target


def describe_origin(device: Device) -> dict[str, Any]:
    """Returns the profile of a device as JSON values, with where it was reached if it is elsewhere."""
    profile = device.identify().to_json()
    return {**profile, "measured_through": device.address.device} if isinstance(device, DeviceElsewhere) else profile


#: runtime name → factory(target: Target) -> Device
DEVICES: Registry[Device] = Registry(
    "runtime",
    "trimtab.runtimes",
    {
        "lut": "trimtab.evaluators.lut_device:LutDevice",
        "onnxruntime": "trimtab.evaluators.provider_device:onnxruntime_device",
        "openvino": "trimtab.evaluators.openvino_device:OpenVinoDevice",
        "remote": "trimtab.evaluators.remote.device:RemoteDevice",
        "tensorrt": "trimtab.evaluators.tensorrt_device:TensorRtDevice",
        "torch": "trimtab.evaluators.torch_device:TorchDevice",
        "torch_compile": "trimtab.evaluators.torch_device:compiled_device",
    },
)


def build_recorded_device(target: Target) -> Device:
    """Makes the device that a policy or an artifact names; such a file may come from anywhere, so it cannot name code.

    Raises:
        SpecError: as `build_device`, and when the runtime is ``module:callable`` outside this package, or a network's
            address, which would be told the user's token.
    """
    if target.runtime == "remote":
        raise SpecError("the file names an agent's address, and no file may say whom to connect to; name the runtime "
                        "that the agent itself uses")  # fmt: skip
    if ":" in target.runtime and not target.runtime.startswith("trimtab."):
        raise SpecError(
            f"the file names the runtime '{target.runtime}', which is code to import; register it as an entry point in "
            f"the group trimtab.runtimes and search with its name"
        )
    return build_device(target)


def build_device(target: Target) -> Device:
    """Makes the device of a target.

    Raises:
        SpecError: the runtime is unknown, not installed, does not know the device, or is something else.
    """
    factory = DEVICES.get(target.runtime)
    try:
        device: object = factory(target)
    except TrimtabError:
        raise
    except Exception as error:  # anybody's code
        raise SpecError(f"runtime '{target.runtime}' cannot be set up: {error!r}") from error
    if not (hasattr(device, "capabilities") and hasattr(device, "load")):
        raise SpecError(f"runtime '{target.runtime}' must make a device, got {type(device).__name__}")
    return cast("Device", device)
