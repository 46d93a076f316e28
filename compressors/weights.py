"""Quantised weights, made once per (layer, treatment) and kept."""

from dataclasses import dataclass

import numpy as np

#: largest code of an int8 weight; symmetric, so -128 stays unused
_MAX_CODE = 127


@dataclass(frozen=True)
class QuantizedWeight:
    """Codes and scales: weight ≈ codes × scale."""

    #: same shape as the weight, int8
    codes: np.ndarray
    #: float32; () per tensor, (channels,) per channel
    scale: np.ndarray
    #: the channel axis; None per tensor
    axis: int | None


def quantize_weight(weight: np.ndarray, *, axis: int | None) -> QuantizedWeight:
    """Rounds a weight to symmetric int8, zero point 0.

    Args:
        weight: any shape, float32.
        axis: the axis along which each index has its own scale; None for one scale.

    Source of the scale: onnxruntime.quantization.quant_utils.compute_scale_zp with symmetric ranges,
    2·max|w| / (2·max_code) in float32; 1.0 where the channel is zero.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    bound = np.abs(weight).max(axis=others).astype(np.float32)
    scale = (bound + bound) / np.float32(2 * _MAX_CODE)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale).astype(np.float32)
    divisor = scale if axis is None else np.expand_dims(scale, others)
    codes = np.clip(np.rint(weight / divisor), -_MAX_CODE, _MAX_CODE).astype(np.int8)
    return QuantizedWeight(codes, scale, axis)


@dataclass(frozen=True)
class BlockWeight:
    """A linear weight in the layout of com.microsoft.MatMulNBits."""

    #: (n_outputs, n_blocks, block_size × bits / 8) uint8; 4-bit pairs, low nibble first
    codes: np.ndarray
    #: (n_outputs × n_blocks,) float32
    scales: np.ndarray
    bits: int
    block_size: int


def quantize_blocks(weight: np.ndarray, *, bits: int, block_size: int) -> BlockWeight:
    """Rounds a linear weight block by block along its inputs; symmetric, stored with the default zero point.

    Args:
        weight: (n_inputs, n_outputs) float32; n_inputs is padded with zeros to whole blocks.
        bits: 4 or 8.
        block_size: inputs that share a scale.

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
    codes = np.clip(np.rint(blocks / divisor) + middle, 0, 2 * middle - 1).astype(np.uint8)
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return BlockWeight(codes, scales.reshape(-1), bits, block_size)
