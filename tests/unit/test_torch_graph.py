"""PyTorch computes what ONNX Runtime computes: operator by operator, and on what the pipeline builds."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from trimtab.compressors.artifact import Artifact
from trimtab.compressors.testing import random_inputs
from trimtab.core.errors import MeasurementError
from trimtab.evaluators.device import build_device
from trimtab.evaluators.torch_graph import translate
from trimtab.hw_profiles.target import OPTION_KINDS, Target
from trimtab.spaces.policy import GraphTreatment
from trimtab.spaces.treatment import QUANTIZE_OPTIONS

RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def integers(*values):
    return np.array(values, np.int64)


IMAGE = floats(2, 4, 7, 6)
ROWS = floats(2, 3, 8)

#: id → (operator, inputs that are computed, inputs that are constant or None, attributes)
CASES = {
    "Add": ("Add", [ROWS], [floats(8)], {}),
    "Add scalar": ("Add", [ROWS], [np.float32(2)], {}),
    "Sub": ("Sub", [ROWS, floats(2, 3, 1)], [], {}),
    "Mul": ("Mul", [ROWS], [floats(3, 1)], {}),
    "Div": ("Div", [ROWS], [np.float32(3)], {}),
    "Div whole": ("Div", [integers(-7, 7, 8)], [integers(2, 2, 3)], {}),
    "Pow": ("Pow", [ROWS], [np.float32(2)], {}),
    "Sqrt": ("Sqrt", [np.abs(ROWS)], [], {}),
    "Erf": ("Erf", [ROWS], [], {}),
    "Tanh": ("Tanh", [ROWS], [], {}),
    "Sigmoid": ("Sigmoid", [ROWS], [], {}),
    "HardSwish": ("HardSwish", [4 * ROWS], [], {}),
    "HardSigmoid": ("HardSigmoid", [4 * ROWS], [], {"alpha": 1 / 6, "beta": 0.5}),
    "LeakyRelu": ("LeakyRelu", [ROWS], [], {"alpha": 0.2}),
    "PRelu": ("PRelu", [IMAGE], [floats(4, 1, 1)], {}),
    "Relu": ("Relu", [ROWS], [], {}),
    "Gelu": ("Gelu", [ROWS], [], {}),
    "Gelu tanh": ("Gelu", [ROWS], [], {"approximate": "tanh"}),
    "Clip": ("Clip", [4 * ROWS], [np.float32(0), np.float32(6)], {}),
    "Clip above": ("Clip", [4 * ROWS], [None, np.float32(1)], {}),
    "Max": ("Max", [ROWS, floats(8)], [], {}),
    "Where": ("Where", [ROWS > 0, ROWS], [np.float32(-1)], {}),
    "Cast": ("Cast", [4 * ROWS], [], {"to": TensorProto.INT64}),
    "MatMul": ("MatMul", [ROWS], [floats(8, 5)], {}),
    "MatMul batched": ("MatMul", [floats(2, 3, 4, 5), floats(2, 3, 5, 6)], [], {}),
    "Gemm": ("Gemm", [floats(3, 8)], [floats(5, 8), floats(5)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "Gemm transposed": ("Gemm", [floats(8, 3)], [floats(8, 5)], {"transA": 1}),
    "Conv": ("Conv", [IMAGE], [floats(6, 4, 3, 3), floats(6)], {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
    "Conv uneven": ("Conv", [IMAGE], [floats(6, 4, 3, 3)], {"pads": [0, 1, 1, 0]}),
    "Conv same": ("Conv", [IMAGE], [floats(6, 4, 3, 2)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "Conv same lower": ("Conv", [IMAGE], [floats(6, 4, 2, 2)], {"auto_pad": "SAME_LOWER"}),
    "Conv dilated": ("Conv", [IMAGE], [floats(6, 4, 2, 2)], {"dilations": [2, 3]}),
    "Conv depthwise": ("Conv", [IMAGE], [floats(4, 1, 3, 3)], {"group": 4}),
    "Conv 1D": ("Conv", [ROWS], [floats(5, 3, 3)], {"pads": [1, 1]}),
    "ConvTranspose": ("ConvTranspose", [IMAGE], [floats(4, 5, 3, 3)], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "MaxPool": ("MaxPool", [IMAGE], [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "MaxPool uneven": ("MaxPool", [-np.abs(IMAGE)], [], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
    "MaxPool ceil": ("MaxPool", [IMAGE], [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "AveragePool": ("AveragePool", [IMAGE], [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "AveragePool counting": (
        "AveragePool", [IMAGE], [], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1},
    ),
    "GlobalAveragePool": ("GlobalAveragePool", [IMAGE], [], {}),
    "GlobalMaxPool": ("GlobalMaxPool", [IMAGE], [], {}),
    "BatchNormalization": (
        "BatchNormalization", [IMAGE], [floats(4), floats(4), floats(4), np.abs(floats(4)) + 1], {"epsilon": 1e-3},
    ),
    "LayerNormalization": ("LayerNormalization", [ROWS], [floats(8), floats(8)], {"epsilon": 1e-3}),
    "LayerNormalization two": ("LayerNormalization", [ROWS], [floats(3, 8)], {"axis": 1}),
    "Softmax": ("Softmax", [ROWS], [], {"axis": 1}),
    "LogSoftmax": ("LogSoftmax", [ROWS], [], {}),
    "ReduceMean": ("ReduceMean", [ROWS], [integers(-1)], {"keepdims": 0}),
    "ReduceMean all": ("ReduceMean", [ROWS], [], {}),
    "ReduceSum nothing": ("ReduceSum", [ROWS], [], {"noop_with_empty_axes": 1}),
    "ReduceL2": ("ReduceL2", [ROWS], [integers(1)], {}),
    "ArgMax": ("ArgMax", [ROWS], [], {"axis": -1, "keepdims": 0}),
    "Flatten": ("Flatten", [IMAGE], [], {"axis": 2}),
    "Reshape": ("Reshape", [ROWS], [integers(0, -1, 4)], {}),
    "Transpose": ("Transpose", [IMAGE], [], {"perm": [0, 2, 3, 1]}),
    "Transpose all": ("Transpose", [ROWS], [], {}),
    "Concat": ("Concat", [ROWS, floats(2, 1, 8)], [], {"axis": 1}),
    "Split": ("Split", [ROWS], [integers(2, 6)], {"axis": -1}),
    "Split evenly": ("Split", [ROWS], [], {"axis": 2, "num_outputs": 2}),
    "Slice": ("Slice", [ROWS], [integers(1), integers(100), integers(-1), integers(2)], {}),
    "Slice backwards": ("Slice", [ROWS], [integers(-1), integers(-100), integers(2), integers(-2)], {}),
    "Gather": ("Gather", [floats(5, 4), integers(-1, 0, 3)], [], {}),
    "Gather axis": ("Gather", [ROWS], [integers(1)[0]], {"axis": 1}),
    "GatherElements": ("GatherElements", [floats(2, 3)], [np.array([[0, -1], [1, 1]])], {"axis": 1}),
    "Unsqueeze": ("Unsqueeze", [ROWS], [integers(0, -1)], {}),
    "Squeeze": ("Squeeze", [floats(2, 1, 3, 1)], [integers(1)], {}),
    "Expand": ("Expand", [floats(3, 1)], [integers(2, 1, 4)], {}),
    "Tile": ("Tile", [ROWS], [integers(1, 2, 1)], {}),
    "Pad": ("Pad", [IMAGE], [integers(0, 0, 1, 2, 0, 0, 0, 1), np.float32(3)], {}),
    "Pad reflect": ("Pad", [IMAGE], [integers(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": "reflect"}),
    "Identity": ("Identity", [ROWS], [], {}),
    "QuantizeLinear": ("QuantizeLinear", [3 * ROWS], [np.float32(0.02), np.uint8(120)], {}),
    "QuantizeLinear halves": ("QuantizeLinear", [np.arange(-5, 5) / 2], [np.float32(1), np.int8(0)], {}),
    "DequantizeLinear": (
        "DequantizeLinear", [RNG.integers(-128, 127, (2, 3, 4)).astype(np.int8)],
        [np.array([0.1, 0.2, 0.3], np.float32), np.array([0, 1, -2], np.int8)], {"axis": 1},
    ),
    "DynamicQuantizeLinear": ("DynamicQuantizeLinear", [3 * ROWS], [], {}),
    "DynamicQuantizeLinear positive": ("DynamicQuantizeLinear", [np.abs(ROWS) + 1], [], {}),
    "MatMulInteger": (
        "MatMulInteger", [RNG.integers(0, 255, (2, 3, 8)).astype(np.uint8)],
        [RNG.integers(-127, 127, (8, 16)).astype(np.int8), np.uint8(7), np.int8(0)], {},
    ),
    "MatMulInteger shifted": (
        "MatMulInteger",
        [RNG.integers(0, 255, (3, 8)).astype(np.uint8), RNG.integers(-127, 127, (8, 4)).astype(np.int8)],
        [np.uint8(200), np.int8(5)], {},
    ),
}  # fmt: skip

N_OUTPUTS = {"Split": 2, "DynamicQuantizeLinear": 3}


def one_node(operator, computed, constant, attributes, opset=20):
    """Returns a model of one node and its feeds."""
    names, feeds, constants = [], {}, []
    for position, array in enumerate([*computed, *constant]):
        name = f"v{position}" if array is not None else ""
        names.append(name)
        if array is None:
            continue
        array = np.asarray(array, np.float32) if np.asarray(array).dtype == np.float64 else np.asarray(array)
        if position < len(computed):
            feeds[name] = array
        else:
            constants.append(numpy_helper.from_array(array, name))
    outputs = [f"y{k}" for k in range(N_OUTPUTS.get(operator, 1))]
    graph = helper.make_graph(
        [helper.make_node(operator, names, outputs, **attributes)],
        "one",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()],
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    model = onnx.shape_inference.infer_shapes(model)
    return model.SerializeToString(), feeds


def run_torch(model, feeds, dtype=torch.float32):
    translated = translate(model, dtype=dtype)
    with torch.inference_mode():
        outputs = translated.module(*[torch.from_numpy(feeds[value.name].copy()) for value in translated.inputs])
    return [output.numpy() for output in outputs]


def run_onnxruntime(model, feeds):
    """Plain ONNX Runtime without fused integers, and with float32 activations beside compressed weights."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, dict(feeds))


