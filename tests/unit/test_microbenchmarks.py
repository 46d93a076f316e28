"""Micro-benchmarks on the simulated device, whose times are known, and their models on the real runtimes."""

import numpy as np
import pytest
from trimtab.compressors.artifact import Artifact
from trimtab.core.errors import MeasurementError
from trimtab.evaluators.device import build_device
from trimtab.evaluators.microbenchmarks import MicroSettings, measure_device
from trimtab.evaluators.quietness import NullTest
from trimtab.evaluators.sandwiches import CASES, Case, build_copy, build_sandwich
from trimtab.hw_profiles.device_profile import DeviceProfile
from trimtab.hw_profiles.target import Target
from trimtab.spaces.policy import GraphTreatment
from trimtab.spaces.treatment import QUANTIZE_OPTIONS

SIMULATED = Target("trimtab.evaluators.testing:SimulatedDevice")
SMALL = MicroSettings(
    cases=(Case("linear", (384, 1536), (16,)), Case("linear", (1280, 1000), ())), n_blocks=2, largest_copy_bytes=2**20
)


@pytest.fixture(scope="module")
def profile():
    return measure_device(SIMULATED, SMALL)


def test_it_speaks_of_the_device(profile):
    profile.require(build_device(SIMULATED).identify())


def test_integers_pay_on_the_simulated_device(profile):
    assert profile.find("linear", "sequence", "int8").pays
    assert profile.find("linear", "rows", "int8").pays


def test_every_option_of_the_layer_has_a_figure_in_both_contexts(profile):
    options = {verdict.option for verdict in profile.verdicts if verdict.variant == "rows"}
    assert options == {"int8", "int8_dynamic", "int8_weight", "int4_weight", "float16"}
    assert [figure.context for figure in profile.find("linear", "rows", "int8").figures] == ["float", "int8"]


def test_zeros_in_a_weight_do_not_pay_where_the_device_does_not_see_them(profile):
    assert not profile.find("linear", "sequence", "sparsity 2:4").pays


def test_stated_times_have_no_error(profile):
    assert {figure.error for verdict in profile.verdicts for figure in verdict.figures} == {0.0}


def test_bandwidth_and_peaks_are_there(profile):
    assert [one.level for one in profile.bandwidths] == ["memory"]
    assert {(one.operation, one.dtype) for one in profile.peak_rates} == {
        ("matmul", "float32"), ("matmul", "int8"), ("matmul", "int8_dynamic"), ("conv", "float32"), ("conv", "int8"),
    }  # fmt: skip


def test_the_measurements_survive_json(profile):
    assert DeviceProfile.from_json(profile.to_json()) == profile


def test_an_unquiet_machine_is_not_measured(monkeypatch):
    unquiet = NullTest(0.5, 0.4, 0.6)
    monkeypatch.setattr("trimtab.evaluators.microbenchmarks.run_null_test", lambda *_, **__: unquiet)
    with pytest.raises(MeasurementError, match="close what else runs"):
        measure_device(SIMULATED, SMALL)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "case", [case for case in CASES if np.prod(case.weight_shape) < 1e5], ids=lambda case: case.label
)
def test_every_layer_runs_between_int8_neighbours(case, runtime):
    device, sandwich = build_device(Target(runtime)), build_sandwich(case)
    option = "int8_weight" if case.kind == "embedding" else "int8"
    treatments = {**dict.fromkeys(sandwich.neighbours, QUANTIZE_OPTIONS["int8"]), "middle": QUANTIZE_OPTIONS[option]}
    artifact = sandwich.pipeline(device.capabilities).build(treatments, GraphTreatment())
    assert np.isfinite(device.load(artifact).run(sandwich.inputs)[0]).all()


def test_two_of_four_weights_are_zero():
    sandwich = build_sandwich(Case("linear", (64, 32), (4,), "2:4"))
    weight = next(array for array in sandwich.prepared.constants.values() if array.shape == (64, 32))
    zeros = (weight.reshape(16, 4, 32) == 0).sum(1)
    np.testing.assert_array_equal(zeros, np.full((16, 32), 2))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_copy_returns_little(runtime):
    x = np.arange(4096, dtype=np.float32).reshape(1, 4, 1024)
    got = build_device(Target(runtime)).load(Artifact(build_copy(4096))).run({"x": x})[0]
    np.testing.assert_array_equal(got, x[:, :1])
