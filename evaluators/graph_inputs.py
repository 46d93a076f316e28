"""What a model asks of its inputs, for runtimes that would take anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from ..core.errors import MeasurementError


@dataclass(frozen=True)
class GraphInput:
    """One input of a model."""

    name: str
    #: element type, in numpy's words
    dtype: np.dtype[Any]
    #: sides; None where open
    shape: tuple[int | None, ...]


def read_inputs(graph: onnx.GraphProto) -> tuple[GraphInput, ...]:
    """Returns a graph's inputs in order, without those that are constants."""
    constants = {tensor.name for tensor in graph.initializer}
    return tuple(_read(value) for value in graph.input if value.name not in constants)


def _read(value: onnx.ValueInfoProto) -> GraphInput:
    kind = value.type.tensor_type
    sides = tuple(side.dim_value if side.HasField("dim_value") else None for side in kind.shape.dim)
    return GraphInput(value.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type), sides)


def check_inputs(expected: Sequence[GraphInput], inputs: Mapping[str, np.ndarray]) -> None:
    """Compares names, element types and fixed sides.

    Raises:
        MeasurementError: they differ.
    """
    if set(inputs) != {value.name for value in expected}:
        names = ", ".join(sorted(value.name for value in expected))
        raise MeasurementError(f"the model takes the inputs {names}; got {', '.join(sorted(inputs))}")
    for value in expected:
        array = inputs[value.name]
        fits = len(array.shape) == len(value.shape) and all(
            side in (None, got) for side, got in zip(value.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != value.dtype:
            raise MeasurementError(
                f"input {value.name}: the model takes {value.dtype} {list(value.shape)}, "
                f"got {array.dtype} {list(array.shape)}"
            )