@pytest.mark.parametrize("name", CASES)
def test_an_operator_computes_what_onnxruntime_computes(name):
    model, feeds = one_node(*CASES[name])
    for got, want in zip(run_torch(model, feeds), run_onnxruntime(model, feeds), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=["cnn", "transformer"])
def name(request):
    return request.param


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("option", [option for option in QUANTIZE_OPTIONS if option != "float8"])
@pytest.mark.parametrize("families", [(), ("add", "pool", "activation", "matmul")], ids=["layers", "all"])
def test_what_the_pipeline_builds_computes_alike(pipeline, name, option, families, runtime):
    builder = pipeline(name, runtime)
    layers = [layer.name for layer in builder.prepared.layers if layer.kind in OPTION_KINDS[option]]
    built = builder.build(dict.fromkeys(layers, QUANTIZE_OPTIONS[option]), GraphTreatment(quantized_ops=families))
    feeds = random_inputs(name, 3, seed=5)
    got, want = run_torch(built.model, feeds)[0], run_onnxruntime(built.model, feeds)[0]
    # a value that lies between two codes may be rounded either way, and few do
    assert np.quantile(np.abs(got - want), 0.9) <= 1e-4 * np.abs(want).max()
    assert np.abs(got - want).max() <= 0.02 * np.abs(want).max()


