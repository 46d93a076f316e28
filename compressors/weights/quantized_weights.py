"""Weights as integers: codes and scales, per tensor, per channel or per block."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .treated_weight import TreatedWeight, along, as_rows, from_rows

#: largest code of an int8 weight; symmetric, so -128 stays unused
MAX_CODE = 127
#: scale of an output that a batch norm zeroed: scales above 0 are what runtimes take
_LEAST_SCALE = np.float32(1e-30)

#: rows (n_outputs, K) float32, their scales (broadcasts to them), (lowest, highest code) → codes, the shape of the rows
Rounding = Callable[[np.ndarray, np.ndarray, tuple[int, int]], np.ndarray]


def round_nearest(rows: np.ndarray, scales: np.ndarray, limits: tuple[int, int]) -> np.ndarray:
    """Returns the code nearest to each weight: the shape of ``rows``, float32.

    Args:
        rows: (n_outputs, K) float32.
        scales: float32, broadcasts to the rows; never 0.
        limits: the lowest and the highest code.
    """
    codes: np.ndarray = np.clip(np.rint(rows / scales), *limits)
    return codes


@dataclass(frozen=True)
class QuantizedWeight:
    """Codes and scales: weight ≈ codes × scale."""

    #: same shape as the weight, int8
    codes: np.ndarray
    #: float32; () per tensor, (channels,) per channel
    scale: np.ndarray
    #: the channel axis; None per tensor
    axis: int | None
    #: (n_outputs,) int: outputs of one number have their codes in common; None: all have
    groups: np.ndarray | None = None

    @property
    def array(self) -> np.ndarray:
        """What the codes stand for: float32, the shape of the weight."""
        scale = self.scale if self.axis is None else along(self.scale, self.codes.ndim, self.axis)
        product: np.ndarray = self.codes.astype(np.float32) * scale
        return product


def quantize_weight(
    weight: np.ndarray,
    *,
    axis: int | None,
    outputs: int = 0,
    scale: np.ndarray | None = None,
    rounding: Rounding = round_nearest,
) -> QuantizedWeight:
    """Rounds a weight to symmetric int8, zero point 0.

    Args:
        weight: any shape, float32.
        axis: the axis along which each index has its own scale; None for one scale.
        outputs: the axis of the outputs where there is one scale; otherwise it is ``axis``.
        scale: (n,) or () float32, to be used as it is; None: the largest weight has the largest code.
        rounding: what chooses the codes; it sees the outputs as rows.

    Source of the scale: onnxruntime.quantization.quant_utils.compute_scale_zp with symmetric ranges,
    2·max|w| / (2·max_code) in float32; 1.0 where the channel is zero.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    if scale is None:
        scale = scale_of(np.abs(weight).max(axis=others))
    along_rows = outputs if axis is None else axis
    codes = rounding(as_rows(weight, along_rows), scale.reshape(-1, 1), (-MAX_CODE, MAX_CODE))
    return QuantizedWeight(from_rows(codes.astype(np.int8), weight.shape, along_rows), scale, axis)


def scale_of(bound: np.ndarray) -> np.ndarray:
    """Returns the int8 scale, float32, for the largest magnitudes: any shape."""
    bound = np.asarray(bound, np.float32)
    scale = (bound + bound) / np.float32(2 * MAX_CODE)
    return np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale).astype(np.float32)


def quantize_values(
    treated: TreatedWeight, *, groups: np.ndarray | None = None, step: float | None = None, is_shared: bool = False
) -> QuantizedWeight:
    """Rounds a weight of few values so that it has no more codes than values: the values are rounded, then scaled.

    A scale below 0 turns the signs of the codes instead: not every runtime takes it.

    Args:
        treated: a clustered, binary or ternary weight.
        groups: (n_outputs,) int, which outputs share a codebook; None: all of them.
        step: the value of code 1; None: the largest value of a codebook has the largest code.
        is_shared: whether one scale is to stand for all outputs, where they have the same.
    """
    axis, rows = treated.axis, as_rows(treated.values, treated.axis)
    groups = np.zeros(len(rows), np.int64) if groups is None else groups
    if step is None:
        bounds = np.zeros(groups.max() + 1, np.float32)
        np.maximum.at(bounds, groups, np.abs(rows).max(1))
        steps = scale_of(bounds)[groups]
    else:
        steps = np.full(len(rows), step, np.float32)
    outer = np.ones(len(rows), np.float32) if treated.scale is None else treated.scale
    codes = round_nearest(rows, steps[:, None], (-MAX_CODE, MAX_CODE)) * np.where(outer < 0, -1, 1)[:, None]
    scale = np.maximum(steps * np.abs(outer), _LEAST_SCALE)
    books = 2 * groups + (outer < 0)
    one_scale = is_shared and bool((scale == scale[0]).all())
    return QuantizedWeight(
        from_rows(codes.astype(np.int8), treated.values.shape, axis),
        np.asarray(scale[0]) if one_scale else scale,
        None if one_scale else axis,
        books if books.any() else None,
    )


