"""The contract of every `EnergyCounter`; a new one is a line in `COUNTERS`."""

import time

import pytest
from trimtab.hw_profiles.energy.energy import check_counter
from trimtab.hw_profiles.energy.energy_counters import NvmlCounter, RaplCounter


def rapl(folder):
    """A powercap folder that a processor would show, and work that turns its counter."""
    zone = folder / "intel-rapl:0"
    zone.mkdir()
    files = {"name": "package-0", "max_energy_range_uj": "262143328850", "energy_uj": "1000"}
    for name, content in files.items():
        (zone / name).write_text(content + "\n")
    energy = zone / "energy_uj"
    return RaplCounter.find(folder), lambda: energy.write_text(f"{int(energy.read_text()) + 5000}\n")


class Board:
    """The three functions of NVML that are used, for a board of 100 W."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, counts_energy):
        self.counts_energy = counts_energy
        self.energy_mj = 7

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if not self.counts_energy:
            raise self.NVMLError("Not Supported")
        return self.energy_mj

    def nvmlDeviceGetPowerUsage(self, handle):
        return 100_000

    def work(self):
        self.energy_mj += 3
        time.sleep(0.001)


def nvml(folder):
    board = Board(counts_energy=True)
    return NvmlCounter(board, "handle"), board.work


def nvml_power(folder):
    board = Board(counts_energy=False)
    return NvmlCounter(board, "handle"), board.work


COUNTERS = [rapl, nvml, nvml_power]


@pytest.mark.parametrize("make", COUNTERS)
def test_a_counter_keeps_the_contract(make, tmp_path):
    check_counter(*make(tmp_path))


def test_sampled_power_adds_up_over_time(tmp_path):
    counter, work = nvml_power(tmp_path)
    start_s = time.perf_counter()
    before_j = counter.read_j()
    for _ in range(30):
        work()
    used_j = counter.read_j() - before_j
    counter.close()
    assert used_j == pytest.approx(100 * (time.perf_counter() - start_s), rel=0.2)


def test_a_counter_that_falls_is_found():
    class Falling:
        source = "falling"
        total = 0.0

        def read_j(self):
            self.total -= 1.0
            return self.total

        def close(self):
            pass

    with pytest.raises(AssertionError, match="never fall"):
        check_counter(Falling(), lambda: None)
