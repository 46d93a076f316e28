"""Packed constants in a graph: ordinary operators that read only constants, so that runtimes fold them on loading."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from ..graph import add_initializer
from .packing import ROW, Coded, Masked, Packed, digits_per_byte

_INT32 = int(ir.DataType.INT32)


class ConstantWriter:
    """Writes constants into one graph, packed or not; what several of them need is stored once.

    The values inside have short names, and nodes have none: in small models names are a good part of the file.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._shared: dict[str, ir.Value] = {}
        self._last: ir.Node | None = None
        self._taken = {value.name for node in graph for value in (*node.inputs, *node.outputs) if value is not None}
        self._taken |= {value.name for value in (*graph.inputs, *graph.initializers.values())}
        self._n_inner = 0

    def write(self, name: str, packed: Packed) -> ir.Value:
        """Adds a constant and what unpacks it; returns the value that holds the array.

        Args:
            name: of the value; a taken name gets a number.
            packed: what `pack` made of an array.
        """
        if isinstance(packed, Coded):
            return self._write_codes(name, packed)
        if isinstance(packed, Masked):
            return self._write_masked(name, packed)
        return add_initializer(self._graph, name, packed)

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """Adds an array of which the file says type and shape once, in the array itself; a taken name gets a number."""
        unique = self._free_name(name)
        value = ir.Value(name=unique, const_value=ir.tensor(array, name=unique))
        self._graph.register_initializer(value)
        return value

    def node(self, op_type: str, *inputs: ir.Value, name: str | None = None, **attributes: int) -> ir.Value:
        """Adds a node that reads constants; returns its output, under a short name unless it is given one."""
        node = ir.node(op_type, list(inputs), attributes, name="")
        node.outputs[0].name = self._free_name(name)
        if self._last is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(self._last, node)
        self._last = node
        return node.outputs[0]

    def shared(self, name: str, array: np.ndarray) -> ir.Value:
        """Returns a constant that is stored once, under a name that says what it holds."""
        if name not in self._shared:
            self._shared[name] = self.constant(name, array)
        return self._shared[name]

    def _free_name(self, name: str | None) -> str:
        unique, n = name, 1
        while unique is None or unique in self._taken or unique in self._graph.initializers:
            self._n_inner += name is None
            n += 1
            unique = f"u{self._n_inner}" if name is None else f"{name}_{n}"
        self._taken.add(unique)
        return unique

    def _write_codes(self, name: str, coded: Coded) -> ir.Value:
        codes = self._unpack_digits(f"{name}_packed", coded.packed, coded.base, coded.shape)
        if coded.offsets is not None:
            codes = self.node("Add", codes, self.constant(f"{name}_books", coded.offsets))
        return self.node("Gather", self.constant(f"{name}_values", coded.codebook), codes, name=name)

    def _write_masked(self, name: str, masked: Masked) -> ir.Value:
        """Gathers kept element number n for the n-th bit that is set, and element 0, which is 0, for the others.

        n is a running sum. OpenVINO 2026.4 does not fold CumSum, and NonZero folds nowhere; but both runtimes fold
        the product of rows of the mask with a triangle of ones.
        """
        shape = (len(masked.starts), ROW)
        mask = self._unpack_digits(f"{name}_mask", masked.bits, 2, shape)
        counts = self.node("MatMul", mask, self._triangle())
        numbers = self.node("Add", counts, self.constant(f"{name}_starts", masked.starts))
        index = self._reshape(self.node("Mul", numbers, mask), shape, masked.shape)
        kept = masked.values
        if isinstance(kept, Coded):  # what fills its last byte does not matter here
            kept = replace(kept, shape=(kept.packed.size * digits_per_byte(kept.base),))
            values = self._write_codes(f"{name}_kept", kept)
        else:
            values = self.constant(f"{name}_kept", kept)
        return self.node("Gather", values, index, name=name)

    def _unpack_digits(self, name: str, packed: np.ndarray, base: int, shape: tuple[int, ...]) -> ir.Value:
        """Returns int32 codes of the shape."""
        digits, base = digits_per_byte(base), max(base, 2)
        if digits == 1:
            return self.node("Cast", self.constant(name, packed.reshape(shape)), to=_INT32)
        number = self.node("Cast", self.constant(name, packed[:, None]), to=_INT32)
        powers = self.shared(f"unpack_powers_{base}", (base ** np.arange(digits)).astype(np.int32))
        radix = self.shared(f"unpack_base_{base}", np.asarray(base, np.int32))
        codes = self.node("Mod", self.node("Div", number, powers), radix)
        return self._reshape(codes, (len(packed), digits), shape)

    def _reshape(self, value: ir.Value, old: tuple[int, ...], new: tuple[int, ...]) -> ir.Value:
        """Returns the value in a new shape, without what is too much at its end."""
        if int(np.prod(old)) != (size := int(np.prod(new))):
            flat = self.node("Reshape", value, self.shared("unpack_flat", np.array([-1])))
            ends = self.shared("unpack_start", np.array([0])), self.shared(f"unpack_end_{size}", np.array([size]))
            value = self.node("Slice", flat, *ends)
            if len(new) == 1:
                return value
        label = "x".join(map(str, new))
        return self.node("Reshape", value, self.shared(f"unpack_shape_{label}", np.array(new)))

    def _triangle(self) -> ir.Value:
        """Returns (ROW, ROW) int32, 1 where the row is not behind the column; made of one column of numbers."""
        if "unpack_triangle" not in self._shared:
            column = self.node("Cast", self.shared("unpack_column", np.arange(ROW, dtype=np.uint8)[:, None]), to=_INT32)
            row = self.node("Transpose", column)
            self._shared["unpack_triangle"] = self.node("Cast", self.node("LessOrEqual", column, row), to=_INT32)
        return self._shared["unpack_triangle"]


#: what `ConstantWriter` writes with, and no more
_OPERATORS = frozenset({
    "Add", "Cast", "Div", "Gather", "LessOrEqual", "MatMul", "Mod", "Mul", "Reshape", "Slice", "Transpose"
})  # fmt: skip


def unpack_constants(model: bytes) -> bytes:
    """Returns a model whose packed constants are stored element by element, for runtimes that do not fold them.

    Args:
        model: a serialised ONNX model; one without packed constants comes back as it is.
    """
    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    known = {tensor.name for tensor in graph.initializer}
    folded: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if node.op_type in _OPERATORS and not node.domain and known.issuperset(node.input):
            folded[node.output[0]] = node
            known.add(node.output[0])
    rest = [node for node in graph.node if node.output[0] not in folded]
    wanted = [name for name in folded if any(name in node.input for node in rest)]
    if not wanted:
        return model
    unpacked = onnx.GraphProto(name="constants", initializer=graph.initializer)
    unpacked.node.extend(folded.values())
    unpacked.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    arrays = _run_constants(
        onnx.ModelProto(graph=unpacked, ir_version=proto.ir_version, opset_import=proto.opset_import)
    )
    read = {name for node in rest for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    kept += [onnx.numpy_helper.from_array(array, name) for name, array in zip(wanted, arrays, strict=True)]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(rest)
    graph.initializer.extend(kept)
    content: bytes = proto.SerializeToString()
    return content


def _run_constants(model: onnx.ModelProto) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    arrays: list[np.ndarray] = session.run(None, {})
    return arrays
