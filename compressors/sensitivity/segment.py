"""The piece of the graph that a treatment of one layer changes: the layer, its bias, the Relu inside its kernel."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import weight_of
from ..quantization.activations import find_bias, fused_output


@dataclass(frozen=True)
class Segment:
    """One use of a layer's weight; a layer that is used several times has as many segments."""

    layer: str
    #: of the base graph, in its order: the layer's node first
    nodes: tuple[ir.Node, ...]
    #: names of the values that enter it and are computed while the model runs
    inputs: tuple[str, ...]
    #: name of the value that leaves it
    output: str


def find_segments(graph: ir.Graph) -> dict[str, tuple[Segment, ...]]:
    """Returns layer → its segments, in the order of the graph.

    Args:
        graph: a float graph whose layer weights are called ``<layer>.weight``, as in a base graph.
    """
    found: dict[str, list[Segment]] = {}
    for node in graph:
        weight = weight_of(node)
        if weight is not None:
            name = str(weight.name).removesuffix(".weight")
            found.setdefault(name, []).append(_segment_of(name, node))
    return {name: tuple(segments) for name, segments in found.items()}


def _segment_of(layer: str, node: ir.Node) -> Segment:
    nodes = [node]
    place = find_bias(node) if node.op_type == "MatMul" else None
    if place is not None:
        nodes.append(place[0])
    output = nodes[-1].outputs[0] if node.op_type == "Gather" else fused_output(nodes[-1])
    producer = output.producer()
    if producer is not None and producer is not nodes[-1]:
        nodes.append(producer)
    made = {value for one in nodes for value in one.outputs}
    entering = {
        str(value.name): None
        for one in nodes
        for value in one.inputs
        if value is not None and value.const_value is None and value not in made
    }
    return Segment(layer, tuple(nodes), tuple(entering), str(output.name))


def cut_segment(segment: Segment, example: Mapping[str, np.ndarray], model: ir.Model) -> ir.Model:
    """Returns a segment as a model of its own, which shares its constants with the graph that it was cut from.

    Values keep their names, so that calibration knows them.

    Args:
        segment: of ``model``.
        example: value name → array that enters the segment; its element type and number of sides count.
        model: the graph that holds the segment; it is left alone.
    """
    twins: dict[ir.Value, ir.Value] = {}
    inputs = []
    for value in _values_into(segment):
        array = example.get(str(value.name))
        if array is None:
            twins[value] = ir.Value(name=value.name, shape=value.shape, type=value.type, const_value=value.const_value)
            continue
        type_ = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        twins[value] = ir.Value(name=value.name, shape=ir.Shape([None] * array.ndim), type=type_)
        inputs.append(twins[value])
    nodes = []
    for node in segment.nodes:
        nodes.append(_copy(node, twins))
        twins.update(zip(node.outputs, nodes[-1].outputs, strict=True))
    value, output = next((value, twin) for value, twin in twins.items() if value.name == segment.output)
    if not value.is_graph_output():  # outputs of a graph stay exact, and this one may be quantised
        nodes.append(ir.node("Identity", [output], name=f"{segment.output}/identity"))
        output = nodes[-1].outputs[0]
        output.name, output.shape, output.type = f"{segment.output}/segment", value.shape, value.type
    constants = [twin for twin in twins.values() if twin.const_value is not None]
    graph = ir.Graph(
        inputs, [output], nodes=nodes, initializers=constants, opset_imports=dict(model.graph.opset_imports),
        name="segment",
    )  # fmt: skip
    return ir.Model(graph, ir_version=model.ir_version)


def _values_into(segment: Segment) -> list[ir.Value]:
    """Returns the values that the nodes read and do not make, each once."""
    made = {value for node in segment.nodes for value in node.outputs}
    read = [value for node in segment.nodes for value in node.inputs if value is not None]
    return [value for value in dict.fromkeys(read) if value not in made]


def _copy(node: ir.Node, twins: Mapping[ir.Value, ir.Value]) -> ir.Node:
    inputs = [None if value is None else twins[value] for value in node.inputs]
    outputs = [ir.Value(name=value.name, shape=value.shape, type=value.type) for value in node.outputs]
    return ir.Node(
        node.domain, node.op_type, inputs, list(node.attributes.values()), outputs=outputs, name=node.name,
        version=node.version,
    )  # fmt: skip
