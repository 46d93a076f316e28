"""Functions without a useful derivative, and the one that training uses in its place (straight-through estimators)."""

import math
from typing import Any

import torch

from ..weights.binarize import TERNARY_THRESHOLD

#: latent weights beyond so many scales no longer move outwards or back by the sign's derivative
SIGN_CLIP = 3.0
#: E|x| of a normal distribution is sqrt(2 / π) deviations: so many of them make one
INPUT_CLIP = math.sqrt(math.pi / 2)

_TINY = torch.finfo(torch.float32).tiny


class RoundChannels(torch.autograd.Function):
    """Rounds a weight to codes times a step, one for each output or one in all, and learns the step.

    Esser et al., Learned Step Size Quantization (2020), eq. 1 to 3 and 5.
    """

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, step: torch.Tensor, limit: int) -> torch.Tensor:
        """Rounds.

        Args:
            ctx: of autograd.
            weight: (n_outputs, …).
            step: (n_outputs,) or (1,).
            limit: the codes run from -limit to limit.
        """
        along = step.clamp_min(_TINY).view(-1, *[1] * (weight.ndim - 1))
        rounded = torch.round(weight / along).clamp_(-limit, limit).mul_(along)
        ctx.save_for_backward(weight, along, rounded)
        ctx.limit = limit
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Passes what lies inside the codes; the step's own is scaled by 1 / sqrt(n · limit)."""
        weight, along, rounded = ctx.saved_tensors
        edge = ctx.limit * along
        passed = torch.where(weight.abs() < edge, gradient, 0.0)
        # inside: code - w / s; beyond the last code: that code
        terms = (gradient * rounded - passed * weight) / along
        n_steps = along.numel()
        summed = terms.sum().view(1) if n_steps == 1 else terms.flatten(1).sum(1)
        return passed, summed / math.sqrt(weight.numel() / n_steps * ctx.limit), None


class RoundTensor(torch.autograd.Function):
    """Rounds activations to codes times one learned step; the same equations."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, step: torch.Tensor, low: int, high: int) -> torch.Tensor:
        """Rounds.

        Args:
            ctx: of autograd.
            x: (batch, …).
            step: (1,).
            low: the first code, at most 0.
            high: the last code.
        """
        scale = max(float(step), _TINY)
        rounded = round_to(x, scale, low, high)
        ctx.save_for_backward(x, rounded)
        ctx.scale, ctx.low, ctx.high = scale, low, high
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        """Passes what lies inside the codes; the step's own is scaled by 1 / sqrt(n · high), n values of a sample."""
        x, rounded = ctx.saved_tensors
        # the derivative of a clamp in one pass
        passed = torch.ops.aten.hardtanh_backward(gradient, x, ctx.low * ctx.scale, ctx.high * ctx.scale)
        total = (_dot(gradient, rounded) - _dot(passed, x)) / ctx.scale
        return passed, total.view(1) / math.sqrt(x.numel() / len(x) * ctx.high), None, None


def round_to(x: torch.Tensor, scale: float, low: int, high: int) -> torch.Tensor:
    """Returns the nearest codes from ``low`` to ``high`` times ``scale``: the shape of x, any.

    Four plain passes: torch's own fake_quantize takes ten times as long on x86.
    """
    return torch.div(x, scale).round_().clamp_(low, high).mul_(scale)


class RoundPassing(torch.autograd.Function):
    """Rounds activations within a range that holds them all; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: float, low: int, high: int) -> torch.Tensor:  # noqa: ARG004
        """Rounds as `round_to` does."""
        return round_to(x, scale, low, high)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:  # noqa: ARG004
        """Passes everything."""
        return gradient, None, None, None


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Returns Σ a · b; without a temporary where both lie in memory in one way."""
    if a.stride() == b.stride() and a.untyped_storage().nbytes() == a.numel() * a.element_size():
        line = ((a.numel(),), (1,))
        if b.untyped_storage().nbytes() == b.numel() * b.element_size():
            return torch.dot(a.as_strided(*line), b.as_strided(*line))
    return (a * b).sum()


