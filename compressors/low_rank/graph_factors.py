"""Low rank in the ONNX graph: each node of a layer becomes a row of nodes."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ...core.errors import PolicyError
from ...spaces.treatment import Treatment
from ..graph import (
    BaseGraph,
    add_initializer,
    array_of,
    describe_layer,
    drop_unused_initializers,
    find_weights,
    input_of,
    kind_of,
    take_over,
    weight_of,
)
from ..layer_inputs import LayerInputs
from ..patches import Window, window_of
from .factor_shapes import FactorShape, LayerGeometry
from .factorise import factorise


def factorise_graph(
    base: BaseGraph, treatments: Mapping[str, Treatment], inputs: Mapping[str, LayerInputs]
) -> BaseGraph:
    """Returns a graph in which layers are taken apart; layer ``fc`` becomes ``fc.0``, ``fc.1`` (and ``fc.2``).

    A bias stays with the last factor; nodes that share a weight share its factors.

    Args:
        base: the float graph; it is left alone.
        treatments: layer name → treatment, of which only the fields of low rank count.
        inputs: layer name → what enters it; read for ``rank_error: output``.

    Raises:
        PolicyError: a layer is not there, or cannot be taken apart; the message names it and says why.
    """
    chosen = {name: treatment for name, treatment in treatments.items() if treatment.rank != 1.0}
    model = base.model.clone()
    graph, shapes = model.graph, dict(base.shapes)
    nodes = _nodes_of(graph)
    missing = sorted(set(chosen) - set(nodes))
    if missing:
        raise PolicyError(f"the model has no layer {', '.join(missing)}; it has {', '.join(sorted(nodes))}")
    for name, treatment in chosen.items():
        first = nodes[name][0]
        weight = _weight(first)
        by_output = treatment.rank_error == "output"
        factors = factorise(
            array_of(weight), treatment, geometry_of(first, shapes), inputs=inputs.get(name) if by_output else None
        )
        stored = [_store(graph, factor_name(name, i), array) for i, array in enumerate(factors.weights)]
        for node in nodes[name]:
            _replace(graph, node, list(zip(stored, factors.shapes, strict=True)), shapes)
    drop_unused_initializers(graph)
    layers = tuple(describe_layer(weight, shapes) for weight in find_weights(graph))
    return BaseGraph(model, layers, shapes)


def factor_name(layer: str, position: int) -> str:
    """Returns the name of a factor: of ``fc`` it is ``fc.0``; of ``fc#2``, a copy, it is ``fc.0#2``."""
    path, sign, copy = layer.partition("#")
    return f"{path}.{position}{sign}{copy}"


def geometries_of(base: BaseGraph) -> dict[str, LayerGeometry]:
    """Returns layer → what low rank has to know of it: groups, strides and sides, which a `Layer` does not tell."""
    return {name: geometry_of(nodes[0], base.shapes) for name, nodes in _nodes_of(base.model.graph).items()}


def geometry_of(node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> LayerGeometry:
    """Returns what low rank has to know of a node with a weight.

    Args:
        node: one for which `weight_of` returns a weight.
        shapes: value name → shape for one sample.
    """
    weight = _weight(node)
    window = window_of(node) if node.op_type == "Conv" else None
    sides = shapes.get(str(input_of(node, 0).name), ())[2:] if window is not None else ()
    name = str(weight.name).removesuffix(".weight")
    return LayerGeometry(name, kind_of(node), tuple(array_of(weight).shape), window, tuple(sides))


def _nodes_of(graph: ir.Graph) -> dict[str, list[ir.Node]]:
    """Returns layer → its nodes, in graph order."""
    found: dict[str, list[ir.Node]] = {}
    for node in graph:
        weight = weight_of(node)
        if weight is not None:
            found.setdefault(str(weight.name).removesuffix(".weight"), []).append(node)
    return found


def _weight(node: ir.Node) -> ir.Value:
    return input_of(node, 0 if node.op_type == "Gather" else 1)


def _store(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    if f"{name}.weight" in graph.initializers:
        raise PolicyError(f"a factor would be called {name}, as another layer is already; leave low_rank out")
    return add_initializer(graph, f"{name}.weight", array)


def _replace(
    graph: ir.Graph, node: ir.Node, factors: list[tuple[ir.Value, FactorShape]], shapes: dict[str, tuple[int, ...]]
) -> None:
    """Puts a row of nodes in the place of one, and notes the shapes of the values between them."""
    value, output = input_of(node, 0), node.outputs[0]
    is_conv = node.op_type == "Conv"
    shape = shapes.get(str(value.name if is_conv else output.name))  # all axes but the last are those of the output
    bias = [node.inputs[2]] if is_conv and len(node.inputs) > 2 and node.inputs[2] is not None else []
    last = None
    for position, (weight, factor) in enumerate(factors):
        is_last = position == len(factors) - 1
        attributes = _attributes(factor.window) if factor.window is not None else {}
        name = f"{node.name or output.name}/{position}"
        last = ir.node(node.op_type, [value, weight, *(bias if is_last else [])], attributes, name=name)
        value = last.outputs[0]
        value.name = f"{output.name}_{position}"
        graph.insert_before(node, last)
        shape = _output_shape(shape, factor)
        if shape is not None and not is_last:
            shapes[str(value.name)] = shape
    if last is not None:
        take_over(graph, node, last)


def _output_shape(shape: tuple[int, ...] | None, factor: FactorShape) -> tuple[int, ...] | None:
    if shape is None:
        return None
    if factor.window is None:
        return (*shape[:-1], factor.weight_shape[1])
    return (shape[0], factor.weight_shape[0], *factor.window.output_sides(shape[2:]))


def _attributes(window: Window) -> dict[str, list[int] | str | int]:
    before, after = zip(*window.pads, strict=True) if window.pads else ((), ())
    padding: dict[str, list[int] | str | int] = {"pads": [*before, *after]} if window.pads else {}
    if window.auto_pad != "NOTSET":
        padding = {"auto_pad": window.auto_pad}
    return {
        "kernel_shape": list(window.kernel),
        "strides": list(window.strides),
        "dilations": list(window.dilations),
        "group": window.n_groups,
        **padding,
    }
