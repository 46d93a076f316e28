"""What a kernel has to do: its arithmetic, the bytes it moves, and the sides of its shapes as numbers for regressions.

Shapes are read as ONNX Runtime and OpenVINO report them: images with channels first unless the attribute
``channels_last`` says otherwise, weights of convolutions as (out, in / groups, sides…), or in OpenVINO as
(groups, out / groups, in / groups, sides…). An operator that is not known here gets the features of its bytes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .kernel import DTYPE_BYTES, Kernel, Tensor

#: family → operators (without domain) of ONNX Runtime and layer types of OpenVINO
_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "conv": (
        "Conv", "QLinearConv", "ConvInteger", "FusedConv", "NhwcConv", "NhwcFusedConv", "ConvTranspose",
        "Convolution", "GroupConvolution", "Deconvolution", "BinaryConvolution",
    ),
    "matmul": (
        "MatMul", "Gemm", "FusedGemm", "FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "QGemm",
        "DynamicQuantizeMatMul", "MatMulNBits", "GemmFloat8", "FullyConnected", "FullyConnectedCompressed",
    ),
    "attention": (
        "Attention", "QAttention", "MultiHeadAttention", "GroupQueryAttention", "MHA", "ScaledDotProductAttention",
        "ScaledDotProductAttentionWithKVCache",
    ),
    "pool": (
        "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "QLinearAveragePool",
        "QLinearGlobalAveragePool", "Pooling", "AdaptivePooling", "Reduce", "ReduceMean", "ReduceSum", "ReduceMax",
        "QLinearReduceMean",
    ),
    "normalise": (
        "LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization", "EmbedLayerNormalization",
        "InstanceNormalization", "GroupNorm", "Softmax", "LogSoftmax", "QLinearSoftmax", "MVN", "RMSNorm",
        "NormalizeL2",
    ),
    "layout": (
        "Transpose", "ReorderInput", "ReorderOutput", "Reorder", "Concat", "Concatenation", "Split", "Slice",
        "StridedSlice", "Gather", "GatherND", "QEmbedLayerNormalization", "Pad", "Tile", "Broadcast", "Expand",
    ),
    "convert": ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "FakeQuantize", "Cast", "Convert"),
    "view": ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "ShapeOf"),
}  # fmt: skip
_FAMILY_OF = {op: family for family, ops in _FAMILIES.items() for op in ops}

#: names of `KernelWork.family`, in a fixed order; ``elementwise`` is everything else
FAMILIES = (*_FAMILIES, "elementwise")

#: Widths of vectors and tiles, in elements; a side that they do not divide is padded or takes a slow path.
_WIDTHS = (8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class KernelWork:
    """What one run of a kernel has to do; sides that do not apply are 1."""

    #: one of `FAMILIES`
    family: str
    #: two for each multiply-accumulate, one for each element where there are none
    flops: float
    #: bytes of the inputs that are computed at run time
    read_bytes: float
    written_bytes: float
    #: bytes of weights, scales and other constants
    constant_bytes: float
    #: images, or rows of a matrix product
    rows: float = 1.0
    #: depth of a product: channels per group times the window, or the inner side
    depth: float = 1.0
    #: channels or columns that come out
    columns: float = 1.0
    channels_in: float = 1.0
    window: float = 1.0
    groups: float = 1.0
    #: elements in ÷ elements out per channel: the square of a stride
    shrinkage: float = 1.0

    @property
    def moved_bytes(self) -> float:
        """All bytes that are read or written."""
        return self.read_bytes + self.written_bytes + self.constant_bytes


#: kernels whose features are kept: a search asks for the same ones again and again
_KEPT = 8192


@lru_cache(_KEPT)
def measure_work(kernel: Kernel) -> KernelWork:
    """Returns what a kernel has to do; for an unknown operator, what its bytes tell."""
    family = find_family(kernel)
    sides = _SIDES.get(family, _elementwise_sides)(kernel)
    read = sum(tensor.n_bytes for tensor in kernel.inputs if not tensor.is_constant)
    constant = sum(tensor.n_bytes for tensor in kernel.inputs if tensor.is_constant)
    if family == "view":
        read, written = 0, 0
    else:
        written = sum(tensor.n_bytes for tensor in kernel.outputs)
    if family == "layout" and short_op(kernel).startswith("Gather"):
        read, constant = written, 0  # a table is not read as a whole
    return KernelWork(
        family, read_bytes=float(read), written_bytes=float(written), constant_bytes=float(constant), **sides
    )


def flops(kernel: Kernel) -> float:
    """Returns the floating point or integer operations: two per multiply-accumulate, else one per element."""
    return measure_work(kernel).flops


def short_op(kernel: Kernel) -> str:
    """Returns the operator without its domain."""
    return kernel.op.rpartition(".")[2]


def find_family(kernel: Kernel) -> str:
    """Returns which of `FAMILIES` a kernel belongs to."""
    op = short_op(kernel)
    if op == "Subgraph" and _looks_like_attention(kernel):
        return "attention"
    return _FAMILY_OF.get(op, "elementwise")


def _looks_like_attention(kernel: Kernel) -> bool:
    """OpenVINO's code generator fuses two products and a softmax: three inputs (batch, heads or tokens, …) at least."""
    live = [tensor for tensor in kernel.inputs if not tensor.is_constant and len(tensor.shape) == 4]
    if len(live) < 3 or not kernel.outputs:
        return False
    first, second, third = (tensor.shape for tensor in live[:3])
    return len({first, second, third}) > 1 and math.prod(third) == math.prod(kernel.outputs[0].shape)