class SignWeight(torch.autograd.Function):
    """A weight as ±1, or −1, 0 and 1, times a scale for each output, as `binarize_weight` makes it.

    Rastegari et al., XNOR-Net (2016), section 3.1: the derivative of the scale is exact, that of the sign is 1 up to
    `SIGN_CLIP` scales. Ternary: Li et al., Ternary Weight Networks (2016), section 2.3.
    """

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, form: str) -> torch.Tensor:
        """Takes signs.

        Args:
            ctx: of autograd.
            weight: (n_outputs, …).
            form: ``binary`` or ``ternary``.
        """
        rows = weight.flatten(1)
        size = rows.abs()
        if form == "binary":
            signs = torch.where(rows < 0, -1.0, 1.0)
            n_kept = rows.new_tensor(float(rows.shape[1]))
            scale = size.mean(1, keepdim=True)
        else:
            is_large = size > TERNARY_THRESHOLD * size.mean(1, keepdim=True)
            signs = torch.where(is_large, torch.sign(rows), 0.0)
            n_kept = is_large.sum(1, keepdim=True).clamp_min(1)
            scale = (size * is_large).sum(1, keepdim=True) / n_kept
        ctx.save_for_backward(rows, signs, scale, n_kept)
        return (signs * scale).view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Passes to the signs what lies within the clip, and to each scale its part."""
        rows, signs, scale, n_kept = ctx.saved_tensors
        flat = gradient.flatten(1)
        through = torch.where(rows.abs() <= SIGN_CLIP * scale, flat, 0.0)
        result = through + signs * ((flat * signs).sum(1, keepdim=True) / n_kept)
        return result.view_as(gradient), None


class SignInput(torch.autograd.Function):
    """Activations as one of two numbers, by the side of their middle; the derivative is that of a clamp around it.

    Rastegari et al., XNOR-Net (2016), section 3.2, with one pair for the whole tensor; the clamp ends where, around a
    middle of 0, inputs of deviation 1 would have it: Hubara et al., Binarized Neural Networks (2016), eq. 4.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        """Takes sides of x: (batch, …); the middle itself is high."""
        middle, reach = (low + high) / 2, INPUT_CLIP * (high - low) / 2
        ctx.save_for_backward(x)
        ctx.edges = middle - reach, middle + reach
        # 1 or 0, scaled: a tenth of the time that torch.where takes
        return torch.ge(x, middle, out=torch.empty_like(x)).mul_(high - low).add_(low)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Passes what lies within the clamp."""
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, x, *ctx.edges), None, None


class TakeValues(torch.autograd.Function):
    """A weight whose elements share the values of a codebook; the gradient of a value is the sum of its members'.

    Han et al., Deep Compression (2016), section 3.3, eq. 3.
    """

    @staticmethod
    def forward(ctx: Any, codebook: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Looks up: codebook (k,), index any shape int64."""
        ctx.save_for_backward(index)
        ctx.n_values = len(codebook)
        return codebook[index]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Sums over members."""
        (index,) = ctx.saved_tensors
        summed = torch.bincount(index.flatten(), weights=gradient.flatten(), minlength=ctx.n_values)
        return summed.to(gradient.dtype), None


class RoundBlocks(torch.autograd.Function):
    """A linear weight rounded block by block along its inputs, as `quantize_blocks` does; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, bits: int, block_size: int) -> torch.Tensor:  # noqa: ARG004
        """Rounds weight: (n_outputs, n_inputs)."""
        n_outputs, n_inputs = weight.shape
        n_blocks = -(-n_inputs // block_size)
        padded = torch.nn.functional.pad(weight, (0, n_blocks * block_size - n_inputs))
        blocks = padded.view(n_outputs, n_blocks, block_size)
        middle = 1 << (bits - 1)
        extreme = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
        scales = extreme / -middle
        divisor = torch.where(scales.abs() < _TINY, 1.0, scales)
        rounded = torch.round(blocks / divisor).clamp_(-middle, middle - 1).mul_(scales)
        return rounded.view(n_outputs, -1)[:, :n_inputs].contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: ARG004
        """Passes everything."""
        return gradient, None, None
