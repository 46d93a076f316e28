"""What this machine and this runtime are: the identity that results are tied to."""

import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

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
    #: clock in MHz without turbo; None where it cannot be read
    base_mhz: float | None = None
    #: highest clock in MHz; None where it cannot be read, as in most virtual machines
    max_mhz: float | None = None
    #: (name, bytes) of one core's data caches, smallest first; a cache that cores share counts in full
    caches_bytes: tuple[tuple[str, int], ...] = ()

    @property
    def id(self) -> str:
        """A digest of the fields that tie a result to a machine: all but clocks and caches.

        Clocks jitter, and virtual machines on equal processors report different ones; runs go on all the same.
        """
        tied = {name: value for name, value in self.to_json().items() if name not in _DESCRIPTIVE}
        return short_digest(tied)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        caches = [list(cache) for cache in self.caches_bytes]
        return {**asdict(self), "features": list(self.features), "caches_bytes": caches}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Reads what `to_json` wrote, now or before it knew clocks and caches.

        Raises:
            KeyError: (or TypeError, ValueError) the value is not a profile.
        """
        fields = {**value, "features": tuple(value["features"]), "target": Target(**value["target"])}
        fields["caches_bytes"] = tuple((str(name), int(size)) for name, size in value.get("caches_bytes", ()))
        return cls(**fields)


#: what describes a machine and does not tell it from another
_DESCRIPTIVE = frozenset({"base_mhz", "max_mhz", "caches_bytes"})


#: The x86 flags that change which kernels a runtime picks (see /proc/cpuinfo).
_DECISIVE_FLAGS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


def identify_cpu(target: Target, runtime_version: str) -> HardwareProfile:
    """Reads the identity of this machine's processor."""
    name, flags, clock_mhz = _read_cpuinfo()
    base_mhz, max_mhz = _read_clocks(name, clock_mhz)
    return HardwareProfile(
        device=name,
        features=tuple(flag for flag in _DECISIVE_FLAGS if flag in flags),
        n_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        runtime=target.runtime,
        runtime_version=runtime_version,
        target=target,
        base_mhz=base_mhz,
        max_mhz=max_mhz,
        caches_bytes=_read_caches(),
    )


_CPU = Path("/sys/devices/system/cpu/cpu0")


def _read_clocks(name: str, clock_mhz: float | None) -> tuple[float | None, float | None]:
    """Returns base and highest clock in MHz; without cpufreq, the base as named, or as a virtual machine states it."""
    folder = _CPU / "cpufreq"
    base_mhz, max_mhz = (_read_khz(folder / file) for file in ("base_frequency", "cpuinfo_max_freq"))
    named = re.search(r"@\s*([0-9.]+)\s*GHz", name)
    if base_mhz is None and named:
        base_mhz = float(named[1]) * 1000
    if base_mhz is None and not folder.exists():
        base_mhz = clock_mhz
    return base_mhz, max_mhz


def _read_khz(path: Path) -> float | None:
    try:
        return int(path.read_text()) / 1000
    except (OSError, ValueError):
        return None


_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


def _read_caches() -> tuple[tuple[str, int], ...]:
    """Returns the caches that hold data, as sysfs states them; none where it does not."""
    found = []
    for folder in sorted((_CPU / "cache").glob("index*")):
        try:
            level, kind, size = ((folder / file).read_text().strip() for file in ("level", "type", "size"))
        except OSError:
            continue
        parts = re.fullmatch(r"(\d+)([KMG]?)", size)
        if kind != "Instruction" and parts:
            found.append((f"L{level}", int(parts[1]) * _UNITS[parts[2]]))
    return tuple(found)


def _read_cpuinfo() -> tuple[str, frozenset[str], float | None]:
    """Returns the processor's name, its flags, and the clock of the moment in MHz."""
    path = Path("/proc/cpuinfo")
    name, flags, clock_mhz = platform.processor() or platform.machine(), frozenset[str](), None
    if not path.exists():
        return name, flags, clock_mhz
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        if key.strip() in ("flags", "Features"):
            flags = frozenset(value.split())
        if key.strip() == "cpu MHz":
            clock_mhz = round(float(value))
    return name, flags, clock_mhz
