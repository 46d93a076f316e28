"""ONNX operators as PyTorch functions: inputs by position, attributes by their ONNX name.

Opset 13 and later. Values that only describe shapes are lists of whole numbers here, not tensors, so that
`torch.compile` sees a graph without reads from memory; `torch_shapes` computes with them.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
from torch.nn import functional

#: A tensor; torch ships its types but Trimtab's checks skip them.
Tensor = Any

#: ONNX element type → torch dtype
DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.BOOL: torch.bool,
}


# -- element by element -----------------------------------------------------------------------------------


def divide(left: Tensor, right: Tensor) -> Tensor:
    """Div: whole numbers are truncated towards zero."""
    if left.is_floating_point():
        return left / right
    return torch.div(left, right, rounding_mode="trunc")


def power(base: Tensor, exponent: Tensor) -> Tensor:
    """Pow: the result has the base's dtype."""
    return torch.pow(base, exponent).to(base.dtype)


def modulo(left: Tensor, right: Tensor, *, fmod: int = 0) -> Tensor:
    """Mod: the sign of the divisor, or with ``fmod`` that of the dividend."""
    return torch.fmod(left, right) if fmod else torch.remainder(left, right)


def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Clip."""
    return x if low is None and high is None else torch.clamp(x, low, high)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Gelu."""
    return functional.gelu(x, approximate=approximate)


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """HardSigmoid."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """LeakyRelu."""
    return functional.leaky_relu(x, alpha)


def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Elu."""
    return functional.elu(x, alpha)


def parametric_relu(x: Tensor, slope: Tensor) -> Tensor:
    """PRelu."""
    return torch.where(x < 0, slope * x, x)


def smallest(*values: Tensor) -> Tensor:
    """Min of one or more."""
    result = values[0]
    for value in values[1:]:
        result = torch.minimum(result, value)
    return result


def largest(*values: Tensor) -> Tensor:
    """Max of one or more."""
    result = values[0]
    for value in values[1:]:
        result = torch.maximum(result, value)
    return result


def dropout(x: Tensor, _ratio: Tensor | None = None, _training: Tensor | None = None, **_: Any) -> Tensor:
    """Dropout while nothing trains."""
    return x


# -- layers -----------------------------------------------------------------------------------------------


def matrix_product(left: Tensor, right: Tensor) -> Tensor:
    """MatMul."""
    return torch.matmul(left, right)


def gemm(
    left: Tensor, right: Tensor, bias: Tensor | None = None, **attributes: Any
) -> Tensor:  # alpha, beta, transA, transB
    """Gemm."""
    left = left.transpose(0, 1) if attributes.get("transA") else left
    right = right.transpose(0, 1) if attributes.get("transB") else right
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    if bias is None:
        return alpha * (left @ right)
    return torch.addmm(bias.to(left.dtype), left, right, beta=beta, alpha=alpha)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, **attributes: Any) -> Tensor:
    """Conv in 1 to 3 dimensions."""
    n_axes = weight.dim() - 2
    strides = attributes.get("strides") or [1] * n_axes
    dilations = attributes.get("dilations") or [1] * n_axes
    reach = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, weight.shape[2:], strict=True)]
    x, padding = pad_for_window(x, reach, strides, attributes)
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[n_axes - 1]
    return function(x, weight, bias, strides, padding, dilations, attributes.get("group", 1))


def convolve_transposed(x: Tensor, weight: Tensor, bias: Tensor | None = None, **attributes: Any) -> Tensor:
    """ConvTranspose with equal padding on both sides."""
    n_axes = weight.dim() - 2
    strides, dilations = attributes.get("strides") or [1] * n_axes, attributes.get("dilations") or [1] * n_axes
    pads, extra = attributes.get("pads") or [0] * 2 * n_axes, attributes.get("output_padding") or [0] * n_axes
    if (
        pads[:n_axes] != pads[n_axes:]
        or attributes.get("output_shape")
        or attributes.get("auto_pad", "NOTSET") != "NOTSET"
    ):
        raise NotImplementedError("ConvTranspose with auto_pad, output_shape or unequal pads")
    function = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[n_axes - 1]
    return function(x, weight, bias, strides, pads[:n_axes], extra, attributes.get("group", 1), dilations)


def pad_for_window(
    x: Tensor, reach: Sequence[int], strides: Sequence[int], attributes: dict[str, Any], fill: float = 0.0
) -> tuple[Tensor, list[int]]:
    """Returns the input and the padding that is equal on both sides; what is unequal is padded here.

    Args:
        x: (batch, channels, …) tensor.
        reach: elements from the first to the last that the window touches, per axis.
        strides: per axis.
        attributes: ``pads`` and ``auto_pad`` of the node.
        fill: the value to pad with.
    """
    n_axes = len(reach)
    automatic = attributes.get("auto_pad", "NOTSET")
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((math.ceil(size / stride) - 1) * stride + width - size, 0)
            for size, stride, width in zip(x.shape[2:], strides, reach, strict=True)
        ]
        small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
        before, after = (small, large) if automatic == "SAME_UPPER" else (large, small)
    else:
        pads = attributes.get("pads") or [0] * 2 * n_axes
        before, after = list(pads[:n_axes]), list(pads[n_axes:])
    if before == after:
        return x, before
    # torch lists the last axis first
    sides = [side for axis in reversed(range(n_axes)) for side in (before[axis], after[axis])]
    return functional.pad(x, sides, value=fill), [0] * n_axes


