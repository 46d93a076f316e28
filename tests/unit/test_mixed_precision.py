"""Single layers in float32 inside a bfloat16 graph: what OpenVINO reports of them, and what they compute."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from trimtab.compressors.artifact import Artifact
from trimtab.compressors.pipeline import Pipeline
from trimtab.core.errors import MeasurementError
from trimtab.evaluators.device import build_device
from trimtab.evaluators.openvino_precision import check_pins, pin_layers
from trimtab.experiments.spec_file import find_spec
from trimtab.hw_profiles.target import Target
from trimtab.spaces.policy import GraphTreatment
from trimtab.spaces.treatment import Treatment

openvino = pytest.importorskip("openvino")

#: largest share by which rounding to bfloat16, which keeps 8 bits, moves a number
ROUNDING = 2.0**-8


@pytest.fixture(scope="module")
def device():
    found = build_device(Target("openvino"))
    if "bfloat16" not in found.capabilities.precisions:
        pytest.skip("this processor does not compute in bfloat16, so that nothing has to stay in float32")
    return found


def make_artifact(nodes, constants, shape):
    graph = helper.make_graph(
        nodes, "mixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Artifact(model.SerializeToString(), "bfloat16")


def spoiled(rng, shape):
    """Weights that bfloat16 cannot hold: 1 + a little, which cancels out in sums with alternating signs."""
    array = 1.0 + rng.uniform(-1, 1, shape) * ROUNDING
    return (array * np.where(np.indices(shape).sum(0) % 2, 1.0, -1.0)).astype(np.float32)


def sensitive_network(kind, storage="float32"):
    """A layer ``first``, the layer ``middle`` with a spoiled weight, and ``last``, both others exact in bfloat16.

    Returns the artifact, one batch, and what exact arithmetic makes of it.
    """
    rng = np.random.default_rng(0)
    n = 16
    weight = spoiled(rng, (n, n))
    bias = rng.uniform(0, 1, n).astype(np.float32)
    # equal along the features, so that the sums consist of what bfloat16 drops
    x = np.broadcast_to(64 * rng.integers(1, 9, (1, 12, 1)), (1, 12, n)).astype(np.float32)
    constants = {"first.weight": np.eye(n, dtype=np.float32), "last.weight": np.eye(n, dtype=np.float32), "bias": bias}
    source, nodes = "middle.weight", []
    if storage == "float32":
        constants["middle.weight"] = weight
    elif storage == "float16":
        constants["middle.weight_float16"], source = weight.astype(np.float16), "unpacked"
        weight = weight.astype(np.float16).astype(np.float32)
        nodes.append(helper.make_node("Cast", ["middle.weight_float16"], ["unpacked"], to=TensorProto.FLOAT))
    else:
        codes, scale, source = np.rint(weight * 100).astype(np.int8), np.full(n, 0.01, np.float32), "unpacked"
        weight = codes.astype(np.float32) * scale
        constants.update({"middle.weight_int8": codes, "scale": scale, "zero": np.zeros(n, np.int8)})
        inputs = ["middle.weight_int8", "scale", "zero"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, ["unpacked"], axis=0 if kind == "conv" else 1))
    exact = np.maximum(x @ weight + bias, 0)
    if kind == "conv":
        return *_convolutions(constants, nodes, source, x), exact.transpose(0, 2, 1)
    nodes += [
        helper.make_node("MatMul", ["x", "first.weight"], ["a"]),
        helper.make_node("MatMul", ["a", source], ["b"]),
        helper.make_node("Add", ["b", "bias"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "last.weight"], ["y"]),
    ]
    if kind == "rows":
        return make_artifact(nodes, constants, (n,)), {"x": x[:, 0]}, exact[:, 0]
    return make_artifact(nodes, constants, x.shape[1:]), {"x": x}, exact


def _convolutions(constants, nodes, source, x):
    names = ("first.weight", "last.weight", "middle.weight", "middle.weight_float16", "middle.weight_int8")
    turned = {k: np.ascontiguousarray(v.T[:, :, None]) if k in names else v for k, v in constants.items()}
    nodes += [
        helper.make_node("Conv", ["x", "first.weight"], ["a"]),
        helper.make_node("Conv", ["a", source, "bias"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "last.weight"], ["y"]),
    ]
    return make_artifact(nodes, turned, (x.shape[2], x.shape[1])), {"x": np.ascontiguousarray(x.transpose(0, 2, 1))}


def precisions(device, artifact):
    """The precision that the runtime reports for each convolution and matrix product, in order."""
    model = device._compiler(artifact)().get_runtime_model()
    facts = [node.get_rt_info() for node in model.get_ordered_ops()]
    products = ("Convolution", "FullyConnected", "MatMul")
    return [fact["runtimePrecision"].value for fact in facts if fact["layerType"].value in products]


@pytest.mark.parametrize("kind", ["conv", "sequence"])
def test_one_layer_is_reported_in_float32_and_the_others_in_bfloat16(device, kind):
    artifact, _, _ = sensitive_network(kind)
    assert precisions(device, artifact) == ["bf16", "bf16", "bf16"]
    assert precisions(device, replace(artifact, full_precision=("middle",))) == ["bf16", "f32", "bf16"]


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
@pytest.mark.parametrize("kind", ["conv", "sequence", "rows"])
def test_the_sensitive_layer_computes_exactly_what_follows_rounds(device, kind, storage):
    artifact, batch, exact = sensitive_network(kind, storage)
    lowered = device.load(artifact).run(batch)[0]
    pinned = device.load(replace(artifact, full_precision=("middle",))).run(batch)[0]
    # the result of the layer is rounded once, when the next one reads it
    np.testing.assert_allclose(pinned, exact, rtol=ROUNDING, atol=1e-4)
    if storage == "float32":
        assert np.abs(lowered - exact).max() > 5 * np.abs(pinned - exact).max()


def test_a_graph_with_every_layer_in_float32_computes_what_the_float32_graph_computes(device):
    artifact, batch, exact = sensitive_network("sequence")
    every = replace(artifact, full_precision=("first", "middle", "last"))
    np.testing.assert_allclose(device.load(every).run(batch)[0], exact, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(device.load(replace(artifact, precision="float32")).run(batch)[0], exact, atol=1e-4)


def test_depthwise_convolutions_stay_in_float32_too(device):
    rng = np.random.default_rng(1)
    weight, x = spoiled(rng, (8, 1, 1, 5)), rng.integers(1, 9, (1, 8, 4, 20)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "first.weight"], ["a"], group=8),
        helper.make_node("Conv", ["a", "middle.weight"], ["b"], group=8),
        helper.make_node("Conv", ["b", "last.weight"], ["y"]),
    ]
    one = np.ones((8, 1, 1, 1), np.float32)
    constants = {
        "first.weight": one,
        "middle.weight": weight,
        "last.weight": np.eye(8, dtype=np.float32)[..., None, None],
    }
    artifact = replace(make_artifact(nodes, constants, x.shape[1:]), full_precision=("middle",))
    windows = np.lib.stride_tricks.sliding_window_view(x, 5, axis=3)  # (batch, channels, h, w, 5)
    exact = np.einsum("nchwk,ck->nchw", windows.astype(np.float64), weight[:, 0, 0])
    np.testing.assert_allclose(device.load(artifact).run({"x": x})[0], exact, rtol=ROUNDING, atol=1e-4)


def test_a_weight_that_two_operators_share_keeps_both_in_float32(device):
    rng = np.random.default_rng(2)
    constants = {
        "tied.weight": rng.standard_normal((16, 16)).astype(np.float32),
        "last.weight": np.eye(16, dtype=np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "tied.weight"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "tied.weight"], ["c"]),
        helper.make_node("MatMul", ["c", "last.weight"], ["y"]),
    ]
    artifact = replace(make_artifact(nodes, constants, (4, 16)), full_precision=("tied",))
    assert precisions(device, artifact) == ["f32", "f32", "bf16"]


def test_names_that_only_begin_alike_are_other_layers(device):
    artifact, _, _ = sensitive_network("sequence")
    with pytest.raises(MeasurementError, match=r"have no convolution or matrix product: middl$"):
        device.load(replace(artifact, full_precision=("middl",)))


def test_a_layer_that_is_not_there_is_named(device):
    artifact, _, _ = sensitive_network("conv")
    with pytest.raises(MeasurementError, match="have no convolution or matrix product: absent"):
        device.load(replace(artifact, full_precision=("middle", "absent")))


def test_what_the_plugin_lowers_nevertheless_is_found_out(device):
    artifact, _, _ = sensitive_network("sequence")
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "bf16"}
    unmarked = core.compile_model(core.read_model(artifact.model), "CPU", settings)
    pinned = pin_layers(openvino, core.read_model(artifact.model), ("middle",))
    with pytest.raises(MeasurementError, match="does not keep these layers in float32: middle"):
        check_pins(unmarked, pinned)


def test_the_files_of_openvino_carry_the_mark(device, tmp_path):
    artifact, _, _ = sensitive_network("sequence")
    core = openvino.Core()
    model = core.read_model(artifact.model)
    pinned = pin_layers(openvino, model, ("middle",))
    openvino.save_model(model, str(tmp_path / "model.xml"), compress_to_fp16=False)
    check_pins(core.compile_model(str(tmp_path / "model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"}), pinned)


def test_layers_can_stay_in_float32_where_they_would_not_be_anyway(device):
    assert device.capabilities.quantize["float32"] == {"conv", "depthwise_conv", "linear"}
    capabilities = build_device(Target("onnxruntime")).capabilities
    assert capabilities.why_not("float32", "conv") is not None


@pytest.fixture
def board(tmp_path):
    """The path of a board file that computes in bfloat16 too."""
    example = Path(find_spec("digits-board")).parent / "boards"
    (tmp_path / "xeon.jsonl").write_bytes((example / "xeon.jsonl").read_bytes())
    content = yaml.safe_load((example / "xeon.yaml").read_text())
    content["capabilities"]["precisions"] = ["float32", "bfloat16"]
    (tmp_path / "board.yaml").write_text(yaml.safe_dump(content))
    return str(tmp_path / "board.yaml")


@pytest.mark.parametrize("runtime", ["lut", "torch"])
def test_runtimes_that_cannot_mix_precisions_say_so(runtime, board):
    device = build_device(Target(runtime, device=board if runtime == "lut" else "cpu"))
    artifact, batch, _ = sensitive_network("sequence")
    if "bfloat16" not in device.capabilities.precisions:
        pytest.skip("this processor does not compute in bfloat16")
    with pytest.raises(MeasurementError, match="in one precision"):
        device.load(replace(artifact, full_precision=("middle",)))
    same = replace(artifact, precision="float32", full_precision=("middle",))
    assert device.load(same).run(batch)[0].shape == (1, 12, 16)


@pytest.mark.parametrize(("name", "layer"), [("cnn", "point"), ("cnn", "depthwise.0"), ("transformer", "up")])
@pytest.mark.parametrize("storage", [{}, {"weight_dtype": "int8"}, {"clusters": 16}, {"binary": "ternary"}])
def test_what_the_pipeline_pins_the_device_finds(device, prepared, name, layer, storage):
    pipeline = Pipeline(prepared[name], device.capabilities)
    treatments = {layer: Treatment(compute_dtype="float32", **storage)}
    artifact = pipeline.build(treatments, GraphTreatment(precision="bfloat16"))
    assert artifact.full_precision == (layer,)
    found = precisions(device, artifact)
    assert found.count("f32") == 1
    assert "bf16" in found
    assert not pipeline.build(treatments, GraphTreatment()).mixes_precisions
