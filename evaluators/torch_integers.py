"""ONNX's operators of quantised values in PyTorch.

Quantising and dequantising are arithmetic here. Where both factors of a product are 8-bit codes, they are multiplied
as integers by `torch._int_mm` (oneDNN on the processor, cuBLASLt on the GPU): (128, 384) × (384, 1536) on one thread of
an AVX512 and AMX Xeon takes 951 µs in float32, 162 in bfloat16 and 114 so (PyTorch 2.13).
"""

from collections.abc import Callable
from typing import Any

import torch

from .torch_operators import DTYPES, Tensor

#: (smallest, largest) code per dtype
_LIMITS = {
    torch.int8: (-128, 127),
    torch.uint8: (0, 255),
    torch.int16: (-32768, 32767),
    torch.int32: (-(2**31), 2**31 - 1),
}

#: What cuBLASLt's integer product asks of its sides.
_GPU_ROWS, _GPU_MULTIPLE = 17, 8


def quantize(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, output_dtype: int = 0, **_: Any
) -> Tensor:
    """QuantizeLinear: round half to even, shift, saturate."""
    dtype = zero.dtype if zero is not None else DTYPES.get(output_dtype, torch.uint8)
    low, high = _LIMITS[dtype]
    codes = torch.round(x / _along(scale, axis, x.dim()))
    if zero is not None:
        codes = codes + _along(zero, axis, x.dim()).to(codes.dtype)
    return torch.clamp(codes, low, high).to(dtype)


def dequantize(
    codes: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, block_size: int = 0, **_: Any
) -> Tensor:
    """DequantizeLinear per tensor, per channel or per block; float32."""
    if block_size:
        scale = scale.repeat_interleave(block_size, axis).narrow(axis, 0, codes.shape[axis])
        zero = None if zero is None else zero.repeat_interleave(block_size, axis).narrow(axis, 0, codes.shape[axis])
        shifted = codes.to(scale.dtype) if zero is None else codes.to(scale.dtype) - zero.to(scale.dtype)
        return shifted * scale
    wide = codes.to(scale.dtype) if codes.dtype != torch.int32 else codes.to(torch.float64)
    if zero is not None:
        wide = wide - _along(zero, axis, codes.dim()).to(wide.dtype)
    return (wide * _along(scale, axis, codes.dim())).to(scale.dtype)


def _along(values: Tensor, axis: int, rank: int) -> Tensor:
    """Shapes one value per index of ``axis`` so that it broadcasts; single values stay single."""
    if values.dim() == 0 or values.numel() == 1:
        return values.reshape(())
    sides = [1] * rank
    sides[axis] = -1
    return values.reshape(sides)


