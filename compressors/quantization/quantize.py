"""A policy's quantisation written into the graph: explicit QDQ, dynamic operators, compressed weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...core.errors import PolicyError
from ...hw_profiles.target import Capabilities
from ...spaces.treatment import Treatment
from ..graph import drop_unused_initializers, kind_of, weight_of
from ..layer_inputs import LayerInputs
from ..opset import raise_opset
from ..weights.layer_weight import read_layer
from ..weights.weight_bank import WeightBank
from .activation_writer import ActivationWriter
from .activations import extra_nodes, find_bias, fused_output
from .calibration import Histogram, Range
from .weight_writer import WeightWriter

#: the first operator set that knows float8
_FLOAT8_OPSET = 19


@dataclass
class QuantizationPlan:
    """What the builder needs to know besides the graph."""

    #: layer name → treatment; layers that are missing stay as they are
    treatments: Mapping[str, Treatment]
    quantized_ops: tuple[str, ...]
    #: value name → calibrated range
    ranges: Mapping[str, Range]
    scheme: Capabilities
    bank: WeightBank
    #: the linear layers whose output is (batch, outputs)
    row_layers: frozenset[str] = frozenset()
    #: layer → what enters it; asked only where a treatment chooses weights by it
    inputs: Mapping[str, LayerInputs] = field(default_factory=dict)
    #: value name → calibration statistics, from which binary activations have their two values
    statistics: Mapping[str, Histogram] = field(default_factory=dict)
    #: layer → (n_outputs,) by which a merged batch norm multiplied its weight; a layer that is missing: 1
    output_scales: Mapping[str, np.ndarray] = field(default_factory=dict)
    #: layer → (n_outputs,) steps of its int8 weight as learned in training, before that batch norm
    learned_steps: Mapping[str, np.ndarray] = field(default_factory=dict)
    #: layer → the two values of its binary input as learned in training
    learned_levels: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    #: how integer codes are chosen: one of `spaces.policy.ROUNDINGS`
    rounding: str = "nearest"


def quantize_graph(graph: ir.Graph, plan: QuantizationPlan) -> None:
    """Rewrites the graph in place (the caller owns a copy).

    Raises:
        PolicyError: a treatment cannot be written for its layer; the message names it.
    """
    chosen = {name: treatment for name, treatment in plan.treatments.items() if treatment != Treatment()}
    treated = [
        (node, weight, chosen[name])
        for node in graph
        if (weight := weight_of(node)) is not None and (name := _layer_name(weight)) in chosen
    ]
    for node, weight, treatment in treated:
        _check_kind(_layer_name(weight), kind_of(node), treatment)
    if any(treatment.weight_dtype == "float8" for _, _, treatment in treated):
        raise_opset(graph, _FLOAT8_OPSET)
    activations = ActivationWriter(graph, plan)
    _write_activations(graph, plan, treated, activations)
    writer = WeightWriter(graph, plan, activations)
    for node, weight, _ in treated:
        writer.write_weight(node, weight)
    drop_unused_initializers(graph)


def rounded_weights(graph: ir.Graph, plan: QuantizationPlan) -> dict[str, np.ndarray]:
    """Returns layer name → what its stored weight will stand for: float32, the shape of the weight.

    Layers that the plan leaves alone are missing. A weight whose scale a large bias raises is a little coarser.

    Args:
        graph: the float graph, before it is written.
        plan: what is to be written.

    Raises:
        PolicyError: the plan lacks statistics that a treatment goes by.
    """
    found: dict[str, np.ndarray] = {}
    for node in graph:
        weight = weight_of(node)
        name = "" if weight is None else _layer_name(weight)
        if weight is not None and name not in found and plan.treatments.get(name, Treatment()) != Treatment():
            found[name] = plan.bank.stored(read_layer(node, weight, plan))
    return found


def _layer_name(weight: ir.Value) -> str:
    return str(weight.name).removesuffix(".weight")


def _write_activations(
    graph: ir.Graph,
    plan: QuantizationPlan,
    treated: list[tuple[ir.Node, ir.Value, Treatment]],
    activations: ActivationWriter,
) -> None:
    is_int8 = [t.is_static and t.activation_dtype == "int8" for _, _, t in treated]
    static = {_layer_name(weight): t for (_, weight, t), chosen in zip(treated, is_int8, strict=True) if chosen}
    extras = extra_nodes(graph, plan.quantized_ops, static)
    points = [
        (node, _output_to_quantize(node, weight, plan))
        for (node, weight, _), chosen in zip(treated, is_int8, strict=True)
        if chosen
    ]
    for node, output in points:
        activations.quantize_input(node, 0)
        if output is not None:
            activations.quantize_output(output)
    for node in extras:
        output = fused_output(node)
        for position, value in enumerate(node.inputs):
            if value is not None and value.const_value is None and (position == 0 or node.op_type != "Clip"):
                activations.quantize_input(node, position)
        activations.quantize_output(output)
    for node, weight, treatment in treated:
        if treatment.activation_dtype == "binary":
            activations.write_signs(node, plan.learned_levels.get(_layer_name(weight)))
        elif treatment.activation_dtype == "float8":
            activations.write_float8(node)


def _output_to_quantize(node: ir.Node, weight: ir.Value, plan: QuantizationPlan) -> ir.Value | None:
    """Returns the value that has to be quantised as well, or else the static layer's kernel stays float.

    Of the linear layers these are the ones whose kernel has nothing but a Relu or Clip behind it: ONNX Runtime then
    looks for integers behind that, and finds none.
    """
    if not plan.scheme.quantize_conv_outputs:
        return None
    if node.op_type == "Conv":
        return fused_output(node)
    place, is_row = find_bias(node), _layer_name(weight) in plan.row_layers
    if place is not None and not is_row:
        return None
    last = node if place is None else place[0]
    output = fused_output(last)
    return output if output is not last.outputs[0] and str(output.name) in plan.ranges else None


def _check_kind(name: str, kind: str, treatment: Treatment) -> None:
    if kind != "linear" and treatment.granularity.startswith("block"):
        raise PolicyError(f"layer {name}: block-wise weights exist for linear layers only, and this is a {kind} layer")
    if kind != "linear" and treatment.activation_range == "dynamic":
        raise PolicyError(f"layer {name}: dynamic ranges exist for linear layers only, and this is a {kind} layer")
    if kind == "embedding" and treatment.activation_dtype != "float32":
        dtype = treatment.activation_dtype
        raise PolicyError(
            f"layer {name}: {dtype} activations exist for convolutions and linear layers, not for embeddings"
        )
