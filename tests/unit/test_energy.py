"""Counters over a folder as Linux shows it, and how they are read."""

import pytest
from trimtab.core.errors import MeasurementError
from trimtab.evaluators.measurement import Measurement
from trimtab.hw_profiles.energy.energy import Energy, EnergySettings, measure_energy
from trimtab.hw_profiles.energy.energy_counters import NvmlCounter, RaplCounter, find_counter

QUICK = EnergySettings(window_s=0.01, n_windows=5, idle_s=0.01)
RANGE_UJ = 1_000_000


@pytest.fixture
def powercap(tmp_path):
    """One package with its cores, and the whole board, as ``/sys/class/powercap`` shows them."""
    for zone, name in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:1", "psys")):
        folder = tmp_path / zone
        folder.mkdir()
        (folder / "name").write_text(name + "\n")
        (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
        (folder / "energy_uj").write_text("0\n")
    (tmp_path / "intel-rapl").mkdir()
    return tmp_path


def use(powercap, uj, zone="intel-rapl:0"):
    """Uses energy: the counter rises, and starts again where its range ends."""
    path = powercap / zone / "energy_uj"
    path.write_text(f"{(int(path.read_text()) + uj) % RANGE_UJ}\n")


def test_rapl_counts_microjoules_of_the_package_only(powercap):
    counter = RaplCounter.find(powercap)
    use(powercap, 300)
    use(powercap, 200, "intel-rapl:0:0")
    use(powercap, 900, "intel-rapl:1")
    assert counter.read_j() == pytest.approx(300e-6)


def test_rapl_adds_up_packages(powercap):
    (powercap / "intel-rapl:1" / "name").write_text("package-1\n")
    counter = RaplCounter.find(powercap)
    use(powercap, 300)
    use(powercap, 900, "intel-rapl:1")
    assert counter.read_j() == pytest.approx(1200e-6)


def test_rapl_goes_on_where_a_counter_wraps(powercap):
    use(powercap, 999_000)
    counter = RaplCounter.find(powercap)
    for _ in range(5):
        use(powercap, 600_000)
        counter.read_j()
    assert counter.read_j() == pytest.approx(3.0)


def test_no_package_is_an_error_with_the_folder(tmp_path):
    with pytest.raises(MeasurementError, match=f"no RAPL: {tmp_path} names no processor package"):
        find_counter("cpu", powercap=tmp_path)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(MeasurementError, match="no RAPL"):
        find_counter("cpu", powercap=tmp_path / "nowhere")


def test_a_counter_that_may_not_be_read_says_so(powercap, monkeypatch):
    # as root, a file without permissions can still be read, so a folder stands in for a refused file first
    path = powercap / "intel-rapl:0" / "energy_uj"
    path.unlink()
    path.mkdir()
    with pytest.raises(MeasurementError, match="energy_uj cannot be read"):
        find_counter("cpu", powercap=powercap)

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    with pytest.raises(MeasurementError, match=r"may not be read; let an administrator allow it"):
        find_counter("cpu", powercap=powercap)


def test_what_is_no_number_is_refused(powercap):
    (powercap / "intel-rapl:0" / "energy_uj").write_text("much\n")
    with pytest.raises(MeasurementError, match="must hold a number, got 'much'"):
        RaplCounter.find(powercap)


def test_an_unknown_device_has_no_counter():
    with pytest.raises(MeasurementError, match="no counter of energy is known for the device 'npu'"):
        find_counter("npu")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "gpu"])
def test_a_gpu_is_counted_by_nvml_or_the_reason_is_said(device):
    try:
        counter = find_counter(device)
    except MeasurementError as error:
        assert "pip install 'trimtab[nvidia]'" in str(error) or "NVML has no board" in str(error)
    else:
        assert isinstance(counter, NvmlCounter)


def test_joules_are_those_of_one_run(powercap):
    energy = measure_energy(RaplCounter.find(powercap), lambda: use(powercap, 2500), QUICK)
    assert energy.joules == pytest.approx(2.5e-3)
    assert (energy.source, energy.idle_j) == ("rapl", 0.0)
    assert energy.runs >= QUICK.n_windows


def test_idle_power_is_part_of_the_joules_and_told(powercap):
    class Leaking:
        """A package of 2 W that does nothing, beside the energy of the runs."""

        source = "leaking"

        def __init__(self):
            import time

            self.now_s = time.perf_counter

        def read_j(self):
            return 2.0 * self.now_s()

    energy = measure_energy(Leaking(), lambda: sum(range(20_000)), QUICK)
    assert energy.idle_j == pytest.approx(energy.joules, rel=0.5)
    assert energy.net_j == pytest.approx(0.0, abs=0.5 * energy.joules)


def test_a_counter_that_stands_still_is_refused(powercap):
    with pytest.raises(MeasurementError, match="rapl stands still"):
        measure_energy(RaplCounter.find(powercap), lambda: None, QUICK)


@pytest.mark.parametrize(
    "energy",
    [Energy(0.02, 0.001, 40, "rapl", idle_j=0.01), Energy(1e-3, 5e-4, 0, "table: x", note="no RAPL")],
)
def test_energy_survives_json(energy):
    assert Measurement.from_json(Measurement(energy=energy).to_json()) == Measurement(energy=energy)


def test_a_measurement_takes_over_what_another_one_knows():
    energy = Energy(1.0, 0.0, 1, "rapl")
    joined = Measurement(size_bytes=5, peak_memory_bytes=1).joined(Measurement(energy=energy, peak_memory_bytes=2))
    assert joined == Measurement(size_bytes=5, peak_memory_bytes=2, energy=energy)
    assert joined.energy_j == 1.0
