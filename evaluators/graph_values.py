"""The values of an ONNX graph as a fusion rule sees them: shapes, constants, and who reads what."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx
from onnx import AttributeProto, TensorProto

from ..core.errors import MeasurementError
from ..hw_profiles.boards.fusion_rule import FusionRule
from ..hw_profiles.kernels.kernel import Tensor

_DTYPES = {
    TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64", TensorProto.INT8: "int8", TensorProto.UINT8: "uint8", TensorProto.INT16: "int16",
    TensorProto.UINT16: "uint16", TensorProto.INT32: "int32", TensorProto.UINT32: "uint32", TensorProto.INT64: "int64",
    TensorProto.UINT64: "uint64", TensorProto.BOOL: "bool", TensorProto.INT4: "int4", TensorProto.UINT4: "uint4",
    TensorProto.STRING: "string",
}  # fmt: skip
#: constants larger than this take no part in shape inference: they hold weights, not shapes
_MAX_SHAPE_ELEMENTS = 1024

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True, eq=False)
class Node:
    """One operator of the graph."""

    #: its place in the graph, which is in an order of execution
    index: int
    name: str
    #: with its domain unless that is the default one
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    proto: onnx.NodeProto = field(repr=False)

    @property
    def title(self) -> str:
        """How messages name it."""
        return f"node '{self.name or self.index}' ({self.op})"


class GraphValues:
    """What is known of the values of a graph, under a fusion rule that says which nodes cost nothing."""

    def __init__(self, model: bytes, rule: FusionRule, *, batch_size: int, precision: str = "float32") -> None:
        """Reads a model and infers its shapes.

        Args:
            model: a serialised ONNX model.
            rule: its ``free`` and ``folds_constants`` decide what is seen through.
            batch_size: for inputs whose first side is open.
            precision: the dtype in which float32 values are held.

        Raises:
            MeasurementError: the model cannot be read, or has control flow.
        """
        graph = _read(model, batch_size)
        self._rule, self._precision = rule, precision
        self.nodes = tuple(_read_node(index, proto) for index, proto in enumerate(graph.node))
        self.outputs = tuple(value.name for value in graph.output)
        self._types = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = tuple(value.name for value in graph.input if value.name not in self.initializers)
        self._producers = {name: node for node in self.nodes for name in node.outputs if name}
        self.constants = set(self.initializers)
        #: nodes that cost nothing, whoever reads them
        self.free: set[int] = set()
        self._roots: dict[str, str] = {}
        for node in self.nodes:
            self._settle(node)
        self.readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in {self.root(name) for name in node.inputs if name and node.index not in self.free}:
                self.readers.setdefault(name, []).append(node)
        self.kept = {self.root(name) for name in self.outputs}

    def _settle(self, node: Node) -> None:
        """Decides whether a node is computed when the model is loaded, or only gives a value another shape."""
        depends_on_constants = bool(node.inputs) and all(name in self.constants for name in node.inputs if name)
        if node.op == "Constant" or (depends_on_constants and self._rule.folds_constants):
            self.free.add(node.index)
            self.constants.update(node.outputs)
        elif node.op in self._rule.free and node.inputs and node.inputs[0] and not depends_on_constants:
            self.free.add(node.index)
            self._roots[node.outputs[0]] = self.root(node.inputs[0])

    def root(self, name: str) -> str:
        """Returns the value whose memory a value shows: itself, or what went into free nodes before it."""
        return self._roots.get(name, name)

    def producer(self, name: str) -> Node | None:
        """Returns the node that computes a value, behind all free ones; None for inputs and initialisers."""
        return self._producers.get(self.root(name))

    def is_constant(self, name: str) -> bool:
        """Whether a value is known when the model is loaded."""
        return self.root(name) in self.constants

    def is_private(self, name: str, members: frozenset[int]) -> bool:
        """Whether none but these nodes read a value."""
        root = self.root(name)
        return root not in self.kept and all(node.index in members for node in self.readers.get(root, ()))

    def sole_reader(self, name: str) -> Node | None:
        """Returns the one node that reads a value; None when there are others, or the value leaves the graph."""
        root = self.root(name)
        readers = self.readers.get(root, [])
        return readers[0] if len(readers) == 1 and root not in self.kept else None

    def tensor(self, name: str) -> Tensor:
        """Returns dtype and shape of a value.

        Raises:
            MeasurementError: shape inference does not tell them; the message names the node that writes the value.
        """
        is_constant = self.is_constant(name)
        stored = self.initializers.get(name)
        if stored is not None:
            return Tensor(self._dtype(stored.data_type), tuple(stored.dims), is_constant)
        kind = self._types.get(name)
        if kind is None or not kind.HasField("shape") or not kind.elem_type:
            raise MeasurementError(
                f"nothing is known of {self._describe(name)}; the rule can only price ONNX operators"
            )
        sides = tuple(side.dim_value if side.HasField("dim_value") else -1 for side in kind.shape.dim)
        if -1 in sides:
            raise MeasurementError(
                f"the shape of {self._describe(name)} is not fixed ({_describe_sides(kind)}); export the model with "
                f"fixed sides, only the batch may be open"
            )
        return Tensor(self._dtype(kind.elem_type), sides, is_constant)

    def _dtype(self, kind: int) -> str:
        name = _DTYPES.get(kind, f"type{kind}")
        return self._precision if name == "float32" else name

    def _describe(self, name: str) -> str:
        node = self._producers.get(name)
        return f"the input '{name}'" if node is None else f"'{name}', which {node.title} writes"

    def attributes(self, node: Node) -> dict[str, object]:
        """Returns a node's numbers and texts as JSON values."""
        return dict(_attributes(node.proto))


