"""What this machine and this runtime are: the identity that results are tied to."""

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.files import short_digest
from .target import Target


@dataclass(frozen=True, slots=True)
class HardwareProfile:
    """The identity of a device under one runtime.

    Two profiles with the same `id` are expected to give comparable latencies.
    """

    #: processor or accelerator, as it names itself
    device: str
    #: instruction sets that decide which kernels run
    features: tuple[str, ...]
    #: cores that this process may use
    n_cores: int
    #: total memory in bytes
    memory_bytes: int
    runtime: str
    runtime_version: str
    target: Target

    @property
    def id(self) -> str:
        """A digest of all fields."""
        return short_digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {**asdict(self), "features": list(self.features)}


#: The x86 flags that change which kernels a runtime picks (see /proc/cpuinfo).
_DECISIVE_FLAGS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


def identify_cpu(target: Target, runtime_version: str) -> HardwareProfile:
    """Reads the identity of this machine's processor."""
    name, flags = _read_cpuinfo()
    return HardwareProfile(
        device=name,
        features=tuple(flag for flag in _DECISIVE_FLAGS if flag in flags),
        n_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        runtime=target.runtime,
        runtime_version=runtime_version,
        target=target,
    )


def _read_cpuinfo() -> tuple[str, frozenset[str]]:
    path = Path("/proc/cpuinfo")
    name, flags = platform.processor() or platform.machine(), frozenset[str]()
    if not path.exists():
        return name, flags
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        if key.strip() in ("flags", "Features"):
            flags = frozenset(value.split())
    return name, flags
