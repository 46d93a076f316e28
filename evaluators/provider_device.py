"""ONNX Runtime on every device: the CPU, or one of its other execution providers."""

from dataclasses import replace
from typing import Any

from ..compressors.artifact import Artifact
from ..core.errors import MeasurementError, SpecError
from ..hw_profiles.profile import HardwareProfile, identify_cpu
from ..hw_profiles.target import Target
from .execution_providers import RECORD_ENTRY, find_provider, open_session, require_use
from .gpu import identify_gpu
from .onnxruntime_device import OnnxRuntimeDevice, OnnxRuntimeExecutable


def onnxruntime_device(target: Target) -> "OnnxRuntimeDevice | ProviderDevice":
    """Makes the device of the runtime ``onnxruntime``.

    Raises:
        SpecError: ONNX Runtime is not installed, or its build does not have the target's device.
    """
    return OnnxRuntimeDevice(target) if target.device == "cpu" else ProviderDevice(target)


class ProviderDevice:
    """Runs artifacts in an execution provider; what it does not take runs on the CPU, but never the whole model."""

    def __init__(self, target: Target) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise SpecError("onnxruntime is not installed; pip install onnxruntime") from error
        self._onnxruntime: Any = onnxruntime
        self._provider = find_provider(onnxruntime, target)
        self.target = target
        self.capabilities = self._provider.capabilities

    def identify(self) -> HardwareProfile:
        """Returns the GPU of an NVIDIA provider; else this machine's processor, with the provider's name before it."""
        version = self._onnxruntime.__version__
        if self._provider.is_nvidia:
            return identify_gpu(self.target, version)
        profile = identify_cpu(self.target, version)
        return replace(profile, device=f"{self._provider.name} at {profile.device}")

    def load(self, artifact: Artifact) -> OnnxRuntimeExecutable:
        """Loads and optimises an artifact.

        Raises:
            MeasurementError: the provider refuses the model or takes no part of it, or cannot run in its precision.
        """
        if artifact.precision not in self.capabilities.precisions:
            known = ", ".join(self.capabilities.precisions)
            raise MeasurementError(
                f"onnxruntime on {self.target.device} runs in: {known}; got an artifact for {artifact.precision}"
            )
        try:
            session = open_session(self._onnxruntime, artifact.model, self._set_up(), (self._provider, self.target))
        except Exception as error:
            raise MeasurementError(f"onnxruntime refuses the model: {error}") from error
        require_use(session, self._provider)
        return OnnxRuntimeExecutable(session)

    def _set_up(self) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.target.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # nothing but what is raised
        options.add_session_config_entry(RECORD_ENTRY, "1")
        return options
