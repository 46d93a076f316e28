"""What the pipeline builds for TensorRT keeps its rules, and each rule notices a graph that breaks it."""

import re

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from trimtab.compressors.pipeline import Pipeline
from trimtab.evaluators.tensorrt_device import tensorrt_capabilities
from trimtab.evaluators.tensorrt_rules import check_tensorrt_rules, find_codes
from trimtab.hw_profiles.target import Capabilities
from trimtab.spaces.policy import EXTRA_OPS, GraphTreatment
from trimtab.spaces.treatment import QUANTIZE_OPTIONS

#: as on a GPU of the Hopper generation
CAPABILITIES = tensorrt_capabilities(compute_capability=(9, 0))


def build(prepared, scheme, option, families=(), calibration="minmax"):
    kinds = CAPABILITIES.quantize.get(option, {"linear"})
    layers = [layer.name for layer in prepared.layers if layer.kind in kinds]
    assert layers
    treatments = dict.fromkeys(layers, QUANTIZE_OPTIONS[option])
    graph = GraphTreatment(quantized_ops=families, calibration=calibration)
    return Pipeline(prepared, scheme).build(treatments, graph).model


@pytest.mark.parametrize("name", ["cnn", "transformer"])
@pytest.mark.parametrize("option", sorted(tensorrt_capabilities().quantize))
@pytest.mark.parametrize(
    "families", [(), *[(family,) for family in EXTRA_OPS], tuple(EXTRA_OPS)], ids=lambda f: "+".join(f)
)
@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy", "mse"])
def test_the_pipeline_breaks_no_rule(prepared, name, option, families, calibration):
    assert check_tensorrt_rules(build(prepared[name], CAPABILITIES, option, families, calibration)) == []


@pytest.mark.parametrize("name", ["cnn", "transformer"])
@pytest.mark.parametrize("families", [(), tuple(EXTRA_OPS)], ids=lambda f: "+".join(f))
def test_the_pipeline_breaks_no_rule_in_float8(prepared, name, families):
    model = build(prepared[name], CAPABILITIES, "float8", families)
    assert check_tensorrt_rules(model) == []
    assert "float8" in find_codes(model)


def test_the_schemes_of_other_runtimes_break_rules(prepared):
    every = tensorrt_capabilities().quantize
    x86 = check_tensorrt_rules(build(prepared["cnn"], Capabilities(every), "int8"))
    assert any("zero points must be 0" in violation for violation in x86)
    assert any("must be signed" in violation and "UINT8" in violation for violation in x86)
    assert any("bias must be floating point" in violation for violation in x86)
    symmetric = Capabilities(every, activation_codes="symmetric", quantize_conv_outputs=False)
    assert any(
        "got UINT8" in violation for violation in check_tensorrt_rules(build(prepared["cnn"], symmetric, "int8"))
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("int8_weight", "int8 weights need int8 inputs"),
        ("int8_dynamic", "TensorRT quantises with QuantizeLinear and DequantizeLinear only"),
        ("int4_weight", "TensorRT has no operators of com.microsoft"),
    ],
)
def test_options_that_are_not_offered_break_rules(prepared, option, message):
    violations = check_tensorrt_rules(build(prepared["transformer"], tensorrt_capabilities(), option))
    assert any(message in violation for violation in violations)


def test_float8_is_offered_from_the_first_gpus_that_have_it():
    offered = {
        found: "float8" in tensorrt_capabilities(compute_capability=found).quantize
        for found in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0))
    }
    assert offered == {(8, 0): False, (8, 6): False, (8, 9): True, (9, 0): True, (10, 0): True}
    assert CAPABILITIES.why_not("float8", "depthwise_conv") is not None


# -- one rule at a time: a quantised convolution that keeps all of them, and ways to break each ------------


