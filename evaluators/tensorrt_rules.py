"""What TensorRT asks of a quantised ONNX graph, checked without TensorRT.

Sources: "Working with Quantized Types" of the TensorRT documentation (symmetric quantisation, signed codes, FP8 in the
form E4M3, INT4 for weights alone), the importers of onnx-tensorrt (`QuantDequantLinearHelper`: positive scales, zero
points all 0, as many scales as there are channels, several scales for weights only) and its table of operators. An
int32 bias behind DequantizeLinear ends in "only activation types allowed as input to this layer" (onnxruntime issue
14229). Release notes of 10.13.3, limitations: no optimised FP8 convolutions with groups, none with kernels of more than
32 elements.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

#: operators of quantised models that onnx-tensorrt does not import
_FOREIGN_OPERATORS = frozenset({
    "ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm",
})  # fmt: skip

_DEFAULT_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")

#: Codes of which both factors of a product have to be, and what they are called
_CODES = {TensorProto.INT8: "int8", TensorProto.FLOAT8E4M3FN: "float8"}

#: elements of the largest kernel of a convolution in float8
_LARGEST_KERNEL = 32

#: operators with a weight → (position of the weight, axis of its output channels)
_WEIGHTED = {"Conv": (1, 0), "ConvTranspose": (1, 1), "MatMul": (1, 1), "Gemm": (1, 1)}


def check_tensorrt_rules(model: bytes) -> list[str]:
    """Returns what TensorRT would refuse, or silently run in floating point; empty where the graph keeps the rules.

    Args:
        model: a serialised ONNX model.
    """
    graph = _Graph(onnx.load_model_from_string(model).graph)
    violations: list[str] = []
    for node in graph.proto.node:
        violations += _check_operator(node)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.domain in _DEFAULT_DOMAINS:
            violations += _check_scale(node, graph)
            violations += _check_zero_point(node, graph)
            violations += _check_codes(node, graph)
            violations += _check_channels(node, graph)
        elif node.op_type in _WEIGHTED:
            violations += _check_pair(node, graph)
            violations += _check_kernel(node, graph)
    return violations


def find_codes(model: bytes) -> frozenset[str]:
    """Returns the codes that a model's activations are quantised to: ``int8``, ``float8``.

    Args:
        model: a serialised ONNX model.
    """
    graph = _Graph(onnx.load_model_from_string(model).graph)
    kinds = {_code_type(node, graph) for node in graph.proto.node if node.op_type == "QuantizeLinear"}
    return frozenset(_CODES[kind] for kind in kinds if kind in _CODES)


@dataclass
class _Graph:
    """A graph with its constants, producers and readers by name."""

    proto: onnx.GraphProto
    constants: Mapping[str, TensorProto] = field(init=False)
    producers: Mapping[str, onnx.NodeProto] = field(init=False)
    readers: Mapping[str, list[onnx.NodeProto]] = field(init=False)

    def __post_init__(self) -> None:
        self.constants = {tensor.name: tensor for tensor in self.proto.initializer}
        self.producers = {name: node for node in self.proto.node for name in node.output}
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.proto.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        self.readers = readers

    def array(self, name: str) -> np.ndarray | None:
        """The value of a constant."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def dequantizer(self, name: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that makes a value."""
        node = self.producers.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None


def _check_operator(node: onnx.NodeProto) -> Iterator[str]:
    if node.domain not in _DEFAULT_DOMAINS:
        yield f"{_name(node)}: TensorRT has no operators of {node.domain}"
    elif node.op_type in _FOREIGN_OPERATORS:
        yield f"{_name(node)}: TensorRT quantises with QuantizeLinear and DequantizeLinear only"


def _check_scale(node: onnx.NodeProto, graph: _Graph) -> Iterator[str]:
    scale = graph.array(node.input[1])
    if scale is None:
        yield f"{_name(node)}: the scale must be constant"
    elif not (np.isfinite(scale).all() and (scale > 0).all()):
        yield f"{_name(node)}: scales must be positive and finite, the smallest is {scale.min()}"


def _check_zero_point(node: onnx.NodeProto, graph: _Graph) -> Iterator[str]:
    if len(node.input) < 3 or not node.input[2]:
        return
    zero, scale = graph.array(node.input[2]), graph.array(node.input[1])
    if zero is None:
        yield f"{_name(node)}: the zero point must be constant"
        return
    if zero.any():
        yield f"{_name(node)}: zero points must be 0, got {int(zero.ravel()[np.flatnonzero(zero)[0]])}"
    if scale is not None and zero.size != scale.size:
        yield f"{_name(node)}: {scale.size} scales need as many zero points, got {zero.size}"


