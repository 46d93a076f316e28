"""Counters of energy: RAPL through Linux' powercap folder, NVML for NVIDIA's boards."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...core.errors import MeasurementError
from .energy import EnergyCounter

#: where Linux shows RAPL (https://docs.kernel.org/power/powercap/powercap.html); AMD's counters stand there as well
POWERCAP = Path("/sys/class/powercap")

#: seconds between two samples of the power where a board does not count energy
_SAMPLE_S = 0.01


def find_counter(device: str, *, powercap: Path = POWERCAP) -> EnergyCounter:
    """Returns the counter that covers a device.

    Args:
        device: as in `Target.device`: ``cpu``, ``cuda``, ``cuda:1`` or ``gpu``.
        powercap: the folder in which RAPL is looked for.

    Raises:
        MeasurementError: there is none, or it may not be read; the message says why.
    """
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return RaplCounter.find(powercap)
    if kind in ("cuda", "gpu") and (not index or index.isdigit()):
        return NvmlCounter.find(int(index or 0))
    raise MeasurementError(f"no counter of energy is known for the device '{device}'")


class RaplCounter:
    """Joules of all processor packages, from the files that the kernel keeps."""

    source = "rapl"

    def __init__(self, zones: Sequence[Path]) -> None:
        """Starts to count.

        Args:
            zones: folders with ``energy_uj`` (microjoules, wraps around) and ``max_energy_range_uj``.
        """
        self._ranges_uj = {zone: _read_number(zone / "max_energy_range_uj") for zone in zones}
        self._last_uj = {zone: _read_number(zone / "energy_uj") for zone in zones}
        self._total_uj = 0

    @classmethod
    def find(cls, folder: Path = POWERCAP) -> "RaplCounter":
        """Finds the packages; their cores and memory are parts of them and not counted again.

        Raises:
            MeasurementError: there are none, or they may not be read.
        """
        zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if _is_package(zone)]
        if not zones:
            raise MeasurementError(f"no RAPL: {folder} names no processor package")
        return cls(zones)

    def read_j(self) -> float:
        """Returns the joules since the counter was made; to be called at least once per wrap (some minutes)."""
        for zone, last_uj in self._last_uj.items():
            now_uj = _read_number(zone / "energy_uj")
            wrapped_uj = self._ranges_uj[zone] if now_uj < last_uj else 0
            self._total_uj += now_uj - last_uj + wrapped_uj
            self._last_uj[zone] = now_uj
        return self._total_uj * 1e-6

    def close(self) -> None:
        """Does nothing: no file is kept open."""


def _is_package(zone: Path) -> bool:
    # intel-rapl:0:0 is a part of intel-rapl:0; "psys" is the whole board, which not every machine counts
    return zone.name.count(":") == 1 and _read_text(zone / "name").startswith("package")


def _read_number(path: Path) -> int:
    text = _read_text(path)
    if not text.isdigit():
        raise MeasurementError(f"RAPL: {path} must hold a number, got {text!r:.40}")
    return int(text)


def _read_text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except PermissionError as error:
        raise MeasurementError(f"RAPL: {path} may not be read; let an administrator allow it (chmod a+r)") from error
    except OSError as error:
        raise MeasurementError(f"RAPL: {path} cannot be read: {error}") from error


class NvmlCounter:
    """Joules of one NVIDIA board, through nvidia-ml-py (``pip install 'trimtab[nvidia]'``)."""

    source = "nvml"

    def __init__(self, nvml: Any, handle: Any) -> None:
        """Starts to count.

        Args:
            nvml: the module ``pynvml``, initialised.
            handle: NVML's handle of the board.
        """
        self._nvml = nvml
        self._handle = handle
        self._sampler: _PowerSampler | None = None
        try:
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except nvml.NVMLError:  # boards before Volta
            self._sampler = _PowerSampler(nvml, handle)

    @classmethod
    def find(cls, index: int = 0) -> "NvmlCounter":
        """Opens the board with this number.

        Raises:
            MeasurementError: the extra is not installed, or there is no such board.
        """
        try:
            import pynvml
        except ImportError as error:
            raise MeasurementError("nvidia-ml-py is not installed; pip install 'trimtab[nvidia]'") from error
        try:
            pynvml.nvmlInit()
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
        except pynvml.NVMLError as error:
            raise MeasurementError(f"NVML has no board {index}: {error}") from error

    def read_j(self) -> float:
        """Returns the joules since the driver was loaded, or since the sampling began."""
        if self._sampler is not None:
            return self._sampler.read_j()
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) * 1e-3  # millijoules
        except self._nvml.NVMLError as error:
            raise MeasurementError(f"NVML no longer counts: {error}") from error

    def close(self) -> None:
        """Ends the sampling, if there is any."""
        if self._sampler is not None:
            self._sampler.stop()


class _PowerSampler:
    """Adds up power over time (trapezoids) in a thread of its own."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._lock = threading.Lock()
        self._error: Exception | None = None
        self._total_j, self._last_s = 0.0, time.perf_counter()
        try:
            self._last_w = self._power_w()
        except nvml.NVMLError as error:
            raise MeasurementError(f"NVML tells neither energy nor power of this board: {error}") from error
        self._ended = threading.Event()
        threading.Thread(target=self._loop, name="trimtab-power", daemon=True).start()

    def read_j(self) -> float:
        self._step()
        if self._error is not None:
            raise MeasurementError(f"NVML no longer tells the power: {self._error}") from self._error
        return self._total_j

    def stop(self) -> None:
        self._ended.set()

    def _loop(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self._step()

    def _step(self) -> None:
        with self._lock:
            try:
                now_s, now_w = time.perf_counter(), self._power_w()
            except self._nvml.NVMLError as error:
                self._error = error
                return
            self._total_j += (now_s - self._last_s) * (now_w + self._last_w) / 2
            self._last_s, self._last_w = now_s, now_w

    def _power_w(self) -> float:
        return float(self._nvml.nvmlDeviceGetPowerUsage(self._handle)) * 1e-3  # milliwatts
