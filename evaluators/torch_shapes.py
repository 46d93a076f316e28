"""ONNX operators that move values or compute shapes, as PyTorch functions.

A shape is a list of whole numbers (or one of them where ONNX has a scalar); everything else is a tensor.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
from torch.nn import functional

from .torch_operators import DTYPES, Tensor

#: A 1-D or scalar tensor of whole numbers that describes a shape.
Numbers = Any


# -- tensors ----------------------------------------------------------------------------------------------


def identity(x: Tensor) -> Tensor:
    """Identity."""
    return x


def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:  # noqa: ARG001 - of float8 only
    """Cast; ``to`` is ONNX's number of an element type."""
    return x.to(DTYPES[to])


def reshape(x: Tensor, shape: Sequence[int], *, allowzero: int = 0) -> Tensor:
    """Reshape; 0 keeps an axis unless ``allowzero``."""
    sides = [x.shape[axis] if side == 0 and not allowzero else side for axis, side in enumerate(shape)]
    return torch.reshape(x, sides)


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Flatten to (before, behind) the axis."""
    axis = axis + x.dim() if axis < 0 else axis
    return torch.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    """Transpose; by default the axes are reversed."""
    return x.permute(list(perm) if perm is not None else list(reversed(range(x.dim()))))


def concat(*values: Tensor, axis: int) -> Tensor:
    """Concat."""
    return torch.cat(values, axis)


def split(x: Tensor, sizes: Sequence[int] | None = None, *, axis: int = 0, num_outputs: int | None = None) -> Any:
    """Split into a tuple; without sizes into ``num_outputs`` parts, the last of which may be smaller."""
    if sizes is None:
        return torch.split(x, -(-x.shape[axis] // (num_outputs or 1)), axis)
    return torch.split(x, list(sizes), axis)


def slice_axes(
    x: Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> Tensor:
    """Slice."""
    axes = list(axes) if axes is not None else list(range(len(starts)))
    steps = list(steps) if steps is not None else [1] * len(axes)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step > 0:
            where = [slice(None)] * (axis % x.dim()) + [slice(start, end, step)]
            x = x[tuple(where)]
        else:
            places = list(range(x.shape[axis]))[start : None if end < -x.shape[axis] else end : step]
            x = torch.index_select(x, axis, torch.tensor(places, device=x.device))
    return x


def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Gather; negative indices count from the end."""
    return x[(slice(None),) * (axis % x.dim()) + (indices,)]