@pytest.mark.parametrize("option", ["none", "int8", "int8_dynamic"])
def test_bfloat16_comes_near(pipeline, name, option):
    builder = pipeline(name)
    layers = [layer.name for layer in builder.prepared.layers if layer.kind in OPTION_KINDS[option]]
    built = builder.build(dict.fromkeys(layers, QUANTIZE_OPTIONS[option]), GraphTreatment())
    feeds = random_inputs(name, 3, seed=5)
    got, want = run_torch(built.model, feeds, torch.bfloat16)[0], run_onnxruntime(built.model, feeds)[0]
    assert got.dtype == np.float32
    # 8 bits of mantissa, a dozen operations in a row
    assert np.abs(got - want).max() <= 0.05 * np.abs(want).max()


def test_static_linear_layers_multiply_integers(pipeline):
    builder = pipeline("transformer")
    built = builder.build({"up": QUANTIZE_OPTIONS["int8"]}, GraphTreatment())
    called = [node.target.__name__ for node in translate(built.model).module.graph.nodes if node.op == "call_function"]
    assert called.count("multiply_scaled") == 1
    assert "dequantize" not in called


def test_weights_are_unpacked_once():
    weight, scale = RNG.integers(-127, 127, (8, 4)).astype(np.int8), np.float32(0.1)
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["wd"]), helper.make_node("MatMul", ["x", "wd"], ["y"])]
    graph = helper.make_graph(
        nodes, "weight",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(scale, "s")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    called = [node for node in translate(model).module.graph.nodes if node.op == "call_function"]
    assert len(called) == 1
    x = floats(3, 8)
    np.testing.assert_allclose(run_torch(model, {"x": x})[0], x @ (weight * scale), rtol=1e-5, atol=1e-5)


def test_the_lowest_number_stays_finite_in_bfloat16():
    lowest = np.finfo(np.float32).min
    model, feeds = one_node("Mul", [np.zeros((1, 4), np.float32)], [np.full((1, 4), lowest, np.float32)], {})
    assert np.isfinite(run_torch(model, feeds, torch.bfloat16)[0]).all()


@pytest.mark.parametrize("operator", ["Identity", "Flatten", "Transpose"])
def test_outputs_have_memory_of_their_own(operator):
    model, feeds = one_node(operator, [ROWS], [], {})
    array = feeds["v0"].copy()
    output = build_device(Target("torch")).load(Artifact(model)).run({"v0": array})[0]
    assert not np.shares_memory(output, array)


def test_unknown_operators_are_refused_by_name():
    model, _ = one_node("Det", [floats(3, 3)], [], {})
    with pytest.raises(MeasurementError, match=r"no operator onnx\.Det"):
        translate(model)


def test_old_opsets_are_refused():
    model, _ = one_node("Relu", [ROWS], [], {}, opset=11)
    with pytest.raises(MeasurementError, match="of opset 13 or later; got opset 11"):
        translate(model)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_run_leaves_the_number_of_threads_as_it_was(n_threads):
    model, feeds = one_node("Relu", [ROWS], [], {})
    executable = build_device(Target("torch", threads=n_threads)).load(Artifact(model))
    before = torch.get_num_threads()
    executable.run(feeds)
    assert torch.get_num_threads() == before


def test_inputs_that_cannot_be_written_are_read(recwarn):
    model, feeds = one_node("Relu", [ROWS], [], {})
    array = feeds["v0"].copy()
    array.flags.writeable = False
    np.testing.assert_array_equal(
        build_device(Target("torch")).load(Artifact(model)).run({"v0": array})[0], np.maximum(ROWS, 0)
    )
    assert not list(recwarn)
