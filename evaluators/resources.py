"""What an artifact needs beside time: memory of the process, memory of activations, energy."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..compressors.artifact import Artifact
from ..core.errors import MeasurementError, SpecError
from ..hw_profiles.energy.energy import Energy, EnergyCounter, EnergySettings, measure_energy
from ..hw_profiles.energy.energy_counters import POWERCAP, find_counter
from ..hw_profiles.energy.energy_table import EnergyTable
from ..hw_profiles.kernels.kernel import LoweredGraph
from ..hw_profiles.liveness import measure_liveness
from .device import Device, DeviceElsewhere, Executable, LoweringDevice, find_address
from .latency import SelfTiming, TimingSettings
from .measurement import Measurement
from .memory import measure_peak_memory
from .timing_lock import hold_timing_lock

_log = logging.getLogger(__name__)

#: runtimes lay activations out at multiples of this many bytes
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class WantedResources:
    """What to measure of every artifact; each costs time."""

    #: about half a second
    peak_memory: bool = False
    #: the runtime optimises the model once more, without a run
    peak_activation: bool = False
    #: prices energy where no counter can be read (about two seconds where one can); None: energy is not wanted
    energy_table: EnergyTable | None = None

    @property
    def is_any(self) -> bool:
        """Whether anything is wanted."""
        return self.peak_memory or self.peak_activation or self.energy_table is not None


def check_resources(wanted: WantedResources, device: Device) -> None:
    """Refuses to measure activations where the runtime does not tell what they are, and energy from afar.

    Raises:
        SpecError: the device does not tell its kernels, or is elsewhere.
    """
    if wanted.energy_table is not None and isinstance(device, DeviceElsewhere):
        raise SpecError(
            f"energy is not measured through an agent ({device.address.device}); remove what asks for energy, or "
            f"search on the machine itself"
        )
    if wanted.peak_activation and not isinstance(device, LoweringDevice):
        raise SpecError(
            f"the runtime {find_address(device).runtime} does not tell its kernels, so nothing is known of its "
            f"activations; remove peak_activation_mb, or bound peak_memory_mb instead"
        )


class ResourceMeter:
    """Measures what is wanted, in a process that has the device to itself.

    The source of energies is settled by the first measurement, so that all that a meter says can be compared.
    """

    def __init__(
        self, device: Device, batch: Mapping[str, np.ndarray], wanted: WantedResources, *, powercap: Path = POWERCAP
    ) -> None:
        """Looks for a counter of energy.

        Args:
            device: where artifacts run.
            batch: input name → (batch, …) array.
            wanted: what to measure.
            powercap: the folder in which RAPL is looked for.

        Raises:
            SpecError: something is wanted that this device cannot tell.
        """
        self._device, self._batch, self._wanted = device, batch, wanted
        self._counter: EnergyCounter | None = None
        self._is_settled = False
        self._note = ""
        check_resources(wanted, device)
        if wanted.energy_table is not None:
            self._find_counter(powercap)

    def _find_counter(self, powercap: Path) -> None:
        try:
            self._counter = find_counter(self._device.target.device, powercap=powercap)
        except MeasurementError as error:
            self._take_the_table(str(error))

    def _take_the_table(self, reason: str) -> None:
        if not isinstance(self._device, LoweringDevice):
            raise SpecError(
                f"energy can neither be measured ({reason}) nor be taken from a table: the runtime "
                f"{self._device.target.runtime} does not tell its kernels; remove what asks for energy"
            )
        _log.info("energy comes from a table: %s", reason)
        self._counter, self._note = None, reason

    def measure(self, artifact: Artifact, executable: Executable) -> Measurement:
        """Returns peak memory, activations and energy, as far as they are wanted.

        Args:
            artifact: what to measure.
            executable: the artifact, loaded on the meter's device.

        Raises:
            MeasurementError: a counter or the runtime fails.
        """
        wanted = self._wanted
        found = Measurement()
        if wanted.peak_memory:
            found = replace(found, peak_memory_bytes=self._measure_peak_memory(artifact))
        if wanted.peak_activation:
            liveness = measure_liveness(self._lower(artifact), alignment=_ALIGNMENT)
            found = replace(found, peak_activation_bytes=liveness.peak_bytes)
        if wanted.energy_table is not None:
            found = replace(found, energy=self._measure_energy(artifact, executable, wanted.energy_table))
        return found

    def _measure_peak_memory(self, artifact: Artifact) -> int:
        if isinstance(self._device, DeviceElsewhere):
            return self._device.measure_peak_memory(artifact, self._batch)
        return measure_peak_memory(self._device.target, artifact, self._batch)

    def _measure_energy(self, artifact: Artifact, executable: Executable, table: EnergyTable) -> Energy:
        if self._counter is not None and isinstance(executable, SelfTiming):
            self._take_the_table("the device states its own times")
        if self._counter is not None:
            counted = self._count(self._counter, lambda: executable.run(self._batch))
            if counted is not None:
                return counted
        self._is_settled = True
        return table.estimate(self._lower(artifact), note=self._note)

    def _count(self, counter: EnergyCounter, work: Callable[[], object]) -> Energy | None:
        try:
            with hold_timing_lock(TimingSettings().lock_timeout_s):
                energy = measure_energy(counter, work, EnergySettings())
        except MeasurementError as error:
            if self._is_settled:
                raise
            self._take_the_table(str(error))
            return None
        self._is_settled = True
        return energy

    def _lower(self, artifact: Artifact) -> LoweredGraph:
        if not isinstance(self._device, LoweringDevice):
            raise MeasurementError(f"the runtime {self._device.target.runtime} does not tell its kernels")
        return self._device.lower(artifact)
