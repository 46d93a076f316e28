"""The contract of every device. A new device is one line in TARGETS."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import TensorProto, helper, numpy_helper
from trimtab.compressors.artifact import Artifact
from trimtab.core.errors import MeasurementError, SpecError
from trimtab.evaluators.device import build_device
from trimtab.evaluators.latency import SelfTiming, TimingSettings, measure_latency
from trimtab.evaluators.openvino_device import find_group_size
from trimtab.evaluators.remote.agent_bench import AgentBench
from trimtab.evaluators.remote.testing import run_agent
from trimtab.evaluators.testing import DEVICE_CHECKS, DeviceCase, SimulatedDevice, check_device, example_artifact
from trimtab.experiments.spec_file import find_spec
from trimtab.hw_profiles.target import Target

#: Inductor calls what PyTorch itself has deprecated
OWN_WARNINGS = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

BOARD = Path(find_spec("digits-board")).parent / "boards" / "xeon.yaml"

#: the URL of the agent takes its place, see `agent`
AGENT = "agent"

TARGETS = [
    Target("lut", device=str(BOARD)),
    Target("onnxruntime"),
    Target("openvino"),
    Target("remote", device=AGENT),
    Target("trimtab.evaluators.testing:SimulatedDevice"),
    Target("torch"),
    pytest.param(Target("torch_compile"), marks=[pytest.mark.slow, OWN_WARNINGS]),
    pytest.param(Target("onnxruntime", device="cuda"), marks=pytest.mark.gpu),
    pytest.param(Target("torch", device="cuda"), marks=pytest.mark.gpu),
    pytest.param(Target("torch_compile", device="cuda"), marks=[pytest.mark.gpu, OWN_WARNINGS]),
    pytest.param(Target("tensorrt", device="cuda"), marks=pytest.mark.gpu),
]

BATCHES = [1, 3]


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    with run_agent(AgentBench("onnxruntime", "cpu"), tmp_path_factory.mktemp("agent")) as running:
        yield running


@pytest.fixture(params=TARGETS, ids=lambda target: f"{target.runtime}-{Path(target.device).stem}")
def target(request, monkeypatch):
    if request.param.device == AGENT:
        running = request.getfixturevalue("agent")
        monkeypatch.setenv("TRIMTAB_AGENT_TOKEN", running.token)
        return replace(request.param, device=running.url)
    if request.node.get_closest_marker("gpu"):
        try:
            build_device(request.param)
        except SpecError as error:
            pytest.skip(str(error))
    return request.param


@pytest.fixture(params=BATCHES, ids=lambda size: f"batch{size}")
def case(target, request):
    rng = np.random.default_rng(0)
    inputs = {"x": rng.standard_normal((request.param, 8)).astype(np.float32)}
    return DeviceCase(build_device(replace(target, batch_size=request.param)), example_artifact(), inputs)


@pytest.mark.parametrize("check", DEVICE_CHECKS, ids=lambda check: check.__name__)
def test_every_device_keeps_the_contract(case, check):
    check(case)


def test_all_checks_run_at_once():
    inputs = {"x": np.ones((1, 8), np.float32)}
    check_device(SimulatedDevice(Target("simulated")), example_artifact(), inputs)


def test_a_device_that_breaks_the_contract_is_caught():
    class Forgetful(SimulatedDevice):
        def identify(self):
            return replace(super().identify(), target=Target("elsewhere"))

    with pytest.raises(AssertionError, match="must carry the target"):
        check_device(Forgetful(Target("simulated")), example_artifact(), {"x": np.ones((1, 8), np.float32)})


def test_full_precision_computes_what_the_onnx_reference_computes(case):
    reference = onnx.reference.ReferenceEvaluator(onnx.load_model_from_string(case.artifact.model))
    expected = reference.run(None, dict(case.inputs))
    for got, wanted in zip(case.device.load(case.artifact).run(case.inputs), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_device_can_be_timed(case):
    executable = case.device.load(case.artifact)
    settings = TimingSettings(min_time_s=0.01, max_spread=100.0, max_uncertainty=100.0, max_drift=100.0)
    latency = measure_latency(executable, executable, case.inputs, settings)
    assert latency.runs >= 30
    assert latency.median_s > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("onnxruntime", "unknown onnxruntime device 'abacus'; known: acl, .*, cpu, cuda, .*, xnnpack"),
        ("openvino", "driven on the devices: cpu; got 'abacus'"),
        ("torch", "driven on the devices: cpu, cuda; got 'abacus'"),
        ("torch_compile", "driven on the devices: cpu, cuda; got 'abacus'"),
    ],
)
def test_devices_that_a_runtime_does_not_drive_are_refused(name, message):
    with pytest.raises(SpecError, match=message):
        build_device(Target(name, device="abacus"))


def test_batch_sizes_fixed_by_the_model_and_wrong_are_refused(target):
    model = onnx.load_model_from_string(example_artifact().model)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    executable = build_device(replace(target, batch_size=2)).load(Artifact(model.SerializeToString()))
    assert executable.run({"x": np.ones((2, 8), np.float32)})[0].shape == (2, 3)
    with pytest.raises(MeasurementError):
        executable.run({"x": np.ones((3, 8), np.float32)})


def test_inputs_with_more_than_the_batch_open_take_any_length(target):
    executable = build_device(target).load(_sum_over_sequence())
    for length in (2, 5):
        outputs = executable.run({"x": np.ones((1, length, 4), np.float32)})
        np.testing.assert_array_equal(outputs[0], np.full((1, 4), length, np.float32))


def test_openvino_quantises_activations_only_when_the_artifact_says_so():
    device = build_device(Target("openvino"))
    artifact, weight = _compressed_linear(depth=128)
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 128)).astype(np.float32)}
    exact = inputs["x"] @ weight
    size = np.abs(exact).max()
    plain = device.load(artifact).run(inputs)[0]
    dynamic = device.load(replace(artifact, dynamic_activations=True)).run(inputs)[0]
    assert np.abs(plain - exact).max() <= 1e-5 * size
    assert np.abs(dynamic - exact).max() <= 0.05 * size
    if any("vnni" in feature for feature in device.identify().features):
        # elsewhere the plugin may have no integer kernel to do it with
        assert np.abs(dynamic - exact).max() >= 1e-4 * size


@pytest.mark.parametrize(("depth", "expected"), [(20, 32), (64, 64), (100, 96), (128, 128), (1536, 128)])
def test_the_activation_group_fits_the_shallowest_compressed_layer(depth, expected):
    assert expected == find_group_size(_compressed_linear(depth)[0].model)


def test_simulated_latency_falls_with_quantised_weights_and_rises_with_conversions():
    device = SimulatedDevice(Target("simulated"))
    depth, times_s = 256, {}
    for form in ("float", "weight", "integer"):
        executable = device.load(_compressed_linear(depth, form)[0])
        assert isinstance(executable, SelfTiming)
        times_s[form] = executable.simulated_latency_s
    assert times_s["integer"] < times_s["weight"] < times_s["float"]
    small = {form: device.load(_compressed_linear(2, form)[0]).simulated_latency_s for form in ("float", "integer")}
    assert small["integer"] > small["float"]


def _sum_over_sequence():
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "seq", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.array([1]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Artifact(model.SerializeToString())


def _compressed_linear(depth, form="weight"):
    """Returns an artifact and its (depth, 64) float32 weight."""
    rng = np.random.default_rng(1)
    quantised = rng.integers(-127, 128, (depth, 64)).astype(np.int8)
    scale = np.float32(0.01)
    weight = quantised.astype(np.float32) * scale
    initializers = [numpy_helper.from_array(scale, "s")]
    nodes, source = [], "x"
    if form == "float":
        initializers.append(numpy_helper.from_array(weight, "wd"))
    else:
        initializers.append(numpy_helper.from_array(quantised, "w"))
        nodes.append(helper.make_node("DequantizeLinear", ["w", "s"], ["wd"]))
    if form == "integer":
        initializers.append(numpy_helper.from_array(np.uint8(128), "z"))
        nodes.append(helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]))
        nodes.append(helper.make_node("DequantizeLinear", ["q", "s", "z"], ["xd"]))
        source = "xd"
    nodes.append(helper.make_node("MatMul", [source, "wd"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", depth])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Artifact(model.SerializeToString()), weight
