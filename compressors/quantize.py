"""A policy's quantisation written into the graph: explicit QDQ, dynamic operators, compressed weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from ..core.errors import PolicyError
from ..hw_profiles.target import Capabilities
from ..spaces.treatment import Treatment
from .activations import ActivationScale, activation_scale, extra_nodes, find_bias, fused_output
from .calibration import Range
from .graph import add_initializer, drop_unused_initializers, input_of, kind_of, take_over, weight_of
from .weights import BlockWeight, QuantizedWeight, quantize_blocks, quantize_weight

#: largest code of an int32 bias: as much again is left for the sum of 33,000 products of uint8 and int8
_MAX_BIAS = 2**30

T = TypeVar("T")


@dataclass
class WeightBank:
    """The treated weights of a model, each made at most once; lives as long as the worker."""

    _made: dict[tuple[object, ...], object] = field(default_factory=dict)

    def per_channel(self, name: str, weight: np.ndarray, axis: int | None) -> QuantizedWeight:
        """Returns the int8 weight with one scale per index of ``axis`` (or one in all)."""
        return self._get((name, "int8", axis), lambda: quantize_weight(weight, axis=axis))

    def blocks(self, name: str, weight: np.ndarray, *, bits: int, block_size: int) -> BlockWeight:
        """Returns the weight in blocks for MatMulNBits."""
        return self._get((name, bits, block_size), lambda: quantize_blocks(weight, bits=bits, block_size=block_size))

    def half(self, name: str, weight: np.ndarray) -> np.ndarray:
        """Returns the weight in float16; values beyond its range are clipped to the largest it holds."""
        limit = np.finfo(np.float16).max
        return self._get((name, "float16"), lambda: np.clip(weight, -limit, limit).astype(np.float16))

    def _get(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]  # type: ignore[return-value]


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


def quantize_graph(graph: ir.Graph, plan: QuantizationPlan) -> None:
    """Rewrites the graph in place (the caller owns a copy).

    Raises:
        PolicyError: a treatment cannot be written for its layer; the message names it.
    """
    chosen = {name: treatment for name, treatment in plan.treatments.items() if treatment != Treatment()}
    static = {name: treatment for name, treatment in chosen.items() if treatment.is_static}
    layers = [(node, weight) for node in graph if (weight := weight_of(node)) is not None]
    treated = [
        (node, weight, chosen[name])
        for node, weight in layers
        if (name := str(weight.name).removesuffix(".weight")) in chosen
    ]
    for node, weight, treatment in treated:
        _check_kind(str(weight.name).removesuffix(".weight"), kind_of(node), treatment)
    extras = extra_nodes(graph, plan.quantized_ops, static)
    writer = _Writer(graph, plan)
    points = [(node, _output_to_quantize(node, weight, plan)) for node, weight, t in treated if t.is_static]
    for node, output in points:
        writer.quantize_input(node, 0)
        if output is not None:
            writer.quantize_output(output)
    for node in extras:
        output = fused_output(node)
        for position, value in enumerate(node.inputs):
            if value is not None and value.const_value is None and (position == 0 or node.op_type != "Clip"):
                writer.quantize_input(node, position)
        writer.quantize_output(output)
    for node, weight, treatment in treated:
        writer.write_weight(node, weight, treatment)
    drop_unused_initializers(graph)


def _output_to_quantize(node: ir.Node, weight: ir.Value, plan: QuantizationPlan) -> ir.Value | None:
    """Returns the value that has to be quantised as well, or else the static layer's kernel stays float.

    Of the linear layers these are the ones whose kernel has nothing but a Relu or Clip behind it: ONNX Runtime then
    looks for integers behind that, and finds none.
    """
    if not plan.scheme.quantize_conv_outputs:
        return None
    if node.op_type == "Conv":
        return fused_output(node)
    place, is_row = find_bias(node), str(weight.name).removesuffix(".weight") in plan.row_layers
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
    if kind == "embedding" and treatment.activation_dtype == "int8":
        raise PolicyError(
            f"layer {name}: int8 activations exist for convolutions and linear layers, not for embeddings"
        )


class _Writer:
    """Edits one graph; remembers which values have been quantised already."""

    def __init__(self, graph: ir.Graph, plan: QuantizationPlan) -> None:
        self.graph = graph
        self.plan = plan
        #: value → its dequantised twin
        self._twins: dict[ir.Value, ir.Value] = {}
        self._scales: dict[ir.Value, ActivationScale] = {}
        #: value → (codes, scale, zero point) of its dynamic quantisation
        self._dynamic: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._stored: dict[tuple[object, ...], ir.Value] = {}

    # -- activations ------------------------------------------------------------------------------

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

    def _twin(self, value: ir.Value) -> ir.Value:
        if value in self._twins:
            return self._twins[value]
        range_ = self.plan.ranges.get(str(value.name))
        if range_ is None:
            raise PolicyError(f"there are no calibration statistics for the value '{value.name}'")
        chosen = activation_scale(range_, self.plan.scheme.activation_codes)
        scale = add_initializer(self.graph, f"{value.name}_scale", np.asarray(chosen.scale))
        zero = add_initializer(self.graph, f"{value.name}_zero_point", np.asarray(chosen.zero_point))
        quantize = self._after(value, ir.node("QuantizeLinear", [value, scale, zero]), f"{value.name}_quantized")
        twin = self._after(quantize, ir.node("DequantizeLinear", [quantize, scale, zero]), f"{value.name}_dequantized")
        self._twins[value], self._scales[twin] = twin, chosen
        return twin

    def _after(self, value: ir.Value, node: ir.Node, name: str) -> ir.Value:
        """Inserts a node right behind the value's producer (or at the start) and names its output."""
        producer = value.producer()
        node.outputs[0].name, node.name = name, f"{name}_node"
        if producer is not None:
            self.graph.insert_after(producer, node)
        else:
            self.graph.insert_before(self.graph[0], node)
        return node.outputs[0]

    # -- weights ----------------------------------------------------------------------------------

    def write_weight(self, node: ir.Node, weight: ir.Value, treatment: Treatment) -> None:
        """Stores the weight as the treatment says and connects the node to it."""
        if treatment.weight_dtype == "float16":
            self._write_half(node, weight)
        elif treatment.weight_dtype == "int4" or treatment.granularity.startswith("block"):
            self._write_blocks(node, weight, treatment)
        elif node.op_type == "Gather":
            self._write_embedding(node, weight, treatment)
        elif treatment.activation_range == "dynamic" and self.plan.scheme.dynamic_form == "operators":
            self._write_dynamic(node, weight, treatment)
        else:
            self._write_channels(node, weight, treatment)

    def _name(self, weight: ir.Value) -> str:
        return str(weight.name).removesuffix(".weight")

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        """Returns the initialiser of this name, made on first use: layers that share a weight share it still."""
        if (name,) not in self._stored:
            self._stored[(name,)] = add_initializer(self.graph, name, array)
        return self._stored[(name,)]

    def _write_half(self, node: ir.Node, weight: ir.Value) -> None:
        half = self._constant(f"{weight.name}_float16", self.plan.bank.half(self._name(weight), _array(weight)))
        position = node.inputs.index(weight)
        is_embedding = node.op_type == "Gather"
        if is_embedding:  # cast what was looked up, not the table
            node.replace_input_with(position, half)
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
            self._insert_behind(node, lambda out: [ir.node("Cast", [out], {"to": int(ir.DataType.FLOAT)})])
            return
        cast = ir.node("Cast", [half], {"to": int(ir.DataType.FLOAT)}, name=f"{half.name}_cast_{node.name}")
        cast.outputs[0].name = f"{cast.name}_output"
        self.graph.insert_before(node, cast)
        node.replace_input_with(position, cast.outputs[0])

    def _write_embedding(self, node: ir.Node, weight: ir.Value, treatment: Treatment) -> None:
        """Looks up int8 rows and, where each row has its own, their scales."""
        axis = None if treatment.granularity == "tensor" else 0
        stored = self.plan.bank.per_channel(self._name(weight), _array(weight), axis)
        codes = self._constant(f"{weight.name}_int8", stored.codes)
        scale = self._constant(f"{weight.name}_scale", stored.scale if axis is None else stored.scale[:, None])
        if axis is not None:
            rows = ir.node("Gather", [scale, node.inputs[1]], name=f"{node.name}_scale")
            scale = rows.outputs[0]
            scale.name = f"{node.outputs[0].name}_row_scale"  # the plain name is that of its activation scale
            self.graph.insert_before(node, rows)
        node.replace_input_with(0, codes)
        node.outputs[0].type = ir.TensorType(ir.DataType.INT8)
        cast_to = {"to": int(ir.DataType.FLOAT)}

        def scaled(out: ir.Value) -> list[ir.Node]:
            cast = ir.node("Cast", [out], cast_to)
            return [cast, ir.node("Mul", [cast.outputs[0], scale])]

        self._insert_behind(node, scaled)

    def _write_channels(self, node: ir.Node, weight: ir.Value, treatment: Treatment) -> None:
        """Stores int8 codes with a DequantizeLinear; for static layers the bias too, where the kernel needs it."""
        axis = None if treatment.granularity == "tensor" else (1 if node.op_type == "MatMul" else 0)
        stored = banked = self.plan.bank.per_channel(self._name(weight), _array(weight), axis)
        input_scale = self._scales.get(input_of(node, 0)) if treatment.is_static else None
        place = find_bias(node) if self.plan.scheme.quantize_conv_outputs else None
        if place is not None and input_scale is not None:
            stored = self._write_bias(place, stored, _array(weight), float(input_scale.scale))
        # codes that were made for the bias of this node are no other node's
        suffix = "_int8" if stored is banked else f"_int8_{node.name}"
        codes = self._constant(f"{weight.name}{suffix}", stored.codes)
        scale = self._constant(f"{weight.name}{suffix}_scale", stored.scale)
        zero = self._constant(f"{weight.name}{suffix}_zero_point", np.zeros(stored.scale.shape, np.int8))
        attributes = {} if axis is None else {"axis": axis}
        dequantize = ir.node(
            "DequantizeLinear", [codes, scale, zero], attributes, name=f"{weight.name}_dequantize_{node.name}"
        )
        dequantize.outputs[0].name = f"{dequantize.name}_output"
        self.graph.insert_before(node, dequantize)
        node.replace_input_with(1, dequantize.outputs[0])

    def _write_bias(
        self, place: tuple[ir.Node, int], stored: QuantizedWeight, weight: np.ndarray, input_scale: float
    ) -> QuantizedWeight:
        """Stores a bias, given as (node, position), as int32 with scale input × weight, as integer kernels add it.

        Where a bias is too large for that, the weight's scale is raised until it fits, and the weight rounded anew.
        """
        node, position = place
        bias = _array(node.inputs[position]).reshape(-1)
        floor = (np.abs(bias) / (input_scale * _MAX_BIAS)).astype(np.float32)
        if (np.broadcast_to(stored.scale, bias.shape) < floor).any():
            scale = np.maximum(stored.scale, floor if stored.scale.ndim else floor.max())
            others = [axis for axis in range(weight.ndim) if axis != stored.axis]
            divisor = np.expand_dims(scale, others) if scale.ndim else scale
            stored = QuantizedWeight(np.clip(np.rint(weight / divisor), -127, 127).astype(np.int8), scale, stored.axis)
        scale = (np.float32(input_scale) * stored.scale).astype(np.float32)
        # in float64: float32 cannot hold all of these codes
        codes = np.clip(np.rint(bias.astype(np.float64) / scale), -_MAX_BIAS, _MAX_BIAS).astype(np.int32)
        prefix = f"{input_of(node, position).name}_{node.name}"
        codes_value = add_initializer(self.graph, f"{prefix}_int32", codes)
        scale_value = add_initializer(self.graph, f"{prefix}_scale", scale)
        attributes = {"axis": 0} if scale.ndim else {}
        # without a zero point, which is 0 for int32 by definition
        dequantize = ir.node("DequantizeLinear", [codes_value, scale_value], attributes, name=f"{prefix}_dequantize")
        dequantize.outputs[0].name = f"{prefix}_dequantized"
        self.graph.insert_before(node, dequantize)
        node.replace_input_with(position, dequantize.outputs[0])
        return stored

    def _write_dynamic(self, node: ir.Node, weight: ir.Value, treatment: Treatment) -> None:
        """Writes y = cast(x_codes · w_codes) × (x_scale × w_scale), which ONNX Runtime fuses into one kernel."""
        axis = None if treatment.granularity == "tensor" else 1
        stored = self.plan.bank.per_channel(self._name(weight), _array(weight), axis)
        codes = self._constant(f"{weight.name}_int8", stored.codes)
        scale = self._constant(f"{weight.name}_int8_scale", stored.scale)
        zero = self._constant(f"{weight.name}_int8_zero_point", np.zeros(stored.scale.shape, np.int8))
        x_codes, x_scale, x_zero = self._dynamic_input(input_of(node, 0))
        product = ir.node("MatMulInteger", [x_codes, codes, x_zero, zero], name=f"{node.name}_integer")
        product.outputs[0].name = f"{node.outputs[0].name}_integer"
        cast = ir.node("Cast", [product.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{node.name}_cast")
        cast.outputs[0].name = f"{node.outputs[0].name}_cast"
        scales = ir.node("Mul", [x_scale, scale], name=f"{node.name}_scales")
        scales.outputs[0].name = f"{node.outputs[0].name}_scales"
        scaled = ir.node("Mul", [cast.outputs[0], scales.outputs[0]], name=f"{node.name}_scaled")
        for new in (product, cast, scales, scaled):
            self.graph.insert_before(node, new)
        take_over(self.graph, node, scaled)

    def _dynamic_input(self, value: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        if value not in self._dynamic:
            quantize = ir.node("DynamicQuantizeLinear", [value], num_outputs=3)
            self._after(value, quantize, f"{value.name}_dynamic")
            for output, suffix in zip(quantize.outputs[1:], ("scale", "zero_point"), strict=True):
                output.name = f"{value.name}_dynamic_{suffix}"
            self._dynamic[value] = tuple(quantize.outputs)  # type: ignore[assignment]
        return self._dynamic[value]

    def _write_blocks(self, node: ir.Node, weight: ir.Value, treatment: Treatment) -> None:
        block_size = int(treatment.granularity.removeprefix("block"))
        bits = 4 if treatment.weight_dtype == "int4" else 8
        stored = self.plan.bank.blocks(self._name(weight), _array(weight), bits=bits, block_size=block_size)
        n_inputs, n_outputs = _array(weight).shape
        codes = self._constant(f"{weight.name}_int{bits}", stored.codes)
        scales = self._constant(f"{weight.name}_int{bits}_scale", stored.scales)
        product = ir.node(
            "MatMulNBits",
            [node.inputs[0], codes, scales],
            {"K": n_inputs, "N": n_outputs, "bits": bits, "block_size": block_size},
            domain="com.microsoft",
            name=f"{node.name}_int{bits}",
        )
        self.graph.insert_before(node, product)
        self.graph.opset_imports.setdefault("com.microsoft", 1)
        take_over(self.graph, node, product)

    # -- edits ------------------------------------------------------------------------------------

    def _insert_behind(self, node: ir.Node, make: Callable[[ir.Value], list[ir.Node]]) -> None:
        """Puts nodes between a node's output and its readers; the last one takes over the output's name."""
        output = node.outputs[0]
        name, readers, was_output = output.name, list(output.uses()), output.is_graph_output()
        nodes = make(output)
        self.graph.insert_after(node, nodes)
        final = nodes[-1].outputs[0]
        for user, position in readers:
            user.replace_input_with(position, final)
        if was_output:
            self.graph.outputs[self.graph.outputs.index(output)] = final
        output.name = f"{name}_stored"
        for n, new in enumerate(nodes):
            new.name = f"{node.name}_stored_{n}"
            new.outputs[0].name = f"{name}_stored_{n}"
        final.name, final.type, final.shape = name, ir.TensorType(ir.DataType.FLOAT), output.shape


def _array(value: ir.Value | None) -> np.ndarray:
    if value is None or value.const_value is None:
        raise PolicyError("a weight or bias is not constant")
    return value.const_value.numpy()
