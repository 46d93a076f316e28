"""Which activations a policy quantises, and the scales for them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...spaces.treatment import Treatment
from ..graph import array_of, input_of, weight_of
from .calibration import Range

#: op families of a policy's ``quantized_ops``
OP_FAMILIES: dict[str, frozenset[str]] = {
    "add": frozenset({"Add"}),
    "pool": frozenset({"MaxPool", "AveragePool", "GlobalAveragePool"}),
    "activation": frozenset({"Relu", "Clip", "Sigmoid", "LeakyRelu"}),
    "matmul": frozenset({"MatMul"}),
}

_FUSED_ACTIVATIONS = frozenset({"Relu", "Clip"})


def fused_output(node: ir.Node) -> ir.Value:
    """Returns the node's output, or that of the Relu or Clip which is its only user and runs inside its kernel."""
    output = node.outputs[0]
    users = [use.node for use in output.uses()]
    if len(users) == 1 and users[0].op_type in _FUSED_ACTIVATIONS and not output.is_graph_output():
        return users[0].outputs[0]
    return output


def find_bias(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Returns the node that adds a layer's bias inside its integer kernel, and the input that holds the bias.

    ONNX Runtime makes one Gemm of a linear layer's MatMul and Add *before* it looks for integers. With a bias in float
    that Gemm stays float, and its weight is unpacked in every run.
    """
    if node.op_type == "Conv":
        return (node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    add, n_outputs = uses[0].node, array_of(input_of(node, 1)).shape[1]
    position = 1 - uses[0].idx
    bias = input_of(add, position).const_value
    return (add, position) if bias is not None and tuple(bias.shape) in ((n_outputs,), (1, n_outputs)) else None


def watched_values(graph: ir.Graph) -> list[str]:
    """Returns the names of all values that some policy may quantise: what calibration has to watch."""
    every = set().union(*OP_FAMILIES.values())
    found: dict[str, None] = {}
    for node in graph:
        weight = weight_of(node)
        is_static_layer = weight is not None and node.op_type != "Gather"
        if is_static_layer:
            found.update({str(input_of(node, 0).name): None, str(fused_output(node).name): None})
        elif node.op_type in every and not node.domain:
            found.update({str(value.name): None for value in (*data_inputs(node), fused_output(node))})
    return list(found)


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """Returns the float inputs that are computed while the model runs."""
    first_only = node.op_type == "Clip"
    values = node.inputs[:1] if first_only else node.inputs
    return [v for v in values if v is not None and v.const_value is None and v.dtype in (ir.DataType.FLOAT, None)]


def extra_nodes(graph: ir.Graph, families: Iterable[str], static: Mapping[str, Treatment]) -> list[ir.Node]:
    """Returns the nodes of the chosen families that touch a statically quantised layer, in graph order.

    A node is taken when one of its inputs comes from, or its output goes to, such a layer or a node already
    taken; its other inputs are then quantised too. Binary nodes with a constant operand (biases) are not.
    """
    allowed = set().union(*(OP_FAMILIES[family] for family in families)) if families else set()
    near: set[ir.Value] = set()
    for node in graph:
        weight = weight_of(node)
        if weight is not None and str(weight.name).removesuffix(".weight") in static:
            near.update((input_of(node, 0), fused_output(node), node.outputs[0]))
        elif _only_moves(node) and any(value in near for value in data_inputs(node)):
            near.add(node.outputs[0])
    taken = []
    for node in graph:
        if node.op_type not in allowed or node.domain or weight_of(node) is not None:
            continue
        inputs = data_inputs(node)
        is_binary = node.op_type in ("Add", "MatMul")
        if (is_binary and len(inputs) != 2) or not _is_standalone(node):
            continue
        if any(value in near for value in inputs) or fused_output(node) in near:
            taken.append(node)
            near.update((node.outputs[0], fused_output(node)))
    return taken


#: operators behind which a value is still that of the layer: moved, reshaped, or shifted and scaled by constants
_MOVES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
_SHIFTS = frozenset({"Add", "Mul", "Div"})


def _only_moves(node: ir.Node) -> bool:
    return node.op_type in _MOVES or (node.op_type in _SHIFTS and len(data_inputs(node)) == 1)


def _is_standalone(node: ir.Node) -> bool:
    """A Relu or Clip inside a convolution's kernel is not an operation of its own."""
    if node.op_type not in _FUSED_ACTIVATIONS:
        return True
    producer = input_of(node, 0).producer()
    return producer is None or fused_output(producer) is not node.outputs[0] or producer.op_type not in ("Conv", "Add")


@dataclass(frozen=True, slots=True)
class ActivationScale:
    """value ≈ (code - zero_point) × scale."""

    scale: np.float32
    #: uint8 for asymmetric ranges, int8 (and 0) for symmetric ones
    zero_point: np.uint8 | np.int8


def activation_scale(range_: Range, codes: str) -> ActivationScale:
    """Returns scale and zero point, as onnxruntime.quantization.quant_utils.compute_scale_zp does.

    Ranges are float32; the arithmetic is float64, for a range may span more than float32 holds.

    Args:
        range_: the calibrated interval.
        codes: ``asymmetric`` (uint8), ``symmetric`` (int8, zero point 0; uint8 where nothing is negative) or
            ``symmetric_signed`` (int8, zero point 0, always).
    """
    low, high = (float(np.float32(edge)) for edge in (min(range_.low, 0.0), max(range_.high, 0.0)))
    if codes == "symmetric_signed" or (codes == "symmetric" and low < 0):
        return ActivationScale(np.float32(_positive(2 * max(-low, high) / 254)), np.int8(0))
    scale = _positive((high - low) / 255)
    return ActivationScale(np.float32(scale), np.uint8(np.clip(np.rint(-low / scale), 0, 255)))


def _positive(scale: float) -> float:
    return 1.0 if scale < np.finfo(np.float32).tiny else scale
