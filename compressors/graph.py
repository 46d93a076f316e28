"""The base graph: simplified by the runtime, its layers found and named."""

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from ..core.errors import DataError, ModelError
from ..spaces.layer import Layer
from .layer_names import TURNED, name_weights
from .source import ModelSource


@dataclass(frozen=True)
class BaseGraph:
    """The original model in the one form that everything else starts from.

    Constants are folded, batch norms are merged into convolutions, ``Gemm`` is MatMul + Add, and the weight of
    layer L is the initialiser ``L.weight``.
    """

    model: ir.Model
    layers: tuple[Layer, ...]
    #: value name → shape seen when one sample was run; covers the outputs of all layers and softmaxes, and what enters
    #: convolutions
    shapes: Mapping[str, tuple[int, ...]]


def build_base_graph(source: ModelSource, sample: Mapping[str, np.ndarray]) -> BaseGraph:
    """Simplifies the graph and finds its layers.

    Args:
        source: the model as ONNX.
        sample: model input name → (1, …) array, used to see the real shapes.

    Raises:
        ModelError: the runtime refuses the model.
        DataError: the sample does not fit the model's inputs.
    """
    model = ir.from_proto(_simplify(source.onnx_bytes))
    check_inputs(model, sample)
    _split_gemms(model.graph)
    weights = find_weights(model.graph)
    _rename(model.graph, name_weights(weights, source.parameters))
    watched = [node.outputs[0] for node in model.graph if node.op_type in _WATCHED]
    watched += [input_of(node, 0) for node in model.graph if node.op_type == "Conv"]
    shapes = observe_shapes(model, dict.fromkeys(watched), sample)
    layers = tuple(describe_layer(value, shapes) for value in weights)
    return BaseGraph(model, layers, shapes)


_WATCHED = ("Conv", "MatMul", "Gather", "Softmax", "LayerNormalization")


def _rename(graph: ir.Graph, names: Mapping[ir.Value, str]) -> None:
    """Gives every layer's weight its name; whatever bears one of these names already makes way."""
    wanted = {f"{name}.weight" for name in names.values()}
    for value in list(graph.initializers.values()):
        if value in names or value.name in wanted:
            value.name = _free_name(graph, f"{value.name}_renamed", wanted)
    for value, name in names.items():
        value.name = f"{name}.weight"


def check_inputs(model: ir.Model, sample: Mapping[str, np.ndarray]) -> None:
    """Compares the data's names, dtypes and shapes with the model's inputs.

    Raises:
        DataError: they differ; the message names the input.
    """
    expected = {str(value.name): value for value in model.graph.inputs}
    if set(expected) != set(sample):
        raise DataError(
            f"the model takes the inputs {', '.join(sorted(expected))}; the data have {', '.join(sorted(sample))}"
        )
    for name, value in expected.items():
        array = sample[name]
        if value.dtype is not None and value.dtype.numpy() != array.dtype:
            raise DataError(f"input {name}: the model takes {value.dtype.numpy()}, the data have {array.dtype}")
        shape = list(value.shape or [])
        fits = len(shape) == array.ndim and all(
            not isinstance(want, int) or want == got for want, got in zip(shape[1:], array.shape[1:], strict=False)
        )
        if fits and isinstance(shape[0], int) and shape[0] != len(array):
            raise DataError(
                f"input {name}: the model takes batches of {shape[0]} only; export it with an open batch, or with 1"
            )
        if value.shape is not None and not fits:
            raise DataError(f"input {name}: the model takes shape {value.shape}, the data have {list(array.shape)}")