def _conv_sides(kernel: Kernel) -> dict[str, float]:
    image, out = _first(kernel.inputs), _first(kernel.outputs)
    weight = next((t for t in kernel.inputs[1:] if len(t.shape) >= max(3, len(image.shape))), None)
    if weight is None or out.n_elements == 0 or weight.n_elements == 0:
        return _elementwise_sides(kernel)
    is_grouped = len(weight.shape) == len(image.shape) + 1
    n_groups = weight.shape[0] if is_grouped else _count(kernel, "group", 1)
    columns = weight.shape[0] * weight.shape[1] if is_grouped else weight.shape[0]
    per_group = weight.shape[2 if is_grouped else 1]
    depth = weight.n_elements / columns
    pixels = out.n_elements / columns
    channels_in = per_group * max(n_groups, 1)
    return {
        "flops": 2.0 * out.n_elements * depth,
        "rows": pixels,
        "depth": depth,
        "columns": float(columns),
        "channels_in": float(channels_in),
        "window": depth / per_group,
        "groups": float(max(n_groups, 1)),
        "shrinkage": image.n_elements / channels_in / pixels,
    }


def _matmul_sides(kernel: Kernel) -> dict[str, float]:
    left, out = _first(kernel.inputs), _first(kernel.outputs)
    if not left.shape or not out.shape or 0 in (left.n_elements, out.n_elements):
        return _elementwise_sides(kernel)
    depth = left.shape[-1]
    is_turned = _attribute(kernel, "transA", 0) == 1
    if len(left.shape) >= 2 and len(out.shape) >= 2 and (is_turned or _is_turned(left.shape, out.shape)):
        depth = left.shape[-2]
    columns = out.shape[-1]
    right = next((t for t in kernel.inputs[1:] if len(t.shape) >= 2), None)
    n_products = math.prod(right.shape[:-2]) if right is not None and not right.is_constant else 1
    return {
        "flops": 2.0 * out.n_elements * depth,
        "rows": out.n_elements / columns,
        "depth": float(depth),
        "columns": float(columns),
        "channels_in": float(depth),
        "groups": float(max(n_products, 1)),
    }


def _is_turned(left: Sequence[int], out: Sequence[int]) -> bool:
    """Whether the first factor is stored as (depth, rows): OpenVINO reports no attribute for that."""
    return left[-2] != out[-2] and left[-1] == out[-2]


def _attention_sides(kernel: Kernel) -> dict[str, float]:
    """Two products of (queries × keys) per head; ``Attention`` projects its input to queries, keys and values first."""
    query, out = _first(kernel.inputs), _first(kernel.outputs)
    weight = next((t for t in kernel.inputs[1:2] if t.is_constant and len(t.shape) == 2), None)
    if len(query.shape) < 3 or query.n_elements == 0:
        return _elementwise_sides(kernel)
    n_keys = max(query.shape[1:-1]) if short_op(kernel) == "Subgraph" else query.shape[-2]
    products = 4.0 * out.n_elements * n_keys
    projection = 0.0 if weight is None else 2.0 * query.n_elements * weight.shape[-1]
    n_heads = float(_count(kernel, "num_heads", query.shape[1] if len(query.shape) == 4 else 1))
    return {
        "flops": products + projection,
        "rows": float(n_keys),
        "depth": out.n_elements / n_keys,
        "columns": float(n_keys),
        "groups": max(n_heads, 1.0),
    }


def _pool_sides(kernel: Kernel) -> dict[str, float]:
    source, out = _first(kernel.inputs), _first(kernel.outputs)
    window = _attribute(kernel, "kernel_shape", None)
    is_given = isinstance(window, list) and all(isinstance(side, int) for side in window)
    area = math.prod(window) if is_given else source.n_elements / max(out.n_elements, 1)
    return {
        "flops": max(float(out.n_elements * area), float(source.n_elements)),
        "rows": float(max(out.n_elements, 1)),
        "window": max(float(area), 1.0),
        "shrinkage": max(source.n_elements, 1) / max(out.n_elements, 1),
        **_channels(kernel),
    }


