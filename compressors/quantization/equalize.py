"""Scales moved between layers before rounding: the float outputs stay, and integers fit what is left better."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..graph import add_initializer, array_of, drop_unused_initializers, input_of, weight_of
from ..layer_inputs import LayerInputs
from .activations import find_bias

#: scales nearer to 1 than this, as a difference of logarithms, change nothing
_NO_CHANGE = 1e-3
#: a chain of chains settles within a few sweeps; those of MobileNetV2 within ten
_MAX_SWEEPS = 40
#: operators that give s · y for s · x with s > 0, channel by channel
_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity"})
#: (operator, domain) → the inputs that hold the scale and the bias of a layer norm
_NORMS: Mapping[tuple[str, str], tuple[int, int]] = {
    ("LayerNormalization", ""): (1, 2),
    ("SkipLayerNormalization", "com.microsoft"): (2, 3),
}


@dataclass(frozen=True)
class Equalized:
    """A graph with scales moved, and in how many places; 0 says that the graph is as it was."""

    model: ir.Model
    n_changes: int


def equalize_layers(model: ir.Model) -> Equalized:
    """Evens out the ranges of the channels between two layers (cross-layer equalisation).

    Source: Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", equations 10
    and 11: channel i of the first layer is divided, and of the second multiplied by s = √(r₁ / r₂), with r the largest
    weights of the channel; repeated until it settles. Two convolutions (of any groups) or two linear layers count
    where only activations like Relu and pooling stand between them, and nothing else reads what is in between.

    Args:
        model: a float graph whose layer weights are called ``<layer>.weight``, as in a base graph; it is left alone.
    """
    changed = model.clone()
    chains = list(_find_chains(changed.graph))
    edits = _Edits(changed.graph)
    total = [np.zeros(chain.n_channels) for chain in chains]
    for _ in range(_MAX_SWEEPS):
        moved = 0.0
        for chain, so_far in zip(chains, total, strict=True):
            first, second = edits.output_ranges(chain.first), edits.input_ranges(chain.second)
            scale = _safe(np.sqrt(first / np.where(second > 0, second, 1.0)), first, second)
            edits.divide_outputs(chain.first, scale)
            edits.multiply_inputs(chain.second, scale)
            so_far += np.log(scale)
            moved = max(moved, float(np.abs(np.log(scale)).max()))
        if moved < _NO_CHANGE:
            break
    edits.write()
    return Equalized(changed, sum(bool(np.abs(so_far).max() > _NO_CHANGE) for so_far in total))


def smooth(model: ir.Model, inputs: Mapping[str, LayerInputs], *, alpha: float = 0.5) -> Equalized:
    """Moves the outliers of activations into the weights of the linear layers that read them.

    Source: Xiao et al. 2022, "SmoothQuant: accurate and efficient post-training quantization for large language
    models", equation 4: input j is divided by s = max|xⱼ|^α / max|wⱼ|^(1 - α), and row j of the weights multiplied.

    The division goes into the layer norm in front, or into the linear layer in front if only activations like Relu
    stand between. Where something else reads the layer norm too, as the residual stream does in BERT, it becomes a
    node of its own in front of the linear layers.

    Args:
        model: a float graph whose layer weights are called ``<layer>.weight``, as in a base graph; it is left alone.
        inputs: layer name → what enters it; layers that are missing stay as they are.
        alpha: how much of the difficulty is moved, 0 to 1.
    """
    changed = model.clone()
    graph, edits, n_changes = changed.graph, _Edits(changed.graph), 0
    chains = {
        input_of(chain.second, 0): chain.first for chain in _find_chains(graph) if chain.first.op_type == "MatMul"
    }
    for value, readers in list(_linear_readers(graph)):
        norm = _norm_of(value)
        if (norm is None and value not in chains) or not all(_name(node) in inputs for node in readers):
            continue
        peak = np.max([inputs[_name(node)].peak[0] for node in readers], axis=0)
        weight = np.max([edits.input_ranges(node) for node in readers], axis=0)
        scale = _safe(np.maximum(peak, 1e-30) ** alpha / np.maximum(weight, 1e-30) ** (1.0 - alpha), peak, weight)
        if np.abs(np.log(scale)).max() <= _NO_CHANGE:
            continue
        n_changes += 1
        for node in readers:
            edits.multiply_inputs(node, scale)
        if value in chains:
            edits.divide_outputs(chains[value], scale)
        elif norm is not None and len(readers) == len(value.uses()) and not value.is_graph_output():
            edits.divide_norm(*norm, scale)
        else:
            _insert_division(graph, value, readers, scale)
    edits.write()
    return Equalized(changed, n_changes)


@dataclass(frozen=True)
class _Chain:
    """Two layers, the second of which alone reads the first, scale for scale."""

    first: ir.Node
    second: ir.Node

    @property
    def n_channels(self) -> int:
        shape = array_of(input_of(self.first, 1)).shape
        return int(shape[1] if self.first.op_type == "MatMul" else shape[0])


def _find_chains(graph: ir.Graph) -> Iterator[_Chain]:
    for node in graph:
        second = _only_reader(node) if _owns_weight(node) else None
        if second is not None and _owns_weight(second):
            yield _Chain(node, second)


def _owns_weight(node: ir.Node) -> bool:
    """Whether a convolution or linear layer has constants of its own: a weight that no other node reads."""
    weight = weight_of(node)
    if weight is None or node.op_type == "Gather" or len(weight.uses()) > 1:
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return bias is None or bias.const_value is not None


def _only_reader(node: ir.Node) -> ir.Node | None:
    """Returns the layer that alone reads this one, behind its bias and homogeneous operators."""
    place = find_bias(node)
    last = node if place is None else place[0]
    while True:
        uses = list(last.outputs[0].uses())
        if len(uses) != 1 or last.outputs[0].is_graph_output() or uses[0].idx != 0:
            return None
        user = uses[0].node
        if user.op_type == node.op_type and weight_of(user) is not None:
            return user
        if user.op_type not in _HOMOGENEOUS or user.domain:
            return None
        last = user


def _linear_readers(graph: ir.Graph) -> Iterator[tuple[ir.Value, list[ir.Node]]]:
    """Yields values with the linear layers that read them, where those have weights of their own."""
    seen = set()
    for node in graph:
        value = input_of(node, 0) if node.op_type == "MatMul" and weight_of(node) is not None else None
        if value is None or value in seen:
            continue
        seen.add(value)
        readers = [use.node for use in value.uses() if use.idx == 0 and use.node.op_type == "MatMul"]
        readers = [reader for reader in readers if weight_of(reader) is not None]
        if all(_owns_weight(reader) for reader in readers):
            yield value, readers


def _norm_of(value: ir.Value) -> tuple[ir.Node, int, ir.Node, int | None] | None:
    """Returns where the constants are that scale and shift a value: (node, input) of the scale, then of the bias.

    A layer norm that an exporter took apart ends in Mul and Add.
    """
    node = value.producer()
    if node is None or node.outputs[0] is not value:
        return None
    if (node.op_type, node.domain) in _NORMS:
        scale, bias = _NORMS[node.op_type, node.domain]
        has_bias = len(node.inputs) > bias and node.inputs[bias] is not None
        places = [(node, scale), *([(node, bias)] if has_bias else [])]
    elif node.op_type == "Add" and (scaled := _scaled_by_constant(node)) is not None:
        places = [scaled, (node, _constant_input(node))]
    else:
        return None
    if not all(_is_vector(node.inputs[position]) for node, position in places):
        return None
    return (*places[0], *(places[1] if len(places) > 1 else (places[0][0], None)))


def _scaled_by_constant(add: ir.Node) -> tuple[ir.Node, int] | None:
    """Returns the Mul by a constant whose product only this Add reads, and the input that holds the constant."""
    position = _constant_input(add)
    product = add.inputs[1 - position] if position >= 0 else None
    mul = product.producer() if product is not None else None
    if mul is None or product is None or mul.op_type != "Mul" or len(product.uses()) > 1 or product.is_graph_output():
        return None
    return (mul, _constant_input(mul)) if _constant_input(mul) >= 0 else None


def _constant_input(node: ir.Node) -> int:
    """Returns which of two inputs is the only constant one; -1 where neither or both are."""
    constant = [value is not None and value.const_value is not None for value in node.inputs[:2]]
    return constant.index(True) if sum(constant) == 1 else -1


def _is_vector(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and len(value.const_value.shape) == 1


def _name(node: ir.Node) -> str:
    return str(input_of(node, 1).name).removesuffix(".weight")


def _safe(scale: np.ndarray, *ranges: np.ndarray) -> np.ndarray:
    """Returns the scale, and 1 where a range is 0: there is nothing to even out."""
    return np.where(np.all([range_ > 0 for range_ in ranges], axis=0), scale, 1.0)


def _insert_division(graph: ir.Graph, value: ir.Value, readers: list[ir.Node], scale: np.ndarray) -> None:
    factor = add_initializer(graph, f"{value.name}_smoothing", (1.0 / scale).astype(np.float32))
    product = ir.node("Mul", [value, factor], name=f"{value.name}_smooth")
    product.outputs[0].name = f"{value.name}_smoothed"
    product.outputs[0].shape, product.outputs[0].type = value.shape, value.type
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, product)
    for reader in readers:
        reader.replace_input_with(0, product.outputs[0])


@dataclass
class _Edits:
    """Constants of a graph while they change, in float64; `write` stores them."""

    graph: ir.Graph
    _arrays: dict[tuple[ir.Node, int], np.ndarray] = field(default_factory=dict)

    def output_ranges(self, layer: ir.Node) -> np.ndarray:
        """Returns the largest weight of each output channel."""
        weight = np.abs(self._get(layer, 1))
        rows = weight.T if layer.op_type == "MatMul" else weight.reshape(len(weight), -1)
        return np.asarray(rows.max(axis=1))

    def input_ranges(self, layer: ir.Node) -> np.ndarray:
        """Returns the largest weight that each input channel meets."""
        weight = np.abs(self._get(layer, 1))
        if layer.op_type == "MatMul":
            return np.asarray(weight.max(axis=1))
        n_groups = layer.attributes.get_int("group", 1) or 1
        grouped = weight.reshape(n_groups, -1, weight.shape[1], int(np.prod(weight.shape[2:])))
        return np.asarray(grouped.max(axis=(1, 3)).ravel())

    def divide_outputs(self, layer: ir.Node, scale: np.ndarray) -> None:
        """Divides the weight and the bias that make each output channel."""
        weight = self._get(layer, 1)
        weight /= scale if layer.op_type == "MatMul" else scale.reshape(-1, *(1,) * (weight.ndim - 1))
        place = find_bias(layer)
        if place is not None:
            bias = self._get(*place)
            bias /= scale.reshape(bias.shape)

    def multiply_inputs(self, layer: ir.Node, scale: np.ndarray) -> None:
        """Multiplies the weights that each input channel meets."""
        weight = self._get(layer, 1)
        if layer.op_type == "MatMul":
            weight *= scale[:, None]
            return
        n_groups = layer.attributes.get_int("group", 1) or 1
        grouped = weight.reshape(n_groups, -1, *weight.shape[1:])
        grouped *= scale.reshape(n_groups, 1, -1, *(1,) * (weight.ndim - 2))

    def divide_norm(
        self, scaler: ir.Node, position: int, shifter: ir.Node, bias: int | None, scale: np.ndarray
    ) -> None:
        """Divides the scale and the bias of a layer norm."""
        self._arrays[scaler, position] = self._get(scaler, position) / scale
        if bias is not None:
            self._arrays[shifter, bias] = self._get(shifter, bias) / scale

    def write(self) -> None:
        """Stores what has changed; a constant that others read too is copied first."""
        for (node, position), array in self._arrays.items():
            value = input_of(node, position)
            stored = array.astype(np.float32)
            if len(value.uses()) > 1:
                node.replace_input_with(position, add_initializer(self.graph, f"{value.name}_equalized", stored))
            else:
                value.const_value = ir.tensor(stored, name=value.name)
                value.shape = ir.Shape(stored.shape)
        drop_unused_initializers(self.graph)

    def _get(self, node: ir.Node, position: int) -> np.ndarray:
        if (node, position) not in self._arrays:
            self._arrays[node, position] = array_of(input_of(node, position)).astype(np.float64)
        return self._arrays[node, position]
