"""Small models for micro-benchmarks: a layer between neighbours, one large layer, one that only moves memory.

They are written with onnx.helper and quantised by Trimtab's own pipeline, so that what is measured is what a search
would build.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..compressors.pipeline import Pipeline
from ..compressors.prepared import PreparedModel, prepare_model
from ..compressors.source import ModelSource
from ..hw_profiles.device_profile import variant_of
from ..hw_profiles.target import Capabilities

#: width of the neighbours' outer sides: thin, so that the layer itself takes most of the time
_THIN = 16
#: samples for the ranges of int8 activations
_N_CALIBRATION = 2

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Case:
    """A layer to be judged, in a shape that real networks have."""

    #: one of `LAYER_KINDS`
    kind: str
    #: of the weight: (out, in / groups, *kernel), (in, out), or (rows, width) of an embedding
    weight_shape: tuple[int, ...]
    #: what lies behind batch and channels: (h, w), or (tokens,); () for one row
    extent: tuple[int, ...]
    #: "2:4" zeroes two weights of each four along the inputs
    pattern: str = ""

    @property
    def variant(self) -> str:
        """The part of the kind; see `variant_of`."""
        return variant_of(self.kind, self.weight_shape, (-1, *self.extent, self.weight_shape[-1]))

    @property
    def label(self) -> str:
        """Weight and extent in words."""
        where = "×".join(map(str, self.extent)) or "1 row"
        return f"{'×'.join(map(str, self.weight_shape))} on {where}"


#: From MobileNetV2 (https://arxiv.org/abs/1801.04381, table 2), ResNet-18 and BERT's smaller kin; the odd ones are what
#: pruning leaves.
CASES: tuple[Case, ...] = (
    Case("conv", (128, 64, 1, 1), (28, 28)),
    Case("conv", (320, 960, 1, 1), (7, 7)),
    Case("conv", (144, 24, 1, 1), (56, 56)),
    Case("conv", (61, 61, 1, 1), (28, 28)),
    Case("conv", (64, 64, 3, 3), (56, 56)),
    Case("conv", (256, 256, 3, 3), (14, 14)),
    Case("conv", (61, 61, 3, 3), (28, 28)),
    Case("depthwise_conv", (96, 1, 3, 3), (56, 56)),
    Case("depthwise_conv", (384, 1, 3, 3), (14, 14)),
    Case("depthwise_conv", (960, 1, 3, 3), (7, 7)),
    Case("linear", (384, 1536), (128,)),
    Case("linear", (768, 768), (128,)),
    Case("linear", (1280, 1000), ()),
    Case("embedding", (8192, 384), (128,)),
)


@dataclass(frozen=True)
class Sandwich:
    """A prepared model: a thin neighbour, the layer ``middle``, a thin neighbour."""

    prepared: PreparedModel
    inputs: Mapping[str, np.ndarray]
    #: the neighbours that can be int8
    neighbours: tuple[str, ...]

    def pipeline(self, capabilities: Capabilities) -> Pipeline:
        """Returns what builds its artifacts for a device."""
        return Pipeline(self.prepared, capabilities)


def build_sandwich(case: Case, batch_size: int = 1) -> Sandwich:
    """Makes the model of a case, with random weights that keep activations of about unit size.

    Args:
        case: the layer.
        batch_size: samples in one inference.

    Raises:
        ModelError: ONNX Runtime refuses the model.
    """
    rng = np.random.default_rng(0)
    weights: Arrays = {"middle.weight": _sparsify(_draw(rng, case), case.pattern)}
    nodes = _write_nodes(case, weights, rng)
    return _prepare(nodes, weights, _inputs(case, batch_size, rng))


def build_layer(case: Case, batch_size: int = 1) -> Sandwich:
    """Makes a model of one large layer alone, for peak rates; its output is summed up, so that little leaves the model.

    Raises:
        ModelError: ONNX Runtime refuses the model.
    """
    rng = np.random.default_rng(0)
    weights: Arrays = {"middle.weight": _draw(rng, case)}
    depth = case.weight_shape[1] if case.kind == "conv" else case.weight_shape[0]
    shape = (depth, *case.extent) if case.kind == "conv" else (*case.extent, depth)
    inputs = {"x": rng.standard_normal((max(batch_size, _N_CALIBRATION), *shape)).astype(np.float32)}
    operator = _conv(case) if case.kind == "conv" else helper.make_node("MatMul", ["x", "middle.weight"], ["m"])
    last = helper.make_node("ReduceMax", ["m"], ["y"], axes=[1], keepdims=0)
    return _prepare([operator, last], weights, (inputs, batch_size))


def build_copy(n_floats: int) -> bytes:
    """Makes a model that reads and writes ``n_floats`` float32 values in one operator and returns only a few of them.

    Input ``x`` (1, n_floats / 1024, 1024).
    """
    nodes = [helper.make_node("Relu", ["x"], ["m"]), helper.make_node("Slice", ["m", "from", "to", "axis"], ["y"])]
    bounds = {"from": np.array([0]), "to": np.array([1]), "axis": np.array([1])}
    return _serialise(nodes, bounds, {"x": (np.dtype(np.float32), (1, n_floats // 1024, 1024))})


def _draw(rng: np.random.Generator, case: Case) -> np.ndarray:
    """A weight whose products keep the variance of what they read."""
    shape = case.weight_shape
    fan_in = shape[0] if case.kind == "linear" else 1 if case.kind == "embedding" else int(np.prod(shape[1:]))
    weight: np.ndarray = rng.standard_normal(shape, dtype=np.float32) * np.float32(fan_in**-0.5)
    return weight


def _sparsify(weight: np.ndarray, pattern: str) -> np.ndarray:
    """Zeroes the two smallest of each four weights along the inputs of a (in, out) matrix."""
    if pattern != "2:4":
        return weight
    groups = weight.reshape(-1, 4, weight.shape[1]).copy()
    smallest = np.abs(groups).argsort(1)[:, :2]
    np.put_along_axis(groups, smallest, np.float32(0), 1)
    return groups.reshape(weight.shape)


def _conv(case: Case, source: str = "x") -> onnx.NodeProto:
    kernel = case.weight_shape[2:]
    return helper.make_node(
        "Conv", [source, "middle.weight"], ["m"], name="middle", kernel_shape=kernel,
        pads=[side // 2 for side in kernel] * 2, group=case.weight_shape[0] if case.kind == "depthwise_conv" else 1,
    )  # fmt: skip


def _write_nodes(case: Case, weights: Arrays, rng: np.random.Generator) -> list[onnx.NodeProto]:
    """Writes before → middle → after; an embedding comes first."""
    if case.kind == "embedding":
        weights["after.weight"] = _thin(rng, (case.weight_shape[1], _THIN))
        return [helper.make_node("Gather", ["middle.weight", "x"], ["m"]),
                helper.make_node("MatMul", ["m", "after.weight"], ["y"])]  # fmt: skip
    is_linear = case.kind == "linear"
    n_in, n_out = case.weight_shape[:2] if is_linear else (case.weight_shape[1], case.weight_shape[0])
    if case.kind == "depthwise_conv":
        n_in = n_out
    shapes = ((_THIN, n_in), (n_out, _THIN)) if is_linear else ((n_in, _THIN, 1, 1), (_THIN, n_out, 1, 1))
    weights["before.weight"], weights["after.weight"] = (_thin(rng, shape) for shape in shapes)
    neighbour = "MatMul" if is_linear else "Conv"
    nodes = [helper.make_node(neighbour, ["x", "before.weight"], ["b"], name="before")]
    if is_linear:  # with biases and without Relu, as in transformers
        weights["before.bias"], weights["middle.bias"] = (
            rng.standard_normal(n, dtype=np.float32) for n in (n_in, n_out)
        )
        nodes += [helper.make_node("Add", ["b", "before.bias"], ["r"]),
                  helper.make_node("MatMul", ["r", "middle.weight"], ["p"], name="middle"),
                  helper.make_node("Add", ["p", "middle.bias"], ["s"])]  # fmt: skip
    else:
        nodes += [helper.make_node("Relu", ["b"], ["r"]), _conv(case, "r"), helper.make_node("Relu", ["m"], ["s"])]
    # a layer at the very end would keep a float output, and run as float in ONNX Runtime
    return [*nodes, helper.make_node(neighbour, ["s", "after.weight"], ["a"], name="after"),
            helper.make_node("ReduceMax", ["a"], ["y"], axes=[-1], keepdims=0)]  # fmt: skip


def _thin(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    weight: np.ndarray = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.2)
    return weight


def _inputs(case: Case, batch_size: int, rng: np.random.Generator) -> tuple[Arrays, int]:
    """Returns calibration samples and the batch size of the measured input."""
    n_samples = max(batch_size, _N_CALIBRATION)
    if case.kind == "embedding":
        return {"x": rng.integers(0, case.weight_shape[0], (n_samples, *case.extent))}, batch_size
    shape = (*case.extent, _THIN) if case.kind == "linear" else (_THIN, *case.extent)
    return {"x": rng.standard_normal((n_samples, *shape)).astype(np.float32)}, batch_size


def _prepare(nodes: list[onnx.NodeProto], weights: Arrays, inputs: tuple[Arrays, int]) -> Sandwich:
    samples, batch_size = inputs
    shapes = {name: (array.dtype, ("batch", *array.shape[1:])) for name, array in samples.items()}
    prepared = prepare_model(ModelSource(_serialise(nodes, weights, shapes)), samples)
    neighbours = tuple(layer.name for layer in prepared.layers if layer.name != "middle")
    return Sandwich(prepared, {name: array[:batch_size] for name, array in samples.items()}, neighbours)


def _serialise(
    nodes: list[onnx.NodeProto], constants: Arrays, inputs: Mapping[str, tuple[np.dtype, tuple[str | int, ...]]]
) -> bytes:
    """Makes a model with the output ``y`` of unknown shape."""
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)
        for name, (dtype, shape) in inputs.items()
    ]
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "micro", declared, [output], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content