def _elementwise_sides(kernel: Kernel) -> dict[str, float]:
    n_elements = max((tensor.n_elements for tensor in (*kernel.inputs, *kernel.outputs)), default=0)
    return {"flops": float(n_elements), "rows": float(max(n_elements, 1)), **_channels(kernel)}


def _view_sides(kernel: Kernel) -> dict[str, float]:  # noqa: ARG001
    return {"flops": 0.0}


_SIDES = {
    "conv": _conv_sides,
    "matmul": _matmul_sides,
    "attention": _attention_sides,
    "pool": _pool_sides,
    "view": _view_sides,
}


def _channels(kernel: Kernel) -> dict[str, float]:
    """The second side of what goes in, and the innermost side of what comes out."""
    source, out = _first(kernel.inputs).shape, _first(kernel.outputs).shape
    return {
        "channels_in": float(max(source[1] if len(source) > 1 else 1, 1)),
        "columns": float(max(out[-1] if out else 1, 1)),
    }


def _first(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if tensors else Tensor("float32", ())


def _attribute(kernel: Kernel, name: str, default: Any) -> Any:
    return kernel.attribute_values.get(name, default)


def _count(kernel: Kernel, name: str, default: int) -> int:
    value = _attribute(kernel, name, default)
    return value if isinstance(value, int) and value > 0 else default


#: names of the columns of `stack_features`
FEATURES = (
    "flops", "read", "written", "constant", "intensity", "rows", "depth", "columns", "channels_in", "window", "groups",
    "shrinkage", "is_depthwise", "n_inputs", "is_relaid", "inner_in", "inner_out",
    "bytes_in", "bytes_weight", "bytes_out", "n_fused",
    *(f"{side}_{width}" for side in ("depth", "columns") for width in _WIDTHS),
)  # fmt: skip


def stack_features(kernels: Sequence[Kernel]) -> np.ndarray:
    """Returns (n, len(FEATURES)) float64, finite: base-2 logarithms of sides and bytes, and shares of padding.

    The column ``depth_16`` is log2 of the depth rounded up to 16, over the depth: 0 where nothing is padded.
    """
    rows = [_describe(kernel) for kernel in kernels]
    return np.array(rows, np.float64).reshape(len(rows), len(FEATURES))


@lru_cache(_KEPT)
def _describe(kernel: Kernel) -> list[float]:
    work = measure_work(kernel)
    live = [tensor for tensor in kernel.inputs if not tensor.is_constant]
    sides = (
        work.rows, work.depth, work.columns, work.channels_in, work.window, work.groups, work.shrinkage
    )  # fmt: skip
    source, out = _first(live or kernel.inputs), _first(kernel.outputs)
    weights = [tensor for tensor in kernel.inputs[1:] if len(tensor.shape) >= 2]
    return [
        *(math.log2(1.0 + amount) for amount in (work.flops, work.read_bytes, work.written_bytes, work.constant_bytes)),
        math.log2((1.0 + work.flops) / (1.0 + work.moved_bytes)),
        *(math.log2(max(side, 1e-3)) for side in sides),
        float(work.groups > 1 and work.groups == work.columns),
        float(len(live)),
        float(source.layout != out.layout or "perm" in kernel.attribute_values),
        math.log2(1.0 + max(source.shape[-1] if source.shape else 0, 0)),
        math.log2(1.0 + max(out.shape[-1] if out.shape else 0, 0)),
        *(DTYPE_BYTES.get(t.dtype, 4.0) for t in (source, _first(weights or [source]), out)),
        float(_count(kernel, "fused", 1)),
        *(_padding(side, width) for side in (work.depth, work.columns) for width in _WIDTHS),
    ]


def _padding(side: float, width: int) -> float:
    return math.log2(math.ceil(side / width) * width / side) if side > 0 else 0.0


@lru_cache(_KEPT)
def describe_kind(kernel: Kernel) -> tuple[str, ...]:
    """Returns what must be equal for two kernels to run the same code: operator, implementation, dtypes, layouts.

    From the finest to the coarsest, so that ``kind[i:]`` is a fallback with more members: layouts and the activation
    fused in, dtypes, implementation, operator.
    """
    source, out = _first(kernel.inputs), _first(kernel.outputs)
    weight = _first([tensor for tensor in kernel.inputs[1:] if len(tensor.shape) >= 2])
    # a runtime packs constant weights beforehand
    dtypes = f"{source.dtype},{weight.dtype}{'!' * weight.is_constant},{out.dtype}"
    values = kernel.attribute_values
    details = (
        f"{source.layout}>{out.layout},{values.get('activation')},{values.get('channels_last')},{values.get('perm')}"
    )
    work = measure_work(kernel)
    is_depthwise = work.groups > 1 and work.groups == work.columns
    return details, dtypes, kernel.implementation, f"{kernel.op}{'/depthwise' if is_depthwise else ''}", work.family
