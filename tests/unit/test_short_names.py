"""Short names: the same computation in fewer bytes, and the names that others look for stay."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from trimtab.compressors.short_names import shorten_names


@pytest.fixture
def model():
    nodes = [
        helper.make_node("Mul", ["x", "long_name_of_a_scale"], ["long_name_of_a_product"], "long_name_of_a_node"),
        helper.make_node("Add", ["long_name_of_a_product", "q1"], ["hidden"], "add"),
        helper.make_node("MatMul", ["hidden", "fc.weight_int8_output"], ["y"], "long_name_of_a_node_2"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(np.float32(2), "long_name_of_a_scale"),
            numpy_helper.from_array(np.float32(3), "q1"),
            numpy_helper.from_array(np.eye(2, dtype=np.float32), "fc.weight_int8_output"),
        ],
        value_info=[helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", 2])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _run(model):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ones((1, 2), np.float32)})[0]


def test_the_model_computes_what_it_did_in_fewer_bytes(model):
    want, size = _run(model), model.ByteSize()
    shorten_names(model, {"hidden", "add"})
    onnx.checker.check_model(model)
    assert np.array_equal(_run(model), want)
    assert model.ByteSize() < size


def test_names_of_the_float_graph_of_weights_and_of_the_edges_stay_and_none_is_given_twice(model):
    shorten_names(model, {"hidden", "add"})
    values = {name for node in model.graph.node for name in (*node.input, *node.output)}
    assert {"x", "y", "hidden", "fc.weight_int8_output", "q1"} <= values
    assert len(values) == 7
    assert [node.name for node in model.graph.node][1] == "add"
    assert not any("long" in name for name in values | {node.name for node in model.graph.node})
    assert len({tensor.name for tensor in model.graph.initializer}) == 3
