"""Weights as the file holds them, each made once per (layer, treatment) and kept."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from .layer_weight import LayerWeight
from .packing import Packed, pack
from .quantized_weights import (
    BlockWeight,
    QuantizedWeight,
    Rounding,
    quantize_blocks,
    quantize_values,
    quantize_weight,
)
from .treated_weight import TreatedWeight, along
from .weight_treatment import treat_weight

#: what was used least recently goes when all together take more than this
MAX_BANK_BYTES = 1024**3
#: largest float8 (E4M3FN): Micikevicius et al., FP8 Formats for Deep Learning (2022), table 1
MAX_FLOAT8 = 448.0

T = TypeVar("T")


@dataclass(frozen=True)
class FloatWeight:
    """A weight that is stored in floats: weight ≈ unpacked × scale."""

    packed: Packed
    #: float32, broadcasts to the weight; None is 1
    scale: np.ndarray | None


@dataclass(frozen=True)
class CodedWeight:
    """An int8 weight, and its codes as they are stored."""

    weight: QuantizedWeight
    packed: Packed


class WeightBank:
    """The weights of one model as they are stored; lives as long as the worker."""

    def __init__(self, *, max_bytes: int = MAX_BANK_BYTES) -> None:
        self._made: OrderedDict[tuple[object, ...], object] = OrderedDict()
        self._max_bytes = max_bytes
        self._n_bytes = 0

    def treated(self, layer: LayerWeight) -> TreatedWeight:
        """Returns the weight clustered, binarised and sparsified."""
        if not layer.is_treated:
            return TreatedWeight(layer.array, None, layer.axis)
        return self._get(
            (*layer.key, "treated"),
            lambda: treat_weight(
                layer.array,
                layer.treatment,
                axis=layer.axis,
                inputs=layer.inputs,
                output_scale=layer.output_scale,
            ),
        )

    def floats(self, layer: LayerWeight, dtype: type[np.floating[Any]]) -> FloatWeight:
        """Returns the weight in float32 or float16; what is beyond float16 is clipped to the largest that it holds."""
        return self._get((*layer.key, np.dtype(dtype).name), lambda: _as_floats(layer, self.treated(layer), dtype))

    def channels(self, layer: LayerWeight) -> CodedWeight:
        """Returns the int8 weight with one scale for each output, or one in all where the treatment says so."""
        axis = layer.scale_axis
        return self._get((*layer.key, "int8", axis, layer.rounding_name), lambda: self._as_codes(layer, axis))

    def blocks(self, layer: LayerWeight) -> BlockWeight:
        """Returns the weight in blocks for MatMulNBits, as its granularity says."""
        bits = 4 if layer.treatment.weight_dtype == "int4" else 8
        block_size = int(layer.treatment.granularity.removeprefix("block"))
        return self._get(
            (*layer.key, bits, block_size, layer.rounding_name),
            lambda: quantize_blocks(
                self.treated(layer).array, bits=bits, block_size=block_size, rounding=_rounding_of(layer)
            ),
        )

    def float8(self, layer: LayerWeight) -> QuantizedWeight:
        """Returns the weight in float8 (E4M3FN) with a scale for each output: the largest weight becomes 448."""
        return self._get((*layer.key, "float8"), lambda: _as_float8(self.treated(layer)))

    def stored(self, layer: LayerWeight) -> np.ndarray:
        """Returns what the stored weight stands for: float32, the shape of the weight."""
        treatment = layer.treatment
        if treatment.weight_dtype in ("float32", "float16"):
            dtype = np.float16 if treatment.weight_dtype == "float16" else np.float32
            scale, treated = self.floats(layer, dtype).scale, self.treated(layer)
            stored = _as_dtype(treated.array if scale is None else treated.values, dtype).astype(np.float32)
            return stored if scale is None else stored * scale
        if treatment.weight_dtype == "float8":
            return self.float8(layer).array
        if treatment.granularity.startswith("block"):
            return self.blocks(layer).unpack(layer.array.shape[0])
        return self.channels(layer).weight.array

    def _as_codes(self, layer: LayerWeight, axis: int | None) -> CodedWeight:
        treated = self.treated(layer)
        if treated.storage == "coded":
            step = 1.0 if layer.treatment.binary != "none" else None
            stored = quantize_values(treated, groups=layer.groups, step=step, is_shared=axis is None)
        else:
            stored = quantize_weight(
                treated.array, axis=axis, outputs=layer.axis, scale=_learned_scale(layer, axis),
                rounding=_rounding_of(layer),
            )  # fmt: skip
        return CodedWeight(stored, pack_codes(stored, layer))

    def _get(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        if key not in self._made:
            self._made[key] = made = make()
            self._n_bytes += _bytes_of(made)
            while self._n_bytes > self._max_bytes and len(self._made) > 1:
                self._n_bytes -= _bytes_of(self._made.popitem(last=False)[1])
        self._made.move_to_end(key)
        return self._made[key]  # type: ignore[return-value]


def pack_codes(stored: QuantizedWeight, layer: LayerWeight) -> Packed:
    """Returns the codes as they are stored: packed, where the treatment left few values or many zeros."""
    if layer.is_treated:
        return pack(stored.codes, axis=layer.axis, groups=stored.groups)
    return stored.codes


def _as_floats(layer: LayerWeight, treated: TreatedWeight, dtype: type[np.floating[Any]]) -> FloatWeight:
    if layer.is_treated:
        packed = pack(_as_dtype(treated.values, dtype), axis=treated.axis, groups=layer.groups)
        if not isinstance(packed, np.ndarray):
            scale = treated.scale
            return FloatWeight(packed, None if scale is None else along(scale, layer.array.ndim, treated.axis))
    return FloatWeight(_as_dtype(treated.array, dtype), None)


def _as_dtype(array: np.ndarray, dtype: type[np.floating[Any]]) -> np.ndarray:
    limit = np.finfo(dtype).max
    clipped: np.ndarray = np.clip(array, -limit, limit).astype(dtype)
    return clipped


def _as_float8(treated: TreatedWeight) -> QuantizedWeight:
    array = treated.array
    others = tuple(i for i in range(array.ndim) if i != treated.axis)
    scale = np.abs(array).max(axis=others).astype(np.float32) / np.float32(MAX_FLOAT8)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale).astype(np.float32)
    codes = np.clip(array / along(scale, array.ndim, treated.axis), -MAX_FLOAT8, MAX_FLOAT8)
    return QuantizedWeight(codes.astype(ir.DataType.FLOAT8E4M3FN.numpy()), scale, treated.axis)


def _learned_scale(layer: LayerWeight, axis: int | None) -> np.ndarray | None:
    """Returns the int8 scales that training found, behind the batch norm; None where they do not fit."""
    if layer.learned_step is None:
        return None
    steps = np.abs(np.asarray(layer.learned_step, np.float32))
    if layer.output_scale is not None:
        steps = (steps * np.abs(layer.output_scale)).astype(np.float32)
    steps = np.where(steps < np.finfo(np.float32).tiny, np.float32(1), steps)
    if axis is not None:
        return steps
    return np.asarray(steps[0]) if (steps == steps[0]).all() else None


def _rounding_of(layer: LayerWeight) -> Rounding:
    """Returns the layer's rounding; what sparsifying made 0 stays 0."""
    if layer.treatment.sparsity == 0.0:
        return layer.rounding

    def keep_zeros(rows: np.ndarray, scales: np.ndarray, limits: tuple[int, int]) -> np.ndarray:
        return np.where(rows == 0, 0, layer.rounding(rows, scales, limits))

    return keep_zeros


def _bytes_of(made: object) -> int:
    return sum({id(array): array.nbytes for array in _arrays_in(made)}.values())


def _arrays_in(made: object) -> Iterator[np.ndarray]:
    if isinstance(made, np.ndarray):
        yield made
    elif is_dataclass(made):
        for field in fields(made):
            yield from _arrays_in(getattr(made, field.name))
