"""Small random networks whose kernels teach a predictor what a device does with shapes that no known model has.

Each is a chain of blocks as real networks have them, with random channels, windows and strides; weights are random,
since a kernel's time hardly depends on them. They are written as ONNX directly, which is a hundred times faster than
an export from torch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...compressors.source import ModelSource

#: what the default of torch's exporter writes, too
_OPSET = 17
#: pixels per side at each halving of an image of 224, and of smaller ones
_SIDES = (112, 96, 80, 56, 48, 40, 32, 28, 24, 20, 16, 14, 12, 10, 8, 7)
#: multiply-accumulates that a convolution should not exceed: a whole network should take milliseconds
_MOST_MACS = 1.5e8
_BLOCKS_PER_IMAGE_NETWORK, _BLOCKS_PER_TOKEN_NETWORK = 5, 2
#: one in so many networks works on tokens
_TOKENS_EVERY = 3


@dataclass
class _Graph:
    """A graph that grows by one value at a time; `shape` is that of the last one."""

    rng: np.random.Generator
    shape: tuple[int, ...]
    last: str = "x"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, op: str, *inputs: str, shape: tuple[int, ...] | None = None, **attributes: object) -> str:
        """Adds a node and returns its output, which is then the last value."""
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"n_{name}", **attributes))
        self.last, self.shape = name, self.shape if shape is None else shape
        return name

    def constant(self, array: np.ndarray | np.floating) -> str:
        """Adds an initialiser and returns its name."""
        name = f"w_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int) -> str:
        """Adds random weights that keep the variance of what they multiply."""
        fan_in = max(int(np.prod(shape[1:] if len(shape) == 4 else shape[:-1])), 1)
        return self.constant((self.rng.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32))

    def choose(self, *options: int) -> int:
        """Returns one of the options."""
        return int(self.rng.choice(options))

    def finish(self, shape: tuple[int, ...]) -> ModelSource:
        """Returns the model, whose input has this shape."""
        ends = [
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(shape)),
            helper.make_tensor_value_info(self.last, onnx.TensorProto.FLOAT, list(self.shape)),
        ]
        graph = helper.make_graph(self.nodes, "calibration", ends[:1], ends[1:], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
        sample = {"x": np.random.default_rng(0).normal(size=shape).astype(np.float32)}
        return ModelSource(model.SerializeToString(), sample=sample)


def synthetic_networks(rng: np.random.Generator, n: int) -> Iterator[ModelSource]:
    """Yields n random networks with one float32 input ``x``, of images (1, c, h, w) or tokens (1, tokens, width).

    Every third works on tokens. ``sample`` of each holds inputs, which also serve to calibrate ranges.

    Args:
        rng: decides all shapes and weights.
        n: how many.
    """
    for index in range(n):
        yield _token_network(rng) if index % _TOKENS_EVERY == _TOKENS_EVERY - 1 else _image_network(rng)


def _image_network(rng: np.random.Generator) -> ModelSource:
    """Blocks at falling sizes, then pooling and a classifier."""
    side = int(rng.choice(_SIDES[:10]))
    starts_with_image = rng.random() < 0.5
    shape = (1, 3, 2 * side, 2 * side) if starts_with_image else (1, _width(rng, side), side, side)
    graph = _Graph(rng, shape)
    if starts_with_image:
        _conv(graph, _width(rng, side) // 2 // 8 * 8 or 8, window=graph.choose(3, 3, 4, 7), stride=2)
        _activate(graph)
    for _ in range(_BLOCKS_PER_IMAGE_NETWORK):
        if graph.shape[2] > 7 and rng.random() < 0.4:
            _conv(graph, _width(rng, graph.shape[2] // 2), window=graph.choose(1, 2, 3), stride=2)
        _IMAGE_BLOCKS[graph.choose(*range(len(_IMAGE_BLOCKS)))](graph)
    graph.add("GlobalAveragePool", graph.last, shape=(1, graph.shape[1], 1, 1))
    graph.add("Flatten", graph.last, axis=1, shape=(1, graph.shape[1]))
    _linear(graph, graph.choose(2, 10, 100, 1000))
    return graph.finish(shape)


def _token_network(rng: np.random.Generator) -> ModelSource:
    """Transformer blocks of changing width."""
    shape = (1, int(rng.choice([50, 64, 101, 128, 145, 196, 197])), int(rng.choice([128, 192, 256, 320, 384, 512])))
    graph = _Graph(rng, shape)
    for index in range(_BLOCKS_PER_TOKEN_NETWORK):
        if index:
            _linear(graph, graph.choose(128, 192, 256, 320, 384, 512))
        _attend(graph)
        _feed_forward(graph, graph.choose(2, 3, 4, 4))
    return graph.finish(shape)


def _width(rng: np.random.Generator, side: int) -> int:
    """A multiple of 8, wider where the image is smaller, as in every family of networks."""
    return max(8, int(np.exp(rng.normal(np.log(1800 / side), 0.6))) // 8 * 8)


def _conv(graph: _Graph, n_out: int, *, window: int = 1, stride: int = 1, groups: int = 1) -> None:
    _, n_in, height, width = graph.shape
    macs = n_out * n_in // groups * window**2 * height * width // stride**2
    if groups == 1 and macs > _MOST_MACS:
        n_out = max(8, int(n_out * _MOST_MACS / macs) // 8 * 8)
    before = (window - 1) // 2
    after = window - 1 - before
    sides = ((height - 1) // stride + 1, (width - 1) // stride + 1)
    names = (graph.last, graph.weight(n_out, n_in // groups, window, window), graph.weight(n_out))
    graph.add(
        "Conv", *names, shape=(1, n_out, *sides), kernel_shape=[window] * 2, strides=[stride] * 2, group=groups,
        pads=[before, before, after, after],
    )  # fmt: skip


def _activate(graph: _Graph) -> None:
    """ReLU, ReLU6, SiLU or none."""
    kind, source = graph.choose(0, 1, 1, 2, 3), graph.last
    if kind == 0:
        graph.add("Relu", source)
    if kind == 1:
        graph.add("Clip", source, graph.constant(np.float32(0)), graph.constant(np.float32(6)))
    if kind == 2:
        graph.add("Mul", source, graph.add("Sigmoid", source))


def _inverted_residual(graph: _Graph) -> None:
    """MobileNetV2 and EfficientNet: widen, filter each channel, squeeze and excite or not, narrow, add."""
    start, shape = graph.last, graph.shape
    wide = shape[1] * graph.choose(3, 4, 6)
    if wide * shape[1] * shape[2] ** 2 > _MOST_MACS:
        wide = shape[1]
    _conv(graph, wide)
    _activate(graph)
    _conv(graph, wide, window=graph.choose(3, 3, 5, 7), groups=wide)
    _activate(graph)
    if graph.rng.random() < 0.4:
        _excite(graph, max(8, wide // graph.choose(8, 16, 24)))
    _conv(graph, shape[1])
    if graph.shape == shape:
        graph.add("Add", start, graph.last)


def _excite(graph: _Graph, n_squeezed: int) -> None:
    """https://arxiv.org/abs/1709.01507, figure 2."""
    source, shape = graph.last, graph.shape
    graph.add("ReduceMean", source, axes=[2, 3], keepdims=1, shape=(1, shape[1], 1, 1))
    _conv(graph, n_squeezed)
    _activate(graph)
    _conv(graph, shape[1])
    graph.add("Mul", source, graph.add("Sigmoid", graph.last), shape=shape)


