"""Declared fusion rules on tiny graphs: the kernels are worked out by hand."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from trimtab.core.errors import MeasurementError
from trimtab.evaluators.lut_lowering import lower_by_rule
from trimtab.hw_profiles.boards.fusion_rule import parse_rule
from trimtab.hw_profiles.kernels.chain_kernel import describe_chain

CONV_RULE = {"patterns": ["Conv > Add? > Relu|Clip?"], "free": ["Flatten", "Reshape"]}


def model(nodes, inputs, outputs, **constants):
    """Nodes as (op, inputs, outputs, attributes); inputs and outputs as name → shape."""
    graph = helper.make_graph(
        [helper.make_node(op, read, written, name=written[0], **attributes) for op, read, written, attributes in nodes],
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def conv(x, y, weight="w", **attributes):
    return ("Conv", [x, weight], [y], {"pads": [1, 1, 1, 1], **attributes})


def weights(n_out=4, n_in=4):
    return np.zeros((n_out, n_in, 3, 3), np.float32)


def lower(proto, rule=None, **settings):
    return lower_by_rule(proto, parse_rule(CONV_RULE if rule is None else rule), **{"batch_size": 1, **settings})


def chains(proto, rule=None):
    return [describe_chain(kernel) for kernel in lower(proto, rule).graph.kernels]


IMAGE = {"x": ["batch", 4, 8, 8]}


def test_a_chain_becomes_one_kernel_with_its_shapes_and_attributes():
    proto = model([conv("x", "c", strides=[2, 2]), ("Relu", ["c"], ["y"], {})], IMAGE, ["y"], w=weights(6))
    [step] = lower(proto, batch_size=3).graph.steps
    assert step.kernel.to_json() == {
        "op": "Conv",
        "inputs": ["float32[3,4,8,8]", "float32[6,4,3,3]!"],
        "outputs": ["float32[3,6,4,4]"],
        "attributes": {"activation": "Relu", "fused": "Relu", "n_fused": 2, "pads": [1, 1, 1, 1], "strides": [2, 2]},
    }
    assert (step.reads, step.writes) == (("x", ""), ("y",))


def test_biases_bounds_and_default_attributes_are_not_part_of_a_kernel():
    plain = model([conv("x", "c"), ("Clip", ["c"], ["y"], {})], IMAGE, ["y"], w=weights())
    nodes = [
        ("Conv", ["x", "w", "b"], ["c"], {"pads": [1, 1, 1, 1], "group": 1, "strides": [1, 1], "kernel_shape": [3, 3]}),
        ("Clip", ["c", "low", "high"], ["y"], {}),
    ]
    bounds = {"low": np.float32(0), "high": np.float32(6)}
    stated = model(nodes, IMAGE, ["y"], w=weights(), b=np.zeros(4, np.float32), **bounds)
    assert lower(plain).graph.kernels == lower(stated).graph.kernels


def test_the_first_pattern_takes_what_it_can():
    nodes = [conv("x", "c"), ("Relu", ["c"], ["r"], {}), ("Sigmoid", ["r"], ["y"], {})]
    proto = model(nodes, IMAGE, ["y"], w=weights())
    assert chains(proto, {"patterns": ["Conv > Relu", "Relu > Sigmoid"]}) == ["Conv+Relu", "Sigmoid"]
    assert chains(proto, {"patterns": ["Relu > Sigmoid", "Conv > Relu"]}) == ["Conv", "Relu+Sigmoid"]
    assert chains(proto, {}) == ["Conv", "Relu", "Sigmoid"]


def test_a_residual_add_joins_the_convolution_that_runs_last():
    nodes = [
        conv("x", "a"), conv("x", "b", "v"), ("Add", ["a", "b"], ["s"], {}), ("Relu", ["s"], ["y"], {}),
    ]  # fmt: skip
    lowering = lower(model(nodes, IMAGE, ["y"], w=weights(), v=weights()))
    assert [describe_chain(kernel) for kernel in lowering.graph.kernels] == ["Conv", "Conv+Add+Relu"]
    assert lowering.graph.steps[1].reads == ("x", "", "a")


def test_a_value_that_others_read_ends_a_chain():
    nodes = [conv("x", "c"), ("Relu", ["c"], ["r"], {}), ("Add", ["r", "c"], ["y"], {})]
    assert chains(model(nodes, IMAGE, ["y"], w=weights())) == ["Conv", "Relu", "Add"]
    nodes = [conv("x", "c"), ("Relu", ["c"], ["y"], {})]
    assert chains(model(nodes, IMAGE, ["y", "c"], w=weights())) == ["Conv", "Relu"]


def test_a_value_may_be_read_twice_inside_a_kernel():
    nodes = [conv("x", "c"), ("Sigmoid", ["c"], ["s"], {}), ("Mul", ["c", "s"], ["y"], {})]
    assert chains(model(nodes, IMAGE, ["y"], w=weights()), {"patterns": ["Conv > Sigmoid > Mul"]}) == [
        "Conv+Sigmoid+Mul"
    ]


def test_free_operators_cost_nothing_and_are_seen_through():
    nodes = [conv("x", "c"), ("Flatten", ["c"], ["f"], {}), ("Relu", ["f"], ["y"], {})]
    lowering = lower(model(nodes, IMAGE, ["y"], w=weights()))
    assert [describe_chain(kernel) for kernel in lowering.graph.kernels] == ["Conv+Relu"]
    assert lowering.free == {1}
    assert lowering.members == ((0, 2),)


def test_what_depends_on_constants_alone_is_folded_where_the_rule_says_so():
    nodes = [("Cast", ["half"], ["w"], {"to": TensorProto.FLOAT}), conv("x", "y")]
    proto = model(nodes, IMAGE, ["y"], half=weights().astype(np.float16))
    assert chains(proto) == ["Conv"]
    assert chains(proto, {**CONV_RULE, "fold_constants": False}) == ["Cast", "Conv"]


# -- integers --------------------------------------------------------------------------------------


def quantized(x, tag, dtype=np.uint8):
    """QuantizeLinear and DequantizeLinear of a value; the twin is called as the value with a d."""
    return [
        ("QuantizeLinear", [x, "s", "z"], [f"{tag}_q"], {}),
        ("DequantizeLinear", [f"{tag}_q", "s", "z"], [f"{tag}_d"], {}),
    ]


SCALES = {"s": np.float32(0.1), "z": np.uint8(0), "ws": np.ones(4, np.float32), "wz": np.zeros(4, np.int8)}
UNPACK = ("DequantizeLinear", ["wq", "ws", "wz"], ["w"], {"axis": 0})
INT8_WEIGHT = {**SCALES, "wq": np.zeros((4, 4, 3, 3), np.int8)}


def describe(lowering):
    return [
        f"{describe_chain(kernel)}:{'/'.join(t.dtype for t in kernel.inputs)}>{kernel.outputs[0].dtype}"
        for kernel in lowering.graph.kernels
    ]


def qdq_conv(*, output=True, weight=True):
    """x → Q → DQ → Conv → Relu (→ Q → DQ) → Sigmoid → y."""
    tail = quantized("r", "r") if output else []
    nodes = [
        *quantized("x", "x"), *([UNPACK] if weight else []), conv("x_d", "c"), ("Relu", ["c"], ["r"], {}), *tail,
        ("Sigmoid", ["r_d" if output else "r"], ["y"], {}),
    ]  # fmt: skip
    return model(nodes, IMAGE, ["y"], **(INT8_WEIGHT if weight else {**SCALES, "w": weights()}))


INTEGER_CONV = "Conv+Relu:uint8/int8>uint8"
FLOAT_CONV = "Conv+Relu:float32/float32>float32"
IN, OUT = "QuantizeLinear:float32>uint8", "DequantizeLinear:uint8>float32"


@pytest.mark.parametrize(
    ("need", "model_of", "expected"),
    [
        ("all", {}, [IN, INTEGER_CONV, OUT, "Sigmoid:float32>float32"]),
        ("all", {"output": False}, [IN, OUT, FLOAT_CONV, "Sigmoid:float32>float32"]),
        ("all", {"weight": False}, [IN, OUT, FLOAT_CONV, IN, OUT, "Sigmoid:float32>float32"]),
        ("activations", {"weight": False}, [IN, INTEGER_CONV, OUT, "Sigmoid:float32>float32"]),
        ("inputs", {"output": False}, [IN, "Conv+Relu:uint8/int8>float32", "Sigmoid:float32>float32"]),
        ("inputs", {"weight": False}, [IN, OUT, FLOAT_CONV, IN, OUT, "Sigmoid:float32>float32"]),
        ("inputs", {}, [IN, INTEGER_CONV, OUT, "Sigmoid:float32>float32"]),
        (None, {}, [IN, OUT, FLOAT_CONV, IN, OUT, "Sigmoid:float32>float32"]),
    ],
)
def test_conversions_are_absorbed_by_kernels_that_run_as_integers(need, model_of, expected):
    rule = {**CONV_RULE, "integer": {} if need is None else {"Conv": need}}
    assert describe(lower(qdq_conv(**model_of), rule)) == expected


def test_longer_chains_can_be_kept_from_integers():
    nodes = [
        *quantized("x", "x"), UNPACK, conv("x_d", "c"), ("Add", ["c", "x_d"], ["a"], {}), *quantized("a", "a"),
        ("Sigmoid", ["a_d"], ["y"], {}),
    ]  # fmt: skip
    proto, tail = model(nodes, IMAGE, ["y"], **INT8_WEIGHT), "Sigmoid:float32>float32"
    assert describe(lower(proto, {**CONV_RULE, "integer": {"Conv": "all"}})) == [
        IN, "Conv+Add:uint8/int8/uint8>uint8", OUT, tail,
    ]  # fmt: skip
    assert describe(lower(proto, {**CONV_RULE, "integer": {"Conv": "all", "Conv+Add": "never"}})) == [
        IN, OUT, "Conv+Add:float32/float32/float32>float32", IN, OUT, tail,
    ]  # fmt: skip


def test_a_residual_that_is_not_quantised_keeps_a_kernel_from_integers():
    nodes = [
        ("Relu", ["x"], ["r"], {}), *quantized("x", "x"), UNPACK, conv("x_d", "c"), ("Add", ["c", "r"], ["a"], {}),
        *quantized("a", "a"), ("Sigmoid", ["a_d"], ["y"], {}),
    ]  # fmt: skip
    kernels = describe(lower(model(nodes, IMAGE, ["y"], **INT8_WEIGHT), {**CONV_RULE, "integer": {"Conv": "all"}}))
    assert "Conv+Add:float32/float32/float32>float32" in kernels


def test_a_compressed_weight_can_be_read_as_it_is():
    proto = model([UNPACK, conv("x", "y")], IMAGE, ["y"], **INT8_WEIGHT)
    assert describe(lower(proto, {**CONV_RULE, "integer": {"Conv": "weight"}})) == ["Conv:float32/int8>float32"]
    assert describe(lower(proto)) == ["Conv:float32/float32>float32"]
    unfolded = {**CONV_RULE, "fold_constants": False}
    assert describe(lower(proto, unfolded)) == ["DequantizeLinear:int8>float32", "Conv:float32/float32>float32"]


def test_an_output_that_is_also_read_as_float_is_not_quantised_in_the_kernel():
    nodes = [*quantized("x", "x"), UNPACK, conv("x_d", "c"), *quantized("c", "c"), ("Add", ["c", "c_d"], ["y"], {})]
    rule = {"patterns": ["Conv > Relu?"], "integer": {"Conv": "all"}}
    assert describe(lower(model(nodes, IMAGE, ["y"], **INT8_WEIGHT), rule)) == [
        IN, OUT, "Conv:float32/float32>float32", IN, OUT, "Add:float32/float32>float32",
    ]  # fmt: skip


def test_one_dequantisation_serves_all_that_read_floats():
    nodes = [*quantized("x", "x"), ("Relu", ["x_d"], ["a"], {}), ("Sigmoid", ["x_d"], ["b"], {})]
    lowering = lower(model(nodes, IMAGE, ["a", "b"], **SCALES), {})
    assert describe(lowering) == [IN, OUT, "Relu:float32>float32", "Sigmoid:float32>float32"]


# -- what cannot be lowered ------------------------------------------------------------------------


def test_a_shape_that_stays_open_names_the_node():
    proto = model([("Relu", ["x"], ["y"], {})], {"x": ["batch", "length"]}, ["y"])
    with pytest.raises(MeasurementError, match=r"the input 'x' is not fixed \(1×length\)"):
        lower(proto)
    proto = model([("NonZero", ["x"], ["n"], {}), ("Cast", ["n"], ["y"], {"to": 1})], {"x": [1, 4]}, ["y"])
    with pytest.raises(MeasurementError, match=r"'n', which node 'n' \(NonZero\) writes"):
        lower(proto)


def test_an_operator_that_onnx_does_not_know_names_the_node():
    graph = helper.make_graph(
        [helper.make_node("Secret", ["x"], ["y"], name="odd", domain="acme")],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [onnx.ValueInfoProto(name="y")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    with pytest.raises(MeasurementError, match=r"'y', which node 'odd' \(acme\.Secret\) writes"):
        lower(proto)


def test_garbage_is_refused():
    with pytest.raises(MeasurementError, match="cannot be read"):
        lower(b"garbage")


def test_the_precision_is_that_of_what_stays_float():
    proto = model([conv("x", "y")], IMAGE, ["y"], w=weights())
    [kernel] = lower(proto, precision="float16").graph.kernels
    assert [tensor.dtype for tensor in (*kernel.inputs, *kernel.outputs)] == ["float16"] * 3