def max_pool(x: Tensor, **attributes: Any) -> Tensor:
    """MaxPool, values only."""
    kernel = attributes["kernel_shape"]
    strides = attributes.get("strides") or [1] * len(kernel)
    dilations = attributes.get("dilations") or [1] * len(kernel)
    reach = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
    lowest = float("-inf") if x.is_floating_point() else 0.0
    x, padding = pad_for_window(x, reach, strides, attributes, lowest)
    if any(2 * pad > size for pad, size in zip(padding, kernel, strict=True)):  # more than torch takes
        x = functional.pad(x, [pad for pad in reversed(padding) for _ in range(2)], value=lowest)
        padding = [0] * len(kernel)
    function = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(kernel) - 1]
    return function(x, kernel, strides, padding, dilations, bool(attributes.get("ceil_mode", 0)))


def average_pool(x: Tensor, **attributes: Any) -> Tensor:
    """AveragePool."""
    kernel = attributes["kernel_shape"]
    strides = attributes.get("strides") or [1] * len(kernel)
    counts_padding = bool(attributes.get("count_include_pad", 0))
    padded, padding = pad_for_window(x, kernel, strides, attributes)
    if padded is not x and not counts_padding:
        raise NotImplementedError("AveragePool with unequal padding that does not count")
    options = {"ceil_mode": bool(attributes.get("ceil_mode", 0)), "count_include_pad": counts_padding}
    function = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[len(kernel) - 1]
    return function(padded, kernel, strides, padding, **options)


def global_average_pool(x: Tensor) -> Tensor:
    """GlobalAveragePool."""
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    """GlobalMaxPool."""
    return x.amax(dim=tuple(range(2, x.dim())), keepdim=True)


def batch_normalization(x: Tensor, *statistics: Tensor, epsilon: float = 1e-5, **_: Any) -> Tensor:
    """BatchNormalization with fixed statistics: scale, bias, mean, variance."""
    scale, bias, mean, variance = statistics
    return functional.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)


def layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, **_: Any
) -> Tensor:
    """LayerNormalization, its first output."""
    shape = list(x.shape)[axis:]
    return functional.layer_norm(x, shape, scale.expand(shape), None if bias is None else bias.expand(shape), epsilon)


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Softmax."""
    return torch.softmax(x, axis)


def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """LogSoftmax."""
    return torch.log_softmax(x, axis)


# -- sums over axes ---------------------------------------------------------------------------------------


def _reduce(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduce(
        x: Tensor, axes: Sequence[int] | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        if not axes and noop_with_empty_axes:
            return x
        return function(x, dim=tuple(axes or range(x.dim())), keepdim=bool(keepdims))

    return reduce


def _norm2(x: Tensor, *, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    return torch.linalg.vector_norm(x, 2, dim=dim, keepdim=keepdim)


def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """ArgMax."""
    if select_last_index:
        return x.shape[axis] - 1 - torch.argmax(x.flip(axis), axis, keepdim=bool(keepdims))
    return torch.argmax(x, axis, keepdim=bool(keepdims))


#: operator → function; `torch_graph` adds those of `torch_shapes` and `torch_integers`
ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs, "Add": operator.add, "And": torch.logical_and, "Ceil": torch.ceil, "Clip": clip, "Cos": torch.cos,
    "Div": divide, "Dropout": dropout, "Elu": elu, "Equal": torch.eq, "Erf": torch.erf, "Exp": torch.exp,
    "Floor": torch.floor, "Gelu": gelu, "Greater": torch.gt, "GreaterOrEqual": torch.ge, "HardSigmoid": hard_sigmoid,
    "HardSwish": functional.hardswish, "IsNaN": torch.isnan, "LeakyRelu": leaky_relu, "Less": torch.lt,
    "LessOrEqual": torch.le, "Log": torch.log, "Max": largest, "Min": smallest, "Mish": functional.mish,
    "Mod": modulo, "Mul": operator.mul, "Neg": torch.neg, "Not": torch.logical_not, "Or": torch.logical_or,
    "PRelu": parametric_relu, "Pow": power, "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round,
    "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin, "Softplus": functional.softplus,
    "Sqrt": torch.sqrt, "Sub": operator.sub, "Tanh": torch.tanh, "Where": torch.where,
}  # fmt: skip

#: operator → the inputs that may be plain numbers, which run faster than tensors of one element
NUMBER_INPUTS: dict[str, tuple[int, ...]] = {
    "Add": (0, 1), "Clip": (1, 2), "Div": (1,), "Mul": (0, 1), "Pow": (1,), "Sub": (0, 1),
}  # fmt: skip

LAYERS: dict[str, Callable[..., Tensor]] = {
    "ArgMax": arg_max, "AveragePool": average_pool, "BatchNormalization": batch_normalization, "Conv": convolve,
    "ConvTranspose": convolve_transposed, "Gemm": gemm, "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool, "LayerNormalization": layer_normalization, "LogSoftmax": log_softmax,
    "MatMul": matrix_product, "MaxPool": max_pool, "ReduceL2": _reduce(_norm2), "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean), "ReduceMin": _reduce(torch.amin), "ReduceSum": _reduce(torch.sum),
    "Softmax": softmax,
}  # fmt: skip
