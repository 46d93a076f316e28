"""Static int8 linear layers run as integers in ONNX Runtime: their bias is int32, and a Relu behind them quantised."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from trimtab.compressors.pipeline import Pipeline
from trimtab.compressors.prepared import prepare_model
from trimtab.compressors.source import ModelSource
from trimtab.evaluators.device import build_device
from trimtab.hw_profiles.target import Target
from trimtab.spaces.policy import GraphTreatment
from trimtab.spaces.treatment import QUANTIZE_OPTIONS, Treatment

_N_IN, _N_OUT = 48, 32


def _linear(shape, bias, *, rows=("n",), relu=False):
    """A model of one linear layer ``a`` over inputs of (batch, *shape)."""
    weight = np.random.default_rng(0).normal(0, 0.1, (_N_IN, _N_OUT)).astype(np.float32)
    operands, total = (["a.bias", "h"], "s") if relu else (["h", "a.bias"], "y")
    nodes = [helper.make_node("MatMul", ["x", "a.weight"], ["h"], "a"),
             helper.make_node("Add", operands, [total], "a_bias")]  # fmt: skip
    nodes += [helper.make_node("Relu", ["s"], ["y"], "relu")] if relu else []
    graph = helper.make_graph(
        nodes, "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*rows, *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*rows, *shape[:-1], _N_OUT])],
        [numpy_helper.from_array(weight, "a.weight"), numpy_helper.from_array(bias, "a.bias")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ModelSource(model.SerializeToString())


def _build(source, shape, option="int8", *, runtime="onnxruntime"):
    """Returns inputs, the original artifact and the treated one."""
    x = np.random.default_rng(1).normal(size=(8, *shape)).astype(np.float32)
    prepared = prepare_model(source, {"x": x})
    pipeline = Pipeline(prepared, build_device(Target(runtime)).capabilities)
    treatments = {"a": QUANTIZE_OPTIONS[option]}
    return x, pipeline.build({}, GraphTreatment()), pipeline.build(treatments, GraphTreatment())


def _executed(artifact):
    """The operators that ONNX Runtime executes for the artifact."""
    return [kernel.op.rpartition(".")[2] for kernel in build_device(Target("onnxruntime")).lower(artifact).kernels]


def _largest_difference(x, original, treated, runtime="onnxruntime"):
    device = build_device(Target(runtime, batch_size=len(x)))
    want, got = (device.load(artifact).run({"x": x})[0] for artifact in (original, treated))
    return np.abs(got - want).max() / np.abs(want).max()


_BIAS = np.linspace(-1, 1, _N_OUT, dtype=np.float32)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [_BIAS, _BIAS[None]], ids=["(n,)", "(1, n)"])
def test_a_linear_layer_over_rows_runs_in_integers(bias, relu):
    _, _, treated = _build(_linear((_N_IN,), bias, relu=relu), (_N_IN,))
    executed = _executed(treated)
    assert "QGemm" in executed
    assert not {"Gemm", "MatMul", "DequantizeLinear"} & set(executed)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("shape", [(_N_IN,), (5, _N_IN)], ids=["rows", "sequences"])
def test_it_stays_close_to_float(shape, runtime):
    x, original, treated = _build(_linear(shape, _BIAS), shape, runtime=runtime)
    assert _largest_difference(x, original, treated, runtime) < 0.02


@pytest.mark.parametrize("relu", [False, True])
def test_a_linear_layer_over_sequences_runs_in_integers(relu):
    _, _, treated = _build(_linear((5, _N_IN), _BIAS, relu=relu), (5, _N_IN))
    executed = _executed(treated)
    assert "QGemm" in executed
    assert not {"Gemm", "MatMul", "DequantizeLinear"} & set(executed)


def _two_layers(bias):
    """x · a (+ bias) → Relu → · c, over rows."""
    rng = np.random.default_rng(3)
    weights = {name: rng.normal(0, 0.2, (_N_IN, _N_IN)).astype(np.float32) for name in ("a.weight", "c.weight")}
    nodes = [helper.make_node("MatMul", ["x", "a.weight"], ["h"], "a")]
    nodes += [helper.make_node("Add", ["h", "a.bias"], ["s"], "a_bias")] if bias else []
    nodes += [helper.make_node("Relu", ["s" if bias else "h"], ["r"], "relu"),
              helper.make_node("MatMul", ["r", "c.weight"], ["y"], "c")]  # fmt: skip
    constants = {**weights, "a.bias": rng.normal(size=_N_IN).astype(np.float32)} if bias else weights
    graph = helper.make_graph(
        nodes, "two", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", _N_IN])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", _N_IN])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ModelSource(model.SerializeToString())


@pytest.mark.parametrize("bias", [False, True])
def test_a_relu_between_an_integer_layer_and_a_float_one_keeps_neither_from_it(bias):
    x, original, treated = _build(_two_layers(bias), (_N_IN,))
    executed = _executed(treated)
    assert {"QGemm", "MatMulIntegerToFloat", "QLinearMatMul"} & set(executed)
    assert executed.count("MatMul") + executed.count("Gemm") == 1
    assert _largest_difference(x, original, treated) < 0.03


def test_openvino_gets_no_rounding_behind_the_relu():
    _, _, treated = _build(_two_layers(True), (_N_IN,), runtime="openvino")
    assert [n.op_type for n in onnx.load_from_string(treated.model).graph.node].count("QuantizeLinear") == 1


def test_an_int8_embedding_may_stand_before_an_int8_layer():
    rng = np.random.default_rng(4)
    nodes = [helper.make_node("Gather", ["e.weight", "x"], ["m"], "e"),
             helper.make_node("MatMul", ["m", "a.weight"], ["y"], "a")]  # fmt: skip
    graph = helper.make_graph(
        nodes, "lookup", [helper.make_tensor_value_info("x", TensorProto.INT64, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6, _N_OUT])],
        [numpy_helper.from_array(rng.normal(size=(40, _N_IN)).astype(np.float32), "e.weight"),
         numpy_helper.from_array(rng.normal(0, 0.1, (_N_IN, _N_OUT)).astype(np.float32), "a.weight")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = rng.integers(0, 40, (8, 6))
    prepared = prepare_model(ModelSource(model.SerializeToString()), {"x": x})
    pipeline = Pipeline(prepared, build_device(Target("onnxruntime")).capabilities)
    treatments = {"e": QUANTIZE_OPTIONS["int8_weight"], "a": QUANTIZE_OPTIONS["int8"]}
    treated = pipeline.build(treatments, GraphTreatment())
    assert _largest_difference(x, pipeline.build({}, GraphTreatment()), treated) < 0.03


@pytest.mark.parametrize("option", ["int8_weight", "int8_dynamic", "float16"])
def test_other_treatments_keep_the_float_bias(option):
    _, _, treated = _build(_linear((_N_IN,), _BIAS), (_N_IN,), option)
    assert "a.bias" in {t.name for t in onnx.load_from_string(treated.model).graph.initializer}


def test_openvino_keeps_the_float_bias():
    _, _, treated = _build(_linear((_N_IN,), _BIAS), (_N_IN,), runtime="openvino")
    assert "a.bias" in {t.name for t in onnx.load_from_string(treated.model).graph.initializer}


def test_a_bias_for_each_row_stays_as_it_is():
    rows = np.random.default_rng(2).normal(size=(1, 1)).astype(np.float32)
    x, original, treated = _build(_linear((_N_IN,), rows), (_N_IN,))
    assert _largest_difference(x, original, treated) < 0.02


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_a_bias_that_int32_cannot_hold_raises_the_scale_of_the_weight(granularity):
    # input scale about 7/255 · weight scale about 0.3/127: a step of 6e-5, of which int32 holds 1.4e5
    bias = np.where(np.arange(_N_OUT) % 2, np.float32(1e6), np.float32(-1e6)).astype(np.float32)
    x = np.random.default_rng(1).normal(size=(8, _N_IN)).astype(np.float32)
    pipeline = Pipeline(
        prepare_model(_linear((_N_IN,), bias), {"x": x}), build_device(Target("onnxruntime")).capabilities
    )
    treatment = Treatment(weight_dtype="int8", activation_dtype="int8", granularity=granularity)
    treated = pipeline.build({"a": treatment}, GraphTreatment())
    got = build_device(Target("onnxruntime", batch_size=8)).load(treated).run({"x": x})[0]
    np.testing.assert_allclose(got, np.broadcast_to(bias, got.shape), rtol=1e-3)


def test_a_bias_that_two_layers_share_serves_both():
    rng = np.random.default_rng(3)
    weights = [rng.normal(0, scale, (_N_IN, _N_IN)).astype(np.float32) for scale in (0.1, 0.5)]
    bias = rng.normal(size=_N_IN).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "a.weight"], ["h"], "a"),
             helper.make_node("Add", ["h", "b"], ["s"], "p"),
             helper.make_node("MatMul", ["s", "c.weight"], ["k"], "c"),
             helper.make_node("Add", ["k", "b"], ["y"], "q")]  # fmt: skip
    graph = helper.make_graph(
        nodes, "shared", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", _N_IN])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", _N_IN])],
        [numpy_helper.from_array(weights[0], "a.weight"), numpy_helper.from_array(weights[1], "c.weight"),
         numpy_helper.from_array(bias, "b")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = rng.normal(size=(8, _N_IN)).astype(np.float32)
    prepared = prepare_model(ModelSource(model.SerializeToString()), {"x": x})
    pipeline = Pipeline(prepared, build_device(Target("onnxruntime")).capabilities)
    treatments = {layer.name: QUANTIZE_OPTIONS["int8"] for layer in prepared.layers}
    treated = pipeline.build(treatments, GraphTreatment())
    assert _executed(treated).count("QGemm") == 2
    assert _largest_difference(x, pipeline.build({}, GraphTreatment()), treated) < 0.03