def _read(model: bytes, batch_size: int) -> onnx.GraphProto:
    try:
        proto = onnx.load_model_from_string(model)
        _fix_batch(proto.graph, batch_size)
        large = {
            tensor.name: tensor for tensor in proto.graph.initializer if math.prod(tensor.dims) > _MAX_SHAPE_ELEMENTS
        }
        _replace_by_inputs(proto.graph, large)
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=False, data_prop=True).graph
    except Exception as error:  # protobuf and shape inference raise several types
        raise MeasurementError(f"the model cannot be read: {error}") from error
    for i in reversed(range(len(inferred.input))):
        if inferred.input[i].name in large:
            del inferred.input[i]
    # only their shapes are looked at from here on
    for tensor in large.values():
        inferred.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return inferred


def _replace_by_inputs(graph: onnx.GraphProto, large: "dict[str, TensorProto]") -> None:
    """Shape inference copies the model twice; weights would make that slow."""
    small = [tensor for tensor in graph.initializer if tensor.name not in large]
    stated = {value.name for value in graph.input}
    for tensor in large.values():
        if tensor.name not in stated:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    del graph.initializer[:]
    graph.initializer.extend(small)


def _fix_batch(graph: onnx.GraphProto, batch_size: int) -> None:
    constants = {tensor.name for tensor in graph.initializer}
    names = set()
    for value in graph.input:
        sides = value.type.tensor_type.shape.dim
        if value.name not in constants and sides and not sides[0].HasField("dim_value"):
            names.add(sides[0].dim_param)
            sides[0].dim_value = batch_size
    for value in (*graph.value_info, *graph.output):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param and side.dim_param in names:
                side.dim_value = batch_size


def _read_node(index: int, proto: onnx.NodeProto) -> Node:
    if any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in proto.attribute):
        raise MeasurementError(f"node '{proto.name}' ({proto.op_type}) has control flow, which a rule cannot price")
    domain = "" if proto.domain in ("", "ai.onnx") else f"{proto.domain}."
    return Node(index, proto.name, f"{domain}{proto.op_type}", tuple(proto.input), tuple(proto.output), proto)


def _attributes(proto: onnx.NodeProto) -> Iterator[tuple[str, object]]:
    for attribute in proto.attribute:
        if attribute.type == AttributeProto.INT:
            yield attribute.name, attribute.i
        elif attribute.type == AttributeProto.FLOAT:
            yield attribute.name, float(f"{attribute.f:.6g}")
        elif attribute.type == AttributeProto.STRING:
            yield attribute.name, attribute.s.decode(errors="replace")
        elif attribute.type == AttributeProto.INTS:
            yield attribute.name, list(attribute.ints)
        elif attribute.type == AttributeProto.FLOATS:
            yield attribute.name, [float(f"{number:.6g}") for number in attribute.floats]


def _describe_sides(kind: onnx.TypeProto.Tensor) -> str:
    return "×".join(
        str(side.dim_value) if side.HasField("dim_value") else side.dim_param or "?" for side in kind.shape.dim
    )
