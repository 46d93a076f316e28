"""Activations in fewer bits, written into a graph: static and dynamic codes, float8, signs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import onnx_ir as ir

from ...core.errors import PolicyError
from ..graph import add_initializer, input_of
from ..weights.weight_bank import MAX_FLOAT8
from .activations import ActivationScale, activation_scale
from .calibration import Histogram

if TYPE_CHECKING:
    from .quantize import QuantizationPlan

_Known = TypeVar("_Known")


class ActivationWriter:
    """Edits one graph; remembers which values have been quantised already."""

    def __init__(self, graph: ir.Graph, plan: "QuantizationPlan") -> None:
        self._graph = graph
        self._plan = plan
        #: value → its dequantised twin
        self._twins: dict[ir.Value, ir.Value] = {}
        self._scales: dict[ir.Value, ActivationScale] = {}
        #: value → (codes, scale, zero point) of its dynamic quantisation
        self._dynamic: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        #: value and its two levels → its signs; value → its twin in float8
        self._signs: dict[tuple[ir.Value, float, float], ir.Value] = {}
        self._float8: dict[ir.Value, ir.Value] = {}

    def quantize_input(self, node: ir.Node, position: int) -> None:
        """Lets this one node read the quantised twin of its input."""
        value = node.inputs[position]
        if value is None or value in self._twins.values():
            return
        node.replace_input_with(position, self._twin(value))

    def quantize_output(self, value: ir.Value) -> None:
        """Lets every reader of the value read its quantised twin; graph outputs stay exact."""
        if value.is_graph_output():
            return
        twin = self._twin(value)
        quantize = twin.producer().inputs[0].producer()  # type: ignore[union-attr]
        for user, position in list(value.uses()):
            if user is not quantize:
                user.replace_input_with(position, twin)

    def scale_of(self, value: ir.Value) -> ActivationScale | None:
        """Returns the scale of a quantised twin; None where the value is none."""
        return self._scales.get(value)

    def quantize_dynamically(self, value: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Returns codes, scale and zero point of a value, found anew in every run."""
        if value not in self._dynamic:
            quantize = ir.node("DynamicQuantizeLinear", [value], num_outputs=3)
            self._after(value, quantize, f"{value.name}_dynamic")
            for output, suffix in zip(quantize.outputs[1:], ("scale", "zero_point"), strict=True):
                output.name = f"{value.name}_dynamic_{suffix}"
            self._dynamic[value] = tuple(quantize.outputs)  # type: ignore[assignment]
        return self._dynamic[value]

    def write_signs(self, node: ir.Node, levels: tuple[float, float] | None) -> None:
        """Lets a node read one of two values instead of its input x: the higher from their middle on.

        Args:
            node: a layer.
            levels: the two values that training has learned; None takes mean x ± mean |x - mean x| from calibration.

        Around a mean of 0 these are sign(x) × mean |x|: Rastegari et al., XNOR-Net (2016), section 3.2, with one scale
        for the whole input. What comes out of a Relu has no other signs than around its mean.
        """
        value = input_of(node, 0)
        low, high = levels or self._mean_levels(value)
        key = (value, low, high)
        if key not in self._signs:
            name = f"{value.name}_{len(self._signs)}"
            middle, above, below = (
                add_initializer(self._graph, f"{name}_{part}", np.asarray(number, np.float32))
                for part, number in (("middle", (low + high) / 2), ("sign_high", high), ("sign_low", low))
            )
            is_high = self._after(value, ir.node("GreaterOrEqual", [value, middle]), f"{name}_is_high")
            self._signs[key] = self._after(is_high, ir.node("Where", [is_high, above, below]), f"{name}_sign")
        node.replace_input_with(0, self._signs[key])

    def write_float8(self, node: ir.Node) -> None:
        """Lets a node read its input rounded to float8 (E4M3FN); the largest calibrated magnitude becomes 448."""
        value = input_of(node, 0)
        if value not in self._float8:
            range_ = _known(self._plan.ranges, self._name(value), value)
            bound = max(-range_.low, range_.high)
            scale = np.float32(bound / MAX_FLOAT8 if bound > 0 else 1.0)
            name = f"{value.name}_float8"
            scale_value = add_initializer(self._graph, f"{name}_scale", np.asarray(scale))
            zero = np.zeros((), ir.DataType.FLOAT8E4M3FN.numpy())
            operands = [scale_value, add_initializer(self._graph, f"{name}_zero_point", zero)]
            codes = self._after(value, ir.node("QuantizeLinear", [value, *operands]), name)
            twin = self._after(codes, ir.node("DequantizeLinear", [codes, *operands]), f"{name}_dequantized")
            self._float8[value] = twin
        node.replace_input_with(0, self._float8[value])

    def _mean_levels(self, value: ir.Value) -> tuple[float, float]:
        return _levels_of(_known(self._plan.statistics, self._name(value), value))

    def _name(self, value: ir.Value) -> str:
        """Returns the name under which calibration knows a value, or that of which it is the twin."""
        original = next((known for known, twin in self._twins.items() if twin is value), value)
        return str(original.name)

    def _twin(self, value: ir.Value) -> ir.Value:
        if value in self._twins:
            return self._twins[value]
        range_ = _known(self._plan.ranges, str(value.name), value)
        chosen = activation_scale(range_, self._plan.scheme.activation_codes)
        scale = add_initializer(self._graph, f"{value.name}_scale", np.asarray(chosen.scale))
        zero = add_initializer(self._graph, f"{value.name}_zero_point", np.asarray(chosen.zero_point))
        quantize = self._after(value, ir.node("QuantizeLinear", [value, scale, zero]), f"{value.name}_quantized")
        twin = self._after(quantize, ir.node("DequantizeLinear", [quantize, scale, zero]), f"{value.name}_dequantized")
        self._twins[value], self._scales[twin] = twin, chosen
        return twin

    def _after(self, value: ir.Value, node: ir.Node, name: str) -> ir.Value:
        """Inserts a node right behind the value's producer (or at the start) and names its output."""
        producer = value.producer()
        node.outputs[0].name, node.name = name, f"{name}_node"
        if producer is not None:
            self._graph.insert_after(producer, node)
        else:
            self._graph.insert_before(self._graph[0], node)
        return node.outputs[0]


def _known(found: Mapping[str, _Known], name: str, value: ir.Value) -> _Known:
    """Returns what calibration knows of a value."""
    known = found.get(name)
    if known is None:
        raise PolicyError(f"there are no calibration statistics for the value '{value.name}'")
    return known


def _levels_of(histogram: Histogram) -> tuple[float, float]:
    """Returns mean x ± mean |x - mean x|, to half the width of a bin."""
    middles = (histogram.edges[:-1] + histogram.edges[1:]) / 2
    mean = float(np.average(middles, weights=histogram.counts))
    distance = float(np.average(np.abs(middles - mean), weights=histogram.counts))
    return mean - distance, mean + distance
