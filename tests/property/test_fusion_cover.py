"""A declared rule covers a graph: each node once, in an order in which the kernels can run."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from trimtab.evaluators.lut_lowering import lower_by_rule
from trimtab.hw_profiles.boards.fusion_rule import INTEGER_NEEDS, parse_rule

UNARY = ("Relu", "Sigmoid", "Identity", "Neg")
BINARY = ("Add", "Mul")
OPERATORS = (*UNARY, *BINARY)


@st.composite
def graphs(draw):
    """Random graphs of elementwise operators; values are converted to integers and back here and there."""
    values, nodes, constants = ["x"], [], {"s": np.float32(0.1), "z": np.uint8(0), "k": np.ones((1, 4), np.float32)}
    for i in range(draw(st.integers(1, 14))):
        op = draw(st.sampled_from((*OPERATORS, "QDQ")))
        pick = st.sampled_from([*values, "k"] if op != "QDQ" else values)
        inputs = [draw(pick) for _ in range(2 if op in BINARY else 1)]
        if op == "QDQ":
            nodes.append(helper.make_node("QuantizeLinear", [*inputs, "s", "z"], [f"q{i}"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"q{i}", "s", "z"], [f"v{i}"]))
        else:
            nodes.append(helper.make_node(op, inputs, [f"v{i}"]))
        values.append(f"v{i}")
    outputs = draw(st.lists(st.sampled_from(values[1:]), min_size=1, max_size=3, unique=True))
    graph = helper.make_graph(
        nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@st.composite
def rules(draw):
    free = draw(st.sampled_from([[], ["Identity"]]))
    known = [op for op in OPERATORS if op not in free]
    stage = st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True).map("|".join)
    later = st.tuples(stage, st.sampled_from(["", "?"])).map("".join)
    patterns = draw(st.lists(st.tuples(stage, st.lists(later, max_size=3)), max_size=4))
    return {
        "patterns": [" > ".join([first, *rest]) for first, rest in patterns],
        "free": free,
        "integer": draw(st.dictionaries(st.sampled_from(known), st.sampled_from(INTEGER_NEEDS))),
        "fold_constants": draw(st.booleans()),
    }


@given(graphs(), rules())
def test_every_node_is_in_one_kernel_or_free(model, rule):
    lowering = lower_by_rule(model.SerializeToString(), parse_rule(rule), batch_size=2)
    covered = [index for members in lowering.members for index in members]
    assert sorted([*covered, *lowering.free]) == list(range(len(model.graph.node)))


@given(graphs(), rules())
def test_kernels_read_what_earlier_ones_wrote(model, rule):
    lowering = lower_by_rule(model.SerializeToString(), parse_rule(rule), batch_size=2)
    graph, folded = lowering.graph, {model.graph.node[index].output[0] for index in lowering.free}
    there = {"", *graph.inputs}
    for step in graph.steps:
        assert set(step.reads) <= there
        there.update(step.writes)
    assert set(graph.outputs) - folded - {"k"} <= there


@given(graphs(), rules())
def test_tensors_are_named_in_the_order_of_reads_and_writes(model, rule):
    for step in lower_by_rule(model.SerializeToString(), parse_rule(rule), batch_size=2).graph.steps:
        assert len(step.reads) == len(step.kernel.inputs)
        assert len(step.writes) == len(step.kernel.outputs)
