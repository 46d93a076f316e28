"""A graph means the same in a newer operator set: ONNX Runtime says so."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from trimtab.compressors.opset import raise_opset

_X = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)


def _model(version):
    """Reductions with and without axes, and a Split into equal parts, in the form of their operator set."""
    is_new = version >= 18
    axes = {} if is_new else {"axes": [1]}
    parts = {"num_outputs": 2} if is_new else {}
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=1, **parts),
        helper.make_node("ReduceMax", ["a", *(["one"] if is_new else [])], ["c"], "max", keepdims=1, **axes),
        helper.make_node("ReduceL2", ["b", *(["one"] if is_new else [])], ["d"], "norm", keepdims=1, **axes),
        helper.make_node("ReduceMean", ["x"], ["e"], "mean", keepdims=1),
        helper.make_node("ReduceSum", ["x", "one"], ["f"], "sum", keepdims=1),
        helper.make_node("Concat", ["c", "d", "f"], ["y"], axis=1),
    ]
    info = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("y", [3, 3]), ("e", [1, 1]))
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 8])], info,
        [numpy_helper.from_array(np.array([1]), "one")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=9)


def _run(proto):
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": _X})


@pytest.mark.parametrize(("before", "after"), [(17, 19), (13, 18), (17, 21), (18, 19)])
def test_a_raised_graph_computes_what_it_computed(before, after):
    model = ir.from_proto(_model(before))
    raise_opset(model.graph, after)
    raised = ir.to_proto(model)
    assert [entry.version for entry in raised.opset_import if not entry.domain] == [after]
    for got, want in zip(_run(raised), _run(_model(before)), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_graph_that_is_new_enough_stays_as_it_is():
    model = ir.from_proto(_model(19))
    before = ir.to_proto(model).SerializeToString()
    raise_opset(model.graph, 17)
    assert ir.to_proto(model).SerializeToString() == before