def quantize_dynamically(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """DynamicQuantizeLinear: uint8 codes of the range from the smallest to the largest value, 0 included.

    Returns:
        Codes, float32 scale, uint8 zero point.
    """
    x = x.float()
    low, high = torch.clamp(torch.amin(x), max=0.0), torch.clamp(torch.amax(x), min=0.0)
    scale = (high - low) / 255.0
    # a constant zero input has no range; ONNX Runtime takes 1 then
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp(torch.round(-low / scale), 0, 255)
    codes = torch.clamp(torch.round(x / scale) + zero, 0, 255)
    return codes.to(torch.uint8), scale, zero.to(torch.uint8)


def multiply_codes(
    left: Tensor, right: Tensor, left_zero: Tensor | None = None, right_zero: Tensor | None = None
) -> Tensor:
    """MatMulInteger: (left - left_zero) · (right - right_zero) in int32.

    Zero points are scalars, or the right one has one per column.
    """
    if right.dim() != 2 or right.dtype != torch.int8 or not _fits(left, right):
        wide = left.double() if left_zero is None else left.double() - left_zero.double()
        other = right.double() if right_zero is None else right.double() - right_zero.double()
        # exact: products of 8-bit codes stay far below 2^53
        return torch.matmul(wide, other).to(torch.int32)
    rows = left.reshape(-1, left.shape[-1])
    shift = torch.zeros((), dtype=torch.int32, device=left.device)
    if left.dtype == torch.uint8:
        # the same bits, read as signed numbers, are 128 lower once the highest is turned
        rows, shift = torch.bitwise_xor(rows, 128).view(torch.int8), shift - 128
    if left_zero is not None:
        shift = shift + left_zero.to(torch.int32)
    product = torch._int_mm(rows, right)
    product = product - shift * right.sum(0, dtype=torch.int32)
    if right_zero is not None:
        depth = left.shape[-1]
        sums = rows.sum(1, dtype=torch.int32, keepdim=True) - depth * shift
        product = product - sums * right_zero.to(torch.int32)
    return product.reshape(*left.shape[:-1], right.shape[1])


def multiply_shifted(codes: Tensor, weight: Tensor, sums: Tensor, zero: Tensor) -> Tensor:
    """MatMulInteger with a symmetric weight.

    Args:
        codes: (…, k) int8 or uint8.
        weight: (k, n) int8.
        sums: (n,) int32, the weight's columns added up.
        zero: () the zero point of ``codes``.
    """
    if not _fits(codes, weight):
        return multiply_codes(codes, weight, zero)
    rows, offset = codes.reshape(-1, codes.shape[-1]), zero.to(torch.int32)
    if codes.dtype == torch.uint8:
        rows, offset = torch.bitwise_xor(rows, 128).view(torch.int8), offset - 128
    product = torch._int_mm(rows, weight) - offset * sums
    return product.reshape(*codes.shape[:-1], weight.shape[1])


def _fits(left: Tensor, right: Tensor) -> bool:
    if not left.is_cuda:
        return True
    rows = left.numel() // max(left.shape[-1], 1)
    sides = (right.shape[0] % _GPU_MULTIPLE, right.shape[1] % _GPU_MULTIPLE)
    return bool(rows >= _GPU_ROWS and sides == (0, 0))


def multiply_scaled(codes: Tensor, weight: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """A product of quantised factors, dequantised: float32 (…, n) from codes (…, k) and int8 codes (k, n).

    Args:
        codes: (…, k) int8 or uint8.
        weight: (k, n) int8, symmetric.
        shift: (n,) int32 to add to the integer product: what the zero point of ``codes`` amounts to.
        scale: () or (n,) float32, scale of ``codes`` × scale of ``weight``.
    """
    rows = codes.reshape(-1, codes.shape[-1])
    if not _fits(codes, weight):
        offset = 128 if codes.dtype == torch.uint8 else 0
        exact = torch.matmul(rows.double() - offset, weight.double()) + shift
        return (exact.to(torch.float32) * scale).reshape(*codes.shape[:-1], weight.shape[1])
    if codes.dtype == torch.uint8:
        rows = torch.bitwise_xor(rows, 128).view(torch.int8)
    product = (torch._int_mm(rows, weight) + shift).to(torch.float32) * scale
    return product.reshape(*codes.shape[:-1], weight.shape[1])


def find_shift(weight: Tensor, zero: int, *, is_unsigned: bool) -> Tensor:
    """Returns the ``shift`` of `multiply_scaled` for codes with this zero point."""
    offset = zero - 128 if is_unsigned else zero
    return -offset * weight.sum(0, dtype=torch.int32)


def multiply_blocks(
    x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None = None, *_: Any, **attributes: Any
) -> Tensor:
    """MatMulNBits of ONNX Runtime; its weight is unpacked by `unpack_blocks`."""
    weight = unpack_blocks(codes, scales, zeros, attributes).to(x.dtype)
    return torch.nn.functional.linear(x, weight)


def unpack_blocks(codes: Tensor, scales: Tensor, zeros: Tensor | None, attributes: dict[str, Any]) -> Tensor:
    """Returns the (n_outputs, n_inputs) float32 weight of a MatMulNBits.

    Args:
        codes: (n_outputs, n_blocks, bytes per block) uint8; of two 4-bit codes in a byte the lower comes first.
        scales: n_outputs × n_blocks float32.
        zeros: packed zero points; by default the middle of the range.
        attributes: ``K``, ``N``, ``bits`` (4 or 8) and ``block_size``.
    """
    n_inputs, n_outputs, bits = attributes["K"], attributes["N"], attributes.get("bits", 4)
    if bits not in (4, 8):
        raise NotImplementedError(f"MatMulNBits with {bits} bits")
    n_blocks = -(-n_inputs // attributes["block_size"])
    blocks = _unpack(codes.reshape(n_outputs, n_blocks, -1), bits).float()
    middle: Tensor = torch.full((n_outputs, n_blocks), float(2 ** (bits - 1)), device=codes.device)
    if zeros is not None:
        middle = _unpack(zeros.reshape(n_outputs, -1), bits)[:, :n_blocks].float()
    weight = (blocks - middle[..., None]) * scales.reshape(n_outputs, n_blocks, 1).float()
    return weight.reshape(n_outputs, -1)[:, :n_inputs].contiguous()


def _unpack(packed: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return packed
    return torch.stack((packed & 15, packed >> 4), -1).flatten(-2)


#: operator → function
INTEGERS: dict[str, Callable[..., Any]] = {
    "DequantizeLinear": dequantize, "DynamicQuantizeLinear": quantize_dynamically, "MatMulInteger": multiply_codes,
    "MatMulNBits": multiply_blocks, "QuantizeLinear": quantize,
}  # fmt: skip
