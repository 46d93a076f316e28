"""The identity of a CUDA GPU, for every runtime that uses one."""

from typing import Any

from ..core.errors import SpecError
from ..hw_profiles.profile import HardwareProfile
from ..hw_profiles.target import Target


def identify_gpu(target: Target, runtime_version: str) -> HardwareProfile:
    """Reads the identity of the first CUDA GPU: from PyTorch where it sees one, else from the driver (NVML).

    Its cores are its multiprocessors; its feature is the compute capability, which decides what kernels there are.

    Raises:
        SpecError: neither is installed, or there is no such GPU.
    """
    name, capability, n_cores, memory_bytes = _ask_torch() or _ask_driver()
    return HardwareProfile(
        device=name,
        features=(f"sm_{capability[0]}{capability[1]}",),
        n_cores=n_cores,
        memory_bytes=memory_bytes,
        runtime=target.runtime,
        runtime_version=runtime_version,
        target=target,
    )


#: name, compute capability, multiprocessors (0 where unknown), bytes of memory
_Answer = tuple[str, tuple[int, int], int, int]


def _ask_torch() -> _Answer | None:
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return (
        properties.name,
        (properties.major, properties.minor),
        properties.multi_processor_count,
        properties.total_memory,
    )


def _ask_driver() -> _Answer:
    try:
        import pynvml
    except ImportError as error:
        raise SpecError("nothing here can name the GPU; pip install 'trimtab[nvidia]'") from error
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise SpecError(f"there is no NVIDIA GPU, or no driver for it: {error}") from error
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(0)
        name = nvml.nvmlDeviceGetName(handle)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        return str(name), (major, minor), 0, int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError as error:
        raise SpecError(f"the driver does not tell what the GPU is: {error}") from error
    finally:
        nvml.nvmlShutdown()