def _check_codes(node: onnx.NodeProto, graph: _Graph) -> Iterator[str]:
    """Codes are int8 or float8, or int4 for weights; a quantiser is read by dequantisers only."""
    kind = _code_type(node, graph)
    is_weight = node.op_type == "DequantizeLinear" and node.input[0] in graph.constants
    allowed = (*_CODES, TensorProto.INT4) if is_weight else tuple(_CODES)
    if kind not in allowed:
        name = TensorProto.DataType.Name(kind)
        yield f"{_name(node)}: codes must be signed, int8 or float8 (weights alone also int4), got {name}"
    if node.op_type == "QuantizeLinear":
        for reader in graph.readers.get(node.output[0], []):
            if reader.op_type != "DequantizeLinear":
                yield f"{_name(node)}: codes may be read by DequantizeLinear only, got {_name(reader)}"


def _code_type(node: onnx.NodeProto, graph: _Graph) -> int:
    """The element type of the codes of a quantiser or dequantiser."""
    if node.op_type == "DequantizeLinear" and node.input[0] in graph.constants:
        return int(graph.constants[node.input[0]].data_type)
    if len(node.input) > 2 and node.input[2] in graph.constants:
        return int(graph.constants[node.input[2]].data_type)
    if node.op_type == "DequantizeLinear":
        source = graph.producers.get(node.input[0])
        return _code_type(source, graph) if source is not None and source.op_type == "QuantizeLinear" else 0
    stated = next((int(entry.i) for entry in node.attribute if entry.name == "output_dtype"), 0)
    return stated or int(TensorProto.UINT8)  # ONNX's default


def _check_channels(node: onnx.NodeProto, graph: _Graph) -> Iterator[str]:
    """Activations have one scale; weights one, or one per output channel."""
    scale = graph.array(node.input[1])
    if scale is None or scale.size == 1 or _attribute(node, "block_size", 0):
        return
    if node.input[0] not in graph.constants:
        yield f"{_name(node)}: activations have one scale for all, got {scale.size}"
        return
    dims = list(graph.constants[node.input[0]].dims)
    axis = _attribute(node, "axis", 1) % max(len(dims), 1)
    if axis >= len(dims) or dims[axis] != scale.size:
        yield f"{_name(node)}: {scale.size} scales do not fit axis {axis} of a weight of shape {dims}"
        return
    for reader in graph.readers.get(node.output[0], []):
        if reader.op_type in _WEIGHTED and reader.input[_WEIGHTED[reader.op_type][0]] == node.output[0]:
            expected = _output_axis(reader)
            if axis != expected:
                yield f"{_name(node)}: the weight of {_name(reader)} has its channels on axis {expected}, got {axis}"


def _check_pair(node: onnx.NodeProto, graph: _Graph) -> Iterator[str]:
    """A layer runs in codes when both factors have the same; its bias stays in floating point."""
    weight = graph.dequantizer(node.input[_WEIGHTED[node.op_type][0]])
    data = graph.dequantizer(node.input[0])
    if weight is not None and weight.input[0] in graph.constants:
        kind = graph.constants[weight.input[0]].data_type
        same = data is not None and data.input[0] not in graph.constants and _code_type(data, graph) == kind
        if kind in _CODES and not same:
            codes = _CODES[kind]
            yield f"{_name(node)}: {codes} weights need {codes} inputs, for only int4 is quantised alone"
    if len(node.input) > 2 and graph.dequantizer(node.input[2]) is not None:
        yield f"{_name(node)}: the bias must be floating point, got a DequantizeLinear"


def _check_kernel(node: onnx.NodeProto, graph: _Graph) -> Iterator[str]:
    """Convolutions in float8 have kernels of their own for one group and small windows only."""
    weight = graph.dequantizer(node.input[1])
    if node.op_type != "Conv" or weight is None or weight.input[0] not in graph.constants:
        return
    stored = graph.constants[weight.input[0]]
    if stored.data_type != TensorProto.FLOAT8E4M3FN:
        return
    if _attribute(node, "group", 1) > 1:
        yield f"{_name(node)}: float8 convolutions have one group, got {_attribute(node, 'group', 1)}; take int8"
    n_elements = math.prod(stored.dims[2:])
    if n_elements > _LARGEST_KERNEL:
        yield f"{_name(node)}: float8 kernels have at most {_LARGEST_KERNEL} elements, got {n_elements}; take int8"


def _output_axis(node: onnx.NodeProto) -> int:
    if node.op_type == "Gemm" and _attribute(node, "transB", 0):
        return 0
    return _WEIGHTED[node.op_type][1]


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)


def _name(node: onnx.NodeProto) -> str:
    return f"{node.op_type} '{node.name or node.output[0]}'"