def _basic(graph: _Graph) -> None:
    """ResNet: two windows of 3, add, activate; or a bottleneck."""
    start, shape = graph.last, graph.shape
    is_bottleneck = graph.rng.random() < 0.3
    if is_bottleneck:
        _conv(graph, max(8, shape[1] // 4 // 8 * 8))
        _activate(graph)
    _conv(graph, graph.shape[1], window=3)
    graph.add("Relu", graph.last)
    _conv(graph, shape[1], window=1 if is_bottleneck else 3)
    if graph.shape == shape:
        graph.add("Add", start, graph.last)
    graph.add("Relu", graph.last)


def _plain(graph: _Graph) -> None:
    """One convolution of any window, and pooling or not."""
    _conv(graph, _width(graph.rng, graph.shape[2]), window=graph.choose(1, 3, 5))
    _activate(graph)
    if graph.rng.random() < 0.3 and graph.shape[2] >= 14:
        sides = tuple((side - 1) // 2 + 1 for side in graph.shape[2:])
        graph.add(
            "MaxPool", graph.last, shape=(*graph.shape[:2], *sides), kernel_shape=[3, 3], strides=[2, 2],
            pads=[1, 1, 1, 1],
        )  # fmt: skip


def _convnext(graph: _Graph) -> None:
    """https://arxiv.org/abs/2201.03545, figure 4: a window of 7 per channel, then a perceptron at each pixel."""
    start, (_, n_channels, height, width) = graph.last, graph.shape
    _conv(graph, n_channels, window=7, groups=n_channels)
    graph.add("Transpose", graph.last, perm=[0, 2, 3, 1], shape=(1, height, width, n_channels))
    _normalise(graph)
    _linear(graph, n_channels * 4)
    _gelu(graph)
    _linear(graph, n_channels)
    graph.add("Transpose", graph.last, perm=[0, 3, 1, 2], shape=(1, n_channels, height, width))
    graph.add("Add", start, graph.last)


_IMAGE_BLOCKS: tuple[Callable[[_Graph], None], ...] = (
    _inverted_residual, _inverted_residual, _basic, _plain, _convnext
)  # fmt: skip


def _linear(graph: _Graph, n_out: int) -> None:
    source = graph.last
    if len(graph.shape) == 2:
        graph.add("Gemm", source, graph.weight(graph.shape[-1], n_out), graph.weight(n_out), shape=(1, n_out))
        return
    graph.add("MatMul", source, graph.weight(graph.shape[-1], n_out), shape=(*graph.shape[:-1], n_out))
    graph.add("Add", graph.weight(n_out), graph.last)


def _normalise(graph: _Graph) -> None:
    scale, shift = (graph.constant(np.full(graph.shape[-1], v, np.float32)) for v in (1.0, 0.0))
    graph.add("LayerNormalization", graph.last, scale, shift, axis=-1)


def _gelu(graph: _Graph) -> None:
    """https://arxiv.org/abs/1606.08415, as torch exports it: x · (1 + erf(x / √2)) · ½."""
    source = graph.last
    graph.add("Div", source, graph.constant(np.float32(np.sqrt(2))))
    graph.add("Add", graph.add("Erf", graph.last), graph.constant(np.float32(1)))
    graph.add("Mul", graph.add("Mul", source, graph.last), graph.constant(np.float32(0.5)))


def _attend(graph: _Graph) -> None:
    """https://arxiv.org/abs/1706.03762, equation 1, with the norm before or after."""
    start, shape, is_first = graph.last, graph.shape, graph.rng.random() < 0.5
    _, n_tokens, width = shape
    n_heads = width // graph.choose(32, 64)
    if is_first:
        _normalise(graph)
    source = graph.last
    heads = (1, n_tokens, n_heads, width // n_heads)
    query, key, value = (
        _split_heads(graph, source, heads, perm) for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    )
    graph.add("MatMul", query, key, shape=(1, n_heads, n_tokens, n_tokens))
    graph.add("Mul", graph.last, graph.constant(np.float32((width / n_heads) ** -0.5)))
    graph.add("Softmax", graph.last, axis=-1)
    graph.add("MatMul", graph.last, value, shape=(1, n_heads, n_tokens, width // n_heads))
    graph.add("Transpose", graph.last, perm=[0, 2, 1, 3])
    graph.add("Reshape", graph.last, graph.constant(np.array(shape, np.int64)), shape=shape)
    _linear(graph, width)
    graph.add("Add", graph.last, start)
    if not is_first:
        _normalise(graph)


def _split_heads(graph: _Graph, source: str, heads: tuple[int, ...], perm: list[int]) -> str:
    graph.last, graph.shape = source, (heads[0], heads[1], heads[2] * heads[3])
    _linear(graph, graph.shape[-1])
    graph.add("Reshape", graph.last, graph.constant(np.array(heads, np.int64)))
    return graph.add("Transpose", graph.last, perm=perm)


def _feed_forward(graph: _Graph, factor: int) -> None:
    start, shape, is_first = graph.last, graph.shape, graph.rng.random() < 0.5
    if is_first:
        _normalise(graph)
    _linear(graph, shape[-1] * factor)
    _gelu(graph)
    _linear(graph, shape[-1])
    graph.add("Add", graph.last, start)
    if not is_first:
        _normalise(graph)
