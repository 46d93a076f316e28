"""Activations in fewer bits, written into a graph: static and dynamic codes, float8, signs."""

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..core.errors import PolicyError
from .activations import ActivationScale, activation_scale
from .calibration import Histogram
from .graph import add_initializer, input_of
from .weight_bank import MAX_FLOAT8

if TYPE_CHECKING:
    from .quantize import QuantizationPlan


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
        #: value → its signs times their scale, or its twin in float8
        self._signs: dict[ir.Value, ir.Value] = {}
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

    def write_signs(self, node: ir.Node) -> None:
        """Lets a node read sign(x) × mean |x|, with sign(0) = 1, instead of its input x.

        Source: Rastegari et al., XNOR-Net (2016), section 3.2, with one scale for the whole input, from calibration.
        """
        value = input_of(node, 0)
        if value not in self._signs:
            scale = np.float32(self._mean_magnitude(value))
            zero, high, low = (
                add_initializer(self._graph, f"{value.name}_{name}", np.asarray(number, np.float32))
                for name, number in (("zero", 0.0), ("sign_high", scale), ("sign_low", -scale))
            )
            is_high = self._after(value, ir.node("GreaterOrEqual", [value, zero]), f"{value.name}_is_high")
            self._signs[value] = self._after(is_high, ir.node("Where", [is_high, high, low]), f"{value.name}_sign")
        node.replace_input_with(0, self._signs[value])

    def write_float8(self, node: ir.Node) -> None:
        """Lets a node read its input rounded to float8 (E4M3FN); the largest calibrated magnitude becomes 448."""
        value = input_of(node, 0)
        if value not in self._float8:
            range_ = self._plan.ranges.get(self._name(value))
            if range_ is None:
                raise PolicyError(f"there are no calibration statistics for the value '{value.name}'")
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

    def _mean_magnitude(self, value: ir.Value) -> float:
        histogram = self._plan.statistics.get(self._name(value))
        if histogram is None:
            raise PolicyError(f"there are no calibration statistics for the value '{value.name}'")
        return _mean_of(histogram)

    def _name(self, value: ir.Value) -> str:
        """Returns the name under which calibration knows a value, or that of which it is the twin."""
        original = next((known for known, twin in self._twins.items() if twin is value), value)
        return str(original.name)

    def _twin(self, value: ir.Value) -> ir.Value:
        if value in self._twins:
            return self._twins[value]
        range_ = self._plan.ranges.get(str(value.name))
        if range_ is None:
            raise PolicyError(f"there are no calibration statistics for the value '{value.name}'")
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


def _mean_of(histogram: Histogram) -> float:
    """Returns the mean of |x|, to half the width of a bin."""
    middles = (histogram.edges[:-1] + histogram.edges[1:]) / 2
    return float((histogram.counts * np.abs(middles)).sum() / histogram.counts.sum())
