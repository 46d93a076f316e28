"""From an ONNX model to a `torch.fx.GraphModule`, for `trimtab.evaluators.torch_device`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import fx

from ..core.errors import MeasurementError
from ..evaluators import torch_integers
from .graph_inputs import GraphInput, read_inputs
from .torch_operators import DTYPES, ELEMENTWISE, LAYERS, NUMBER_INPUTS, Tensor
from .torch_shapes import MOVES, NUMBERS, SHAPE_INPUTS, to_tensor

_TENSOR_FUNCTIONS: dict[str, Callable[..., Any]] = {**ELEMENTWISE, **LAYERS, **MOVES, **torch_integers.INTEGERS}

#: domains whose operators are looked up by their bare name
_DOMAINS = ("", "ai.onnx", "com.microsoft")

#: Axes of a batch of images and of a convolution's weight. Both are stored with the channels last: MobileNetV2 takes
#: 0.78 of the time so in float32 and 0.53 in bfloat16 (one thread of an AVX512 and AMX Xeon, PyTorch 2.13).
_IMAGE_AXES = 4

#: Below, several operators take attributes that are inputs today.
_OLDEST_OPSET = 13

#: operators whose result may share the memory of their input
_VIEWS = frozenset({
    "Cast", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
})  # fmt: skip


#: operators on shapes in which any input may be a constant
_LED = frozenset({"Add", "Concat", "Div", "Equal", "Mul", "Sub", "Where"})


@dataclass(frozen=True)
class TorchModel:
    """A translated model: called with its inputs in order, it returns a tuple of its outputs."""

    module: fx.GraphModule
    inputs: tuple[GraphInput, ...]


def translate(model: bytes, *, dtype: Any = torch.float32) -> TorchModel:
    """Translates a model, with constants folded and the products of quantised factors kept in integers.

    Args:
        model: a serialised ONNX model of opset 13 or later.
        dtype: what stays floating point is computed in it; inputs and outputs keep their own.

    Raises:
        MeasurementError: the bytes are no model, or it has an operator that is not translated.
    """
    try:
        proto = onnx.load_model_from_string(model)
    except Exception as error:  # protobuf raises several types
        raise MeasurementError(f"torch cannot read the model: {error}") from error
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    opset = opsets.get("", opsets.get("ai.onnx", _OLDEST_OPSET))
    if opset < _OLDEST_OPSET or not proto.graph.output:
        raise MeasurementError(f"torch runs models with outputs, of opset {_OLDEST_OPSET} or later; got opset {opset}")
    with torch.inference_mode(False), torch.no_grad():
        return _Translator(proto.graph, dtype).translate()


class _Translator:
    """Builds one fx graph, node by node."""

    def __init__(self, graph: onnx.GraphProto, dtype: Any) -> None:
        self.source = graph
        self.dtype = dtype
        self.root = torch.nn.Module()
        self.graph = fx.Graph()
        #: value name → tensor, for what is known before the model runs
        self.constants: dict[str, Tensor] = {}
        #: name → buffer of ``root`` that holds it
        self.held: dict[str, str] = {}
        #: value name → fx node that computes it
        self.computed: dict[str, fx.Node] = {}
        #: names among ``computed`` whose value is a shape
        self.shapes: set[str] = set()
        #: names among ``computed`` that may share memory with an input or a constant
        self.views: set[str] = set()
        self.producers = {name: node for node in graph.node for name in node.output}

    def translate(self) -> TorchModel:
        for tensor in self.source.initializer:
            self.constants[tensor.name] = _to_torch(tensor)
        inputs = self._add_inputs()
        for node in self.source.node:
            try:
                self._add(node)
            except MeasurementError:
                raise
            except Exception as error:  # whatever torch says of the node
                raise MeasurementError(f"torch cannot run the node {node.name} ({node.op_type}): {error}") from error
        self.graph.output(tuple(self._output(value) for value in self.source.output))
        self.graph.eliminate_dead_code()
        module = fx.GraphModule(self.root, self.graph)
        module.delete_all_unused_submodules()
        return TorchModel(module.eval(), inputs)

    def _add_inputs(self) -> tuple[GraphInput, ...]:
        inputs = read_inputs(self.source)
        for position, value in enumerate(inputs):
            node = self.graph.placeholder(f"input_{position}")
            if value.dtype == np.float32 and self.dtype != torch.float32:
                node = self.graph.call_method("to", (node, self.dtype))
            if value.dtype == np.float32 and len(value.shape) == _IMAGE_AXES:
                node = self.graph.call_method("contiguous", (node,), {"memory_format": torch.channels_last})
            self.computed[value.name] = node
            self.views.add(value.name)
        return inputs

    def _output(self, value: onnx.ValueInfoProto) -> fx.Node:
        """Returns the output in its own element type and in memory of its own."""
        node = self._tensor(value.name)
        wanted = DTYPES[value.type.tensor_type.elem_type]
        if wanted.is_floating_point and self.dtype != torch.float32:
            return self.graph.call_method("to", (node, wanted))
        if value.name in self.views or value.name in self.constants:
            return self.graph.call_method("clone", (node,))
        return node

    # -- nodes ------------------------------------------------------------------------------------

    def _add(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Constant":
            self._add_constant(node)
            return
        attributes = {entry.name: _plain(onnx.helper.get_attribute_value(entry)) for entry in node.attribute}
        names = [name for name in node.input if name]
        if node.op_type in NUMBERS and self._is_shape_work(node.op_type, names):
            self._record(node, self.graph.call_function(NUMBERS[node.op_type], self._numbers(node.input), attributes))
            self.shapes.update(node.output)
            return
        function = _TENSOR_FUNCTIONS.get(node.op_type) if node.domain in _DOMAINS else None
        if function is None:
            raise MeasurementError(f"torch runs no operator {node.domain or 'onnx'}.{node.op_type} (node {node.name})")
        attributes = self._complete(node, attributes)
        is_shape = node.op_type in ("Shape", "Size")
        if all(name in self.constants for name in names) and not is_shape:
            self._fold(node, function, attributes)
            return
        special = {"MatMul": self._add_integer_product, "MatMulInteger": self._add_dynamic_product}.get(node.op_type)
        if special is not None and special(node):
            return
        function, arguments, attributes = self._unpack_weight(node, function, attributes)
        self._record(node, self.graph.call_function(function, arguments, attributes))
        if is_shape:
            self.shapes.update(node.output)
        if node.op_type in _VIEWS and any(name in self.views or name in self.constants for name in names):
            self.views.update(node.output)

    def _add_constant(self, node: onnx.NodeProto) -> None:
        entry = node.attribute[0]
        value = onnx.helper.get_attribute_value(entry)
        if entry.name == "value":
            self.constants[node.output[0]] = _to_torch(value)
            return
        is_float = entry.name.startswith("value_float")
        self.constants[node.output[0]] = torch.tensor(value, dtype=torch.float32 if is_float else torch.int64)

    def _complete(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> dict[str, Any]:
        """Adds what follows from the node's outputs, and turns ``to`` float32 into what is computed in."""
        if node.op_type == "Split" and len(node.input) < 2:
            attributes = {"num_outputs": len(node.output), **attributes}
        if node.op_type == "Cast" and attributes["to"] == onnx.TensorProto.FLOAT and self.dtype == torch.bfloat16:
            attributes = {**attributes, "to": int(onnx.TensorProto.BFLOAT16)}
        return attributes

    def _record(self, node: onnx.NodeProto, result: fx.Node) -> None:
        if node.op_type == "DequantizeLinear" and self.dtype != torch.float32:
            result = self.graph.call_method("to", (result, self.dtype))
        if len(node.output) == 1 or node.op_type in ("LayerNormalization", "MaxPool", "Dropout", "BatchNormalization"):
            unused = [name for name in node.output[1:] if name]
            if unused and node.op_type != "Dropout":
                raise MeasurementError(f"torch gives one output of {node.op_type}; node {node.name} asks for more")
            self.computed[node.output[0]] = result
            # only DynamicQuantizeLinear and Split have more of interest
            return
        for position, name in enumerate(node.output):
            self.computed[name] = self.graph.call_function(_pick, (result, position))

    def _fold(self, node: onnx.NodeProto, function: Callable[..., Any], attributes: dict[str, Any]) -> None:
        shape_inputs = SHAPE_INPUTS.get(node.op_type, ())
        arguments = [
            None if not name else self.constants[name].tolist() if position in shape_inputs else self.constants[name]
            for position, name in enumerate(node.input)
        ]
        result = function(*arguments, **attributes)
        results = result if isinstance(result, tuple) else (result,)
        for name, tensor in zip(node.output, results, strict=False):
            self.constants[name] = tensor

    # -- inputs -----------------------------------------------------------------------------------

    def _is_shape_work(self, op_type: str, names: Sequence[str]) -> bool:
        """Whether all inputs are shapes, or small constants beside them; the first is a shape where it has a say."""
        shapes = [name in self.shapes for name in names]
        small = [
            name in self.constants and self.constants[name].dim() <= 1 and not self.constants[name].is_floating_point()
            for name in names
        ]
        is_led = op_type in _LED or shapes[:1] == [True]
        return any(shapes) and is_led and all(one or other for one, other in zip(shapes, small, strict=True))

    def _numbers(self, names: Sequence[str]) -> tuple[Any, ...]:
        return tuple(self._shape(name) if name else None for name in names)

    def _shape(self, name: str) -> Any:
        if name in self.constants:
            return self.constants[name].tolist()
        if name in self.shapes:
            return self.computed[name]
        return self.graph.call_method("tolist", (self.computed[name],))

    def _arguments(self, node: onnx.NodeProto) -> tuple[Any, ...]:
        shape_inputs, number_inputs = SHAPE_INPUTS.get(node.op_type, ()), NUMBER_INPUTS.get(node.op_type, ())
        arguments: list[Any] = []
        for position, name in enumerate(node.input):
            if not name:
                arguments.append(None)
            elif position in shape_inputs:
                arguments.append(self._shape(name))
            elif position in number_inputs and name in self.constants and self.constants[name].dim() == 0:
                arguments.append(self.constants[name].item())
            else:
                is_exact = node.op_type in ("QuantizeLinear", "DequantizeLinear")
                arguments.append(self._tensor(name, is_exact=is_exact and position > 0))
        return tuple(arguments)

    def _tensor(self, name: str, *, is_exact: bool = False) -> fx.Node:
        """Returns the node of a value; constants in floating point take the dtype of the model unless exact."""
        if name in self.constants:
            tensor = self.constants[name]
            if tensor.dtype == torch.float32 and self.dtype != torch.float32 and not is_exact:
                # masks hold the lowest float32, which must not become an infinity
                limit = torch.finfo(self.dtype).max
                tensor = tensor.clamp(-limit, limit).to(self.dtype)
            if tensor.dim() == _IMAGE_AXES and tensor.is_floating_point():
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            return self._hold(f"{name} exact" if is_exact else name, tensor)
        if name not in self.computed:
            raise MeasurementError(f"torch cannot run the model: nothing computes the value {name}")
        if name in self.shapes:
            return self.graph.call_function(to_tensor, (self.computed[name],))
        return self.computed[name]

    def _hold(self, name: str, tensor: Tensor) -> fx.Node:
        """Returns a node that reads the tensor, which is kept once under this name."""
        if name not in self.held:
            # numbered: names of ONNX hold letters that attributes cannot, and would meet without them
            self.held[name] = f"held_{len(self.held)}"
            self.root.register_buffer(self.held[name], tensor)
        return self.graph.get_attr(self.held[name])

    # -- products of quantised factors -------------------------------------------------------------

    def _add_integer_product(self, node: onnx.NodeProto) -> bool:
        """Multiplies codes instead of what they stand for, where both factors are quantised; returns whether."""
        left, right = (self.producers.get(name) for name in node.input)
        if left is None or right is None or left.op_type != "DequantizeLinear" or right.op_type != "DequantizeLinear":
            return False
        names = (*left.input[1:], *right.input)
        if left.input[0] in self.constants or any(name not in self.constants for name in names):
            return False
        left_scale, right_scale, weight = (
            self.constants[name] for name in (left.input[1], right.input[1], right.input[0])
        )
        left_zero = self.constants[left.input[2]] if len(left.input) > 2 else torch.zeros((), dtype=torch.uint8)
        has_zeros = len(right.input) > 2 and not self._is_zero(right.input[2])
        axis = _axis_of(right) % max(weight.dim(), 1)
        is_plain = weight.dtype == torch.int8 and weight.dim() == 2 and left_scale.numel() == 1 and not has_zeros
        if not is_plain or left_zero.dtype not in (torch.int8, torch.uint8):
            return False
        if right_scale.numel() > 1 and (axis != 1 or right_scale.dim() != 1):
            return False
        shift = torch_integers.find_shift(weight, int(left_zero), is_unsigned=left_zero.dtype == torch.uint8)
        held = {
            "codes": weight, "shift": shift.to(torch.int32), "scale": left_scale.reshape(()) * right_scale.squeeze(),
        }  # fmt: skip
        arguments = [self._tensor(left.input[0]), *(self._hold(f"{node.output[0]} {k}", v) for k, v in held.items())]
        result = self.graph.call_function(torch_integers.multiply_scaled, tuple(arguments))
        if self.dtype != torch.float32:
            result = self.graph.call_method("to", (result, self.dtype))
        self.computed[node.output[0]] = result
        return True

    def _add_dynamic_product(self, node: onnx.NodeProto) -> bool:
        """Sums the columns of a constant weight once, while the model is loaded; returns whether it could."""
        weight = self.constants.get(node.input[1])
        has_zeros = len(node.input) > 3 and not self._is_zero(node.input[3])
        if weight is None or weight.dtype != torch.int8 or weight.dim() != 2 or has_zeros or len(node.input) < 3:
            return False
        sums = weight.sum(0, dtype=torch.int32)
        arguments = (
            self._tensor(node.input[0]), self._hold(node.input[1], weight), self._hold(f"{node.output[0]} sums", sums),
            self._tensor(node.input[2]),
        )  # fmt: skip
        self.computed[node.output[0]] = self.graph.call_function(torch_integers.multiply_shifted, arguments)
        return True

    def _is_zero(self, name: str) -> bool:
        return not name or (name in self.constants and not bool(self.constants[name].any()))

    def _unpack_weight(
        self, node: onnx.NodeProto, function: Callable[..., Any], attributes: dict[str, Any]
    ) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """Unpacks the constant weight of a MatMulNBits once, while the model is loaded."""
        if node.op_type != "MatMulNBits" or any(name and name not in self.constants for name in node.input[1:]):
            return function, self._arguments(node), attributes
        packed = [self.constants[name] if name else None for name in node.input[1:4]]
        weight = torch_integers.unpack_blocks(packed[0], packed[1], packed[2] if len(packed) > 2 else None, attributes)
        arguments: tuple[Any, ...] = (
            self._tensor(node.input[0]),
            self._hold(f"{node.output[0]} weight", weight.to(self.dtype)),
        )
        if len(node.input) > 5 and node.input[5]:
            arguments = (*arguments, self._tensor(node.input[5]))
        return torch.nn.functional.linear, arguments, {}


def _axis_of(node: onnx.NodeProto) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == "axis"), 1)


def _pick(values: Any, position: int) -> Any:
    return values[position]


def _plain(value: Any) -> Any:
    """An attribute in Python's own types."""
    if isinstance(value, bytes):
        return value.decode()
    return [int(one) if isinstance(one, int) else one for one in value] if isinstance(value, (list, tuple)) else value


def _to_torch(tensor: onnx.TensorProto) -> Tensor:
    if tensor.data_type == onnx.TensorProto.BFLOAT16:
        return torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float32)).to(torch.bfloat16)
    array: np.ndarray = numpy_helper.to_array(tensor)
    if array.dtype.name in ("int4", "uint4"):
        array = array.astype(np.int8 if array.dtype.name == "int4" else np.uint8)
    return torch.from_numpy(np.array(array))  # a copy: what ONNX hands out cannot be written to