def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """GatherElements."""
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def unsqueeze(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Unsqueeze; the axes are those of the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Squeeze."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def expand(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Expand; broadcasting goes both ways, so a side of 1 keeps what is there."""
    sides = list(shape)
    missing = max(len(sides) - x.dim(), 0)
    old = [1] * missing + list(x.shape)
    sides = old[: len(old) - len(sides)] + sides
    return x.expand([have if want == 1 else want for have, want in zip(old, sides, strict=True)])


def tile(x: Tensor, repeats: Sequence[int]) -> Tensor:
    """Tile."""
    return x.repeat(list(repeats))


def pad(
    x: Tensor,
    pads: Sequence[int],
    fill: Tensor | None = None,
    axes: Sequence[int] | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """Pad."""
    axes = [axis % x.dim() for axis in axes] if axes is not None else list(range(x.dim()))
    sides = [0] * 2 * x.dim()
    for place, axis in enumerate(axes):
        # torch lists the last axis first
        first = 2 * (x.dim() - 1 - axis)
        sides[first : first + 2] = [pads[place], pads[place + len(axes)]]
    if mode == "constant":
        return functional.pad(x, sides, value=0.0 if fill is None else float(fill))
    while len(sides) > 2 and sides[-2:] == [0, 0] and len(sides) > 2 * max(x.dim() - 2, 1):
        sides = sides[:-2]
    return functional.pad(x, sides, mode={"reflect": "reflect", "edge": "replicate"}[mode])


def size_of(x: Tensor) -> Numbers:
    """Size of a tensor."""
    return math.prod(x.shape)


def shape_of(x: Tensor, *, start: int = 0, end: int | None = None) -> list[int]:
    """Shape of a tensor, or a piece of it."""
    return list(x.shape)[start:end]


def constant_of_shape(shape: Sequence[int], *, value: Any = None) -> Tensor:
    """ConstantOfShape."""
    if value is None:
        return torch.zeros(list(shape))
    array = onnx.numpy_helper.to_array(value)
    return torch.full(list(shape), array.item(), dtype=DTYPES[value.data_type])


def count_up(start: Numbers, limit: Numbers, step: Numbers) -> Tensor:
    """Range over whole numbers that are known as shapes are."""
    return torch.arange(start, limit, step)


# -- shapes -----------------------------------------------------------------------------------------------


def concat_numbers(*values: Numbers, axis: int = 0) -> Numbers:  # noqa: ARG001 - there is one axis
    """Concat of lists."""
    return [number for value in values for number in value]


def gather_numbers(numbers: Numbers, indices: Numbers, *, axis: int = 0) -> Numbers:  # noqa: ARG001
    """Gather from a list."""
    return [numbers[index] for index in indices] if isinstance(indices, (list, tuple)) else numbers[indices]


def slice_numbers(
    numbers: Numbers,
    starts: Numbers,
    ends: Numbers,
    axes: Numbers = None,  # noqa: ARG001 - there is one
    steps: Numbers = None,
) -> Numbers:
    """Slice of a list."""
    step = steps[0] if steps else 1
    end = ends[0]
    return numbers[starts[0] : None if step < 0 and end < -len(numbers) else end : step]


def unsqueeze_number(number: Numbers, axes: Numbers = None) -> Numbers:  # noqa: ARG001
    """Unsqueeze of one number."""
    return [number]


def squeeze_number(numbers: Numbers, axes: Numbers = None) -> Numbers:  # noqa: ARG001
    """Squeeze of a list with one number."""
    return numbers[0]


def keep_numbers(numbers: Numbers, **_: Any) -> Numbers:
    """Cast and Identity of whole numbers."""
    return numbers


def reshape_numbers(numbers: Numbers, shape: Numbers, **_: Any) -> Numbers:
    """Reshape between one number and a list."""
    listed = list(numbers) if isinstance(numbers, (list, tuple)) else [numbers]
    return listed if shape else listed[0]


def _pairwise(function: Callable[[Any, Any], Any]) -> Callable[[Numbers, Numbers], Numbers]:
    def compute(left: Numbers, right: Numbers) -> Numbers:
        if not isinstance(left, (list, tuple)) and not isinstance(right, (list, tuple)):
            return function(left, right)
        n = max(len(side) for side in (left, right) if isinstance(side, (list, tuple)))
        wide = [
            list(side) * (n if len(side) == 1 else 1) if isinstance(side, (list, tuple)) else [side] * n
            for side in (left, right)
        ]
        return [function(one, other) for one, other in zip(*wide, strict=True)]

    return compute


def multiply_all(numbers: Numbers, axes: Numbers = None, *, keepdims: int = 1, **_: Any) -> Numbers:  # noqa: ARG001
    """ReduceProd of a list."""
    product = math.prod(numbers)
    return [product] if keepdims else product


def choose_numbers(chosen: Numbers, left: Numbers, right: Numbers) -> Numbers:
    """Where of lists."""
    if not isinstance(chosen, (list, tuple)):
        return left if chosen else right
    lists = [list(side) if isinstance(side, (list, tuple)) else [side] for side in (chosen, left, right)]
    n = max(map(len, lists))
    wide = [side * (n if len(side) == 1 else 1) for side in lists]
    return [one if choice else other for choice, one, other in zip(*wide, strict=True)]


def to_tensor(numbers: Numbers) -> Tensor:
    """A shape as the tensor that ONNX means: int64, or bool of comparisons."""
    return torch.tensor(numbers) if numbers != [] else torch.zeros(0, dtype=torch.int64)


#: operator → function of tensors
MOVES: dict[str, Callable[..., Any]] = {
    "Cast": cast, "Concat": concat, "ConstantOfShape": constant_of_shape, "Expand": expand, "Flatten": flatten,
    "Gather": gather, "GatherElements": gather_elements, "Identity": identity, "Pad": pad, "Range": count_up,
    "Reshape": reshape, "Shape": shape_of, "Size": size_of, "Slice": slice_axes, "Split": split, "Squeeze": squeeze,
    "Tile": tile, "Transpose": transpose, "Unsqueeze": unsqueeze,
}  # fmt: skip

#: operator → function of shapes, for nodes all of whose inputs are shapes or constants
NUMBERS: dict[str, Callable[..., Numbers]] = {
    "Add": _pairwise(operator.add), "Cast": keep_numbers, "Concat": concat_numbers, "Div": _pairwise(operator.floordiv),
    "Equal": _pairwise(operator.eq), "Gather": gather_numbers, "Identity": keep_numbers, "Mul": _pairwise(operator.mul),
    "ReduceProd": multiply_all, "Reshape": reshape_numbers, "Slice": slice_numbers, "Squeeze": squeeze_number,
    "Sub": _pairwise(operator.sub), "Unsqueeze": unsqueeze_number, "Where": choose_numbers,
}  # fmt: skip

#: operator → the inputs that describe a shape, by position
SHAPE_INPUTS: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,), "Expand": (1,), "Pad": (1, 3), "Range": (0, 1, 2), "ReduceL2": (1,), "ReduceMax": (1,),
    "ReduceMean": (1,), "ReduceMin": (1,), "ReduceSum": (1,), "Reshape": (1,), "Slice": (1, 2, 3, 4), "Split": (1,),
    "Squeeze": (1,), "Tile": (1,), "Unsqueeze": (1,),
}  # fmt: skip