def _simplify(onnx_bytes: bytes) -> object:
    """Lets ONNX Runtime fold constants, merge batch norms and drop dead nodes, in standard operators only."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "basic.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        try:
            onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"ONNX Runtime refuses the model: {error}") from error
        return onnx.load(path)


def _free_name(graph: ir.Graph, name: str, reserved: Collection[str] = ()) -> str:
    """Returns the name, with a number where an initialiser has it."""
    unique, n = name, 1
    while unique in graph.initializers or unique in reserved:
        n += 1
        unique = f"{name}_{n}"
    return unique


def _split_gemms(graph: ir.Graph) -> None:
    """Rewrites Gemm with a constant weight as MatMul + Add, so that there is one form of a linear layer."""
    turned: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node.op_type != "Gemm" or node.domain or not _is_plain_gemm(node):
            continue
        weight = stored = input_of(node, 1)
        if node.attributes.get_int("transB", 0):
            if weight not in turned:
                array = np.ascontiguousarray(array_of(weight).T)
                turned[weight] = add_initializer(graph, f"{weight.name}{TURNED}", array)
            stored = turned[weight]
        product = ir.node("MatMul", [node.inputs[0], stored], name=f"{node.name}/MatMul")
        graph.insert_before(node, product)
        last = product
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            last = ir.node("Add", [product.outputs[0], node.inputs[2]], name=f"{node.name}/Add")
            product.outputs[0].name = f"{node.outputs[0].name}_matmul"
            graph.insert_before(node, last)
        take_over(graph, node, last)
    drop_unused_initializers(graph)


def take_over(graph: ir.Graph, node: ir.Node, successor: ir.Node) -> None:
    """Puts ``successor`` in the place of ``node``: uses, graph outputs, name and type of the output."""
    old, new = node.outputs[0], successor.outputs[0]
    new.shape, new.type = old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    name = old.name
    graph.remove(node, safe=True)
    old.name = None
    new.name = name


def _is_plain_gemm(node: ir.Node) -> bool:
    weight = node.inputs[1]
    attributes = node.attributes
    return (
        weight is not None
        and weight.const_value is not None
        and not attributes.get_int("transA", 0)
        and attributes.get_float("alpha", 1.0) == 1.0
        and attributes.get_float("beta", 1.0) == 1.0
    )


def find_weights(graph: ir.Graph) -> list[ir.Value]:
    """Returns the weights of all layers, in the order of their first use; a shared weight once."""
    found: dict[ir.Value, None] = {}
    for node in graph:
        weight = weight_of(node)
        if weight is not None:
            found.setdefault(weight)
    return list(found)


def weight_of(node: ir.Node) -> ir.Value | None:
    """Returns the constant float32 weight that makes this node a layer, else None."""
    position = {"Conv": 1, "MatMul": 1, "Gather": 0}.get(node.op_type)
    if position is None or node.domain or len(node.inputs) <= position:
        return None
    weight = node.inputs[position]
    if weight is None or weight.const_value is None or weight.dtype != ir.DataType.FLOAT:
        return None
    n_axes = len(weight.const_value.shape)
    if node.op_type == "Gather" and (n_axes != 2 or node.attributes.get_int("axis", 0) != 0):
        return None
    if node.op_type == "MatMul" and n_axes != 2:
        return None
    return weight


def input_of(node: ir.Node, position: int) -> ir.Value:
    """Returns an input that the node's operator requires.

    Raises:
        ModelError: the node leaves it out.
    """
    value = node.inputs[position]
    if value is None:
        raise ModelError(f"the node {node.name} ({node.op_type}) lacks its input {position}")
    return value


def array_of(value: ir.Value) -> np.ndarray:
    """Returns the array of a constant.

    Raises:
        ModelError: the value is computed while the model runs.
    """
    if value.const_value is None:
        raise ModelError(f"the value {value.name} is not constant")
    return value.const_value.numpy()


def kind_of(node: ir.Node) -> str:
    """Returns the layer kind of a node for which `weight_of` returned a weight."""
    if node.op_type == "Gather":
        return "embedding"
    if node.op_type == "MatMul":
        return "linear"
    weight_shape = array_of(input_of(node, 1)).shape  # (out, in / group, *kernel)
    is_depthwise = node.attributes.get_int("group", 1) > 1 and weight_shape[1] == 1
    return "depthwise_conv" if is_depthwise else "conv"


def describe_layer(weight: ir.Value, shapes: Mapping[str, tuple[int, ...]]) -> Layer:
    """Returns the entry of a layer.

    Args:
        weight: the initialiser, called ``<layer>.weight``.
        shapes: value name → shape for one sample.
    """
    nodes = [use.node for use in weight.uses() if weight_of(use.node) is weight]
    first = nodes[0]
    kind = kind_of(first)
    shape = array_of(weight).shape
    n_weight = int(np.prod(shape))
    outputs = [shapes.get(str(node.outputs[0].name), ()) for node in nodes]
    macs = 0
    if kind != "embedding":
        # every output element sums over the weight elements of one output channel
        per_element = n_weight // (shape[1] if kind == "linear" else shape[0])
        macs = sum(int(np.prod(output)) * per_element for output in outputs)
    return Layer(
        name=str(weight.name).removesuffix(".weight"),
        kind=kind,
        weight_shape=shape,
        output_shape=(-1, *outputs[0][1:]) if outputs[0] else (),
        n_parameters=n_weight + _n_bias(first),
        macs=macs,
    )


def _n_bias(node: ir.Node) -> int:
    if node.op_type == "Conv":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return 0 if bias is None or bias.const_value is None else array_of(bias).size
    users = [use.node for use in node.outputs[0].uses()]
    if node.op_type == "MatMul" and len(users) == 1 and users[0].op_type == "Add":
        biases = [array_of(v) for v in users[0].inputs if v is not None and v.const_value is not None]
        return biases[0].size if biases and biases[0].ndim == 1 else 0
    return 0


def observe_shapes(
    model: ir.Model, values: Iterable[ir.Value], sample: Mapping[str, np.ndarray]
) -> dict[str, tuple[int, ...]]:
    """Runs one sample and returns value name → shape.

    Raises:
        DataError: the model cannot run on the sample.
    """
    names = [str(value.name) for value in values]
    arrays = run_with_outputs(model, names, [sample])[0]
    return {name: array.shape for name, array in zip(names, arrays, strict=True)}


def run_with_outputs(
    model: ir.Model, names: list[str], samples: Iterable[Mapping[str, np.ndarray]]
) -> list[list[np.ndarray]]:
    """Runs samples and returns, per sample, the arrays of the named values.

    Raises:
        DataError: the model cannot run on a sample; the message counts them from 0.
    """
    return list(iterate_outputs(model, names, samples))


def iterate_outputs(
    model: ir.Model, names: list[str], samples: Iterable[Mapping[str, np.ndarray]]
) -> Iterator[list[np.ndarray]]:
    """Yields what `run_with_outputs` returns, one sample at a time."""
    session = open_session(model, names)
    for position, sample in enumerate(samples):
        try:
            arrays = session.run(names, dict(sample)) if names else []
        except Exception as error:  # the runtime raises several types
            raise DataError(f"the model cannot run on calibration sample {position}: {error}") from error
        yield arrays


def open_session(model: ir.Model, extra_outputs: list[str]) -> onnxruntime.InferenceSession:
    """Opens a session in which the named inner values are outputs too.

    Raises:
        ModelError: the runtime refuses the model.
    """
    import onnx

    proto = ir.to_proto(model)
    present = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra_outputs if name not in present)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"ONNX Runtime refuses the graph: {error}") from error


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray | ir.TensorProtocol) -> ir.Value:
    """Adds a constant under a name that no other initialiser has; a taken name gets a number."""
    unique = _free_name(graph, name)
    tensor = array if isinstance(array, ir.TensorProtocol) else ir.tensor(array, name=unique)
    value = ir.Value(
        name=unique, shape=ir.Shape(tensor.numpy().shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def drop_unused_initializers(graph: ir.Graph) -> None:
    """Removes constants that no node reads."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
