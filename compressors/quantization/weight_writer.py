"""Weights in fewer bytes, written into a graph: floats, int8, blocks of int4, float8; few values and zeros packed."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..graph import add_initializer, array_of, input_of, take_over
from ..weights.layer_weight import LayerWeight, read_layer
from ..weights.packing import Packed
from ..weights.quantized_weights import QuantizedWeight, raise_scale
from ..weights.unpacking import ConstantWriter
from ..weights.weight_bank import FloatWeight, pack_codes
from .activation_writer import ActivationWriter
from .activations import find_bias

if TYPE_CHECKING:
    from .quantize import QuantizationPlan

#: largest code of an int32 bias: as much again is left for the sum of 33,000 products of uint8 and int8
_MAX_BIAS = 2**30
_FLOAT = int(ir.DataType.FLOAT)


class WeightWriter:
    """Edits one graph, whose activations are written already; layers that share a weight share it still."""

    def __init__(self, graph: ir.Graph, plan: "QuantizationPlan", activations: ActivationWriter) -> None:
        self._graph = graph
        self._plan = plan
        self._activations = activations
        self._constants = ConstantWriter(graph)
        self._stored: dict[str, ir.Value] = {}

    def write_weight(self, node: ir.Node, weight: ir.Value) -> None:
        """Stores the weight as its treatment says and connects the node to it.

        Raises:
            PolicyError: the treatment goes by what enters the layer, and the plan does not know that.
        """
        layer = read_layer(node, weight, self._plan)
        treatment = layer.treatment
        if treatment.weight_dtype in ("float16", "float32"):
            self._write_floats(node, weight, layer)
        elif treatment.weight_dtype == "float8":
            self._write_float8(node, weight, layer)
        elif treatment.weight_dtype == "int4" or treatment.granularity.startswith("block"):
            self._write_blocks(node, weight, layer)
        elif node.op_type == "Gather":
            self._write_embedding(node, weight, layer)
        elif treatment.activation_range == "dynamic" and self._plan.scheme.dynamic_form == "operators":
            self._write_dynamic(node, weight, layer)
        else:
            self._write_channels(node, weight, layer)

    def _constant(self, name: str, packed: Packed) -> ir.Value:
        """Returns the constant of this name, made on first use."""
        if name not in self._stored:
            self._stored[name] = self._constants.write(name, packed)
        return self._stored[name]

    # -- floats -----------------------------------------------------------------------------------

    def _write_floats(self, node: ir.Node, weight: ir.Value, layer: LayerWeight) -> None:
        if layer.treatment.weight_dtype == "float32":
            if layer.is_treated:
                stored = self._plan.bank.floats(layer, np.float32)
                node.replace_input_with(
                    node.inputs.index(weight), self._unpacked(f"{weight.name}_float32", layer, stored)
                )
            return
        stored = self._plan.bank.floats(layer, np.float16)
        position, name = node.inputs.index(weight), f"{weight.name}_float16"
        if stored.scale is not None:
            node.replace_input_with(position, self._unpacked(name, layer, stored))
            return
        half = self._constant(name, stored.packed)
        if node.op_type == "Gather":  # cast what was looked up, not the table
            node.replace_input_with(position, half)
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
            self._insert_behind(node, lambda out: [ir.node("Cast", [out], {"to": _FLOAT})])
            return
        cast = ir.node("Cast", [half], {"to": _FLOAT}, name=f"{half.name}_cast_{node.name}")
        cast.outputs[0].name = f"{cast.name}_output"
        self._graph.insert_before(node, cast)
        node.replace_input_with(position, cast.outputs[0])

    def _unpacked(self, name: str, layer: LayerWeight, stored: FloatWeight) -> ir.Value:
        """Returns the weight in float32, times its scale, as constants that the runtime folds."""
        value = self._constant(name, stored.packed)
        if stored.scale is None:
            return value
        if f"{name}_scaled" not in self._stored:
            if layer.treatment.weight_dtype == "float16":
                value = self._constants.node("Cast", value, to=_FLOAT)
            scale = self._constants.constant(f"{name}_scale", stored.scale)
            self._stored[f"{name}_scaled"] = self._constants.node("Mul", value, scale, name=f"{name}_scaled")
        return self._stored[f"{name}_scaled"]

    def _write_float8(self, node: ir.Node, weight: ir.Value, layer: LayerWeight) -> None:
        stored = self._plan.bank.float8(layer)
        self._dequantize(node, f"{weight.name}_float8", str(weight.name), stored, stored.codes)

    # -- int8 -------------------------------------------------------------------------------------

    def _write_embedding(self, node: ir.Node, weight: ir.Value, layer: LayerWeight) -> None:
        """Looks up int8 rows and, where each row has its own, their scales."""
        coded = self._plan.bank.channels(layer)
        stored = coded.weight
        codes = self._constant(f"{weight.name}_int8", coded.packed)
        is_per_row = stored.axis is not None
        scale = self._constant(f"{weight.name}_scale", stored.scale[:, None] if is_per_row else stored.scale)
        if is_per_row:
            rows = ir.node("Gather", [scale, node.inputs[1]], name=f"{node.name}_scale")
            scale = rows.outputs[0]
            scale.name = f"{node.outputs[0].name}_row_scale"  # the plain name is that of its activation scale
            self._graph.insert_before(node, rows)
        node.replace_input_with(0, codes)
        node.outputs[0].type = ir.TensorType(ir.DataType.INT8)

        def scaled(out: ir.Value) -> list[ir.Node]:
            cast = ir.node("Cast", [out], {"to": _FLOAT})
            return [cast, ir.node("Mul", [cast.outputs[0], scale])]

        self._insert_behind(node, scaled)

    def _write_channels(self, node: ir.Node, weight: ir.Value, layer: LayerWeight) -> None:
        """Stores int8 codes with a DequantizeLinear; for static layers the bias too, where the kernel needs it."""
        banked = self._plan.bank.channels(layer)
        stored, packed = banked.weight, banked.packed
        input_scale = self._activations.scale_of(input_of(node, 0)) if layer.treatment.is_static else None
        place = find_bias(node) if self._plan.scheme.quantize_conv_outputs else None
        if place is not None and input_scale is not None:
            treated = self._plan.bank.treated(layer).array
            stored = self._write_bias(place, stored, treated, float(input_scale.scale))
        # codes that were made for the bias of this node are no other node's
        suffix = "_int8"
        if stored is not banked.weight:
            suffix, packed = f"_int8_{node.name}", pack_codes(stored, layer)
        self._dequantize(node, f"{weight.name}{suffix}", str(weight.name), stored, packed)

    def _dequantize(self, node: ir.Node, name: str, weight: str, stored: QuantizedWeight, packed: Packed) -> None:
        codes = self._constant(name, packed)
        scale = self._constant(f"{name}_scale", stored.scale)
        zero = self._constant(f"{name}_zero_point", np.zeros(stored.scale.shape, stored.codes.dtype))
        attributes = {} if stored.axis is None else {"axis": stored.axis}
        dequantize = ir.node(
            "DequantizeLinear", [codes, scale, zero], attributes, name=f"{weight}_dequantize_{node.name}"
        )
        dequantize.outputs[0].name = f"{dequantize.name}_output"
        self._graph.insert_before(node, dequantize)
        node.replace_input_with(1, dequantize.outputs[0])

    def _write_bias(
        self, place: tuple[ir.Node, int], stored: QuantizedWeight, weight: np.ndarray, input_scale: float
    ) -> QuantizedWeight:
        """Stores a bias, given as (node, position), as int32 with scale input × weight, as integer kernels add it.

        Where a bias is too large for that, the weight's scale is raised until it fits, and the weight rounded anew.
        """
        node, position = place
        bias = array_of(input_of(node, position)).reshape(-1)
        floor = (np.abs(bias) / (input_scale * _MAX_BIAS)).astype(np.float32)
        if (np.broadcast_to(stored.scale, bias.shape) < floor).any():
            stored = raise_scale(stored, weight, floor)
        scale = (np.float32(input_scale) * stored.scale).astype(np.float32)
        # in float64: float32 cannot hold all of these codes
        codes = np.clip(np.rint(bias.astype(np.float64) / scale), -_MAX_BIAS, _MAX_BIAS).astype(np.int32)
        prefix = f"{input_of(node, position).name}_{node.name}"
        codes_value = add_initializer(self._graph, f"{prefix}_int32", codes)
        scale_value = add_initializer(self._graph, f"{prefix}_scale", scale)
        attributes = {"axis": 0} if scale.ndim else {}
        # without a zero point, which is 0 for int32 by definition
        dequantize = ir.node("DequantizeLinear", [codes_value, scale_value], attributes, name=f"{prefix}_dequantize")
        dequantize.outputs[0].name = f"{prefix}_dequantized"
        self._graph.insert_before(node, dequantize)
        node.replace_input_with(position, dequantize.outputs[0])
        return stored

    def _write_dynamic(self, node: ir.Node, weight: ir.Value, layer: LayerWeight) -> None:
        """Writes y = cast(x_codes · w_codes) × (x_scale × w_scale), which ONNX Runtime fuses into one kernel."""
        coded = self._plan.bank.channels(layer)
        stored = coded.weight
        codes = self._constant(f"{weight.name}_int8", coded.packed)
        scale = self._constant(f"{weight.name}_int8_scale", stored.scale)
        zero = self._constant(f"{weight.name}_int8_zero_point", np.zeros(stored.scale.shape, np.int8))
        x_codes, x_scale, x_zero = self._activations.quantize_dynamically(input_of(node, 0))
        product = ir.node("MatMulInteger", [x_codes, codes, x_zero, zero], name=f"{node.name}_integer")
        product.outputs[0].name = f"{node.outputs[0].name}_integer"
        cast = ir.node("Cast", [product.outputs[0]], {"to": _FLOAT}, name=f"{node.name}_cast")
        cast.outputs[0].name = f"{node.outputs[0].name}_cast"
        scales = ir.node("Mul", [x_scale, scale], name=f"{node.name}_scales")
        scales.outputs[0].name = f"{node.outputs[0].name}_scales"
        scaled = ir.node("Mul", [cast.outputs[0], scales.outputs[0]], name=f"{node.name}_scaled")
        for new in (product, cast, scales, scaled):
            self._graph.insert_before(node, new)
        take_over(self._graph, node, scaled)

    # -- blocks -----------------------------------------------------------------------------------

    def _write_blocks(self, node: ir.Node, weight: ir.Value, layer: LayerWeight) -> None:
        stored = self._plan.bank.blocks(layer)
        n_inputs, n_outputs = array_of(weight).shape
        codes = self._constant(f"{weight.name}_int{stored.bits}", stored.codes)
        scales = self._constant(f"{weight.name}_int{stored.bits}_scale", stored.scales)
        product = ir.node(
            "MatMulNBits",
            [node.inputs[0], codes, scales],
            {"K": n_inputs, "N": n_outputs, "bits": stored.bits, "block_size": stored.block_size},
            domain="com.microsoft",
            name=f"{node.name}_int{stored.bits}",
        )
        self._graph.insert_before(node, product)
        self._graph.opset_imports.setdefault("com.microsoft", 1)
        take_over(self._graph, node, product)

    # -- edits ------------------------------------------------------------------------------------

    def _insert_behind(self, node: ir.Node, make: Callable[[ir.Value], list[ir.Node]]) -> None:
        """Puts nodes between a node's output and its readers; the last one takes over the output's name."""
        output = node.outputs[0]
        name, readers, was_output = output.name, list(output.uses()), output.is_graph_output()
        nodes = make(output)
        self._graph.insert_after(node, nodes)
        final = nodes[-1].outputs[0]
        for user, position in readers:
            user.replace_input_with(position, final)
        if was_output:
            self._graph.outputs[self._graph.outputs.index(output)] = final
        output.name = f"{name}_stored"
        for n, new in enumerate(nodes):
            new.name = f"{node.name}_stored_{n}"
            new.outputs[0].name = f"{name}_stored_{n}"
        final.name, final.type, final.shape = name, ir.TensorType(ir.DataType.FLOAT), output.shape
