"""A newer operator set for a graph whose operators changed little on the way."""

import numpy as np
import onnx_ir as ir

from .graph import add_initializer

#: reductions that read their axes from an attribute below operator set 18, and from an input since; ReduceSum since 13
_REDUCTIONS = frozenset(
    f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
)


def raise_opset(graph: ir.Graph, version: int) -> None:
    """Rewrites a graph of operator set 13 or later, in place, so that it means the same in a newer one, 21 at most.

    Between 13 and 21 only two things break: where reductions have their axes, and that Split names its number of
    outputs (both in 18; onnx, docs/Changelog.md).

    Args:
        graph: the caller owns it.
        version: the operator set to reach; a graph that has it, or a later one, stays as it is.
    """
    before = graph.opset_imports.get("", version)
    if before >= version:
        return
    if before < 18 <= version:
        for node in list(graph):
            if not node.domain and node.op_type in _REDUCTIONS and "axes" in node.attributes:
                _move_axes(graph, node)
            elif not node.domain and node.op_type == "Split" and len(node.inputs) < 2:
                node.attributes.add(ir.AttrInt64("num_outputs", len(node.outputs)))
    graph.opset_imports[""] = version


def _move_axes(graph: ir.Graph, node: ir.Node) -> None:
    axes = np.array(node.attributes.pop("axes").as_ints(), np.int64)
    value = add_initializer(graph, f"{node.outputs[0].name}_axes", axes)
    replaced = ir.node(node.op_type, [node.inputs[0], value], dict(node.attributes), name=node.name)
    output, new = node.outputs[0], replaced.outputs[0]
    new.name, new.type, new.shape = output.name, output.type, output.shape
    graph.insert_before(node, replaced)
    ir.convenience.replace_all_uses_with(output, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
