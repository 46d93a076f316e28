"""Where the bytes of a stored model are: codes of the weights, what is needed to read them, the rest, the graph."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import onnx

#: (operator, position of the input) → what a constant there is; an operator that is not here holds "others"
_ROLES: Mapping[tuple[str, int], str] = {
    ("QuantizeLinear", 1): "scales", ("QuantizeLinear", 2): "zero_points",
    ("DequantizeLinear", 1): "scales", ("DequantizeLinear", 2): "zero_points",
    ("MatMulInteger", 0): "weights", ("MatMulInteger", 1): "weights",
    ("MatMulInteger", 2): "zero_points", ("MatMulInteger", 3): "zero_points",
    ("ConvInteger", 1): "weights", ("ConvInteger", 2): "zero_points", ("ConvInteger", 3): "zero_points",
    ("MatMulNBits", 1): "weights", ("MatMulNBits", 2): "scales", ("MatMulNBits", 3): "zero_points",
    ("MatMulNBits", 5): "biases",
    ("Conv", 1): "weights", ("Conv", 2): "biases", ("ConvTranspose", 1): "weights", ("ConvTranspose", 2): "biases",
    ("Gemm", 0): "weights", ("Gemm", 1): "weights", ("Gemm", 2): "biases",
    ("MatMul", 0): "weights", ("MatMul", 1): "weights", ("Gather", 0): "weights",
    ("MultiHeadAttention", 3): "biases", ("BiasGelu", 1): "biases", ("FastGelu", 1): "biases",
}  # fmt: skip

#: what only unpacks or reshapes its first input, so that a constant there is what its output is used for
_TRANSPARENT = frozenset({"DequantizeLinear", "Cast", "Transpose", "Reshape", "Identity"})

#: (operator, position) of what is unpacked, where nothing but constants is read: powers, bases and shapes are others
_UNPACKED = frozenset({
    ("Div", 0), ("Mod", 0), ("Slice", 0), ("Add", 0), ("Add", 1), ("Mul", 0), ("Mul", 1), ("MatMul", 0), ("Gather", 1),
})  # fmt: skip

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
_DATA_FIELDS = (
    "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data", "raw_data"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes of a stored model by what they are for; they add up to the file.

    >>> Storage(weights=100, scales=8, zero_points=2, biases=16, others=0, graph=74).size_bytes
    200
    """

    #: the weights themselves: floats, or packed codes
    weights: int
    scales: int
    zero_points: int
    biases: int
    #: every other constant: norms, shapes, tables
    others: int
    #: nodes, names and what protobuf adds to each constant
    graph: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def quantization_bytes(self) -> int:
        """What quantisation stores beside the codes."""
        return self.scales + self.zero_points

    def to_json(self) -> dict[str, int]:
        """Returns the fields as JSON values."""
        return asdict(self)


def measure_storage(model: bytes) -> Storage:
    """Splits the bytes of a serialised ONNX model, constants as they are stored: two int4 codes take one byte.

    Args:
        model: with its weights inside.
    """
    graph = onnx.load_model_from_string(model).graph
    uses = _Uses(graph)
    found = dict.fromkeys(("weights", "scales", "zero_points", "biases", "others"), 0)
    for tensor in graph.initializer:
        found[uses.role(tensor.name, tensor)] += stored_bytes(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                role = uses.role(node.output[0], attribute.t) if node.op_type == "Constant" else "others"
                found[role] += stored_bytes(attribute.t)
    return Storage(**found, graph=len(model) - sum(found.values()))


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """Returns the bytes that a constant's elements take in the file."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    bare = onnx.TensorProto()
    bare.CopyFrom(tensor)
    for name in _DATA_FIELDS:
        bare.ClearField(name)
    return int(tensor.ByteSize()) - int(bare.ByteSize())


class _Uses:
    """Finds out what a constant is for."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._producers = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[tuple[Any, int]]] = {}
        for node in graph.node:
            for position, name in enumerate(node.input):
                self._readers.setdefault(name, []).append((node, position))
        #: values that are computed from constants alone: runtimes fold them when they load the model
        self._folded: set[str] = set()
        constants = {tensor.name for tensor in graph.initializer}
        for node in graph.node:
            if node.input and all(name in constants or name in self._folded for name in node.input):
                self._folded.update(node.output)

    def role(self, name: str, tensor: onnx.TensorProto) -> str:
        """Returns the field of `Storage` that a constant belongs to: the first use that says something."""
        for node, position in self._readers.get(name, ()):
            role = self._role_at(node, position, tensor)
            if role != "others":
                return role
        return "others"

    def _role_at(self, node: Any, position: int, tensor: onnx.TensorProto) -> str:
        is_unpacked = node.output[0] in self._folded and (node.op_type, position) in _UNPACKED
        if is_unpacked and node.op_type == "Mul" and position == 1 and tensor.data_type in _FLOATS:
            return "scales"  # of a codebook
        if is_unpacked or (node.op_type in _TRANSPARENT and position == 0):
            return self.role(node.output[0], tensor)
        if node.op_type == "Mul" and self._unscaled(node, position):
            return "scales"
        if node.op_type == "Add" and len([side for side in tensor.dims if side > 1]) <= 1 and self._is_product(node):
            return "biases"
        if node.op_type == "Gather" and tensor.data_type in _FLOATS and self._scales_rows(node):
            return "scales"
        return _ROLES.get((node.op_type, position), "others")

    def _unscaled(self, node: Any, position: int) -> bool:
        """Whether the other factor holds codes, or the scale of activations."""
        other = self._producers.get(node.input[1 - position])
        return other is not None and other.op_type in ("Cast", "DynamicQuantizeLinear")

    def _scales_rows(self, node: Any) -> bool:
        """Whether the rows that are looked up scale codes that were looked up as well."""
        return any(
            reader.op_type == "Mul" and self._unscaled(reader, position)
            for reader, position in self._readers.get(node.output[0], ())
        )

    def _is_product(self, node: Any) -> bool:
        sources = [self._producers.get(name) for name in node.input]
        products = ("MatMul", "MatMulNBits", "MatMulInteger", "Mul")
        return any(source is not None and source.op_type in products for source in sources)
