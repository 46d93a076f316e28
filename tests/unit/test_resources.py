"""Which resources are measured, and from which source."""

from dataclasses import replace

import numpy as np
import pytest
from trimtab.core.errors import SpecError
from trimtab.evaluators.measurement import Measurement
from trimtab.evaluators.onnxruntime_device import OnnxRuntimeDevice
from trimtab.evaluators.resources import ResourceMeter, WantedResources
from trimtab.evaluators.testing import SimulatedDevice, example_artifact
from trimtab.hw_profiles.energy.energy_table import load_energy_table
from trimtab.hw_profiles.target import Target

BATCH = {"x": np.zeros((1, 8), np.float32)}
ENERGY = WantedResources(energy_table=load_energy_table())


@pytest.fixture
def device():
    return OnnxRuntimeDevice(Target("onnxruntime"))


class Mute:
    """A device that does not tell its kernels."""

    def __init__(self, device):
        self.target, self.capabilities = device.target, device.capabilities
        self.identify, self.load = device.identify, device.load


class Working:
    """An executable whose every run takes 5 mJ from a powercap folder."""

    def __init__(self, energy):
        self.energy = energy

    def run(self, inputs):
        self.energy.write_text(str(int(self.energy.read_text()) + 5000))
        return []


@pytest.fixture
def powercap(tmp_path):
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    for name, content in (("name", "package-0"), ("max_energy_range_uj", str(10**12)), ("energy_uj", "0")):
        (zone / name).write_text(content)
    return tmp_path


def test_nothing_is_measured_unasked(device):
    artifact = example_artifact()
    meter = ResourceMeter(device, BATCH, WantedResources())
    assert meter.measure(artifact, device.load(artifact)) == Measurement()


def test_activations_are_those_that_are_alive_at_once(device):
    artifact = example_artifact()
    found = ResourceMeter(device, BATCH, WantedResources(peak_activation=True)).measure(artifact, device.load(artifact))
    # x (8 floats), h (16 floats, Relu in place or fused), logits (3 floats), each in multiples of 64 bytes
    assert found == Measurement(peak_activation_bytes=64 + 64 + 64)


def test_energy_is_counted_where_a_counter_can_be_read(device, powercap):
    meter = ResourceMeter(device, BATCH, ENERGY, powercap=powercap)
    energy = meter.measure(example_artifact(), Working(powercap / "intel-rapl:0" / "energy_uj")).energy
    assert (energy.source, energy.note) == ("rapl", "")
    assert energy.joules == pytest.approx(5e-3)


def test_energy_comes_from_the_table_where_nothing_counts(device, tmp_path):
    artifact = example_artifact()
    energy = ResourceMeter(device, BATCH, ENERGY, powercap=tmp_path).measure(artifact, device.load(artifact)).energy
    assert energy.source == "table: Horowitz 2014, 45 nm"
    assert energy.note == f"no RAPL: {tmp_path} names no processor package"
    # 8 × 16 + 16 × 3 products at 3.7 + 0.9 pJ; beyond that at the most 2 kB from the nearest cache and 35 additions
    assert 176 * 4.6e-12 < energy.joules < 176 * 4.6e-12 + 2000 * 1.25e-12 + 35 * 0.9e-12


def test_a_counter_that_stands_still_gives_way_to_the_table_for_good(device, powercap):
    meter = ResourceMeter(device, BATCH, ENERGY, powercap=powercap)
    artifact = example_artifact()
    energy = meter.measure(artifact, device.load(artifact)).energy
    assert energy.note == "the energy counter rapl stands still while the device works"
    again = meter.measure(artifact, Working(powercap / "intel-rapl:0" / "energy_uj")).energy
    assert again == energy


def test_a_device_that_states_its_own_times_is_not_counted(powercap):
    device, artifact = SimulatedDevice(Target("simulated")), example_artifact()
    energy = ResourceMeter(device, BATCH, ENERGY, powercap=powercap).measure(artifact, device.load(artifact)).energy
    assert (energy.is_measured, energy.note) == (False, "the device states its own times")


def test_a_device_without_kernels_and_counter_is_refused_energy(device, tmp_path):
    with pytest.raises(SpecError, match=r"neither be measured .* nor be taken from a table"):
        ResourceMeter(Mute(device), BATCH, ENERGY, powercap=tmp_path)


def test_a_device_without_kernels_is_refused_activations(device):
    with pytest.raises(SpecError, match="nothing is known of its activations"):
        ResourceMeter(Mute(device), BATCH, WantedResources(peak_activation=True))


def test_a_larger_batch_needs_more(device):
    artifact, wanted = example_artifact(), WantedResources(peak_activation=True)
    wide = OnnxRuntimeDevice(replace(device.target, batch_size=64))
    found = ResourceMeter(wide, {"x": np.zeros((64, 8), np.float32)}, wanted).measure(artifact, wide.load(artifact))
    assert found.peak_activation_bytes == 64 * 4 * (8 + 16 + 3)
