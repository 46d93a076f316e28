"""Bias correction: what rounding does to the mean of each output is taken off its bias."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ..graph import add_initializer, array_of, drop_unused_initializers, input_of, kind_of, take_over, weight_of
from ..layer_inputs import LayerInputs, weight_matrix
from .activations import find_bias

#: fused operators of com.microsoft that add a bias to what a linear layer gives: operator → the input that holds it
_FUSED_BIASES: Mapping[str, int] = {"BiasGelu": 1, "FastGelu": 1, "SkipLayerNormalization": 4}
#: adds three biases in a row, one for each of its first inputs
_ATTENTION, _ATTENTION_BIAS = "MultiHeadAttention", 3


def correct_bias(weight: np.ndarray, rounded: np.ndarray, inputs: LayerInputs, *, kind: str) -> np.ndarray:
    """Returns what has to be added to a layer's bias so that its outputs keep their mean: (W - Ŵ) · E[x].

    Source: Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", section 4.2,
    with E[x] from the calibration data.

    Args:
        weight: float32 as the graph stores it: (K, n_outputs) of a linear layer, (n_outputs, in / group, *kernel) of a
            convolution.
        rounded: same shape, what the integers stand for.
        inputs: what enters the layer.
        kind: one of ``spaces.layer.LAYER_KINDS``, no embedding.

    Returns:
        (n_outputs,) float64.
    """
    difference = weight.astype(np.float64) - rounded
    matrix = weight_matrix(difference, n_groups=len(inputs.mean), kind=kind)  # (n_groups, n_outputs / n_groups, K)
    return np.asarray(np.einsum("gok,gk->go", matrix, inputs.mean).reshape(-1))


def correct_graph(graph: ir.Graph, rounded: Mapping[str, np.ndarray], inputs: Mapping[str, LayerInputs]) -> None:
    """Corrects the biases of a float graph in place (the caller owns a copy), before its weights are rounded.

    A layer without a bias gets one. Nodes that share a weight are corrected alike, by the mean over all its uses.

    Args:
        graph: its layer weights are called ``<layer>.weight``.
        rounded: layer name → what the integers of its weight will stand for; embeddings are passed over.
        inputs: layer name → what enters it.
    """
    for node in list(graph):
        weight = weight_of(node)
        name = str(weight.name).removesuffix(".weight") if weight is not None else ""
        if weight is None or name not in rounded or node.op_type == "Gather":
            continue
        shift = correct_bias(array_of(weight), rounded[name], inputs[name], kind=kind_of(node))
        if shift.any():
            _add_to_bias(graph, node, shift)
    drop_unused_initializers(graph)


def _add_to_bias(graph: ir.Graph, node: ir.Node, shift: np.ndarray) -> None:
    place = find_bias(node) or _find_fused_bias(node, len(shift))
    bias = None if place is None else place[0].inputs[place[1]]
    if place is None or bias is None or bias.const_value is None:
        _give_bias(graph, node, shift)
        return
    user, position = place
    old = array_of(bias)
    if user.op_type == _ATTENTION:
        start = next(iter(node.outputs[0].uses())).idx * len(shift)
        shift = np.pad(shift, (start, old.size - start - len(shift)))
    new = (old + shift.reshape(old.shape)).astype(np.float32)
    user.replace_input_with(position, add_initializer(graph, f"{bias.name}_corrected", new))


def _find_fused_bias(node: ir.Node, n_outputs: int) -> tuple[ir.Node, int] | None:
    """Returns the fused operator that alone reads a linear layer and adds its bias, and the input that holds it."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output() or uses[0].node.domain != "com.microsoft":
        return None
    user, is_attention = uses[0].node, uses[0].node.op_type == _ATTENTION
    position = _ATTENTION_BIAS if is_attention else _FUSED_BIASES.get(user.op_type)
    if position is None or len(user.inputs) <= position or user.inputs[position] is None:
        return None
    bias = input_of(user, position).const_value
    wanted = (3 * n_outputs,) if is_attention else (n_outputs,)
    return (user, position) if bias is not None and tuple(bias.shape) == wanted else None


def _give_bias(graph: ir.Graph, node: ir.Node, shift: np.ndarray) -> None:
    """Adds a bias where there is none that is constant; the output keeps its name."""
    output, name = node.outputs[0], f"{node.name or node.outputs[0].name}"
    is_conv = node.op_type == "Conv"
    takes_bias = is_conv and (len(node.inputs) < 3 or node.inputs[2] is None)
    stored = shift if takes_bias or not is_conv else shift.reshape(-1, *(1,) * (array_of(input_of(node, 1)).ndim - 2))
    bias = add_initializer(graph, f"{input_of(node, 1).name}_bias", stored.astype(np.float32))
    inputs = [*node.inputs[:2], bias] if takes_bias else list(node.inputs)
    last = ir.node(node.op_type, inputs, node.attributes, name=name)
    graph.insert_before(node, last)
    if not takes_bias:
        last.outputs[0].name = f"{output.name}_unbiased"
        last = ir.node("Add", [last.outputs[0], bias], name=f"{name}_bias")
        graph.insert_before(node, last)
    take_over(graph, node, last)