def convolution(replaced=None, axis=0, bias="float", reader="DequantizeLinear", quantises_input=True):
    """A model of one convolution between DequantizeLinear nodes; constants may be replaced."""
    constants = {
        "xs": np.float32(0.1), "xz": np.int8(0),
        "w": np.ones((4, 3, 3, 3), np.int8), "ws": np.full(4, 0.1, np.float32), "wz": np.zeros(4, np.int8),
        "b": np.zeros(4, np.float32), "bq": np.zeros(4, np.int32), "bs": np.full(4, 0.01, np.float32),
        "bz": np.zeros(4, np.int32), **(replaced or {}),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], name="quantize"),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], name="activation"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="weight", axis=axis),
    ]
    if reader != "DequantizeLinear":
        nodes.append(helper.make_node(reader, ["xq"], ["read"], name="reader"))
    if bias == "int32":
        nodes.append(helper.make_node("DequantizeLinear", ["bq", "bs", "bz"], ["bd"], name="bias", axis=0))
    sources = ["xd" if quantises_input else "x", "wd", "bd" if bias == "int32" else "b"]
    nodes.append(helper.make_node("Conv", sources, ["y"], name="conv"))
    graph = helper.make_graph(
        nodes, "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items() if array is not None],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def test_a_graph_that_keeps_the_rules_is_not_blamed():
    assert check_tensorrt_rules(convolution()) == []
    assert find_codes(convolution()) == {"int8"}


# -- the same in float8 -------------------------------------------------------------------------------------

E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2


def float8(**how):
    """The convolution of `convolution` in float8; ``window`` is a side of its kernel, ``group`` its groups."""
    window, group = how.pop("window", 3), how.pop("group", 1)
    replaced = {
        "xz": np.zeros((), E4M3), "w": np.ones((3 * group, 3 // group, window, window), E4M3),
        "ws": np.full(3 * group, 0.1, np.float32), "wz": np.zeros(3 * group, E4M3),
        "b": np.zeros(3 * group, np.float32),
        **how.pop("replaced", {}),
    }  # fmt: skip
    model = onnx.load_model_from_string(convolution(replaced, **how))
    model.opset_import[0].version = 19
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    conv.attribute.append(helper.make_attribute("group", group))
    return model.SerializeToString()


def test_float8_keeps_the_rules_too():
    assert check_tensorrt_rules(float8()) == []
    assert find_codes(float8()) == {"float8"}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"window": 7}, "'conv': float8 kernels have at most 32 elements, got 49; take int8"),
        ({"group": 3}, "'conv': float8 convolutions have one group, got 3; take int8"),
        ({"quantises_input": False}, "'conv': float8 weights need float8 inputs"),
        ({"replaced": {"xz": np.int8(0)}}, "'conv': float8 weights need float8 inputs"),
        (
            {"replaced": {"xz": np.zeros((), E5M2)}},
            "'quantize': codes must be signed, int8 or float8 .* got FLOAT8E5M2",
        ),
        ({"bias": "int32"}, "'conv': the bias must be floating point"),
        ({"replaced": {"wz": np.ones(3, E4M3)}}, "'weight': zero points must be 0, got 1"),
    ],
)
def test_each_rule_of_float8_notices_its_violation(broken, message):
    violations = "\n".join(check_tensorrt_rules(float8(**broken)))
    assert re.search(message, violations), violations


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"replaced": {"xz": np.int8(3)}}, "'quantize': zero points must be 0, got 3"),
        ({"replaced": {"wz": np.array([0, 0, -2, 0], np.int8)}}, "'weight': zero points must be 0, got -2"),
        ({"replaced": {"xz": np.uint8(0)}}, "'activation': codes must be signed, .* got UINT8"),
        ({"replaced": {"w": np.ones((4, 3, 3, 3), np.uint8), "wz": np.zeros(4, np.uint8)}}, "'weight': codes .* UINT8"),
        ({"replaced": {"xs": np.float32(0)}}, "'quantize': scales must be positive and finite, the smallest is 0"),
        ({"replaced": {"ws": np.array([1, -1, 1, 1], np.float32)}}, "'weight': scales must be positive"),
        ({"replaced": {"ws": np.array([1, np.inf, 1, 1], np.float32)}}, "'weight': scales must be positive and finite"),
        ({"replaced": {"xs": None}}, "'quantize': the scale must be constant"),
        ({"replaced": {"wz": None}}, "'weight': the zero point must be constant"),
        ({"replaced": {"wz": np.zeros(1, np.int8)}}, "'weight': 4 scales need as many zero points, got 1"),
        (
            {"replaced": {"xs": np.full(3, 0.1, np.float32), "xz": np.zeros(3, np.int8)}},
            "'quantize': activations have one scale for all, got 3",
        ),
        ({"axis": 1}, "'weight': 4 scales do not fit axis 1"),
        (
            {"replaced": {"w": np.ones((4, 4, 3, 3), np.int8)}, "axis": 1},
            "'weight': the weight of Conv 'conv' has its channels on axis 0, got 1",
        ),
        ({"bias": "int32"}, "'conv': the bias must be floating point"),
        ({"bias": "int32"}, "'bias': codes must be signed, .* got INT32"),
        ({"reader": "Cast"}, "'quantize': codes may be read by DequantizeLinear only, got Cast 'reader'"),
        ({"quantises_input": False}, "'conv': int8 weights need int8 inputs"),
    ],
)
def test_each_rule_notices_its_violation(broken, message):
    violations = "\n".join(check_tensorrt_rules(convolution(**broken)))
    assert re.search(message, violations), violations


@pytest.mark.parametrize("operator", ["QLinearConv", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"])
def test_operators_that_tensorrt_lacks_are_named(operator):
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"], name="it")], "foreign", [], [])
    violations = check_tensorrt_rules(helper.make_model(graph).SerializeToString())
    assert violations == [f"{operator} 'it': TensorRT quantises with QuantizeLinear and DequantizeLinear only"]