def raise_scale(stored: QuantizedWeight, weight: np.ndarray, floor: np.ndarray) -> QuantizedWeight:
    """Returns the weight with scales of at least ``floor``; what has a new scale is rounded anew.

    Args:
        stored: the weight as it was rounded.
        weight: its values, float32.
        floor: (n_outputs,) float32.
    """
    if stored.scale.ndim == 0:
        scale = np.maximum(stored.scale, floor.max())
        codes = round_nearest(weight, scale, (-MAX_CODE, MAX_CODE))
        return QuantizedWeight(codes.astype(np.int8), scale, None)
    scale = np.maximum(stored.scale, floor)
    axis = stored.axis or 0
    codes = round_nearest(weight, along(scale, weight.ndim, axis), (-MAX_CODE, MAX_CODE))
    is_new = along(scale != stored.scale, weight.ndim, axis)
    return QuantizedWeight(np.where(is_new, codes, stored.codes).astype(np.int8), scale, stored.axis, stored.groups)


@dataclass(frozen=True)
class BlockWeight:
    """A linear weight in the layout of com.microsoft.MatMulNBits."""

    #: (n_outputs, n_blocks, block_size × bits / 8) uint8; 4-bit pairs, low nibble first
    codes: np.ndarray
    #: (n_outputs × n_blocks,) float32
    scales: np.ndarray
    bits: int
    block_size: int

    def unpack(self, n_inputs: int) -> np.ndarray:
        """Returns what the codes stand for: (n_inputs, n_outputs) float32."""
        codes = self.codes
        if self.bits == 4:
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
        middle = 1 << (self.bits - 1)
        steps = self.scales.reshape(*codes.shape[:2], 1)
        blocks = (codes.astype(np.float32) - np.float32(middle)) * steps
        return np.ascontiguousarray(blocks.reshape(len(codes), -1)[:, :n_inputs].T)


def quantize_blocks(
    weight: np.ndarray, *, bits: int, block_size: int, rounding: Rounding = round_nearest
) -> BlockWeight:
    """Rounds a linear weight block by block along its inputs; symmetric, stored with the default zero point.

    Args:
        weight: (n_inputs, n_outputs) float32; n_inputs is padded with zeros to whole blocks.
        bits: 4 or 8.
        block_size: inputs that share a scale.
        rounding: what chooses the codes; it sees (n_outputs, n_inputs) rows, and a scale for each weight.

    Source: the operator's specification (contrib operator MatMulNBits): w = (code - 2^(bits-1)) × scale.
    """
    n_inputs, n_outputs = weight.shape
    n_blocks = -(-n_inputs // block_size)
    padded = np.zeros((n_blocks * block_size, n_outputs), np.float32)
    padded[:n_inputs] = weight
    blocks = padded.T.reshape(n_outputs, n_blocks, block_size)
    middle = 1 << (bits - 1)
    # the element of largest magnitude maps to code 0 (that is -middle), which uses the one code that a
    # scale of max|w| / (middle - 1) would waste
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    scales = (extreme / -middle).astype(np.float32)
    divisor = np.where(np.abs(scales) < np.finfo(np.float32).tiny, np.float32(1), scales)
    codes = np.full((n_outputs, n_blocks * block_size), middle, np.uint8)
    steps = np.repeat(divisor.reshape(n_outputs, n_blocks), block_size, axis=1)[:, :n_inputs]
    codes[:, :n_inputs] = rounding(weight.T, steps, (-middle, middle - 1)) + middle
    codes = codes.reshape(n_outputs, n_blocks, block_size)
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return BlockWeight(codes, scales.reshape(-1), bits, block_size)
