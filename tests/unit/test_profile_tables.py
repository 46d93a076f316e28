import io

from rich.console import Console
from trimtab.experiments.profiling.profile_tables import print_device_profile
from trimtab.hw_profiles.device_profile import Bandwidth, ContextFigure, DeviceProfile, PeakRate, Verdict
from trimtab.hw_profiles.profile import HardwareProfile
from trimtab.hw_profiles.target import Target


def _print(**changes):
    fields = {"base_mhz": 2600.0, "max_mhz": None, "caches_bytes": (("L1", 49152), ("L2", 2**21)), **changes}
    identity = HardwareProfile("Xeon", ("avx2",), 2, 2**33, "onnxruntime", "1.31.1", Target("onnxruntime"), **fields)
    figures = (ContextFigure("float", "a", 1.2, 0.05, 1e-3), ContextFigure("int8", "a", 0.7, 0.02, 1e-3),
               ContextFigure("int8", "b", 0.9, 0.02, 1e-3))  # fmt: skip
    profile = DeviceProfile(
        identity, (Bandwidth("L2", 2**20, 5e10, 1e9),), (PeakRate("matmul", "int8", 3.6e11, 2e9),),
        (Verdict("conv", "1×1", "int8", figures),), 0.03, "2026-11-22",
    )  # fmt: skip
    text = io.StringIO()
    print_device_profile(Console(file=text, width=140), profile)
    return text.getvalue()


def test_a_person_sees_the_device_its_rates_and_what_pays():
    text = _print()
    for part in ("Xeon, 2 cores, 8 GiB", "2.6 GHz base", "L1 48 KiB, L2 2 MiB", "50.0 GB/s", "360 Gop/s", "by 3.0%"):
        assert part in text
    row = next(line for line in text.splitlines() if "conv 1×1" in line)
    assert all(part in row for part in ("1.20 ± 0.05", "0.70 ± 0.02 … 0.90", "yes"))


def test_what_cannot_be_read_is_said():
    assert "clock: not readable; caches: not readable" in _print(base_mhz=None, caches_bytes=())
